"""Draw scenes with ground truth: `draw_scene`, `write_scenes`, `scene_rng`, `classes` and `class_names`.

A scene has one to three objects of 80 classes (ten shapes in eight colours) on a textured background with
unlabelled strokes.  Objects differ in size, rotation, shade and texture.  The other objects in a scene
usually share the first one's shape or its colour, so neither alone identifies it.  They touch it, so a coarse
map joins them.  The first object is the scene's label, as the class is an ImageNet photo's.  A folder of
scenes has ImageNet's official layout::

    val/scenes_val_00000001.JPEG
    bbox/val/scenes_val_00000001.xml     all objects, the label's first; 0-based inclusive corners
    LOC_synset_mapping.txt               one line for each class: its number and its names
    LOC_val_solution.csv                 one line for each scene: its label and the boxes of that class

The same count, seed and size give the same bytes.  Scene n does not depend on the count.
"""

from __future__ import annotations

import colorsys
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlscore_lib.errors import VLScoreError
from vlscore_lib.files import check_new_folder

# Hue ± spread in degrees, saturation and value (lowest, highest), synonym.
COLOURS = {
    "red": (0, 6, (0.80, 1.0), (0.60, 0.95), "scarlet"),
    "orange": (29, 5, (0.85, 1.0), (0.85, 1.0), None),
    "yellow": (54, 5, (0.75, 1.0), (0.85, 1.0), None),
    "green": (122, 20, (0.60, 1.0), (0.35, 0.75), None),
    "cyan": (180, 7, (0.60, 1.0), (0.75, 1.0), "turquoise"),
    "blue": (226, 12, (0.70, 1.0), (0.45, 0.95), None),
    "purple": (276, 9, (0.60, 1.0), (0.40, 0.75), "violet"),
    "pink": (332, 9, (0.35, 0.60), (0.90, 1.0), None),
}
SHAPES = {
    "circle": "disc",
    "square": "box",
    "triangle": "wedge",
    "star": "pentagram",
    "cross": "plus",
    "ring": "hoop",
    "heart": "valentine",
    "crescent": "moon",
    "arrow": "pointer",
    "drop": "teardrop",
}
SUPERSAMPLING = 3  # of an object's outline, for smooth edges


