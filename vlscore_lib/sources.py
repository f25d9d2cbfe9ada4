"""Sources: the maps of an image, and what refinement reads from a larger copy and a finer layer."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vlscore_lib.encoding import Scale
from vlscore_lib.errors import VLScoreError
from vlscore_lib.models.base import Model
from vlscore_lib.models.fast_encoder import choose_batch_size, read_copy
from vlscore_lib.options import EncodingOptions
from vlscore_lib.refinement import cluster_maps, unit_features

COPY_SCALE = 3  # side of the larger copy that refinement reads, in S, rounded up to whole cells


class Source(NamedTuple):
    """The maps of one image, and where they come from.

    Attributes:
        layer: see `Encoding`.
        kind: see `Encoding`.
        maps: A (C, h, w), on the model's device.
        scales: see `read_scales`; empty if the encoding is not refined.
        features: see `read_scales`; None if the encoding is not refined.
    """

    layer: str
    kind: str
    maps: torch.Tensor
    scales: tuple[Scale, ...] = ()
    features: torch.Tensor | None = None


def read_sources(model: Model, images: list, pixels: torch.Tensor, options: EncodingOptions) -> list[Source]:
    """Read the maps of N images.

    A GPU reads plain maps of a batch of images in one pass.  Otherwise each image is read on its own, because
    in a batch on a CPU, rounding would depend on the number of threads.

    Args:
        model: from `load_model`.
        images: N paths or PIL images.
        pixels: X (N, 3, S, S), the same images, on the model's device.
        options: how they are encoded.
    """
    if options.refined:
        return [read_refined_source(model, image, options) for image in images]
    at_once = (options.batch_size or choose_batch_size(model)) if model.device.type == "cuda" else 1
    return [source for batch in pixels.split(at_once) for source in read_plain_sources(model, batch, options)]


def read_plain_sources(model: Model, pixels: torch.Tensor, options: EncodingOptions) -> list[Source]:
    """Read the maps of images (N, 3, S, S) in one pass."""
    kind = options.maps if options.pca is None else f"{options.maps}, pca={options.pca}"
    maps = model.feature_maps(pixels, options.layer, options.maps, options.pca)
    return [Source(choose_layer(model, options), kind, each) for each in maps]


def read_refined_source(model: Model, image, options: EncodingOptions) -> Source:
    """Read the maps of one image, and what refinement needs."""
    scales, features = read_scales(model, image, options)
    layer = model.fine_layer if model.is_vit else choose_layer(model, options)
    kind = "cluster" if model.is_vit else options.maps
    return Source(layer, kind, scales[0].maps.to(model.device), scales, features)


def choose_layer(model: Model, options: EncodingOptions) -> str:
    """Name the layer whose maps are read: the one asked for, or else the last one."""
    return str(model.layers[-1] if options.layer is None else options.layer)


def read_scales(model: Model, image, options: EncodingOptions) -> tuple[tuple[Scale, ...], torch.Tensor]:
    """Read a larger copy of an image, because an object too small for one grid may fill cells of a finer one.

    The copy has a side of 3 S, rounded up to whole cells.  A CNN also reads the plain size.  The maps of a
    ViT are clusters of its keys, see `cluster_maps`.

    Args:
        model: from `load_model`.
        image: a path or a PIL image.
        options: layer, kind of maps, fit, precision, and whether masks are kept.

    Returns:
        A `Scale` for each size, the plain one first for a CNN; and the features (F, h, w), unit vectors, of
        the model's ``fine_layer`` for the copy.  If their grid has more than 48 cells on a side, they are
        means over 2×2 cells.

    Raises:
        VLScoreError: the layer is unknown, or a ViT was given another one than ``fine_layer``, another kind
            than ``"activation"``, or ``keep=0``.
    """
    fine, last = (model.fine_layer, "activation"), (model.layers[-1], "activation")
    if model.is_vit:
        if options.layer not in (None, model.fine_layer) or options.maps != "activation":
            raise VLScoreError("a refined ViT uses clusters of its keys as maps: leave layer and maps out")
        if options.keep == 0:
            raise VLScoreError(f"{model.name} is a ViT, whose refinement needs masks: keep 1 or more")
        wanted, sizes = ((model.fine_layer, "key"), fine), (COPY_SCALE,)
    else:
        layer = model.check_source(options.layer, options.maps, options.pca)
        wanted, sizes = ((layer, options.maps), last, fine), (1, COPY_SCALE)
    scales = []
    for size in sizes:
        cells = -(-model.input_size * size // model.stride)  # all of full size
        side = model.input_size if size == 1 else cells * model.stride
        pixels = model.preprocess(image, options.fit, side)[None]
        if size == 1:  # the maps are plain VL-Score's, bit for bit
            found = model.read_layers(pixels, wanted)
        else:
            found = read_copy(model, pixels, wanted, options.precision)
        found = [each[0] for each in found]
        if model.is_vit:
            scales.append(Scale(cluster_maps(found[0].cpu())))
        else:
            kept = (found[0], model.cell_embeddings(found[1]))
            scales.append(Scale(*(each.cpu().contiguous() for each in kept)))
    return tuple(scales), unit_features(found[-1]).cpu().contiguous()  # of the copy, which comes last
