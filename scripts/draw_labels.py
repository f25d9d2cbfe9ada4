"""Label the hand-boxed photos, count right and wrong boxes, and draw six photos: the book's page of labels.

    python scripts/draw_labels.py  # prints the counts, writes book/_static/labels.jpg; two minutes

Each photo is asked for the classes of all of them.  A box is right if its IoU with an object of its class is
at least 0.5 and no better box of the class has that object.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

import vlscore

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "book" / "_static" / "labels.jpg"
MODEL, KEEP = "lite0-minilm", 64
SHOWN = (
    "imagenet_15_99",
    "imagenet_06_609",
    "imagenet_16_251",
    "imagenet_04_949",
    "imagenet_01_559",
    "astronaut",
)
RIGHT, WRONG = "#1b7f3b", "#c2185b"  # colours of boxes


class Judged(NamedTuple):
    """A photo with its labels.

    Attributes:
        truth: (label, box) of each object.
        boxes (list[vlscore.LabelledBox]): the boxes that were found.
        taken: of each box, the object in ``truth`` that it is right for; None if it is wrong.
    """

    truth: list[tuple]
    boxes: list
    taken: list[int | None]

    @property
    def right(self) -> int:
        return sum(each is not None for each in self.taken)

    @property
    def wrong(self) -> list:
        return [box for box, object in zip(self.boxes, self.taken) if object is None]


def judge(boxes: list, truth: list[tuple]) -> Judged:
    """Give each object the box of its class with the highest score that fits it."""
    order = sorted(range(len(boxes)), key=lambda n: -boxes[n].score)
    taken = [None] * len(boxes)
    for n in order:
        free = [k for k, (label, _) in enumerate(truth) if label == boxes[n].label and k not in taken]
        fits = {k: vlscore.box_iou([boxes[n].box], [truth[k][1]]) for k in free}
        best = max(fits, key=fits.get, default=None)
        if best is not None and fits[best] >= 0.5:
            taken[n] = best
    return Judged(truth, boxes, taken)


def put_constant(judged: Judged, share: float, size) -> Judged:
    """The same with one centred box for each class that was found."""
    best = {}
    for box in judged.boxes:
        best[box.label] = max(best.get(box.label, 0.0), box.score)
    box = vlscore.constant_box(share, size)
    return judge([vlscore.LabelledBox(label, score, box) for label, score in best.items()], judged.truth)


def compare_recall(ours: list[Judged], theirs: list[Judged]) -> dict:
    """The difference in recall, with a 95 % interval from resampled photos."""
    gain = np.array([one.right - other.right for one, other in zip(ours, theirs)])
    objects = np.array([len(each.truth) for each in ours])
    draws = np.array([draw @ gain / (draw @ objects) for draw in vlscore.resample(len(gain))])
    low, high = vlscore.interval(draws)
    found = {"value": gain.sum() / objects.sum(), "low": low, "high": high}
    return {key: vlscore.rounded(value) for key, value in found.items()}


def count(found: list[Judged], sizes: list) -> dict:
    """What the page says of all photos; the constant box has the side with the best recall."""
    wrong = [(box, {label for label, _ in each.truth}) for each in found for box in each.wrong]
    other = [box for box, own in wrong if box.label not in own]
    constant = {
        side: [put_constant(each, side, size) for each, size in zip(found, sizes)] for side in vlscore.SHARES
    }
    side = max(constant, key=lambda each: sum(judged.right for judged in constant[each]))
    objects, right = (sum(each) for each in zip(*((len(each.truth), each.right) for each in found)))
    return {
        "photos": len(found),
        "objects": objects,
        "boxes": sum(len(each.boxes) for each in found),
        "right": right,
        "wrong, of another class": len(other),
        "wrong, of a class of the photo": len(wrong) - len(other),
        "wrong, with a score of 1.00": sum(box.score >= 0.995 for box, _ in wrong),
        "objects without a right box": objects - right,
        "recall above the constant box": compare_recall(found, constant[side]) | {"side": side},
    }


def outline(panel, boxes: list, colour: str, style: str, width: float) -> None:
    """Draw boxes with a dark edge, so that they show on bright ground too."""
    from matplotlib.patheffects import withStroke

    edge = [withStroke(linewidth=width + 2, foreground="black")]
    vlscore.show_boxes(panel, boxes, colour, linestyle=style, linewidth=width, path_effects=edge)


def find_named(boxes: list) -> list:
    """The box of each class that has the highest score: the only one whose name is drawn."""
    best = {box.label: box for box in sorted(boxes, key=lambda box: box.score)}
    return list(best.values())


def write_name(panel, box, colour: str, middle: float) -> None:
    """Write the name into an upper corner of the box: the left one, unless it is in the right half."""
    x0, y0, x1, _ = box.box
    x, side, inwards = (x0, "left", 3) if x0 < middle else (x1, "right", -3)
    look = {"color": "white", "bbox": {"facecolor": colour, "edgecolor": "none", "pad": 2}}
    at = {"xytext": (inwards, -3), "textcoords": "offset points", "va": "top", "ha": side}
    panel.annotate(box.label, (x, y0), **at, **look)


def draw(photos: dict, judged: dict[str, Judged]):
    """A matplotlib Figure of `SHOWN`: right boxes, wrong ones, and the true ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.8, 7.6), layout="constrained")
    for panel, name in zip(figure.subplots(2, 3).flat, SHOWN):
        photo, each = photos[name], judged[name]
        vlscore.show_heat(panel, photo.path, None)
        panel.set_axis_off()
        outline(panel, [box for _, box in each.truth], "white", "--", 1.5)
        colours = [WRONG if object is None else RIGHT for object in each.taken]
        for box, colour in zip(each.boxes, colours):
            outline(panel, [box.box], colour, "--" if colour == WRONG else "-", 3)
        named = find_named(each.boxes)
        for box, colour in zip(each.boxes, colours):
            if box in named:
                write_name(panel, box, colour, photo.size[0] / 2)
    return figure


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("draw_labels.py", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture (default: the book's)")
    options = parser.parse_args(argv)
    try:
        photos = vlscore.hand_boxed_photos(ROOT / "data" / "photos")
        truth = {name: list(photo.objects) for name, photo in photos.items()}
        classes = sorted({label for each in truth.values() for label, _ in each})
        label = vlscore.Labeller(vlscore.load_model(MODEL, "cpu"), classes, keep=KEEP, precision="float32")
        judged = {name: judge(label(photo.path).boxes, truth[name]) for name, photo in photos.items()}
        print(json.dumps(count([*judged.values()], [photo.size for photo in photos.values()]), indent=1))
        vlscore.write_whole(options.out, vlscore.render_jpeg(draw(photos, judged), 100))
    except vlscore.VLScoreError as error:
        print(f"draw_labels.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("draw_labels.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
