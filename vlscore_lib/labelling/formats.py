"""Labels in the formats that other tools read: COCO, Pascal VOC, YOLO and Label Studio."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import quote
from xml.etree import ElementTree

from vlscore_lib.errors import VLScoreError, check_choice
from vlscore_lib.files import write_whole
from vlscore_lib.labelling.labels import LabelledPhoto


def write_labels(photos: list[LabelledPhoto], classes: list[str], form: str, out, folder) -> None:
    """Write the labels of photos in a format; each file is written atomically.

    Args:
        photos: the labelled photos.  Set each ``place`` to the path below ``folder``, with slashes, such as
            ``"cats/a.jpg"``.
        classes: all classes that were looked for, in the order of their numbers.
        form: one of `LABEL_FORMATS`.
        out: the folder to write into; it is created if it does not exist.
        folder: the folder of the photos, which VOC, YOLO and Label Studio files name.

    Raises:
        VLScoreError: the format is unknown, or a place is not a path below the folder.
        OSError: a file cannot be written.
    """
    for name, content in format_labels(photos, classes, form, folder):
        file = Path(out) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)


def format_labels(photos: list[LabelledPhoto], classes: list[str], form: str, folder):
    """Format the labels of photos: an iterator over the relative path and the bytes of each file.

    Args:
        photos: the labelled photos; their ``place`` is the path below ``folder``, see `write_labels`.
        classes: all classes that were looked for, in the order of their numbers.
        form: one of `LABEL_FORMATS`.
        folder: the folder of the photos.

    Raises:
        VLScoreError: the format is unknown, or a place is not a path below the folder.
    """
    check_choice(form, FORMATS, "format")
    for photo in photos:
        check_place(photo.place)
    yield from FORMATS[form](photos, classes, Path(folder))


def check_place(place: str) -> None:
    """Check that a place is a path below the photos' folder, since labels are written beside it."""
    path = PurePosixPath(place)
    if path.is_absolute() or ".." in path.parts:
        raise VLScoreError(
            f"{place} is not a path below the folder of the photos: set the photo's place to it"
        )


def to_bytes(facts) -> bytes:
    return (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")


def format_coco(photos, classes, folder) -> Iterator[tuple[str, bytes]]:
    """Format as COCO's JSON (Lin et al. 2014): images, categories, and annotations with a score."""
    images, annotations = [], []
    for number, photo in enumerate(photos, 1):
        W, H = photo.size
        images.append({"id": number, "file_name": photo.place, "width": W, "height": H})
        for each in photo.boxes:
            x0, y0, x1, y1 = each.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": classes.index(each.label) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "score": each.score,
                }
            )
    categories = [{"id": n, "name": name, "supercategory": ""} for n, name in enumerate(classes, 1)]
    yield "coco.json", to_bytes({"images": images, "annotations": annotations, "categories": categories})


def name_files(photos, ending: str) -> list[str]:
    """Name a file for each photo, in the photos' folders; ``a.jpg`` next to ``a.png`` keep their endings."""
    plain = [PurePosixPath(photo.place).with_suffix(ending) for photo in photos]
    times = Counter(plain)
    return [str(name) if times[name] == 1 else f"{photo.place}{ending}" for name, photo in zip(plain, photos)]


def format_voc(photos, classes, folder) -> Iterator[tuple[str, bytes]]:
    """Format as Pascal VOC's XML: a file for each photo, in the photos' folders; last pixels are included."""
    for photo, name in zip(photos, name_files(photos, ".xml")):
        root = ElementTree.Element("annotation")
        place = PurePosixPath(photo.place)

        def add(parent, tag, text=None):
            child = ElementTree.SubElement(parent, tag)
            child.text = None if text is None else str(text)
            return child

        add(root, "folder", folder.joinpath(place).parent.name)
        add(root, "filename", place.name)
        size = add(root, "size")
        for tag, value in zip(("width", "height", "depth"), (*photo.size, 3)):
            add(size, tag, value)
        add(root, "segmented", 0)
        for each in photo.boxes:
            one = add(root, "object")
            for tag, value in (
                ("name", each.label),
                ("pose", "Unspecified"),
                ("truncated", 0),
                ("difficult", 0),
            ):
                add(one, tag, value)
            add(one, "score", f"{each.score:.6f}")
            box = add(one, "bndbox")
            x0, y0, x1, y1 = each.box
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), (x0, y0, x1 - 1, y1 - 1)):
                add(box, tag, value)
        ElementTree.indent(root)
        yield name, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def format_yolo(photos, classes, folder) -> Iterator[tuple[str, bytes]]:
    """Format as YOLO's text: class, centre and size as shares of the photo's sides; ``data.yaml`` names the
    classes.

    A YOLO training set has no scores; the journal has them.
    """
    for photo, name in zip(photos, name_files(photos, ".txt")):
        W, H = photo.size
        rows = []
        for each in photo.boxes:
            x0, y0, x1, y1 = each.box
            shares = ((x0 + x1) / 2 / W, (y0 + y1) / 2 / H, (x1 - x0) / W, (y1 - y0) / H)
            rows.append(" ".join([str(classes.index(each.label)), *(f"{share:.6f}" for share in shares)]))
        yield f"labels/{name}", "".join(f"{row}\n" for row in rows).encode()
    quoted = [f"  {n}: {json.dumps(name, ensure_ascii=False)}" for n, name in enumerate(classes)]
    path = json.dumps(str(folder.resolve()), ensure_ascii=False)
    lines = [f"path: {path}", "train: .", "val: .", f"nc: {len(classes)}", "names:", *quoted]
    yield "data.yaml", ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def format_label_studio(photos, classes, folder) -> Iterator[tuple[str, bytes]]:
    """Format as Label Studio's tasks with predictions, and the view to show them.

    The photos are named as its local storage serves them if the document root holds the photos' folder.
    """
    tasks = []
    for photo in photos:
        W, H = photo.size
        result = []
        for n, each in enumerate(photo.boxes, 1):
            x0, y0, x1, y1 = each.box
            value = {
                "x": 100 * x0 / W,
                "y": 100 * y0 / H,
                "width": 100 * (x1 - x0) / W,
                "height": 100 * (y1 - y0) / H,
                "rotation": 0,
                "rectanglelabels": [each.label],
            }
            of = {"id": f"box{n}", "type": "rectanglelabels", "from_name": "label", "to_name": "image"}
            result.append(
                of | {"original_width": W, "original_height": H, "value": value, "score": each.score}
            )
        scores = [each.score for each in photo.boxes]
        prediction = {"model_version": "vlscore", "score": max(scores, default=0.0), "result": result}
        # Label Studio serves only folders below its document root, here the folder that holds this one.
        place = PurePosixPath(folder.resolve().name, photo.place)
        image = "/data/local-files/?d=" + quote(str(place), errors="surrogateescape")
        tasks.append({"data": {"image": image}, "predictions": [prediction]})
    yield "label-studio.json", to_bytes(tasks)
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    labels = ElementTree.SubElement(view, "RectangleLabels", name="label", toName="image")
    for name in classes:
        ElementTree.SubElement(labels, "Label", value=name)
    ElementTree.indent(view)
    yield "label-studio.xml", ElementTree.tostring(view, encoding="utf-8") + b"\n"


FORMATS = {
    "coco": format_coco,
    "voc": format_voc,
    "yolo": format_yolo,
    "labelstudio": format_label_studio,
}
