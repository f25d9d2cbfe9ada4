"""Metrics of many images: MaxBoxAcc, AUROC and the bootstrap; and the box IoU on what `test_boxes` leaves."""

import itertools
from collections import Counter

import numpy as np
import pytest
from evaluation_helpers import iou_by_hand, wilson_by_hand
from scipy import stats

import vlscore

# ── Box IoU ──────────────────────────────────────────────────────────────────────────────────────


def some_boxes(random, most, side=4):
    """Up to `most` boxes on so small a grid that many touch, are equal, or lie in each other."""
    found = []
    for _ in range(random.integers(0, most + 1)):
        x0, y0 = random.integers(0, side, 2)
        x1, y1 = random.integers([x0 + 1, y0 + 1], side + 1)
        found.append((int(x0), int(y0), int(x1), int(y1)))
    return found


def test_box_iou_equals_the_formula_where_boxes_touch_are_equal_or_missing():
    random, seen = np.random.default_rng(1), Counter()
    for _ in range(1000):
        predicted, truth = some_boxes(random, 4), some_boxes(random, 4)
        expected = iou_by_hand(predicted, truth)
        assert vlscore.box_iou(predicted, truth) == pytest.approx(expected, abs=1e-12)
        if predicted and truth:
            seen["apart or touching"] += expected == 0
            seen["equal"] += bool(set(predicted) & set(truth))
        seen["nothing predicted"] += not predicted
        seen["no truth"] += not truth
    assert min(seen.values()) > 20  # all that the name says was there
    assert len(seen) == 4


def test_box_iou_takes_fractions_of_pixels_and_negative_corners():
    random = np.random.default_rng(2)
    for _ in range(200):
        corners = random.uniform(-9, 9, (5, 2))
        boxes = np.hstack([corners, corners + random.uniform(0.01, 9, (5, 2))]).tolist()
        expected = iou_by_hand(boxes[:2], boxes[2:])
        assert vlscore.box_iou(boxes[:2], boxes[2:]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("gap", "iou"), [(0, 0.0), (-1, 1 / 19), (1, 0.0)])
def test_edges_are_half_open(gap, iou):
    """Boxes of ten columns: those that share an edge share no pixel, those that overlap by one share one."""
    assert vlscore.box_iou([(0, 0, 10, 4)], [(10 + gap, 0, 20 + gap, 4)]) == pytest.approx(iou, abs=1e-15)


# ── Shares ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [1, 2, 7, 24, 1000, 50_000])
def test_wilson_s_interval_equals_the_formula(n):
    for hits in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        assert vlscore.wilson(hits, n) == pytest.approx(wilson_by_hand(hits, n), abs=1e-6)


@pytest.mark.parametrize(
    ("hits", "n"), [([True, False, False, True, True], 3), ([False] * 4, 0), ([1] * 6, 6)]
)
def test_a_share_has_wilson_s_interval_to_six_digits(hits, n):
    found = vlscore.share_with_interval(np.array(hits))
    low, high = wilson_by_hand(n, len(hits))
    expected = {"value": n / len(hits), "low": low, "high": high}
    assert found == pytest.approx(expected, abs=2e-6)
    assert all(round(each, 6) == each for each in found.values())


# ── MaxBoxAcc ────────────────────────────────────────────────────────────────────────────────────

A = 7  # thresholds


@pytest.fixture(params=range(5))
def photos(request):
    """(boxes at each of A thresholds, ground truth) of 30 photos, the box of the largest part first."""
    random = np.random.default_rng(request.param)
    found = []
    for _ in range(30):
        truth = [*some_boxes(random, 2), (1, 1, 4, 5)]
        found.append(([some_boxes(random, 3) for _ in range(A)], truth))
    return found


def share_of_photos(photos, threshold, delta, count):
    """How many photos have one of their first boxes right at one threshold (Choe et al. 2020)."""
    right = 0
    for boxes, truth in photos:
        pairs = itertools.product(boxes[threshold][:count], truth)
        right += any(iou_by_hand([one], [other]) >= delta for one, other in pairs)
    return right / len(photos)


def test_max_box_acc_is_of_the_largest_part_at_one_threshold_for_all_photos(photos):
    shares = [share_of_photos(photos, threshold, 0.5, count=1) for threshold in range(A)]
    ious = [[vlscore.box_iou(each[:1], truth) for each in boxes] for boxes, truth in photos]
    share, index = vlscore.max_box_acc(ious)
    assert share == pytest.approx(max(shares), abs=1e-12)
    assert shares[index] == max(shares)
    # A threshold for each photo would give more, all boxes too: the test can tell them apart.
    assert share < sum(max(each) >= 0.5 for each in ious) / len(ious)
    assert share < max(share_of_photos(photos, threshold, 0.5, count=9) for threshold in range(A))


