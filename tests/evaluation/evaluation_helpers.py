"""What the tests of evaluation share."""

import itertools
import math

import numpy as np
import pandas

import vlscore
from vlscore_lib import scenes

# Few maps and thresholds, for runs that are about files: as options, and on the command line.
QUICK = {"keep": 4, "thresholds": (0.3, 0.6)}


FLAGS = ["--keep", "4", "--thresholds", "0.3,0.6"]


OURS = "VL-Score, τ = {:g}".format


TAU, ALPHA, *_ = vlscore.SCENES_MODELS["scenes-rn"]


SWEEP = [n / 20 for n in range(1, 20)]


def draw(folder, count, seed, size):
    scenes.write_scenes(folder, count, seed, size)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def counting(counts):
    """A progress function that notes what it is told."""
    return lambda count, measured=True: counts.append((count, measured))


def same_records(one, other):
    assert list(one["image"]) == list(other["image"])
    assert set(one) == set(other)
    for column in one:
        for a, b in zip(one[column], other[column]):
            assert np.array_equal(a, b), column


FILES = ["part-00000.parquet", "part-00001.parquet", "run.json", "summary.json"]


def cut(content):
    return content[: len(content) // 2]


PROTOCOL = vlscore.Protocol(
    temperature=0.1, threshold=0.4, temperatures=(0.1, 1.0), thresholds=(0.2, 0.4, 0.6, 0.8)
)


LABELS = "abcdefgh"


def made_up(n=40, seed=0):
    """Records of random figures, among them many at the edges."""
    random = np.random.default_rng(seed)
    ious = [0, 0.2, 0.3, 0.5, np.nextafter(0.5, 1), 0.62, 0.7, 0.91]
    # Both scores of a photo are high or low together, as they are in earnest.
    common = random.integers(-6, 7, n) / 10
    records = {
        "image": [f"photo {row}" for row in range(n)],
        "label": list(random.choice([*LABELS], n)),
        "objects": random.integers(1, 4, n),
        "top5": [list(random.permutation([*LABELS])[:5]) for _ in range(n)],
        "score": common + random.integers(-1, 4, n) / 10,
        "base_score": random.integers(-1, 3, n) / 10,
        "absent_label": ["" if row % 9 == 4 else "z" for row in range(n)],
        "absent_score": common + random.integers(-3, 2, n) / 10,
        "absent_base_score": random.integers(-1, 3, n) / 10,
        "p_absent": (1 + np.arange(n) % 8) / 81,
        "absent_p": (1 + 7 * np.arange(n) % 81) / 81,
        "constant": list(random.choice(ious, (n, 91))),
    }
    for method in (OURS(0.1), OURS(1), "other"):
        iou = random.choice(ious, (n, 4))
        records[f"iou: {method}"] = iou.tolist()
        records[f"largest: {method}"] = np.where(random.random((n, 4)) < 0.6, iou, 0.1 * iou).tolist()
        records[f"boxes: {method}"] = random.integers(0, 4, (n, 4)).tolist()
    return pandas.DataFrame(records)


def rows_of(records):
    return [row for _, row in records.iterrows()]


def methods_of(records):
    return [column.removeprefix("iou: ") for column in records if column.startswith("iou: ")]


def iou_by_hand(predicted, truth):
    """The largest IoU over all pairs of boxes, by the formula; 0 where there is no pair."""
    best = 0.0
    for one, other in itertools.product(predicted, truth):
        width = min(one[2], other[2]) - max(one[0], other[0])
        height = min(one[3], other[3]) - max(one[1], other[1])
        common = max(width, 0) * max(height, 0)
        areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other)]
        best = max(best, common / (sum(areas) - common))
    return best


def wilson_by_hand(hits, n):
    """The 95 % interval of a share, by the formula (Wilson 1927)."""
    z, share = 1.959964, hits / n
    centre = share + z**2 / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (centre - spread) / (1 + z**2 / n), (centre + spread) / (1 + z**2 / n)


def without_bar(err):
    """What is on stderr beside the bar of a job that had begun."""
    lines = err.replace("\r", "\n").split("\n")
    return "\n".join(line for line in lines if line and not line.startswith("evaluating:")) + "\n"
