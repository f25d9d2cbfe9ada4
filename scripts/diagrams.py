"""The parts of a drawing: labels, boxes, arrows, grids of cells and one simple scene, each as SVG text.

A drawing is 960 units wide.  Its colours stand in classes with a light and a dark value, so one file
suits both themes; what stands for an image's content (cells, the scene) looks the same in both.  There
are no transforms and no markers: a number in the file is a place in the drawing, and slide software that
knows little of SVG shows it too.

In a label, ``*x*`` is italic and ``_{k}`` a subscript, as in ``*A*_{k}``.
"""

from __future__ import annotations

import math
import re
from functools import cache, partial
from html import escape
from itertools import groupby

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

WIDTH = 960
FONTS = "'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
SIZES = {"head": 18, "body": 16, "note": 15, "math": 20}  # of the classes of text
SUBSCRIPT = 0.8
FILLS = {  # of a light and of a dark page
    "card": ("#ffffff", "#121212"),
    "ink": ("#1f2933", "#e6eaf0"),
    "muted": ("#4b5563", "#b4bcc8"),
    "node": ("#ffffff", "#222a35"),
    "dropped": ("#c3c9d2", "#4a5361"),
    "solid-ink": ("#ffffff", "#ffffff"),
    "image": ("#0072b2", "#0072b2"),
    "image-pale": ("#e6f1f9", "#0f2a3f"),
    "image-ink": ("#00588a", "#7cc4f0"),
    "text": ("#b24a00", "#b24a00"),
    "text-pale": ("#fdefe4", "#33221a"),
    "text-ink": ("#9a3f00", "#f5a76c"),
}
STROKES = {
    "edge": ("#5b6472", "#8b95a3"),
    "flow": ("#4b5563", "#b4bcc8"),
    "image-edge": ("#00588a", "#7cc4f0"),
    "text-edge": ("#9a3f00", "#f5a76c"),
}
EMPTY = "#7b7568"  # the mean colour of CLIP's images, to which masking fades
BOX = "#ff2d55"  # as in the pictures of `vlscore`
HEAD = 9  # the length of an arrow's head

# ── SVG ──────────────────────────────────────────────────────────────────────────────────────────


def num(value: float) -> str:
    """At most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def tag(name: str, content: str | None = None, **attributes) -> str:
    """An element; `_` ends the name of an attribute that Python reserves and is `-` inside of one."""
    values = {key.rstrip("_").replace("_", "-"): each for key, each in attributes.items() if each is not None}
    written = "".join(
        f' {key}="{num(each) if isinstance(each, int | float) else each}"' for key, each in values.items()
    )
    return f"<{name}{written}/>" if content is None else f"<{name}{written}>{content}</{name}>"


def rules(column: int) -> str:
    """The classes of colour of the light (0) or of the dark (1) page."""
    fills = [f".{name}{{fill:{pair[column]}}}" for name, pair in FILLS.items()]
    strokes = [f".{name}{{stroke:{pair[column]}}}" for name, pair in STROKES.items()]
    return "\n".join(fills + strokes)


def svg(title: str, description: str, height: float, parts: list[str]) -> str:
    """A whole drawing on a card of the page's colour."""
    sizes = "\n".join(f".{name}{{font-size:{size}px}}" for name, size in SIZES.items())
    style = (
        f"\ntext{{font-family:{FONTS}}}\n{sizes}\n.head,.bold{{font-weight:bold}}\n.italic{{font-style:italic}}\n"
        f".edge,.flow,.image-edge,.text-edge{{stroke-width:2}}\n.line{{fill:none}}\n{rules(0)}\n"
        f"@media (prefers-color-scheme: dark){{\n{rules(1)}\n}}\n"
    )
    head = [
        tag("title", escape(title), id="title"),
        tag("desc", escape(description), id="desc"),
        tag("style", style),
        tag("rect", width=WIDTH, height=height, class_="card"),
    ]
    return (
        tag(
            "svg",
            "\n" + "\n".join(head + parts) + "\n",
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {WIDTH} {num(height)}",
            role="img",
            aria_labelledby="title desc",
        )
        + "\n"
    )


