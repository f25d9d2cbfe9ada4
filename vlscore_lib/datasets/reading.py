"""Reading a data set: its layout is found, photos are chosen, and every photo is checked."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from vlscore_lib.datasets.imagenet import CLASS_LIST, read_own_classes
from vlscore_lib.datasets.layouts import OWN_LAYOUTS, check_layout, find_layout, list_dataset
from vlscore_lib.datasets.voc import AnnotatedPhoto, ListedPhoto, annotate, read_voc
from vlscore_lib.errors import MissingPackageError, VLScoreError, check_at_least
from vlscore_lib.files import read_lines
from vlscore_lib.photos import photo_endings
from vlscore_lib.prompts import imagenet_classes, imagenet_label


@dataclass(frozen=True)
class Dataset:
    """Photos with ground truth, and the classes they may be of.

    Attributes:
        layout: how the folder is laid out, one of `LAYOUTS`.
        photos: by name.
        classes: class -> its names, in the order of the classes.
        bad: a line for each photo left out, which says why.
        skips_bad: whether a photo that cannot be read later, in a run, is left out as well.
        empty: how many photos were left out since they have no object, or no annotation tells of them.
    """

    layout: str
    photos: list[AnnotatedPhoto]
    classes: dict[str, list[str]]
    bad: list[str]
    skips_bad: bool = False
    empty: int = 0

    @property
    def is_own(self) -> bool:
        """Whether it is of one of the layouts of detection, where a photo may show several classes."""
        return self.layout in OWN_LAYOUTS

    def checksum(self) -> str:
        """SHA-256 over photos, sizes, labels and boxes, the same in every layout."""
        facts = [(photo.path.stem, photo.size, photo.label, photo.boxes) for photo in self.photos]
        return sha256(json.dumps([facts, self.classes]).encode()).hexdigest()


def read_dataset(
    root,
    layout: str | None = None,
    boxes=None,
    names: str = "imagenet",
    limit: int | None = None,
    first: int | None = None,
    ids=None,
    sample: int | None = None,
    seed: int = 0,
    blacklist=None,
    skip_bad: bool = False,
    classes=None,
    progress=iter,
) -> Dataset:
    """Read a data set with boxes, in any of the `LAYOUTS`, and check every photo of it.

    Boxes are scaled where a photo is a resized copy of the one that its annotation tells of.  A photo of a
    data set of detection is there once for each class that it shows.

    Args:
        root: the data set's folder.
        layout: one of `LAYOUTS`; found by looking at the folder.
        boxes: the folder of the XML files, or the file of COCO's or YOLO's, if not found by itself.
        names: of ImageNet's classes: ``"imagenet"``, all synonyms, or ``"clip"``, those of CLIP's authors.
        limit: at most so many photos, of those chosen by the other options.
        first: the first n of all photos, in the order of their names.
        ids: a file that names the photos to take, one a line.
        sample, seed: so many photos at random.
        blacklist: a file that names photos to leave out, or numbers them as ImageNet's devkit does.
        skip_bad: leave out photos that cannot be used.
        classes: a file with the names of classes for the prompts, see `read_class_names`.
        progress: wraps the photos while they are checked.

    Raises:
        VLScoreError: no such layout, or signs of two; photos that cannot be used, each named; a list that
            names an unknown photo; a path that leaves the folder.
    """
    root = Path(root)
    boxes = check_boxes(boxes)
    layout = find_layout(root, boxes) if layout is None else check_layout(root, layout, boxes)
    listing = list_dataset(root, layout, boxes)
    there = [each for each in listing.photos if not is_empty(each, layout)]
    empty = len(listing.photos) - len(there) + listing.unannotated
    listed = name_photos(root, there)
    chosen = choose_photos(list(listed), limit, first, ids, sample, seed, blacklist)
    if not chosen:
        raise VLScoreError(f"{root} has no photo to take: choose others")
    photos, bad = check_photos(add_known_labels([listed[name] for name in chosen]), progress)
    refuse_bad_photos(root, len(photos), bad, skip_bad)
    if layout in OWN_LAYOUTS:
        photos = [each for photo in photos for each in list_by_class(photo)]
    found = choose_classes(root, photos, names, listing.classes)
    if classes is not None:
        found |= read_class_names(classes, found)
    return Dataset(layout, photos, found, bad, skip_bad, empty)


def is_empty(photo: ListedPhoto, layout: str) -> bool:
    """Whether a photo of a data set of detection shows none of its classes."""
    return layout in OWN_LAYOUTS and photo.objects == [] and not photo.fault


def refuse_bad_photos(root, good: int, bad: list[str], skip_bad: bool) -> None:
    """Raises VLScoreError for photos that cannot be used, unless they are to be left out and others stay."""
    if bad and not skip_bad:
        told = "; ".join(bad[:100]) + (f"; and {len(bad) - 100} more" if len(bad) > 100 else "")
        raise VLScoreError(
            f"{len(bad)} of {good + len(bad)} photos cannot be used: {told}. Fix them, or add --skip-bad"
        )
    if not good:
        raise VLScoreError(f"{root} has no photo that can be used: {bad[0]}")


def check_boxes(boxes) -> Path | None:
    """The folder or file of annotations that was given.

    Raises:
        VLScoreError: it is not there.
    """
    if boxes is None or Path(boxes).exists():
        return Path(boxes) if boxes else None
    raise VLScoreError(f"{boxes} does not exist: give the folder or file of the annotations")


def list_by_class(photo: AnnotatedPhoto) -> list[AnnotatedPhoto]:
    """A photo once for each class that it shows; several tell the class behind the photo's name."""
    labels = list(dict.fromkeys(label for label, _ in photo.objects))
    if len(labels) == 1:
        return [photo]
    return [replace(photo, label=label, place=f"{photo.name} ({label})") for label in labels]


