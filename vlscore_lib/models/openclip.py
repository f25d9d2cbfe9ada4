"""Models of open_clip: ``open_clip:ARCHITECTURE/TAG`` and ``open_clip:ARCHITECTURE/PATH``."""

from __future__ import annotations

import json
import logging
import os
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from vlscore_lib.errors import VLScoreError, import_extra, nearest
from vlscore_lib.models.base import Preprocessing
from vlscore_lib.models.checkpoints import check_finite
from vlscore_lib.models.clip_layouts import choose_place, flatten, simplify_name
from vlscore_lib.models.facts import OPEN_CLIP, find_weights, hub_cache
from vlscore_lib.models.hub import fetch
from vlscore_lib.models.openclip_encoders import OpenClipModel, choose_encoder
from vlscore_lib.models.tensor_files import read_tensors

CONFIG_FILE = "open_clip_config.json"


class Source(NamedTuple):
    """Where the weights of a model are, and what is known about them.

    Attributes:
        architecture: one of open_clip's.
        weights: their file; None where a tag's is not yet looked for.
        facts: of the tag, or of the configuration beside the file: mean, std, interpolation, quick_gelu.
        tag: open_clip's name of the weights, or None.
    """

    architecture: str
    weights: Path | None
    facts: dict
    tag: str | None = None


def load(name: str, device: str) -> OpenClipModel:
    """Load a model of open_clip.

    Args:
        name: ``open_clip:ARCHITECTURE/TAG`` for published weights, ``open_clip:ARCHITECTURE/PATH`` for those
            in a file or a folder, see `find_weights`.

    Raises:
        VLScoreError: open_clip is not installed, no such architecture, tag or file, weights that cannot be
            downloaded here, or do not fit.
    """
    open_clip = import_extra("open_clip", "models")
    source = find_source(open_clip, name.removeprefix(OPEN_CLIP))
    weights = source.weights or download_weights(open_clip, source)
    with quiet():
        net = open_clip.create_model(
            source.architecture,
            load_weights=False,
            pretrained_text=False,
            force_quick_gelu=bool(source.facts.get("quick_gelu", False)),
        )
    fit_weights(open_clip, net, weights, source.architecture)
    tokenizer = partial(make_tokenizer, open_clip, source.architecture, Path(weights).parent)
    preprocessing = read_preprocessing(source.facts, net.visual.image_size)
    return choose_encoder(net.visual)(name, net, device, preprocessing, tokenizer)


