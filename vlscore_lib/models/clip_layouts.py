"""The names that a CLIP's weights have in files: wrappers and prefixes, and Hugging Face's layout."""

from __future__ import annotations

import re

import torch

SIGN = "visual.conv1.weight"  # in every checkpoint of OpenAI's layout
SIGN_OF_HUGGING_FACE = "vision_model.embeddings.patch_embedding.weight"
# Segments that parallel training and compilation put into names.
SEGMENTS = ("module", "_orig_mod")
# Where training code keeps the weights that were trained, if it keeps others beside them.
PREFERRED = ("", "state_dict.", "model_state_dict.", "model.", "clip.", "state_dict.model.")
# What OpenAI's archives and others hold beside the weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "position_ids")
# Hugging Face's name -> OpenAI's, in this order.
RENAMED = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
)
TRANSPOSED = ("visual.proj", "text_projection")  # Hugging Face keeps them as layers, OpenAI as matrices


def find_clip_weights(content) -> dict[str, torch.Tensor]:
    """Find a CLIP's weights in a file's content, and give them OpenAI's names.

    Args:
        content: nested dictionaries, see `read_tensors`.

    Returns:
        Name -> tensor, in OpenAI's layout.

    Raises:
        ValueError: no CLIP in it, or several.
    """
    tensors = {simplify_name(name): value for name, value in flatten(content)}
    for sign, rename in ((SIGN, dict), (SIGN_OF_HUGGING_FACE, rename_hugging_face)):
        places = [name.removesuffix(sign) for name in tensors if name == sign or name.endswith(f".{sign}")]
        if places:
            place = choose_place(places)
            inside = {
                name.removeprefix(place): value for name, value in tensors.items() if name.startswith(place)
            }
            return {name: value for name, value in rename(inside).items() if not name.endswith(NOT_WEIGHTS)}
    raise ValueError(f"it holds no tensor named {SIGN}")


def flatten(content, prefix: str = "", seen: set[int] | None = None):
    """Yield (dotted name, tensor) of all tensors in nested dictionaries; each dictionary counts once."""
    seen = set() if seen is None else seen
    if isinstance(content, torch.Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, dict) and id(content) not in seen:
        seen.add(id(content))
        for name, value in content.items():
            yield from flatten(value, f"{prefix}{name}.", seen)


def simplify_name(name: str) -> str:
    """Drop the segments that wrappers put into a tensor's name."""
    return ".".join(segment for segment in name.split(".") if segment not in SEGMENTS)


def choose_place(places: list[str]) -> str:
    """Choose the prefix of the CLIP to use, from the prefixes of all that a file has."""
    if len(places) == 1:
        return places[0]
    for place in PREFERRED:
        if place in places:
            return place
    names = " and ".join(place.removesuffix(".") for place in sorted(places))
    raise ValueError(f"it holds several models, {names}: save one alone")


def rename_hugging_face(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert weights from the layout of Hugging Face's CLIPModel to OpenAI's.

    Query, key and value become one matrix; the two projections are transposed.
    """
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value.T.contiguous() if name in TRANSPOSED else value
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [renamed.pop(name.replace(".q_proj.", f".{each}_proj.")) for each in "qkv"]
        renamed[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return renamed
