"""What else was tried for refined boxes: the base is the module's, the operations are their formulas."""

import json
from dataclasses import replace

import choose_refinement
import compare_ideas as ideas
import numpy as np
import pytest
import study_sets
import torch
from scipy.ndimage import uniform_filter

import vlscore


@pytest.fixture
def question(drawn):
    model, ask = vlscore.load_model("scenes-rn", "cpu"), study_sets.read_asks(drawn)[0]
    encoding = vlscore.encode(model, ask.path, keep=study_sets.KEEP, precision="float32", refined=True)
    text = vlscore.class_embedding(model, ask.names)
    return ideas.Question(model, ask, encoding, text, vlscore.weights(encoding, text, model.temperature))


def test_the_base_is_the_module_s_refinement_and_every_idea_gives_boxes(question, monkeypatch):
    monkeypatch.setattr(study_sets, "read", lambda *_: question.encoding)
    found = ideas.measure("scenes-rn", question.ask)
    assert list(found) == [*ideas.IDEAS, ideas.OTSU]
    heat = vlscore.saliency(question.encoding, question.text, question.model.temperature)
    assert found[ideas.BASE] == choose_refinement.judge(heat, question.encoding, question.ask)
    for judged in found.values():
        assert len(judged["iou"]) == len(choose_refinement.THRESHOLDS)
        assert max(judged["iou"]) > 0.5


def test_the_map_of_both_directions_turns_with_the_image(question):
    """It is the same for an image and its mirror image; the module's own map is not."""
    pixels = {size: each.flip(2) for size, each in question.pixels.items()}
    (plain,) = question.read(pixels[1])
    larger, features = question.read(pixels[3], question.model.fine_layer)
    encoding = replace(question.encoding, features=ideas.unit(ideas.pool(features)))
    twin = replace(question, encoding=encoding)
    twin.pixels = pixels
    twin.evidence = twin.gather(twin.scale(plain), twin.scale(larger))
    found, wanted = ideas.mirror_all(twin).flip(1), ideas.mirror_all(question)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    assert (twin.heat.flip(1) - question.heat).abs().max() > 0.05


def test_a_map_moves_by_whole_cells():
    maps = torch.arange(12.0).reshape(1, 3, 4)
    moved = ideas.move(maps, 1, -2)
    assert moved[0].tolist() == [[2, 3, 3, 3], [2, 3, 3, 3], [6, 7, 7, 7]]


def test_edges_are_those_of_a_guided_filter(question):
    """He et al. 2013, equations 5, 6 and 8, by another library's box filter."""
    guide = vlscore.min_max(question.pixels[1].mean(0)).double().numpy()
    heat = vlscore.upsample(question.heat, guide.shape).double().numpy()

    def mean(each):
        return uniform_filter(each, 2 * ideas.RADIUS + 1, mode="nearest")

    a = (mean(guide * heat) - mean(guide) * mean(heat)) / (
        mean(guide**2) - mean(guide) ** 2 + ideas.SMOOTHING
    )
    b = mean(heat) - a * mean(guide)
    wanted = np.maximum(mean(a) * guide + mean(b), 0)
    np.testing.assert_allclose(ideas.filter_by_edges(question).numpy(), wanted, atol=1e-4)


def blob(rows: slice, columns: slice, side: int = 42) -> torch.Tensor:
    heat = torch.zeros(side, side)
    heat[rows, columns] = 1.0
    return heat


def test_a_window_is_around_a_small_object_alone(question):
    question.heat = blob(slice(21, 28), slice(7, 14))
    y0, y1, x0, x1 = ideas.find_window(question)
    assert (y0 + y1) / 2 == pytest.approx(24.5 / 42, abs=0.01)
    assert (x0 + x1) / 2 == pytest.approx(10.5 / 42, abs=0.01)
    assert y1 - y0 == pytest.approx(ideas.WINDOW * 7 / 42, abs=0.03)
    question.heat = blob(slice(7, 35), slice(7, 35))
    assert ideas.find_window(question) is None
    assert ideas.zoom_in(question) is question.heat


def test_what_is_cut_out_and_put_back_is_in_its_place():
    heat, window = blob(slice(21, 28), slice(7, 14)), (0.4, 0.8, 0.1, 0.4)
    part = ideas.crop(heat[None], window, 28)[0]
    again = ideas.paste(part, window, heat)
    torch.testing.assert_close(again, vlscore.upsample(heat, again.shape), atol=0.35, rtol=0)
    assert (again - vlscore.upsample(heat, again.shape)).abs().mean() < 0.01


def test_otsu_s_threshold_scales_all_thresholds(question, monkeypatch):
    """Where it is the model's own, the boxes are those of the module."""
    monkeypatch.setattr(ideas, "threshold_otsu", lambda _: question.model.refined_threshold)
    heat = vlscore.upsample(question.heat, question.encoding.input_size)
    assert ideas.judge_by_otsu(question) == choose_refinement.judge(heat, question.encoding, question.ask)


def test_the_stored_rows_are_of_all_ideas():
    rows = json.loads(ideas.OUT.read_text())
    assert [row["variant"] for row in rows] == [*ideas.IDEAS, ideas.OTSU]
    for row in rows:
        assert row["passes"] == ideas.IDEAS.get(row["variant"], (None, 0))[1]
        change = row["sets"]["pairs"]["gt_known"] - rows[0]["sets"]["pairs"]["gt_known"]
        assert row["gain"]["pairs"]["value"] == pytest.approx(change, abs=2e-6)
