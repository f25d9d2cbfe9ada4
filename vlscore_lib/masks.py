"""Masks: which part of the image each map shows, and the embeddings of the masked images."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def make_masks(maps: torch.Tensor, size: int) -> torch.Tensor:
    r"""Turn maps A (C, h, w) into masks M (C, S, S) in [0, 1].

    .. math:: M_k = \frac{U_k - \min U_k}{\max U_k - \min U_k + 10^{-7}}

    where :math:`U_k` is :math:`A_k` upsampled bilinearly with aligned corners (Wang et al. 2020, eq. 5).  A
    constant map gives a mask of zeros, which shows nothing.

    Args:
        maps: A (C, h, w).
        size: S, the side of the masks in pixels.
    """
    up = F.interpolate(maps[:, None], size=(size, size), mode="bilinear", align_corners=True)[:, 0]
    low, high = up.amin((1, 2), keepdim=True), up.amax((1, 2), keepdim=True)
    # Interpolation's rounding would make a mask of noise out of a constant map.
    return (up - low) / (high - low + 1e-7) * varies(maps)[:, None, None]


def varies(maps: torch.Tensor) -> torch.Tensor:
    """Tell which maps are not constant: (C,) of bool.

    Args:
        maps: A (C, h, w).
    """
    return maps.amax((1, 2)) > maps.amin((1, 2))


def heat_map(saliency: torch.Tensor, size: int) -> torch.Tensor:
    """Upsample a saliency map to (size, size) and scale it to [0, 1].

    Args:
        saliency: (h, w).
        size: side of the result in pixels.
    """
    return make_masks(saliency[None], size)[0]


def embed_masked(encoder, pixels, maps, indices, base, batch_size: int, progress=iter) -> torch.Tensor:
    """Embed images masked by some of their maps, in batches that run over all the images.

    Args:
        encoder: see `fast_encoder`.
        pixels: X (N, 3, S, S), on the encoder's device.
        maps: A (N, C, h, w), on the encoder's device.
        indices: N of (K,), the maps to use; K may differ from image to image.
        base: (D,), the embedding of the empty image, on that device.

    Returns:
        e (N, C, D), unit, on that device; the base embedding for all other maps.
    """
    embeddings = base.repeat(*maps.shape[:2], 1)  # (N, C, D)
    wanted = torch.zeros(maps.shape[:2], dtype=torch.bool)
    for each, chosen in zip(wanted, indices):
        each[chosen] = True
    # A constant map masks everything: its image is the base image, whose embedding is known.
    wanted &= varies(maps.flatten(0, 1)).view(maps.shape[:2]).cpu()
    todo = wanted.nonzero()  # (rows, 2), of image and map
    for batch in progress(todo.split(batch_size) if len(todo) else ()):
        image, chosen = batch.T.to(maps.device)
        embeddings[image, chosen] = encoder(pixels[image], maps[image, chosen])
    return embeddings
