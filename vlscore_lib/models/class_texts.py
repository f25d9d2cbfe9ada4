"""Embeddings of classes: one for a class with several names, or for several wordings."""

from __future__ import annotations

import torch

from vlscore_lib import __version__
from vlscore_lib.cache import digest, remember_tensor
from vlscore_lib.models.base import Model, unit
from vlscore_lib.prompts import TEMPLATE

MANY_PROMPTS = 200  # so many take longer to embed than the model's weights to checksum


def class_embedding(model: Model, names: list[str], templates=(TEMPLATE,)) -> torch.Tensor:
    """Embed a class by all its synonyms and prompt templates.

    Args:
        names: the synonyms of the class.
        templates: prompts with ``{}`` where the name goes; CLIP has 80 for ImageNet.

    Returns:
        (D,): the mean of the unit embeddings of every wording, scaled to length 1.
    """
    return embed_wordings(model, [[template.format(name) for name in names for template in templates]])[0]


def class_embeddings(model: Model, classes, templates=(TEMPLATE,)) -> torch.Tensor:
    """`class_embedding` of many classes, in batches: (N, D), on the CPU.  Many are kept on disk.

    Args:
        classes: the synonyms of each.
    """
    wordings = [[template.format(name) for name in names for template in templates] for names in classes]
    if sum(map(len, wordings)) < MANY_PROMPTS:
        return embed_wordings(model, wordings).cpu()
    name = f"classes-{digest(__version__, model.checksum(), wordings)}"
    return remember_tensor(name, lambda: embed_wordings(model, wordings).cpu())


def embed_wordings(model: Model, wordings: list[list[str]]) -> torch.Tensor:
    """The mean direction of each list of prompts: (N, D)."""
    every = model.encode_text([prompt for prompts in wordings for prompt in prompts])
    return unit(torch.stack([each.mean(0) for each in every.split([*map(len, wordings)])]))
