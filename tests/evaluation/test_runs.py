"""Runs: folders that are resumed, killed, and never half-written."""

import copy
import errno
import json
import os
import signal
import time

import numpy as np
import pandas
import pytest
from evaluation_helpers import (
    FILES,
    FLAGS,
    QUICK,
    contents,
    counting,
    cut,
    draw,
    same_records,
    without_bar,
)
from programs import start_program
from test_command_line import one_line

import vlscore

# ── Runs ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_s_folder_holds_parts_parameters_and_a_summary(finished, rn, photos):
    assert sorted(os.listdir(finished)) == FILES
    parts = [pandas.read_parquet(finished / name) for name in FILES[:2]]
    assert [len(part) for part in parts] == [8, 4]
    assert list(pandas.concat(parts)["image"]) == [photo.name for photo in photos.photos]
    facts = json.loads((finished / "run.json").read_text())
    assert facts["parameters"]["model"] == rn.name
    assert (facts["parameters"]["images"], facts["parameters"]["keep"]) == (12, 4)
    assert facts["parameters"]["layer"] == "layer4"
    assert (facts["parameters"]["temperature"], facts["parameters"]["threshold"]) == (0.01, 0.6)
    assert facts["versions"]["pandas"] == pandas.__version__
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["model"], summary["images"], summary["skipped"]) == (rn.name, 12, [])


def test_a_folder_that_holds_a_run_is_refused_without_resume(rn, photos, finished_copy):
    before = contents(finished_copy)
    with pytest.raises(vlscore.VLScoreError, match="holds a run: add --resume"):
        vlscore.evaluate(rn, photos, finished_copy, **QUICK)
    assert contents(finished_copy) == before


