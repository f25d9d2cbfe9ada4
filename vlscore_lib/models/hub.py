"""Hugging Face's hub: its cache, the folder of a model, and the model's configuration."""

from __future__ import annotations

import json
from pathlib import Path

from vlscore_lib.errors import VLScoreError, import_extra
from vlscore_lib.models.facts import HUGGING_FACE, hub_cache

# The files of a model; Python files, which a repository may ask to be run, are not among them.
FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


def find_folder(name: str) -> Path:
    """Find the folder of a model on this machine, or in the hub's cache after downloading it once.

    Args:
        name: ``hf:FOLDER`` or ``hf:OWNER/NAME``.

    Raises:
        VLScoreError: the folder does not exist, and no such model can be downloaded.
    """
    place = name.removeprefix(HUGGING_FACE)
    if place and Path(place).expanduser().is_dir():
        return Path(place).expanduser()
    if place.count("/") != 1 or place.startswith((".", "~", "/")):
        raise VLScoreError(
            f"there is no folder {place!r}: give a model's folder, or its OWNER/NAME on the hub"
        )
    folder, reason = fetch(place, FILES)
    if folder and (folder / "config.json").is_file() and list_weights(folder):
        return folder
    raise VLScoreError(
        f"{place} cannot be loaded from the hub ({reason or 'no config.json with safetensors'}):"
        f" put it into {hub_cache()} by `hf download {place}` where there is a network, or give its folder"
    )


def fetch(repository: str, files) -> tuple[Path | None, str]:
    """Find files of a repository in the cache, or download them.

    Returns:
        Their folder, None where there is none; and why, in a line.
    """
    hub = import_extra("huggingface_hub", "models")
    reason = ""
    for options in ({"local_files_only": True}, {}):
        try:
            folder = Path(hub.snapshot_download(repository, allow_patterns=list(files), **options))
            if any(path for pattern in files for path in folder.glob(pattern)):
                return folder, ""
        except Exception as error:  # the hub's own errors are of many types
            lines = str(error).strip().splitlines()
            reason = lines[0][:160] if lines else type(error).__name__
    return None, reason


def read_config(folder: Path) -> dict:
    """Read a model's configuration.

    Raises:
        VLScoreError: there is none, it cannot be read, or it asks to run code of the repository.
    """
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        raise VLScoreError(f"{file} cannot be read ({error}): give the complete folder of a model") from None
    for each in (config, config.get("text_config"), config.get("vision_config")):
        if isinstance(each, dict) and "auto_map" in each:
            raise VLScoreError(
                f"{file} asks to run code of the repository, which is refused: choose another model"
            )
    return config


def list_weights(folder: Path) -> list[Path]:
    """List the safetensors files of a folder."""
    return sorted(folder.glob("*.safetensors"))


def read_optional(folder: Path, name: str) -> dict:
    """Read a JSON file that may be missing: {} then.

    Raises:
        VLScoreError: it is there and cannot be read.
    """
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise VLScoreError(f"{folder / name} cannot be read ({error}): fix or delete it") from None


def list_cached() -> dict[str, tuple[str, int]]:
    """List the models in the hub's cache: ``OWNER/NAME`` -> (type by its configuration, bytes on disk).

    The type is ``"open_clip"`` if there is a file of that name, and empty if it is unknown.
    """
    found = {}
    for folder in sorted(hub_cache().glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        size = sum(file.stat().st_size for file in folder.glob("blobs/*") if file.is_file())
        kinds = [read_type(file) for file in folder.glob("snapshots/*/config.json")]
        if any(folder.glob("snapshots/*/open_clip*")):
            kinds.append("open_clip")
        found[name] = (kinds[-1] if kinds else "", size)
    return found


def read_type(file: Path) -> str:
    """Read the type of model from a configuration, "" if there is none."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("model_type", ""))
    except (OSError, ValueError, AttributeError):
        return ""
