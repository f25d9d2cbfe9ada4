"""CLIP as Hugging Face's CLIPModel."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from vlscore_lib.models.base import Preprocessing
from vlscore_lib.models.hugging_face import (
    HuggingFaceModel,
    find_tokenizer,
    load_net,
    load_tokenizer,
    read_preprocessing,
)
from vlscore_lib.models.openai_clip import CLIP_MEAN, CLIP_STD, import_clip
from vlscore_lib.models.vit import TransformerLayers
from vlscore_lib.prompts import VOCABULARY


def load(name: str, folder: Path, device: str) -> HuggingFaceClip:
    """Load a CLIPModel from a folder."""
    net = load_net("CLIPModel", folder)
    usual = Preprocessing(net.config.vision_config.image_size, CLIP_MEAN, CLIP_STD)
    return HuggingFaceClip(name, net, device, folder, read_preprocessing(folder, usual))


class Visual(torch.nn.Module):
    """The image encoder: pixels (B, 3, T, T) of any size -> embeddings (B, D)."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.vision, self.projection = net.vision_model, net.visual_projection

    def forward(self, pixels):
        is_other = pixels.shape[-1] != self.vision.config.image_size
        x = self.vision.embeddings(pixels, interpolate_pos_encoding=is_other)
        x = self.vision.encoder(inputs_embeds=self.vision.pre_layrnorm(x)).last_hidden_state
        return self.head(x)

    def head(self, tokens):
        return self.projection(self.vision.post_layernorm(tokens[:, 0]))


class HuggingFaceClip(TransformerLayers, HuggingFaceModel):
    """CLIP with a ViT, the same network as OpenAI's (Radford et al. 2021).

    A folder without a tokenizer has OpenAI's, if its vocabulary is as large.
    """

    def __init__(self, name, net, device, folder, preprocessing):
        super().__init__(name, net, device, folder, preprocessing)
        self.blocks = net.vision_model.encoder.layers
        self.stride = net.config.vision_config.patch_size

    def make_visual(self, net):
        return Visual(net)

    def embed_tokens(self, tokens):
        return self.visual.head(tokens)

    @cached_property
    def tokenizer(self):
        has_own = find_tokenizer(self.folder) or self.net.config.text_config.vocab_size != VOCABULARY
        return load_tokenizer(self.folder) if has_own else None

    def count_tokens(self, prompt):
        if self.tokenizer is None:
            return len(import_clip().clip._tokenizer.encode(prompt)) + 2  # start and end tokens
        return super().count_tokens(prompt)

    def embed_texts(self, prompts):
        if self.tokenizer is None:
            tokens = {
                "input_ids": import_clip().tokenize(prompts, self.context_length).long().to(self.device)
            }
        else:
            tokens = self.tokenize(prompts)
        return self.text_features(**tokens)
