"""Drawings of the method: Score-CAM, VL-Score, and VL-Score worked by hand on three maps of 2×2 cells."""

from __future__ import annotations

import numpy as np
from diagrams import (
    CAR,
    arrow,
    bar,
    blob,
    box,
    cells,
    dots,
    empty_image,
    encoder,
    found_box,
    grid_of_cells,
    in_steps,
    label,
    line,
    masked_scene,
    min_max,
    outline,
    regions,
    scene,
    tint,
    upsample,
    vector,
)

SIDE = 60  # of a map, a mask and a masked image
FINE = 14  # cells on a side of a drawn mask
BASE, TAU = 0.22, 0.02  # of the drawn scores, which are schematic

# ── Maps of the scene ────────────────────────────────────────────────────────────────────────────


MAPS = (
    1.1 * blob(0.33, 0.70, 0.26, 0.27) + 0.12 * blob(0.1, 0.1, 0.3, 0.2),
    blob(0.70, 0.72, 0.23, 0.25) + 0.10 * blob(0.2, 0.5, 0.2, 0.2),
    blob(0.78, 0.24, 0.16, 0.16),
    blob(0.50, 1.00, 0.90, 0.20) + 0.15 * blob(0.15, 0.55, 0.3, 0.3),
)
MASKS = tuple(in_steps(min_max(upsample(each, FINE))) for each in MAPS)


def schematic_scores() -> np.ndarray:
    """A stand-in for a cosine with "a car": the share of each mask that lies on the car."""
    x0, y0, x1, y1 = (round(each * FINE / 100) for each in CAR)
    return np.array([0.15 + 0.18 * mask[y0:y1, x0:x1].sum() / mask.sum() for mask in MASKS])


