"""A drawing of the main results: the constant box, plain and refined VL-Score on seven sets of images."""

from __future__ import annotations

import json
from pathlib import Path

from diagrams import label, tag

DATA = Path(__file__).parents[1] / "data"
LEFT, RIGHT = 330, 925  # of the axis, from 0 to 100 %
TOP, STEP = 84, 46  # of the rows
PHOTOS = {"imagenet": "Photos of ImageNet", "kangaroo": "Photos of kangaroos", "pairs": "Pairs of photos"}
SCENES = "Drawn scenes, {}"
METHODS = {  # method -> its name in the legend, and the height of its mark in a row
    "constant": ("best constant box", 0),
    "plain": ("plain VL-Score", -8),
    "refined": ("refined VL-Score", 8),
}


def read_results() -> dict[str, dict[str, dict]]:
    """The name of each set of images -> the GT-known localization of each of `METHODS`, a share.

    The raccoons are measured at the model's own thresholds, the other photos are cross-validated, and plain
    VL-Score has its best threshold on the scenes.
    """
    names = "passes", "refinement", "results"
    stored = {name: json.loads((DATA / f"{name}.json").read_text()) for name in names}
    rows = stored["passes"]["lite0-minilm"]["raccoon"]["rows"]
    at = {row["method"]: row for row in rows if row["passes"] == 128}
    raccoons = {method: at[method]["gt_known_at_own_threshold"] for method in ("plain", "refined")}
    above = at["refined"]["at_own_thresholds"]["over_constant"]["value"]
    raccoons["constant"] = {"value": raccoons["refined"]["value"] - above}
    found, folds = {"Photos of raccoons, held out": raccoons}, stored["refinement"]["folds"]
    for key, name in PHOTOS.items():
        plain, refined = (folds[run]["sets"][key] for run in ("plain", "project"))
        found[name] = {"plain": plain["gt_known"], "refined": refined["gt_known"]}
        found[name]["constant"] = refined["constant_box"]
    for row in stored["results"]["scenes"]:
        found[SCENES.format(row["name"])] = {method: row[method]["gt_known"] for method in METHODS}
    return found


def place(share: float) -> float:
    """Where a share stands on the axis."""
    return LEFT + (RIGHT - LEFT) * share


def mark(method: str, x: float, y: float) -> str:
    """A method's mark: a bar, a disc or a square."""
    if method == "constant":
        return tag("rect", x=x - 3, y=y - 13, width=6, height=26, class_="muted")
    if method == "plain":
        return tag("circle", cx=x, cy=y, r=7, class_="image")
    return tag("rect", x=x - 6.5, y=y - 6.5, width=13, height=13, class_="text")


def draw_set(name: str, figures: dict[str, dict], y: float) -> list[str]:
    """A set's name, and each method's mark with its interval; the constant box's would hide the others."""
    parts = [label(LEFT - 24, y + 5, name, anchor="end")]
    for method, (_, shift) in METHODS.items():
        figure = figures[method]
        if method != "constant":
            ends = {"x1": place(figure["low"]), "x2": place(figure["high"]), "y1": y + shift, "y2": y + shift}
            parts.append(tag("line", **ends, class_="image-edge" if method == "plain" else "text-edge"))
        parts.append(mark(method, place(figure["value"]), y + shift))
    return parts


def overview() -> tuple[float, list[str]]:
    results = read_results()
    bottom = TOP + STEP * len(results) - 12
    parts = []
    for x, (method, (words, _)) in zip((LEFT + 8, LEFT + 208, LEFT + 388), METHODS.items()):
        parts += [mark(method, x, 30), label(x + 16, 35, words, "note", anchor="start")]
    for percent in range(0, 101, 20):
        x = place(percent / 100)
        parts.append(tag("line", x1=x, y1=TOP - 26, x2=x, y2=bottom, class_="edge", stroke_opacity=0.3))
        parts.append(label(x, bottom + 24, f"{percent}", "note", "muted"))
    parts.append(label((LEFT + RIGHT) / 2, bottom + 50, "GT-known localization, %", "note"))
    for number, (name, figures) in enumerate(results.items()):
        parts += draw_set(name, figures, TOP + STEP * number)
    return bottom + 66, parts
