"""Shards measured on Dask's workers."""

import errno
import os
import runpy
import signal

import distributed
import pytest
from evaluation_helpers import FLAGS, QUICK, contents, counting, draw, same_records, without_bar
from test_command_line import one_line
from test_late_photos import SPOILS, check_late_photos

import vlscore
import vlscore_cli


def test_a_cluster_gives_the_same_records_and_summary(rn, photos, client, finished, tmp_path):
    counts = []
    records = vlscore.evaluate(
        rn, photos, tmp_path / "run", client=client, progress=counting(counts), **QUICK
    )
    same_records(records, vlscore.read_run(finished)[1])
    assert contents(tmp_path / "run")["summary.json"] == contents(finished)["summary.json"]
    assert (counts[0], sorted(counts[1:])) == ((0, False), [(4, True), (8, True)])


def test_a_scheduler_that_runs_already_is_used(run, offline, small, client, finished, tmp_path):
    arguments = ["evaluate", small, "--out", tmp_path / "run", *FLAGS]
    code, _, err = run(*arguments, "--scheduler", client.scheduler.address)
    assert (code, "vlscore:" in err) == (0, False)
    assert contents(tmp_path / "run")["summary.json"] == contents(finished)["summary.json"]
    assert len(client.scheduler_info()["workers"]) == 2  # which are not ours to stop


def test_workers_on_this_machine_give_the_same_summary(run, offline, small, started, finished, tmp_path):
    code, out, err = run("evaluate", small, "--out", tmp_path / "run", *FLAGS, "--workers", 2)
    assert (code, "vlscore:" in err, started) == (0, False, [2])
    assert contents(tmp_path / "run")["summary.json"] == contents(finished)["summary.json"]
    assert str(tmp_path / "run" / "summary.json") in out


def test_a_full_disk_is_not_taken_for_a_missing_scheduler(
    run, offline, monkeypatch, small, started, tmp_path
):
    def full(_):
        if (tmp_path / "run" / "run.json").exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run("evaluate", small, "--out", tmp_path / "run", *FLAGS, "--workers", 2)
    line = one_line(without_bar(err))
    assert (code, "No space left" in line, "Dask" in line) == (2, True, False)
    assert os.listdir(tmp_path / "run") == ["run.json"]


def test_the_program_runs_functions_of_the_module_and_not_of_main(monkeypatch):
    """Those of ``__main__`` would be others in a worker."""
    monkeypatch.setattr(vlscore_cli, "main", lambda: 77)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(vlscore_cli.__file__, run_name="__main__")
    assert end.value.code == 77


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_photo_that_fails_late_on_a_worker_is_left_out_and_listed(rn, client, tmp_path, spoil):
    check_late_photos(rn, tmp_path, spoil, client)


def test_a_worker_that_is_killed_costs_nothing_but_time(rn, client, tmp_path):
    many = vlscore.read_dataset(draw(tmp_path / "scenes", 48, 7, (64, 64)))
    options = {"layer": "layer1", "keep": 1, "thresholds": (), "temperatures": ()}
    expected = vlscore.evaluate(rn, many, **options)
    victims = list(client.run(os.getpid).values())
    killed = []

    def progress(count, measured=True):
        if measured and not killed:  # one part of six is done
            killed.append(victims[0])
            os.kill(victims[0], signal.SIGKILL)

    records = vlscore.evaluate(rn, many, tmp_path / "run", client=client, progress=progress, **options)
    assert killed == victims[:1]
    assert len(list((tmp_path / "run").glob("part-*"))) == 6
    same_records(records, expected)


def test_a_scheduler_that_is_not_there_is_told(run, offline, monkeypatch, small, tmp_path):
    waited, connect = [], distributed.Client

    def impatient(*where, timeout):
        waited.append(timeout)
        return connect(*where, timeout=0.5)

    monkeypatch.setattr(distributed, "Client", impatient)
    arguments = ["evaluate", small, "--out", tmp_path / "run", *FLAGS]
    code, _, err = run(*arguments, "--scheduler", "tcp://127.0.0.1:1")
    assert code == 2
    assert "no Dask scheduler at tcp://127.0.0.1:1" in one_line(without_bar(err))
    assert len(waited) == 1 and waited[0] <= 25
    assert not (tmp_path / "run").exists()
