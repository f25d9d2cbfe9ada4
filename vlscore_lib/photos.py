"""The photos and other files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from vlscore_lib.errors import VLScoreError


@cache
def photo_endings() -> frozenset[str]:
    """Return the file endings of all formats that can be read."""
    from PIL import Image

    Image.init()
    readable = (ending for ending, form in Image.EXTENSION.items() if form in Image.OPEN)
    return frozenset(readable) - {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr"}


def walk_files(root: Path, endings, besides=None) -> Iterator[Path]:
    """List the files with given endings below a folder, without hidden files and links that lead out of it.

    Args:
        besides: a folder below it to leave out.
    """
    inside, besides = root.resolve(), Path(besides).resolve() if besides else None
    for place, folders, files in os.walk(root):  # which follows no links to folders
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        if besides:
            folders[:] = [each for each in folders if Path(place, each).resolve() != besides]
        for name in sorted(files):
            path = Path(place, name)
            is_asked = path.suffix.lower() in endings and not name.startswith(".")
            if is_asked and path.resolve().is_relative_to(inside):
                yield path


def find_photos(folder, besides=None) -> list[Path]:
    """Find every photo below a folder, sorted by path.

    A photo is a file whose ending Pillow can read, such as ``.jpg``, ``.png``, ``.webp``, ``.tif``, ``.gif``
    or ``.avif``, in upper or lower case.  Its content is not checked.  Hidden files and folders are skipped,
    and so are links that lead out of the folder.

    Args:
        folder: the folder.
        besides: a folder to leave out, such as one for results inside ``folder``; None leaves out none.

    Raises:
        VLScoreError: the folder does not exist, or has no photo in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise VLScoreError(f"{folder} is not a folder: give a folder of photos")
    found = sorted(walk_files(root, photo_endings(), besides))
    if not found:
        raise VLScoreError(f"{folder} has no photo in it: give a folder with JPEG, PNG or other photos")
    return found
