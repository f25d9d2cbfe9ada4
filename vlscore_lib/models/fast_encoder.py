"""The fastest image encoder here: compiled once for each model and precision."""

from __future__ import annotations

import sys
from functools import wraps
from importlib.util import find_spec
from weakref import WeakKeyDictionary

import torch

from vlscore_lib.errors import check_choice
from vlscore_lib.models.base import Model, unit
from vlscore_lib.models.openvino_encoder import compile_openvino
from vlscore_lib.options import PRECISIONS


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve ``"auto"``: bfloat16 only where the hardware multiplies it, float32 elsewhere."""
    check_choice(precision, PRECISIONS, "precision")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bfloat16" if fast else "float32"


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
def compiled(model: Model, precision: str):
    """The model's image encoder, compiled by OpenVINO: pixels (B, 3, S, S) -> features (B, F).

    None, said on stderr, where OpenVINO cannot compile it.
    """
    try:
        return compile_openvino(model.visual, model.input_size, precision)
    except Exception as error:  # the tracer and the front end raise nearly any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        print(f"vlscore: OpenVINO cannot compile {model.name} ({reason}): PyTorch runs it", file=sys.stderr)
        return None


def fast_encoder(model: Model, precision: str = "auto"):
    """The fastest encoder here that equals `Model.encode_image`: pixels (B, 3, S, S) -> (B, D).

    On a CPU with OpenVINO it is compiled once for each precision; without OpenVINO, where that cannot
    compile it, and on other devices it is PyTorch, under autocast for bfloat16.
    """
    precision = choose_precision(precision, model.device)
    on_cpu = model.device.type == "cpu" and find_spec("openvino")
    if on_cpu and (run := compiled(model, precision)):
        return lambda pixels: unit(model.project(run(pixels)))
    if precision == "float32":
        return lambda pixels: model.encode_image(pixels).cpu()

    def autocast(pixels):
        with torch.autocast(model.device.type, torch.bfloat16):
            return model.encode_image(pixels).cpu()

    return autocast


def choose_batch_size(model: Model) -> int:
    """How many masked images to encode at once: 8 for each CPU thread, or what fits in a GPU's memory."""
    if model.device.type != "cuda":
        return 8 * torch.get_num_threads()
    free, _ = torch.cuda.mem_get_info(model.device)
    # An encoder's activations take some 60 times an image's float32 pixels; they get half of what is free.
    return min(max(free // 2 // (60 * 3 * 4 * model.input_size**2), 16), 512)
