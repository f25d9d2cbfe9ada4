"""SigLIP and SigLIP 2 as Hugging Face's SiglipModel and Siglip2Model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from vlscore_lib.models.base import Preprocessing
from vlscore_lib.models.hugging_face import HuggingFaceModel, load_net, read_preprocessing
from vlscore_lib.models.vit import TransformerLayers

HALF = (127.5,) * 3  # pixels of -1 to 1


def load(name: str, folder: Path, device: str) -> HuggingFaceSiglip:
    """Load a SiglipModel from a folder: of SigLIP, or of SigLIP 2 with inputs of one size."""
    net = load_net("SiglipModel", folder)
    return build(name, net, device, folder, net.config.vision_config.image_size)


def load_flexible(name: str, folder: Path, device: str) -> HuggingFaceSiglip:
    """Load a Siglip2Model from a folder: SigLIP 2 for any size, here the square of its training."""
    net = load_net("Siglip2Model", folder)
    vision = net.config.vision_config
    return build(name, net, device, folder, round(vision.num_patches**0.5) * vision.patch_size)


def build(name: str, net, device: str, folder: Path, size: int) -> HuggingFaceSiglip:
    usual = Preprocessing(size, HALF, HALF)
    found = read_preprocessing(folder, usual)
    return HuggingFaceSiglip(name, net, device, folder, replace(found, input_size=size))


class Visual(torch.nn.Module):
    """SigLIP's image encoder: pixels (B, 3, T, T) of any size -> embeddings (B, D)."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.vision = net.vision_model

    def embed(self, pixels):
        """Patches with their positions: (B, n, d)."""
        is_other = pixels.shape[-1] != self.vision.config.image_size
        return self.vision.embeddings(pixels, interpolate_pos_encoding=is_other)

    def forward(self, pixels):
        return self.head(self.vision.encoder(inputs_embeds=self.embed(pixels)).last_hidden_state)

    def head(self, tokens):
        return self.vision.head(self.vision.post_layernorm(tokens))


class FlexibleVisual(Visual):
    """SigLIP 2's image encoder for any aspect ratio (NaFlex), on a square without padding."""

    def embed(self, pixels):
        embeddings = self.vision.embeddings
        patch = embeddings.patch_size
        side = pixels.shape[-1] // patch
        # A patch's values come row by row, the colours of each pixel together.
        patches = pixels.unflatten(3, (side, patch)).unflatten(2, (side, patch)).permute(0, 2, 4, 3, 5, 1)
        old = embeddings.position_embedding_size
        positions = embeddings.position_embedding.weight.unflatten(0, (old, old))
        shape = torch.tensor([[side, side]])
        positions = embeddings.resize_positional_embeddings(positions, shape, side**2)
        return embeddings.patch_embedding(patches.flatten(3).flatten(1, 2)) + positions


class HuggingFaceSiglip(TransformerLayers, HuggingFaceModel):
    """SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025): no class token, attention pooling.

    Texts are padded to the full length, as in training, and the padding is seen.
    """

    prefix, has_class_token, padding = 0, False, "max_length"

    def __init__(self, name, net, device, folder, preprocessing):
        super().__init__(name, net, device, folder, preprocessing)
        self.blocks = net.vision_model.encoder.layers
        self.stride = net.config.vision_config.patch_size
        self.logit_bias = float(net.logit_bias)

    def make_visual(self, net):
        is_flexible = hasattr(net.vision_model.embeddings, "resize_positional_embeddings")
        return FlexibleVisual(net) if is_flexible else Visual(net)

    def embed_tokens(self, tokens):
        return self.visual.head(tokens)

    def embed_texts(self, prompts):
        return self.text_features(input_ids=self.tokenize(prompts)["input_ids"])
