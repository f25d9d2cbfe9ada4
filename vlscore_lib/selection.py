"""Selection: which maps are worth an encoder pass, and what the embeddings of the others would be."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vlscore_lib.errors import check_keep
from vlscore_lib.masks import varies

NOISE = 0.01  # of the Gaussian process: how far equal masks may differ in their embedding
WIDTH = 2 * 0.5**2  # of its kernel, by which squared distances are divided


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
    return (-squares / WIDTH).exp()


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
    check_keep(keep)
    is_count = isinstance(keep, int)
    if keep is None or (is_count and keep >= C):
        return torch.arange(C)
    cells = mask_cells(maps)  # (C, h·w)
    squares = (cells**2).sum(1)
    energy = maps.double().flatten(1).var(1, correction=0)  # (C,)
    unknown, is_taken = torch.ones_like(energy), torch.zeros(C, dtype=torch.bool, device=maps.device)
    count = keep if is_count else C
    factor, chosen = cells.new_zeros(count, C), []
    for n in range(count):
        if not is_count and n and energy @ unknown <= (1 - keep) * energy.sum():
            break
        # Rows are taken by `index_select`: a GPU need not tell the number, so that nothing waits for it.
        best = (energy * unknown).masked_fill(is_taken, -1).argmax()[None]
        row = cells.index_select(0, best)[0]
        distances = squares + squares.index_select(0, best) - 2 * (cells @ row)
        known = factor[:n]  # (n, C)
        column = (-distances / WIDTH).exp() - known.index_select(1, best)[:, 0] @ known
        factor[n] = column / (unknown.index_select(0, best) + NOISE) ** 0.5
        unknown = (unknown - factor[n] ** 2).clamp(min=0)
        is_taken.index_fill_(0, best, True)
        chosen.append(best)
    return torch.cat(chosen).sort().values.cpu()


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
    kernel = mask_similarity(chosen, chosen) + NOISE * torch.eye(len(indices)).to(chosen)
    solved = torch.linalg.solve(kernel, known - known.mean(0))  # (K, D)
    every = embeddings.clone()
    predicted = mask_similarity(cells[others], chosen) @ solved + known.mean(0)
    every[others] = F.normalize(predicted.float(), dim=-1)
    return every
