"""A drawing of what each step from Score-CAM to the fast path saves, by data/bench_ladder.json."""

from __future__ import annotations

import json
import math
from pathlib import Path

from diagrams import label, tag

LADDER = Path(__file__).parents[1] / "data" / "bench_ladder.json"
LEFT, RIGHT = 330, 760  # of the axis, which is logarithmic
TOP, STEP = 64, 42  # of the rows
FROM, TO = -3, 2  # powers of ten, in seconds


def read_rows() -> list[tuple[str, float, int]]:
    """The name, the seconds and the passes of each step."""
    rows = json.loads(LADDER.read_text())["rows"]
    return [(row["step"], row["seconds"], row["passes"]) for row in rows]


def place(seconds: float) -> float:
    """Where a time stands on the axis."""
    return LEFT + (RIGHT - LEFT) * (math.log10(seconds) - FROM) / (TO - FROM)


def show(seconds: float) -> str:
    """A time with two significant digits."""
    if seconds < 0.1:
        return f"{1000 * seconds:.1f} ms"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def ladder() -> tuple[float, list[str]]:
    rows, parts = read_rows(), []
    bottom = TOP + STEP * len(rows) - 14
    for power in range(FROM, TO + 1):
        x, words = place(10**power), f"{10**power:g} s"
        parts.append(tag("line", x1=x, y1=TOP - 22, x2=x, y2=bottom, class_="edge", stroke_opacity=0.3))
        parts.append(label(x, bottom + 24, words, "note", "muted"))
    for number, (step, seconds, passes) in enumerate(rows):
        y, x = TOP + STEP * number, place(seconds)
        parts.append(label(LEFT - 20, y + 5, step, "note", anchor="end"))
        parts.append(tag("circle", cx=x, cy=y, r=7, class_="image"))
        told = "no pass" if passes == 0 else f"{passes:,} passes"
        parts.append(label(RIGHT + 20, y + 5, f"{show(seconds)}, {told}", "note", anchor="start"))
    parts.append(label((LEFT + RIGHT) / 2, bottom + 50, "Seconds for one photo, logarithmic", "note"))
    return bottom + 66, parts
