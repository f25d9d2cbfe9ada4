"""Reading a data set: the layout is found, photos are chosen, and every photo is checked."""

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
    """Photos with ground truth, and the classes that they may show.

    Attributes:
        layout: how the folder is laid out, one of `LAYOUTS`.
        photos (list[AnnotatedPhoto]): the photos, in the order of their names.
        classes: a dict from class to its names, in order, which `evaluate` puts in prompts.
        bad: a line for each photo that was left out, which says why.
        skips_bad: whether an evaluation also leaves out photos that can no longer be read.
        empty: number of photos that were left out because they show no object or have no annotation.
    """

    layout: str
    photos: list[AnnotatedPhoto]
    classes: dict[str, list[str]]
    bad: list[str]
    skips_bad: bool = False
    empty: int = 0

    @property
    def is_own(self) -> bool:
        """Whether the layout is ``coco``, ``yolo`` or ``voc``, where a photo may show several classes."""
        return self.layout in OWN_LAYOUTS

    def checksum(self) -> str:
        """Compute the SHA-256 over names, sizes, labels, boxes and classes, but not the photos' folders."""
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

    If a photo is a resized copy of the annotated one, its boxes are scaled.  In the layouts ``coco``,
    ``yolo`` and ``voc``, a photo is listed once for each class that it shows.  The photos are chosen by
    ``first``, ``ids``, ``blacklist``, ``sample`` and ``limit``, each from what the one before it has left.

    Args:
        root: the data set's folder.
        layout: one of `LAYOUTS`; None means to look at the folder.
        boxes: the folder of XML files, or the file of COCO or YOLO; None means to look for it.
        names: of ImageNet's classes, ``"imagenet"`` or ``"clip"``, see `imagenet_classes`.
        limit: keep at most this number of photos, 1 or more, in the order of their names.
        first: take the first n photos of the data set, 1 or more, in the order of their names.
        ids: a file with the names of the photos to take, one in each line.
        sample: take this number of photos at random, 1 or more.
        seed: seed of the random choice, 0 or more.
        blacklist: a file that lists photos to leave out, one in each line, by name, or by number in
            ImageNet's development kit.
        skip_bad: leave out photos that cannot be used, after all choices.
        classes: a text file that changes names in prompts by lines such as ``cat: cat, kitten``.
        progress: a function that wraps the photos while they are checked.

    Raises:
        VLScoreError: the layout is unknown or ambiguous; photos cannot be used, which are listed; a list
            names an unknown photo; or a path leads out of the folder.
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
        raise VLScoreError(f"{root} has none of the photos asked for: choose others")
    photos, bad = check_photos(add_known_labels([listed[name] for name in chosen]), progress)
    refuse_bad_photos(root, len(photos), bad, skip_bad)
    if layout in OWN_LAYOUTS:
        photos = [each for photo in photos for each in list_by_class(photo)]
    found = choose_classes(root, photos, names, listing.classes)
    if classes is not None:
        found |= read_class_names(classes, found)
    return Dataset(layout, photos, found, bad, skip_bad, empty)


def is_empty(photo: ListedPhoto, layout: str) -> bool:
    """Tell whether a photo of a data set for detection shows none of its classes."""
    return layout in OWN_LAYOUTS and photo.objects == [] and not photo.fault


def refuse_bad_photos(root, good: int, bad: list[str], skip_bad: bool) -> None:
    """Raise VLScoreError for photos that cannot be used, unless they are to be left out and others remain."""
    if bad and not skip_bad:
        told = "; ".join(bad[:100]) + (f"; and {len(bad) - 100} more" if len(bad) > 100 else "")
        raise VLScoreError(
            f"{len(bad)} of {good + len(bad)} photos cannot be used: {told}. Fix them, or add --skip-bad"
        )
    if not good:
        raise VLScoreError(f"{root} has no photo that can be used: {bad[0]}")


def check_boxes(boxes) -> Path | None:
    """Check the folder or file of annotations that was given.

    Raises:
        VLScoreError: it does not exist.
    """
    if boxes is None or Path(boxes).exists():
        return Path(boxes) if boxes else None
    raise VLScoreError(f"{boxes} does not exist: give the folder or file of the annotations")


def list_by_class(photo: AnnotatedPhoto) -> list[AnnotatedPhoto]:
    """List a photo once for each class that it shows; if there are several, its name includes the class."""
    labels = list(dict.fromkeys(label for label, _ in photo.objects))
    if len(labels) == 1:
        return [photo]
    return [replace(photo, label=label, place=f"{photo.name} ({label})") for label in labels]