# ── Text ─────────────────────────────────────────────────────────────────────────────────────────


def label(x, y, text: str, kind="body", tone="ink", anchor="middle", fill=None) -> str:
    """Lines of text, the first on the baseline y; `kind` is a class of `SIZES`, `fill` a fixed colour."""
    size, written = SIZES[kind], []
    for n, line in enumerate(text.split("\n")):
        runs, shift = [], 0
        for run in filter(None, re.split(r"(_\{.*?\}|\*.*?\*)", line)):
            is_sub, is_italic = run.startswith("_{"), run.startswith("*")
            words = escape(run[2:-1] if is_sub else run[1:-1] if is_italic else run, quote=False)
            # A subscript lowers all that follows, until the next run lifts it again.
            wanted = 0.22 * size if is_sub else 0
            runs.append(
                tag(
                    "tspan",
                    words,
                    class_="italic" if is_italic else None,
                    font_size=SUBSCRIPT * size if is_sub else None,
                    dy=wanted - shift or None,
                )
            )
            shift = wanted
        is_plain = len(runs) == 1 and runs[0].startswith("<tspan>")
        written.append(
            tag(
                "text",
                runs[0][7:-8] if is_plain else "".join(runs),
                x=x,
                y=y + 1.25 * n * size,
                class_=f"{kind} {tone}" if fill is None else kind,
                fill=fill,
                text_anchor=None if anchor == "start" else anchor,
            )
        )
    return "\n".join(written)


def centred(x, y, text: str, kind="body", tone="ink", fill=None) -> str:
    """Lines of text whose block is centred at (x, y)."""
    size, lines = SIZES[kind], text.count("\n") + 1
    return label(x, y + 0.36 * size - 0.625 * size * (lines - 1), text, kind, tone, fill=fill)


# ── Boxes and arrows ─────────────────────────────────────────────────────────────────────────────


def regions(right: float, below: float, height: float) -> list[str]:
    """The shade of what is done once per image, up to (`right`, `below`), and around it that of a prompt."""
    edge, low, gap = WIDTH - 8, height - 8, 4
    return [
        region(8, 8, right - gap, below - 2 * gap, "image"),
        region(right + gap, 8, edge, low, "text"),
        region(8, below, edge, low, "text"),
    ]


def region(x0, y0, x1, y1, tone="image") -> str:
    return rectangle(x0, y0, x1 - x0, y1 - y0, class_=f"{tone}-pale")


def polygon(points, **attributes) -> str:
    return tag("polygon", points=" ".join(f"{num(x)},{num(y)}" for x, y in points), **attributes)


def rectangle(x, y, w, h, **attributes) -> str:
    return tag("rect", x=x, y=y, width=w, height=h, **attributes)


def box(x, y, w, h, text="", tone="node", kind="body") -> str:
    """A box with centred text; solid for an encoder's `tone`, else outlined."""
    is_solid = tone in ("image", "text")
    edge = "" if is_solid else " edge"
    ink = "solid-ink" if is_solid else "ink"
    frame = rectangle(x, y, w, h, rx=6, class_=tone + edge)
    return frame + "\n" + centred(x + w / 2, y + h / 2, text, kind, ink) if text else frame


def encoder(x, y, w, h, text: str, tone: str, down=False, kind="body") -> str:
    """A trapezoid that narrows in the direction of the flow."""
    if down:
        corners = [(x, y), (x + w, y), (x + 0.88 * w, y + h), (x + 0.12 * w, y + h)]
    else:
        slope = min(0.12 * h, 18)
        corners = [(x, y), (x + w, y + slope), (x + w, y + h - slope), (x, y + h)]
    return polygon(corners, class_=tone) + "\n" + centred(x + w / 2, y + h / 2, text, kind, "solid-ink")


def line(*points, tone="flow", dashes=None) -> str:
    return tag(
        "polyline",
        points=" ".join(f"{num(x)},{num(y)}" for x, y in points),
        class_=f"line {tone}",
        stroke_dasharray=dashes,
    )


