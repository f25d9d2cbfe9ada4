"""The commands `crops` and `from-crops`: check labels box by box, in any viewer of pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from vlscore_label import add_format_option, read_formats
from vlscore_lib.files import check_new_folder
from vlscore_lib.labelling.crops import cut_crops, read_kept
from vlscore_lib.labelling.formats import write_labels
from vlscore_lib.labelling.labels import Journal
from vlscore_lib.progress import show_photos


def add_crops_options(add) -> None:
    """Add the options of `crops`."""
    add_folders(add)
    add("--out", required=True, metavar="DIR", help="new folder for the crops, with a folder for each class")


def add_from_crops_options(add) -> None:
    """Add the options of `from-crops`."""
    add_folders(add)
    add("--crops", required=True, metavar="DIR", help="folder of `vlscore crops`, without the wrong crops")
    add("--out", required=True, metavar="DIR", help="new folder for the labels of the crops that are left")
    add_format_option(add)


def add_folders(add) -> None:
    """Add what both commands read."""
    add("folder", metavar="FOLDER", help="folder of the photos")
    add("labels", metavar="LABELS", help="folder that `vlscore label` wrote")


def run_crops(options) -> None:
    """Cut each box out of its photo."""
    journal = Journal.open(options.labels)
    photos, classes = list(journal.photos.values()), journal.parameters["classes"]
    show_crops = partial(show_photos, name="cutting crops")
    count = cut_crops(photos, classes, options.folder, options.out, show_crops)
    print(f"{count} crops: {options.out}. Delete the wrong ones, or move them to another class's folder.")


def run_from_crops(options) -> None:
    """Write the labels whose crops are left."""
    journal, formats = Journal.open(options.labels), read_formats(options.format)
    out = Path(options.out)
    check_new_folder(out)
    photos = list(journal.photos.values())
    kept = read_kept(photos, options.crops)
    for form in formats:
        write_labels(kept, journal.parameters["classes"], form, out, options.folder)
    before, after = (sum(len(photo.boxes) for photo in each) for each in (photos, kept))
    print(f"{after} of {before} boxes kept: {options.out}")
    for photo in kept:
        if not photo.boxes:
            print(f"no box left: {photo.place}")
