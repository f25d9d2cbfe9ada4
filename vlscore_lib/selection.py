"""Selection: which maps are worth an encoder pass, and what the embeddings of the others would be."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vlscore_lib.errors import check_keep
from vlscore_lib.masks import varies

NOISE = 0.01  # of the Gaussian process: how far equal masks may differ in their embedding
WIDTH = 2 * 0.5**2  # of its kernel, by which squared distances are divided


def mask_cells(maps: torch.Tensor) -> torch.Tensor:
    """Turn maps into points whose squared distances say how much their masks differ: (…, C, h·w), float64.

    A point holds the cells of a mask before upsampling, in [0, 1].  Each cell is multiplied by the square
    root of its share of the energy of all maps of the image, the sum of their squares, so that a difference
    counts where the layer responds.

    Args:
        maps: A (…, C, h, w), of one image or several.
    """
    cells = maps.double().flatten(-2)
    squares = cells**2
    total = squares.sum((-2, -1), keepdim=True).clamp_min(1e-30)
    share = squares.sum(-2, keepdim=True) / total  # (…, 1, h·w), summing to 1
    cells = cells - cells.amin(-1, keepdim=True)
    return cells / (cells.amax(-1, keepdim=True) + 1e-7) * share.sqrt()


def mask_similarity(points: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    r"""Compute how similar masks are: (C, K), from 0 to 1, where 1 means equal.

    The similarity is :math:`\exp(-d^2 / (2 \cdot 0.5^2))`, where :math:`d` is the distance of two points of
    `mask_cells`.

    Args:
        points: (C, n), from `mask_cells`.
        others: (K, n), from `mask_cells`.
    """
    squares = (points**2).sum(1)[:, None] + (others**2).sum(1) - 2 * points @ others.T
    return (-squares / WIDTH).exp()


def select_maps(maps: torch.Tensor, keep: int | float | None) -> torch.Tensor:
    """Choose the maps worth an encoder pass, without looking at any prompt.

    It takes strong maps that are unlike those already taken.  Each step takes the map with the largest
    product of two numbers: the variance of its values over the cells, and the part of its embedding that is
    still unknown.  That part is the posterior variance of a Gaussian process over masks with the kernel
    `mask_similarity` (Rasmussen and Williams 2006, eq. 2.26).

    Args:
        maps: A (C, h, w).
        keep: None takes all maps; an integer n takes n maps, or all if there are fewer; a fraction in (0, 1)
            takes maps until that share of their total variance is known.  0 takes none.

    Returns:
        Indices (K,) in ascending order.

    Raises:
        VLScoreError: ``keep`` is an integer below 0, or a float outside (0, 1), such as 64.0.
    """
    return select_for_images(maps[None], keep)[0]


def select_for_images(maps: torch.Tensor, keep: int | float | None) -> list[torch.Tensor]:
    """Choose maps for each of N images, see `select_maps`: N of (K,), on the CPU.

    If ``keep`` is an integer, all images take each step together, which keeps a GPU busy.

    Args:
        maps: A (N, C, h, w).
        keep: see `select_maps`.
    """
    check_keep(keep)
    N, C = maps.shape[:2]
    if keep is None or (isinstance(keep, int) and keep >= C):
        return [torch.arange(C)] * N
    if keep == 0:
        return [torch.arange(0)] * N
    if isinstance(keep, int):
        chosen = [best for best, _ in rank_maps(maps, keep)]
        return list(torch.stack(chosen, 1).sort().values.cpu())
    return [select_share(each, keep) for each in maps]


def select_share(maps: torch.Tensor, share: float) -> torch.Tensor:
    """Choose maps A (C, h, w) until that share of their total variance is known: (K,), at least one."""
    chosen, total = [], None
    for best, unknown in rank_maps(maps[None], len(maps)):
        total = unknown if total is None else total
        if chosen and unknown <= (1 - share) * total:
            break
        chosen.append(best)
    return torch.cat(chosen).sort().values.cpu()


def rank_maps(maps: torch.Tensor, count: int):
    """Rank the maps of N images as `select_maps` says, one map of each image in a step.

    The posterior variance comes from a pivoted Cholesky factorisation.

    Args:
        maps: A (N, C, h, w).
        count: the number of steps, at most C.

    Yields:
        The map (N,) that each image takes, and how much variance (N,) of all maps was unknown before.
    """
    cells = mask_cells(maps)  # (N, C, h·w)
    squares = (cells**2).sum(-1)
    energy = maps.double().flatten(2).var(-1, correction=0)  # (N, C)
    unknown, is_taken = torch.ones_like(energy), torch.zeros_like(energy, dtype=torch.bool)
    factor = cells.new_zeros(len(maps), count, maps.shape[1])
    image = torch.arange(len(maps), device=maps.device)
    for n in range(count):
        left = energy * unknown
        # Nothing here reads a number back from a GPU, so nothing waits for it.
        best = left.masked_fill(is_taken, -1).argmax(-1)  # (N,)
        yield best, left.sum(-1)
        distances = squares + squares[image, best, None] - 2 * (cells @ cells[image, best, :, None])[..., 0]
        known = factor[:, :n]  # (N, n, C)
        column = (-distances / WIDTH).exp() - (known[image, :, best][:, None] @ known)[:, 0]
        factor[:, n] = column / (unknown[image, best, None] + NOISE) ** 0.5
        unknown = (unknown - factor[:, n] ** 2).clamp(min=0)
        is_taken[image, best] = True


def predict_embeddings(maps: torch.Tensor, indices: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """Predict the embeddings of the maps that did not go through the encoder.

    The prediction is the posterior mean of the Gaussian process of `select_maps` (Rasmussen and Williams
    2006, eq. 2.25), around the mean of the known embeddings.

    Args:
        maps: A (C, h, w).
        indices: (K,), the maps with known embeddings; with none, nothing is predicted.
        embeddings: e (C, D), unit.  The rows of these maps are read.  Those of constant maps are kept: they
            must hold the base embedding.  Other rows are ignored.

    Returns:
        e (C, D), unit, float32.
    """
    others = varies(maps)
    others[indices] = False
    if not len(indices) or not others.any():
        return embeddings
    cells, known = mask_cells(maps), embeddings[indices].double()
    chosen = cells[indices]
    kernel = mask_similarity(chosen, chosen)
    kernel.diagonal().add_(NOISE)
    solved = torch.linalg.solve(kernel, known - known.mean(0))  # (K, D)
    every = embeddings.clone()
    predicted = mask_similarity(cells[others], chosen) @ solved + known.mean(0)
    every[others] = F.normalize(predicted.float(), dim=-1)
    return every
