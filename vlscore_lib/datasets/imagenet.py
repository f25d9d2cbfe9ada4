"""ImageNet's validation set and similar sets, in their usual layouts, and class lists."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from vlscore_lib.datasets.voc import ListedPhoto, hand_boxed_photos, list_files
from vlscore_lib.errors import VLScoreError
from vlscore_lib.files import read_lines
from vlscore_lib.prompts import imagenet_classes

# Where the XML files of a data set may be; inside, each may stand in a folder of its class.
BOX_FOLDERS = (
    "bbox/val",
    "ILSVRC2012_bbox_val_v3/val",
    "ILSVRC2012_bbox_val_v3",
    "Annotations/CLS-LOC/val",
)
PHOTO_ENDINGS = (".jpeg", ".jpg", ".png", ".webp")
CLASS_LIST = "LOC_synset_mapping.txt"
SOLUTION = "LOC_val_solution.csv"


def list_photos(folder):
    return list_files(folder, PHOTO_ENDINGS)


def list_wnid_folders(folder):
    return sorted(each for each in folder.glob("n[0-9]*") if each.is_dir())


def find_box_folder(root):
    return next((root / each for each in BOX_FOLDERS if (root / each).is_dir()), None)


def find_kaggle_folder(root):
    return next((each for each in (root / "ILSVRC", root) if (each / "Data/CLS-LOC/val").is_dir()), None)


def find_metadata_folder(root):
    places = (root, root / "metadata", root / "metadata/ILSVRC/test", root / "test")
    return next((each for each in places if (each / "localization.txt").is_file()), None)


def find_xml(path, folder):
    """Find a photo's XML: in the folder of annotations, in a folder of its class there, or by the photo."""
    places = [folder, folder / path.parent.name] if folder else []
    candidates = [place / f"{path.stem}.xml" for place in (*places, path.parent)]
    return next((each for each in candidates if each.is_file()), None)


def pair_with_boxes(paths, folder, solutions, by_folder=False):
    """Pair photos with their XML files or, if there are none, with the boxes of a LOC_val_solution.csv."""
    for path in paths:
        solved = solutions.get(path.stem, [])
        label = path.parent.name if by_folder else solved[0][0] if solved else None
        xml = find_xml(path, folder)
        yield ListedPhoto(path, label, xml, solved if solved and not xml and not folder else None)


def read_official(root, boxes):
    folder = boxes or find_box_folder(root)
    return pair_with_boxes(list_photos(root / "val"), folder, read_solutions(root))


def read_torchvision(root, boxes):
    val = root / "val" if (root / "val").is_dir() else root
    paths = [path for folder in list_wnid_folders(val) for path in list_photos(folder)]
    folder = boxes or find_box_folder(root) or find_box_folder(root.absolute().parent)
    return pair_with_boxes(paths, folder, read_solutions(root), by_folder=True)


def read_kaggle(root, boxes):
    inner = find_kaggle_folder(root)
    folder = boxes or find_box_folder(inner)
    solutions = read_solutions(root) or read_solutions(inner.absolute().parent)
    return pair_with_boxes(list_photos(inner / "Data/CLS-LOC/val"), folder, solutions)


def read_wsolevaluation(root, boxes):
    """Read the metadata of Choe et al. 2020: boxes that include their last pixel, and classes by index."""
    metadata = find_metadata_folder(root)
    labels = {name: index for name, index in read_rows(metadata / "class_labels.txt", 2, int)}
    sizes = {}
    if (metadata / "image_sizes.txt").is_file():
        sizes = {name: (w, h) for name, w, h in read_rows(metadata / "image_sizes.txt", 3, int)}
    labels = {name: index for name, index in labels.items() if not is_hidden(name)}
    wnids = list(read_own_classes(root) or find_imagenet_classes(labels, metadata, root))
    found = {name: [] for name in labels}
    for name, index in labels.items():
        if not 0 <= index < len(wnids):
            raise VLScoreError(
                f"{metadata / 'class_labels.txt'} gives {name} an unknown class, {index}: fix it"
            )
    for name, size in sizes.items():
        if min(size) < 1:
            raise VLScoreError(f"{metadata / 'image_sizes.txt'} gives {name} the size {size}: fix it")
    for name, x0, y0, x1, y1 in read_rows(metadata / "localization.txt", 5, float):
        if is_hidden(name):
            continue
        if name not in labels:
            raise VLScoreError(f"{metadata / 'class_labels.txt'} has no class for {name}: add it")
        found[name].append((wnids[labels[name]], (x0, y0, x1 + 1, y1 + 1)))
    for name in found:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise VLScoreError(f"{metadata} names {name}, outside of {root}: remove it")
    places = [root, metadata, root / "dataset/ILSVRC", root / "dataset"]
    some = next(iter(found), "")
    base = next((each for each in places if (each / some).is_file()), root)
    return [
        ListedPhoto(base / name, wnids[labels[name]], None, objects, sizes.get(name))
        for name, objects in found.items()
    ]


