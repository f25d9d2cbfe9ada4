"""A drawing of VL-Score worked by hand: three maps of 2×2 cells, and every number on the way to the box."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from diagrams import (
    CAR,
    arrow,
    empty_image,
    found_box,
    grid_of_cells,
    label,
    line,
    masked_scene,
    min_max,
    regions,
    scene,
)


@dataclass(frozen=True)
class WorkedExample:
    """The numbers that are given; all others follow from them.

    Attributes:
        maps: A (K, 2, 2).
        scores, base: the cosines s (K,) and s_b, as if an encoder had given them.
        temperature, threshold: τ and α.
        pixels: the side of a cell in the image.
    """

    maps: tuple = (((1, 0), (4, 2)), ((0, 2), (1, 4)), ((1, 5), (0, 0)))
    scores: tuple = (0.30, 0.26, 0.21)
    base: float = 0.22
    temperature: float = 0.05
    threshold: float = 0.5
    pixels: int = 50

    @property
    def masks(self) -> np.ndarray:
        """M (K, 2, 2): each map min-max normalised."""
        return np.array([min_max(np.array(each)) for each in self.maps])

    @property
    def kept(self) -> np.ndarray:
        """(K,) of bool: which scores are above the empty image's."""
        return np.array(self.scores) > self.base

    @cached_property
    def weights(self) -> np.ndarray:
        """w (K,): the softmax of s / τ over the kept maps, 0 for the others."""
        powers = np.exp(np.array(self.scores) / self.temperature) * self.kept
        return powers / powers.sum()

    @property
    def saliency(self) -> np.ndarray:
        """S (2, 2)."""
        return np.maximum(np.tensordot(self.weights, np.array(self.maps), 1), 0)

    @property
    def heat(self) -> np.ndarray:
        """S min-max normalised."""
        return min_max(self.saliency)

    @property
    def above(self) -> np.ndarray:
        """(2, 2) of bool: the cells whose heat is above α."""
        return self.heat > self.threshold

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) in pixels, around the cells above α, which are connected here."""
        rows, columns = np.flatnonzero(self.above.any(1)), np.flatnonzero(self.above.any(0))
        edges = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return tuple(int(each) * self.pixels for each in edges)

    @property
    def iou(self) -> float:
        """The IoU of the box with the car's."""
        (a0, b0, a1, b1), (c0, d0, c1, d1) = self.box, CAR
        shared = max(min(a1, c1) - max(a0, c0), 0) * max(min(b1, d1) - max(b0, d0), 0)
        return shared / ((a1 - a0) * (b1 - b0) + (c1 - c0) * (d1 - d0) - shared)


EXAMPLE = WorkedExample()
SIDE, PITCH, TOP = 92, 106, 98
AT = {"image": 26, "maps": 192, "masks": 318, "masked": 444, "score": 586, "weight": 786}
STRIP = TOP + 4 * PITCH + 4
HEIGHT = STRIP + 232
NEAREST = """To keep the arithmetic short, a cell fills its 50×50 pixels with
one value here. VL-Score interpolates between cells."""


def worked_example() -> tuple[float, list[str]]:
    """The three maps in rows, and below them their sum, the threshold and the box."""
    parts = [
        *regions(564, STRIP, HEIGHT),
        label(26, 40, "Once per image", "head", "image-ink", "start"),
        label(AT["score"], 40, "Prompt: “an image of a car.”", "head", "text-ink", "start"),
        *inputs(),
        *column_heads(),
        *(part for n in range(len(EXAMPLE.maps)) for part in row(n)),
        *empty_row(),
        *sum_and_heat(),
        *threshold_and_box(),
    ]
    return HEIGHT, parts


def inputs() -> list[str]:
    """The image in its four cells."""
    x, y, side = AT["image"], TOP, 100
    return [
        scene(x, y, side),
        line((x, y + side / 2), (x + side, y + side / 2), tone="edge", dashes="4 4"),
        line((x + side / 2, y), (x + side / 2, y + side), tone="edge", dashes="4 4"),
        label(x + side / 2, y - 14, "image *X*"),
        label(x + side / 2, y + side + 24, "100×100 px:\n2×2 cells of\n50×50 px", "note"),
    ]


def column_heads() -> list[str]:
    y, half = TOP - 14, SIDE / 2
    return [
        label(AT["maps"] + half, y, "maps *A*_{k}"),
        label(AT["masks"] + half, y, "masks *M*_{k}"),
        label(AT["masked"] + half, y, "*X* ⊙ *M*_{k}"),
        label(AT["score"], y, "scores *s*_{k}, given", anchor="start"),
        label(AT["weight"], y, "softmax(*s* / τ)", anchor="start"),
    ]


