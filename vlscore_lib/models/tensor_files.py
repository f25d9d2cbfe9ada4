"""Files of tensors, of any kind that training code saves, read without running any code in them."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from io import BytesIO
from math import prod
from pathlib import Path

import torch

from vlscore_lib.models.facts import find_weights

# Whose objects training code keeps beside the weights: settings, paths, numbers.  None of them is made.
SETTINGS = (
    *("argparse", "collections", "copyreg", "datetime", "decimal", "pathlib", "typing", "_codecs"),
    *("lightning", "ml_collections", "numpy", "omegaconf", "pytorch_lightning", "torch", "yacs"),
)
PLAIN_TYPES = ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list")
PLAIN_TYPES += ("object", "range", "set", "slice", "str", "tuple")
MOST_HEADER = 100_000_000  # bytes of a safetensors file's own index, as its library has it


def read_tensors(path) -> dict:
    """Read a file, or a folder with one of `WEIGHT_FILES`, as nested dictionaries of tensors.

    Args:
        path: a TorchScript archive, a file of `torch.save`, a safetensors file, or the index of several
            files (``*.index.json``).

    Returns:
        The nested dictionaries in the file; tensors are on the CPU, in the file's type.

    Raises:
        Exception: of nearly any type, if it is no such file or holds code.
    """
    path = Path(path)
    if path.is_dir():
        path = find_weights(path)
    if path.suffix == ".json":
        return read_sharded(path)
    with open(path, "rb") as file:
        length, brace = int.from_bytes(file.read(8), "little"), file.read(1)
    if brace == b"{" and length <= MOST_HEADER:
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on the pickle's age
        if zipfile.is_zipfile(path):
            return read_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)


def read_sharded(path: Path) -> dict[str, torch.Tensor]:
    """Read the files that an index names, which are in the same folder."""
    index = json.loads(path.read_text(encoding="utf-8"))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError("it has no weight_map")
    found = {}
    for name in sorted(set(map(str, weight_map.values()))):
        file = path.parent / name
        if Path(name).name != name or file.suffix == ".json":
            raise ValueError(f"it names {name[:60]}, which is not a file of weights next to it")
        if not file.is_file():
            raise ValueError(f"{name}, which it names, is missing")
        found |= read_tensors(file)
    if missing := weight_map.keys() - found.keys():
        raise ValueError(f"{weight_map[min(missing)]} lacks {min(missing)}")
    return found


def read_archive(path) -> dict:
    """Read the tensors of a zip file of `torch.save` or of TorchScript, and nothing else of it.

    `torch.jit.load` would run the archive's own code where a module defines ``__setstate__``, and
    `torch.load` refuses such archives, and settings beside the weights, with ``weights_only=True``.

    Raises:
        pickle.UnpicklingError: the archive refers to anything but tensors, its own classes and settings.
    """
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return _TensorsOnly(archive, pickled.removesuffix("data.pkl")).load()


class _Record(dict):
    """A stand-in for any object of a file, with its attributes and entries but without its code."""

    def __new__(cls, *arguments, **options):
        return super().__new__(cls)

    def __init__(self, *arguments, **options):
        super().__init__()

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.update(state)

    def __setitem__(self, key, value):
        if isinstance(key, str):
            super().__setitem__(key, value)

    def append(self, _):
        """Ignore an entry of a sequence."""

    def extend(self, _):
        """A sequence keeps nothing."""

    add = append


class _TensorsOnly(pickle.Unpickler):
    def __init__(self, archive, folder):
        self.archive, self.folder = archive, folder
        super().__init__(BytesIO(self.read_member("data.pkl")))

    def read_member(self, name):
        if self.archive.getinfo(self.folder + name).compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed")  # and may be a thousand times as large
        return self.archive.read(self.folder + name)

    def find_class(self, module, name):
        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name).dtype
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        is_plain = module in ("builtins", "__builtin__") and name in PLAIN_TYPES
        if is_plain or module.startswith("__torch__") or module.partition(".")[0] in SETTINGS:
            return _Record
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, reference):
        _, dtype, key, _, _ = reference
        content = self.read_member(f"data/{key}")
        return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _rebuild_tensor(values, offset, size, stride, *_):
    if prod(size) > len(values):
        raise pickle.UnpicklingError("a tensor is larger than what is stored of it")
    return values.as_strided(size, stride, offset)
