"""The command that evaluates several models and compares them."""

import json

import compare_models
import pytest
from PIL import Image

import vlscore

PHOTOS = 3


@pytest.fixture(scope="module")
def out(drawn, tmp_path_factory):
    """The folder of a finished comparison."""
    folder = tmp_path_factory.mktemp("models")
    assert compare(drawn, folder, "scenes-rn,scenes-vit") == 0
    return folder


def compare(drawn, folder, models):
    options = ["--keep", "8", "--limit", str(PHOTOS)]
    return compare_models.main([str(drawn), "--models", models, "--out", str(folder), *options])


def test_each_model_has_a_row_and_a_run(out, drawn):
    rows = json.loads((out / "models.json").read_text())
    assert [row["model"] for row in rows] == ["scenes-rn", "scenes-vit"]
    for row in rows:
        parameters, records = vlscore.read_run(out / row["model"])
        assert (row["images"], len(records), parameters["keep"]) == (PHOTOS, PHOTOS, 8)
        summary = json.loads((out / row["model"] / "summary.json").read_text())
        assert row["gt_known"] == summary["results"]["gt_known"]
        assert row["v2"] == pytest.approx(summary["results"]["max_box_acc_v2"]["value"], abs=1e-6)
        assert row["seconds"] > 0
    found = vlscore.compare(*(vlscore.read_run(out / row["model"]) for row in rows))
    assert rows[1]["above_first"] == found["GT-known"]


def test_table_and_picture_are_written(out):
    table = (out / "models.html").read_text()
    assert "<table" in table and "scenes-vit" in table
    with Image.open(out / "models.png") as picture:
        assert picture.width > 600


def test_a_second_command_measures_nothing_and_writes_the_same(out, drawn, monkeypatch, capsys):
    before = {name: (out / name).read_bytes() for name in ("models.json", "models.html")}

    def refuse(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(vlscore, "measure_shard", refuse)
    assert compare(drawn, out, "scenes-rn,scenes-vit") == 0
    assert before == {name: (out / name).read_bytes() for name in before}
    assert "scenes-vit" in capsys.readouterr().out


def test_a_model_that_is_not_here_is_named_and_left_out(out, drawn, capsys):
    assert compare(drawn, out, "no-such-model, scenes-rn") == 1
    captured = capsys.readouterr()
    assert "no-such-model is left out: unknown model" in captured.err
    assert "scenes-rn" in captured.out


@pytest.mark.parametrize("models", ["no-such-model", ","])
def test_without_any_model_there_is_one_line(drawn, tmp_path, capsys, models):
    assert compare(drawn, tmp_path / "none", models) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("compare_models.py: no model could be measured")
    )


def test_no_data_is_told_in_a_line(tmp_path, capsys):
    assert compare_models.main([str(tmp_path / "nothing"), "--models", "scenes-rn"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "model, folder",
    [
        ("RN50", "RN50"),
        ("open_clip:ViT-B-16/openai", "open_clip_ViT-B-16_openai"),
        ("/a/b c.pt", "a_b_c.pt"),
        ("hf:" + "x" * 300, "x" * 100),
    ],
)
def test_a_model_s_folder_is_a_plain_name(model, folder):
    assert compare_models.folder_name(model) == folder