def row(n: int) -> list[str]:
    """A map, its mask, the masked image, its score and its weight."""
    example, y, k = EXAMPLE, TOP + n * PITCH, n + 1
    middle = y + SIDE / 2
    sign, word, tone = (">", "kept", "ink") if example.kept[n] else ("≤", "dropped", "muted")
    score, cap, tau = f"{example.scores[n]:.2f}", f"{example.base:.2f}", example.temperature
    parts = [
        label(AT["maps"] - 14, middle + 7, f"*A*_{{{k}}}", "math", anchor="end"),
        grid_of_cells(AT["maps"], y, SIDE, np.array(example.maps[n]), form="d"),
        arrow((AT["maps"] + SIDE, middle), (AT["masks"], middle)),
        grid_of_cells(AT["masks"], y, SIDE, example.masks[n], "gray", form=".2f"),
        arrow((AT["masks"] + SIDE, middle), (AT["masked"], middle)),
        masked_scene(AT["masked"], y, SIDE, example.masks[n]),
        arrow((AT["masked"] + SIDE, middle), (AT["score"] - 8, middle)),
        label(AT["score"], middle - 6, f"*s*_{{{k}}} = {score}", "math", tone, "start"),
        label(AT["score"], middle + 22, f"{score} {sign} {cap}: {word}", "body", tone, "start"),
    ]
    if example.kept[n]:
        weight = f"*w*_{{{k}}} = {example.weights[n]:.2f}"
        share = f"{score} / {tau} = {example.scores[n] / tau:.1f}"
        parts += [
            arrow((AT["score"] + 150, middle), (AT["weight"] - 8, middle)),
            label(AT["weight"], middle - 6, share, "body", tone, "start"),
            label(AT["weight"], middle + 22, weight, "math", tone, "start"),
        ]
    return parts


def empty_row() -> list[str]:
    y, x = TOP + 3 * PITCH, AT["masked"]
    middle = y + SIDE / 2
    return [
        label(x - 14, middle - 5, "empty image", anchor="end"),
        label(x - 14, middle + 20, "*X*_{b}", "math", anchor="end"),
        empty_image(x, y, SIDE),
        arrow((x + SIDE, middle), (AT["score"] - 8, middle)),
        label(AT["score"], middle + 7, f"*s*_{{b}} = {EXAMPLE.base:.2f}, the floor", "math", "ink", "start"),
    ]


def sum_and_heat() -> list[str]:
    """w_1 A_1 + w_2 A_2 = S, and S from 0 to 1."""
    example, y, small = EXAMPLE, STRIP + 60, 66
    middle, x = y + SIDE / 2, 26
    parts = [label(x, y - 26, "weighted sum *S* = relu(*w*_{1} *A*_{1} + *w*_{2} *A*_{2})", anchor="start")]
    for n, words in zip(np.flatnonzero(example.kept), ("", "+ ")):
        words += f"{example.weights[n]:.2f} ×"
        wide = 98 if n else 74
        parts += [
            label(x, middle + 7, words, "math", anchor="start"),
            grid_of_cells(x + wide, middle - small / 2, small, np.array(example.maps[n]), form="d"),
        ]
        x += wide + small + 12
    return [
        *parts,
        label(x + 8, middle + 7, "=", "math"),
        grid_of_cells(380, y, SIDE, example.saliency, form=".2f"),
        arrow((380 + SIDE, middle), (502, middle)),
        label(502 + SIDE / 2, y - 26, "min-max"),
        grid_of_cells(502, y, SIDE, example.heat, form=".2f"),
        label(
            26,
            y + SIDE + 32,
            "To keep the arithmetic short, a cell fills its 50×50 pixels with",
            "note",
            anchor="start",
        ),
        label(
            26, y + SIDE + 52, "one value here. VL-Score interpolates between cells.", "note", anchor="start"
        ),
    ]


def threshold_and_box() -> list[str]:
    example, y = EXAMPLE, STRIP + 60
    middle, edges = y + SIDE / 2, ", ".join(map(str, example.box))
    return [
        arrow((502 + SIDE, middle), (640, middle)),
        label(640 + SIDE / 2, y - 26, f"> α = {example.threshold}"),
        masked_scene(640, y, SIDE, example.above.astype(float)),
        arrow((640 + SIDE, middle), (786, middle)),
        label(786 + SIDE / 2, y - 26, "box"),
        scene(786, y, SIDE),
        found_box(786, y, SIDE, *example.box),
        label(786 + SIDE / 2, y + SIDE + 22, f"({edges})", "note"),
        label(786 + SIDE / 2, y + SIDE + 42, f"IoU with the car: {example.iou:.2f}", "note"),
    ]
