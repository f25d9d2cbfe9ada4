"""OpenAI's CLIP, with a ModifiedResNet or a Vision Transformer as its image encoder."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from vlscore_lib.errors import VLScoreError
from vlscore_lib.models.base import Model, Preprocessing, check_components, unit
from vlscore_lib.models.facts import CLIP_DEFAULTS, OFFLINE_MODEL, Defaults, clip_file

CLIP_MEAN = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
CLIP_STD = (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)


def import_clip():
    """OpenAI's `clip` package, without its warning that `pkg_resources` is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import clip
    return clip


class ClipModel(Model):
    """OpenAI's CLIP, with a ModifiedResNet or a ViT as its image encoder (Radford et al. 2021)."""

    def __init__(
        self,
        name,
        clip_model,
        device,
        defaults: Defaults | None = None,
        other_words=None,
        mean=CLIP_MEAN,
        std=CLIP_STD,
    ):
        self.clip = clip_model.float().eval().requires_grad_(False).to(device)
        self.context_length = clip_model.context_length
        visual, self.other_words = clip_model.visual, other_words
        if hasattr(visual, "transformer"):
            self.family, self.stride = "vit", visual.conv1.stride[0]
            self.fine_layer = str((len(visual.transformer.resblocks) - 1) // 2)  # the middle block
        else:
            self.family, self.fine_layer = "cnn", "layer2"
        preprocessing = Preprocessing(visual.input_resolution, mean, std)
        super().__init__(name, visual, device, preprocessing, defaults or CLIP_DEFAULTS[self.family])

    def count_tokens(self, prompt):
        return len(import_clip().clip._tokenizer.encode(prompt)) + 2  # start and end tokens

    def embed_texts(self, prompts):
        tokens = import_clip().tokenize(prompts, self.context_length)
        return self.clip.encode_text(tokens.to(self.device))

    def unknown_words(self, prompt):
        known = self.clip.token_embedding.weight.any(1)  # an embedding of 0 is one that was left out
        encode = import_clip().clip._tokenizer.encode
        return [word for word in prompt.split() if not known[encode(word)].all()]

    @torch.inference_mode()
    def cell_embeddings(self, maps):
        """Unit embeddings of single cells.

        A CNN's cell goes through the value and output projections of the attention pool (MaskCLIP,
        Zhou et al. 2022), a ViT's patch through what the class token goes through.
        """
        cells = maps.to(self.device).permute(1, 2, 0)  # (h, w, C)
        if self.is_vit:
            cells = self.visual.ln_post(cells) @ self.visual.proj
        else:
            cells = self.visual.attnpool.c_proj(self.visual.attnpool.v_proj(cells))
        return unit(cells).cpu().permute(2, 0, 1)

    def layer_modules(self):
        if self.is_vit:
            return {str(n): block for n, block in enumerate(self.visual.transformer.resblocks)}
        stages = {f"layer{n}": getattr(self.visual, f"layer{n}") for n in range(1, 5)}
        taps = {}
        for name, stage in stages.items():
            taps |= {f"{name}.{n}": block for n, block in enumerate(stage)}
            taps[name] = stage[-1]  # its last block, however many the stage has
        return taps

    def run_visual(self, pixels):
        """Larger pixels get interpolated positional embeddings (Dosovitskiy et al. 2021, section 3.2)."""
        if pixels.shape[-1] == self.input_size:
            return self.visual(pixels)
        name = "positional_embedding" if self.is_vit else "attnpool.positional_embedding"
        grid = resize_grid(self.visual.get_parameter(name), pixels.shape[-1] // self.stride)
        return torch.func.functional_call(self.visual, {name: grid}, (pixels,))

    def gradient_module(self, layer):
        """For a ViT the block's first norm: only the class token leaves a ViT, so the patches at the
        output of its last block have no gradient."""
        module = super().gradient_module(layer)
        return module.ln_1 if self.is_vit else module

    def output_maps(self, output):
        return patch_maps(output) if self.is_vit else output

    def tapped_maps(self, module, seen, maps):
        if maps == "activation":
            return self.output_maps(seen.output)
        return patch_maps(read_attention(module, seen.input, maps))

    def check_source(self, layer, maps, pca):
        layer = super().check_source(layer, maps, pca)
        if pca is not None:
            cells = (self.input_size // self.stride) ** 2
            check_components(pca, min(self.layer_modules()[layer].attn.embed_dim, cells))
        return layer


def resize_grid(embedding: torch.Tensor, side: int) -> torch.Tensor:
    """Interpolate positional embeddings (1 + n, d), the class token's first, to (1 + side², d)."""
    grid = patch_maps(embedding[:, None])  # (1, d, h, w)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:1], grid[0].flatten(1).T])


def patch_maps(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens of a ViT (1 + n, B, d), the class token first -> maps of the patches (B, d, h, w)."""
    side = round((len(tokens) - 1) ** 0.5)
    return tokens[1:].permute(1, 2, 0).unflatten(2, (side, side))


def read_attention(block, x: torch.Tensor, maps: str) -> torch.Tensor:
    """Recompute what is inside a ViT block's self-attention.

    Args:
        block: a residual attention block of CLIP.
        x: its input (1 + n, B, d), the class token first.
        maps: ``"query"``, ``"key"``, ``"value"`` or ``"attention"``.

    Returns:
        (1 + n, B, d), or (1 + n, B, heads) attention weights of the class token, to itself first; they
        sum to 1.  (Dosovitskiy et al. 2021, appendix A.)
    """
    attention = block.attn
    projected = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    parts = dict(zip(("query", "key", "value"), projected.chunk(3, dim=-1)))
    if maps != "attention":
        return parts[maps]
    heads = (attention.num_heads, attention.head_dim)
    query = parts["query"][0].unflatten(-1, heads)  # (B, heads, d/heads)
    key = parts["key"].unflatten(-1, heads)  # (1 + n, B, heads, d/heads)
    logits = (query * key).sum(-1) / attention.head_dim**0.5  # (1 + n, B, heads)
    return logits.softmax(0)


def load(name: str, device: str) -> ClipModel:
    """Load one of OpenAI's models by its name; the `clip` package downloads it once."""
    return ClipModel(name, download_clip(name), device)


def download_clip(name: str) -> torch.nn.Module:
    """OpenAI's weights from the cache of the `clip` package, downloaded once.

    Raises:
        VLScoreError: they are not there and cannot be downloaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit's deprecation
            return import_clip().load(name, device="cpu")[0]
    except (OSError, RuntimeError) as error:
        file = clip_file(name)
        raise VLScoreError(
            f"the weights of {name} cannot be downloaded ({str(error).strip('<>')}): put {file.name}"
            f" into {file.parent}, or use --model {OFFLINE_MODEL}, which needs no network"
        ) from None
