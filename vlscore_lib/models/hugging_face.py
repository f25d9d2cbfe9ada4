"""What all models of Hugging Face's transformers share: loading, the text encoder, preprocessing."""

from __future__ import annotations

import logging
import warnings
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from vlscore_lib.errors import VLScoreError, import_extra
from vlscore_lib.models.base import Model, Preprocessing
from vlscore_lib.models.checkpoints import check_finite
from vlscore_lib.models.facts import usual_defaults
from vlscore_lib.models.hub import list_weights, read_optional

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


class HuggingFaceModel(Model):
    """A model of transformers.

    Attributes:
        net: transformers' own module.
        logit_scale: the factor of the cosines in training; τ is 1 over it.
        logit_bias: SigLIP's offset of the scaled cosines, see `OpenClipModel`, else None.
        padding: of texts, ``"longest"`` or ``"max_length"``, as the tokenizer takes it.
    """

    logit_bias: float | None = None
    padding = "longest"

    def __init__(
        self, name: str, net: torch.nn.Module, device: str, folder: Path, preprocessing: Preprocessing
    ):
        self.net, self.folder = net.float().eval().requires_grad_(False).to(device), folder
        defaults = usual_defaults(self.family, self.logit_scale)
        super().__init__(name, self.make_visual(net), device, preprocessing, defaults)

    @property
    def logit_scale(self) -> float:
        return float(self.net.logit_scale.exp())

    @property
    def context_length(self) -> int:
        return self.net.config.text_config.max_position_embeddings

    @cached_property
    def tokenizer(self):
        """Of texts; made when a text comes."""
        return load_tokenizer(self.folder)

    def count_tokens(self, prompt):
        return len(self.tokenizer(prompt).input_ids)

    def tokenize(self, prompts: list[str]):
        """Token numbers and what belongs to them, as the text encoder takes them."""
        found = self.tokenizer(
            prompts,
            padding=self.padding,
            max_length=self.context_length,
            truncation=True,
            return_tensors="pt",
        )
        return found.to(self.device)

    def embed_texts(self, prompts):
        return self.text_features(**self.tokenize(prompts))

    def text_features(self, **tokens) -> torch.Tensor:
        """The text encoder's embeddings (N, D) of token numbers and what belongs to them."""
        found = self.net.get_text_features(**tokens)
        return getattr(found, "pooler_output", found)

    def make_visual(self, net: torch.nn.Module) -> torch.nn.Module:
        """The image encoder: pixels (B, 3, S, S) -> features (B, F)."""
        raise NotImplementedError


def load_net(kind: str, folder: Path) -> torch.nn.Module:
    """Load transformers' module of a class from the safetensors of a folder; no code of it is run.

    Raises:
        VLScoreError: transformers is not installed, no safetensors, weights that are missing, not finite, or
            of another shape.
    """
    transformers = import_extra("transformers", "models")
    if not list_weights(folder):
        raise VLScoreError(
            f"{folder} has no safetensors file: save its weights as one, since other files may hold code"
        )
    try:
        with quiet():
            net, report = getattr(transformers, kind).from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ValueError(f"it lacks {len(missing)} tensors, {missing[0]} for instance")
        check_finite(net.state_dict())
    except Exception as error:  # transformers raises nearly any type
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:200] if lines else type(error).__name__
        raise VLScoreError(
            f"{folder} cannot be loaded as a {kind} ({reason}): give the folder of a complete model"
        ) from None
    return net


def find_tokenizer(folder: Path) -> Path | None:
    """Find the file of a folder's tokenizer; None if there is none."""
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def load_tokenizer(folder: Path):
    """Load the tokenizer of a folder.

    Raises:
        VLScoreError: there is none, or it cannot be read.
    """
    transformers = import_extra("transformers", "models")
    if not find_tokenizer(folder):
        raise VLScoreError(f"{folder} has no tokenizer: put the model's tokenizer.json into it")
    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except Exception as error:  # transformers raises nearly any type
        lines = str(error).strip().splitlines()
        reason = lines[0][:160] if lines else type(error).__name__
        raise VLScoreError(
            f"the tokenizer in {folder} cannot be read ({reason}): put a complete one there"
        ) from None


def read_preprocessing(folder: Path, usual: Preprocessing) -> Preprocessing:
    """Read a model's preprocessing from the files in its folder; what they leave out has its usual value.

    Pixels v of 0–255 become (v·f - o - mean) / std with the factor f and, where it says so, the offset
    o = 1.  The input is as large as what is cut out, or what the image is resized to.
    """
    facts = read_optional(folder, "preprocessor_config.json")
    facts = facts or read_optional(folder, "processor_config.json").get("image_processor", {})
    if not facts:
        return usual
    try:
        mean, std = facts.get("image_mean"), facts.get("image_std")
        if facts.get("do_normalize") is False:
            mean, std = (0.0,) * 3, (1.0,) * 3
        factor, offset = facts.get("rescale_factor", 1 / 255), float(bool(facts.get("rescale_offset", False)))
        size = facts.get("crop_size") if facts.get("do_center_crop") else facts.get("size")
        return Preprocessing(
            read_side(size) or usual.input_size,
            tuple((offset + each) / factor for each in mean) if mean else usual.mean,
            tuple(each / factor for each in std) if std else usual.std,
            Image.Resampling(facts["resample"]).name.lower()
            if facts.get("resample")
            else usual.interpolation,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise VLScoreError(
            f"the preprocessor's configuration in {folder} cannot be used ({error}): fix it"
        ) from None


def read_side(size) -> int | None:
    """Read the side from a size, which is a number or a dictionary of sides."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return None if size is None else int(size)


class quiet(warnings.catch_warnings):
    """Silence transformers' remarks and progress bars; real problems raise errors."""

    def __enter__(self):
        from transformers.utils import logging as remarks

        super().__enter__()
        warnings.simplefilter("ignore")
        self.before = remarks.get_verbosity(), remarks.is_progress_bar_enabled(), logging.root.manager.disable
        remarks.set_verbosity_error()
        remarks.disable_progress_bar()
        logging.disable(logging.ERROR)

    def __exit__(self, *error):
        from transformers.utils import logging as remarks

        verbosity, has_bar, disabled = self.before
        remarks.set_verbosity(verbosity)
        if has_bar:
            remarks.enable_progress_bar()
        logging.disable(disabled)
        return super().__exit__(*error)