def read_class_names(path, classes) -> dict[str, list[str]]:
    """Read names for the prompts, a line ``label: name, name`` for each class with other names.

    Raises:
        VLScoreError: the file does not exist, a line has another form, or a class is unknown.
    """
    found = {}
    for number, line in enumerate(read_lines(path, "lines like 'label: name, name'"), start=1):
        if not line.strip():
            continue
        label, _, rest = (part.strip() for part in line.partition(":"))
        names = [name.strip() for name in rest.split(",") if name.strip()]
        if not names:
            raise VLScoreError(
                f"{path}, line {number}: {line[:40]!r} is not 'label: name, name': fix the line"
            )
        if label not in classes:
            raise VLScoreError(f"{path}, line {number}: there is no class {label!r}: remove the line")
        found[label] = names
    return found


def name_photos(root, listed) -> dict[str, ListedPhoto]:
    """Map each photo's identifying name to the photo, in the order of the file names.

    The name is the file's name without its ending, which is the same in every layout.  In a data set where
    such names repeat, every photo is named by its path below the folder that all photos share.
    """
    listed = sorted(listed, key=lambda each: (each.path.stem, each.path))
    names = [each.path.stem for each in listed]
    if len(set(names)) < len(names):
        common = os.path.commonpath([each.path.parent for each in listed])
        names = [each.path.relative_to(common).with_suffix("").as_posix() for each in listed]
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise VLScoreError(f"{root} has two photos named {repeated[0]}: remove one")
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
            raise VLScoreError(f"{ids} names {unknown[0]}, which is not there: remove it")
        chosen = [name for name in chosen if name in wanted]
    if blacklist is not None:
        left_out, _ = find_names(blacklist, names)
        chosen = [name for name in chosen if name not in left_out]
    if sample is not None:
        rows = np.random.default_rng(seed).permutation(len(chosen))[:sample]
        chosen = [chosen[row] for row in sorted(rows)]
    return chosen[:limit]


def find_names(path, names) -> tuple[set[str], list[str]]:
    """Find the photos that a list names, and the other names in it.

    A line may be a name with spaces, or a name followed by something else, such as a class.

    Raises:
        VLScoreError: the list does not exist, or several photos have a name in it.
    """
    places = {}  # by a name, and by each end of a path
    for name in names:
        parts = Path(name).parts
        for start in range(len(parts)):
            places.setdefault(parts[start:], []).append(name)
    found, unknown = set(), []
    for whole, word in read_names(path):
        line, first = (strip_ending(Path(each)).parts for each in (whole, word))
        ends_as_photo = line != Path(whole).parts
        order = (line, first) if ends_as_photo else (first, line)
        tails = [parts[start:] for parts in order for start in range(len(parts))]
        # A list may tell more folders, or fewer.
        matches = next((places[tail] for tail in [line, *tails] if tail in places), [])
        if len(matches) > 1:
            raise VLScoreError(
                f"{path} names {word}, but {len(matches)} photos have this name: add its folder"
            )
        found.update(matches)
        unknown += [] if matches else [word]
    return found, unknown


def read_names(path) -> list[tuple[str, str]]:
    """Read the names in a list, one in each line: the whole line, and its first word, in alphabetical order.

    A bare number stands for an ImageNet validation photo.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VLScoreError(
            f"{path} cannot be read ({error}): give a list of photos, one in each line"
        ) from None
    lines = sorted({line.strip() for line in lines if line.strip()})
    if long := next((each for each in lines if len(Path(each.split()[0]).name) > 255), None):
        raise VLScoreError(f"{path} names {long[:40]}…, which is not a photo: remove it")
    words = [line.split()[0] for line in lines]
    words = [f"ILSVRC2012_val_{int(each):08}" if each.isdecimal() else each for each in words]
    return list(zip(lines, words))


def strip_ending(path: Path) -> Path:
    """Drop the ending of a photo's path."""
    return path.with_suffix("") if path.suffix.lower() in photo_endings() else path


def add_known_labels(listed):
    """Add the known labels of ImageNet's validation photos that have no other label.

    Another data set may use the same file names.  Then most annotations disagree with the known labels, and
    give the labels themselves.
    """
    known, agreeing = {}, 0
    for each in listed:
        label = imagenet_label(each.path.stem) if each.label is None and each.xml else None
        with suppress(VLScoreError):  # a broken annotation is reported later
            if label is not None:
                told = [object_label for object_label, _ in read_voc(each.xml)[2]]
                known[each.path], agreeing = label, agreeing + (label in told)
    if agreeing * 2 <= len(known):
        return listed
    return [each._replace(label=known.get(each.path, each.label)) for each in listed]


def check_photos(listed, progress):
    """Open every photo and annotation -> the photos that can be used, and a line for each other one."""

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
    """Take ImageNet's classes if all photos show them; else those of the folder's own list, or of the photos.

    Args:
        listed: the classes that the data set lists, or None.
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
