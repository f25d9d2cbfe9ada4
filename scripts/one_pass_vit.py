"""Heat maps of a ViT from one pass, without any mask, beside which the masked passes are measured.

Nothing in training asks a patch of the last block to match a text.  These methods change what its attention
mixes, so that a patch comes nearer to the joint space.
"""

from __future__ import annotations

import torch

import vlscore


def to_itself(q, k, v):
    """Let each token attend to itself alone, as MaskCLIP does (Zhou et al. 2022)."""
    return v


def to_similar_values(q, k, v):
    """Let values attend to values, as CLIP Surgery does (Li et al. 2025)."""
    return torch.softmax(v @ v.transpose(-1, -2) * v.shape[-1] ** -0.5, -1) @ v


@torch.inference_mode()
def embed_patches(model: vlscore.Model, path, mix, with_mlp: bool) -> torch.Tensor:
    """Embed the patches of an image in the joint space, with another attention in the last block.

    Args:
        model: a ViT of OpenAI's architecture.
        path: of the image.
        mix: from queries, keys and values, (heads, N, d / heads) each, to what each token reads.
        with_mlp: whether the block's second half follows.

    Returns:
        (D, n, n), unit.
    """
    block = model.visual.transformer.resblocks[-1]
    with vlscore.tapped(block) as seen:
        model.encode_image(model.preprocess(path)[None])
    x = seen.input[:, 0]  # (N, d)
    attention, heads = block.attn, block.attn.num_heads
    projected = block.ln_1(x) @ attention.in_proj_weight.T + attention.in_proj_bias  # (N, 3 d)
    qkv = projected.reshape(len(x), 3, heads, -1).permute(1, 2, 0, 3)  # (3, heads, N, d / heads)
    x = x + attention.out_proj(mix(*qkv).transpose(0, 1).flatten(1))
    if with_mlp:
        x = x + block.mlp(block.ln_2(x))
    side = model.input_size // model.stride
    return model.cell_embeddings(x[1:].T.reshape(-1, side, side))  # without the class token


def maskclip_map(model: vlscore.Model, path, text: torch.Tensor) -> torch.Tensor:
    """MaskCLIP's map (n, n): the cosine of each patch with a text (D,)."""
    return torch.einsum("dhw,d->hw", embed_patches(model, path, to_itself, True), text)


def surgery_map(model: vlscore.Model, path, text: torch.Tensor) -> torch.Tensor:
    """The map (n, n) of CLIP Surgery's attention in the last block alone; its paper changes more blocks."""
    return torch.einsum("dhw,d->hw", embed_patches(model, path, to_similar_values, False), text)


ONE_PASS = {"MaskCLIP": maskclip_map, "CLIP Surgery, one block": surgery_map}  # by the names in `data/`
