"""A drawing of the field: four ways from an image to a heat map."""

from __future__ import annotations

from diagrams import (
    arrow,
    blob,
    box,
    cells,
    encoder,
    grid_of_cells,
    label,
    masked_scene,
    outline,
    region,
    scene,
    vector,
)
from diagrams_method import MAPS, MASKS

SIDE = 64  # of an image and of a map
HIGH = 158  # of a row
CELLS = 7  # on a side of a map
HEAT = 0.9 * blob(0.5, 0.73, 0.33, 0.2)
TEXT = (0.9, 0.3, 0.7, 0.2, 0.8)  # an embedding


def row(number: int, title: str, methods: str, cost: str) -> tuple[float, list[str]]:
    """The height at which a row's arrows run, and what all rows have: image, encoder, heat map and words."""
    top = 8 + number * (HIGH + 6)
    y = top + 96
    return y, [
        region(8, top, 952, top + HIGH),
        label(24, top + 28, title, "head", anchor="start"),
        label(936, top + 28, methods, "note", "muted", "end"),
        scene(24, y - SIDE / 2, SIDE),
        arrow((24 + SIDE, y), (118, y)),
        encoder(118, y - 44, 82, 88, "image\nencoder", "image", kind="note"),
        grid_of_cells(742, y - SIDE / 2, SIDE, HEAT),
        label(824, y + 5 - 9.4 * cost.count("\n"), cost, "note", anchor="start"),
    ]


def text_side(x: float, y: float) -> list[str]:
    """A prompt and its embedding, which ends at x + 226."""
    return [
        label(x, y + 5, "“a car”", "note", "text-ink", "start"),
        arrow((x + 56, y), (x + 76, y), tone="text-edge"),
        encoder(x + 76, y - 24, 76, 48, "text\nencoder", "text", kind="note"),
        arrow((x + 152, y), (x + 176, y), tone="text-edge"),
        vector(x + 176, y, TEXT, "text", step=10),
    ]


def follow_a_gradient() -> list[str]:
    y, parts = row(0, "Weight the maps", "Grad-CAM", "1 pass forward,\n1 back")
    return [
        *parts,
        arrow((200, y), (240, y)),
        grid_of_cells(240, y - SIDE / 2, SIDE, MAPS[0]),
        grid_of_cells(252, y - SIDE / 2 + 8, SIDE, MAPS[1]),
        arrow((316, y - 12), (480, y - 12)),
        box(480, y - 26, 150, 52, "score of the class\nor the text", kind="note"),
        arrow((480, y + 14), (316, y + 14), tone="text-edge"),
        label(398, y - 20, "all layers that follow", "note"),
        label(398, y + 33, "gradient", "note", "text-ink"),
        arrow((284, y + SIDE / 2 + 8), (284, y + 50), (700, y + 50), (700, y), (742, y)),
        label(692, y + 44, "sum of the maps, weighted by it", "note", anchor="end"),
    ]


def mask_the_image() -> list[str]:
    y, parts = row(1, "Mask the image", "Score-CAM, gScoreCAM, VL-Score", "1 pass for\neach map")
    return [
        *parts,
        arrow((200, y), (240, y)),
        grid_of_cells(240, y - SIDE / 2, SIDE, MAPS[0]),
        grid_of_cells(252, y - SIDE / 2 + 8, SIDE, MAPS[1]),
        arrow((316, y), (372, y)),
        label(342, y - 10, "mask", "note"),
        masked_scene(372, y - SIDE / 2 - 6, 48, MASKS[0]),
        masked_scene(382, y - SIDE / 2 + 22, 48, MASKS[1]),
        arrow((430, y), (462, y)),
        encoder(462, y - 44, 82, 88, "image\nencoder", "image", kind="note"),
        arrow((544, y), (570, y)),
        box(570, y - 26, 110, 52, "a score\nfor each map", kind="note"),
        arrow((680, y), (742, y)),
        label(711, y - 10, "sum", "note"),
    ]


def compare_each_cell() -> list[str]:
    y, parts = row(2, "Compare each cell with the text", "MaskCLIP, CLIP Surgery, GEM", "1 pass")
    return [
        *parts,
        arrow((200, y), (240, y)),
        plain_cells(240, y),
        label(240, y + 52, "one embedding for each cell", "note", anchor="start"),
        arrow((304, y), (640, y)),
        *text_side(368, y - 40),
        arrow((594, y - 40), (677, y - 40), (677, y - 18), tone="text-edge"),
        box(640, y - 18, 74, 36, "cosine", kind="note"),
        arrow((714, y), (742, y)),
    ]


def cut_into_parts() -> list[str]:
    y, parts = row(3, "Cut the image into parts", "TokenCut, LOST", "1 pass,\nno text")
    return [
        *parts,
        arrow((200, y), (240, y)),
        plain_cells(240, y),
        label(240, y + 52, "one feature for each cell", "note", anchor="start"),
        arrow((304, y), (400, y)),
        box(400, y - 26, 220, 52, "separate the cells that\nare unlike the others", kind="note"),
        arrow((620, y), (742, y)),
    ]


def plain_cells(x: float, y: float) -> str:
    """A grid whose cells hold vectors, not numbers: a board of two pale colours."""
    colours = [["#56b4e9", "#9bd3f3"][(i + j) % 2] for i in range(CELLS) for j in range(CELLS)]
    rows = [colours[n : n + CELLS] for n in range(0, len(colours), CELLS)]
    return cells(x, y - SIDE / 2, SIDE, rows) + "\n" + outline(x, y - SIDE / 2, SIDE)


def field() -> tuple[float, list[str]]:
    """Four families of methods, a row each."""
    parts = [*follow_a_gradient(), *mask_the_image(), *compare_each_cell(), *cut_into_parts()]
    return 8 + 4 * HIGH + 3 * 6 + 8, parts
