"""What all of open_clip's models share: the text encoder, its tokenizer, and the tuned values."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch

from vlscore_lib.models.base import Model, Preprocessing
from vlscore_lib.models.facts import usual_defaults


class FirstOutput(torch.nn.Module):
    """The first output of a network with several: CoCa's image encoder returns tokens, too."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, pixels):
        return self.net(pixels)[0]


class OpenClipModel(Model):
    """A model of open_clip (Cherti et al. 2023).

    Attributes:
        clip: open_clip's own module.
        logit_scale: the factor of the cosines in training; τ is 1 over it.
        logit_bias: SigLIP's offset of the scaled cosines, else None.  It is the same for all texts and
            images, so neither the floor nor the softmax depends on it.
    """

    def __init__(
        self,
        name: str,
        clip: torch.nn.Module,
        device: str,
        preprocessing: Preprocessing,
        make_tokenizer: Callable[[], Callable],
    ):
        self.clip = clip.float().eval().requires_grad_(False).to(device)
        self.make_tokenizer = make_tokenizer
        self.logit_scale = float(clip.logit_scale.exp())
        self.logit_bias = None if clip.logit_bias is None else float(clip.logit_bias)
        gives_tokens = getattr(clip.visual, "output_tokens", False)
        visual = FirstOutput(clip.visual) if gives_tokens else clip.visual
        defaults = usual_defaults(self.family, self.logit_scale)
        super().__init__(name, visual, device, preprocessing, defaults)

    @cached_property
    def tokenizer(self):
        """The tokenizer, loaded with the first text, since some must be downloaded."""
        return self.make_tokenizer()

    @property
    def context_length(self) -> int:
        return self.tokenizer.context_length

    def count_tokens(self, prompt):
        if hasattr(self.tokenizer, "encode"):  # open_clip's own
            return len(self.tokenizer.encode(prompt)) + 2  # start and end tokens
        return len(self.tokenizer.tokenizer(self.tokenizer.clean_fn(prompt)).input_ids)

    def embed_texts(self, prompts):
        return self.clip.encode_text(self.tokenizer(prompts).to(self.device))
