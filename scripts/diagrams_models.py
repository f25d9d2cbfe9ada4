"""Drawings of the models: CLIP's two encoders, its ModifiedResNet, and a block of its ViT."""

from __future__ import annotations

from functools import partial

import numpy as np
from diagrams import (
    arrow,
    bar,
    blob,
    box,
    car,
    cells,
    centred,
    encoder,
    grid_of_cells,
    ground,
    label,
    line,
    outline,
    plus,
    polygon,
    readable_on,
    rectangle,
    region,
    scaled,
    scene,
    sun,
    tint,
    vector,
)

# ── CLIP ─────────────────────────────────────────────────────────────────────────────────────────

CAPTIONS = ("a car", "a tree", "a house", "the sun")
IMAGE_ANGLES = np.radians([12, 60, 117, 158])  # where the drawn space has them
TEXT_ANGLES = np.radians([25, 73, 103, 169])
COSINES = np.cos(IMAGE_ANGLES[:, None] - TEXT_ANGLES)


def tree(x, y, side) -> str:
    (trunk,) = scaled(x, y, side, [(45, 60)])
    crown = scaled(x, y, side, [(50, 10), (78, 66), (22, 66)])
    return rectangle(*trunk, 0.1 * side, 0.28 * side, fill="#7a5a3a") + polygon(crown, fill="#2f7d4f")


def house(x, y, side) -> str:
    wall, door = scaled(x, y, side, [(25, 46), (44, 64)])
    roof = scaled(x, y, side, [(50, 16), (84, 48), (16, 48)])
    return "\n".join(
        [
            rectangle(*wall, 0.5 * side, 0.42 * side, fill="#e8dcc4"),
            rectangle(*door, 0.13 * side, 0.24 * side, fill="#7a5a3a"),
            polygon(roof, fill="#8c4a3c"),
        ]
    )


def picture(n: int, x, y, side) -> str:
    """One image of the batch."""
    objects = (car, tree, house, partial(sun, centre=(50, 42), radius=24))
    return "\n".join([ground(x, y, side), objects[n](x, y, side), outline(x, y, side)])


def clip() -> tuple[float, list[str]]:
    """Images and texts through their encoders, the matrix of cosines, and the space they share."""
    left, top, side = 262, 236, 74
    parts = [
        label(26, 40, "Two encoders and the contrastive matrix", "head", anchor="start"),
        encoder(left - 8, 118, 4 * side + 16, 50, "text encoder *g*", "text", down=True),
        encoder(106, top - 8, 74, 4 * side + 16, "image\nencoder\n*f*", "image", kind="note"),
        *contrastive_matrix(left, top, side),
        *shared_space(),
        *zero_shot(),
    ]
    for n, caption in enumerate(CAPTIONS):
        at = (n + 0.5) * side
        parts += [
            box(left + at - 34, 66, 68, 32, caption, kind="note"),
            arrow((left + at, 98), (left + at, 118)),
            arrow((left + at, 168), (left + at, 186)),
            label(left + at, 206, f"*v*_{{{n + 1}}}", "math", "text-ink"),
            arrow((left + at, 216), (left + at, top)),
            picture(n, 26, top + at - 28, 56),
            arrow((82, top + at), (106, top + at)),
            arrow((180, top + at), (200, top + at)),
            label(216, top + at + 7, f"*u*_{{{n + 1}}}", "math", "image-ink"),
            arrow((234, top + at), (left, top + at)),
        ]
    return 590, parts


def contrastive_matrix(x, y, side) -> list[str]:
    """Cosines of the drawn space as colours, the pairs that belong together on the diagonal."""
    tints = [[tint((value + 1) / 2) for value in row] for row in COSINES]
    parts = [cells(x, y, 4 * side, tints), outline(x, y, 4 * side)]
    for i, row in enumerate(tints):
        frame = {"fill": "none", "stroke": "#000000", "stroke_width": 3}
        parts.append(rectangle(x + i * side + 3, y + i * side + 3, side - 6, side - 6, **frame))
        for j, colour in enumerate(row):
            words, at = f"*u*_{{{i + 1}}}·*v*_{{{j + 1}}}", (x + (j + 0.5) * side, y + (i + 0.5) * side)
            parts.append(centred(*at, words, "math", fill=readable_on(colour)))
    words = "Training raises the diagonal above the rest."
    return [*parts, label(x + 2 * side, y + 4 * side + 32, words, "note")]


