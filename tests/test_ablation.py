"""The table of a ViT's maps: its figures by hand, its variants against the module."""

import json
from pathlib import Path

import ablate
import numpy as np
import one_pass_vit
import pytest

import vlscore


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


def test_the_last_variant_is_the_refined_method(drawn):
    dataset = vlscore.read_dataset(drawn)
    photo = dataset.photos[0]
    found = ablate.measure(dataset.classes, photo)
    model = vlscore.load_model(ablate.MODEL, "cpu")
    encoding = vlscore.encode(model, photo.path, precision="float32", refined=True)
    text = vlscore.class_embedding(model, dataset.classes[photo.label])
    heat = vlscore.saliency(encoding, text, model.temperature)
    boxes = vlscore.sweep_boxes(heat, encoding, ablate.THRESHOLDS)
    wanted = [vlscore.box_iou(each, photo.boxes) for each in boxes]
    assert found[next(reversed(found))] == pytest.approx(wanted, abs=0.02)


def test_the_stored_table_is_of_the_variants_in_the_code():
    stored = json.loads(ablate.OUT.read_text())
    source = "".join(Path(each.__file__).read_text() for each in (ablate, one_pass_vit))
    for row in stored["rows"]:
        assert f'"{row["variant"]}"' in source


def test_a_table_shows_shares_differences_and_gaps():
    share = {"value": 0.5, "low": 0.425, "high": 0.57512}
    gain = {"value": -0.35, "low": -0.425, "high": 0.28, "p": 0.02}
    rows = [
        {"variant": "constant box", "gt_known": share, "v2": 0.1},
        {"variant": "other", "gt_known": share, "v2": 0.6, "gain": gain, "passes": 8},
    ]
    columns = {"Maps": "variant", "GT-known": "gt_known", "V2": "v2", "gain": "gain", "low": "gt_known.low"}
    table = vlscore.tabulate_figures(rows, columns | {"passes": "passes"})
    assert list(table.columns) == ["Maps", "GT-known", "V2", "gain", "low", "passes"]
    assert table.iloc[0].tolist() == ["constant box", "50.0 (42.5 to 57.5)", "10.0", "", "42.5", ""]
    assert table.iloc[1].tolist()[2:] == ["60.0", "−35.0 (−42.5 to +28.0)", "42.5", "8"]
