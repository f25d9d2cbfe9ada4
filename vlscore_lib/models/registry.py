"""All models by name: which ones there are, where their weights are, and how each is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlscore_lib.errors import VLScoreError
from vlscore_lib.models.facts import (
    CLIP_DEFAULTS,
    CLIP_NAMES,
    HUGGING_FACE,
    OFFLINE_DEFAULTS,
    OFFLINE_MODEL,
    OPEN_CLIP,
    SCENES_MODELS,
    Defaults,
    clip_file,
    find_weights,
    scenes_file,
    split_activation,
)
from vlscore_lib.models.hub import find_folder, read_config

if TYPE_CHECKING:
    from vlscore_lib.models.base import Model


class Family(NamedTuple):
    """Models that one file of this package loads.

    Attributes:
        models: a dict from name to default values.
        module: the file of this package that loads them; it is imported when a model is loaded.
        loader: the function in that file, of a name and a device.
        weights: a function from name to the file with its weights; None if they come with installed packages.
        note: description of the models; ``{weights}`` stands for the file with a model's weights.
    """

    models: dict[str, Defaults]
    module: str
    loader: str
    weights: Callable[[str], Path] | None
    note: str

    def describe(self, name: str) -> str:
        """Describe a model, and say where its weights are if they are to be downloaded."""
        return self.note.format(weights=self.weights and self.weights(name))

    def is_here(self, name: str) -> bool:
        """Tell whether a model's weights are on this machine."""
        return self.weights is None or self.weights(name).exists()


CLIP_MODELS = {name: CLIP_DEFAULTS["vit" if name.startswith("ViT") else "cnn"] for name in CLIP_NAMES}
LITE0_NOTE = "EfficientNet-Lite0 and MiniLM; weakly supervised on ImageNet's classes, offline"
SCENES_NOTE = "small CLIP that knows drawn scenes only; weakly supervised, offline"
FAMILIES = (
    Family({OFFLINE_MODEL: OFFLINE_DEFAULTS}, "lite0_minilm", "load", None, LITE0_NOTE),
    Family(SCENES_MODELS, "checkpoints", "load_scenes_model", scenes_file, SCENES_NOTE),
    Family(CLIP_MODELS, "openai_clip", "load", clip_file, "OpenAI's CLIP, weights in {weights}"),
)

# Type of a model in transformers' config.json -> the file of this package, and its function of a name, a
# folder and a device.
HUGGING_FACE_MODELS = {
    "clip": ("hf_clip", "load"),
    "siglip": ("hf_siglip", "load"),
    "siglip2": ("hf_siglip", "load_flexible"),
    "align": ("align", "load"),
}


def find_family(name: str) -> Family | None:
    """Find the entry of `FAMILIES` that has a model of this name; None if there is none.

    Args:
        name: a model's name, such as ``"RN50"``.
    """
    return next((family for family in FAMILIES if name in family.models), None)


def load_model(name: str = "auto", device: str | None = None) -> Model:
    """Load a model by name or from a checkpoint.

    Args:
        name: one of these:

            - ``"auto"``: CLIP's RN50 if its weights are on this machine, else ``lite0-minilm``.
              A line on stderr says which.
            - ``"lite0-minilm"``, which needs no download.
            - ``"scenes-rn"`` or ``"scenes-vit"``, which know drawn scenes only.
            - one of `CLIP_NAMES`, downloaded once by the ``clip`` package.
            - ``open_clip:ARCHITECTURE/TAG`` or ``open_clip:ARCHITECTURE/PATH`` for open_clip's models.
              This needs the extra ``models``.
            - ``hf:OWNER/NAME`` or ``hf:FOLDER`` for transformers' models, with the same extra.
            - the path of a checkpoint, or of a folder with one, see `load_checkpoint`.  Add ``:gelu``
              if it was trained with GELU, not QuickGELU.
        device: a PyTorch device, such as ``"cpu"`` or ``"cuda:1"``; None means CUDA if there is a GPU, else
            the CPU.

    Raises:
        VLScoreError: the name is unknown, the weights or a package are missing, or the file is no checkpoint.
        RuntimeError: PyTorch does not know or does not have the device.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "auto":
        return load_automatic(device)
    if name.startswith(OPEN_CLIP):
        return load_by("openclip", "load", name, device)
    if name.startswith(HUGGING_FACE):
        return load_hugging_face(name, device)
    if family := find_family(name):
        return load_by(family.module, family.loader, name, device)
    if name and find_weights(split_activation(name)[0]):
        return load_by("checkpoints", "load", name, device)
    known = ", ".join(name for family in FAMILIES for name in family.models)
    raise VLScoreError(
        f"unknown model {name!r}: choose {known}, {OPEN_CLIP}ARCHITECTURE/TAG, {HUGGING_FACE}OWNER/NAME"
        " or the path of a checkpoint"
    )


def absolute_name(name: str) -> str:
    """Make a model's name independent of the working folder: a path in it becomes absolute.

    Args:
        name: as for `load_model`.
    """
    if name.startswith(OPEN_CLIP):
        architecture, _, rest = name.partition("/")
        return f"{architecture}/{os.path.abspath(rest)}" if rest and find_weights(rest) else name
    if name.startswith(HUGGING_FACE):
        folder = os.path.expanduser(name.removeprefix(HUGGING_FACE))
        return HUGGING_FACE + os.path.abspath(folder) if os.path.isdir(folder) else name
    is_path = find_family(name) is None and name and find_weights(split_activation(name)[0])
    return os.path.abspath(name) if is_path else name


def load_automatic(device: str) -> Model:
    """Load CLIP's RN50 if its weights are cached, else the offline model; say on stderr which, and why."""
    folder, why = clip_file("RN50").parent, "no weights of CLIP RN50 in"
    if clip_file("RN50").exists():
        print(f"vlscore: model RN50 (its weights are in {folder})", file=sys.stderr)
        with suppress(VLScoreError):  # a file cut short, say, and no network to fetch it anew
            return load_model("RN50", device)
        why = "no usable weights of CLIP RN50 in"
    print(f"vlscore: model {OFFLINE_MODEL} ({why} {folder})", file=sys.stderr)
    return load_model(OFFLINE_MODEL, device)


def load_hugging_face(name: str, device: str) -> Model:
    """Load a model of transformers, by the type in its folder's configuration.

    Raises:
        VLScoreError: the folder or model does not exist, or its type is not supported.
    """
    folder = find_folder(name)
    kind = read_config(folder).get("model_type")
    if kind not in HUGGING_FACE_MODELS:
        known = ", ".join(HUGGING_FACE_MODELS)
        raise VLScoreError(f"{folder} holds a model of type {kind!r}: choose one of {known}")
    module, loader = HUGGING_FACE_MODELS[kind]
    return getattr(import_module(f"vlscore_lib.models.{module}"), loader)(name, folder, device)


def load_by(module: str, loader: str, name: str, device: str) -> Model:
    """Load a model with a function of one of this package's files."""
    return getattr(import_module(f"vlscore_lib.models.{module}"), loader)(name, device)