OTHERS = {
    "keep": ({"keep": 5}, "keep 4, not 5"),
    "temperature": ({"temperature": 0.5}, "temperature 0.01, not 0.5"),
    "threshold": ({"threshold": 0.31}, "threshold 0.6, not 0.31"),
    "layer": ({"layer": "layer3"}, "layer layer4, not layer3"),
    "fit": ({"fit": "pad"}, "fit squash, not pad"),
    "thresholds": ({"thresholds": (0.6,)}, r"thresholds \[0.3, 0.6\], not \[0.6\]"),
    "seed": ({"seed": 1}, "seed 0, not 1"),
    "templates": ({"templates": "clip"}, "templates report, not clip"),
    "slow_baselines": ({"slow_baselines": 1}, "slow_baselines 0, not 1"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_with_another_option_is_refused_and_the_difference_named(rn, photos, finished_copy, name):
    options, told = OTHERS[name]
    before = contents(finished_copy)
    with pytest.raises(vlscore.VLScoreError, match=f"holds a run with {told}"):
        vlscore.evaluate(rn, photos, finished_copy, resume=True, **QUICK | options)
    assert contents(finished_copy) == before


def test_a_run_on_fewer_images_is_refused(rn, small, finished_copy):
    with pytest.raises(vlscore.VLScoreError, match="holds a run with images 12, not 8"):
        vlscore.evaluate(rn, vlscore.read_dataset(small, limit=8), finished_copy, resume=True, **QUICK)


def test_a_run_on_other_images_is_refused(rn, finished_copy, tmp_path):
    """As many, of the same names."""
    other = vlscore.read_dataset(draw(tmp_path / "other", 12, 99, (96, 80)))
    with pytest.raises(vlscore.VLScoreError, match="holds a run with data "):
        vlscore.evaluate(rn, other, finished_copy, resume=True, **QUICK)


def test_a_run_with_other_weights_is_refused(rn, photos, finished_copy):
    """Of a model of the same name, a checkpoint that was trained on, say."""
    other = copy.deepcopy(rn.clip)
    other.visual.attnpool.c_proj.bias[0] += 1e-6
    model = vlscore.ClipModel(rn.name, other, "cpu")
    with pytest.raises(vlscore.VLScoreError, match="holds a run with weights "):
        vlscore.evaluate(model, photos, finished_copy, resume=True, **QUICK)


def test_a_finished_run_that_goes_on_measures_nothing_and_sums_up_the_same(
    rn, photos, finished_copy, monkeypatch
):
    before, counts = contents(finished_copy), []
    (finished_copy / "summary.json").unlink()
    monkeypatch.setattr(vlscore, "measure", lambda *_, **__: pytest.fail("measured"))
    records = vlscore.evaluate(rn, photos, finished_copy, resume=True, progress=counting(counts), **QUICK)
    assert contents(finished_copy) == before
    assert (len(records), counts) == (12, [(12, False)])


@pytest.mark.parametrize("missing", [0, 1])
def test_only_the_missing_part_is_measured_and_the_run_ends_the_same(rn, photos, finished_copy, missing):
    before, counts = contents(finished_copy), []
    (finished_copy / FILES[missing]).unlink()
    records = vlscore.evaluate(rn, photos, finished_copy, resume=True, progress=counting(counts), **QUICK)
    assert list(records["image"]) == [photo.name for photo in photos.photos]
    assert counts == [((4, 8)[missing], False), ((8, 4)[missing], True)]
    assert contents(finished_copy)["summary.json"] == before["summary.json"]


def test_resume_in_a_new_folder_starts_a_run(rn, photos, finished, tmp_path):
    vlscore.evaluate(rn, photos, tmp_path / "deep" / "run", resume=True, **QUICK)
    found, expected = contents(tmp_path / "deep" / "run"), contents(finished)
    assert found["summary.json"] == expected["summary.json"]
    assert found["run.json"] == expected["run.json"]


def test_a_temporary_file_of_a_killed_process_is_removed(rn, photos, finished_copy):
    (finished_copy / ".vlscore-k3jx9").write_bytes(b"half of a part")
    vlscore.evaluate(rn, photos, finished_copy, resume=True, **QUICK)
    assert sorted(os.listdir(finished_copy)) == FILES


def overwrite(content):
    """The end, where Parquet keeps what the file holds."""
    return content[:-60] + b"\xff" * 52 + content[-8:]


DAMAGES = {
    "cut short": cut,
    "its end overwritten": overwrite,
    "empty": lambda _: b"",
    "no Parquet": lambda _: b"no parquet" * 99,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_told_in_a_line(run, offline, small, finished_copy, damage):
    part = finished_copy / FILES[1]
    part.write_bytes(DAMAGES[damage](part.read_bytes()))
    code, _, err = run("evaluate", small, "--out", finished_copy, *FLAGS, "--resume")
    assert code == 2
    line = one_line(without_bar(err))
    assert f"{part} cannot be read" in line and "remove it" in line


def test_a_flipped_bit_in_a_part_s_data_is_told_or_harmless(finished_copy):
    part = finished_copy / FILES[0]
    content, whole = part.read_bytes(), pandas.read_parquet(part)
    data = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # where Parquet's footer starts
    told = 0
    for position in np.linspace(4, data - 1, 40).astype(int):
        flipped = bytearray(content)
        flipped[position] ^= 16
        part.write_bytes(flipped)
        try:
            same_records(vlscore.read_shard(part), whole)
        except vlscore.VLScoreError:
            told += 1
    assert told > 10


def test_a_part_of_something_else_is_told_in_a_line(run, offline, small, finished_copy):
    part = finished_copy / FILES[1]
    pandas.DataFrame({"one": [1]}).to_parquet(part)
    code, _, err = run("evaluate", small, "--out", finished_copy, *FLAGS, "--resume")
    assert (code, str(part) in one_line(without_bar(err))) == (2, True)


@pytest.mark.parametrize(
    "order", [[0, 1, 2], [0, 1, 2, 3, 0], [1, 0, 2, 3]], ids=["one less", "more", "order"]
)
def test_a_part_with_other_photos_is_told(rn, photos, finished_copy, order):
    part = finished_copy / FILES[1]
    pandas.read_parquet(part).iloc[order].to_parquet(part, index=False)
    with pytest.raises(vlscore.VLScoreError, match=r"part-00001\.parquet has other photos: remove it"):
        vlscore.evaluate(rn, photos, finished_copy, resume=True, **QUICK)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"parameters": 1}', b"\xff"])
def test_a_run_json_that_is_none_is_told_in_a_line(run, offline, small, finished_copy, content):
    (finished_copy / "run.json").write_bytes(content)
    code, _, err = run("evaluate", small, "--out", finished_copy, *FLAGS, "--resume")
    assert (code, "run.json" in one_line(without_bar(err))) == (2, True)


def test_parts_without_parameters_are_told(rn, photos, finished_copy):
    (finished_copy / "run.json").unlink()
    with pytest.raises(vlscore.VLScoreError, match="has parts but no run"):
        vlscore.evaluate(rn, photos, finished_copy, resume=True, **QUICK)
    assert "run.json" not in os.listdir(finished_copy)


def test_a_thousand_photos_and_more_are_at_most_a_thousand_parts(rn, photos):
    every = vlscore.Dataset("official", photos.photos * 1000, photos.classes, [])
    protocol = vlscore.Protocol(slow_baselines=20)
    shards = vlscore.Run(rn, every, protocol).shards
    assert len(shards) == 1000
    assert [photo for part in shards for photo, _ in part] == every.photos
    assert [is_slow for shard in shards for _, is_slow in shard] == [True] * 20 + [False] * 11_980


# ── Stopped by force, and full disks ────────────────────────────────────────────────────────────────


def test_a_run_that_is_killed_goes_on_and_ends_as_if_nothing_had_been(
    run, monkeypatch, scenes_rn, undisturbed, drawn, tmp_path
):
    out = tmp_path / "run"
    arguments = ["evaluate", drawn, "--out", out, "--model", "scenes-rn", "--keep", 16, "--resume"]
    stopped = []
    for count in (1, 2):
        process = start_program(arguments, tmp_path / "told")
        try:
            while len(list(out.glob("part-*"))) < count:
                assert process.is_alive(), (tmp_path / "told").read_text()
                time.sleep(0.01)
        finally:
            process.kill()
            process.join()
            stopped.append(process.exitcode == -signal.SIGKILL)
    assert any(stopped)
    monkeypatch.setattr(vlscore, "load_model", lambda *_: scenes_rn)
    assert run(*arguments)[0] == 0
    expected, records = undisturbed
    assert (out / "summary.json").read_bytes() == (expected / "summary.json").read_bytes()
    assert sorted(os.listdir(out)) == sorted(os.listdir(expected))
    images = pandas.concat([pandas.read_parquet(path) for path in sorted(out.glob("part-*"))])["image"]
    assert list(images) == list(records["image"])
    same_records(vlscore.read_run(out)[1], vlscore.read_run(expected)[1])


# What is there when the disk is full -> what there is after that.
FULL = {"run.json": [], "part-00001.parquet": [FILES[0], "run.json"], "summary.json": FILES[:3]}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_told_in_a_line_and_leaves_no_half_of_a_file(
    run, offline, monkeypatch, small, finished, tmp_path, name
):
    out, synced = tmp_path / "run", os.fsync
    order = ["run.json", FILES[0], FILES[1], "summary.json"]
    written = []

    def full(handle):
        if order[len(written)] == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(handle)
        synced(handle)

    monkeypatch.setattr(os, "fsync", full)
    arguments = ["evaluate", small, "--out", out, *FLAGS, "--resume"]
    code, _, err = run(*arguments)
    assert code == 2
    assert "No space left on device" in one_line(without_bar(err))
    assert sorted(os.listdir(out)) == FULL[name]
    monkeypatch.setattr(os, "fsync", synced)
    assert run(*arguments)[0] == 0
    assert (out / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


def test_a_run_of_version_0_1_0_is_read_and_goes_on(rn, photos, finished_copy):
    """Its slow baselines were called peers, and no batch size was kept."""
    file = finished_copy / "run.json"
    facts = json.loads(file.read_text())
    facts["parameters"]["peers"] = facts["parameters"].pop("slow_baselines")
    del facts["parameters"]["batch_size"]
    file.write_text(json.dumps(facts))
    parameters, records = vlscore.read_run(finished_copy)
    assert parameters["slow_baselines"] == 0
    assert len(records) == len(photos.photos)
    (finished_copy / FILES[1]).unlink()
    vlscore.evaluate(rn, photos, finished_copy, resume=True, **QUICK)
    assert len(vlscore.read_run(finished_copy)[1]) == len(photos.photos)
