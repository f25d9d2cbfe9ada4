"""Boxes: around the components of a thresholded heat map; points and masses in boxes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from vlscore_lib.encoding import Encoding
from vlscore_lib.images import Fit
from vlscore_lib.masks import heat_map, make_masks


class Zones(NamedTuple):
    """The n pieces of a heat map that is cut at T values and along the basins of its peaks.

    Attributes:
        level: (n,), how many of the values each piece lies above, from 0 to T.
        basin: (n,), the basin of each piece; 0 if there are no basins.
        has_peak: (n,) of bool, whether a peak lies in it.
        area: (n,), in pixels.
        first: (n,), its first pixel in reading order.
        bounds: (4, n), its columns and rows: x0, y0, x1, y1, half-open.
        borders: (m, 2), pairs of pieces that touch.
    """

    level: np.ndarray
    basin: np.ndarray
    has_peak: np.ndarray
    area: np.ndarray
    first: np.ndarray
    bounds: np.ndarray
    borders: np.ndarray


def cut_zones(level: np.ndarray, peaks: np.ndarray, basins: np.ndarray) -> Zones:
    """Cut the part above the lowest value into 4-connected pieces of one level and one basin.

    Args:
        level, peaks, basins: (S, S) of integers, 0 or more.
    """
    from skimage.measure import label

    pieces = (level * (basins.max() + 1) + basins) * (level > 0)
    zones, count = label(pieces, background=0, connectivity=1, return_num=True)
    pixels, turned = np.flatnonzero(zones), np.flatnonzero(zones.T)
    zone, zone_turned = zones.ravel()[pixels] - 1, zones.T.ravel()[turned] - 1
    top, bottom, left, right = np.zeros((4, count), int)
    # Of several values for one position, NumPy keeps the last.
    top[zone[::-1]], bottom[zone] = pixels[::-1], pixels
    left[zone_turned[::-1]], right[zone_turned] = turned[::-1], turned
    S = len(level)
    return Zones(
        level=level.ravel()[top],
        basin=basins.ravel()[top],
        has_peak=np.bincount(zone[peaks.ravel()[pixels] > 0], minlength=count) > 0,
        area=np.bincount(zone, minlength=count),
        first=top,
        bounds=np.stack([left // S, top // S, right // S + 1, bottom // S + 1]),
        borders=find_borders(zones, count),
    )


def find_borders(zones: np.ndarray, count: int) -> np.ndarray:
    """Find the pairs of zones that touch, numbered from 0: (m, 2).

    Args:
        zones: (S, S), numbers from 1 to ``count``, 0 for none.
    """
    codes = []
    for these, those in ((zones[1:], zones[:-1]), (zones[:, 1:], zones[:, :-1])):
        differ = (these != those) & (these > 0) & (those > 0)
        codes.append((these[differ] - 1) * count + those[differ] - 1)
    return np.stack(np.divmod(np.unique(np.concatenate(codes)), count), axis=1)


def connect(pairs: np.ndarray, count: int) -> np.ndarray:
    """Number the connected components of ``count`` nodes, from their connected pairs (2, m): (count,)."""
    if not pairs.size:
        return np.arange(count)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs[0]), bool), tuple(pairs)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def connect_zones(zones: Zones, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find which zones make up each component above each of ``count`` values.

    Returns:
        (k,) each: the value's number, the zone and the component, numbered over all values.
    """
    n, values = len(zones.level), np.arange(count)[:, None]
    # A graph with a copy of each zone for every value that it lies above.
    at, border = np.nonzero(values < zones.level[zones.borders].min(1))
    component = connect(at * n + zones.borders[border].T, count * n)
    at, zone = np.nonzero(values < zones.level)
    return at, zone, component[at * n + zone]


