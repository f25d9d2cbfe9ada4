"""Which copies a refined CNN reads: the script's are the module's, and its rows are counted by hand."""

import json

import choose_copies as study
import choose_refinement
import numpy as np
import pytest
import study_sets
import torch

import vlscore

A = len(choose_refinement.THRESHOLDS)


@pytest.fixture
def encoding(drawn, monkeypatch):
    """A scene by its encoding, which the studies otherwise store below the checkout."""
    model, ask = vlscore.load_model("scenes-rn", "cpu"), study_sets.read_asks(drawn)[0]
    found = vlscore.encode(model, ask.path, keep=study_sets.KEEP, precision="float32", refined=True)
    monkeypatch.setattr(study_sets, "read", lambda *_: found)
    study.read_all.cache_clear()
    yield found
    study.read_all.cache_clear()


def test_a_copy_is_read_as_the_module_reads_its_own(drawn, encoding):
    path = study_sets.read_asks(drawn)[0].path
    _, copies = study.read_all("scenes-rn", path)
    copy = study_sets.read_copy(vlscore.load_model("scenes-rn", "cpu"), path, 3)
    torch.testing.assert_close(copy.scale.maps, copies[3].scale.maps, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(copy.scale.cells, copies[3].scale.cells, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(copy.features, copies[3].features, atol=1e-3, rtol=1e-3)


def test_the_project_s_boxes_are_those_of_the_module(drawn, encoding):
    ask = study_sets.read_asks(drawn)[0]
    found = study.measure("scenes-rn", ask)
    assert found.keys() == study.VARIANTS.keys()
    text = vlscore.class_embedding(vlscore.load_model("scenes-rn", "cpu"), ask.names)
    heat = vlscore.saliency(encoding, text, encoding.temperature)
    boxes = vlscore.sweep_boxes(heat, encoding, choose_refinement.THRESHOLDS)
    expected = [vlscore.box_iou(each, ask.boxes) for each in boxes]
    assert found[study.PROJECT]["iou"] == pytest.approx(expected, abs=0.05)


def test_a_variant_s_gain_is_paired_with_the_project_s():
    """The project hits 10 of 20, the others those and 5 more, all at one threshold."""
    found = {}
    for variant in study.VARIANTS:
        iou = np.full((20, A), 0.1)
        iou[: 10 if variant == study.PROJECT else 15, 3] = 0.9
        ones = np.ones(20)
        rows = choose_refinement.Rows(iou, (iou > 0.5).astype(int), iou, ones > 0, ones, ones / 2, ones)
        found[variant] = dict.fromkeys(choose_refinement.SETS, rows)
    rows = {row["variant"]: row for row in study.compare(found)}
    assert rows[study.PROJECT]["gain"]["pairs"]["value"] == 0
    assert rows["2.5 S"]["gain"]["pairs"]["value"] == 0.25
    assert rows["2.5 S"]["sets"]["kangaroo"]["gt_known"] == 0.75
    assert rows["3 S"]["passes"] == 9  # 672 / 224 = 3
    assert rows["2.5 and 4 S, features at 2.5 S"]["passes"] == pytest.approx((576 / 224) ** 2 + 16, abs=1e-6)


def test_the_stored_rows_are_of_all_variants():
    rows = json.loads(study.OUT.read_text())
    assert [row["variant"] for row in rows] == [*study.VARIANTS]
    assert rows[0]["gain"] == {name: rows[0]["gain"]["pairs"] for name in rows[0]["sets"]}
