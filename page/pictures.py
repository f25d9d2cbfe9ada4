"""Pictures and files of the answers."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw

import vlscore
from page.photos import Photo


def shrink(found: vlscore.Localization, size: tuple[int, int], shown: tuple[int, int]):
    """Convert the boxes of an answer to pixels of the small copy."""
    return replace(found, boxes=shrink_boxes(found.boxes, size, shown))


def shrink_boxes(boxes, size: tuple[int, int], shown: tuple[int, int]):
    """Convert boxes to pixels of the small copy."""
    x, y = shown[0] / size[0], shown[1] / size[1]
    return [(round(x0 * x), round(y0 * y), round(x1 * x), round(y1 * y)) for x0, y0, x1, y1 in boxes]


def with_boxes(photo: Photo, found: vlscore.Localization) -> Image.Image:
    """The small copy with the boxes on it."""
    return draw_boxes(photo, found.boxes)


def draw_boxes(photo: Photo, boxes) -> Image.Image:
    """Draw boxes, given in pixels of the photo, on its small copy."""
    picture = photo.shown.copy()
    pen, width = ImageDraw.Draw(picture), max(picture.size) // 200 + 1
    for x0, y0, x1, y1 in shrink_boxes(boxes, photo.size, picture.size):
        pen.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=vlscore.BOX_COLOUR, width=width)
    return picture


def with_heat(shown: Image.Image, saliency: torch.Tensor, input_size: int) -> Image.Image:
    """A photo under its heat map, in the colours of `vlscore.draw_localizations`."""
    heat = vlscore.heat_map(saliency, input_size).numpy()
    colours = Image.fromarray(colormaps[vlscore.COLOUR_MAP](heat, bytes=True)).convert("RGB")
    return Image.blend(shown, colours.resize(shown.size), 0.65)


def picture_of(photo: Photo, encoding: vlscore.Encoding, found: list[vlscore.Localization]) -> bytes:
    """All rows by `vlscore.draw_localizations`, as PNG."""
    shown = photo.shown.size
    small = replace(encoding, fit=vlscore.fit_region(shown, "squash"))
    title = f"{photo.name}: {encoding.model}, {encoding.layer}, {len(encoding.maps)} maps"
    rows = [shrink(each, photo.size, shown) for each in found]
    content = BytesIO()
    vlscore.draw_localizations(photo.shown, rows, small, title).savefig(content, format="png", dpi=100)
    return content.getvalue()


def saliency_file(found: list[vlscore.Localization], encoding: vlscore.Encoding) -> bytes:
    """The saliency maps (N, h, w) of N prompts as .npy; NaN where a prompt was not found."""
    shapes = [each.saliency.shape for each in found if each.saliency is not None]
    missing = torch.full(shapes[0] if shapes else encoding.maps.shape[1:], torch.nan)
    maps = [missing if each.saliency is None else each.saliency for each in found]
    content = BytesIO()
    np.save(content, torch.stack(maps).numpy(), allow_pickle=False)
    return content.getvalue()
