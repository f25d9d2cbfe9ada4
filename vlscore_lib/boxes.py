"""Boxes: around the components of a thresholded heat map; points and masses in boxes."""

from __future__ import annotations

import numpy as np
import torch

from vlscore_lib.encoding import Encoding
from vlscore_lib.images import Fit
from vlscore_lib.masks import heat_map, make_masks


def split_components(components: np.ndarray, count: int, peaks: np.ndarray, basins: np.ndarray):
    """Drop components without a peak, unless all are, and split those of several along the basins.

    Args:
        components: (S, S), labels from 1 to ``count``, 0 for none.
        peaks, basins: (S, S), see `split_instances`.

    Returns:
        Labels and their number.
    """
    each = basins * (count + 1) + components  # a number for each pair of a basin and a component
    pairs = np.arange((basins.max() + 1) * (count + 1))
    of_component = pairs % (count + 1)
    has_peak = np.zeros(len(pairs), bool)
    has_peak[each[peaks > 0]] = True  # a peak lies in its own basin
    held = np.bincount(of_component[has_peak & (of_component > 0)], minlength=count + 1)
    if not held.any():
        return components, count
    is_there = np.bincount(each.ravel(), minlength=len(pairs)) > 0
    part = np.where(held[of_component] > 1, pairs, of_component)
    kept, numbers = np.unique(part[is_there & (held[of_component] > 0)], return_inverse=True)
    labels = np.zeros(len(pairs), np.int32)
    labels[is_there & (held[of_component] > 0)] = numbers + 1
    return labels[each], len(kept)


def boxes_of_components(
    above: np.ndarray, fit: Fit, min_area: float, instances: tuple[np.ndarray, np.ndarray] | None
) -> list[tuple[int, int, int, int]]:
    """Boxes around the 4-connected components of a mask (S, S) of bool, placed back into the original.

    Args:
        min_area: components smaller than this share of the image are dropped.
        instances: peaks and basins, see `split_instances`; None leaves components whole.

    Returns:
        (x0, y0, x1, y1), whole pixels of the original image, half-open, the largest component first.
    """
    from scipy import ndimage

    S = len(above)
    (W, H), (rx0, ry0, rx1, ry1) = fit
    sx, sy = (rx1 - rx0) / S, (ry1 - ry0) / S  # pixels of the original to one of the input
    # A padded input shows more than the image: a pixel counts if its centre is inside.
    x, y = rx0 + (np.arange(S) + 0.5) * sx, ry0 + (np.arange(S) + 0.5) * sy
    above = above & ((y > 0) & (y < H))[:, None] & (x > 0) & (x < W)
    components, count = ndimage.label(above)
    if instances is not None:
        components, count = split_components(components, count, *instances)
    areas = np.bincount(components.ravel(), minlength=count + 1)[1:]
    found = []
    for (rows, columns), area in zip(ndimage.find_objects(components), areas):
        x0, x1 = rx0 + columns.start * sx, rx0 + columns.stop * sx
        y0, y1 = ry0 + rows.start * sy, ry0 + rows.stop * sy
        if area * sx * sy >= min_area * W * H:
            (x0, x1), (y0, y1) = round_to_pixels(x0, x1, W), round_to_pixels(y0, y1, H)
            found.append((area, (x0, y0, x1, y1)))
    return [box for _, box in sorted(found, key=lambda each: -each[0])]


def round_to_pixels(low, high, size):
    """Round an interval to whole pixels of [0, size), at least one of them."""
    low = min(max(round(low), 0), size - 1)
    return low, max(min(round(high), size), low + 1)


def find_peak(saliency: torch.Tensor, encoding: Encoding) -> tuple[float, float]:
    """Where a saliency map (h, w) is highest: (x, y) in pixels of the original image.

    A cell stands where `make_masks` puts it, the corner cells in the corners of the input.
    """
    h, w = saliency.shape
    row, column = divmod(int(saliency.argmax()), w)
    x0, y0, x1, y1 = encoding.fit.region
    return x0 + (x1 - x0) * column / max(w - 1, 1), y0 + (y1 - y0) * row / max(h - 1, 1)


def warmth(saliency: torch.Tensor, box, encoding: Encoding) -> float:
    """The highest value of a saliency map (h, w) in a box, as a share of its highest of all."""
    S, (rx0, ry0, rx1, ry1) = encoding.input_size, encoding.fit.region
    heat = heat_map(saliency, S)
    columns = [int((x - rx0) / (rx1 - rx0) * S) for x in box[::2]]
    rows = [int((y - ry0) / (ry1 - ry0) * S) for y in box[1::2]]
    (x0, x1), (y0, y1) = ((max(low, 0), max(high, low + 1)) for low, high in (columns, rows))
    inside = heat[y0:y1, x0:x1]
    return inside.max().item() if inside.numel() else 0.0


def find_box_at(point, boxes) -> int | None:
    """The first of the boxes that holds a point (x, y), by index, or None."""
    x, y = point
    return next((n for n, (x0, y0, x1, y1) in enumerate(boxes) if x0 <= x <= x1 and y0 <= y <= y1), None)


def mass_in_boxes(encoding: Encoding, boxes) -> torch.Tensor:
    """The share of each mask's mass that lies in each box: (K, n) in [0, 1].

    Args:
        boxes: n of (x0, y0, x1, y1) in pixels of the original image.
    """
    S, (x0, y0, x1, y1) = encoding.input_size, encoding.fit.region
    M = make_masks(encoding.maps, S)  # (K, S, S)
    x, y = x0 + (torch.arange(S) + 0.5) * (x1 - x0) / S, y0 + (torch.arange(S) + 0.5) * (y1 - y0) / S
    inside = [((y > b[1]) & (y < b[3]))[:, None] & (x > b[0]) & (x < b[2]) for b in boxes]
    shares = torch.einsum("kij,nij->kn", M, torch.stack(inside).float())
    return shares / M.sum((1, 2)).clamp_min(1e-7)[:, None]