def arrow(*points, tone="flow") -> str:
    """A line through the points whose head's tip is the last of them."""
    (x0, y0), (x1, y1) = points[-2:]
    angle = math.atan2(y1 - y0, x1 - x0)
    back = x1 - HEAD * math.cos(angle), y1 - HEAD * math.sin(angle)
    across = 0.5 * HEAD * math.sin(angle), -0.5 * HEAD * math.cos(angle)
    wings = [(back[0] + sign * across[0], back[1] + sign * across[1]) for sign in (1, -1)]
    fill = "muted" if tone == "flow" else tone.replace("-edge", "-ink")
    return line(*points[:-1], back, tone=tone) + "\n" + polygon([points[-1], *wings], class_=fill)


def plus(x, y, r=13) -> str:
    """A sum: ⊕ around (x, y)."""
    ring = tag("circle", cx=x, cy=y, r=r, class_="node flow")
    return "\n".join([ring, line((x - r + 5, y), (x + r - 5, y)), line((x, y - r + 5), (x, y + r - 5))])


def dots(x, y) -> str:
    """Rows left out: ⋮"""
    return "\n".join(rectangle(x - 2, y + step - 2, 4, 4, class_="muted") for step in (-9, 0, 9))


def bar(x, y, w, h, tone: str) -> str:
    return rectangle(x, y, w, h, class_=tone)


# ── Cells ────────────────────────────────────────────────────────────────────────────────────────


