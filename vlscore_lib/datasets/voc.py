"""VOC XML: annotations, and the photos that they belong to."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from vlscore_lib.errors import VLScoreError, import_extra


@dataclass(frozen=True)
class AnnotatedPhoto:
    """A photo with ground truth.

    Attributes:
        path: of the image file.
        label: the photo's class.
        objects: (class, box) of each; (x0, y0, x1, y1) in pixels of the upright image, half-open.
        size: (W, H) of the upright image.
    """

    path: Path
    label: str
    objects: list[tuple[str, tuple[float, float, float, float]]]
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """The file's name without its ending: the photo's, however the data set is laid out."""
        return self.path.stem

    @property
    def boxes(self):
        """The boxes of the photo's class."""
        return self.boxes_of(self.label)

    def boxes_of(self, label: str):
        """The boxes of the objects of one class."""
        return [box for each, box in self.objects if each == label]


class ListedPhoto(NamedTuple):
    """A photo that a data set lists, before its files are opened.

    Attributes:
        objects: (class, box) of each where no XML tells them.
        size: (W, H) that these boxes are in, if not the file's own.
    """

    path: Path
    label: str | None
    xml: Path | None
    objects: list | None = None
    size: tuple[int, int] | None = None


def annotate(listed) -> AnnotatedPhoto:
    """Open a listed photo and its annotation, and check that they belong together.

    Raises:
        VLScoreError: the photo or its annotation is missing or broken, of another class, or has a box
            outside of the image.
    """
    path = listed.path
    stored, turned = read_stored_size(path)
    source, size, objects = listed.xml, listed.size or stored, listed.objects
    if source is not None:
        _, size, objects = read_voc(source)
    elif objects is None:
        raise VLScoreError(f"{path} has no annotation {path.stem}.xml")
    if not objects:
        raise VLScoreError(f"{source or path} has no object")
    label = listed.label or objects[0][0]
    if label not in (labels := {label for label, _ in objects}):
        raise VLScoreError(f"{source or path} tells of {', '.join(sorted(labels))}, the photo is of {label}")
    (W, H), upright = size, turned(stored)
    # An annotation may be of the stored or of the upright photo: the shape tells, else it is the stored.
    is_upright = upright != stored and abs(W / H - upright[0] / upright[1]) < abs(
        W / H - stored[0] / stored[1]
    )
    placed = []
    for each, (x0, y0, x1, y1) in objects:
        near = x0 >= -1 and x1 <= W + 1 and y0 >= -1 and y1 <= H + 1  # ImageNet has boxes one pixel too far
        inside = max(x0, 0), max(y0, 0), min(x1, W), min(y1, H)
        if not (near and inside[0] < inside[2] and inside[1] < inside[3]):
            raise VLScoreError(
                f"{source or path} has a box outside of the image, {x0:g} {y0:g} {x1:g} {y1:g}"
            )
        x0, y0, x1, y1 = inside
        w, h = upright if is_upright else stored
        box = (x0 * w / W, y0 * h / H, x1 * w / W, y1 * h / H)
        placed.append((each, box if is_upright else turned(stored, box)))
    return AnnotatedPhoto(path, label, placed, upright)


def read_stored_size(path):
    """Decode a photo -> its stored (W, H), and a function that turns a size, or a box in it, upright."""
    from PIL import Image

    from vlscore_lib.images import TURNS, open_image, read_orientation, stored_size

    try:
        with open_image(path) as image:
            stored = stored_size(image)
            if stored[0] * stored[1] > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"it has {stored[0] * stored[1] / 1e6:.0f} megapixels")
            transposed, mirrored, flipped = TURNS.get(read_orientation(image), (0, 0, 0))
            image.draft("RGB", (1, 1))  # all of a JPEG is read, but no more than an eighth computed
            image.load()
    except Exception as error:  # Pillow's decoders raise nearly any type on a broken file
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"is no whole photo ({error})"
        raise VLScoreError(f"{path} {reason}".splitlines()[0]) from None

    def turned(size, box=None):
        W, H = size[::-1] if transposed else size
        if box is None:
            return W, H
        x0, y0, x1, y1 = (box[1], box[0], box[3], box[2]) if transposed else box
        x0, x1 = (W - x1, W - x0) if mirrored else (x0, x1)
        y0, y1 = (H - y1, H - y0) if flipped else (y0, y1)
        return x0, y0, x1, y1

    return stored, turned


def read_voc(path) -> tuple[str, tuple[int, int], list[tuple[str, tuple[int, int, int, int]]]]:
    """Read a VOC XML with ImageNet's convention: 0-based coordinates, the last pixel included.

    Returns:
        The image's folder/filename, its (W, H), and (label, half-open box) for each object.

    Raises:
        VLScoreError: not such a file.
    """
    parse = import_extra("defusedxml.ElementTree", "evaluation").parse
    try:
        if os.path.getsize(path) > 1e6:
            raise ValueError("it is larger than a megabyte")
        root = parse(path).getroot()
        file = f"{read_field(root, 'folder')}/{read_field(root, 'filename')}"
        size = read_whole_number(root, "size/width"), read_whole_number(root, "size/height")
        if min(size) < 1:
            raise ValueError(f"its size is {size[0]}×{size[1]}")
        objects = []
        for each in root.iter("object"):
            corners = (read_whole_number(each, f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax"))
            x0, y0, x1, y1 = corners
            objects.append((read_field(each, "name"), (x0, y0, x1 + 1, y1 + 1)))
    except Exception as error:  # parsers, defusedxml's refusals, missing or odd fields
        raise VLScoreError(f"{path} is no VOC annotation ({error}): fix or replace it") from None
    return file, size, objects


def read_field(element, path):
    if not (text := element.findtext(path)):
        raise ValueError(f"it has no {path}")
    return text


def read_whole_number(element, path):
    if len(text := read_field(element, path)) > 9:
        raise ValueError(f"its {path} has {len(text)} digits")
    return int(text)


def hand_boxed_photos(folder) -> dict[str, AnnotatedPhoto]:
    """The real photos that come with installed packages, with our hand-drawn boxes.

    Args:
        folder: of one VOC XML a photo (``data/photos``); its ``folder`` field starts with the
            package that holds the photo.

    Returns:
        Annotated photos by name, the name of the XML.

    Raises:
        VLScoreError: no annotations there, or a package that is not installed.
    """
    photos = {}
    for xml in sorted(Path(folder).glob("*.xml")):
        file, size, objects = read_voc(xml)
        package, _, inside = file.partition("/")
        if not package.isidentifier() or ".." in Path(inside).parts or Path(inside).is_absolute():
            raise VLScoreError(f"{xml} names {file}, which is no photo of a package: fix it")
        path = find_package_folder(package, xml) / inside
        photos[xml.stem] = AnnotatedPhoto(path, objects[0][0] if objects else "", objects, size)
    if not photos:
        raise VLScoreError(f"{folder} holds no XML files: give the folder data/photos")
    return photos


def find_package_folder(package, xml):
    spec = None
    with suppress(ValueError):  # a module that was not imported as others are
        spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise VLScoreError(f"{xml} needs the package {package}: install it from requirements.txt")
    return Path(spec.submodule_search_locations[0])