def read_class_names(path, classes) -> dict[str, list[str]]:
    """Read names for the prompts, a line ``label: name, name`` for each class that has others.

    Raises:
        VLScoreError: no such file, a line that is not of this form, or a class that is not there.
    """
    found = {}
    for number, line in enumerate(read_lines(path, "lines like 'label: name, name'"), start=1):
        if not line.strip():
            continue
        label, _, rest = (part.strip() for part in line.partition(":"))
        names = [name.strip() for name in rest.split(",") if name.strip()]
        if not names:
            raise VLScoreError(
                f"{path}, line {number}: {line[:40]!r} is no 'label: name, name': fix the line"
            )
        if label not in classes:
            raise VLScoreError(f"{path}, line {number}: there is no class {label!r}: take the line out")
        found[label] = names
    return found


def name_photos(root, listed) -> dict[str, ListedPhoto]:
    """Photos by what identifies them, in the order of their files' names.

    That is the file's name without its ending, which is the same in every layout; in a data set where
    such names repeat, it is the path in the folder that all photos are in, for every photo.
    """
    listed = sorted(listed, key=lambda each: (each.path.stem, each.path))
    names = [each.path.stem for each in listed]
    if len(set(names)) < len(names):
        common = os.path.commonpath([each.path.parent for each in listed])
        names = [each.path.relative_to(common).with_suffix("").as_posix() for each in listed]
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise VLScoreError(f"{root} has two photos named {repeated[0]}: take one out")
    return {name: each._replace(place=name) for name, each in zip(names, listed)}


def choose_photos(names, limit, first, ids, sample, seed, blacklist):
    """Choose photos by name, see `read_dataset`."""
    for option, value in (("--limit", limit), ("--first", first), ("--sample", sample)):
        check_at_least(1, value, option)
    check_at_least(0, seed, "--seed")
    chosen = names[:first]
    if ids is not None:
        wanted, unknown = find_names(ids, names)
        if unknown:
            raise VLScoreError(f"{ids} names {unknown[0]}, which is not there: take it out")
        chosen = [name for name in chosen if name in wanted]
    if blacklist is not None:
        left_out, _ = find_names(blacklist, names)
        chosen = [name for name in chosen if name not in left_out]
    if sample is not None:
        rows = np.random.default_rng(seed).permutation(len(chosen))[:sample]
        chosen = [chosen[row] for row in sorted(rows)]
    return chosen[:limit]


