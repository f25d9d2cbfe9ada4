"""The table of the refinement's parts: its figures by hand, its variants against the module."""

import json
from pathlib import Path

import ablate
import numpy as np
import pytest
import torch

import vlscore


@pytest.fixture(autouse=True)
def threads():
    """A process of `ablate` takes one core; the tests give it back."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def test_a_row_stands_at_its_best_threshold_and_is_compared_with_plain():
    random = np.random.default_rng(0)
    count = len(ablate.THRESHOLDS)
    plain, better = random.random((40, count)), random.random((40, count)) + 0.2
    boxes = random.random((40, len(vlscore.SHARES)))
    records = [{"constant box": a, "plain": b, "better": c} for a, b, c in zip(boxes, plain, better)]
    constant, first, second = ablate.table(records)
    assert [row["variant"] for row in (constant, first, second)] == ["constant box", "plain", "better"]
    hits = {}
    for row, iou in ((constant, boxes), (first, plain), (second, better)):
        shares = [sum(column > 0.5) / 40 for column in iou.T]
        assert row["gt_known"]["value"] == pytest.approx(max(shares), abs=1e-6)
        hits[row["variant"]] = iou[:, int(np.argmax(shares))] > 0.5
        v2 = [max(sum(column >= delta) / 40 for column in iou.T) for delta in (0.3, 0.5, 0.7)]
        assert row["v2"] == pytest.approx(sum(v2) / 3)
    assert "gain" not in constant
    assert first["gain"]["value"] == 0
    gain = (hits["better"].astype(int) - hits["plain"]).mean()
    assert second["gain"]["value"] == pytest.approx(gain, abs=1e-6)


@pytest.mark.parametrize("name", ["scenes-rn", "scenes-vit"])
def test_the_last_variant_is_the_refined_method(drawn, name):
    dataset = vlscore.read_dataset(drawn)
    photo = dataset.photos[0]
    found = ablate.measure(name, dataset.classes, photo)
    model = vlscore.load_model(name, "cpu")
    encoding = vlscore.encode(model, photo.path, keep=128, precision="float32", refined=True)
    text = vlscore.class_embedding(model, dataset.classes[photo.label])
    heat = vlscore.saliency(encoding, text, model.temperature)
    boxes = vlscore.sweep_boxes(heat, encoding, ablate.THRESHOLDS)
    wanted = [vlscore.box_iou(each, photo.boxes) for each in boxes]
    assert next(reversed(found)) == "split into instances"
    assert found["split into instances"] == pytest.approx(wanted, abs=0.02)


def test_the_stored_table_is_of_the_variants_in_the_code():
    stored = json.loads(ablate.OUT.read_text())
    source = Path(ablate.__file__).read_text()
    for part in stored.values():
        for row in part["rows"]:
            assert f'"{row["variant"]}"' in source


def test_photos_need_a_folder(capsys):
    assert ablate.main(["photos"]) == 2
    assert capsys.readouterr().err == "ablate.py: no ROOT: give the folder of photos with boxes\n"


def test_the_table_prints_a_line_a_variant_that_fits_the_page():
    share = {"value": 0.5, "low": 0.425, "high": 0.57512}
    gain = {"value": -0.35, "low": -0.425, "high": -0.28}
    rows = [
        {"variant": "constant box", "gt_known": share, "v2": 0.1},
        {"variant": "x" * 28, "gt_known": share, "v2": 0.6, "gain": gain},
    ]
    header, constant, line = vlscore.ablation_table({"rows": rows}).splitlines()
    assert line == "x" * 28 + " 50.0 (42.5…57.5) 60.0 -35.0 (-42.5…-28.0)"
    assert constant == f"{'constant box':28} 50.0 (42.5…57.5)"
    assert max(map(len, (header, constant, line))) <= 70
