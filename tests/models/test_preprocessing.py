"""From an image to the encoder's pixels."""

import pytest
import torch
from PIL import Image

import vlscore


def plain(rgb, size=(40, 30)):
    return Image.new("RGB", size, rgb)


def value(model, rgb):
    """A colour after normalisation, (3, 1, 1), by the numbers each encoder was trained with."""
    if model.name == "lite0-minilm":
        rows = [(v - 127) / 128 for v in rgb]
    else:
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        rows = [(v / 255 - m) / s for v, m, s in zip(rgb, mean, std)]
    return torch.tensor(rows).reshape(3, 1, 1)


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_preprocess_of_a_plain_colour(model, fit):
    found = model.preprocess(plain((200, 100, 50)), fit)
    assert found.shape == (3, model.input_size, model.input_size)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, value(model, (200, 100, 50)).expand_as(found), atol=1e-5, rtol=0)


def test_preprocess_pads_with_zeros(rn):
    """An 80×20 photo in an 80×80 square: rows 30 to 50 of 80, so 36 to 60 of 96."""
    found = rn.preprocess(plain((255, 255, 255), (80, 20)), "pad")
    white = value(rn, (255, 255, 255))
    torch.testing.assert_close(found[:, 36:60], white.expand(3, 24, 96), atol=1e-5, rtol=0)
    assert (found[:, :36] == 0).all()
    assert (found[:, 60:] == 0).all()


def test_preprocess_pads_a_tall_image_left_and_right(rn):
    found = rn.preprocess(plain((255, 255, 255), (20, 80)), "pad")
    assert (found[:, :, 36:60] > 1).all()
    assert (found[:, :, :36] == 0).all()
    assert (found[:, :, 60:] == 0).all()


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000)])
def test_preprocess_pads_a_sliver_without_losing_it(rn, size):
    found = rn.preprocess(plain((255, 255, 255), size), "pad")
    assert (found > 1).any()


def test_preprocess_crops_the_centred_square(rn):
    """Red, green and blue thirds: the crop shows the green one, up to the resampling at its edges."""
    image = plain((255, 0, 0), (120, 40))
    image.paste((0, 255, 0), (40, 0, 80, 40))
    image.paste((0, 0, 255), (80, 0, 120, 40))
    found = rn.preprocess(image, "crop")[:, :, 6:-6]
    torch.testing.assert_close(found, value(rn, (0, 255, 0)).expand_as(found), atol=1e-5, rtol=0)


def test_preprocess_squashes_the_whole_image(rn):
    """Red, green and blue thirds stay thirds."""
    image = plain((255, 0, 0), (120, 40))
    image.paste((0, 255, 0), (40, 0, 80, 40))
    image.paste((0, 0, 255), (80, 0, 120, 40))
    found = rn.preprocess(image, "squash")
    for n, rgb in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        third = found[:, :, n * 32 + 4 : n * 32 + 28]
        torch.testing.assert_close(third, value(rn, rgb).expand_as(third), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(450, 300), (300, 450), (451, 300), (333, 500), (1000, 97), (96, 96)])
def test_crop_is_clip_s_own_preprocessing(clip_model, chelsea, size):
    """Of few pixels they round differently, by one grey level."""
    with Image.open(chelsea) as photo:
        image = photo.convert("RGB").resize(size)
    expected = vlscore.import_clip().clip._transform(clip_model.input_size)(image)
    difference = (clip_model.preprocess(image, "crop") - expected).abs()
    assert difference.max() <= 1.01 / 255 / 0.26130258
    assert (difference > 1e-6).float().mean() < 0.01
