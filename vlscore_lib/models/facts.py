"""Facts about models that need no loading: names, tuned defaults, and where the weights are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Defaults(NamedTuple):
    """The τ, the α and the prominence that a model uses unless you give others.

    Attributes:
        temperature: τ > 0.
        threshold: α in (0, 1) of plain maps.
        refined_threshold: α in (0, 1) of refined maps.
        prominence: in [0, 1], how far a peak of a refined map must rise, see `split_instances`.
    """

    temperature: float
    threshold: float
    refined_threshold: float
    prominence: float = 0.2


OFFLINE_MODEL = "lite0-minilm"
# τ was tuned on the side-by-side pairs in the docstring of `Lite0MiniLM`: between 0.05 and 0.5 it changes
# GT-known by less than 2 points.  α for plain maps was tuned by GT-known localization on 300 ImageNet photos,
# and the values for refined maps on the sets of photos of `scripts/choose_refinement.py`.
OFFLINE_DEFAULTS = Defaults(0.1, 0.35, 0.475)

# τ and α of the small CLIPs trained on drawn scenes give the best GT-known localization with the last layer's
# activation maps, on 80 and 200 scenes of seed 11.  The values for refined maps were tuned on 240 scenes of
# seeds 31 to 34, with one to three objects; α of `scenes-rn` is the best in the mean over layer3 and layer4.
SCENES_MODELS = {
    "scenes-rn": Defaults(0.03, 0.65, 0.7, 0.05),
    "scenes-vit": Defaults(0.05, 0.20, 0.5, 0.02),
}

CLIP_NAMES = (
    "RN50",
    "RN101",
    "RN50x4",
    "RN50x16",
    "RN50x64",
    "ViT-B/32",
    "ViT-B/16",
    "ViT-L/14",
    "ViT-L/14@336px",
)
# What the `clip` package downloads for each, in MB.
CLIP_MEGABYTES = dict(zip(CLIP_NAMES, (256, 292, 421, 661, 1353, 354, 351, 933, 934)))
# Not tuned here: τ is CLIP's own, 1 over its logit scale of 100; α is the best of the three that the report
# ran (Table 2); for refined maps it is that of `lite0-minilm` on photos and of `scenes-vit`.
CLIP_DEFAULTS = {"cnn": Defaults(0.01, 0.60, 0.475), "vit": Defaults(0.01, 0.55, 0.5)}

# Prefixes of the names of other libraries' models.
OPEN_CLIP, HUGGING_FACE = "open_clip:", "hf:"


def usual_defaults(family: str, logit_scale: float) -> Defaults:
    """Make defaults for a model that was not tuned here: τ is 1 over its own logit scale, α is CLIP's."""
    return CLIP_DEFAULTS[family]._replace(temperature=float(f"{1 / logit_scale:.4g}"))


ACTIVATIONS = ("quick_gelu", "gelu")  # of the blocks of CLIP's encoders

# A folder's files of weights, in the order of preference.
WEIGHT_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def split_activation(name: str) -> tuple[str, str | None]:
    """Split a checkpoint's path from the activation that ``PATH:gelu`` or ``PATH:quick_gelu`` asks for."""
    path, _, activation = name.rpartition(":")
    return (path, activation) if path and activation in ACTIVATIONS else (name, None)


def find_weights(path) -> Path | None:
    """Find a checkpoint's file: the path, or one of `WEIGHT_FILES` in a folder; None if there is none."""
    candidates = [Path(path, name) for name in WEIGHT_FILES] if os.path.isdir(path) else [Path(path)]
    return next((each for each in candidates if os.path.isfile(each)), None)  # also for a name too long


def hub_cache() -> Path:
    """Find the folder in which Hugging Face's hub keeps its downloads, as huggingface_hub does."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def clip_file(name: str) -> Path:
    """Return the path at which the ``clip`` package keeps a model's weights; the file may not exist.

    Args:
        name: one of `CLIP_NAMES`.
    """
    return Path.home() / ".cache" / "clip" / f"{name.replace('/', '-').replace('@', '-')}.pt"


def scenes_file(name: str) -> Path:
    """Return the path of a file of tensors that comes with this project, in the checkout or in the package.

    Args:
        name: such as ``"scenes-rn"``, without the ending ``.safetensors``.
    """
    package = Path(__file__).parents[1]
    checkout, installed = package.parent / "data" / "models", package / "weights"
    return (installed if installed.is_dir() else checkout) / f"{name}.safetensors"