COSINE = """*u* · *v* is the cosine of their angle:
an image lies beside its text."""


def shared_space() -> list[str]:
    """Unit vectors on half a circle: an image beside its text."""
    centre, radius = np.array([772, 236]), 130

    def place(angle, r=radius):
        return tuple(centre + r * np.array([np.cos(angle), -np.sin(angle)]))

    arc = [place(angle) for angle in np.radians(np.linspace(0, 180, 61))]
    parts = [
        label(604, 40, "One space of unit vectors", "head", anchor="start"),
        line(*arc, arc[0], tone="edge"),
        label(772, 266, COSINE, "note"),
    ]
    for n, (image, text) in enumerate(zip(IMAGE_ANGLES, TEXT_ANGLES)):
        for angle, tone, name in ((image, "image", "u"), (text, "text", "v")):
            parts += [
                arrow(tuple(centre), place(angle), tone=f"{tone}-edge"),
                centred(*place(angle, radius + 20), f"*{name}*_{{{n + 1}}}", "math", f"{tone}-ink"),
            ]
    return parts


def zero_shot() -> list[str]:
    """The first row of the matrix with prompts for texts: the largest cosine is the answer."""
    parts = [
        label(604, 348, "Zero-shot classification", "head", anchor="start"),
        picture(0, 604, 404, 74),
        label(641, 502, "*u*_{1}", "math", "image-ink"),
        label(604, 544, "The text of the largest cosine is the answer.", "note", anchor="start"),
    ]
    for n, (caption, cosine) in enumerate(zip(CAPTIONS, COSINES[0])):
        y = 388 + 40 * n
        parts += [
            label(860, y + 5, f"an image of {caption}.", "note", anchor="end"),
            bar(870, y - 9, 37 * (cosine + 1), 18, "dropped" if n else "text"),
        ]
    return parts


# ── CLIP's ModifiedResNet ────────────────────────────────────────────────────────────────────────

STAGES = (  # of RN50 at 224×224 pixels: name, channels, side of the map, blocks
    ("layer1", 256, 56, 3),
    ("layer2", 512, 28, 4),
    ("layer3", 1024, 14, 6),
    ("layer4", 2048, 7, 3),
)
WHEELS = blob(0.29, 0.86, 0.1, 0.1, 14) + blob(0.71, 0.86, 0.1, 0.1, 14) + 0.3 * blob(0.5, 0.6, 0.2, 0.1, 14)
READ = {"layer3": WHEELS, "layer4": blob(0.5, 0.74, 0.34, 0.2)}  # a drawn map of each layer that is read
ONE_MAP = """The output of a layer is a stack of maps:
one channel, one map. VL-Score reads
layer4, or layer3, whose cells are smaller."""
MIXED = """The attention pool
mixes all cells into
one embedding."""


def resnet() -> tuple[float, list[str]]:
    """RN50 from the picture to the embedding, with shapes, and where maps are read."""
    middle = 166
    parts = [
        label(26, 40, "CLIP’s ModifiedResNet RN50", "head", "image-ink", "start"),
        region(140, 58, 712, 304),
        label(156, 292, "channels × rows × columns: a number has a location", "note", "image-ink", "start"),
        scene(26, middle - 45, 90),
        label(71, middle + 70, "image *X*", "note"),
        label(71, middle + 100, "3×224×224"),
        arrow((116, middle), (156, middle)),
        *stem(156, middle),
        *(part for n in range(len(STAGES)) for part in stage(n, middle)),
        arrow((698, middle), (730, middle)),
        box(730, middle - 30, 88, 60, "attention\npool", "image", kind="note"),
        label(774, 282, "no number\nhas a location", "note"),
        arrow((818, middle), (842, middle)),
        vector(842, middle, np.random.default_rng(2).uniform(0.1, 1, 10), step=9.2, height=26),
        label(888, middle + 70, "embedding", "note"),
        label(888, middle + 100, "1024"),
        label(26, 362, ONE_MAP, anchor="start"),
        label(726, 362, MIXED, anchor="start"),
    ]
    return 492, parts


