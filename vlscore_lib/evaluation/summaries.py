"""Summaries of the records of an evaluation, and comparisons of two runs."""

from __future__ import annotations

import numpy as np

from vlscore_lib.encoding import PRESENT
from vlscore_lib.errors import VLScoreError
from vlscore_lib.evaluation.detection import sum_up_labels
from vlscore_lib.evaluation.metrics import (
    DELTAS,
    SHARES,
    auroc,
    estimate_with_interval,
    interval,
    max_box_acc,
    max_box_acc_v2,
    paired_difference,
    resample,
    rounded,
    share_with_interval,
    two_sided,
)
from vlscore_lib.evaluation.protocol import Protocol, method_name


def summarize(records, protocol: Protocol) -> dict:
    """Summarize an evaluation's records: shares in [0, 1] with their 95 % intervals.

    Args:
        records: a pandas DataFrame of the records of `measure`.
        protocol: with the model's values filled in, see `Protocol.resolve`.

    Returns:
        A dict, see "The keys of a summary" in the API reference.
    """
    methods = {
        column.removeprefix("iou: "): sum_up_method(records, column.removeprefix("iou: "), protocol)
        for column in records
        if column.startswith("iou: ")
    }
    ours = protocol.method
    at = protocol.thresholds.index(protocol.threshold)
    chosen = {key: value[at] if isinstance(value, list) else value for key, value in methods[ours].items()}
    first, five = classification_hits(records)
    predicted = np.stack(records[f"boxes: {ours}"])[:, at]
    constant = np.stack(records["constant"]) > 0.5
    best = int(constant.mean(0).argmax())
    others = {"constant box": constant[:, best]}
    for method in methods:
        if method != ours and methods[method]["images"] == len(records):
            hits = np.stack(records[f"iou: {method}"]) > 0.5
            others[method] = hits[:, hits.mean(0).argmax()]
    hit = np.stack(records[f"iou: {ours}"])[:, at] > 0.5
    return {
        "images": len(records),
        "temperature": protocol.temperature,
        "threshold": protocol.threshold,
        "results": chosen,
        "classification": {"top1": share_with_interval(first), "top5": share_with_interval(five)},
        "boxes": {
            "predicted": rounded(predicted.mean()),
            "objects": rounded(records["objects"].mean()),
            "same_number": share_with_interval(predicted == records["objects"].to_numpy()),
        },
        "presence": sum_up_presence(records),
        "average_precision": sum_up_labels(records) if protocol.average_precision else None,
        "constant_box": {"side": SHARES[best], "gt_known": share_with_interval(constant[:, best])},
        "whole_image": {"gt_known": share_with_interval(constant[:, -1])},
        "gt_known_above": {name: paired_difference(hit, other) for name, other in others.items()},
        "thresholds": list(protocol.thresholds),
        "methods": methods,
    }


def classification_hits(records) -> tuple[np.ndarray, np.ndarray]:
    """Tell whether the label is the likeliest class, and among the five likeliest: (n,) each of bool."""
    ranks = [
        list(top).index(label) if label in top else 5 for top, label in zip(records["top5"], records["label"])
    ]
    return np.array(ranks) == 0, np.array(ranks) < 5


def sum_up_method(records, method, protocol):
    """Compute all metrics of one method, on the images that it was measured on."""
    rows = records[records[f"iou: {method}"].notna()]
    iou, largest = np.stack(rows[f"iou: {method}"]), np.stack(rows[f"largest: {method}"])  # (n, A)
    hits, (first, five) = iou > 0.5, classification_hits(rows)
    draws = list(resample(len(rows), 1000 if len(rows) < 5000 else 200))
    means = np.array([draw @ iou / len(rows) for draw in draws])  # (resamples, A)
    acc, index = max_box_acc(largest)
    passed = [iou >= delta for delta in DELTAS]
    second = [np.mean([(draw @ each / len(rows)).max() for each in passed]) for draw in draws]
    single = [(draw @ (largest >= 0.5) / len(rows)).max() for draw in draws]
    return {
        "images": len(rows),
        "own_threshold": protocol.own_threshold(method),
        "gt_known": [share_with_interval(column) for column in hits.T],
        "top1_loc": [share_with_interval(column & first) for column in hits.T],
        "top5_loc": [share_with_interval(column & five) for column in hits.T],
        "mean_box_iou": [estimate_with_interval(*each) for each in zip(iou.mean(0), means.T)],
        "max_box_acc": estimate_with_interval(acc, single) | {"threshold": protocol.thresholds[index]},
        "max_box_acc_v2": estimate_with_interval(max_box_acc_v2(iou), second),
    }


