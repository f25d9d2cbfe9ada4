"""Your own data sets: COCO's JSON, folders of VOC XML, and YOLO's text files."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from vlscore_lib.datasets.voc import ListedPhoto, Listing, read_voc
from vlscore_lib.errors import VLScoreError, import_extra
from vlscore_lib.files import read_lines
from vlscore_lib.photos import photo_endings, walk_files

CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt")  # as labelImg and Darknet name them


def list_photos_below(root) -> list[Path]:
    return sorted(walk_files(root, photo_endings()))


class PhotoIndex:
    """The photos below a folder, looked up by the ends of their paths.

    A list may give more folders than the data set has, or fewer.  A name therefore stands for the photo whose
    path agrees with it best.
    """

    def __init__(self, paths):
        self.by_name = defaultdict(list)
        for path in paths:
            for name in {path.name, path.stem}:
                self.by_name[name].append(path)

    def find(self, place: Path) -> Path | None:
        """Find the photo of a relative path, with or without its ending; None if none or several fit."""
        candidates = self.by_name.get(place.name, [])
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        rated = [(count_common(place.parent.parts, each.parent.parts), each) for each in candidates]
        best = max(rated)[0]
        found = [each for rate, each in rated if rate == best]
        return found[0] if len(found) == 1 else None


def count_common(first: tuple, second: tuple) -> int:
    """Count the parts in which two paths agree, from their start and from their end."""
    starts = next((n for n, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
    ends = zip(reversed(first), reversed(second))
    return starts + next((n for n, (a, b) in enumerate(ends) if a != b), 0)


# ── VOC ──────────────────────────────────────────────────────────────────────────────────────────


def has_voc(root: Path) -> bool:
    return any(walk_files(root, (".xml",))) and any(walk_files(root, photo_endings()))


def read_voc_folder(root: Path, boxes: Path | None) -> Listing:
    """Read the XML files anywhere below the folder, or in ``boxes``, and the photos of the same names.

    Photos without XML are not part of the data set.
    """
    photos = list_photos_below(root)
    index, listed = PhotoIndex(photos), []
    for xml in sorted(walk_files(boxes or root, (".xml",))):
        objects, named = [("", ())], ""
        with suppress(VLScoreError):  # a broken annotation is reported when its photo is checked
            named, _, objects = read_voc(xml)
        path = index.find(xml.with_suffix("")) or index.find(xml.with_name(Path(named or "-").name))
        path = path or xml.with_suffix(".jpg")
        listed.append(ListedPhoto(path, None, xml) if objects else ListedPhoto(path, None, None, []))
    return Listing(listed, None, len(set(photos) - {each.path for each in listed}))


# ── COCO ─────────────────────────────────────────────────────────────────────────────────────────


def find_coco_files(root: Path) -> list[Path]:
    """Find the JSON files with annotations of objects, in the places where tools put them."""
    places = [*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob("*/_annotations.coco.json")]
    files = sorted(path for path in places if not path.name.startswith("."))
    instances = [path for path in files if path.name.startswith("instances")]  # beside captions and keypoints
    return instances or [path for path in files if is_coco(path)]


def is_coco(path: Path) -> bool:
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return path.name.endswith("coco.json")  # a broken one is reported when it is read
    return isinstance(facts, dict) and {"images", "annotations", "categories"} <= facts.keys()


def read_coco(root: Path, boxes: Path | None) -> Listing:
    """Read COCO's JSON (Lin et al. 2014), without crowds."""
    files = [boxes] if boxes else find_coco_files(root)
    if len(files) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in files[:5])
        raise VLScoreError(f"{root} has several COCO files, {names}: choose one with --boxes FILE")
    (file,) = files
    try:
        facts = json.loads(file.read_bytes())
        names = {each["id"]: str(each["name"]).strip() for each in facts["categories"]}
        if len(set(names.values())) < len(names):
            raise ValueError("two categories have the same name")
        objects = defaultdict(list)
        for each in facts["annotations"]:
            x, y, w, h = map(float, each["bbox"])
            if not each.get("iscrowd") and w > 0 and h > 0:
                objects[each["image_id"]].append((names[each["category_id"]], (x, y, x + w, y + h)))
        images = {each["id"]: (str(each["file_name"]), read_side(each)) for each in facts["images"]}
        if unknown := objects.keys() - images.keys():
            raise ValueError(f"an annotation belongs to an image {next(iter(unknown))} that is not listed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else error
        raise VLScoreError(f"{file} is not a COCO annotation ({told}): fix or replace it") from None
    find = locate_coco_photos(root, file)
    listed = []
    for key, (name, size) in images.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise VLScoreError(f"{file} names {name}, outside of {root}: remove it")
        listed.append(ListedPhoto(find(name), None, None, objects[key], size))
    return Listing(listed, list(names.values()))


def read_side(image: dict) -> tuple[int, int] | None:
    """Read the (W, H) of an image in COCO's JSON; None if it has none."""
    W, H = (int(image.get(side) or 0) for side in ("width", "height"))
    return (W, H) if W > 0 and H > 0 else None


def locate_coco_photos(root: Path, file: Path):
    """Return a function of a file's name in the JSON -> its path, in the usual places or anywhere else."""
    split = file.stem.removeprefix("instances_")
    places = [file.parent, root, root / "images", root / split, root / "images" / split]
    index = []

    def find(name: str) -> Path:
        for place in places:
            if (place / name).is_file():
                return place / name
        if not index:
            index.append(PhotoIndex(list_photos_below(root)))
        return index[0].find(Path(name)) or root / name

    return find


# ── YOLO ─────────────────────────────────────────────────────────────────────────────────────────


def find_yolo_file(root: Path) -> Path | None:
    """Find the file that names the classes: a YAML file of Ultralytics, or a list of labelImg or Darknet."""
    files = [root / "data.yaml", *sorted([*root.glob("*.yaml"), *root.glob("*.yml")])]
    for path in files:
        if path.is_file() and (path.name == "data.yaml" or is_yolo(path)):
            return path
    return next((root / each for each in CLASS_FILES if (root / each).is_file()), None)


def is_yolo(path: Path) -> bool:
    with suppress(VLScoreError):
        facts = read_yaml(path)
        return isinstance(facts, dict) and "names" in facts and bool({"train", "val", "test"} & facts.keys())
    return False


def read_yaml(path: Path):
    yaml = import_extra("yaml", "evaluation")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise VLScoreError(f"{path} is not a YOLO data set ({told}): fix or replace it") from None


def read_yolo(root: Path, boxes: Path | None) -> Listing:
    """Read YOLO's text files, with one row for each object: class, centre and sides as shares of the upright
    photo.

    A polygon becomes the box around it.

    Args:
        boxes: the YAML file or list of classes; None means to look for it.
    """
    file = boxes or find_yolo_file(root)
    facts = read_yaml(file) if file.suffix in (".yaml", ".yml") else read_name_list(file)
    try:
        names = facts["names"]
        names = dict(names if isinstance(names, dict) else enumerate(names))
        names = {int(number): str(name).strip() for number, name in names.items()}
        if not names or len(set(names.values())) < len(names):
            raise ValueError("it has no names, or repeats one")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else error
        raise VLScoreError(f"{file} is not a YOLO data set ({told}): fix or replace it") from None
    base, listed, found = find_yolo_base(root, file, facts), [], False
    for path in list_yolo_photos(base, file, facts):
        label = find_label_file(path, base, file)
        found |= label is not None
        listed.append(read_yolo_photo(path, label, names))
    if not found:
        raise VLScoreError(f"{root} has no labels of its photos, such as labels/NAME.txt: add them")
    return Listing(listed, list(names.values()))


def read_name_list(path: Path) -> dict:
    lines = read_lines(path, "a list of classes")
    return {"names": [line.strip() for line in lines if line.strip()]}


def find_yolo_base(root: Path, file: Path, facts: dict) -> Path:
    """Find the folder in which a data set's paths begin: the one that it names, if it exists, or its own."""
    named = Path(str(facts.get("path") or "."))
    places = (file.parent / named, root, file.parent)
    return next(place for place in places if place.is_dir())


def list_yolo_photos(base: Path, file: Path, facts: dict) -> list[Path]:
    """List the photos of all splits, which are folders or lists; or, without splits, all below the base."""
    splits = [facts.get(each) for each in ("train", "val", "test")]
    entries = [each for split in splits for each in (split if isinstance(split, list) else [split]) if each]
    photos = {}
    for entry in map(str, entries):
        # Roboflow writes ../train/images for what lies beside the file.
        places = [base / entry, file.parent / entry, base / entry.removeprefix("../")]
        place = next((each for each in places if each.exists()), None)
        if place is None:
            raise VLScoreError(f"{file} names {entry}, which is not there: fix the path")
        if place.is_dir():
            found = list_photos_below(place)
        else:
            lines = read_name_list(place)["names"]
            found = [place.parent / line if line.startswith(".") else base / line for line in lines]
        photos |= dict.fromkeys(path.absolute() for path in found)
    return list(photos) if entries else list_photos_below(base)


def find_label_file(path: Path, base: Path, file: Path) -> Path | None:
    """Find a photo's text file: in ``labels`` for ``images``, below the YAML file, or next to the photo."""
    candidates = []
    for n in reversed([n for n, part in enumerate(path.parts) if part == "images"]):
        candidates.append(Path(*path.parts[:n], "labels", *path.parts[n + 1 :]))
    with suppress(ValueError):
        candidates.append(file.parent / "labels" / path.relative_to(base.absolute()))
    candidates.append(path)
    for each in candidates:
        # `vlscore label` keeps both endings where only these tell two photos apart.
        for label in (each.with_name(f"{each.name}.txt"), each.with_suffix(".txt")):
            if label.is_file():
                return label
    return None


def read_yolo_photo(path: Path, label: Path | None, names: dict[int, str]) -> ListedPhoto:
    """Read a photo with the objects of its text file; errors in it are reported when the photo is checked."""
    if label is None:
        return ListedPhoto(path, None, None, [])
    try:
        lines = label.read_text(encoding="utf-8-sig").splitlines()
        objects = [read_yolo_row(line.split(), names) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        fault = f"{label} is not a YOLO label ({error}): fix or replace it"
        return ListedPhoto(path, None, None, [], fault=fault)
    return ListedPhoto(path, None, None, objects, of_shares=True)


def read_yolo_row(words: list[str], names: dict[int, str]) -> tuple[str, tuple]:
    """Read a row -> (class, box in shares of the sides)."""
    number, values = int(float(words[0])), [float(each) for each in words[1:]]
    if number not in names:
        raise ValueError(f"it has class {number}, but the names are for 0 to {max(names)}")
    if not all(-1e9 < each < 1e9 for each in values):
        raise ValueError("it has a number that is not finite")
    if len(values) in (4, 5):  # a fifth is a score
        x, y, w, h = values[:4]
        return names[number], (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"a row has {len(words)} fields")
    xs, ys = values[::2], values[1::2]
    return names[number], (min(xs), min(ys), max(xs), max(ys))