def stem(x, middle) -> list[str]:
    """Three convolutions and a pooling."""
    tones = ("image", "image", "image", "node image-edge")
    drawn = [rectangle(x + 22 * n, middle - 76, 16, 152, rx=3, class_=tone) for n, tone in enumerate(tones)]
    words = label(x - 6, middle - 86, "stem: 3 convs, pool", "note", anchor="start")
    return [*drawn, words, label(x + 41, middle + 100, "64×56×56")]


def stage(n: int, middle) -> list[str]:
    """A stage of the network, as high as its maps are large; below it a map, where one is read."""
    name, channels, side, blocks = STAGES[n]
    x, wide, high = 272 + 112 * n, 90, (152, 122, 92, 62)[n]
    centre, cell = x + wide / 2, 224 // side
    parts = [
        arrow((238 if n == 0 else x - 22, middle), (x, middle)),
        box(x, middle - high / 2, wide, high, f"{name}\n{blocks} blocks", "image", kind="note"),
        label(centre, middle + 100, f"{channels}×{side}×{side}"),
    ]
    if name in READ:
        parts += [
            arrow((centre, middle + 108), (centre, 330)),
            grid_of_cells(centre - 50, 330, 100, READ[name]),
            label(centre, 452, f"{side}×{side} cells\nof {cell}×{cell} px", "note"),
        ]
    return parts


# ── A block of CLIP's ViT ────────────────────────────────────────────────────────────────────────

CARDS = (  # heading, what is read
    ("query, key, value", "*d* maps each"),
    ("their PCA", "*n* components,\neach with both signs"),
    ("attention", "of the class token\nto the patches:\none map per head"),
    ("block output", "*d* maps"),
)


def vit_maps() -> tuple[list[np.ndarray], ...]:
    """Drawn maps of the four kinds."""
    noise = np.random.default_rng(3).uniform(0, 1, (5, 7, 7))
    low, high = blob(0.5, 0.75, 0.35, 0.2), blob(0.78, 0.24, 0.18, 0.18)
    component = low + 0.1 * noise[0]
    heads = [
        blob(0.3, 0.8, 0.1, 0.1) + blob(0.7, 0.6, 0.1, 0.1),
        blob(0.8, 0.25, 0.1, 0.1) + blob(0.2, 0.6, 0.1, 0.1),
    ]
    return (
        [0.5 * noise[1] - 0.8 * low, low + high + 0.5 * noise[2], high - low + 0.6 * noise[3]],
        [component, -component],
        heads,
        [0.6 * (low + high) + 0.7 * noise[4], 0.8 * noise[0] + 0.3 * low],
    )


def vit_block() -> tuple[float, list[str]]:
    """One residual block with its four places to read maps, and how tokens become a map."""
    sizes = "ViT-B/16: *d* = 768, 12 heads, 14×14 = 196 patches"
    middle, top = 178, 346
    parts = [
        label(26, 40, "A residual block of CLIP’s ViT", "head", "image-ink", "start"),
        label(934, 40, sizes, "note", "muted", "end"),
        region(116, 52, 806, 278),
        *block(middle),
        *taps(middle, top),
        *(part for n, maps in enumerate(vit_maps()) for part in card(n, top, maps)),
        *tokens_to_map(546),
    ]
    return 658, parts


def tokens(x, middle) -> list[str]:
    """A column of tokens: the class token, grey, above the patches'."""
    top = middle - 65
    drawn = [rectangle(x, top + 22 * n, 32, 18, rx=3, class_="image" if n else "dropped") for n in range(6)]
    return [*drawn, label(x + 16, top - 9, "class", "note"), label(x + 16, top + 148, "patches", "note")]


