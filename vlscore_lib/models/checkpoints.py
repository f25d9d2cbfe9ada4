"""Checkpoints of CLIP: OpenAI's architecture, in the sizes of a file's tensors."""

from __future__ import annotations

import sys
from collections import OrderedDict
from math import isqrt

import torch
import torch.nn.functional as F

from vlscore_lib.errors import VLScoreError
from vlscore_lib.models.clip_config import ClipConfig, find_config
from vlscore_lib.models.clip_layouts import find_clip_weights
from vlscore_lib.models.facts import SCENES_MODELS, scenes_file, split_activation
from vlscore_lib.models.openai_clip import CLIP_MEAN, CLIP_STD, ClipModel, import_clip
from vlscore_lib.models.tensor_files import read_tensors
from vlscore_lib.prompts import MAX_TOKENS, VOCABULARY
from vlscore_lib.scenes import class_names

# Widths of published ViTs whose heads are 64 wide, as all of OpenAI's are, and the widths of other heads.
USUAL_WIDTHS = (384, 512, 768, 896, 1024)
OTHER_HEADS = (72, 80, 88, 104, 112)
LONGEST_CONTEXT = 4096  # tokens; the mask of attention is as wide and as high
NO_CONFIG = "put its open_clip_config.json or Hugging Face's config.json beside it"


def load(name: str, device: str) -> ClipModel:
    """Load a checkpoint by its path, see `load_model`; say on stderr which activation is assumed."""
    path, activation = split_activation(name)
    config, clip = find_config(path), load_checkpoint(path, activation)
    if not activation and not config.activation:
        print(
            f"vlscore: {path} does not name its activation: QuickGELU is assumed, as in OpenAI's models;"
            f" for GELU write {path}:gelu",
            file=sys.stderr,
        )
    mean = tuple(255 * each for each in config.mean) if config.mean else CLIP_MEAN
    std = tuple(255 * each for each in config.std) if config.std else CLIP_STD
    return ClipModel(name, clip, device, mean=mean, std=std)


def load_scenes_model(name: str, device: str) -> ClipModel:
    """Load one of the small CLIPs trained on drawn scenes, which know the scenes' 80 classes."""
    return ClipModel(name, load_scenes(name), device, SCENES_MODELS[name], tuple(class_names()))


def load_checkpoint(path, activation: str | None = None) -> torch.nn.Module:
    """Build a CLIP of OpenAI's architecture from a file, without running any code in it.

    The result is OpenAI's module, on the CPU.  `load_model` also wraps it in a `ClipModel`.

    Args:
        path: a TorchScript archive as OpenAI publishes it; a state dict as training code saves it, under any
            key and prefix; a safetensors file, or the index of several.  The weights have the layout of
            OpenAI, which open_clip shares, or of Hugging Face's CLIPModel.
        activation: ``"quick_gelu"`` or ``"gelu"``; None means the one in the configuration file next to the
            weights, or QuickGELU if there is none.

    Raises:
        VLScoreError: the file is not a checkpoint or contains code, its weights are not finite, or the width
            of its attention heads cannot be determined.
    """
    config = find_config(path)
    try:
        return build_clip(find_clip_weights(read_tensors(path)), config, activation)
    except VLScoreError:
        raise
    except Exception as error:  # the unpicklers and PyTorch raise nearly any type
        lines = [line.strip() for line in str(error).splitlines() if not line.startswith("Error(s) in")]
        reason = lines[0][:160] if lines else type(error).__name__
        raise VLScoreError(
            f"{path} cannot be loaded safely as a CLIP ({reason}):"
            " give OpenAI's .pt file, or a whole state dict or safetensors file"
        ) from None


def build_clip(
    state: dict[str, torch.Tensor], config: ClipConfig | None = None, activation: str | None = None
) -> torch.nn.Module:
    """Build a CLIP of OpenAI's architecture, with the sizes that a state dict has, in float32.

    Args:
        state: a dict from name to tensor, in OpenAI's layout.
        config: a ``ClipConfig`` of ``vlscore_lib.models.clip_config``, with what the weights do not tell:
            ``head_width`` (image encoder), ``text_heads`` (their number), ``activation`` and ``epsilon`` (of
            layer norms); ``mean`` and ``std`` are not read.  None, also for a field, means heads 64 wide,
            QuickGELU and 1e-5, as OpenAI has.
        activation: see `load_checkpoint`; it takes precedence over ``config``.

    Raises:
        ValueError: a weight is not finite, the vocabulary is not CLIP's, or an encoder's width is not a
            multiple of the width of its heads.
        KeyError: a weight that tells a size is missing.
        RuntimeError: another weight is missing, or one has the wrong shape.
    """
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    check_finite(state)
    config = config or ClipConfig()
    with torch.device("meta"):  # nothing is allocated, whatever sizes a broken file claims
        model = assemble_clip(state, config)
        use_activation(model, state, activation or config.activation or "quick_gelu")
    model.load_state_dict(state, assign=True)
    mask = model.build_attention_mask()
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    for module in model.modules():
        if config.epsilon is not None and isinstance(module, torch.nn.LayerNorm):
            module.eps = config.epsilon
    return model.eval()


