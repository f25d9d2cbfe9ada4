"""The fastest image encoder on this machine, compiled once for each model and precision."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial, wraps
from importlib.util import find_spec
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from vlscore_lib.errors import VLScoreError, check_choice
from vlscore_lib.masks import make_masks
from vlscore_lib.models.base import Model, unit
from vlscore_lib.models.gpu_encoder import GpuEncoder
from vlscore_lib.models.openvino_encoder import compile_encoder, compile_reader
from vlscore_lib.options import PRECISIONS


def choose_precision(precision: str, device: torch.device) -> str:
    """Choose what the precision ``"auto"`` means on a device: ``"float16"``, ``"bfloat16"`` or ``"float32"``.

    It means float16 on a GPU.  On a CPU it means bfloat16 if the CPU has instructions for it (AVX-512 BF16),
    else float32.

    Args:
        precision: one of `PRECISIONS`; others than ``"auto"`` are returned as they are.
        device: the model's device.

    Raises:
        VLScoreError: the precision is unknown, or float16 was asked for without a GPU.
    """
    check_choice(precision, PRECISIONS, "precision")
    if precision == "float16" and device.type != "cuda":
        raise VLScoreError("precision float16 needs a GPU: choose auto, float32 or bfloat16")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "float16"
    is_fast = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bfloat16" if is_fast else "float32"


def cached_by_model(function):
    """Cache what a function computes from (model, …) for as long as the model lives."""
    answers = WeakKeyDictionary()

    @wraps(function)
    def cached(model, *rest):
        found = answers.setdefault(model, {})
        if rest not in found:
            found[rest] = function(model, *rest)
        return found[rest]

    return cached


@cached_by_model
def compiled_encoder(model: Model, precision: str):
    """Compile the model's image encoder with OpenVINO, see `compile_encoder`; None if it cannot."""
    return try_to_compile(model, compile_encoder, model.visual, precision)


@cached_by_model
def compiled_reader(model: Model, wanted: tuple[tuple[str, str], ...], precision: str):
    """Compile `Model.read_layers` with OpenVINO, see `compile_reader`; None if it cannot."""
    return try_to_compile(model, compile_reader, LayerReader(model, wanted), precision)


def try_to_compile(model: Model, compile, module: torch.nn.Module, precision: str):
    """Compile a part of a model with OpenVINO.

    Returns None, and says so on stderr, if OpenVINO cannot compile it.
    """
    try:
        return compile(module, model.input_size, precision)
    except Exception as error:  # the tracer and the front end raise nearly any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        print(f"vlscore: OpenVINO cannot compile {model.name} ({reason}): PyTorch runs it", file=sys.stderr)
        return None


class LayerReader(torch.nn.Module):
    """`Model.read_layers` as a module, which a tracer can follow: pixels -> a tuple of maps."""

    def __init__(self, model: Model, wanted: tuple[tuple[str, str], ...]):
        super().__init__()
        self.visual, self.wanted = model.visual, wanted
        self.read = partial(model.read_layers, wanted=wanted)

    def forward(self, pixels):
        return tuple(self.read(pixels))


@cached_by_model
def compiled_for_gpu(model: Model, precision: str) -> GpuEncoder:
    """Build the model's image encoder for its GPU, in float16 or bfloat16."""
    return GpuEncoder(model.visual, model.input_size, getattr(torch, precision))


class FastEncoder(NamedTuple):
    """An image encoder: pixels (B, 3, S, S) -> unit embeddings (B, D) on the model's device.

    Attributes:
        model: the model that it belongs to.
        run: pixels, and maps (B, h, w) that mask them or None, -> features (B, F).
    """

    model: Model
    run: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]

    def __call__(self, pixels: torch.Tensor, maps: torch.Tensor | None = None) -> torch.Tensor:
        """Embed images, each under the mask of its map if maps (B, h, w) are given."""
        return unit(self.model.project(self.run(pixels, maps).float()))


def mask_first(run):
    """Make an encoder of pixels and maps from one that takes masked pixels."""

    def run_masked(pixels, maps=None):
        return run(pixels if maps is None else pixels * make_masks(maps, pixels.shape[-1])[:, None])

    return run_masked


def fast_encoder(model: Model, precision: str = "auto") -> FastEncoder:
    """Build the fastest encoder on this machine at a precision.

    On a CPU, OpenVINO compiles it if installed; on a GPU, PyTorch compiles it in half precision.  Otherwise
    PyTorch runs it as it is, under autocast for bfloat16.  In float32 its embeddings equal those of
    `Model.encode_image` up to rounding; in half precision they differ more.  Compiled encoders are kept for
    the life of the model.

    Args:
        model: from `load_model`.
        precision: one of `PRECISIONS`, see `choose_precision`.

    Returns:
        A ``FastEncoder``.  Call it with pixels (B, 3, S, S) and, optionally, raw maps (B, h, w) on the same
        device.  It turns each map into a mask, see `make_masks`, and multiplies the pixels by it.  It returns
        embeddings (B, D), unit, on the model's device.
    """
    precision = choose_precision(precision, model.device)
    if model.device.type == "cpu" and find_spec("openvino") and (run := compiled_encoder(model, precision)):
        return FastEncoder(model, mask_first(run))
    if model.device.type == "cuda" and precision != "float32":
        return FastEncoder(model, compiled_for_gpu(model, precision))

    @torch.inference_mode()
    def run(pixels):
        # Convolutions are faster with channels last.
        pixels = pixels.to(model.device, memory_format=torch.channels_last)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            return model.visual(pixels)

    return FastEncoder(model, mask_first(run))


def read_copy(model: Model, pixels: torch.Tensor, wanted: tuple[tuple[str, str], ...], precision: str):
    """Read several sources of maps of one image of any size, as fast as this machine can.

    It is `Model.read_layers`.  On a CPU, OpenVINO compiles it for a CNN, if installed.

    Args:
        model: from `load_model`.
        pixels: (1, 3, T, T), where T is a multiple of ``model.stride``.
        wanted: pairs of a layer and a kind of maps.
        precision: one of `PRECISIONS`, see `choose_precision`.

    Returns:
        (1, C, h, w) for each pair, float32.
    """
    precision = choose_precision(precision, model.device)
    can_compile = model.device.type == "cpu" and not model.is_vit and find_spec("openvino")
    if can_compile and (run := compiled_reader(model, wanted, precision)):
        return run(pixels)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return model.read_layers(pixels.to(memory_format=torch.channels_last), wanted)


def choose_batch_size(model: Model) -> int:
    """Choose how many masked images to encode at once on the model's device: an integer.

    On a CPU that is 8 for each thread; on a GPU a power of two from 16 to 512 that fits in half of the free
    memory.

    Args:
        model: from `load_model`.
    """
    if model.device.type != "cuda":
        return 8 * torch.get_num_threads()
    free, _ = torch.cuda.mem_get_info(model.device)
    # An encoder's activations take about 60 times an image's float32 pixels; they get half of what is free.
    fits = int(min(max(free // 2 // (60 * 3 * 4 * model.input_size**2), 16), 512))
    return 1 << (fits.bit_length() - 1)  # a power of two, see `choose_padded_size`