def find_source(open_clip, name: str) -> Source:
    """Find what ``ARCHITECTURE/TAG`` or ``ARCHITECTURE/PATH`` means."""
    architecture, _, rest = name.partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        hint = nearest(architecture, known)
        raise VLScoreError(
            f"open_clip has no architecture {architecture!r}: {hint}, see `vlscore models open_clip`"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if rest in tags:
        return Source(architecture, None, open_clip.get_pretrained_cfg(architecture, rest), rest)
    if rest and (weights := find_weights(rest)):
        return Source(architecture, weights, read_facts(open_clip, architecture, weights.parent))
    what = f"neither a tag nor a file {rest!r}" if rest else "a tag or a file to name"
    hint = nearest(rest, tags) if tags else "its weights are not published, so give a file"
    raise VLScoreError(f"open_clip's {architecture} has {what}: {hint}")


def read_facts(open_clip, architecture: str, folder: Path) -> dict:
    """What preprocessing weights in a file need: by the configuration beside them, else as all published
    weights of the architecture, if they agree."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        is_quick = config.get("model_cfg", {}).get("quick_gelu", False)
        return config.get("preprocess_cfg", {}) | {"quick_gelu": is_quick}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, AttributeError) as error:
        raise VLScoreError(
            f"{folder / CONFIG_FILE} cannot be used for the weights beside it ({error}): fix it"
        ) from None
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    every = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    names = ("mean", "std", "interpolation")
    kinds = {tuple(each.get(name) for name in names) for each in every}
    return dict(zip(names, kinds.pop())) if len(kinds) == 1 else {}


def read_preprocessing(facts: dict, image_size) -> Preprocessing:
    """Read the preprocessing from open_clip's facts, for pixel values 0–1; CLIP's own by default."""
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean, std = facts.get("mean") or OPENAI_DATASET_MEAN, facts.get("std") or OPENAI_DATASET_STD
    size = image_size if isinstance(image_size, int) else image_size[0]
    scaled = (tuple(255 * each for each in values) for values in (mean, std))
    return Preprocessing(size, *scaled, facts.get("interpolation") or "bicubic")


def download_weights(open_clip, source: Source) -> Path:
    """Find the file of a tag's weights in the cache, or download it once; safetensors if available."""
    repository, name = os.path.split(source.facts.get("hf_hub", ""))
    reason = ""
    if repository:
        stem = name.rpartition(".")[0] or "open_clip_*"
        for file in (f"{stem}.safetensors", name or "open_clip_pytorch_model.bin"):
            folder, reason = fetch(repository, [file])
            if folder:
                return next(iter(sorted(folder.glob(file))))
    else:
        try:
            with quiet():
                return Path(open_clip.download_pretrained(source.facts))
        except Exception as error:  # urllib's, and open_clip's of a wrong checksum
            reason = str(error).splitlines()[0][:120]
    raise VLScoreError(
        f"the weights of {source.architecture}/{source.tag} cannot be downloaded"
        f" ({reason or 'no such file'}): put {repository or source.facts.get('url')} into {hub_cache()},"
        f" or name a file, as open_clip:{source.architecture}/PATH"
    )


def fit_weights(open_clip, net: torch.nn.Module, path: Path, architecture: str) -> None:
    """Put the weights of a file into a network, as open_clip does, without running code of the file.

    Raises:
        VLScoreError: a file that cannot be read, weights that are not finite, missing, or of another shape.
    """
    try:
        state = convert_weights(net, find_open_clip_weights(read_tensors(path)))
        check_finite(state)
        found = net.load_state_dict(state, strict=False)
    except VLScoreError:
        raise
    except Exception as error:  # the unpicklers and PyTorch raise nearly any type
        lines = [line.strip() for line in str(error).splitlines() if not line.startswith("Error(s) in")]
        reason = lines[0][:160] if lines else type(error).__name__
        raise VLScoreError(
            f"{path} does not fit open_clip's {architecture} ({reason}): name its architecture"
        ) from None
    for names, what in ((found.missing_keys, "lacks"), (found.unexpected_keys, "has beside it")):
        if names:
            raise VLScoreError(
                f"{path} does not fit open_clip's {architecture} (it {what} {len(names)} tensors, {names[0]}"
                " for instance): name its architecture"
            )


def find_open_clip_weights(content) -> dict[str, torch.Tensor]:
    """Find the weights in a file's content, under any key and prefix: name -> tensor, in float32."""
    tensors = {simplify_name(name): value for name, value in flatten(content)}
    sign = "logit_scale"
    places = [name.removesuffix(sign) for name in tensors if name == sign or name.endswith(f".{sign}")]
    place = choose_place(places) if places else ""
    return {
        name.removeprefix(place): value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
        if name.startswith(place)
    }


def convert_weights(net: torch.nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert weights of older and other layouts to a network's own, with open_clip's converters."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    state = convert_state_dict(net, state)
    if "positional_embedding" in state and not hasattr(net, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        if name in state and getattr(net, name, None) is not None:
            state[name] = state[name].reshape(getattr(net, name).shape)
    if "logit_bias" not in state and net.logit_bias is not None:
        state["logit_bias"] = torch.zeros_like(net.logit_bias)
    expected = net.state_dict()
    for name in (
        "text.transformer.embeddings.position_ids",
        "input_resolution",
        "context_length",
        "vocab_size",
    ):
        if name not in expected:
            state.pop(name, None)
    resize_pos_embed(state, net)
    resize_text_pos_embed(state, net)
    return state


def make_tokenizer(open_clip, architecture: str, folder: Path):
    """The tokenizer of an architecture: from the folder of its weights, else open_clip's, downloaded once.

    Raises:
        VLScoreError: it is to be downloaded, and cannot be.
    """
    text = open_clip.get_model_config(architecture)["text_cfg"]
    try:
        with quiet():
            if text.get("hf_tokenizer_name") and (folder / "tokenizer.json").is_file():
                return open_clip.tokenizer.HFTokenizer(
                    str(folder),
                    context_length=text.get("context_length", 77),
                    tokenizer_mode=text.get("tokenizer_mode"),
                    **text.get("tokenizer_kwargs", {}),
                )
            return open_clip.get_tokenizer(architecture)
    except Exception as error:  # the hub's own errors are of many types
        reason = str(error).strip().splitlines()[0][:120]
        raise VLScoreError(
            f"{architecture}'s tokenizer {text.get('hf_tokenizer_name')} cannot be downloaded ({reason}):"
            f" put it into {hub_cache()}, or its tokenizer.json beside the weights"
        ) from None


@contextmanager
def quiet():
    """Silence open_clip's remarks on what it has loaded; real problems raise errors."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