def min_max(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def blob(x, y, width, height, n=7) -> np.ndarray:
    """A map of n×n cells that is bright around (x, y), in shares of the side."""
    at = (np.arange(n) + 0.5) / n
    return np.exp(-(((at - x) / width) ** 2) - (((at - y) / height) ** 2)[:, None])


def upsample(values: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, with the corners aligned, as VL-Score makes its masks."""
    at, cells = np.linspace(0, len(values) - 1, side), np.arange(len(values))
    rows = np.stack([np.interp(at, cells, column) for column in values.T], 1)
    return np.stack([np.interp(at, cells, row) for row in rows])


@cache
def palette(colours: str) -> list[str]:
    """The 256 colours of one of matplotlib's maps."""
    return [to_hex(colour) for colour in colormaps[colours](range(256))]


def tint(value: float, colours="viridis") -> str:
    """The colour of a value in [0, 1]."""
    return palette(colours)[min(int(256 * value), 255)]


def readable_on(colour: str) -> str:
    """Black or white, whichever has more contrast on a colour (WCAG's relative luminance)."""
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return "#000000" if np.dot(linear, (0.2126, 0.7152, 0.0722)) > 0.179 else "#ffffff"


def cells(x, y, side, colours: list[list[str]], opacity: np.ndarray | None = None) -> str:
    """A square of side×side units cut into cells of given colours: a path for each colour and opacity."""
    step, paths = side / len(colours), {}
    seen = np.ones((len(colours), len(colours))) if opacity is None else opacity
    for row, names in enumerate(colours):
        column = 0
        for (colour, share), run in groupby(zip(names, seen[row].tolist())):
            count = len(list(run))
            start = f"M{num(x + column * step)} {num(y + row * step)}"
            shape = f"{start}h{num(count * step)}v{num(step)}h{num(-count * step)}z"
            paths.setdefault((colour, share), []).append(shape)
            column += count
    drawn = [
        tag("path", d="".join(each), fill=colour, fill_opacity=share if share < 1 else None)
        for (colour, share), each in paths.items()
    ]
    return tag("g", "\n" + "\n".join(drawn) + "\n", shape_rendering="crispEdges")


def in_steps(shares: np.ndarray, count=16) -> np.ndarray:
    """Shares rounded to so many steps: few colours make a small file."""
    return np.round(shares * count) / count


def outline(x, y, side, tone="edge", dashes=None) -> str:
    return rectangle(x, y, side, side, class_=f"line {tone}", stroke_dasharray=dashes)


def grid_of_cells(x, y, side, values: np.ndarray, colours="viridis", form: str | None = None) -> str:
    """Values as colours, from the lowest to the highest; written into the cells where `form` is given."""
    low, high = values.min(), values.max()
    tints = [[tint((value - low) / (high - low), colours) for value in row] for row in values]
    parts, step = [cells(x, y, side, tints), outline(x, y, side)], side / len(values)
    for (i, j), value in np.ndenumerate(values):
        if form:
            at = x + (j + 0.5) * step, y + (i + 0.5) * step
            parts.append(centred(*at, format(value, form), "note", fill=readable_on(tints[i][j])))
    return "\n".join(parts)


def vector(x, y, values, tone="image", step=9, height=14) -> str:
    """An embedding: a row of cells, opaque as their values in [0, 1]."""
    drawn = [
        rectangle(x + n * step, y - height / 2, step, height, class_=tone, fill_opacity=float(value))
        for n, value in enumerate(values)
    ]
    frame = rectangle(x, y - height / 2, step * len(values), height, class_=f"line {tone}-edge")
    return "\n".join([*drawn, frame])


# ── The scene: a car below, the sun above ────────────────────────────────────────────────────────

CAR = (10, 55, 90, 95)  # its box, where the image has 100×100 pixels


def scaled(x, y, side, points):
    return [(x + side * px / 100, y + side * py / 100) for px, py in points]


def car(x, y, side) -> str:
    """The car of the scene, without the scene."""
    at = partial(scaled, x, y, side)
    (body,) = at([(10, 70)])
    parts = [
        polygon(at([(26, 71), (38, 55), (64, 55), (77, 71)]), fill="#b3362c"),
        polygon(at([(33, 70), (41, 59), (50, 59), (50, 70)]), fill="#dceaf2"),
        polygon(at([(54, 70), (54, 59), (62, 59), (70, 70)]), fill="#dceaf2"),
        rectangle(*body, 0.8 * side, 0.18 * side, rx=0.05 * side, fill="#c8443c"),
    ]
    for centre in at([(29, 86), (71, 86)]):
        parts += [
            tag("circle", cx=centre[0], cy=centre[1], r=r * side / 100, fill=colour)
            for r, colour in ((9, "#22262c"), (4, "#c9ced6"))
        ]
    return "\n".join(parts)


def sun(x, y, side, centre=(78, 24), radius=13) -> str:
    ((cx, cy),) = scaled(x, y, side, [centre])
    return tag("circle", cx=cx, cy=cy, r=radius * side / 100, fill="#f2a71b")


def ground(x, y, side, horizon=74) -> str:
    high = horizon * side / 100
    return "\n".join(
        [
            rectangle(x, y, side, side, fill="#c4dff0"),
            rectangle(x, y + high, side, side - high, fill="#b9a98a"),
        ]
    )


def scene(x, y, side) -> str:
    return "\n".join([ground(x, y, side), sun(x, y, side), car(x, y, side), outline(x, y, side)])


def empty_image(x, y, side) -> str:
    return rectangle(x, y, side, side, fill=EMPTY) + "\n" + outline(x, y, side)


def masked_scene(x, y, side, mask: np.ndarray) -> str:
    """The scene where a mask is 1; the mean colour where it is 0."""
    cover = cells(x, y, side, [[EMPTY] * len(mask)] * len(mask), 1 - mask)
    return "\n".join([ground(x, y, side), sun(x, y, side), car(x, y, side), cover, outline(x, y, side)])


def found_box(x, y, side, x0, y0, x1, y1) -> str:
    """A box in pixels of the 100×100 image, in a light margin that sets it off from what is below."""
    (a, b), (c, d) = scaled(x, y, side, [(x0, y0), (x1, y1)])
    return "\n".join(  # its outer edge is the box's
        rectangle(a + 1.5, b + 1.5, c - a - 3, d - b - 3, fill="none", stroke=colour, stroke_width=width)
        for colour, width in (("#ffffff", 6), (BOX, 3))
    )
