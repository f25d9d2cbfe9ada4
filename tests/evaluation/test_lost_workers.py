"""Workers that die, and schedulers without any."""

import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import dask
import distributed
import pytest

import vlscore
from vlscore_lib.evaluation import workers
from vlscore_lib.evaluation.workers import measure_by_dask

NAMES = "abcdefgh"
SHARDS = {number: [(SimpleNamespace(name=name, path=Path(name)), False)] for number, name in enumerate(NAMES)}
EXPECTED = {number: ([{"image": name}], {}) for number, name in enumerate(NAMES)}


@pytest.fixture
def connect():
    """Start a cluster of small workers, which know nothing of this module -> a client."""
    with ExitStack() as stack:

        def connect(count=1, failures=3, **options):
            with dask.config.set({"distributed.scheduler.allowed-failures": failures}):
                cluster = stack.enter_context(workers.open_local_cluster(count, **options))
            return stack.enter_context(distributed.Client(cluster))

        yield connect


def measured(client, act=None, skips_bad=False):
    """What comes of all shards; `act` is a function of a shard's name that runs on its worker."""

    def on_worker(context, shard):
        name = shard[0][0].name
        if act is not None:
            act(name)
        return [{"image": name}], {}

    context = SimpleNamespace(skips_bad=skips_bad)
    return {number: found for number, *found in measure_by_dask(client, on_worker, context, SHARDS)}


def killer(folder, times):
    """A function that kills its own process the first times that it meets shard c."""
    folder = str(folder)

    def act(name):
        deaths = len(os.listdir(folder))
        if name == "c" and deaths < times:
            open(f"{folder}/{deaths}", "w").close()
            os.kill(os.getpid(), 9)

    return act


def test_the_only_worker_is_killed_six_times_with_the_same_shard(connect, tmp_path):
    """By Dask's own count, four deaths end a task."""
    found = measured(connect(), killer(tmp_path, 6))
    assert len(os.listdir(tmp_path)) == 6
    assert {number: tuple(each) for number, each in found.items()} == EXPECTED


def test_a_shard_that_kills_every_worker_is_named(connect, tmp_path):
    with pytest.raises(vlscore.VLScoreError) as error:
        measured(connect(failures=0), killer(tmp_path, 99))
    assert len(os.listdir(tmp_path)) == workers.TRIES
    message = str(error.value)
    assert message.startswith(f"{workers.TRIES} workers died while they measured c to c; ")
    assert "is too small, give each more" in message and "\n" not in message


def test_a_shard_that_kills_every_worker_is_left_out_if_asked_and_no_other(connect, tmp_path):
    found = measured(connect(2, failures=0), killer(tmp_path, 99), skips_bad=True)
    records, left_out = found.pop(2)
    assert (records, list(left_out)) == ([], ["c"])
    assert left_out["c"].startswith(f"c: {workers.TRIES} workers died")
    assert found == {number: list(each) for number, each in EXPECTED.items() if number != 2}


def test_workers_that_run_out_of_memory_are_told(connect):
    def act(name):
        if name == "c":
            held = []
            for _ in range(100):
                held.append(b"x" * 20_000_000)
                time.sleep(0.1)

    with pytest.raises(vlscore.VLScoreError, match=r"they ran out of memory of 0\.4 GB: give each more"):
        measured(connect(failures=0, memory_limit="400MB"), act)


def test_a_scheduler_without_workers_says_that_it_waits(connect, capsys):
    client = connect()
    client.cluster.scale(0)
    while client.scheduler_info()["workers"]:
        time.sleep(0.1)
    timer = threading.Timer(1, client.cluster.scale, [1])
    timer.start()
    found = measured(client)
    timer.join()
    assert {number: tuple(each) for number, each in found.items()} == EXPECTED
    said = capsys.readouterr().err.splitlines()
    address = client.scheduler.address
    assert [line for line in said if "has no workers: waiting for one" in line] == [
        f"vlscore: the Dask scheduler at {address} has no workers: waiting for one; start it by"
        f" 'dask worker {address}'"
    ]


def test_a_cluster_closes_while_it_starts_a_lost_worker_again(monkeypatch):
    """Dask's own close fails then, so that a run's last word would be a traceback."""

    class Cluster(distributed.LocalCluster):
        def close(self, timeout=None):
            super().close(timeout)
            raise AssertionError("can only join a started process")

    monkeypatch.setattr(distributed, "LocalCluster", Cluster)
    with workers.open_local_cluster(1) as cluster, distributed.Client(cluster) as client:
        assert client.submit(sum, [1, 2]).result() == 3