def block(middle) -> list[str]:
    """From tokens to tokens: attention and MLP, each added to what came in."""
    over = middle - 98
    steps = [("out\nproj", "image", 474), ("ln_2", "node", 604), ("MLP", "image", 680)]
    parts = [
        *tokens(46, middle),
        arrow((78, middle), (150, middle)),
        box(150, middle - 24, 56, 48, "ln_1", kind="note"),
        line((206, middle), (226, middle)),
        line((226, middle - 58), (226, middle + 58)),
        rectangle(238, middle - 86, 82, 172, rx=8, class_="line edge", stroke_dasharray="5 4"),
        box(356, middle - 78, 98, 156, "attention", "image", kind="note"),
        arrow((454, middle), (474, middle)),
        arrow((530, middle), (550, middle)),
        arrow((576, middle), (604, middle)),
        arrow((660, middle), (680, middle)),
        arrow((736, middle), (756, middle)),
        arrow((782, middle), (876, middle)),
        *tokens(876, middle),
        arrow((132, middle), (132, over), (563, over), (563, middle - 13)),
        arrow((590, middle), (590, over), (769, over), (769, middle - 13)),
        label(348, over - 8, "residual", "note"),
        label(680, over - 8, "residual", "note"),
        plus(563, middle),
        plus(769, middle),
        *(box(x, middle - 24, 56, 48, name, tone, kind="note") for name, tone, x in steps),
    ]
    for y, name in zip((middle - 58, middle, middle + 58), ("query", "key", "value")):
        parts += [
            arrow((226, y), (246, y)),
            box(246, y - 20, 66, 40, name, "image", kind="note"),
            arrow((312, y), (356, y)),
        ]
    return parts


def taps(middle, top) -> list[str]:
    """From the places where maps are read down to the cards."""
    turn = top - 36
    return [
        line((279, middle + 86), (279, turn)),
        arrow((279, turn), (129, turn), (129, top)),
        arrow((279, turn), (363, turn), (363, top)),
        arrow((405, middle + 78), (405, turn), (597, turn), (597, top)),
        arrow((831, middle), (831, top)),
    ]


def card(n: int, y, maps: list[np.ndarray]) -> list[str]:
    """One kind of maps, with examples."""
    heading, words = CARDS[n]
    x, wide, side = 16 + 234 * n, 226, 56
    left = x + (wide - len(maps) * (side + 10) + 10) / 2
    return [
        rectangle(x, y, wide, 170, rx=6, class_="node edge"),
        label(x + wide / 2, y + 26, heading, tone="ink bold"),
        *(grid_of_cells(left + (side + 10) * i, y + 38, side, each) for i, each in enumerate(maps)),
        label(x + wide / 2, y + 117, words, "note"),
    ]


LEFT_OUT = """Token 0, the class token, is left out.
The patches’ values of one dimension
go back to the grid, row by row."""


def tokens_to_map(y) -> list[str]:
    """One dimension of the tokens, on the grid again."""
    values = 0.2 + 0.8 * blob(0.6, 0.7, 0.4, 0.4, 3)
    low, high = values.min(), values.max()
    colours = [[tint((value - low) / (high - low)) for value in row] for row in values]
    x, step, cell, grid, side = 330, 34, 30, 734, 96
    parts = [
        label(26, y + 22, "From tokens to a map", tone="ink bold", anchor="start"),
        label(26, y + 48, LEFT_OUT, "note", anchor="start"),
        rectangle(x, y + 33, cell, cell, class_="dropped"),
        centred(x + cell / 2, y + side / 2, "0", "note"),
        arrow((x + 10 * step + 2, y + side / 2), (grid, y + side / 2)),
        cells(grid, y, side, colours),
        outline(grid, y, side),
        label(grid + side + 16, y + side / 2 + 6, "*h* × *w* cells", anchor="start"),
    ]
    for n in range(1, 10):
        row, column = divmod(n - 1, 3)
        colour = colours[row][column]
        in_row, in_grid = x + n * step + cell / 2, grid + 32 * column + 16
        parts += [
            rectangle(x + n * step, y + 33, cell, cell, fill=colour),
            centred(in_row, y + side / 2, str(n), "note", fill=readable_on(colour)),
            centred(in_grid, y + 32 * row + 16, str(n), "note", fill=readable_on(colour)),
        ]
    return parts
