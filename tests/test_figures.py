"""Pictures of the chapters: photos with heat maps, boxes and titles."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import vlscore

CAT = "an image of a cat."


@pytest.fixture
def encoding(lite0, chelsea):
    return vlscore.encode(lite0, chelsea, keep=4)


def pixels(content):
    return np.asarray(Image.open(BytesIO(content)).convert("RGB")).astype(int)


def test_an_overlay_has_the_photos_shape_and_shows_heat_and_boxes(lite0, chelsea, encoding):
    found = vlscore.localize(lite0, encoding, CAT, threshold=0.5)
    bare = pixels(vlscore.draw_overlay(chelsea, None, encoding))
    heat = pixels(vlscore.draw_overlay(chelsea, found.saliency, encoding))
    boxes = pixels(vlscore.draw_overlay(chelsea, None, encoding, [(100, 60, 300, 240)]))
    assert bare.shape == heat.shape == boxes.shape
    height, width, _ = bare.shape
    assert width == 400
    assert height == pytest.approx(400 * 300 / 451 + 24, abs=1)  # the photo, and a line for the title
    line = height - round(400 * 300 / 451)
    small = Image.open(chelsea).convert("RGB").resize((400, height - line))
    assert abs(bare[line:] - np.asarray(small)).mean() < 8
    assert abs(heat[line:] - bare[line:]).mean() > 20
    changed = np.argwhere(abs(boxes - bare).max(2) > 60)
    scale = 400 / 451
    expected = (line + 60 * scale, 100 * scale, line + 240 * scale, 300 * scale)
    assert np.allclose((*changed.min(0), *changed.max(0)), expected, atol=5)


def test_a_smaller_copy_of_the_photo_is_drawn_in_the_same_place(chelsea, encoding):
    small = Image.open(chelsea).resize((226, 150))
    boxes = [(100, 60, 300, 240)]
    found = [pixels(vlscore.draw_overlay(image, None, encoding, boxes)) for image in (chelsea, small)]
    assert abs(found[0] - found[1]).mean() < 6


def test_an_overlay_shows_its_title_as_it_is_written(chelsea, encoding):
    plain, titled = (vlscore.draw_overlay(chelsea, None, encoding, title=text) for text in ("", "a $1 {cat}"))
    difference = abs(pixels(titled) - pixels(plain)).max(2)
    assert difference[:22].max() > 100
    assert difference[30:].max() < 40