def class_names() -> list[str]:
    """Return the usual name of each of the 80 classes, colour by colour; `classes` has another order."""
    return [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def classes() -> list[tuple[str, list[str]]]:
    """Return the 80 classes in the order of their index, as pairs: a number like ImageNet's wnid, and names.

    The first of a class's two or three names is the usual one.
    """
    found = []
    for shape, other_shape in SHAPES.items():
        for colour, (*_, other_colour) in COLOURS.items():
            names = [f"{colour} {shape}", f"{colour} {other_shape}"]
            if other_colour:
                names.append(f"{other_colour} {shape}")
            found.append((f"n{90000001 + len(found)}", names))
    return found


def outline(shape: str) -> list[np.ndarray]:
    """Return polygons (n, 2) in the unit circle: the shape's edge and, if it has one, the hole in it."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    if shape == "circle":
        return [circle]
    if shape == "ring":
        return [circle, 0.55 * circle]
    if shape == "crescent":
        return [circle, 0.82 * circle + [0.45, 0]]
    if shape == "square":
        return [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.72]
    if shape == "triangle":
        return [circle[[0, 21, 43]]]
    if shape == "star":
        tips = np.linspace(0, 2 * np.pi, 10, endpoint=False)
        return [np.stack([np.cos(tips), np.sin(tips)], 1) * np.where(np.arange(10) % 2, 0.4, 1)[:, None]]
    if shape == "cross":
        a, b = 0.32, 0.95
        corners = [(a, a), (b, a), (b, -a), (a, -a), (a, -b), (-a, -b)]
        return [np.array(corners + [(-x, -y) for x, y in corners])]
    if shape == "heart":
        x, y = np.sin(turn) ** 3, (13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn)) / 16
        return [np.stack([x, -y + 0.1], 1) * 0.92]
    if shape == "arrow":
        corners = [(1, 0), (0.1, 0.75), (0.1, 0.3), (-0.95, 0.3)]
        return [np.array(corners + [(x, -y) for x, y in corners[:0:-1]])]
    if shape == "drop":
        round_end = 0.58 * circle[8:57] - [0.36, 0]
        return [np.concatenate([round_end, [(1.0, 0.0)]])]
    raise VLScoreError(f"unknown shape {shape!r}: choose one of {', '.join(SHAPES)}")


def silhouette(shape: str, radius: float, angle: float) -> Image.Image:
    """Draw the shape as an 8-bit mask with smooth edges, cut to its bounding box."""
    side = int(2 * radius + 3) * SUPERSAMPLING
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    for polygon, ink in zip(outline(shape), (255, 0)):
        points = polygon @ rotation.T * radius * SUPERSAMPLING + side / 2
        pen.polygon([tuple(point) for point in points], fill=ink)
    small = mask.resize((side // SUPERSAMPLING,) * 2, Image.Resampling.BOX)
    return small.crop(small.point(lambda value: 255 * (value > 127)).getbbox())


def colour_of(rng, name: str) -> np.ndarray:
    """Draw a random shade of a named colour: RGB (3,), 0 to 255."""
    hue, spread, saturation, value, _ = COLOURS[name]
    turned = (hue + rng.uniform(-spread, spread)) / 360 % 1
    return 255 * np.array(colorsys.hsv_to_rgb(turned, rng.uniform(*saturation), rng.uniform(*value)))


def texture(rng, size: tuple[int, int], cells: int) -> np.ndarray:
    """Make smooth noise (H, W) in [-1, 1] with about `cells` bumps along a side."""
    grid = (255 * rng.random((cells, cells))).astype(np.uint8)
    smooth = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) / 127.5 - 1


def shade(rng, size: tuple[int, int]) -> np.ndarray:
    """Shade a surface by a factor (H, W) around 1: a gradient of light and a texture."""
    W, H = size
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.linspace(-1, 1, W, dtype=np.float32), np.linspace(-1, 1, H, dtype=np.float32)
    slope = np.cos(angle) * x + np.sin(angle) * y[:, None]
    grain = texture(rng, size, int(rng.integers(3, 9)))
    light = 0.95 + rng.uniform(0, 0.12) * slope + rng.uniform(0.02, 0.12) * grain
    if rng.random() < 0.25:  # stripes
        light *= 1 - 0.18 * (np.sin(rng.uniform(6, 14) * slope + rng.uniform(0, 6)) > 0.3)
    return light


def choose_objects(rng, count: int) -> list[tuple[str, str]]:
    """Choose (colour, shape) of each object; the others usually share one of the two with the first."""
    colours, shapes = list(COLOURS), list(SHAPES)
    first = str(rng.choice(colours)), str(rng.choice(shapes))
    chosen = [first]
    while len(chosen) < count:
        colour, shape = str(rng.choice(colours)), str(rng.choice(shapes))
        kind = rng.random()
        if kind < 0.4:
            shape = first[1]
        elif kind < 0.8:
            colour = first[0]
        # A second object of the label's class comes third: two objects are always of two classes.
        if (colour, shape) not in chosen or (len(chosen) == 2 and (colour, shape) == first):
            chosen.append((colour, shape))
    return chosen


def background(rng, size: tuple[int, int]) -> np.ndarray:
    """Draw a muted, textured ground (H, W, 3) with thin strokes of any colour on it."""
    W, H = size
    value = np.array([colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.4), 1) for _ in range(2)])
    tones = 255 * value * rng.uniform(0.2, 0.95, (2, 1))
    blend = np.zeros((H, W), np.float32)
    for cells, weight in ((3, 1.0), (7, 0.7), (17, 0.5), (41, 0.35)):
        blend += weight * rng.uniform(0.2, 1) * texture(rng, size, cells)
    blend = 1 / (1 + np.exp(-1.5 * blend))[..., None]
    ground = Image.fromarray((tones[0] * blend + tones[1] * (1 - blend)).astype(np.uint8))
    pen = ImageDraw.Draw(ground)
    for _ in range(rng.integers(0, 7)):
        start, reach = rng.uniform(0, 1, 2), rng.normal(0, 0.35, (2, 2))
        path = [start, start + reach[0], start + reach[0] + reach[1]]
        ink = tuple(int(255 * part) for part in colorsys.hsv_to_rgb(rng.random(), rng.random(), rng.random()))
        width = 1 + int(rng.uniform(0.004, 0.025) * min(size))
        pen.line([(x * W, y * H) for x, y in path], fill=ink, width=width, joint="curve")
    return np.asarray(ground, dtype=np.float32)


def place(rng, size, extent, taken) -> tuple[int, int, int, int] | None:
    """Place an object of `extent`: the first one anywhere, the others close to one that is there.

    Boxes may overlap by up to 15 % of the smaller one.  Returns None if no place is found.
    """
    for _ in range(60):
        low, high = np.zeros(2, int), np.array(size) - extent
        if taken:
            near = taken[rng.integers(len(taken))]
            low = np.maximum(low, np.array(near[:2]) - extent)
            high = np.minimum(high, np.array(near[2:]))
        x0, y0 = (int(corner) for corner in rng.integers(low, np.maximum(low, high) + 1))
        box = (x0, y0, x0 + extent[0], y0 + extent[1])
        if box[2] <= size[0] and box[3] <= size[1] and all(overlap(box, other) < 0.15 for other in taken):
            return box
    return None


def overlap(box, other) -> float:
    """Compute the share of the smaller of two boxes that lies in the other."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    areas = ((each[2] - each[0]) * (each[3] - each[1]) for each in (box, other))
    return max(width, 0) * max(height, 0) / min(areas)


def draw_scene(rng, size: tuple[int, int], objects: int | None = None, same: bool = False):
    """Draw one scene: an image, and the class and the box of each object in it.

    Args:
        rng: a NumPy Generator, such as `scene_rng` returns.
        size: (W, H) in pixels.  The radius of an object is 0.13 to 0.34 of the shorter side.
        objects: number of objects, 1 to 3; None means a random number.
        same: whether all objects are of one class.

    Returns:
        An RGB image, and a list of (class index, box); the index counts in `classes`.  The first object gives
        the scene its label.  Boxes are (x0, y0, x1, y1) in pixels, half-open.
    """
    count = int(rng.choice([1, 2, 3], p=[0.2, 0.4, 0.4])) if objects is None else objects
    largest = {1: 0.34, 2: 0.29, 3: 0.25}[count]  # radius as a share of the shorter side
    while True:
        scene, found = background(rng, size), []
        for colour, shape in choose_objects(rng, 1) * count if same else choose_objects(rng, count):
            radius = rng.uniform(0.13, largest) * min(size)
            mask = silhouette(shape, radius, rng.uniform(0, 2 * np.pi))
            box = place(rng, size, mask.size, [box for _, box in found])
            if box is None:
                break
            surface = colour_of(rng, colour) * shade(rng, mask.size)[..., None]
            cover = np.asarray(mask, dtype=np.float32)[..., None] / 255
            part = scene[box[1] : box[3], box[0] : box[2]]
            part[:] = cover * surface + (1 - cover) * part
            index = list(SHAPES).index(shape) * len(COLOURS) + list(COLOURS).index(colour)
            found.append((index, box))
        if len(found) == count:
            return develop(rng, scene), found


def develop(rng, scene: np.ndarray) -> Image.Image:
    """Add what a camera adds, exposure, blur and grain: (H, W, 3) -> image."""
    H, W, _ = scene.shape
    exposed = Image.fromarray((scene * rng.uniform(0.85, 1.1)).clip(0, 255).astype(np.uint8))
    blurred = exposed.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.005) * min(H, W)))
    grain = rng.integers(0, 256, (H, W), dtype=np.uint8)
    # Two uniform fields make triangular noise; a shift of the rows makes the second.
    triangular = (grain.astype(np.float32) + np.roll(grain, 7, axis=0)) / 255 - 1
    noisy = np.asarray(blurred, dtype=np.float32) + rng.uniform(0, 25) * triangular[..., None]
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def scene_rng(seed: int, number: int) -> np.random.Generator:
    """Return the random number generator of one scene of a data set.

    Args:
        seed: the data set's seed.
        number: the scene's number, from 1.
    """
    return np.random.default_rng([seed, number])