def split_components(zones: Zones, at, zone, component):
    """Split components with several peaks by basin, and drop those without a peak, unless none has one.

    Args:
        at, zone, component: (k,), see `connect_zones`, of zones in numbered basins.

    Returns:
        (k,) each: the basin if the component is split, else 0; and whether it is kept, of bool.
    """
    basin = zones.basin[zone]
    held, count = np.zeros(component.max() + 1, int), zones.basin.max() + 1
    pairs = np.unique((component * count + basin)[zones.has_peak[zone]])  # a peak lies in its own basin
    np.add.at(held, pairs // count, 1)
    has_some = np.zeros(at.max() + 1, bool)
    np.logical_or.at(has_some, at, held[component] > 0)
    return np.where(held[component] > 1, basin, 0), (held[component] > 0) | ~has_some[at]


def boxes_above(
    heat: np.ndarray,
    cuts,
    fit: Fit,
    min_area: float,
    instances: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[list[tuple[int, int, int, int]]]:
    """Cut boxes, in the original image, around the 4-connected components above each of T values.

    The part above a value consists of whole zones, see `Zones`, so the pixels are read only once.

    Args:
        heat: (S, S).
        cuts: T values.
        min_area: components smaller than this share of the image are dropped.
        instances: peaks and basins, see `split_instances`; None leaves components whole.

    Returns:
        For each value, (x0, y0, x1, y1) in whole pixels of the original image, half-open, the largest
        component first.
    """
    S, cuts = len(heat), np.asarray(cuts, heat.dtype)
    (W, H), (rx0, ry0, rx1, ry1) = fit
    sx, sy = (rx1 - rx0) / S, (ry1 - ry0) / S  # pixels of the original to one of the input
    order, found = np.argsort(cuts), [[] for _ in cuts]
    level = np.searchsorted(cuts[order], heat)
    # A padded input shows more than the image: a pixel counts if its centre is inside.
    x, y = rx0 + (np.arange(S) + 0.5) * sx, ry0 + (np.arange(S) + 0.5) * sy
    level *= ((y > 0) & (y < H))[:, None] & (x > 0) & (x < W)
    if not level.any():
        return found
    zones = cut_zones(level, *(instances or (np.zeros_like(level),) * 2))
    at, zone, component = connect_zones(zones, len(cuts))
    basin, is_kept = np.zeros_like(zone), np.ones(len(zone), bool)
    if instances is not None:
        basin, is_kept = split_components(zones, at, zone, component)
    first = np.full(component.max() + 1, S * S)
    np.minimum.at(first, component, zones.first[zone])
    parts = component * (basin.max() + 1) + basin
    _, heads, part = np.unique(parts[is_kept], return_index=True, return_inverse=True)
    at, zone, component, basin = (each[is_kept] for each in (at, zone, component, basin))
    low, high = np.full((2, len(heads)), S), np.zeros((2, len(heads)), int)
    np.minimum.at(low.T, part, zones.bounds[:2, zone].T)
    np.maximum.at(high.T, part, zones.bounds[2:, zone].T)
    area = np.bincount(part, zones.area[zone])
    for n in np.lexsort((first[component[heads]], basin[heads], -area)):
        if area[n] * sx * sy >= min_area * W * H:
            (x0, y0), (x1, y1) = low[:, n].tolist(), high[:, n].tolist()
            x0, x1 = round_to_pixels(rx0 + x0 * sx, rx0 + x1 * sx, W)
            y0, y1 = round_to_pixels(ry0 + y0 * sy, ry0 + y1 * sy, H)
            found[order[at[heads[n]]]].append((x0, y0, x1, y1))
    return found


def round_to_pixels(low, high, size):
    """Round an interval to whole pixels of [0, size), at least one of them."""
    low = min(max(round(low), 0), size - 1)
    return low, max(min(round(high), size), low + 1)


def find_peak(saliency: torch.Tensor, encoding: Encoding) -> tuple[float, float]:
    """Find where a saliency map is highest: (x, y) in pixels of the original image.

    Cells are placed as in `make_masks`: the corner cells lie in the corners of the input.

    Args:
        saliency: (h, w), a float tensor; not None.  Of equal peaks, the first in reading order counts.
        encoding: the encoded image.
    """
    h, w = saliency.shape
    row, column = divmod(int(saliency.argmax()), w)
    x0, y0, x1, y1 = encoding.fit.region
    return x0 + (x1 - x0) * column / max(w - 1, 1), y0 + (y1 - y0) * row / max(h - 1, 1)


def warmth(saliency: torch.Tensor, box, encoding: Encoding) -> float:
    """Find the highest value of a saliency map (h, w) in a box, as a share of its highest value anywhere."""
    S, (rx0, ry0, rx1, ry1) = encoding.input_size, encoding.fit.region
    heat = heat_map(saliency, S)
    columns = [int((x - rx0) / (rx1 - rx0) * S) for x in box[::2]]
    rows = [int((y - ry0) / (ry1 - ry0) * S) for y in box[1::2]]
    (x0, x1), (y0, y1) = ((max(low, 0), max(high, low + 1)) for low, high in (columns, rows))
    inside = heat[y0:y1, x0:x1]
    return inside.max().item() if inside.numel() else 0.0


def find_box_at(point, boxes) -> int | None:
    """Find the first box that contains a point: its index, or None.

    Args:
        point: (x, y) in pixels.
        boxes: (x0, y0, x1, y1) each, in pixels.  Unlike elsewhere, the right and lower edges count as inside,
            since `find_peak` puts a peak in the last column at x = W.
    """
    x, y = point
    return next((n for n, (x0, y0, x1, y1) in enumerate(boxes) if x0 <= x <= x1 and y0 <= y <= y1), None)


def mass_in_boxes(encoding: Encoding, boxes) -> torch.Tensor:
    """Compute the share of each mask's mass that lies in each box: (C, n) in [0, 1].

    The mass of a mask is the sum of its pixels, see `make_masks`.  The mask of a constant map has none, so
    all its shares are 0.

    Args:
        encoding: the encoded image.
        boxes: n of (x0, y0, x1, y1) in pixels of the original image.
    """
    S, (x0, y0, x1, y1) = encoding.input_size, encoding.fit.region
    M = make_masks(encoding.maps, S)  # (K, S, S)
    x, y = x0 + (torch.arange(S) + 0.5) * (x1 - x0) / S, y0 + (torch.arange(S) + 0.5) * (y1 - y0) / S
    inside = [((y > b[1]) & (y < b[3]))[:, None] & (x > b[0]) & (x < b[2]) for b in boxes]
    shares = torch.einsum("kij,nij->kn", M, torch.stack(inside).float())
    return shares / M.sum((1, 2)).clamp_min(1e-7)[:, None]