def test_max_box_acc_v2_is_of_all_boxes_with_a_threshold_for_each_iou(photos):
    best = [
        max(share_of_photos(photos, threshold, delta, count=9) for threshold in range(A))
        for delta in (0.3, 0.5, 0.7)
    ]
    ious = [[vlscore.box_iou(each, truth) for each in boxes] for boxes, truth in photos]
    assert vlscore.max_box_acc_v2(ious) == pytest.approx(sum(best) / 3, abs=1e-12)
    assert len(set(best)) > 1


def test_each_iou_of_v2_may_have_another_threshold():
    """IoU 0.3 is reached by all at the first threshold, 0.7 by half at the second."""
    assert vlscore.max_box_acc_v2([[0.4, 0.8], [0.4, 0.1]]) == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_an_iou_of_exactly_a_half_counts():
    ious = [[vlscore.box_iou([(0, 0, 10, 5)], [(0, 0, 10, 10)])]]
    assert ious == [[0.5]]
    assert vlscore.max_box_acc(ious) == (1.0, 0)
    assert vlscore.max_box_acc([[np.nextafter(0.5, 0)]]) == (0.0, 0)


@pytest.mark.parametrize(("iou", "counted"), [(0.3, 1), (0.5, 2), (0.7, 3), (0.29, 0), (0.69, 2)])
def test_an_iou_at_the_edge_counts_in_v2(iou, counted):
    assert vlscore.max_box_acc_v2([[iou]]) == pytest.approx(counted / 3)


# ── AUROC ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("levels", [3, 10, 10**6], ids=["many ties", "some ties", "no ties"])
def test_auroc_is_the_share_of_pairs_in_order_ties_being_a_half(levels):
    random = np.random.default_rng(levels)
    for n, m in ((1, 1), (1, 9), (25, 40)):
        positive, negative = random.integers(0, levels, n) + 0.25, random.integers(0, levels, m) - 0.75
        pairs = [(p > q) + 0.5 * (p == q) for p in positive for q in negative]
        assert vlscore.auroc(positive, negative) == pytest.approx(sum(pairs) / (n * m), abs=1e-12)


@pytest.mark.parametrize(
    ("positive", "negative", "area"),
    [([2.0, 3.0], [0.0, 1.0], 1), ([0.0], [1.0, 2.0], 0), ([1.0, 1.0], [1.0], 0.5), ([0, 2], [1], 0.5)],
)
def test_auroc_by_hand(positive, negative, area):
    assert vlscore.auroc(positive, negative) == area


# ── The bootstrap ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [1, 2, 24, 1000])
def test_a_resample_draws_as_many_images_as_there_are(n):
    draws = list(vlscore.resample(n, count=20))
    assert len(draws) == 20
    for draw in draws:
        assert draw.shape == (n,)
        assert draw.sum() == n
        assert (draw >= 0).all()
        assert (draw == draw.round()).all()


def test_resamples_are_those_of_the_seed():
    first, again, other = (np.stack(list(vlscore.resample(30, 9, seed))) for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()
    assert len(np.unique(first, axis=0)) == 9


def test_images_are_drawn_evenly_and_with_replacement():
    draws = np.stack(list(vlscore.resample(40, 5000)))
    np.testing.assert_allclose(draws.mean(0), 1, atol=0.07)
    # Multinomial: an image is left out with a chance of (1 - 1/n)^n, and the count's variance is 1 - 1/n.
    assert (draws == 0).mean() == pytest.approx((1 - 1 / 40) ** 40, abs=0.005)
    assert draws.var(0).mean() == pytest.approx(1 - 1 / 40, abs=0.02)


def test_the_interval_is_the_middle_95_percent():
    values = np.random.default_rng(0).permutation(1001) * 0.5
    assert vlscore.interval(values) == (12.5, 487.5)
    assert all(type(each) is float for each in vlscore.interval(values))


def test_the_interval_of_a_bootstrapped_mean_equals_scipy_s():
    values = np.random.default_rng(5).gamma(1.0, size=60)
    low, high = vlscore.interval([draw @ values / 60 for draw in vlscore.resample(60, 5000)])
    expected = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=1)
    spread = expected.confidence_interval.high - expected.confidence_interval.low
    assert low == pytest.approx(expected.confidence_interval.low, abs=0.05 * spread)
    assert high == pytest.approx(expected.confidence_interval.high, abs=0.05 * spread)
