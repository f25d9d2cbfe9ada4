"""The labels of photos, and the journal that keeps them photo by photo."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vlscore_lib.errors import VLScoreError
from vlscore_lib.files import write_whole

JOURNAL = "labels.jsonl"
UNFINISHED = ".vlscore-"  # prefix of a file that a killed process left half-written, see `write_whole`


class LabelledBox(NamedTuple):
    """A box that was found in a photo, with its class and its score.

    Attributes:
        label: name of the class.
        score: in [0, 1], the model's confidence in the class times the peak of the heat map in the box, see
            `Labeller`; it sorts boxes, and is not a probability.
        box: (x0, y0, x1, y1) in pixels of the upright photo, half-open.
    """

    label: str
    score: float
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo with the boxes that were found in it.

    Attributes:
        place: path of the photo.  A `Labeller` puts in the path that it was called with; `write_labels` needs
            the path below the photos' folder, with slashes.
        size: (W, H) of the upright photo in pixels.
        boxes (list[LabelledBox]): boxes of all classes that were found, in the order of the classes; empty if
            none was found.
    """

    place: str
    size: tuple[int, int]
    boxes: list[LabelledBox]


def check_classes(classes) -> dict[str, list[str]]:
    """Check class names, and return a dict from each class to its names.

    Args:
        classes: a list of names, or a dict from each class to its names.

    Raises:
        VLScoreError: there is no class, a class without a name, or one that is named twice.
    """
    if isinstance(classes, str):
        raise VLScoreError(f"expected a list of classes, not one text: write [{classes!r}]")
    names = [str(each).strip() for each in classes]
    if not names or not all(names):
        raise VLScoreError(
            "there is no class to look for, or one without a name: give names, such as dog,cat"
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise VLScoreError(f"the class {twice!r} is named twice: remove one")
    lists = classes.values() if isinstance(classes, dict) else ([name] for name in names)
    return dict(zip(names, map(list, lists)))


class Journal:
    """A file with one line for each finished photo, from which an interrupted labelling run can resume.

    The first line holds the parameters.  A last line that was cut short is dropped.

    Args:
        folder: the folder for the file ``labels.jsonl``; it is created if it does not exist.
        parameters: a dict of all that the labels depend on, such as the model, the classes and the options;
            its values are JSON-compatible.

    Attributes:
        photos: a dict from path below the folder to the `LabelledPhoto` of each finished photo.
        skipped: a dict from path below the folder to why a photo was left out.

    Raises:
        VLScoreError: the folder holds files but no ``labels.jsonl``, or one with other parameters.
    """

    def __init__(self, folder, parameters: dict):
        self.folder, self.parameters = Path(folder), json.loads(json.dumps(parameters))
        self.file = self.folder / JOURNAL
        if self.folder.exists() and not self.folder.is_dir():
            raise VLScoreError(f"{folder} is a file: choose a folder for the labels")
        if not self.file.exists():
            others = [each for each in self.folder.glob("*") if not each.name.startswith(UNFINISHED)]
            if others:
                raise VLScoreError(f"{folder} holds files other than labels: choose an empty folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.file, encode_line({"parameters": self.parameters}))
        self.photos: dict[str, LabelledPhoto] = {}
        self.skipped: dict[str, str] = {}
        self.read()

    @classmethod
    def open(cls, folder) -> Journal:
        """Open the journal that a folder holds, whatever its parameters.

        Raises:
            VLScoreError: the folder holds no ``labels.jsonl``, or a damaged one.
        """
        try:
            with (Path(folder) / JOURNAL).open(encoding="utf-8", errors="surrogateescape") as lines:
                parameters = json.loads(lines.readline())["parameters"]
        except OSError:
            raise VLScoreError(
                f"{folder} holds no {JOURNAL}: give the folder that `vlscore label` wrote"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise VLScoreError(
                f"{Path(folder) / JOURNAL} is damaged ({error}): label the photos anew"
            ) from None
        return cls(folder, parameters)

    def read(self) -> None:
        """Read the finished photos, and drop a line that was cut short."""
        content = self.file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            first, *lines = map(json.loads, whole.decode("utf-8", "surrogateescape").split("\n")[:-1])
            other = first["parameters"] != self.parameters
            for line in [] if other else lines:
                if "skipped" in line:
                    self.skipped[line["photo"]] = line["skipped"]
                else:
                    boxes = [LabelledBox(label, score, tuple(box)) for label, score, box in line["boxes"]]
                    self.photos[line["photo"]] = LabelledPhoto(line["photo"], tuple(line["size"]), boxes)
        except (ValueError, KeyError, TypeError) as error:
            raise VLScoreError(f"{self.file} is damaged ({error}): delete {self.folder}") from None
        if other:
            told = {key for key, value in self.parameters.items() if first["parameters"].get(key) != value}
            raise VLScoreError(
                f"{self.folder} holds labels made with other {', '.join(sorted(told)) or 'options'}:"
                " choose another folder"
            )
        if len(whole) < len(content):
            write_whole(self.file, whole)

    def is_done(self, place: str) -> bool:
        """Tell whether the photo at this path below the folder is finished or was left out."""
        return place in self.photos or place in self.skipped

    def add(self, photo: LabelledPhoto) -> None:
        """Store a finished photo."""
        self.photos[photo.place] = photo
        boxes = [[each.label, each.score, each.box] for each in photo.boxes]
        self.append({"photo": photo.place, "size": photo.size, "boxes": boxes})

    def skip(self, place: str, why: str) -> None:
        """Store that a photo cannot be used, and why."""
        self.skipped[place] = why
        self.append({"photo": place, "skipped": why})

    def append(self, facts: dict) -> None:
        """Append a line to the file, and flush it to disk."""
        with self.file.open("ab") as file:
            file.write(encode_line(facts))
            file.flush()
            os.fsync(file.fileno())


def encode_line(facts: dict) -> bytes:
    return (json.dumps(facts, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")
