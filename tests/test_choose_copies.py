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


@pytest.fixture(autouse=True)
def threads():
    """A process of the studies takes one core; the tests give it back."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def test_the_project_s_copies_are_the_module_s(drawn):
    path = vlscore.read_dataset(drawn).photos[0].path
    encoding, copies = study.read_all("scenes-rn", path)
    for size, scale in zip(study.PROJECT.sizes, encoding.scales[1:], strict=True):
        torch.testing.assert_close(copies[size][0].maps, scale.maps, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(copies[size][0].cells, scale.cells, atol=1e-3, rtol=1e-3)
    features = copies[study.PROJECT.fine][1]
    torch.testing.assert_close(features, encoding.features, atol=1e-3, rtol=1e-3)


def test_the_project_s_boxes_are_those_of_the_module(drawn):
    photo = vlscore.read_dataset(drawn).photos[0]
    names = vlscore.read_dataset(drawn).classes[photo.label]
    ask = study_sets.Ask(photo.path, tuple(names), tuple(photo.boxes), photo.size, 0)
    found = study.measure("scenes-rn", ask)
    assert found.keys() == {variant.name for variant in study.VARIANTS}
    model = vlscore.load_model("scenes-rn", "cpu")
    encoding = vlscore.encode(model, photo.path, keep=study.KEEP, refined=True)
    text = vlscore.class_embedding(model, names)
    heat = vlscore.saliency(encoding, text, encoding.temperature)
    boxes = vlscore.sweep_boxes(heat, encoding, choose_refinement.THRESHOLDS)
    expected = [vlscore.box_iou(each, photo.boxes) for each in boxes]
    assert found[study.PROJECT.name]["iou"] == pytest.approx(expected, abs=0.05)


def test_a_variant_s_gain_is_paired_with_the_project_s():
    """The project hits 10 of 20, the others those and 5 more, all at one threshold."""
    found = {}
    for variant in study.VARIANTS:
        iou = np.full((20, A), 0.1)
        iou[: 10 if variant == study.PROJECT else 15, 3] = 0.9
        ones = np.ones(20)
        rows = choose_refinement.Rows(iou, (iou > 0.5).astype(int), iou, ones > 0, ones, ones / 2, ones)
        found[variant.name] = dict.fromkeys(choose_refinement.SETS, rows)
    rows = {row["variant"]: row for row in study.compare(found)}
    assert rows[study.PROJECT.name]["gain"]["pairs"]["value"] == 0
    assert rows["3 S"]["gain"]["pairs"]["value"] == 0.25
    assert rows["3 S"]["sets"]["kangaroo"]["gt_known"] == 0.75
    assert rows["3 S"]["passes"] == 9  # 672 / 224 = 3
    assert rows["2.5 and 4 S, features at 2.5 S"]["passes"] == pytest.approx((576 / 224) ** 2 + 16, abs=1e-6)


def test_the_stored_rows_are_of_all_variants():
    rows = json.loads(study.OUT.read_text())
    assert [row["variant"] for row in rows] == [variant.name for variant in study.VARIANTS]
    assert rows[0]["gain"] == {name: rows[0]["gain"]["pairs"] for name in rows[0]["sets"]}
