"""OpenAI's CLIP, with a ModifiedResNet or a Vision Transformer as its image encoder."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from vlscore_lib.errors import VLScoreError
from vlscore_lib.models.base import Model, Preprocessing, check_components, unit
from vlscore_lib.models.facts import CLIP_DEFAULTS, OFFLINE_MODEL, Defaults, clip_file, usual_defaults
from vlscore_lib.models.vit import patch_maps, read_attention

CLIP_MEAN = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
CLIP_STD = (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)


def import_clip():
    """Import OpenAI's ``clip`` package, without its warning that ``pkg_resources`` is deprecated.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import clip
    return clip


class ClipModel(Model):
    """OpenAI's CLIP, with a ModifiedResNet or a ViT as its image encoder (Radford et al. 2021).

    `load_model` builds one by name.  Use the class for a network that you have built yourself.

    Args:
        name: the model's name.
        clip_model: OpenAI's module, see `build_clip` and `load_checkpoint`.
        device: the PyTorch device for the weights.
        defaults: τ, α and prominence, see `Model`; None means τ = 1 over the logit scale, and CLIP's α.
        other_words: names of things that the model knows, see `Model`.
        mean: mean colour, for each channel in the units of 8-bit pixels.
        std: standard deviation, for each channel in the units of 8-bit pixels.

    Attributes:
        clip: OpenAI's own module.
    """

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
        if defaults is None:  # on the meta device, the scale has no value
            has_scale = not self.clip.logit_scale.is_meta
            usual = CLIP_DEFAULTS[self.family]
            defaults = usual_defaults(self.family, self.logit_scale) if has_scale else usual
        super().__init__(name, visual, device, preprocessing, defaults)

    @property
    def logit_scale(self) -> float:
        """The factor of the cosines in training."""
        return self.clip.logit_scale.exp().item()

    def count_tokens(self, prompt):
        return len(import_clip().clip._tokenizer.encode(prompt)) + 2  # start and end tokens

    def embed_texts(self, prompts):
        tokens = import_clip().tokenize(prompts, self.context_length)
        return embed_tokens(self.clip, tokens.to(self.device))

    def unknown_words(self, prompt):
        known = self.clip.token_embedding.weight.any(1)  # an embedding of 0 is one that was left out
        encode = import_clip().clip._tokenizer.encode
        return [word for word in prompt.split() if not known[encode(word)].all()]

    @torch.inference_mode()
    def cell_embeddings(self, maps):
        """Project a ViT's patch as its class token is projected."""
        if not self.is_vit:
            return embed_resnet_cells(self.visual.attnpool, maps)
        cells = self.visual.ln_post(maps.to(self.device).permute(1, 2, 0)) @ self.visual.proj  # (h, w, D)
        return unit(cells).cpu().permute(2, 0, 1)

    def layer_modules(self):
        if self.is_vit:
            return {str(n): block for n, block in enumerate(self.visual.transformer.resblocks)}
        return resnet_layers(self.visual)

    def run_visual(self, pixels):
        name = "positional_embedding" if self.is_vit else "attnpool.positional_embedding"
        return run_larger(self.visual, name, pixels, self.stride)

    def gradient_module(self, layer):
        """Return the block's first norm for a ViT.

        Only the class token leaves a ViT, so the patches at the output of its last block have no gradient.
        """
        module = super().gradient_module(layer)
        return module.ln_1 if self.is_vit else module

    def maps_module(self, layer, maps):
        module = super().maps_module(layer, maps)
        return module if maps == "activation" else module.attn

    def output_maps(self, output):
        return patch_maps(output.transpose(0, 1)) if self.is_vit else output  # tokens come as (N, B, d)

    def tapped_maps(self, module, seen, maps):
        if maps == "activation":
            return self.output_maps(seen.output)
        return patch_maps(read_attention(module, seen.input.transpose(0, 1), maps))

    def check_source(self, layer, maps, pca):
        layer = super().check_source(layer, maps, pca)
        if pca is not None:
            cells = (self.input_size // self.stride) ** 2
            check_components(pca, min(self.layer_modules()[layer].attn.embed_dim, cells))
        return layer


def embed_tokens(clip_model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Compute the embeddings (N, D) of CLIP's `encode_text` for tokens (N, L), in a sixth of the time.

    A token attends only to those before it, so everything after the longest text's end token can be left out.
    """
    ends = tokens.argmax(-1)  # the end token has the largest number
    length = int(ends.max()) + 1
    x = clip_model.token_embedding(tokens[:, :length]) + clip_model.positional_embedding[:length]
    x = x.transpose(0, 1)  # (L, N, d)
    for block in clip_model.transformer.resblocks:
        y = block.ln_1(x)
        mask = block.attn_mask[:length, :length].to(y)
        x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        x = x + block.mlp(block.ln_2(x))
    x = clip_model.ln_final(x.transpose(0, 1))
    return x[torch.arange(len(x)), ends] @ clip_model.text_projection


def resnet_layers(visual: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the layers of a ModifiedResNet: ``layer1.0``, … ``layer4``."""
    taps = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        stage = getattr(visual, name)
        taps |= {f"{name}.{n}": block for n, block in enumerate(stage)}
        taps[name] = stage[-1]  # its last block, however many the stage has
    return taps


@torch.inference_mode()
def embed_resnet_cells(attnpool: torch.nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """Compute unit embeddings (D, h, w) of the cells of a ModifiedResNet's last maps (C, h, w).

    Each goes through the value and output projections of the attention pool (MaskCLIP, Zhou et al. 2022).
    """
    cells = maps.to(attnpool.v_proj.weight.device).permute(1, 2, 0)  # (h, w, C)
    return unit(attnpool.c_proj(attnpool.v_proj(cells))).cpu().permute(2, 0, 1)


def run_larger(visual: torch.nn.Module, name: str, pixels: torch.Tensor, stride: int):
    """Run an image encoder on pixels of any size.

    Its positional embeddings, the parameter of this name, are interpolated (Dosovitskiy et al. 2021,
    section 3.2).
    """
    grid, side = visual.get_parameter(name), pixels.shape[-1] // stride
    if len(grid) == 1 + side**2:
        return visual(pixels)
    return torch.func.functional_call(visual, {name: resize_grid(grid, side)}, (pixels,))


def resize_grid(embedding: torch.Tensor, side: int) -> torch.Tensor:
    """Interpolate positional embeddings (1 + n, d), the class token's first, to (1 + side², d)."""
    grid = patch_maps(embedding[None])  # (1, d, h, w)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:1], grid[0].flatten(1).T])


def load(name: str, device: str) -> ClipModel:
    """Load one of OpenAI's models by its name; the `clip` package downloads it once."""
    return ClipModel(name, download_clip(name), device)


def download_clip(name: str) -> torch.nn.Module:
    """Load OpenAI's weights from the cache of the `clip` package, which downloads them once.

    Raises:
        VLScoreError: they are not in the cache and cannot be downloaded.
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
