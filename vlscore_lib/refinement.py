"""Refinement: the extent of an object from a finer layer, clusters of cells, and instances."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from vlscore_lib.encoding import Scale

REGIONS = 16  # leaves of the tree of clusters
SHARPNESS = 8.0  # β of the affinity of a ViT's cells
FINEST = 40  # most cells on a side of the features; finer ones are pooled
MARGIN = 1 / 12  # of the image's side that is near the border
SMOOTHING = 28  # smaller details than S over this make no instance


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


class Sharpening(NamedTuple):
    """How `sharpen` fits a seed to features; the defaults are those that `choose_refinement.py` chose.

    Attributes:
        repeats: how often.
        confidence: power of the seed by which cells count for the object.
        border: by how much more cells near the border of the image count for the background.
        shrinkage: of the covariance, in [0, 1], towards equal variances without correlation.
    """

    repeats: int = 2
    confidence: float = 4.0
    border: float = 5.0
    shrinkage: float = 0.8


SHARPENING = Sharpening()


def gather_evidence(
    scales: tuple[Scale, ...], w: torch.Tensor, text_embedding: torch.Tensor, grid
) -> torch.Tensor:
    """What says where the object is, each the sum over a CNN's scales: (3, h, w), 0 or more.

    The maps summed with their weights; the similarity maps, see `Model.similarity_map`; and the plain means
    of the maps, which no text changes.

    Args:
        w, text_embedding: see `refine`.
        grid: (h, w) of the evidence.
    """
    text = F.normalize(text_embedding.cpu().float(), dim=-1)
    found = torch.zeros(3, *grid)
    for scale in scales:
        every = weighted_sum(w, scale.maps), weighted_sum(text, scale.cells), scale.maps.mean(0).relu()
        found += torch.stack([upsample(scale_to_maximum(each), grid) for each in every])
    return found


def locate_seed(
    scales: tuple[Scale, ...], w: torch.Tensor, text_embedding: torch.Tensor, grid
) -> torch.Tensor:
    """Where masks, cells and the maps themselves agree that a CNN sees the object: (h, w) in [0, 1].

    The geometric mean of the three, see `gather_evidence`: a text that the model hardly knows tells cells
    apart badly, and falls back on what stands out.
    """
    return min_max(gather_evidence(scales, w, text_embedding, grid).prod(0) ** (1 / 3))


def sharpen(likely: torch.Tensor, features: torch.Tensor, how: Sharpening = SHARPENING) -> torch.Tensor:
    """Fit a seed (h, w) in [0, 1] to the edges that features (F, h, w) see: (h, w) in [0, 1].

    The seed becomes its geometric mean with what `discriminate` makes of it; then again, with the result.
    """
    for _ in range(how.repeats):
        likely = min_max((likely * discriminate(likely, features, how).clamp(0, 1)).sqrt())
    return likely


def diffuse(saliency: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Give each cell the mean of the saliency (h', w') over all cells, by how they resemble it: (h, w).

    Cell j has the weight softmax_j(β cos(f_i, f_j)) in cell i, β = `SHARPNESS`.

    Args:
        features: (F, h, w), unit vectors.
    """
    f = features.flatten(1)
    affinity = (SHARPNESS * (f.T @ f)).softmax(1)  # (h·w, h·w)
    return (affinity @ upsample(saliency, features.shape[1:]).flatten()).unflatten(0, features.shape[1:])


def discriminate(likely: torch.Tensor, features: torch.Tensor, how: Sharpening = SHARPENING) -> torch.Tensor:
    """Tell object from background by their features, as far as a seed in [0, 1] tells them apart: (h, w).

    Fisher's linear discriminant (1936) between the cells weighted with a power of the seed and with the
    square of its complement, with a shrunk covariance (Friedman 1989): 0 in the mean of the background and 1
    in that of the object.  What is at the border of the image is rather background (Wei et al. 2012), so
    cells there count more for it.

    Args:
        likely: (h, w), see `locate_seed`.
        features: (F, h, w).
    """
    # In float64: the solution of the equations amplifies rounding.
    f, likely = features.flatten(1).T.double(), likely.flatten().double()  # (h·w, F), (h·w,)
    sides = (likely**how.confidence, (1 - likely) ** 2 * weigh_border(*features.shape[1:], how.border))
    sides = [side / side.sum().clamp_min(1e-12) for side in sides]
    means = [side @ f for side in sides]
    within = sum((f - mean).T @ ((f - mean) * side[:, None]) for side, mean in zip(sides, means)) / 2
    spread = within.diagonal().mean().clamp_min(1e-12) * torch.eye(len(within), dtype=torch.float64)
    direction = torch.linalg.solve((1 - how.shrinkage) * within + how.shrinkage * spread, means[0] - means[1])
    low, high = means[1] @ direction, means[0] @ direction
    return ((f @ direction - low) / (high - low).clamp_min(1e-12)).float().unflatten(0, features.shape[1:])


def weigh_border(h: int, w: int, border: float) -> torch.Tensor:
    """How much each cell of a grid counts for the background: (h·w,), ``border`` in a margin, else 1."""
    weights = torch.full((h, w), border, dtype=torch.float64)
    rows, columns = (max(round(side * MARGIN), 1) for side in (h, w))
    weights[rows : h - rows, columns : w - columns] = 1.0
    return weights.flatten()


def unit_features(found: torch.Tensor) -> torch.Tensor:
    """Features (F, h, w) as unit vectors, on a grid that the refinement can afford."""
    return F.normalize(found if found.shape[-1] <= FINEST else F.avg_pool2d(found, 2), dim=0)


def weighted_sum(weights: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """relu of the sum of maps (K, h, w), each times its weight (K,): (h, w)."""
    return torch.einsum("k,khw->hw", weights, maps).relu()


def upsample(x: torch.Tensor, size) -> torch.Tensor:
    """Interpolate (h, w); cells cover the input, so corners are not aligned."""
    size = (size, size) if isinstance(size, int) else size
    return F.interpolate(x[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def scale_to_maximum(x: torch.Tensor) -> torch.Tensor:
    """Divide by the largest value, which becomes 1."""
    return x / x.max().clamp_min(1e-12)


def min_max(x: torch.Tensor) -> torch.Tensor:
    """Scale to [0, 1]."""
    return (x - x.min()) / (x.max() - x.min()).clamp_min(1e-12)


def split_instances(heat: np.ndarray, prominence: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the peaks of a heat map (S, S) in [0, 1] and the basin of each: labels (S, S) from 1, 0 for none.

    A peak of the smoothed map rises at least ``prominence``, a share of the map's range, above the saddle to
    a higher one; its basin is what the watershed (Vincent and Soille 1991) gives it.
    """
    from scipy import ndimage
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    # What is smooth needs few samples: every fourth pixel.
    smooth = ndimage.gaussian_filter(heat, len(heat) / SMOOTHING, mode="nearest")[2::4, 2::4]
    smooth = (smooth - smooth.min()) / max(smooth.max() - smooth.min(), 1e-12)
    # Lowered by h and regrown under itself, a heat map keeps the peaks of prominence h (Soille 2003, 6.3.4).
    peaks, _ = ndimage.label(local_maxima(reconstruction(smooth - prominence, smooth)))
    rows = columns = np.minimum(np.arange(len(heat)) // 4, len(peaks) - 1)
    return tuple(each[np.ix_(rows, columns)] for each in (peaks, watershed(-smooth, peaks)))
