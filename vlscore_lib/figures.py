"""Figures: photos with heat maps and boxes, and cases side by side."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import torch

from vlscore_lib.encoding import Encoding, Localization
from vlscore_lib.images import load_image
from vlscore_lib.masks import heat_map
from vlscore_lib.selection import select_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLOUR_MAP = "viridis"  # sequential, and still readable in grey and to the colour-blind
BOX_COLOUR = "#ff2d55"
OPACITY = 0.85  # of the highest heat


def draw_localizations(
    image, localizations: list[Localization], encoding: Encoding, title: str = ""
) -> Figure:
    """Draw photo, heat map and boxes side by side, with one row for each prompt.

    Args:
        image: a path or a PIL image, the one that was encoded.
        localizations: the answers, one for each row; at least one.
        encoding: the encoded image.
        title: plain text above the figure; longer than 60 characters, it is cut.

    Returns:
        A matplotlib Figure; its method ``savefig`` writes it.
    """
    from matplotlib.figure import Figure

    image = load_image(image)
    W, H = image.size
    ratio = min(max(H / W, 0.4), 2.5)
    rows = len(localizations)
    figure = Figure(figsize=(12, rows * (4 * ratio + 0.5) + 0.4), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    for row, found in zip(axes, localizations):
        for panel, saliency in zip(row, (None, found.saliency, None)):
            show_heat(panel, image, saliency, encoding)
            panel.set(aspect="auto", box_aspect=ratio)
            panel.set_axis_off()
        row[0].set_title(plain_text(found.prompt), loc="left")
        row[1].set_title(f"score {found.score:.3f}, empty image {found.base_score:.3f}", loc="left")
        show_boxes(row[2], found.boxes)
        count = f"{len(found.boxes)} box" + "es" * (len(found.boxes) != 1)
        if not found.present:
            has_map = found.score > found.base_score
            why = f"p = {found.p_absent:.2f}" if has_map else "no map beats the empty image"
            count = f"absent: {why}"
        row[2].set_title(count, loc="left")
    figure.suptitle(plain_text(title), x=0.01, ha="left", fontsize="medium", color="0.35")
    return figure


def show_heat(panel, image, saliency: torch.Tensor | None, encoding: Encoding | None = None) -> None:
    """Show a photo on a matplotlib Axes, in grey under its saliency map.

    The hotter the map, the more opaque its colour, so that the photo shows through where the map is cold.

    Args:
        panel: the Axes.
        image: a path or a PIL image, the one that was encoded, or a smaller copy of it.
        saliency: (h, w), of any range; None shows only the photo, in colour.
        encoding: the encoded image, which places the map; without it, the map covers the whole photo.
    """
    image = load_image(image)
    W, H = encoding.fit.size if encoding else image.size
    shown = image if saliency is None else image.convert("L").convert("RGB")
    panel.imshow(shown, extent=(-0.5, W - 0.5, H - 0.5, -0.5))  # imshow's pixel centres are whole numbers
    if saliency is None:
        return
    x0, y0, x1, y1 = encoding.fit.region if encoding else (0, 0, W, H)
    heat = heat_map(saliency.float(), encoding.input_size if encoding else 224)
    where = (x0 - 0.5, x1 - 0.5, y1 - 0.5, y0 - 0.5)
    panel.imshow(heat, COLOUR_MAP, vmin=0, vmax=1, alpha=OPACITY * heat.numpy(), extent=where)
    panel.set(xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5))


def show_legend(figure, axes, label: str = "saliency, from its lowest to its highest") -> None:
    """Add the colour scale of the heat maps below some of a matplotlib Figure's Axes.

    Args:
        figure: the Figure.
        axes: the Axes that the scale belongs to.
        label: text below the scale.
    """
    from matplotlib.cm import ScalarMappable

    colours = ScalarMappable(cmap=COLOUR_MAP)
    bar = figure.colorbar(colours, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.02, label=label)
    bar.set_ticks([0, 1], labels=["low", "high"])


def show_boxes(panel, boxes, colour: str = BOX_COLOUR, **style) -> None:
    """Draw boxes on a matplotlib Axes that shows the photo.

    Args:
        panel: the Axes.
        boxes: (x0, y0, x1, y1) each, in pixels of the original photo, half-open.
        colour: any colour of matplotlib.
        style: options of `matplotlib.patches.Rectangle`.
    """
    from matplotlib.patches import Rectangle

    for x0, y0, x1, y1 in boxes:
        corner = (x0 - 0.5, y0 - 0.5)
        options = {"fill": False, "edgecolor": colour, "linewidth": 2.5} | style
        panel.add_patch(Rectangle(corner, x1 - x0, y1 - y0, **options))


def draw_case_study(image, rows: dict[str, tuple], prompts=(), count: int = 4) -> Figure:
    """Draw the maps of several sources, one source in each row, followed by its saliency map for each prompt.

    Figures 7, 11 and 12 of the VL-Score report are of this kind.  If a prompt's object is absent, the photo
    is shown without a map.

    Args:
        image: a path or a PIL image, the one that was encoded.
        rows: a dict from the name of a source to a pair: its `Encoding`, and a list of saliency maps, one for
            each prompt, None if its object is absent.  Sources of several models may be combined.
        prompts: N prompts, one for each column; none shows the maps only.
        count: number of maps to show, those that `select_maps` takes first.

    Returns:
        A matplotlib Figure.
    """
    from textwrap import fill

    from matplotlib.figure import Figure

    image = load_image(image)
    ratio = min(max(image.height / image.width, 0.4), 2.5)
    titles = [f"map {n}" for n in range(1, count + 1)] + [fill(plain_text(prompt), 16) for prompt in prompts]
    size = (1.1 * len(titles) + 0.3, 1.1 * ratio * len(rows) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for panel, title in zip(axes[0], titles):
        panel.set_title(title, fontsize="x-small")
    for row, (name, (encoding, found)) in zip(axes, rows.items()):
        chosen = list(encoding.maps[select_maps(encoding.maps, count)])
        missing = [None] * (count - len(chosen))
        heats = [*chosen, *missing, *found[: len(prompts)]]
        for panel, heat in zip(row, heats):
            show_heat(panel, image, heat, encoding)
            panel.set(xticks=[], yticks=[], aspect="auto", box_aspect=ratio)
        for panel in row[len(chosen) : count]:
            panel.set_visible(False)
        row[0].set_ylabel(name, fontsize="small")
    return figure


def render_jpeg(figure, dpi: int = 80) -> bytes:
    """Render a matplotlib Figure as JPEG, which for a photo has about a tenth of the size of a PNG.

    Args:
        figure: the Figure.
        dpi: dots per inch; the width in pixels is ``dpi`` times the figure's width in inches.

    Returns:
        The bytes of the file.
    """
    content = BytesIO()
    figure.savefig(content, format="jpeg", dpi=dpi, pil_kwargs={"quality": 70, "optimize": True})
    return content.getvalue()


def draw_overlay(
    image,
    saliency: torch.Tensor | None,
    encoding: Encoding,
    boxes=(),
    title: str = "",
    width: int = 400,
) -> bytes:
    """Draw one answer as a small JPEG: the photo with its heat map and boxes on top.

    This is much faster than `draw_localizations`.

    Args:
        image: a path or a PIL image, the one that was encoded, or a smaller copy of it.
        saliency: (h, w), of any range; None shows only the photo.
        encoding: the encoded image.
        boxes: (x0, y0, x1, y1) each, in pixels of the original image.
        title: text above the photo; it is cut if it does not fit.
        width: width of the picture in pixels.

    Returns:
        The bytes of the file.
    """
    from matplotlib.figure import Figure

    W, H = encoding.fit.size
    wide = width / 80  # inches at the dots per inch of `render_jpeg`
    high, line = wide * min(max(H / W, 0.2), 2.5), 0.3
    figure = Figure(figsize=(wide, high + line))
    panel = figure.add_axes((0, 0, 1, high / (high + line)))
    show_heat(panel, image, saliency, encoding)
    panel.set_aspect("auto")
    panel.set_axis_off()
    panel.set_title(plain_text(title, int(11 * wide)), fontsize="medium")
    show_boxes(panel, boxes)
    return render_jpeg(figure)


def draw_contact_sheet(photos, ending: str = ".jpg", columns: int = 5, side: int = 240) -> bytes:
    """Draw photos with their boxes in a grid, row by row, as a JPEG or PNG.

    Args:
        photos: (path, boxes) of each photo; boxes are in pixels of the photo.
        ending: ``".png"`` for PNG; any other ending gives JPEG.
        columns: largest number of columns.
        side: side of a photo's cell in the grid, in pixels.

    Returns:
        The bytes of the file.
    """
    from PIL import Image, ImageDraw

    columns = min(columns, max(len(photos), 1))
    rows = max(-(-len(photos) // columns), 1)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for n, (path, boxes) in enumerate(photos):
        image = load_image(path)
        scale = (side - 8) / max(image.size)
        small = image.resize([max(1, round(length * scale)) for length in image.size])
        draw = ImageDraw.Draw(small)
        for box in boxes:
            draw.rectangle([value * scale for value in box], outline=BOX_COLOUR, width=3)
        row, column = divmod(n, columns)
        left, top = ((side - length) // 2 for length in small.size)
        sheet.paste(small, (column * side + left, row * side + top))
    content = BytesIO()
    sheet.save(content, "PNG" if ending.lower() == ".png" else "JPEG")
    return content.getvalue()


def plain_text(text, limit=60):
    """Escape text for matplotlib: no mathematics, no line breaks, and at most ``limit`` characters."""
    text = " ".join(text.split()).replace("$", r"\$")
    return text if len(text) <= limit else text[: limit - 1] + "…"
