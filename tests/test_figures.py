"""Pictures of the chapters: photos with heat maps, boxes and titles."""

from io import BytesIO

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
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


def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def test_heat_lies_over_a_grey_photo_and_is_as_opaque_as_it_is_hot(chelsea):
    photo = Image.open(chelsea).convert("RGB")
    heat = torch.zeros(3, 3)
    heat[:, 2] = 1  # cold on the left, hot on the right
    figure = Figure(figsize=(4.51, 3), dpi=100)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set_axis_off()
    vlscore.show_heat(panel, photo, heat)
    found, grey = drawn(figure), np.asarray(photo.convert("L")).astype(int)
    assert np.ptp(found[:, :200], axis=2).max() <= 2  # no colour where it is cold
    assert abs(found[:, :200, 0] - grey[:, :200]).mean() < 3
    hottest = matplotlib.colormaps[vlscore.COLOUR_MAP](1.0)[:3]
    expected = 0.85 * 255 * np.array(hottest) + 0.15 * grey[:, -1:, None]
    assert abs(found[:, -1:] - expected).mean() < 4


def test_without_a_map_the_photo_keeps_its_colours(chelsea):
    photo = Image.open(chelsea).convert("RGB")
    figure = Figure(figsize=(4.51, 3), dpi=100)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set_axis_off()
    vlscore.show_heat(panel, photo, None)
    assert abs(drawn(figure) - np.asarray(photo)).mean() < 3


def test_a_legend_names_what_the_colours_mean():
    figure = Figure()
    vlscore.show_legend(figure, figure.subplots(1, 2), "score")
    bar = figure.axes[-1]
    assert bar.get_xlabel() == "score"
    assert [each.get_text() for each in bar.get_xticklabels()] == ["low", "high"]