def softmax(scores: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp((scores - scores.max()) / temperature)
    return powers / powers.sum()


# ── What Score-CAM and VL-Score share: image, maps, masks, masked images ─────────────────────────

COLUMNS = {"image": 26, "first": 112, "maps": 212, "masks": 294, "masked": 376, "second": 454}
NAMES = ("1", "2", "3", "C")


def rows(top: float) -> list[float]:
    """The upper edges of the rows of maps 1, 2, 3 and C, and of the empty image."""
    return [top, top + 68, top + 136, top + 230, top + 304]


def masking(top: float, first: str, second: str) -> list[str]:
    """From the image to the masked images and through the second encoder, a row for each map."""
    places, at = rows(top), COLUMNS
    low, high = places[0], places[3] + SIDE
    middle = (low + high) / 2
    parts = [
        scene(at["image"], middle - 34, 68),
        label(at["image"] + 34, middle + 56, "image *X*"),
        arrow((at["image"] + 68, middle), (at["first"], middle)),
        encoder(at["first"], middle - 66, 74, 132, first, "image", kind="note"),
        line((at["first"] + 74, middle), (198, middle)),
        line((198, low + SIDE / 2), (198, high - SIDE / 2)),
        encoder(at["second"], low - 6, 74, places[4] + SIDE - low + 12, second, "image", kind="note"),
    ]
    for y, map_, mask in zip(places, MAPS, MASKS):
        parts += [
            arrow((198, y + SIDE / 2), (at["maps"], y + SIDE / 2)),
            grid_of_cells(at["maps"], y, SIDE, map_),
            arrow((at["maps"] + SIDE, y + SIDE / 2), (at["masks"], y + SIDE / 2)),
            grid_of_cells(at["masks"], y, SIDE, mask, "gray"),
            arrow((at["masks"] + SIDE, y + SIDE / 2), (at["masked"], y + SIDE / 2)),
            masked_scene(at["masked"], y, SIDE, mask),
            arrow((at["masked"] + SIDE, y + SIDE / 2), (at["second"], y + SIDE / 2)),
        ]
    gap = (places[2] + SIDE + places[3]) / 2
    for x in ("maps", "masks", "masked"):
        parts += [dots(at[x] + SIDE / 2, gap)]
    base = places[4]
    return [
        *parts,
        empty_image(at["masked"], base, SIDE),
        arrow((at["masked"] + SIDE, base + SIDE / 2), (at["second"], base + SIDE / 2)),
    ]


def headings(y, names: dict[str, tuple[str, str]]) -> list[str]:
    """A word and a symbol above each column, by the place of its middle."""
    return [
        text
        for x, (word, symbol) in names.items()
        for text in (label(x, y, word, "note"), label(x, y + 24, symbol, "math"))
    ]


HEADS = {242: ("maps", "*A*_{k}"), 324: ("masks", "*M*_{k}"), 406: ("masked", "*X* ⊙ *M*_{k}")}


def base_label(y, word: str) -> list[str]:
    return [
        label(364, y - 5, f"{word} image", "note", anchor="end"),
        label(364, y + 20, "*X*_{b}", "math", anchor="end"),
    ]


def weighted_sum(top: float, places: list[float], bus: float, which: str) -> list[str]:
    """The box of the sum; maps come to it from above, and weights from a line at x = `bus`."""
    low, high = places[0] + SIDE / 2, places[3] + SIDE / 2
    return [
        line((bus, low), (bus, top + 16), (318, top + 16)),
        arrow((318, top + 16), (318, top + 52)),
        arrow((242, high + SIDE / 2), (242, top + 52)),
        label(232, top + 38, "all *A*_{k}", "math", anchor="end"),
        label(328, top + 42, "all *w*_{k}", "math", anchor="start"),
        box(132, top + 52, 228, 46, "*S* = relu(Σ *w*_{k} *A*_{k})", kind="math"),
        label(246, top + 122, f"weighted sum of {which}", "note"),
    ]


# ── Score-CAM ────────────────────────────────────────────────────────────────────────────────────


def score_cam() -> tuple[float, list[str]]:
    """For one class of a classifier: logits of the masked images, less the base's, are the weights."""
    top = 116
    places, gains = rows(top), schematic_scores() - 0.14
    weights = softmax(gains, 0.07)
    saliency = np.maximum(np.tensordot(weights, MAPS, 1), 0)
    base, strip = places[4] + SIDE / 2, places[4] + 80
    y, middle = strip + 30, strip + 75
    parts = [
        label(26, 36, "Score-CAM for one class *c*, here “car”", "head", "image-ink", "start"),
        *headings(70, HEADS),
        *masking(top, "classifier", "the\nsame\nclassifier"),
        label(652, 44, "logit of class *c*, less the base’s", "note"),
        box(560, 58, 184, 40, "*f*_{c}(*X* ⊙ *M*_{k}) − *f*_{c}(*X*_{b})"),
        arrow((744, 78), (790, 78)),
        label(853, 44, "weights *w*_{k}", "note"),
        box(790, 58, 126, 40, "softmax"),
        *bars(places, 562, 780 * gains, 790, 190 * weights, 932, "image", arrow_from=528),
        *base_label(base, "base"),
        arrow((528, base), (560, base)),
        label(568, base + 6, "*f*_{c}(*X*_{b}), taken from every logit", anchor="start"),
        *weighted_sum(strip, places, 932, "all maps"),
        arrow((360, middle), (478, middle)),
        grid_of_cells(478, y, 90, saliency),
        label(523, y + 112, "saliency map *S*", "note"),
        arrow((568, middle), (772, middle)),
        label(670, middle - 11, "laid over the image", "note"),
        overlay(772, y, 90, saliency),
        label(817, y + 112, "evidence for class *c*", "note"),
    ]
    return strip + 164, parts


def bars(places, x, lengths, x_weights, weights, bus, tone, arrow_from) -> list[str]:
    """A bar for the score of each map and one for its weight; no weight, no second bar."""
    parts = []
    for y, length, weight in zip(places, lengths, weights):
        middle = y + SIDE / 2
        parts += [
            arrow((arrow_from, middle), (x, middle)),
            bar(x + 2, middle - 9, length, 18, tone if weight else "dropped"),
        ]
        if weight:
            parts += [
                arrow((x + 8 + length, middle), (x_weights, middle)),
                bar(x_weights + 2, middle - 9, weight, 18, tone),
                line((x_weights + 8 + weight, middle), (bus, middle)),
            ]
    return parts


def overlay(x, y, side, saliency: np.ndarray) -> str:
    """The scene under its saliency map."""
    heat = in_steps(min_max(upsample(saliency, FINE)))
    tints = [[tint(value) for value in row] for row in heat]
    cover = cells(x, y, side, tints, 0.2 + 0.4 * heat)
    return "\n".join([scene(x, y, side), cover, outline(x, y, side)])


# ── VL-Score ─────────────────────────────────────────────────────────────────────────────────────

ENCODED = """*C* + 2 passes of the image encoder, and no prompt:
one for the maps, *C* for the masked images, one for the empty image."""


def vl_score() -> tuple[float, list[str]]:
    """The whole pipeline: what is done once for an image, and what for each prompt."""
    top, strip, height = 178, 568, 738
    places, values = rows(top), schematic_scores()
    kept = values > BASE
    weights = np.zeros(len(values))
    weights[kept] = softmax(values[kept], TAU)
    saliency = np.maximum(np.tensordot(weights, MAPS, 1), 0)
    middle = (places[0] + places[3] + SIDE) / 2
    parts = [
        *regions(604, strip, height),
        label(26, 40, "Once per image", "head", "image-ink", "start"),
        label(26, 66, ENCODED, "note", anchor="start"),
        *headings(130, HEADS | {563: ("vectors", "*e*_{k}")}),
        *masking(top, "image\nencoder\n*f*", "the\nsame\nimage\nencoder\n*f*"),
        label(149, middle + 88, "maps of\nlayer *l*", "note"),
        *base_label(places[4] + SIDE / 2, "empty"),
        *prompt_side(),
        *votes(places, values, weights),
        *weighted_sum(strip, places, 932, "all maps (dropped: weight 0)"),
        *from_saliency_to_boxes(strip, saliency),
    ]
    return height, parts


def prompt_side() -> list[str]:
    """The prompt, its embedding, and the operations above the columns of scores and weights."""
    return [
        label(626, 40, "For each prompt", "head", "text-ink", "start"),
        box(620, 52, 168, 30, "“an image of a car.”", kind="note"),
        arrow((704, 82), (704, 94)),
        encoder(628, 94, 152, 34, "text encoder *g*", "text", down=True, kind="note"),
        arrow((704, 128), (704, 142)),
        box(626, 142, 156, 34, "*s*_{k} = *e*_{k} · *g*(*t*)"),
        arrow((782, 159), (808, 159)),
        box(808, 142, 130, 34, "softmax(*s* / τ)"),
    ]


def votes(places, values, weights) -> list[str]:
    """Each map's score against the empty image's, and its weight."""
    zero, scale, base = 634, 330, places[4] + SIDE / 2
    cap = zero + 2 + scale * BASE
    schematic = np.random.default_rng(1).uniform(0.1, 1, (5, 4))
    parts = bars(places, zero, scale * values, 808, 150 * weights, 932, "text", arrow_from=582)
    for y, shades in zip(places, schematic):
        parts += [arrow((528, y + SIDE / 2), (546, y + SIDE / 2)), vector(546, y + SIDE / 2, shades)]
    for y, weight in zip(places, weights):
        if not weight:
            parts.append(label(810, y + SIDE / 2 + 6, "dropped", "body", "muted", "start"))
    return [
        *parts,
        arrow((582, base), (zero, base)),
        bar(zero + 2, base - 9, scale * BASE, 18, "dropped"),
        line((cap, places[0] + 4), (cap, base + 14), dashes="6 5"),
        label(zero + 2, base + 30, "*s*_{b}, the floor", anchor="start"),
        label(752, base - 4, "If all are dropped,\nthe object is absent.", "note", "muted", "start"),
    ]


def from_saliency_to_boxes(strip: float, saliency: np.ndarray) -> list[str]:
    """The saliency map, what of it is above the threshold, and the box around that."""
    heat = min_max(upsample(saliency, 2 * FINE))
    above = heat > 0.5
    down, across = np.flatnonzero(above.any(1)), np.flatnonzero(above.any(0))
    step, y, middle = 100 / len(heat), strip + 33, strip + 75
    edges = across[0] * step, down[0] * step, (across[-1] + 1) * step, (down[-1] + 1) * step
    return [
        arrow((360, middle), (434, middle)),
        grid_of_cells(434, y, 84, saliency),
        label(476, y + 106, "saliency map *S*", "note"),
        arrow((518, middle), (624, middle)),
        label(569, middle - 11, "upsample,", "note"),
        label(569, middle + 22, "min-max", "note"),
        masked_scene(624, y, 84, above.astype(float)),
        label(666, y + 106, "above α", "note"),
        arrow((708, middle), (814, middle)),
        label(759, middle - 11, "connected", "note"),
        label(759, middle + 22, "parts", "note"),
        scene(814, y, 84),
        found_box(814, y, 84, *edges),
        label(856, y + 106, "boxes", "note"),
    ]
