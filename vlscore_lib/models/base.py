"""A model: an image encoder and a text encoder that share an embedding space, and how its layers are read."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vlscore_lib.cache import hash_weights
from vlscore_lib.errors import VLScoreError
from vlscore_lib.images import fit_region, load_image
from vlscore_lib.models.facts import Defaults
from vlscore_lib.options import MAPS, EncodingOptions
from vlscore_lib.prompts import MAX_TOKENS, check_prompt

TEXT_BATCH = 64  # prompts that are embedded at once


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Scale vectors (…, D) to length 1, in float32.

    Args:
        vectors: (…, D).
    """
    return F.normalize(vectors.float(), dim=-1)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the encoder's input.

    Attributes:
        input_size: S, the side of the square input in pixels.
        mean: mean of red, green and blue, in the units of 8-bit pixels, 0 to 255.
        std: standard deviation of red, green and blue, in the same units.
        interpolation: ``"bicubic"``, ``"bilinear"`` or another filter of PIL, in lower case.
    """

    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"

    def __call__(self, image, fit: str = "squash", size: int | None = None) -> torch.Tensor:
        """Fit an image into the square input and normalise it.

        Args:
            image: a path or a PIL image.
            fit: one of `FITS`, see `fit_region`.
            size: side of the square in pixels; None means S.

        Returns:
            X (3, S, S), float32, on the CPU; pixels outside the image are 0, the mean colour.
        """
        S, image = size or self.input_size, load_image(image)
        (W, H), (x0, y0, x1, y1) = fit_region(image.size, fit)
        if fit == "crop":
            x0, y0, x1, y1 = snap_crop(W, H, S)
        seen = (max(x0, 0), max(y0, 0), min(x1, W), min(y1, H))
        left, right = (round((x - x0) * S / (x1 - x0)) for x in seen[::2])
        top, bottom = (round((y - y0) * S / (y1 - y0)) for y in seen[1::2])
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        filter = Image.Resampling[self.interpolation.upper()]
        patch = image.resize((right - left, bottom - top), filter, box=seen)
        values = torch.from_numpy(np.asarray(patch, dtype=np.float32))  # (S, S, 3) of 0–255
        pixels = torch.zeros(3, S, S)
        normalised = (values - torch.tensor(self.mean)) / torch.tensor(self.std)
        pixels[:, top:bottom, left:right] = normalised.permute(2, 0, 1)
        return pixels


def snap_crop(W: int, H: int, S: int) -> tuple[float, ...]:
    """Cut the centred square of a W×H image as CLIP's own preprocessing does: (x0, y0, x1, y1).

    CLIP resizes the image to a short side of S and cuts S×S pixels out of it, both in whole pixels.
    """

    def cut(side: int) -> tuple[float, float]:
        resized = int(S * side / min(W, H))
        start = round((resized - S) / 2)
        return start * side / resized, (start + S) * side / resized

    (x0, x1), (y0, y1) = cut(W), cut(H)
    return x0, y0, x1, y1


class Model:
    """An image encoder and a text encoder that share an embedding space.

    `load_model` returns one.  To add a family of models, write a subclass, see "Add a family of models" in
    the API reference.

    Args:
        name: the model's name.
        visual: the image encoder, a module that turns pixels (B, 3, S, S) into features (B, F).
        device: the PyTorch device for the weights.
        preprocessing: a ``Preprocessing``: input side, mean, standard deviation and interpolation.
        defaults: ``Defaults``: the model's τ, α, α of refined maps, and prominence of their peaks.

    Attributes:
        name: as given to `load_model`.
        family: kind of image encoder: ``"cnn"``, or ``"vit"`` if its layers are blocks of a Vision
            Transformer.
        visual: the image encoder, in evaluation mode and without gradients.
        layers: names of the layers that `feature_maps` can read; the last one is the default.
        device: the PyTorch device of the weights.
        preprocessing: how an image becomes the encoder's input.
        defaults: a ``Defaults``; the properties below return each of its values.
        stride: side of a cell of the last layer, in pixels of the input.
        fine_layer: name of the layer whose features separate the object from the background in `refine`.
        other_words: names of things that the model knows, to compare with in `p_absent`; None means the 80
            everyday words, which are COCO's classes.
        context_length: the largest number of tokens in a prompt, start and end tokens included.
    """

    family = "cnn"
    stride = 32
    fine_layer: str
    other_words: tuple[str, ...] | None = None
    context_length = MAX_TOKENS

    def __init__(self, name, visual, device, preprocessing: Preprocessing, defaults: Defaults):
        self.name, self.device = name, torch.device(device)
        self.visual = visual.eval().requires_grad_(False).to(self.device)
        self.preprocessing, self.defaults = preprocessing, defaults

    @property
    def is_vit(self) -> bool:
        """Whether ``family`` is ``"vit"``."""
        return self.family == "vit"

    @property
    def input_size(self) -> int:
        """S, the side of the square input in pixels."""
        return self.preprocessing.input_size

    @property
    def temperature(self) -> float:
        """τ, the temperature that `localize` uses by default."""
        return self.defaults.temperature

    @property
    def threshold(self) -> float:
        """α, the CAM threshold of plain maps that `localize` uses by default."""
        return self.defaults.threshold

    @property
    def refined_threshold(self) -> float:
        """α for refined maps."""
        return self.defaults.refined_threshold

    @property
    def prominence(self) -> float:
        """How far a peak of a refined map must rise to have a box of its own, see `split_instances`."""
        return self.defaults.prominence

    @property
    def layers(self) -> list[str]:
        return list(self.layer_modules())

    def preprocess(self, image, fit: str = "squash", size: int | None = None) -> torch.Tensor:
        """Fit an image into the square input and normalise it.

        Args:
            image: a path or a PIL image.
            fit: one of `FITS`, see `fit_region`.
            size: side of the square in pixels; None means S.

        Returns:
            X (3, S, S), float32, on the CPU; pixels outside the image are 0, the mean colour.
        """
        return self.preprocessing(image, fit, size)

    # What a family defines.

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Project the image encoder's features (B, F) into the joint space: (B, D), of any norm.

        By default the features are taken as they are, so F must equal D.
        """
        return features

    def layer_modules(self) -> dict[str, torch.nn.Module]:
        """Map each layer's name to the module whose output is its maps, the last layer last."""
        raise NotImplementedError

    def count_tokens(self, prompt: str) -> int:
        """Count the tokens of a prompt, start and end tokens included."""
        raise NotImplementedError

    def embed_texts(self, prompts: list[str]) -> torch.Tensor:
        """Embed prompts that have been checked: (N, D), of any norm and on any device."""
        raise NotImplementedError

    def maps_module(self, layer: str, maps: str) -> torch.nn.Module:
        """Return the module from whose input or output a kind of maps is read."""
        return self.layer_modules()[layer]

    def gradient_module(self, layer: str) -> torch.nn.Module:
        """Return the module at whose output gradient methods read a layer."""
        return self.layer_modules()[layer]

    def output_maps(self, output: torch.Tensor) -> torch.Tensor:
        """Arrange a layer's output as maps (B, C, h, w); by default it has this shape already."""
        return output

    def run_visual(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the image encoder on pixels (B, 3, T, T), where T is a multiple of ``stride``."""
        return self.visual(pixels)

    def tapped_maps(self, module, seen, maps: str) -> torch.Tensor:
        """Compute maps (B, C, h, w) of a kind from a module's input and output, see `tapped`."""
        return self.output_maps(seen.output)

    def cell_embeddings(self, maps: torch.Tensor) -> torch.Tensor | None:
        """Project each cell of the last layer's maps (C, h, w) into the joint space: (D, h, w), on the CPU.

        The vectors are unit, except for ``lite0-minilm``, where they are class logits.  None, the default,
        means that the architecture has no such embeddings.  A refined CNN needs them.
        """
        return None

    def unknown_words(self, prompt: str) -> list[str]:
        """List the words of a prompt that training never met; the model cannot tell them apart.

        Only the scenes models know their words: ``scenes-rn`` returns ``["zebra"]`` for ``"a red zebra"``.
        Other models return an empty list.
        """
        return []

    # What all families share.

    @torch.inference_mode()
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed pixels (B, 3, S, S), on any device: (B, D), unit, float32, on the model's device."""
        pixels = pixels.to(self.device, memory_format=torch.channels_last)  # convolutions are faster so
        return unit(self.project(self.visual(pixels).float()))

    @torch.inference_mode()
    def encode_text(self, prompts: list[str]) -> torch.Tensor:
        """Embed N prompts: (N, D), unit, float32, on the model's device.

        Raises:
            VLScoreError: a prompt is empty, has a NUL character, is not valid Unicode or has too many tokens.
        """
        if isinstance(prompts, str):
            raise VLScoreError(f"expected a list of prompts, not one text: write [{prompts!r}]")
        for prompt in prompts:
            check_prompt(prompt, self.count_tokens, self.context_length)
        tokens = [*map(self.count_tokens, prompts)]
        order = sorted(range(len(prompts)), key=tokens.__getitem__)  # so that little is padded
        batches = [order[start : start + TEXT_BATCH] for start in range(0, len(order), TEXT_BATCH)]
        found = torch.cat([unit(self.embed_texts([prompts[n] for n in rows])) for rows in batches])
        return found[torch.tensor(order).argsort().to(found.device)]

    def check_source(self, layer: str | None, maps: str, pca: int | None) -> str:
        """Check a source of maps, and return its layer's name, by default the last layer's.

        Raises:
            VLScoreError: the layer or the kind of maps is unknown, or this encoder does not have it.
        """
        layer = str(self.layers[-1] if layer is None else layer)
        if layer not in self.layers:
            raise VLScoreError(f"{self.name} has no layer {layer!r}: choose one of {', '.join(self.layers)}")
        EncodingOptions(maps=maps, pca=pca).check()
        if maps != "activation" and not self.is_vit:
            raise VLScoreError(f"{self.name} is a CNN and has activation maps only, no {maps} maps")
        return layer

    @torch.inference_mode()
    def feature_maps(self, pixels, layer=None, maps="activation", pca=None) -> torch.Tensor:
        """Read the maps of one layer.

        Args:
            pixels: (B, 3, S, S), on any device.
            layer: one of ``layers``; None means the last one.
            maps: ``"activation"`` for the layer's output; for a ViT also ``"attention"`` (one map for each
                head: from the class token to the patches or, without a class token, the mean over all
                patches), ``"query"``, ``"key"`` and ``"value"``.
            pca: the number n of principal components of query, key or value to take instead.  Each gives two
                maps, one of either sign, since the sign of a component is arbitrary.

        Returns:
            (B, C, h, w), float32, on the model's device.

        Raises:
            VLScoreError: the layer or the kind of maps is unknown, or this encoder does not have it.
        """
        layer = self.check_source(layer, maps, pca)
        (found,) = self.read_layers(pixels, [(layer, maps)])
        return found if pca is None else principal_maps(found, pca)

    @torch.inference_mode()
    def read_layers(self, pixels, wanted: list[tuple[str, str]]) -> list[torch.Tensor]:
        """Read several sources of maps in one pass.

        Args:
            pixels: (B, 3, T, T), where T is a multiple of ``stride``.
            wanted: pairs of a layer and a kind of maps.

        Returns:
            (B, C, h, w) for each pair, float32.
        """
        modules = [self.maps_module(layer, maps) for layer, maps in wanted]
        with ExitStack() as stack:
            seen = [stack.enter_context(tapped(module)) for module in modules]
            stack.enter_context(stopping_after(modules))
            self.run_visual(pixels.to(self.device))
        return [
            self.tapped_maps(module, each, maps).float()
            for module, each, (_, maps) in zip(modules, seen, wanted)
        ]

    def similarity_map(self, maps: torch.Tensor, text: torch.Tensor) -> torch.Tensor | None:
        """Compute the cosine of each cell of the last layer with a text, without any mask: (h, w).

        This is a baseline that needs one encoder pass.  For ``lite0-minilm`` it is no cosine, but the class
        activation map of Zhou et al. (2016).

        Args:
            maps: A (C, h, w), the activation maps of the last layer.
            text: (D,), of any norm.

        Returns:
            The map, or None if the architecture does not have one.
        """
        cells = self.cell_embeddings(maps)
        return None if cells is None else torch.einsum("dhw,d->hw", cells, unit(text.cpu()))

    def checksum(self) -> str:
        """Compute the SHA-256 over the names and values of all weights: 64 hexadecimal digits."""
        parts = vars(self).items()
        return hash_weights({name: value for name, value in parts if isinstance(value, torch.nn.Module)})


class Seen:
    """What a module received and returned: its first input, its other named inputs, and its first output."""

    input = output = None
    options: dict = MappingProxyType({})


@contextmanager
def tapped(module):
    """Keep a module's last inputs and output while a ``with`` block runs.

    The hook is removed when the block ends.

    Args:
        module: a PyTorch module.

    Yields:
        An object with the attributes ``input``, the first input; ``options``, the inputs given by name; and
        ``output``.
    """
    seen = Seen()

    def keep(_, inputs, options, output):
        first = inputs[0] if inputs else next(iter(options.values()))
        output = output[0] if isinstance(output, tuple) else output
        # A later in-place operation must not change what was seen.
        seen.input, seen.output, seen.options = first.detach().clone(), output.detach().clone(), options

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


class AllRead(Exception):
    """All modules that are to be read have run, see `stopping_after`."""


@contextmanager
def stopping_after(modules):
    """End a forward pass in a ``with`` block once all modules have run, since no later layer is read.

    Args:
        modules: PyTorch modules, each of which the pass runs once.
    """
    waiting = set(modules)

    def check(module, *_):
        waiting.discard(module)
        if not waiting:
            raise AllRead

    with ExitStack() as stack, suppress(AllRead):
        for module in set(modules):
            stack.callback(module.register_forward_hook(check).remove)
        yield


def check_components(n: int, most: int) -> None:
    """Raise VLScoreError unless n is a number of principal components from 1 to the largest possible."""
    if not isinstance(n, int) or not 1 <= n <= most:
        raise VLScoreError(f"pca={n} is out of range: choose 1 to {most} components")


def principal_maps(maps: torch.Tensor, n: int) -> torch.Tensor:
    """Project the tokens of each image on their first n principal components.

    Each component is followed by its negative.  Its sign is fixed: the entry of largest magnitude is
    positive. (Amir et al. 2021 use the PCA of keys.)

    Args:
        maps: (B, C, h, w), the tokens of a ViT.
        n: number of components, at most min(C, h·w).

    Returns:
        (B, 2n, h, w), float32.

    Raises:
        VLScoreError: n is out of range.
    """
    from sklearn.decomposition import PCA

    _, C, h, w = maps.shape
    check_components(n, min(C, h * w))
    found = []
    for image in maps.flatten(2).transpose(1, 2).cpu().numpy():  # (h·w, C)
        pca = PCA(n, svd_solver="full").fit(image)
        largest = np.abs(pca.components_).argmax(1)
        signs = np.sign(pca.components_[np.arange(n), largest])
        components = torch.from_numpy((pca.transform(image) * signs).T.copy())  # (n, h·w)
        found.append(torch.stack([components, -components], dim=1))  # (n, 2, h·w)
    return torch.stack(found).reshape(-1, 2 * n, h, w)


def list_sources(model: Model, pca: int = 4) -> dict[str, dict]:
    """List every source of maps of a model: a dict from its name to options of `encode`.

    `Model.feature_maps` takes the same options.

    Args:
        model: from `load_model`.
        pca: number of principal components of query, key and value; each gives two maps.
    """
    if not model.is_vit:
        return {"activation": {"maps": "activation"}}
    found = {maps: {"maps": maps} for maps in MAPS}
    return found | {f"{maps}, pca={pca}": {"maps": maps, "pca": pca} for maps in MAPS[2:]}
