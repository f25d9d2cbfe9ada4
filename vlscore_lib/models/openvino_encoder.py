"""OpenVINO: compiles an image encoder, or what reads its layers, for the CPU."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager, suppress
from io import BytesIO

import numpy as np
import torch

from vlscore_lib import __version__
from vlscore_lib.cache import describe_module, digest, hash_weights, read_cached, write_cached


def compile_encoder(visual: torch.nn.Module, size: int, precision: str):
    """Compile an image encoder: pixels (B, 3, S, S) -> features (B, F).

    Each thread encodes its own two images at a time, which is 10 % faster than all threads on
    one batch.

    Args:
        visual: the encoder.
        size: S.
        precision: ``"float32"`` or ``"bfloat16"``.
    """
    threads = torch.get_num_threads()
    compiled = compile_cached(visual, size, [-1, 3, size, size], choose_options(precision, threads))
    with no_usage_statistics():
        from openvino import AsyncInferQueue
    queue = AsyncInferQueue(compiled, threads)

    def receive(request, place):
        found, at = place  # a copy, since a request writes its next output to the same memory
        found[at] = request.get_output_tensor().data.copy()

    queue.set_callback(receive)

    def run(pixels):
        rows, found = pixels.contiguous().numpy(), {}
        for at in range(0, len(rows), 2):
            queue.start_async([rows[at : at + 2]], (found, at), share_inputs=True)
        queue.wait_all()
        return torch.from_numpy(np.concatenate([found[at] for at in sorted(found)]))

    return run


def compile_reader(reader: torch.nn.Module, size: int, precision: str):
    """Compile a reader of layers: pixels (1, 3, T, T) of any side T -> the layers' maps, (1, C, h, w) each.

    All threads work on the one image.

    Args:
        reader: a module that returns a tuple of maps.
        size: a side T that it takes.
        precision: ``"float32"`` or ``"bfloat16"``.
    """
    compiled = compile_cached(reader, size, [1, 3, -1, -1], choose_options(precision, streams=1))

    def run(pixels):
        request = compiled.create_infer_request()  # of its own, for calls from several threads
        request.infer([pixels.contiguous().numpy()], share_inputs=True)
        return [torch.from_numpy(each.data.copy()) for each in request.output_tensors]

    return run


def choose_options(precision: str, streams: int) -> dict[str, str]:
    """Choose OpenVINO's options for a precision, with PyTorch's number of threads."""
    return {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        "NUM_STREAMS": str(streams),
        # With it, several processes of one thread each would share the first core.
        "ENABLE_CPU_PINNING": "NO",
    }


def compile_cached(module: torch.nn.Module, size: int, shape: list[int], options: dict[str, str]):
    """Compile a module for the CPU, or read what was compiled before.

    It is kept on disk, for these weights, this machine and these versions.

    Args:
        module: takes pixels (B, 3, T, T).
        size: a side T that it takes.
        shape: of the pixels; -1 for a length that may vary.
        options: OpenVINO's.
    """
    with no_usage_statistics():
        import openvino

    core = openvino.Core()
    machine = [core.get_property("CPU", key) for key in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    versions = [__version__, torch.__version__, openvino.__version__]
    weights = hash_weights({"module": module})
    name = f"openvino-{digest(weights, describe_module(module), size, shape, options, machine, versions)}"
    if content := read_cached(name):
        with suppress(RuntimeError):
            return core.import_model(content, "CPU", options)
    graph = convert(module, size)
    graph.reshape(shape)
    compiled = core.compile_model(graph, "CPU", options)
    check_compiled(compiled, module, 2 * size if shape[-1] == -1 else size, options)
    compiled.export_model(content := BytesIO())
    write_cached(name, content.getvalue())
    return compiled


@torch.inference_mode()
def check_compiled(compiled, module: torch.nn.Module, size: int, options: dict[str, str]) -> None:
    """Compare what was compiled with the module itself: a tracer may have kept a size or skipped a branch.

    Raises:
        ValueError: it computes something else.
    """
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    # In bfloat16 a deep network may differ by a tenth; another function differs by more than a half.
    limit = 0.5 if options["INFERENCE_PRECISION_HINT"] == "bf16" else 0.05
    wanted = module(pixels)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for ours, theirs in zip(wanted, compiled([pixels.numpy()]).to_tuple(), strict=True):
        if ours.shape != theirs.shape or (ours - torch.from_numpy(theirs)).norm() > limit * ours.norm():
            raise ValueError("the compiled graph computes something else")


def convert(module: torch.nn.Module, size: int):
    """Convert a module of pixels (B, 3, T, T) to OpenVINO's graph with its PyTorch front end.

    `openvino.convert_model` would send usage statistics.
    """
    with no_usage_statistics():
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example, once = torch.zeros(2, 3, size, size), {"check_trace": False}  # a check takes two more traces
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on Python branches and deprecation
        traced = TorchScriptPythonDecoder(module, example_input=example, trace_kwargs=once)
    frontend = FrontEndManager().load_by_framework("pytorch")
    return frontend.convert(frontend.load(traced))


@contextmanager
def no_usage_statistics():
    """Hide the package with which OpenVINO would report its own import to Google Analytics."""
    sender = "openvino_telemetry"
    hide = sender not in sys.modules
    if hide:
        sys.modules[sender] = None
    try:
        yield
    finally:
        if hide:
            del sys.modules[sender]
