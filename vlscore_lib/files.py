"""Files that are written atomically, and JSON."""

from __future__ import annotations

import json
import os
import tempfile
from math import isfinite
from pathlib import Path

from vlscore_lib.errors import VLScoreError


def write_whole(path, content: bytes) -> None:
    """Write a file atomically: if anything fails, an existing file stays as it was.

    Args:
        path: the file; its folder must exist.
        content: the bytes to write.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".vlscore-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk names no file
        raise


def check_new_folder(path) -> None:
    """Check that a folder to write into does not exist yet, or is empty.

    Raises:
        VLScoreError: it holds something, or is a file.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise VLScoreError(f"{path} exists and is not an empty folder: choose another one")


def _umask():
    current = os.umask(0)
    os.umask(current)
    return current


def read_json(path):
    """Read a JSON file from the folder of an evaluation, such as ``run.json`` or ``summary.json``.

    Args:
        path: the file.

    Returns:
        Its content, as dicts and lists.

    Raises:
        VLScoreError: the file does not exist, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VLScoreError(f"{path} cannot be read ({error}): give the folder of a run") from None


def read_lines(path, wanted: str) -> list[str]:
    """Read the lines of a UTF-8 text file.

    Args:
        wanted: what kind of file to give instead, for the message.

    Raises:
        VLScoreError: the file does not exist, or is not text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VLScoreError(f"{path} cannot be read ({error}): give {wanted}") from None


def to_json(facts) -> bytes:
    """Encode facts as a JSON file.  A number that is not finite, which JSON does not allow, becomes null."""
    return (json.dumps(drop_nan(facts), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def drop_nan(facts):
    """Replace each number that is not finite by None."""
    if isinstance(facts, dict):
        return {key: drop_nan(value) for key, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [drop_nan(value) for value in facts]
    return None if isinstance(facts, float) and not isfinite(facts) else facts
