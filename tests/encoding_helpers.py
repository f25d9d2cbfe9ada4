"""What the tests of the method share."""

import numpy as np
import torch

import vlscore
from vlscore_lib import selection

CAT = "an image of a cat."


def unit64(rows):
    return rows / np.sqrt((rows**2).sum(-1, keepdims=True))


def process64(A, rows, e=None):
    """scikit-learn's Gaussian process over the masks of some maps: what it knows of all of them."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    cells = A.reshape(len(A), -1).astype(np.float64)
    cells = cells - cells.min(1, keepdims=True)
    cells /= cells.max(1, keepdims=True) + 1e-7
    energy = (A.reshape(len(A), -1).astype(np.float64) ** 2).sum(0)
    kernel = RBF(0.5 / np.sqrt(energy / energy.sum()))  # a length for each cell
    known = np.zeros((len(rows), 1)) if e is None else e - e.mean(0)
    process = GaussianProcessRegressor(kernel, alpha=selection.NOISE, optimizer=None).fit(cells[rows], known)
    return process.predict(cells, return_std=True)


def greedy64(A, keep):
    """One after the other, the map of the largest variance times what is not known of it."""
    energy, rows = A.reshape(len(A), -1).astype(np.float64).var(1), []
    while len(rows) < keep:
        worth = energy * (process64(A, rows)[1] ** 2 if rows else 1)
        worth[rows] = -1
        rows.append(int(worth.argmax()))
    return np.sort(rows)


KINDS = [("rn", "activation", None, CAT), *(("vit", kind, None, CAT) for kind in vlscore.MAPS)]


def tensors(encoding):
    return {name: value for name, value in vars(encoding).items() if isinstance(value, torch.Tensor)}
