"""Measure boxes that ignore the photo, on annotations alone: a table on the terminal.

    python scripts/measure_constant_box.py ILSVRC2012_bbox_val_v3/val     # ImageNet's, two minutes, no photo

An image is a hit if the box has an IoU above 0.5 with any of its true boxes (GT-known localization).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import vlscore

SIDES = (0.75, 1.0)  # of the boxes that are always shown: of the report's literature, and the whole image


def measure(folder) -> tuple[np.ndarray, float]:
    """Read the VOC files below a folder -> hits (n, sides) of the constant boxes, and the share with one box.

    Raises:
        VLScoreError: there is no file with a size and a box, or one cannot be read.
    """
    hits, counts = [], []
    for path in tqdm(sorted(Path(folder).rglob("*.xml")), "annotations", delay=2, disable=None):
        _, size, objects = vlscore.read_voc(path)
        if size is None:
            raise vlscore.VLScoreError(f"{path} has no size: give annotations with <size>")
        truth = [box for _, box in objects]
        if truth:
            boxes = [vlscore.constant_box(share, size) for share in vlscore.SHARES]
            hits.append([vlscore.box_iou([box], truth) > 0.5 for box in boxes])
            counts.append(len(truth))
    if not hits:
        raise vlscore.VLScoreError(f"{folder} has no VOC file with a box: give the folder of the XML files")
    return np.array(hits), float((np.array(counts) == 1).mean())


def describe(hits: np.ndarray, single: float) -> str:
    """Format what was measured: the best constant box, those of `SIDES`, and the share with one box."""
    shares = hits.mean(0)
    sides = dict.fromkeys([vlscore.SHARES[int(shares.argmax())], *SIDES])
    lines = [f"{len(hits)} images, {100 * single:.2f} % of them with one box"]
    for side in sides:
        lines.append(f"box of {side:4.0%} of each side: {100 * shares[vlscore.SHARES.index(side)]:.2f} %")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line -> the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder of VOC XML files; files in subfolders are read, too")
    try:
        print(describe(*measure(parser.parse_args(argv).folder)))
    except vlscore.VLScoreError as error:
        print(f"measure_constant_box.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
