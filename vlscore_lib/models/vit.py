"""Vision Transformers of all libraries: patches as maps, and what is inside a block's self-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vlscore_lib.errors import VLScoreError
from vlscore_lib.models.base import Model, check_components, unit


def patch_maps(tokens: torch.Tensor, prefix: int = 1) -> torch.Tensor:
    """Arrange the patches of a square image as maps.

    Args:
        tokens: (B, prefix + n, d).
        prefix: the number of tokens before the patches: a class token, registers, or none.

    Returns:
        (B, d, h, w), h = w = √n.
    """
    side = round((tokens.shape[1] - prefix) ** 0.5)
    return tokens[:, prefix:].transpose(1, 2).unflatten(2, (side, side))


def project_tokens(attention: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Compute the queries, keys and values of a self-attention, normalised if the attention does so.

    Rotary positions are not applied: the projections describe a token independently of its position.
    (Dosovitskiy et al. 2021, appendix A.)

    Args:
        attention: of PyTorch, open_clip, timm or transformers.
        x: its input (B, N, d).

    Returns:
        Three tensors (B, heads, N, d / heads).

    Raises:
        VLScoreError: the attention has further terms, beyond these three.
    """
    if getattr(attention, "rel_pos", None) is not None or getattr(attention, "scaled_cosine", False):
        raise VLScoreError(f"{type(attention).__name__} has more than queries and keys: use activation maps")
    if hasattr(attention, "in_proj_weight"):  # PyTorch and open_clip
        projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    elif getattr(attention, "qkv", None) is not None:  # timm: one layer; EVA keeps its biases apart
        projected = attention.qkv(x)
        if getattr(attention, "q_bias", None) is not None:
            projected = projected + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        projected = projected.chunk(3, dim=-1)
    else:  # timm and transformers: three layers
        projected = [attention.get_submodule(f"{each}_proj")(x) for each in "qkv"]
    heads = (attention.num_heads, -1)
    query, key, value = (each.unflatten(-1, heads).transpose(1, 2) for each in projected)
    for names in (("q_norm", "k_norm"), ("ln_q", "ln_k")):  # timm's and open_clip's
        if hasattr(attention, names[0]):
            query, key = (attention.get_submodule(n)(each) for n, each in zip(names, (query, key)))
    return query, key, value


def rotate(attention: torch.nn.Module, tokens: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions (Su et al. 2021) to the patches of queries or keys (B, heads, N, d)."""
    from timm.layers import apply_rot_embed_cat

    before = attention.num_prefix_tokens
    half = getattr(attention, "rotate_half", False)
    patches = apply_rot_embed_cat(tokens[:, :, before:], rope, half=half)
    return torch.cat([tokens[:, :, :before], patches], dim=2)


def read_attention(
    attention: torch.nn.Module, x: torch.Tensor, maps: str, has_class_token: bool = True, rope=None
) -> torch.Tensor:
    """Recompute the queries, keys, values or weights of a self-attention.

    Args:
        attention: see `project_tokens`.
        x: its input (B, N, d), the class token first, if there is one.
        maps: ``"query"``, ``"key"``, ``"value"`` or ``"attention"``.
        rope: rotary positions, as the module gets them.

    Returns:
        (B, N, d), or (B, N, heads) attention weights over all tokens, which sum to 1: the class token's,
        or, without a class token, the mean over all tokens.
    """
    parts = dict(zip(("query", "key", "value"), project_tokens(attention, x)))
    if maps != "attention":
        return parts[maps].transpose(1, 2).flatten(2)
    query, key = parts["query"], parts["key"]
    if rope is not None:
        query, key = rotate(attention, query, rope), rotate(attention, key, rope)
    if has_class_token:
        query = query[:, :, :1]
    logits = query.float() @ key.float().transpose(-2, -1) / query.shape[-1] ** 0.5  # (B, heads, 1 or N, N)
    return logits.softmax(-1).mean(2).transpose(1, 2)


class TransformerLayers(Model):
    """The part of a model that reads a Vision Transformer with tokens (B, N, d).

    Attributes:
        blocks: its residual blocks.
        prefix: the number of tokens before the patches.
        has_class_token: whether the first of them is a class token.
    """

    family = "vit"
    blocks: torch.nn.ModuleList
    prefix = 1
    has_class_token = True

    @property
    def fine_layer(self) -> str:
        """The middle block."""
        return str((len(self.blocks) - 1) // 2)

    def layer_modules(self):
        return {str(n): block for n, block in enumerate(self.blocks)}

    def attention_module(self, layer: str) -> torch.nn.Module:
        """The self-attention of a block: ``attn`` in open_clip and timm, ``self_attn`` in transformers."""
        block = self.layer_modules()[layer]
        return block.attn if hasattr(block, "attn") else block.self_attn

    def maps_module(self, layer, maps):
        return self.layer_modules()[layer] if maps == "activation" else self.attention_module(layer)

    def gradient_module(self, layer):
        """Return the block's first norm.

        If only the class token leaves a ViT, the patches at the output of its last block have no gradient.
        """
        block = self.layer_modules()[layer]
        names = ("ln_1", "norm1", "layer_norm1")
        return next(getattr(block, name) for name in names if hasattr(block, name))

    def output_maps(self, output):
        return patch_maps(output, self.prefix)

    def tapped_maps(self, module, seen, maps):
        if maps == "activation":
            return self.output_maps(seen.output)
        rope = seen.options.get("rope")
        return self.output_maps(read_attention(module, seen.input, maps, self.has_class_token, rope))

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project the last block's tokens (B, N, d) into the joint space with the network's head: (B, D)."""
        raise NotImplementedError

    @torch.inference_mode()
    def cell_embeddings(self, maps):
        """Project each cell with the network's own head, as an image whose tokens are all this cell."""
        cells = maps.to(self.device).flatten(1).T  # (h·w, d)
        tokens = cells[:, None].expand(-1, self.prefix + 1, -1)
        return unit(self.embed_tokens(tokens)).T.unflatten(1, maps.shape[1:]).cpu()

    def check_source(self, layer, maps, pca):
        layer = super().check_source(layer, maps, pca)
        if pca is not None:
            attention = self.attention_module(layer)
            width, cells = attention.num_heads * attention.head_dim, (self.input_size // self.stride) ** 2
            check_components(pca, min(width, cells))
        return layer
