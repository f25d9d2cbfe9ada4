"""Refinement: the extent of an object from a finer layer, clusters of cells, and instances."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from vlscore_lib.encoding import Scale

REGIONS = 16  # leaves of the tree of clusters
SHRINKAGE = 0.8  # of the covariance, towards equal variances without correlation
SHARPNESS = 8.0  # β of the affinity of a ViT's cells
PROMINENCE = 0.2  # how far a peak of the smoothed heat map must rise to be an instance of its own
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


def locate_seed(
    scales: tuple[Scale, ...], w: torch.Tensor, text_embedding: torch.Tensor, grid
) -> torch.Tensor:
    """Where masks and cells agree that the object is: (h, w) in [0, 1], for a CNN's scales.

    The maps of all scales are summed with the same weights; so are their similarity maps, see
    `Model.similarity_map`.  The seed is the geometric mean of the two.

    Args:
        w, text_embedding: see `refine`.
        grid: (h, w).
    """
    text = F.normalize(text_embedding.cpu().float(), dim=-1)
    summed = sum(upsample(scale_to_maximum(weighted_sum(w, each.maps)), grid) for each in scales)
    named = sum(upsample(scale_to_maximum(weighted_sum(text, each.cells)), grid) for each in scales)
    return min_max((summed * named).sqrt())


def diffuse(saliency: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Give each cell the mean of the saliency (h', w') over all cells, by how they resemble it: (h, w).

    Cell j has the weight softmax_j(β cos(f_i, f_j)) in cell i, β = `SHARPNESS`.

    Args:
        features: (F, h, w), unit vectors.
    """
    f = features.flatten(1)
    affinity = (SHARPNESS * (f.T @ f)).softmax(1)  # (h·w, h·w)
    return (affinity @ upsample(saliency, features.shape[1:]).flatten()).unflatten(0, features.shape[1:])


def discriminate(likely: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Tell object from background by their features, as far as a seed in [0, 1] tells them apart: (h, w).

    Fisher's linear discriminant (1936) between the cells weighted with the seed's square and with that of
    its complement, with a shrunk covariance (Friedman 1989): 0 in the mean of the background and 1 in that
    of the object.

    Args:
        likely: (h, w), see `locate_seed`.
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


def split_components(components: np.ndarray, count: int, peaks: np.ndarray, basins: np.ndarray):
    """Drop components without a peak, unless all are, and split those of several along the basins.

    Returns:
        Labels and their number.
    """
    pairs = np.stack([components[peaks > 0], peaks[peaks > 0]], 1)  # of a component and a peak
    held = np.bincount(np.unique(pairs, axis=0)[:, 0], minlength=count + 1)  # peaks in each component
    held[0] = 0
    if not held.any():
        return components, count
    whole = np.where(held[components] == 1, components, 0)
    split = np.where(held[components] > 1, components + (count + 1) * basins, whole)
    is_there = np.bincount(split.ravel()) > 0
    is_there[0] = True
    return (is_there.cumsum() - 1)[split], is_there.sum() - 1
