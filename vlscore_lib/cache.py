"""A cache folder for what takes long to compute, such as embedded classes; lost files are made again."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import torch

from vlscore_lib.files import write_whole


def cache_folder() -> Path:
    """``$VLSCORE_CACHE``, or ``vlscore`` in the user's folder for caches."""
    if own := os.environ.get("VLSCORE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vlscore"


def digest(*facts) -> str:
    """Name a set of JSON-compatible facts by a hash: other facts have another name."""
    return sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()[:40]


def hash_weights(modules: dict[str, torch.nn.Module]) -> str:
    """SHA-256 over the names and values of all weights of named modules."""
    found = sha256()
    for part in sorted(modules):
        for name, value in modules[part].state_dict().items():
            found.update(f"{part}.{name} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def describe_module(module: torch.nn.Module) -> list[str]:
    """Describe what a module computes besides its weights: its parts and their settings."""
    simple = bool | int | float | str | tuple
    parts = [
        sorted((key, str(value)) for key, value in vars(each).items() if isinstance(value, simple))
        for each in module.modules()
    ]
    return [re.sub(" at 0x[0-9a-f]+", "", str(each)) for each in (module, parts)]


def read_cached(name: str) -> bytes | None:
    """Read what was cached under a name; None if it is missing or damaged."""
    with suppress(OSError):
        content = (cache_folder() / name).read_bytes()
        if sha256(content[32:]).digest() == content[:32]:
            return content[32:]
    return None


def write_cached(name: str, content: bytes) -> None:
    """Cache content under a name, if the folder can be written."""
    file = cache_folder() / name
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, sha256(content).digest() + content)


def remember_tensor(name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Read the tensor that was cached under a name, or make and cache it."""
    from safetensors.torch import load, save

    if content := read_cached(name):
        return load(content)["tensor"]
    found = make()
    write_cached(name, save({"tensor": found.contiguous()}))
    return found
