"""Checkpoints in OpenAI CLIP's layout, read without running any code that a file holds."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from io import BytesIO

import torch
import torch.nn.functional as F

from vlscore_lib.errors import VLScoreError
from vlscore_lib.models.facts import SCENES_MODELS, scenes_file
from vlscore_lib.models.openai_clip import ClipModel, import_clip
from vlscore_lib.prompts import MAX_TOKENS
from vlscore_lib.scenes import class_names

# What OpenAI's archives hold beside the weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def load(path: str, device: str) -> ClipModel:
    """Load a checkpoint by its path."""
    return ClipModel(path, load_checkpoint(path), device)


def load_scenes_model(name: str, device: str) -> ClipModel:
    """Load one of the small CLIPs trained on drawn scenes, which know the scenes' 80 classes."""
    return ClipModel(name, load_scenes(name), device, SCENES_MODELS[name], tuple(class_names()))


def load_checkpoint(path) -> torch.nn.Module:
    """Build OpenAI's CLIP from a file, without running code that the file holds.

    Args:
        path: a TorchScript archive as OpenAI publishes, or a state dict saved by `torch.save`, read
            with ``weights_only=True``.

    Raises:
        VLScoreError: not such a file, or a pickle with more than tensors in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the pickle's age
            if is_torchscript(path):
                state = read_torchscript(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
        return build_clip(state)
    except Exception as error:  # the unpicklers and build_model raise nearly any type
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise VLScoreError(
            f"{path} is no CLIP checkpoint that can be loaded safely ({reason}):"
            " give OpenAI's .pt file or a state dict of tensors in its layout"
        ) from None


def build_clip(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Build OpenAI's CLIP of the sizes that a state dict has, in float32."""
    state = {key: value.float() for key, value in state.items() if not key.endswith(NOT_WEIGHTS)}
    model = import_clip().model.build_model(dict(state)).float()
    model.load_state_dict(state)  # build_model rounds the weights to fp16
    return model


def load_scenes(name: str) -> torch.nn.Module:
    """Build one of the small CLIPs trained on drawn scenes (scripts/train_scenes.py).

    The file has the embeddings of the words and positions in use; a prompt's other words, and what is
    beyond its 16th token, add nothing to it.

    Raises:
        VLScoreError: no such file, or a damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = scenes_file(name)
    try:
        state = {key: value.float() for key, value in load_file(path).items()}
        words, rows = state["token_embedding.weight"], state.pop("token_ids").long()
        state["token_embedding.weight"] = torch.zeros(49408, words.shape[1]).index_copy(0, rows, words)
        positions = state["positional_embedding"]
        state["positional_embedding"] = F.pad(positions, (0, 0, 0, MAX_TOKENS - len(positions)))
        return build_clip(state)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise VLScoreError(
            f"{path} cannot be loaded ({reason}): restore it by git, or run scripts/train_scenes.py"
        ) from None


def is_torchscript(path):
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path) -> dict[str, torch.Tensor]:
    """Read the tensors of a TorchScript archive by name, and nothing else of it.

    `torch.jit.load` would run the archive's own code where a module defines ``__setstate__``, and
    `torch.load` refuses such archives with ``weights_only=True``.

    Raises:
        pickle.UnpicklingError: the archive refers to anything but tensors and its own classes.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        module = _TensorsOnly(archive, root.removesuffix("data.pkl")).load()
    return dict(_named_tensors(module, ""))


class _Record:
    """An object of an archive's own class: its attributes alone."""


class _TensorsOnly(pickle.Unpickler):
    def __init__(self, archive, folder):
        super().__init__(BytesIO(archive.read(f"{folder}data.pkl")))
        self.archive, self.folder = archive, folder

    def find_class(self, module, name):
        if module.startswith("__torch__"):
            return _Record
        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name).dtype
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda values, offset, size, stride, *_: values.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, reference):
        _, dtype, key, _, _ = reference
        return torch.frombuffer(bytearray(self.archive.read(f"{self.folder}data/{key}")), dtype=dtype)


def _named_tensors(module, prefix):
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, _Record):
            yield from _named_tensors(value, f"{prefix}{name}.")
