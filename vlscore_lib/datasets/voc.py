"""VOC XML: annotations, and the photos that they belong to."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from vlscore_lib.errors import MissingPackageError, VLScoreError, import_extra


@dataclass(frozen=True)
class AnnotatedPhoto:
    """A photo of a data set with its class, its size and the true boxes of its objects.

    Attributes:
        path: path of the image file.
        label: the photo's class.
        objects: (class, box) of each object; a box is (x0, y0, x1, y1) in pixels of the upright image,
            half-open.
        size: (W, H) of the upright image in pixels.
        place: what identifies the photo in its data set, different for each; if empty, the file's name
            without its ending does.
        is_square_copy: whether the photo is a square copy of one that is not square, with its sides scaled
            separately.
    """

    path: Path
    label: str
    objects: list[tuple[str, tuple[float, float, float, float]]]
    size: tuple[int, int]
    place: str = ""
    is_square_copy: bool = False

    @property
    def name(self) -> str:
        """What identifies the photo in its data set and in an evaluation's records."""
        return self.place or self.path.stem

    @property
    def boxes(self):
        """The boxes (x0, y0, x1, y1) of the objects of the photo's class, in pixels, half-open."""
        return self.boxes_of(self.label)

    def boxes_of(self, label: str):
        """Return the boxes (x0, y0, x1, y1) of the objects of one class, in pixels, half-open."""
        return [box for each, box in self.objects if each == label]


class ListedPhoto(NamedTuple):
    """A photo that a data set lists, before its files are opened.

    Attributes:
        objects: (class, box) of each object, if there is no XML.
        size: (W, H) that these boxes refer to; None means the file's own.
        place: see `AnnotatedPhoto`.
        of_shares: whether these boxes are shares of the upright photo's sides, and not pixels.
        fault: why the photo cannot be used, if that is known before it is opened.
    """

    path: Path
    label: str | None
    xml: Path | None
    objects: list | None = None
    size: tuple[int, int] | None = None
    place: str = ""
    of_shares: bool = False
    fault: str = ""


class Listing(NamedTuple):
    """What a data set lists.

    Attributes:
        photos: each `ListedPhoto`; one without an object has an empty list of objects.
        classes: all classes of the data set, in its order; None if only the photos tell them.
        unannotated: number of photos without an annotation.
    """

    photos: list[ListedPhoto]
    classes: list[str] | None = None
    unannotated: int = 0


def annotate(listed) -> AnnotatedPhoto:
    """Open a listed photo and its annotation, and check that they belong together.

    Raises:
        VLScoreError: the photo or its annotation is missing or broken, shows another class, or has a box
            outside of the image.
    """
    path = listed.path
    if listed.fault:
        raise VLScoreError(listed.fault)
    stored, turned = read_stored_size(path)
    source, size, objects = listed.xml, listed.size, listed.objects
    if source is not None:
        _, size, objects = read_voc(source)
    elif objects is None:
        raise VLScoreError(f"{path} has no annotation {path.stem}.xml")
    if not objects:
        raise VLScoreError(f"{source or path} has no object")
    label = listed.label or objects[0][0]
    if label not in (labels := {label for label, _ in objects}):
        raise VLScoreError(f"{source or path} has {', '.join(sorted(labels))}, but the photo is of {label}")
    upright = turned(stored)
    if listed.of_shares:
        size, sides = upright, 2 * upright
        objects = [(each, tuple(share * side for share, side in zip(box, sides))) for each, box in objects]
    boxes = [box for _, box in objects]
    frame = upright if listed.of_shares else find_frame(size, stored, upright, boxes)
    if frame is None:
        raise VLScoreError(
            f"{source or path} is for {size[0]}×{size[1]} pixels, but the photo {path} has"
            f" {upright[0]}×{upright[1]}: annotate it again, or replace it"
        )
    (W, H), (w, h) = size or frame, frame
    placed = []
    for each, (x0, y0, x1, y1) in objects:
        inside = max(x0, 0), max(y0, 0), min(x1, W), min(y1, H)
        if not (is_near((x0, y0, x1, y1), (W, H)) and inside[0] < inside[2] and inside[1] < inside[3]):
            raise VLScoreError(
                f"{source or path} has a box outside of the image, {x0:g} {y0:g} {x1:g} {y1:g}"
            )
        x0, y0, x1, y1 = inside
        box = (x0 * w / W, y0 * h / H, x1 * w / W, y1 * h / H)
        is_turned = listed.of_shares or frame != stored
        placed.append((each, box if is_turned else turned(stored, box)))
    is_square_copy = w == h and not is_resized((W, H), frame)
    return AnnotatedPhoto(path, label, placed, upright, listed.place, is_square_copy)


