"""Embeddings of classes, one for all names and wordings of a class, and of the words to compare with."""

from __future__ import annotations

import torch

from vlscore_lib import __version__
from vlscore_lib.cache import digest, remember_tensor
from vlscore_lib.models.base import Model, unit
from vlscore_lib.models.fast_encoder import cached_by_model
from vlscore_lib.prompts import TEMPLATE, everyday_things

MANY_PROMPTS = 200  # from here on, embedding takes longer than the checksum of the model's weights


def class_embedding(model: Model, names: list[str], templates=(TEMPLATE,)) -> torch.Tensor:
    """Embed a class by all its names and prompt templates: (D,), unit, on the model's device.

    The result is the mean of the unit embeddings of every wording, scaled to length 1.

    Args:
        model: from `load_model`.
        names: the names of the class, which are synonyms.
        templates: prompts with ``{}`` where the name goes, see `prompt_templates`.
    """
    return embed_wordings(model, [[template.format(name) for name in names for template in templates]])[0]


def class_embeddings(model: Model, classes, templates=(TEMPLATE,)) -> torch.Tensor:
    """Embed many classes in batches: (N, D), unit, on the CPU.

    If there are 200 prompts or more, the result is kept in the folder ``VLSCORE_CACHE``, by default
    ``~/.cache/vlscore``.

    Args:
        model: from `load_model`.
        classes: for each of the N classes a list of its names, such as ``[["cat", "kitten"], ["dog"]]``.
        templates: prompts with ``{}`` where the name goes.
    """
    wordings = [[template.format(name) for name in names for template in templates] for names in classes]
    if sum(map(len, wordings)) < MANY_PROMPTS:
        return embed_wordings(model, wordings).cpu()
    name = f"classes-{digest(__version__, model.checksum(), wordings)}"
    return remember_tensor(name, lambda: embed_wordings(model, wordings).cpu())


def embed_wordings(model: Model, wordings: list[list[str]]) -> torch.Tensor:
    """Compute the mean direction of each list of prompts: (N, D)."""
    every = model.encode_text([prompt for prompts in wordings for prompt in prompts])
    return unit(torch.stack([each.mean(0) for each in every.split([*map(len, wordings)])]))


@cached_by_model
def embed_other_words(model: Model) -> torch.Tensor:
    """Embed the prompts that `p_absent` compares a text with: (N, D), unit, on the CPU.

    Args:
        model: its ``other_words``, or the 80 everyday words if it has none, are put into `TEMPLATE`.
    """
    return model.encode_text([TEMPLATE.format(word) for word in model.other_words or everyday_things()]).cpu()
