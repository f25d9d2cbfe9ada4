"""Metrics: the IoU of boxes, shares of hits with their intervals, MaxBoxAcc, and the bootstrap."""

from __future__ import annotations

import numpy as np

from vlscore_lib.errors import VLScoreError

SHARES = tuple(n / 100 for n in range(10, 101))  # sides of the constant box
DELTAS = (0.3, 0.5, 0.7)  # the IoUs over which MaxBoxAccV2 is a mean


def box_iou(predicted, truth) -> float:
    """The box IoU of an image: the largest IoU over all pairs of boxes (report, "Data and Evaluation").

    Args:
        predicted, truth: lists of (x0, y0, x1, y1), half-open.

    Returns:
        A share in [0, 1]; 0 when either list is empty.
    """
    return float(best_ious(predicted, truth).max(initial=0.0))


def best_ious(predicted, truth) -> np.ndarray:
    """The largest IoU of each predicted box with a true one, see `box_iou`: (n,), 0 where there is none."""
    import torch
    from torchvision.ops import box_iou as pairwise_iou

    if not len(predicted) or not len(truth):
        return np.zeros(len(predicted))
    pairs = (torch.as_tensor(np.asarray(boxes, dtype=np.float64)) for boxes in (predicted, truth))
    return pairwise_iou(*pairs).amax(1).numpy()


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, hits of n, in [0, 1] (Wilson 1927)."""
    if not 0 <= hits <= n or n < 1:
        raise VLScoreError(f"{hits} of {n} is no share: give hits from 0 to n, and n of 1 or more")
    from scipy.stats import binomtest

    found = binomtest(int(hits), int(n)).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def max_box_acc(ious) -> tuple[float, int]:
    """MaxBoxAcc (Choe et al. 2020): the share of images with an IoU of 0.5 or more at the best threshold.

    Args:
        ious: (n, A), of the box of the largest component, at each of A thresholds, shared by all images.

    Returns:
        The share, and the index of the threshold.
    """
    shares = (np.asarray(ious) >= 0.5).mean(0)
    return float(shares.max()), int(shares.argmax())


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


def resample(n: int, count: int = 1000, seed: int = 0):
    """The bootstrap (Efron 1979): how often each of n images is drawn, (n,) float64 for each resample."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)


def interval(values) -> tuple[float, float]:
    """The middle 95 % of bootstrapped values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def two_sided(differences) -> float:
    """p of bootstrapped differences: how rarely resampling turns the difference around."""
    fewer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (fewer + 1) / (len(differences) + 1)))


def rounded(value):
    """A figure as runs and tables store it: a float of six decimals."""
    return round(float(value), 6)


def share_with_interval(hits):
    """A share of images with its Wilson interval."""
    low, high = wilson(int(np.sum(hits)), len(hits))
    return {"value": rounded(np.mean(hits)), "low": rounded(low), "high": rounded(high)}


def estimate_with_interval(value, resampled):
    """A figure with its bootstrapped interval."""
    low, high = interval(resampled)
    return {"value": rounded(value), "low": rounded(low), "high": rounded(high)}


def paired_difference(ours, theirs):
    """Share of hits less theirs, on the same images, with its bootstrapped interval and p."""
    gain = ours.astype(float) - theirs
    draws = np.array([draw @ gain / len(gain) for draw in resample(len(gain))])
    return estimate_with_interval(gain.mean(), draws) | {"p": rounded(two_sided(draws))}


def constant_box(share: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The centred box whose sides are a share of the sides of a W×H image: a baseline that never looks."""
    (W, H), margin = size, (1 - share) / 2
    return margin * W, margin * H, W - margin * W, H - margin * H