def check_finite(state: dict[str, torch.Tensor]) -> None:
    """Raise ValueError if a tensor has NaN or infinity, which a diverged training run leaves."""
    for name, value in state.items():
        if not value.isfinite().all():
            count = value.numel() - int(value.isfinite().sum())
            raise ValueError(f"{count} of the {value.numel()} values of {name} are not finite")


def assemble_clip(state: dict[str, torch.Tensor], config: ClipConfig) -> torch.nn.Module:
    """Build OpenAI's modules in the sizes of the tensors, without weights; see `build_clip`."""
    clip = import_clip().model
    context, text_width = state["positional_embedding"].shape
    if context > LONGEST_CONTEXT:
        raise ValueError(f"it has {context} positions for tokens")
    if (vocabulary := len(state["token_embedding.weight"])) != VOCABULARY:
        raise ValueError(f"its vocabulary has {vocabulary} tokens, CLIP's has {VOCABULARY}")
    embed_dim = state["text_projection"].shape[1]
    text_heads = config.text_heads or count_heads(text_width, 64, "text")
    text = (context, vocabulary, text_width, text_heads, count_blocks(state, "transformer.resblocks"))
    model = clip.CLIP(embed_dim, 32, 1, 64, 32, *text)  # its image encoder is a placeholder
    stem = state["visual.conv1.weight"]  # (width, 3, p, p) of a ViT, (width / 2, 3, 3, 3) of a CNN
    if "visual.proj" in state:
        width, patch = stem.shape[0], stem.shape[-1]
        side = patch * isqrt(len(state["visual.positional_embedding"]) - 1)
        heads = count_heads(width, config.head_width or usual_head_width(width), "image")
        layers = count_blocks(state, "visual.transformer.resblocks")
        model.visual = clip.VisionTransformer(side, patch, width, layers, heads, embed_dim)
    else:
        width = 2 * stem.shape[0]
        side = 32 * isqrt(len(state["visual.attnpool.positional_embedding"]) - 1)
        heads = count_heads(32 * width, config.head_width or 64, "image")
        layers = [count_blocks(state, f"visual.layer{stage}") for stage in (1, 2, 3, 4)]
        model.visual = clip.ModifiedResNet(layers, embed_dim, heads, side, width)
    return model


def count_blocks(state, place):
    names = [name.removeprefix(f"{place}.") for name in state if name.startswith(f"{place}.")]
    return len({name.partition(".")[0] for name in names})


def count_heads(width, head_width, encoder):
    if width % head_width:
        raise ValueError(
            f"its {encoder} encoder is {width} wide, which is not a multiple of {head_width}: {NO_CONFIG}"
        )
    return width // head_width


def usual_head_width(width: int) -> int:
    """Return the width of a ViT's heads, 64, if the ViT's own width allows no other.

    Raises:
        ValueError: published models of this width have other heads.
    """
    other = [each for each in OTHER_HEADS if width % each == 0]
    if other and width not in USUAL_WIDTHS:
        raise ValueError(f"the heads of its image encoder may be 64 or {other[0]} wide: {NO_CONFIG}")
    return 64


def use_activation(model: torch.nn.Module, state: dict[str, torch.Tensor], activation: str) -> None:
    """Give all blocks an activation, and the width between their two layers that the tensors have."""
    QuickGELU = import_clip().model.QuickGELU
    for name, block in model.named_modules():
        if f"{name}.mlp.c_fc.weight" in state:
            inner, width = state[f"{name}.mlp.c_fc.weight"].shape
            layers = {
                "c_fc": torch.nn.Linear(width, inner),
                "gelu": QuickGELU() if activation == "quick_gelu" else torch.nn.GELU(),
                "c_proj": torch.nn.Linear(inner, width),
            }
            block.mlp = torch.nn.Sequential(OrderedDict(layers))


def load_scenes(name: str) -> torch.nn.Module:
    """Build one of the small CLIPs trained on drawn scenes (``scripts/train_scenes.py``).

    The result is OpenAI's module, on the CPU.  The file has embeddings only for the words and positions in
    use.  Other words of a prompt, and everything after its 16th token, do not change its embedding.

    Args:
        name: ``"scenes-rn"`` or ``"scenes-vit"``.

    Raises:
        VLScoreError: the file does not exist, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = scenes_file(name)
    try:
        state = {key: value.float() for key, value in load_file(path).items()}
        words, rows = state["token_embedding.weight"], state.pop("token_ids").long()
        state["token_embedding.weight"] = torch.zeros(VOCABULARY, words.shape[1]).index_copy(0, rows, words)
        positions = state["positional_embedding"]
        state["positional_embedding"] = F.pad(positions, (0, 0, 0, MAX_TOKENS - len(positions)))
        return build_clip(state)
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise VLScoreError(
            f"{path} cannot be loaded ({reason}): restore it with git, or run scripts/train_scenes.py"
        ) from None