def sum_up_presence(records):
    """Count how often the label and an absent class are called absent, and rate how scores separate them."""
    rows = records[records["absent_label"] != ""]
    if not len(rows):
        return None
    there = (rows["score"] - rows["base_score"]).to_numpy()
    absent = (rows["absent_score"] - rows["absent_base_score"]).to_numpy()
    fits = [-rows[p].to_numpy() for p in ("p_absent", "absent_p")]
    return {
        "label_said_absent": share_with_interval(there <= 0),
        "other_said_absent": share_with_interval(absent <= 0),
        "label_p_above": share_with_interval(rows["p_absent"] > PRESENT),
        "other_p_above": share_with_interval(rows["absent_p"] > PRESENT),
        "auroc": estimate_with_interval(auroc(there, absent), _resampled_auroc(there, absent)),
        "auroc_of_p": estimate_with_interval(auroc(*fits), _resampled_auroc(*fits)),
    }


def _resampled_auroc(there, absent):
    """Compute the AUROC of each resample; both scores of an image are drawn together."""
    order = absent.argsort()
    below, upto = (np.searchsorted(absent[order], there, side) for side in ("left", "right"))
    areas = []
    for draw in resample(len(there)):
        total = np.concatenate([[0], draw[order].cumsum()])
        areas.append(draw @ (total[below] + total[upto]) / 2 / draw.sum() ** 2)
    return areas


def compare(first, second, count: int = 10_000) -> dict:
    """Compare two runs on the same images by the paired bootstrap (Efron and Tibshirani 1993).

    Args:
        first: parameters and records of a run, see `read_run`; it is taken at its own τ and α.
        second: parameters and records of the other run.
        count: number of resamples, 10,000 by default.

    Returns:
        A dict from metric to ``first``, ``second``, ``difference`` (second - first), ``low`` and ``high`` of
        its 95 % interval, and the two-sided ``p``, see `two_sided`.  The seed is 0.  Mind the sign:
        `paired_difference` subtracts its second argument, ``compare`` its first.

    Raises:
        VLScoreError: the runs are on different images or boxes.
    """
    sides = [paired_metrics(*each) for each in (first, second)]
    same = ("image", "label", "objects")
    n = len(first[1])
    if n != len(second[1]) or any(list(first[1][each]) != list(second[1][each]) for each in same):
        raise VLScoreError("the two runs are on different images: compare runs on the same images")
    if not np.array_equal(*(np.stack(records["constant"]) for _, records in (first, second))):
        raise VLScoreError("the two runs are on different boxes: compare runs on the same boxes")
    everyone = np.ones(n)
    found = {}
    for metric in sides[0]:
        a, b = (side[metric](everyone) for side in sides)
        draws = np.array([sides[1][metric](draw) - sides[0][metric](draw) for draw in resample(n, count)])
        low, high = interval(draws)
        found[metric] = {"first": a, "second": b, "difference": b - a, "low": low, "high": high}
        found[metric]["p"] = two_sided(draws)
    return found


def paired_metrics(parameters, records):
    """Return each metric as a function of how often each image is drawn, (n,)."""
    ours = method_name(parameters["temperature"], parameters.get("refined", False), parameters.get("keep"))
    n = len(records)
    at = parameters["thresholds"].index(parameters["threshold"])
    iou, largest = np.stack(records[f"iou: {ours}"]), np.stack(records[f"largest: {ours}"])
    first, five = classification_hits(records)
    passed = [iou >= delta for delta in DELTAS]
    hit = iou[:, at] > 0.5
    return {
        "GT-known": lambda draw: float(draw @ hit / n),
        "Top-1 Loc": lambda draw: float(draw @ (hit & first) / n),
        "Top-5 Loc": lambda draw: float(draw @ (hit & five) / n),
        "mean box IoU": lambda draw: float(draw @ iou[:, at] / n),
        "MaxBoxAcc": lambda draw: float((draw @ (largest >= 0.5) / n).max()),
        "MaxBoxAccV2": lambda draw: float(np.mean([(draw @ each / n).max() for each in passed])),
    }
