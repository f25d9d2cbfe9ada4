"""Scores, weights and saliency."""

import dataclasses
import math

import pytest
import torch
from encoding_helpers import CAT

import vlscore

RIGHT, DOWN = torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1.0])


def test_scores_are_cosines(synthetic):
    s, base = vlscore.scores(synthetic, RIGHT)
    torch.testing.assert_close(s, torch.tensor([0.8, 0.6, 0.0, -0.6]))
    torch.testing.assert_close(base, torch.tensor(0.28))


@pytest.mark.parametrize("length", [1e-3, 7.0, 1e4])
def test_scores_do_not_depend_on_the_text_s_length(synthetic, length):
    expected = vlscore.scores(synthetic, RIGHT)
    torch.testing.assert_close(vlscore.scores(synthetic, RIGHT * length), expected)


def test_scores_are_float32_for_a_half_precision_text(synthetic):
    s, base = vlscore.scores(synthetic, RIGHT.half())
    assert s.dtype == base.dtype == torch.float32


@pytest.mark.parametrize("temperature", [1e-4, 0.01, 0.05, 1.0, 1e4])
def test_weights_sum_to_1_and_are_0_on_capped_maps(synthetic, temperature):
    w = vlscore.weights(synthetic, RIGHT, temperature)
    assert w.sum().item() == pytest.approx(1, abs=1e-6)
    assert w[2:].tolist() == [0, 0]
    assert w[0] > w[1]


def test_weights_are_a_softmax_over_the_kept_maps(synthetic):
    ratio = math.exp((0.8 - 0.6) / 0.1)
    expected = torch.tensor([ratio / (1 + ratio), 1 / (1 + ratio), 0, 0])
    torch.testing.assert_close(vlscore.weights(synthetic, RIGHT, 0.1), expected, atol=1e-6, rtol=0)


def test_a_map_that_equals_the_base_is_capped(synthetic):
    equal = dataclasses.replace(synthetic, base_embedding=synthetic.mask_embeddings[1])
    assert vlscore.weights(equal, RIGHT).tolist() == [1, 0, 0, 0]


def test_saliency_is_the_rectified_sum_of_raw_maps(synthetic):
    """Half of each: (1 + 3)/2, and -1.5, which is cut off."""
    found = vlscore.saliency(synthetic, RIGHT, 1e9)
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0]]))


def test_a_high_temperature_is_the_mean_of_the_kept_maps(full):
    model, encoding = full
    text = model.encode_text([CAT])[0]
    s, base = vlscore.scores(encoding, text)
    expected = encoding.maps[s > base].mean(0).relu()
    torch.testing.assert_close(vlscore.saliency(encoding, text, 1e6), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45, 5e-324])
def test_a_low_temperature_is_the_best_map(full, temperature):
    """To the smallest number there is: every one above 0 is allowed."""
    model, encoding = full
    text = model.encode_text([CAT])[0]
    best = vlscore.scores(encoding, text)[0].argmax()
    found = vlscore.saliency(encoding, text, temperature)
    torch.testing.assert_close(found, encoding.maps[best].relu(), atol=1e-5, rtol=1e-5)


def test_an_absent_object_has_no_weights_and_no_saliency(synthetic):
    """For the text (0, -1) the empty image scores -0.96; raise it to -0.5, above all four."""
    base = torch.tensor([3**0.5 / 2, 0.5])
    absent = dataclasses.replace(synthetic, base_embedding=base)
    assert (vlscore.scores(absent, DOWN)[0] < vlscore.scores(absent, DOWN)[1]).all()
    assert vlscore.weights(absent, DOWN) is None
    assert vlscore.saliency(absent, DOWN) is None
    assert vlscore.find_boxes(None, absent) == []


@pytest.mark.parametrize("temperature", [0, 0.0, -1, -0.05, math.nan, math.inf, -math.inf])
def test_temperature_out_of_range(synthetic, temperature):
    with pytest.raises(vlscore.VLScoreError, match="temperature"):
        vlscore.saliency(synthetic, RIGHT, temperature)


def test_temperature_is_checked_for_an_absent_object_too(synthetic):
    with pytest.raises(vlscore.VLScoreError, match="temperature"):
        vlscore.weights(dataclasses.replace(synthetic, base_embedding=RIGHT), RIGHT, 0)