def annotation(name: str, size: tuple[int, int], objects) -> str:
    """Write the scene's XML as ImageNet does."""
    lines = [
        f"<annotation><folder>val</folder><filename>{name}</filename>",
        "<source><database>scenes</database></source>",
        f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>",
        "<segmented>0</segmented>",
    ]
    for index, (x0, y0, x1, y1) in objects:
        corners = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1 - 1}</xmax><ymax>{y1 - 1}</ymax>"
        lines.append(f"<object><name>{classes()[index][0]}</name><bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])


def write_scenes(
    out: Path, count: int, seed: int, size: tuple[int, int], objects: int | None = None, same: bool = False
) -> None:
    """Write a data set of drawn scenes in ImageNet's official layout, atomically.

    Args:
        out: a new or empty folder, as a `pathlib.Path`.
        count: number of scenes.
        seed: seed of the random numbers.
        size: (W, H) of each scene in pixels.
        objects: number of objects in each scene, 1 to 3; None means a random number.
        same: whether all objects of a scene are of one class.

    Raises:
        VLScoreError: the folder is not empty.
        OSError: the folder cannot be written.
    """
    check_new_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as part:
        _write_to(Path(part) / "scenes", count, seed, size, objects, same)
        os.replace(Path(part) / "scenes", out)


def _write_to(out, count, seed, size, objects, same):
    for folder in ("val", "bbox/val"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    numbers = [number for number, _ in classes()]
    lines = [f"{number} {', '.join(names)}\n" for number, names in classes()]
    (out / "LOC_synset_mapping.txt").write_text("".join(lines))
    rows = ["ImageId,PredictionString\n"]
    for n in range(1, count + 1):
        name = f"scenes_val_{n:08}"
        image, found = draw_scene(scene_rng(seed, n), size, objects, same)
        image.save(out / f"val/{name}.JPEG", quality=92)
        (out / f"bbox/val/{name}.xml").write_text(annotation(name, size, found))
        boxes = [box for index, box in found if index == found[0][0]]
        label = numbers[found[0][0]]
        rows.append(
            f"{name}," + " ".join(f"{label} {x0} {y0} {x1 - 1} {y1 - 1}" for x0, y0, x1, y1 in boxes) + "\n"
        )
    (out / "LOC_val_solution.csv").write_text("".join(rows))
