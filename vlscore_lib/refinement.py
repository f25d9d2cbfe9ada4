"""Refinement: the extent of an object from a finer layer, clusters of cells, and instances."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from vlscore_lib.encoding import Scale

SEED_POWERS = (3, 2, 1)  # of the evidence of masks, similarity and mean in a CNN's seed
MASK_FREE_POWERS = (0, 1, 1)  # of the same, if no masked image was encoded
AGREEMENT = 4  # how fast the similarity map loses its power where it disagrees with the masks
LEAVES = 32  # of the tree of clusters
SHARPNESS = 8.0  # β of the affinity of a ViT's cells
FINEST = 48  # largest number of cells on a side of the features; finer ones are pooled
MARGIN = 1 / 12  # of the image's side that is near the border
SMOOTHING = 28  # details smaller than S divided by this are not instances


def cluster_maps(features: torch.Tensor, leaves: int = LEAVES) -> torch.Tensor:
    """Cluster similar neighbouring cells into regions: maps of 0 and 1, (2·leaves - 2, h, w).

    Ward's criterion (1963) merges neighbouring cells by their unit features into a tree.  The regions are the
    tree's nodes from the two halves of the image down to the leaves.  An object, or a part of it, may be a
    region of any size.

    Args:
        features: (F, h, w).
        leaves: how many regions the image is cut into at the end, 2 or more; ``LEAVES`` is 32.
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
    top = children[::-1][: leaves - 1].ravel()
    return torch.from_numpy(np.stack([members[node] for node in top])).unflatten(1, (h, w))


class Sharpening(NamedTuple):
    """The constants of `sharpen` and `discriminate`.

    The defaults were chosen by ``scripts/choose_refinement.py``.

    Attributes:
        repeats: number of sharpening passes, 0 or more.
        confidence: the power of the seed that weighs a cell as object, above 0.
        border: factor by which cells near the border of the image weigh more as background; 1 for no more.
        shrinkage: how far, in [0, 1], the covariance is shrunk towards equal variances without correlation.
    """

    repeats: int = 2
    confidence: float = 8.0
    border: float = 15.0
    shrinkage: float = 0.8


SHARPENING = Sharpening()


def gather_evidence(
    scales: tuple[Scale, ...], w: torch.Tensor, text_embedding: torch.Tensor, grid
) -> torch.Tensor:
    """Gather three maps of evidence for a CNN's object, each summed over the scales: (3, h, w), 0 or more.

    They are the weighted sum of the maps, the similarity map (see `Model.similarity_map`), and the mean of
    the maps, which depends on no text.  Negative values become 0.  Each scale adds values from 0 to 1.

    Args:
        scales: from `read_scales`.
        w: (C,), see `weights`; zeros if no masked image was encoded.
        text_embedding: (D,), of any norm.
        grid: (h, w) of the evidence.
    """
    text = F.normalize(text_embedding.cpu().float(), dim=-1)
    found = torch.zeros(3, *grid)
    for scale in scales:
        every = weighted_sum(w, scale.maps), weighted_sum(text, scale.cells), scale.maps.mean(0).relu()
        found += torch.stack([upsample(scale_to_maximum(each), grid) for each in every])
    return found


def weigh_evidence(
    evidence: torch.Tensor, powers=SEED_POWERS, agreement: float = AGREEMENT
) -> tuple[float, float, float]:
    r"""Weigh the maps of `gather_evidence`, the similarity map by how far it agrees with the masks.

    It agrees by :math:`\rho`, the correlation of the first two maps over all cells; below 0 it counts as 0.
    If a model does not know a word, its similarity map shows other things than the object, and
    :math:`\rho` is low.

    Args:
        evidence: (3, h, w), 0 or more.
        powers: of masks, similarity and mean, if masks and similarity agree; ``SEED_POWERS`` is (3, 2, 1).
        agreement: the power of :math:`\rho`, by which that of the similarity map is multiplied; 0 for none.

    Returns:
        Three powers for `combine_evidence`, by default :math:`3, 2 \rho^4, 1`.
    """
    masks, similarity, mean = powers
    rho = torch.corrcoef(evidence[:2].flatten(1))[0, 1].nan_to_num(0).clamp(min=0).item()
    return masks, similarity * rho**agreement, mean


def combine_evidence(evidence: torch.Tensor, powers) -> torch.Tensor:
    """Combine maps of evidence into one seed, their weighted geometric mean, scaled to [0, 1]: (h, w).

    A cell that one of the maps rules out stays 0.

    Args:
        evidence: (n, h, w), 0 or more, see `gather_evidence`.
        powers: n weights, 0 or more and not all 0; a map with the weight 0 is left out.
    """
    weights = torch.tensor(powers, dtype=torch.float32)
    return min_max((evidence ** weights[:, None, None]).prod(0) ** (1 / weights.sum()))


def locate_seed(
    scales: tuple[Scale, ...], w: torch.Tensor | None, text_embedding: torch.Tensor, grid
) -> torch.Tensor:
    """Estimate which cells a CNN's object covers, by three kinds of evidence: (h, w) in [0, 1].

    The estimate is `combine_evidence` of `gather_evidence`, by the powers of `weigh_evidence`.  Without masks
    (mask-free refinement) it is the geometric mean of similarity map and mean.

    Args:
        scales: from `read_scales`.
        w: (C,), see `weights`; None if no masked image was encoded.
        text_embedding: (D,), of any norm.
        grid: (h, w) of the estimate.
    """
    if w is None:
        no_masks = torch.zeros(len(scales[0].maps))
        return combine_evidence(gather_evidence(scales, no_masks, text_embedding, grid), MASK_FREE_POWERS)
    evidence = gather_evidence(scales, w, text_embedding, grid)
    return combine_evidence(evidence, weigh_evidence(evidence))


