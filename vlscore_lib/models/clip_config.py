"""What the weights of a CLIP do not determine, read from the files next to them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vlscore_lib.errors import VLScoreError
from vlscore_lib.models.facts import ACTIVATIONS

CONFIG_FILES = ("open_clip_config.json", "config.json")
# Options of open_clip's towers that change what is computed, and what OpenAI's architecture has.
OPENAI_TOWERS = {
    "pool_type": ("tok", "argmax", None),
    "attentional_pool": (False, None),
    "no_ln_pre": (False, None),
    "final_ln_after_pool": (False, None),
    "no_causal_mask": (False, None),
    "embed_cls": (False, None),
    "ls_init_value": (None,),
    "timm_model_name": (None,),
    "hf_model_name": (None,),
    "hf_tokenizer_name": (None,),
}


@dataclass(frozen=True)
class ClipConfig:
    """What a checkpoint's configuration says; None where it says nothing.

    Attributes:
        head_width: channels of each head of the image encoder.
        text_heads: number of heads of the text encoder.
        activation: of both encoders, ``"quick_gelu"`` or ``"gelu"``.
        epsilon: of all layer norms.
        mean: colour of each channel, of pixel values from 0 to 1; a `ClipModel` takes it as an argument,
            times 255.
        std: standard deviation of each channel, in the same units.
    """

    head_width: int | None = None
    text_heads: int | None = None
    activation: str | None = None
    epsilon: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def find_config(path) -> ClipConfig:
    """Find the configuration next to a checkpoint, or in its folder.

    It is ``NAME.json`` for a file ``NAME.*``, or one of `CONFIG_FILES`, in the layout of open_clip or
    of Hugging Face's CLIPModel.

    Raises:
        VLScoreError: the file cannot be read, or describes another architecture.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    own = [] if path.is_dir() or path.suffix == ".json" else [path.with_suffix(".json")]
    for file in (*own, *(folder / name for name in CONFIG_FILES)):
        if file.is_file() and (config := read_config(file)):
            return config
    return ClipConfig()


def read_config(file: Path) -> ClipConfig | None:
    """Read a configuration; None if it describes something else."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            return None
        if "vision_cfg" in facts.get("model_cfg", facts):
            return read_open_clip(facts)
        if "vision_config" in facts and "text_config" in facts:
            return read_hugging_face(facts)
        return None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise VLScoreError(f"{file} cannot be used for the weights beside it ({error}): fix it") from None


def read_open_clip(facts: dict) -> ClipConfig:
    """Read open_clip's configuration of the architecture and, if given, of the preprocessing."""
    model, preprocess = facts.get("model_cfg", facts), facts.get("preprocess_cfg", {})
    vision, text = model["vision_cfg"], model.get("text_cfg", {})
    for tower in (vision, text):
        for option, usual in OPENAI_TOWERS.items():
            if tower.get(option) not in usual:
                raise ValueError(f"{option} is {tower[option]}, which OpenAI's architecture does not have")
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    heads = None if text.get("heads") is None else int(text["heads"])
    mean, std = (tuple(map(float, preprocess[key])) if key in preprocess else None for key in ("mean", "std"))
    return ClipConfig(int(vision.get("head_width", 64)), heads, activation, None, mean, std)


def read_hugging_face(facts: dict) -> ClipConfig:
    """Read the configuration of Hugging Face's CLIPModel, whose defaults are those of ViT-B/32."""
    vision, text = facts["vision_config"], facts["text_config"]
    activations = {tower.get("hidden_act", "quick_gelu") for tower in (vision, text)}
    epsilons = {float(tower.get("layer_norm_eps", 1e-5)) for tower in (vision, text)}
    if not activations < set(ACTIVATIONS) or len(epsilons) > 1:
        raise ValueError(f"its activations are {', '.join(sorted(activations))}")
    width, heads = int(vision.get("hidden_size", 768)), int(vision.get("num_attention_heads", 12))
    return ClipConfig(
        width // heads, int(text.get("num_attention_heads", 8)), activations.pop(), epsilons.pop()
    )
