"""Metrics: the IoU of boxes, shares of hits with their intervals, MaxBoxAcc, and the bootstrap."""

from __future__ import annotations

import numpy as np

from vlscore_lib.errors import VLScoreError

SHARES = tuple(n / 100 for n in range(10, 101))  # sides of the constant box
DELTAS = (0.3, 0.5, 0.7)  # MaxBoxAccV2 is a mean over these minimum IoUs


def box_iou(predicted, truth) -> float:
    """Compute the box IoU of an image: the largest IoU over all pairs of boxes.

    The VL-Score report defines it in its section "Data and Evaluation".

    Args:
        predicted: the boxes that were found, (x0, y0, x1, y1) in pixels, half-open.
        truth: the true boxes, in the same form.

    Returns:
        A share in [0, 1]; 0 if either list is empty.
    """
    return float(best_ious(predicted, truth).max(initial=0.0))


def best_ious(predicted, truth) -> np.ndarray:
    """Compute the largest IoU of each predicted box with a true one: (n,), 0 if there is none."""
    import torch
    from torchvision.ops import box_iou as pairwise_iou

    if not len(predicted) or not len(truth):
        return np.zeros(len(predicted))
    pairs = (torch.as_tensor(np.asarray(boxes, dtype=np.float64)) for boxes in (predicted, truth))
    return pairwise_iou(*pairs).amax(1).numpy()


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Compute the 95 % Wilson interval of a share (Wilson 1927): its two ends, in [0, 1].

    Args:
        hits: number of successes, from 0 to n.
        n: number of trials, 1 or more.

    Raises:
        VLScoreError: ``n`` is below 1, or ``hits`` is not between 0 and ``n``.
    """
    if not 0 <= hits <= n or n < 1:
        raise VLScoreError(f"{hits} of {n} is not a share: give hits from 0 to n, and n of 1 or more")
    from scipy.stats import binomtest

    found = binomtest(int(hits), int(n)).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def max_box_acc(ious) -> tuple[float, int]:
    """Compute MaxBoxAcc (Choe et al. 2020): the share of images with IoU ≥ 0.5, at the best threshold.

    Args:
        ious: (n, T) in [0, 1], the IoU of the largest component's box, for n images at T thresholds.

    Returns:
        The share in [0, 1], and the index of the threshold.
    """
    shares = (np.asarray(ious) >= 0.5).mean(0)
    return float(shares.max()), int(shares.argmax())


def max_box_acc_v2(ious) -> float:
    """Compute MaxBoxAccV2 (Choe et al. 2020): a mean over three minimum IoUs, each at its best threshold.

    It is the mean, over the minimum IoUs 0.3, 0.5 and 0.7, of the share of images that reach it.

    Args:
        ious: (n, T) in [0, 1], the box IoU over all boxes, for n images at T thresholds.

    Returns:
        A share in [0, 1].
    """
    return float(np.mean([(np.asarray(ious) >= delta).mean(0).max() for delta in DELTAS]))


def auroc(positive, negative) -> float:
    """Compute the probability that a positive score is above a negative one, where ties count half.

    Args:
        positive: scores of positive cases, of any range.
        negative: scores of negative cases.

    Returns:
        A probability in [0, 1]; 0.5 is chance.  It is NaN, with a warning, if one list is empty.

    Raises:
        ValueError: both lists are empty.
    """
    from sklearn.metrics import roc_auc_score

    truth = [1] * len(positive) + [0] * len(negative)
    return float(roc_auc_score(truth, [*positive, *negative]))


def resample(n: int, count: int = 1000, seed: int = 0):
    """Draw bootstrap resamples (Efron 1979) of n images: how often each one is drawn, (n,) float64.

    Args:
        n: number of images, 1 or more.
        count: number of resamples.
        seed: seed of the random numbers.

    Yields:
        The counts of each resample, (n,), whose sum is n.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)


def interval(values) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentiles of bootstrapped values: their middle 95 %.

    Args:
        values: one value for each resample.
    """
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def two_sided(differences) -> float:
    """Compute a two-sided p-value from bootstrapped differences: small if few of them change their sign.

    If k of n differences have the rarer sign or are 0, p is 2 (k + 1) / (n + 1), and at most 1.

    Args:
        differences: a NumPy array with one difference for each resample.

    Returns:
        p in (0, 1].
    """
    fewer = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (fewer + 1) / (len(differences) + 1)))


def rounded(value):
    """Round a number to six decimals, as runs and tables store it.

    Args:
        value: a number.
    """
    return round(float(value), 6)


def share_with_interval(hits):
    """Compute a share of images with its 95 % Wilson interval: a dict of ``value``, ``low`` and ``high``.

    Args:
        hits: whether each image is a hit, (n,) of bool.
    """
    low, high = wilson(int(np.sum(hits)), len(hits))
    return {"value": rounded(np.mean(hits)), "low": rounded(low), "high": rounded(high)}


def estimate_with_interval(value, resampled):
    """Join a figure with its bootstrapped interval."""
    low, high = interval(resampled)
    return {"value": rounded(value), "low": rounded(low), "high": rounded(high)}


def paired_difference(ours, theirs):
    """Compute how much larger one share of hits is than another on the same images, with interval and p.

    Args:
        ours: whether each image is a hit of one method, a NumPy array (n,) of bool.
        theirs: the same for the method that it is compared with.

    Returns:
        A dict of ``value`` (share of ``ours`` minus share of ``theirs``, in [-1, 1]), ``low`` and ``high`` of
        its 95 % interval from 1,000 resamples with seed 0, and ``p``, see `two_sided`.
    """
    gain = ours.astype(float) - theirs
    draws = np.array([draw @ gain / len(gain) for draw in resample(len(gain))])
    return estimate_with_interval(gain.mean(), draws) | {"p": rounded(two_sided(draws))}


def constant_box(share: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the centred box whose sides are a given share of the image's: a baseline that ignores the image.

    Args:
        share: in (0, 1].
        size: (W, H) of the image in pixels.

    Returns:
        The box (x0, y0, x1, y1) in pixels; the coordinates need not be whole.
    """
    (W, H), margin = size, (1 - share) / 2
    return margin * W, margin * H, W - margin * W, H - margin * H