def sharpen(seed: torch.Tensor, features: torch.Tensor, how: Sharpening = SHARPENING) -> torch.Tensor:
    """Fit a seed to the edges in the features: (h, w) in [0, 1].

    Each pass clips `discriminate` to [0, 1], takes its geometric mean with the seed, and scales the result to
    [0, 1] as the new seed.

    Args:
        seed: (h, w) in [0, 1], how likely each cell belongs to the object, see `locate_seed`.
        features: (F, h, w).
        how: the constants; ``SHARPENING`` is ``Sharpening()``.
    """
    for _ in range(how.repeats):
        seed = min_max((seed * discriminate(seed, features, how).clamp(0, 1)).sqrt())
    return seed


def diffuse(saliency: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    r"""Give each cell the mean of the saliency over all cells, weighted by similarity: (h, w).

    Cell :math:`j` has the weight :math:`\mathrm{softmax}_j(8 \cos(f_i, f_j))` in the mean of cell :math:`i`,
    where :math:`f` are the features.  The result stays within the range of the saliency.

    Args:
        saliency: (h', w'); it is upsampled to (h, w).
        features: (F, h, w), unit vectors.
    """
    f = features.flatten(1)
    affinity = (SHARPNESS * (f.T @ f)).softmax(1)  # (h·w, h·w)
    return (affinity @ upsample(saliency, features.shape[1:]).flatten()).unflatten(0, features.shape[1:])


def discriminate(seed: torch.Tensor, features: torch.Tensor, how: Sharpening = SHARPENING) -> torch.Tensor:
    """Separate object from background by their features: (h, w), 1 at the object's mean and 0 at the
    background's.

    This is Fisher's linear discriminant (1936) with a shrunk covariance (Friedman 1989).  A cell weighs
    seed^confidence as object, and (1 - seed)² as background.  In the outermost twelfth of the image it weighs
    ``border`` times as much as background, since objects are seldom there (Wei et al. 2012).  Values below 0
    and above 1 occur.

    Args:
        seed: (h, w) in [0, 1], how likely each cell belongs to the object, see `locate_seed`.
        features: (F, h, w).
        how: the constants.
    """
    # In float64: the solution of the equations amplifies rounding.
    f, seed = features.flatten(1).T.double(), seed.flatten().double()  # (h·w, F), (h·w,)
    sides = (seed**how.confidence, (1 - seed) ** 2 * weigh_border(*features.shape[1:], how.border))
    sides = [side / side.sum().clamp_min(1e-12) for side in sides]
    means = [side @ f for side in sides]
    # The mean covariance of both sides, by one product of matrices: E[f fᵀ] - μ μᵀ.
    within = f.T @ (f * sum(sides)[:, None]) / 2 - sum(mean.outer(mean) for mean in means) / 2
    spread = within.diagonal().mean().clamp_min(1e-12) * torch.eye(len(within), dtype=torch.float64)
    direction = torch.linalg.solve((1 - how.shrinkage) * within + how.shrinkage * spread, means[0] - means[1])
    low, high = means[1] @ direction, means[0] @ direction
    return ((f @ direction - low) / (high - low).clamp_min(1e-12)).float().unflatten(0, features.shape[1:])


def weigh_border(h: int, w: int, border: float) -> torch.Tensor:
    """Weigh each cell of a grid as background: (h·w,), ``border`` near the border of the image, else 1."""
    weights = torch.full((h, w), border, dtype=torch.float64)
    rows, columns = (max(round(side * MARGIN), 1) for side in (h, w))
    weights[rows : h - rows, columns : w - columns] = 1.0
    return weights.flatten()


def unit_features(found: torch.Tensor) -> torch.Tensor:
    """Scale features (F, h, w) to unit vectors, after pooling them if the grid is too fine."""
    return F.normalize(found if found.shape[-1] <= FINEST else F.avg_pool2d(found, 2), dim=0)


def weighted_sum(weights: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Compute relu of the sum of maps (K, h, w), each times its weight (K,): (h, w)."""
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
    """Find the peaks of a heat map, and the basin around each.

    The map is smoothed by a Gaussian with a standard deviation of S / 28.  A peak counts if it rises at least
    ``prominence`` above the saddle that joins it to a higher peak.  The watershed (Vincent and Soille 1991)
    assigns each pixel to a basin.  `find_boxes` cuts one box for each peak; it drops components without a
    peak, unless none has one.

    Args:
        heat: (S, S) in [0, 1], a NumPy array.
        prominence: a share of the map's range, in [0, 1].

    Returns:
        Two arrays (S, S) of integers.  The first has the numbers of the peaks, from 1, and 0 elsewhere; the
        second has the numbers of the basins.
    """
    from scipy import ndimage
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    # A smooth map needs few samples: every fourth pixel.
    smooth = ndimage.gaussian_filter(heat, len(heat) / SMOOTHING, mode="nearest")[2::4, 2::4]
    smooth = (smooth - smooth.min()) / max(smooth.max() - smooth.min(), 1e-12)
    # Lowered by h and regrown under itself, a heat map keeps the peaks of prominence h (Soille 2003, 6.3.4).
    peaks, _ = ndimage.label(local_maxima(reconstruction(smooth - prominence, smooth)))
    rows = columns = np.minimum(np.arange(len(heat)) // 4, len(peaks) - 1)
    return tuple(each[np.ix_(rows, columns)] for each in (peaks, watershed(-smooth, peaks)))