def find_frame(size, stored, upright, boxes) -> tuple[int, int] | None:
    """Find which size of a photo its annotation refers to: as stored in the file, or upright.

    A photo may be a smaller copy of the annotated one.  It may also be a square copy of one that is not
    square, each side scaled by its own factor, as in data sets that were prepared for training.

    Args:
        size: (W, H) of the annotation; None if it has none.
        stored, upright: (W, H) of the photo.
        boxes: of the annotation.

    Returns:
        `stored` or `upright`; None if the size is of another photo.
    """
    if size is None:
        fits_stored = all(is_near(box, stored) for box in boxes)
        return stored if fits_stored or not all(is_near(box, upright) for box in boxes) else upright
    frames = [frame for frame in (stored, upright) if is_resized(size, frame)]
    if frames:  # of a photo that is nearly square, the one that is nearer
        return min(frames, key=lambda frame: abs(size[0] * frame[1] - size[1] * frame[0]))
    return stored if stored[0] == stored[1] else None


def is_resized(size, other) -> bool:
    """Tell whether an image of one size is a copy of the other, with its sides rounded to pixels."""
    (W, H), (w, h) = sorted((size, other), reverse=True)  # w × h is the copy
    return max((w - 1) / W, (h - 1) / H) <= min((w + 1) / W, (h + 1) / H)


def is_near(box, size) -> bool:
    """Tell whether a box lies in an image, or at most a pixel outside, as some of ImageNet's do."""
    return box[0] >= -1 and box[1] >= -1 and box[2] <= size[0] + 1 and box[3] <= size[1] + 1


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
        reason = (
            "does not exist" if isinstance(error, FileNotFoundError) else f"is not a complete photo ({error})"
        )
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


def read_voc(path) -> tuple[str, tuple[int, int] | None, list[tuple[str, tuple[float, ...]]]]:
    """Read a VOC XML file in ImageNet's convention: 0-based coordinates, last pixel included.

    The boxes that it returns are half-open, as everywhere: 1 is added to ``xmax`` and ``ymax``.
    Dialects of other tools are read, too: fractions of pixels, padded names, polygons instead of boxes, parts
    of objects (which are ignored), and files without an image's name or size.

    Args:
        path: the XML file.

    Returns:
        The image's folder/filename, as far as given; its (W, H), or None; and a list of (label, box) of the
        objects.

    Raises:
        VLScoreError: the file cannot be read as VOC XML.
    """
    try:
        if os.path.getsize(path) > 1e6:
            raise ValueError("it is larger than a megabyte")
        root = parse_xml(Path(path).read_bytes())
        if root.tag != "annotation":
            raise ValueError(f"it holds {root.tag[:40]}")
        fields = (root.findtext("folder"), root.findtext("filename"))
        file = "/".join(text.strip() for text in fields if text and text.strip())
        size = tuple(round(read_number(root, f"size/{side}", 0)) for side in ("width", "height"))
        if min(size) < 0:
            raise ValueError(f"its size is {size[0]}×{size[1]}")
        objects = [(read_field(each, "name"), read_box(each)) for each in root.iter("object")]
    except MissingPackageError:
        raise
    except Exception as error:  # parsers, defusedxml's refusals, missing or odd fields
        raise VLScoreError(f"{path} is not a VOC annotation ({error}): fix or replace it") from None
    return file, size if min(size) > 0 else None, objects


