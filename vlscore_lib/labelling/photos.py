"""The photos below a folder."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from PIL import Image

from vlscore_lib.errors import VLScoreError


@cache
def photo_endings() -> frozenset[str]:
    """The endings of all formats that can be read."""
    Image.init()
    readable = (ending for ending, form in Image.EXTENSION.items() if form in Image.OPEN)
    return frozenset(readable) - {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr"}


def find_photos(folder, besides=None) -> list[Path]:
    """Every photo below a folder, by its path; hidden ones, and what links lead out to, are left out.

    Args:
        besides: a folder below it to leave out.

    Raises:
        VLScoreError: no such folder, or no photo in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise VLScoreError(f"{folder} is no folder: give one with photos")
    inside, besides = root.resolve(), Path(besides).resolve() if besides else None
    found = []
    for place, folders, files in os.walk(root):  # which follows no links to folders
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        if besides:
            folders[:] = [each for each in folders if Path(place, each).resolve() != besides]
        for name in sorted(files):
            path = Path(place, name)
            is_photo = path.suffix.lower() in photo_endings() and not name.startswith(".")
            if is_photo and path.resolve().is_relative_to(inside):
                found.append(path)
    if not found:
        raise VLScoreError(f"{folder} has no photo in it: give a folder with JPEG, PNG or other photos")
    return sorted(found)
