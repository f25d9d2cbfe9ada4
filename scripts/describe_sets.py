"""Describe the sets of images by their boxes alone: data/sets.json, and a picture of drawn scenes.

    python scripts/describe_sets.py ROOT      # a minute; ROOT as for `study_sets.py`, no encodings

A constant box reads no image.  So what it hits says how much of a score the boxes of a set give away.  A
pair of photos has two of them, since a box in its middle would lie on the seam.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import results
import study_sets
from PIL import Image, ImageDraw

import vlscore
from vlscore import scenes

ROOT = Path(__file__).parents[1]
OUT = ROOT / "data" / "sets.json"
PICTURE = ROOT / "book" / "_static" / "scenes.jpg"
SIDE = 0.75  # of the published constant box
EDGES = (0, 0.1, 0.25, 0.5, 0.75, 1)  # of the share that the largest object covers
NEAR = 0.1  # of the image's sides: what is less away from the middle is near it
DRAWN = {  # number, seed, objects, all of one class
    "scenes": (results.COUNT, results.SEED, None, False),
    "two of a class": (results.SAME_COUNT, results.SAME_SEEDS[2], 2, True),
    "three of a class": (results.SAME_COUNT, results.SAME_SEEDS[3], 3, True),
}
TILE, GAP, PEN, COLUMNS = 224, 8, 3, 3  # pixels of the picture


def find_largest(ask: study_sets.Ask):
    return max(ask.boxes, key=results.area)


def cover(ask: study_sets.Ask) -> float:
    """The share of the image that its largest box covers."""
    return results.area(find_largest(ask)) / (ask.size[0] * ask.size[1])


def is_near_the_middle(ask: study_sets.Ask) -> bool:
    """Whether the largest box's centre is near the image's, by their distance in parts of its sides."""
    x0, y0, x1, y1 = find_largest(ask)
    width, height = ask.size
    return float(np.hypot((x0 + x1) / 2 / width - 0.5, (y0 + y1) / 2 / height - 0.5)) < NEAR


def find_best(asks: list[study_sets.Ask]) -> dict:
    """The side of the constant boxes that are best on these images, and what they hit."""
    hits = {side: study_sets.constant_hits(asks, side) for side in vlscore.SHARES}
    side = max(hits, key=lambda each: hits[each].mean())
    return {"side": side, "gt_known": vlscore.share_with_interval(hits[side])}


def describe(asks: list[study_sets.Ask]) -> dict:
    """A set's row."""
    return {
        "prompts": len(asks),
        "images": len({ask.path for ask in asks}),
        "objects": vlscore.rounded(np.mean([len(ask.boxes) for ask in asks])),
        "one_object": vlscore.share_with_interval(np.array([len(ask.boxes) == 1 for ask in asks])),
        "largest": vlscore.rounded(np.median([cover(ask) for ask in asks])),
        "near_the_middle": vlscore.share_with_interval(np.array([is_near_the_middle(ask) for ask in asks])),
        "constant": find_best(asks),
    }


def divide(asks: list[study_sets.Ask]) -> list[dict]:
    """The hits of the published constant box, by the share that the largest object covers."""
    shares, hits = np.array([cover(ask) for ask in asks]), study_sets.constant_hits(asks, SIDE)
    found = []
    for low, high in pairwise(EDGES):
        here = (low <= shares) & ((shares < high) | (high == 1))
        found.append({"from": low, "to": high, "photos": int(here.sum()), "hits": int(hits[here].sum())})
    return found


def compare_with_all(asks: list[study_sets.Ask]) -> dict:
    """What is known of all 50,000 photos too: hits of two constant boxes, photos with one box."""
    hits, alone = study_sets.constant_hits(asks, SIDE), np.array([len(ask.boxes) == 1 for ask in asks])
    return {
        "constant": vlscore.share_with_interval(hits),
        "whole": vlscore.share_with_interval(study_sets.constant_hits(asks, 1.0)),
        "one_object": vlscore.share_with_interval(alone),
        "constant, one object": vlscore.share_with_interval(hits[alone]),
        "constant, several": vlscore.share_with_interval(hits[~alone]),
    }


def read_scenes(folder: Path) -> dict[str, list[study_sets.Ask]]:
    found = {}
    for name, (count, seed, objects, same) in DRAWN.items():
        scenes.write_scenes(folder / str(seed), count, seed, (224, 224), objects, same)
        found[name] = study_sets.read_asks(folder / str(seed))
    return found


def draw_examples(asks: dict[str, list[study_sets.Ask]]) -> Image.Image:
    """Scenes in rows, with the true boxes of what is asked for in white."""
    chosen = [*asks["scenes"][:COLUMNS], asks["two of a class"][0], *asks["three of a class"][:2]]
    rows = -(-len(chosen) // COLUMNS)
    size = (COLUMNS * (TILE + GAP) - GAP, rows * (TILE + GAP) - GAP)
    picture = Image.new("RGB", size, "white")
    for n, ask in enumerate(chosen):
        tile = vlscore.load_image(ask.path).resize((TILE, TILE))
        pen = ImageDraw.Draw(tile)
        for x0, y0, x1, y1 in ask.boxes:
            pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline="white", width=PEN)
        picture.paste(tile, (n % COLUMNS * (TILE + GAP), n // COLUMNS * (TILE + GAP)))
    return picture


def study(root: str) -> None:
    """Describe all sets, and draw examples of the scenes."""
    with tempfile.TemporaryDirectory() as folder:
        names = ("imagenet", "kangaroo", "raccoon", "pairs")
        sets = study_sets.photo_asks(root, names, Path(folder)) | read_scenes(Path(folder))
        drawn = draw_examples(sets)
        found = {
            "sets": {name: describe(asks) for name, asks in sets.items()},
            "sizes": divide(sets["imagenet"]),
            "sample": compare_with_all(sets["imagenet"]),
        }
    vlscore.write_whole(OUT, (json.dumps(found, indent=1) + "\n").encode())
    drawn.save(PICTURE, quality=90)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    return study_sets.run_study("describe_sets.py", __doc__, study, argv)


if __name__ == "__main__":
    sys.exit(main())