def is_hidden(name: str) -> bool:
    """Tell whether a listed file begins with a dot, like those that macOS leaves on foreign disks."""
    return Path(name).name.startswith(".")


def find_imagenet_classes(labels: dict[str, int], metadata: Path, root: Path) -> list[str]:
    """Return ImageNet's classes by index if file or folder names show that the photos are ImageNet's.

    Raises:
        VLScoreError: they are not, so that the meaning of the indices is unknown.
    """
    wnids = list(imagenet_classes())
    for name, index in labels.items():
        told = re.findall(r"(?:^|/)(n\d{8})(?=[/_])", name)
        is_validation = re.search(r"(?:^|/)ILSVRC\d{4}_(?:val|test|train)_", name)
        if not is_validation and (not told or not 0 <= index < len(wnids) or wnids[index] not in told):
            raise VLScoreError(
                f"{metadata / 'class_labels.txt'} has classes that are not ImageNet's ({name} is {index}):"
                f" put {root / CLASS_LIST}, a line 'id name, name' for each class in their order"
            )
    return wnids


def read_hand_boxed(root, boxes):
    for name, photo in hand_boxed_photos(root).items():
        yield ListedPhoto(photo.path, photo.label, root / f"{name}.xml")


def read_rows(path, count, number=str):
    """Read the rows of a comma-separated file: a name and numbers, ``count`` fields in all.

    Raises:
        VLScoreError: the file does not exist, or a row cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for line, row in enumerate(csv.reader(file), start=1):
                if len(row) != count:
                    raise csv.Error(f"line {line} has {len(row)} fields, not {count}")
                yield [row[0], *map(number, row[1:])]
    except (OSError, ValueError, csv.Error) as error:
        raise VLScoreError(f"{path} cannot be read ({error}): fix or replace it") from None


def read_solutions(folder) -> dict[str, list]:
    """Read Kaggle's LOC_val_solution.csv if it exists: name -> (wnid, half-open box) of each object."""
    path, found = folder / SOLUTION, {}
    if not path.is_file():
        return found
    for number, (name, text) in enumerate(read_rows(path, 2), start=1):
        if name == "ImageId":
            continue
        tokens = text.split()
        if Path(name).name != name or name == "..":
            raise VLScoreError(f"{path}, line {number}: {name[:60]} is not a name of a photo: remove it")
        try:
            rows = [
                (tokens[n], [int(each) for each in tokens[n + 1 : n + 5]]) for n in range(0, len(tokens), 5)
            ]
            found[name] = [(wnid, (x0, y0, x1 + 1, y1 + 1)) for wnid, (x0, y0, x1, y1) in rows]
        except ValueError:
            raise VLScoreError(f"{path}, line {number}: each box needs five words: fix the line") from None
    return found


def read_own_classes(root):
    return read_classes(root / CLASS_LIST) if (root / CLASS_LIST).is_file() else None


def read_classes(path) -> dict[str, list[str]]:
    """Read a class list ``LOC_synset_mapping.txt``: a dict from wnid to names, in their order.

    Args:
        path: the file, with a line such as ``n01440764 tench, Tinca tinca`` for each class.  The first word
            is the wnid, ImageNet's identifier of a class.

    Raises:
        VLScoreError: the file does not exist, or a line is not a wnid followed by names.
    """
    names = {}
    for number, line in enumerate(read_lines(path, f"a {CLASS_LIST}"), start=1):
        wnid, _, rest = line.partition(" ")
        if not rest.strip():
            raise VLScoreError(f"{path}, line {number}: {line[:40]!r} is not a wnid with names: fix the line")
        names[wnid] = [name.strip() for name in rest.split(",")]
    return names
