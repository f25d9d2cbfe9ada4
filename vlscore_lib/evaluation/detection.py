"""Average precision of labels, the usual metric for detectors, computed by pycocotools."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import numpy as np

from vlscore_lib.errors import import_extra
from vlscore_lib.evaluation.metrics import SHARES, constant_box, interval, resample, rounded


def sum_up_labels(records) -> dict:
    """Compute the average precision of the boxes that were found, and of a constant box in their place.

    Args:
        records: of `measure` with ``average_precision``, a pandas DataFrame.

    Returns:
        ``labels``: `average_precision` of the boxes that were found; ``constant_box``: the same if each class
        found in a photo has one centred box, with the ``side`` that is best on these images.
    """
    photos = records.drop_duplicates("photo")
    sizes = list(zip(photos["width"], photos["height"]))
    found = [[(each["label"], each["score"], each["box"]) for each in row] for row in photos["found"]]
    truth = [[(each["label"], each["box"]) for each in row] for row in photos["truth"]]
    constant = {
        side: [replace_boxes(each, side, size) for each, size in zip(found, sizes)] for side in SHARES[::5]
    }
    side = max(constant, key=lambda each: read_precision(match_boxes(constant[each], truth))[0].mean())
    return {
        "photos": len(photos),
        "labels": average_precision(found, truth),
        "constant_box": average_precision(constant[side], truth) | {"side": side},
    }


def replace_boxes(found, share, size):
    """Give each class of a photo one constant box, with the highest score that the class had."""
    best = {}
    for label, score, _ in found:
        best[label] = max(score, best.get(label, 0.0))
    return [(label, score, constant_box(share, size)) for label, score in best.items()]


def average_precision(found: list[list[tuple]], truth: list[list[tuple]]) -> dict:
    """Compute COCO's detection metrics (Lin et al. 2014), where a box must match an object of its class.

    Args:
        found: for each photo, a list of (label, score, box), where a higher score means more certain.  For
            each class in a photo, only the 100 boxes with the highest scores are used.
        truth: for each photo, a list of (label, box).  Boxes are (x0, y0, x1, y1) in pixels, half-open.

    Returns:
        A dict of shares in [0, 1].  ``ap50`` is the average precision at IoU 0.5, and ``ap`` its mean over
        IoU 0.5, 0.55, …, 0.95; both are means over the classes.  ``precision`` and ``recall`` of all boxes at
        IoU 0.5 have 95 % intervals.  ``classes`` is a dict from each class to its ``ap50``.

    Raises:
        VLScoreError: pycocotools is not installed.
    """
    labels = list_labels(truth)
    evaluation = match_boxes(found, truth)
    precision = read_precision(evaluation)
    right, wrong, missed = count_matches(evaluation, len(truth))
    others = np.array([sum(label not in labels for label, _, _ in row) for row in found])
    return {
        "ap50": rounded(precision[0].mean()),
        "ap": rounded(precision.mean()),
        "precision": share_of(right, right + wrong + others),
        "recall": share_of(right, right + missed),
        "classes": {label: rounded(precision[0, :, n].mean()) for n, label in enumerate(labels)},
    }


def list_labels(truth) -> list[str]:
    """List the classes of all objects, in the order of their numbers."""
    return sorted({label for row in truth for label, _ in row})


def match_boxes(found, truth):
    """Match boxes with objects for `average_precision`: an accumulated COCOeval."""
    import_extra("pycocotools", "evaluation")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    labels = list_labels(truth)
    numbers = {label: n for n, label in enumerate(labels, start=1)}
    images = [{"id": n} for n in range(1, len(truth) + 1)]
    categories = [{"id": n, "name": label} for label, n in numbers.items()]
    objects = [
        describe_box(image, numbers[label], box) | {"iscrowd": 0}
        for image, row in enumerate(truth, start=1)
        for label, box in row
    ]
    boxes = [
        describe_box(image, numbers[label], box) | {"score": float(score)}
        for image, row in enumerate(found, start=1)
        for label, score, box in row
        if label in numbers
    ]
    with redirect_stdout(io.StringIO()):
        sides = [COCO(), COCO()]
        for side, rows in zip(sides, (objects, boxes)):
            numbered = [row | {"id": n} for n, row in enumerate(rows, start=1)]
            side.dataset = {"images": images, "categories": categories, "annotations": numbered}
            side.createIndex()
        evaluation = COCOeval(*sides, iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def read_precision(evaluation) -> np.ndarray:
    """Read the precision at each IoU, recall and class, (10, 101, N), for objects of all sizes."""
    return evaluation.eval["precision"][:, :, :, 0, -1]


def describe_box(image: int, category: int, box) -> dict:
    x0, y0, x1, y1 = map(float, box)
    sides = [x1 - x0, y1 - y0]
    return {"image_id": image, "category_id": category, "bbox": [x0, y0, *sides], "area": sides[0] * sides[1]}


def count_matches(evaluation, count: int) -> np.ndarray:
    """Count for each photo the right and wrong boxes at IoU 0.5, and the objects that are missed."""
    counts = np.zeros((3, count), int)
    whole = evaluation.params.areaRng[0]
    for each in evaluation.evalImgs:
        if each is None or each["aRng"] != whole:
            continue
        right = int((each["dtMatches"][0] > 0).sum())
        objects = len(each["gtIds"])
        counts[:, each["image_id"] - 1] += right, len(each["dtIds"]) - right, objects - right
    return counts


def share_of(parts: np.ndarray, wholes: np.ndarray) -> dict:
    """Compute the share of parts (n,) in wholes (n,), resampled by photos; None if the wholes sum to 0."""
    if not wholes.sum():
        return {"value": None, "low": None, "high": None}
    draws = [draw @ parts / max(draw @ wholes, 1) for draw in resample(len(parts))]
    low, high = interval(draws)
    return {"value": rounded(parts.sum() / wholes.sum()), "low": rounded(low), "high": rounded(high)}
