"""Which layout a data set's folder has, and what it lists."""

from __future__ import annotations

from pathlib import Path

from vlscore_lib.datasets.folders import (
    find_coco_files,
    find_yolo_file,
    has_voc,
    read_coco,
    read_voc_folder,
    read_yolo,
)
from vlscore_lib.datasets.imagenet import (
    SOLUTION,
    find_box_folder,
    find_kaggle_folder,
    find_metadata_folder,
    list_photos,
    list_wnid_folders,
    read_hand_boxed,
    read_kaggle,
    read_official,
    read_torchvision,
    read_wsolevaluation,
)
from vlscore_lib.datasets.voc import Listing, list_files
from vlscore_lib.errors import VLScoreError
from vlscore_lib.photos import photo_endings, walk_files

LAYOUTS = {
    "official": "val/*.JPEG, one XML a photo",
    "kaggle": "ILSVRC/Data/CLS-LOC/val, XML or LOC_val_solution.csv",
    "torchvision": "a folder of photos for each wnid, one XML a photo",
    "wsolevaluation": "localization.txt, class_labels.txt",
    "hand-boxed": "one VOC XML for each photo of an installed package",
    "coco": "COCO's JSON",
    "yolo": "data.yaml, labels/*.txt",
    "voc": "photos and VOC XML of the same names, in any folders",
}
OWN_LAYOUTS = ("coco", "yolo", "voc")
READERS = {
    "official": read_official,
    "kaggle": read_kaggle,
    "torchvision": read_torchvision,
    "wsolevaluation": read_wsolevaluation,
    "hand-boxed": read_hand_boxed,
}
OWN_READERS = {"coco": read_coco, "yolo": read_yolo, "voc": read_voc_folder}


def list_dataset(root: Path, layout: str, boxes: Path | None) -> Listing:
    """List the photos and classes of a data set with a known layout.

    Raises:
        VLScoreError: its lists are broken.
    """
    if layout in OWN_READERS:
        return OWN_READERS[layout](root, boxes)
    return Listing(list(READERS[layout](root, boxes)))


def find_layout(root, boxes=None) -> str:
    """Find a data set's layout by the files in its folder: one of `LAYOUTS`.

    Args:
        root: the data set's folder.
        boxes: the folder or file of its annotations; None means to look for it.  A JSON file means ``coco``,
            and another file ``yolo``.

    Raises:
        VLScoreError: the folder has none of the layouts, or signs of two.
    """
    root = Path(root)
    found = list_layouts(root)
    if boxes is not None and Path(boxes).is_file():
        return "coco" if Path(boxes).suffix.lower() == ".json" else "yolo"
    if boxes is not None and not found:
        return "voc"
    if "wsolevaluation" in found and find_box_folder(root) is None:  # its lists tell of the photos in val/
        found = [layout for layout in found if layout != "official"]
    if "official" in found and set(OWN_LAYOUTS) & set(found) and not has_official_boxes(root):
        found.remove("official")  # its photos are a split named val
    if others := [layout for layout in found if layout not in OWN_LAYOUTS]:
        found = others  # whose XML files a folder of VOC's would have too
    elif len(found) > 1 and "voc" in found:
        found.remove("voc")
    if not found:
        known = "; ".join(f"{layout} ({sign})" for layout, sign in LAYOUTS.items())
        raise VLScoreError(f"{root} has none of the known layouts: {known}")
    if len(found) > 1:
        raise VLScoreError(
            f"{root} mixes layouts, {' and '.join(found)}: separate them, or choose one with --layout"
        )
    return found[0]


def check_layout(root: Path, layout: str, boxes: Path | None) -> str:
    """Check that a folder has the layout that was asked for, and return the layout.

    Raises:
        VLScoreError: the layout is unknown, or the folder does not look like it.
    """
    if layout not in LAYOUTS:
        raise VLScoreError(f"unknown layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    if layout not in list_layouts(root) and not (boxes and layout in OWN_LAYOUTS):
        raise VLScoreError(f"{root} is not laid out as {layout} ({LAYOUTS[layout]}): choose another")
    return layout


def has_official_boxes(root: Path) -> bool:
    """Tell whether there are boxes where the official layout, or Kaggle's list, has them."""
    beside = list_files(root / "val", (".xml",)) or (root / SOLUTION).is_file()
    return bool(beside) or find_box_folder(root) is not None


def is_hand_boxed(root: Path) -> bool:
    """Tell whether a folder has only XML files, without photos of the same names."""
    annotated = {path.stem for path in list_files(root, (".xml",))}
    return bool(annotated) and annotated.isdisjoint(path.stem for path in walk_files(root, photo_endings()))


def list_layouts(root: Path) -> list[str]:
    """List every layout that a folder shows signs of."""
    if not root.is_dir():
        raise VLScoreError(f"{root} is not a folder: give the data set's folder")
    val = root / "val" if (root / "val").is_dir() else root
    signs = {
        "kaggle": find_kaggle_folder(root) is not None,
        "wsolevaluation": find_metadata_folder(root) is not None,
        "torchvision": any(list_photos(folder) for folder in list_wnid_folders(val)),
        "official": val != root and bool(list_photos(val)),
        "hand-boxed": is_hand_boxed(root),
        "coco": bool(find_coco_files(root)),
        "yolo": find_yolo_file(root) is not None,
        "voc": has_voc(root),
    }
    return [layout for layout, is_there in signs.items() if is_there]