def find_names(path, names) -> tuple[set[str], list[str]]:
    """The photos that a list names, and what it names beside them.

    Raises:
        VLScoreError: no such list, or a name that several photos have.
    """
    places = {}  # by a name, and by each end of a path
    for name in names:
        parts = Path(name).parts
        for start in range(len(parts)):
            places.setdefault(parts[start:], []).append(name)
    found, unknown = set(), []
    for word in sorted(read_names(path)):
        parts = strip_ending(Path(word)).parts
        tails = (parts[start:] for start in range(len(parts)))  # a list may tell more folders, or fewer
        matches = next((places[tail] for tail in tails if tail in places), [])
        if len(matches) > 1:
            raise VLScoreError(f"{path} names {word}, as {len(matches)} photos are: write its folder too")
        found.update(matches)
        unknown += [] if matches else [word]
    return found, unknown


def read_names(path) -> set[str]:
    """The names in a list, one a line; a bare number is that of an ImageNet validation photo."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VLScoreError(f"{path} cannot be read ({error}): give a list of photos, one a line") from None
    words = [line.split()[0] for line in lines if line.strip()]
    if long := next((each for each in words if len(Path(each).name) > 255), None):
        raise VLScoreError(f"{path} names {long[:40]}…, which is no photo: take it out")
    return {f"ILSVRC2012_val_{int(each):08}" if each.isdecimal() else each for each in words}


def strip_ending(path: Path) -> Path:
    """A photo's path without its ending."""
    return path.with_suffix("") if path.suffix.lower() in photo_endings() else path


def add_known_labels(listed):
    """Give photos of ImageNet's validation set their known labels, where nothing else tells them.

    Another set may use the same file names; then most annotations disagree, and tell the labels themselves.
    """
    known, agreeing = {}, 0
    for each in listed:
        label = imagenet_label(each.path.stem) if each.label is None and each.xml else None
        with suppress(VLScoreError):  # a broken annotation is told of later
            if label is not None:
                told = [object_label for object_label, _ in read_voc(each.xml)[2]]
                known[each.path], agreeing = label, agreeing + (label in told)
    if agreeing * 2 <= len(known):
        return listed
    return [each._replace(label=known.get(each.path, each.label)) for each in listed]


def check_photos(listed, progress):
    """Open every photo and annotation: photos that can be used, and a line for each other one."""

    def check(each):
        try:
            return annotate(each)
        except MissingPackageError:  # is no fault of the photo
            raise
        except VLScoreError as error:
            return str(error)

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of Pillow; here, since the filters are not each thread's own
        found = list(progress(pool.map(check, listed)))
    photos = [each for each in found if isinstance(each, AnnotatedPhoto)]
    return photos, [each for each in found if isinstance(each, str)]


def choose_classes(root, photos, names, listed):
    """ImageNet's classes if all photos are of them, else those of the folder's own list, or of the photos.

    Args:
        listed: what the data set itself lists, or None.
    """
    labels = {photo.label for photo in photos}
    if labels <= set(classes := imagenet_classes(names)):
        return classes
    own = {label: [label.replace("_", " ")] for label in listed or sorted(labels)}
    classes = read_own_classes(root) or own
    if missing := sorted(labels - set(classes)):
        raise VLScoreError(f"{root / CLASS_LIST} does not name the class {missing[0]}: add it")
    if missing := sorted(label for label, names in classes.items() if names == [label] and is_wnid(label)):
        raise VLScoreError(f"{root} does not name the class {missing[0]}: put a {CLASS_LIST} there")
    return classes


def is_wnid(label):
    return label.startswith("n") and label[1:].isdecimal()