def parse_xml(content: bytes):
    """Parse XML in any encoding, even if the first line names the wrong one."""
    parse = import_extra("defusedxml.ElementTree", "evaluation").fromstring
    refusal = import_extra("defusedxml", "evaluation").DefusedXmlException
    try:
        return parse(content)
    except refusal:
        raise
    except (
        LookupError,
        ValueError,
        SyntaxError,
    ):  # an encoding of several bytes, or one that is named wrongly
        declared = re.match(rb"""[^<]*<\?xml[^>]*encoding=["']([\w.-]+)""", content)
        for encoding in (declared[1].decode() if declared else "utf-8", "utf-8-sig"):
            with suppress(LookupError, UnicodeDecodeError, SyntaxError):
                return parse(drop_declaration(content.decode(encoding)))
    # A path or a title in another encoding spoils nothing that is read.
    return parse(drop_declaration(content.decode("utf-8-sig", errors="replace")))


def drop_declaration(text: str) -> str:
    """Drop the first line of XML, which names the encoding."""
    return re.sub(r"^[^<]*<\?xml.*?\?>", "", text, flags=re.DOTALL)


def read_box(element) -> tuple[float, ...]:
    """Read the half-open box of an object: its own, or the one around its polygon."""
    if element.find("bndbox") is None and (polygon := element.find("polygon")) is not None:
        points = [
            (each.tag[0], parse_number(each.text, each.tag)) for each in polygon.iter() if len(each) == 0
        ]
        xs, ys = ([value for axis, value in points if axis == each] for each in "xy")
        if not xs or not ys:
            raise ValueError("it has a polygon without corners")
        return min(xs), min(ys), max(xs) + 1, max(ys) + 1
    x0, y0, x1, y1 = (read_number(element, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
    return x0, y0, x1 + 1, y1 + 1


def read_field(element, path):
    if not (text := (element.findtext(path) or "").strip()):
        raise ValueError(f"it has no {path}")
    if "\ufffd" in text:
        raise ValueError(f"its {path} is in an unknown encoding")
    return text


def read_number(element, path, default=None) -> int | float:
    """Read a number in pixels; a whole one is an int."""
    if default is not None and not (element.findtext(path) or "").strip():
        return default
    return parse_number(read_field(element, path), path)


def parse_number(text, name):
    value = float(text)
    if not -1e9 < value < 1e9:
        raise ValueError(f"its {name} is {text[:20]}")
    return int(value) if value.is_integer() else value


def list_files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """List the files of a folder by their endings, without hidden ones."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in endings)
    return sorted(path for path in files if not path.name.startswith("."))


def hand_boxed_photos(folder) -> dict[str, AnnotatedPhoto]:
    """Read the real photos that come with installed packages, with this project's hand-drawn boxes.

    Args:
        folder: the folder ``data/photos``, with a VOC XML file for each photo, which names the package and
            the photo.

    Returns:
        A dict from name to `AnnotatedPhoto`.  The name is that of the XML file without its ending.

    Raises:
        VLScoreError: the folder has no XML files, or a package is not installed.
    """
    photos = {}
    for xml in list_files(Path(folder), (".xml",)):
        file, size, objects = read_voc(xml)
        package, _, inside = file.partition("/")
        if not package.isidentifier() or ".." in Path(inside).parts or Path(inside).is_absolute():
            raise VLScoreError(f"{xml} names {file}, which is not a photo of a package: fix it")
        path = find_package_folder(package, xml) / inside
        if size is None:
            raise VLScoreError(f"{xml} does not give the size of its photo: add it")
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
