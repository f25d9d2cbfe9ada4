"""Crops: each labelled box cut out of its photo, to be deleted or moved to another class, and read back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from vlscore_lib.errors import VLScoreError
from vlscore_lib.files import check_new_folder, write_whole
from vlscore_lib.labelling.labels import LabelledPhoto

LIST = "crops.json"
ENDING = ".jpg"


def name_folders(classes: list[str]) -> dict[str, str]:
    """Name a folder for each class: the class, without what a file system may forbid."""
    found = {}
    for name in classes:
        folder = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name).strip(" .") or "_"
        taken = {each.casefold() for each in found.values()}
        while folder.casefold() in taken:
            folder += "_"
        found[name] = folder
    return found


def cut_crops(photos: list[LabelledPhoto], classes: list[str], folder, out, progress=iter) -> int:
    """Cut each box out of its photo, into ``out/CLASS/SCORE-NUMBER.jpg``, and return the number of crops.

    Args:
        photos: the labelled photos; their ``place`` is the path below ``folder``.
        classes: all classes that were looked for; each has a folder, also if no box has it.
        folder: the folder of the photos.
        out: a new or empty folder.
        progress: a function that wraps the list of photos, such as `tqdm.tqdm`.

    Raises:
        VLScoreError: ``out`` holds files, or a photo cannot be read.
    """
    from vlscore_lib.images import load_image

    out, folders, rows = Path(out), name_folders(classes), []
    check_new_folder(out)
    for name in folders.values():
        (out / name).mkdir(parents=True, exist_ok=True)
    for photo in progress(photos):
        image = load_image(Path(folder, photo.place)) if photo.boxes else None
        for each in photo.boxes:
            name = f"{each.score:.2f}-{len(rows):06}{ENDING}"
            rows.append([name, photo.place, each.label, each.score, each.box])
            content = BytesIO()
            image.crop(each.box).convert("RGB").save(content, "JPEG", quality=90)
            write_whole(out / folders[each.label] / name, content.getvalue())
    facts = {"folders": folders, "crops": rows}
    write_whole(out / LIST, (json.dumps(facts, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape"))
    return len(rows)


def read_kept(photos: list[LabelledPhoto], crops) -> list[LabelledPhoto]:
    """Read which crops are left: the photos with the boxes whose crops were not deleted.

    A box whose crop was moved to the folder of another class has this class.

    Args:
        photos: the labelled photos that `cut_crops` took.
        crops: the folder that it wrote.

    Raises:
        VLScoreError: the folder holds no crops, or those of other labels; or a crop lies where none belongs.
    """
    crops = Path(crops)
    try:
        facts = json.loads((crops / LIST).read_text("utf-8", "surrogateescape"))
        listed = [tuple(row[1:]) for row in facts["crops"]]
        classes = {folder: name for name, folder in facts["folders"].items()}
    except OSError:
        raise VLScoreError(f"{crops} holds no {LIST}: give the folder that `vlscore crops` wrote") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VLScoreError(f"{crops / LIST} is damaged ({error}): cut the crops anew") from None
    boxes = [
        (photo.place, each.label, each.score, list(each.box)) for photo in photos for each in photo.boxes
    ]
    if listed != boxes:
        raise VLScoreError(
            f"{crops} was cut from other labels, or before the last photos: cut the crops anew"
        )
    numbers = {row[0]: n for n, row in enumerate(facts["crops"])}
    kept = {}
    for path in sorted(crops.rglob(f"*{ENDING}")):
        if path.name not in numbers:
            raise VLScoreError(f"{path} is not a crop of these labels: remove it")
        if path.parent.parent != crops or path.parent.name not in classes:
            raise VLScoreError(f"{path} is in no class's folder: move it to one of {', '.join(classes)}")
        if numbers[path.name] in kept:
            raise VLScoreError(f"{path} is there twice: remove one")
        kept[numbers[path.name]] = classes[path.parent.name]
    found, start = [], 0
    for photo in photos:
        numbered = enumerate(photo.boxes, start)
        left = [each._replace(label=kept[n]) for n, each in numbered if n in kept]
        found.append(replace(photo, boxes=left))
        start += len(photo.boxes)
    return found
