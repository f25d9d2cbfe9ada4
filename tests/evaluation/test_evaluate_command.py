"""The command `vlscore evaluate`."""

import json
import shutil

import distributed
import pytest
from evaluation_helpers import (
    FLAGS,
    OURS,
    contents,
    cut,
    without_bar,
)
from test_command_line import one_line

import vlscore


def test_evaluate_prints_the_layout_the_table_and_where_the_summary_is(
    run, offline, small, photos, finished, tmp_path
):
    code, out, err = run("evaluate", small, "--out", tmp_path / "run", *FLAGS)
    assert code == 0
    assert without_bar(err) == "\n"
    lines = out.splitlines()
    count = len({photo.label for photo in photos.photos})
    assert lines[0] == f"{small}: 12 photos of {count} classes, layout official (val/*.JPEG, one XML a photo)"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert vlscore.summary_table(summary) in out
    assert "report, Table 2" in out
    assert lines[-1] == f"summary: {tmp_path / 'run' / 'summary.json'}"
    assert contents(tmp_path / "run")["summary.json"] == contents(finished)["summary.json"]


def test_the_sweep_is_of_the_temperatures_and_thresholds_given(run, offline, small, tmp_path):
    sweep = ["--temperatures", "0.2,2", "--thresholds", "0.3,0.6,0.1"]
    arguments = ["--keep", 4, "--temperature", 0.5, "--threshold", 0.45, "--limit", 3]
    code, out, _ = run("evaluate", small, "--out", tmp_path / "run", *sweep, *arguments)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (code, summary["images"]) == (0, 3)
    assert (summary["temperature"], summary["threshold"]) == (0.5, 0.45)
    assert summary["thresholds"] == [0.1, 0.3, 0.45, 0.6]
    ours = [each for each in summary["methods"] if each.startswith("VL-Score")]
    assert ours == [OURS(0.2), OURS(0.5), OURS(2)]
    assert all(len(each["gt_known"]) == 4 for each in summary["methods"].values())
    assert all(each in out for each in ours)


@pytest.fixture
def damaged(small, tmp_path):
    """The small scenes with a photo cut short -> the folder, and the photo."""
    folder = shutil.copytree(small, tmp_path / "damaged")
    photo = folder / "val" / "scenes_val_00000003.JPEG"
    photo.write_bytes(cut(photo.read_bytes()))
    return folder, photo


def test_a_photo_that_cannot_be_used_is_told_before_anything_is_written(run, damaged, monkeypatch, tmp_path):
    monkeypatch.setattr(vlscore, "load_model", lambda *_: pytest.fail("loaded"))
    code, out, err = run("evaluate", damaged[0], "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert str(damaged[1]) in one_line(err)
    assert not (tmp_path / "run").exists()


def test_skip_bad_leaves_photos_out_and_lists_them(run, offline, damaged, tmp_path):
    folder, photo = damaged
    code, out, err = run("evaluate", folder, "--out", tmp_path / "run", *FLAGS, "--skip-bad")
    assert code == 0
    line = one_line(without_bar(err))
    assert line.startswith("vlscore: left out: ") and str(photo) in line
    assert out.startswith(f"{folder}: 11 photos of ")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images"] == 11
    assert [str(photo) in each for each in summary["skipped"]] == [True]
    assert "scenes_val_00000003" not in list(vlscore.read_run(tmp_path / "run")[1]["image"])


# Bad options, and what the message must name.
BAD_OPTIONS = {
    "--threshold 2": ["threshold", "2"],
    "--threshold nan": ["threshold", "nan"],
    "--thresholds 0.5,2": ["threshold", "2"],
    "--thresholds half": ["--thresholds", "half"],
    "--temperature 0": ["temperature", "0"],
    "--temperatures 1,0": ["temperature", "0"],
    "--temperatures 1,nan": ["temperature", "nan"],
    "--temperatures 1,": ["--temperatures", "1,"],
    "--layer nonsense": ["nonsense", "layer4"],
    "--maps nonsense": ["nonsense", "activation"],
    "--maps key --pca 2": ["key", "CNN"],
    "--pca 2": ["pca"],
    "--fit nonsense": ["nonsense", "squash"],
    "--precision nonsense": ["nonsense", "float32"],
    "--templates nonsense": ["nonsense", "report"],
    "--names nonsense": ["nonsense", "imagenet"],
    "--layout nonsense": ["nonsense", "official"],
    "--limit 0": ["limit", "0"],
    "--first 0": ["first", "0"],
    "--sample 0": ["sample", "0"],
    "--sample 3 --seed -1": ["seed", "-1"],
    "--seed -1": ["seed", "-1"],
    "--keep 0": ["keep", "0"],
    "--keep 1.5": ["keep", "1.5"],
    "--ids missing.txt": ["missing.txt"],
    "--workers 0": ["--workers", "0"],
    "--workers 1 --scheduler tcp://127.0.0.1:1": ["--workers", "--scheduler"],
    "--nonsense": ["--nonsense"],
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_a_bad_option_is_told_in_a_line_and_leaves_no_folder(run, offline, small, tmp_path, options):
    code, _, err = run("evaluate", small, "--out", tmp_path / "run", "--limit", 2, *options.split())
    assert code == 2
    assert all(each in one_line(without_bar(err)) for each in BAD_OPTIONS[options])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", ["--thresholds 0.5,2", "--layer nonsense", "--templates nonsense"])
def test_a_bad_option_is_told_before_a_bar_is_shown(run, offline, small, tmp_path, options):
    _, _, err = run("evaluate", small, "--out", tmp_path / "run", *options.split())
    one_line(err)


def test_a_bad_option_is_told_before_workers_are_started(run, offline, small, monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "LocalCluster", lambda *_, **__: pytest.fail("started"))
    arguments = ["--layer", "nonsense", "--workers", 2]
    code, _, err = run("evaluate", small, "--out", tmp_path / "run", *arguments)
    assert (code, "nonsense" in err) == (2, True)


@pytest.mark.parametrize("name", ["missing", "empty", "a file"])
def test_a_folder_without_a_data_set_is_told(run, offline, tmp_path, name):
    root = tmp_path / name
    if name == "empty":
        root.mkdir()
    if name == "a file":
        root.write_bytes(b"")
    code, out, err = run("evaluate", root, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert str(root) in one_line(err)
    assert not (tmp_path / "run").exists()


def test_an_unknown_model_is_told_and_leaves_no_folder(run, small, tmp_path):
    code, _, err = run("evaluate", small, "--out", tmp_path / "run", "--model", "nonsense")
    assert (code, "nonsense" in one_line(err)) == (2, True)
    assert not (tmp_path / "run").exists()


def test_an_out_that_is_a_file_is_told(run, offline, small, tmp_path):
    (tmp_path / "run").write_bytes(b"mine")
    code, _, err = run("evaluate", small, "--out", tmp_path / "run", *FLAGS)
    assert (code, str(tmp_path / "run") in one_line(without_bar(err))) == (2, True)
    assert (tmp_path / "run").read_bytes() == b"mine"


def test_an_out_that_holds_a_run_is_told_in_a_line(run, offline, small, finished_copy):
    before = contents(finished_copy)
    code, _, err = run("evaluate", small, "--out", finished_copy, *FLAGS)
    assert (code, "--resume" in one_line(without_bar(err))) == (2, True)
    assert contents(finished_copy) == before
