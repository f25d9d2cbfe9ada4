"""Summaries of records, against formulas written out."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_helpers import ALPHA, OURS, PROTOCOL, SWEEP, TAU, made_up, methods_of, rows_of, wilson_by_hand

import vlscore


@pytest.fixture(scope="module", params=["made up", "drawn scenes"])
def summed(request):
    """Records and their summary, the thresholds, the index of α, and τ."""
    if request.param == "made up":
        records, thresholds = made_up(), [0.2, 0.4, 0.6, 0.8]
        return SimpleNamespace(
            records=records,
            summary=vlscore.summarize(records, PROTOCOL),
            thresholds=thresholds,
            at=1,
            tau=0.1,
        )
    (out, records), thresholds = request.getfixturevalue("undisturbed"), sorted({ALPHA, *SWEEP})
    summary = json.loads((out / "summary.json").read_text())
    at = thresholds.index(ALPHA)
    return SimpleNamespace(records=records, summary=summary, thresholds=thresholds, at=at, tau=TAU)


def is_share(found, hits):
    """Whether a figure is a share with its Wilson interval, to six digits."""
    hits = list(hits)
    wanted = (sum(hits) / len(hits), *wilson_by_hand(sum(hits), len(hits)))
    return (found["value"], found["low"], found["high"]) == pytest.approx(wanted, abs=2e-6)


def test_gt_known_and_loc_are_shares_of_images_above_a_half(summed):
    records, summary, thresholds = summed.records, summed.summary, summed.thresholds
    assert list(summary["methods"]) == methods_of(records)
    assert summary["thresholds"] == thresholds
    for method, found in summary["methods"].items():
        for n in range(len(thresholds)):
            hit = [row[f"iou: {method}"][n] > 0.5 for row in rows_of(records)]
            first = [row["top5"][0] == row["label"] for row in rows_of(records)]
            five = [row["label"] in list(row["top5"]) for row in rows_of(records)]
            assert is_share(found["gt_known"][n], hit)
            assert is_share(found["top1_loc"][n], [a and b for a, b in zip(hit, first)])
            assert is_share(found["top5_loc"][n], [a and b for a, b in zip(hit, five)])
    assert is_share(summary["classification"]["top1"], first)
    assert is_share(summary["classification"]["top5"], five)


def test_the_mean_box_iou_is_the_mean(summed):
    records, summary, thresholds = summed.records, summed.summary, summed.thresholds
    for method, found in summary["methods"].items():
        for n in range(len(thresholds)):
            expected = sum(row[f"iou: {method}"][n] for row in rows_of(records)) / len(records)
            assert found["mean_box_iou"][n]["value"] == pytest.approx(expected, abs=1e-6)


def test_max_box_acc_is_at_the_best_threshold_of_all(summed):
    records, summary, thresholds = summed.records, summed.summary, summed.thresholds

    def share(kind, n, delta):
        return sum(row[kind][n] >= delta for row in rows_of(records)) / len(records)

    every = range(len(thresholds))
    for method, found in summary["methods"].items():
        shares = [share(f"largest: {method}", n, 0.5) for n in every]
        assert found["max_box_acc"]["value"] == pytest.approx(max(shares), abs=1e-6)
        assert shares[thresholds.index(found["max_box_acc"]["threshold"])] == max(shares)
        best = [max(share(f"iou: {method}", n, delta) for n in every) for delta in (0.3, 0.5, 0.7)]
        assert found["max_box_acc_v2"]["value"] == pytest.approx(sum(best) / 3, abs=1e-6)


def test_the_results_are_those_of_the_protocol_s_temperature_and_threshold(summed):
    summary, at = summed.summary, summed.at
    ours, found = summary["methods"][OURS(summed.tau)], summary["results"]
    assert (summary["temperature"], summary["threshold"]) == (summed.tau, summary["thresholds"][at])
    for key in ("gt_known", "top1_loc", "top5_loc", "mean_box_iou"):
        assert found[key] == ours[key][at]
    for key in ("max_box_acc", "max_box_acc_v2", "images"):
        assert found[key] == ours[key]


def test_boxes_are_counted_against_objects(summed):
    records, found = summed.records, summed.summary["boxes"]
    counts = [row[f"boxes: {OURS(summed.tau)}"][summed.at] for row in rows_of(records)]
    assert found["predicted"] == pytest.approx(sum(counts) / len(counts), abs=1e-6)
    assert found["objects"] == pytest.approx(sum(records["objects"]) / len(counts), abs=1e-6)
    assert is_share(found["same_number"], [a == b for a, b in zip(counts, records["objects"])])


def test_presence_is_told_by_the_cap(summed):
    rows = [row for row in rows_of(summed.records) if row["absent_label"]]
    there = [row["score"] - row["base_score"] for row in rows]
    absent = [row["absent_score"] - row["absent_base_score"] for row in rows]
    found = summed.summary["presence"]
    assert is_share(found["label_said_absent"], [each <= 0 for each in there])
    assert is_share(found["other_said_absent"], [each <= 0 for each in absent])
    assert is_share(found["label_p_above"], [row["p_absent"] > 0.05 for row in rows])
    assert is_share(found["other_p_above"], [row["absent_p"] > 0.05 for row in rows])
    pairs = [
        (a["p_absent"] < b["absent_p"]) + 0.5 * (a["p_absent"] == b["absent_p"]) for a in rows for b in rows
    ]
    assert found["auroc_of_p"]["value"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    pairs = [(a > b) + 0.5 * (a == b) for a in there for b in absent]
    assert found["auroc"]["value"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert found["auroc"]["low"] <= found["auroc"]["value"] <= found["auroc"]["high"]


def test_the_best_constant_box_and_the_whole_image(summed):
    records, summary = summed.records, summed.summary
    hits = [[row["constant"][n] > 0.5 for row in rows_of(records)] for n in range(91)]
    side = summary["constant_box"]["side"]
    assert sum(hits[round(100 * side) - 10]) == max(map(sum, hits))
    assert is_share(summary["constant_box"]["gt_known"], hits[round(100 * side) - 10])
    assert is_share(summary["whole_image"]["gt_known"], hits[90])


def test_an_iou_of_a_half_is_a_hit_for_max_box_acc_and_none_for_gt_known():
    """Choe et al. 2020 count IoU >= 0.5, GT-known localization IoU > 0.5."""
    records = made_up(1)
    for kind in ("iou", "largest"):
        records[f"{kind}: {OURS(0.1)}"] = [[vlscore.box_iou([(0, 0, 10, 5)], [(0, 0, 10, 10)])] * 4]
    found = vlscore.summarize(records, PROTOCOL)["results"]
    assert found["gt_known"]["value"] == found["top5_loc"]["value"] == 0
    assert found["max_box_acc"]["value"] == 1
    assert found["max_box_acc_v2"]["value"] == pytest.approx(2 / 3, abs=1e-6)


def test_bootstrapped_intervals_equal_those_of_drawn_rows():
    records = made_up()
    summary = vlscore.summarize(records, PROTOCOL)
    random, found = np.random.default_rng(77), summary["methods"]["other"]
    iou, largest = np.stack(records["iou: other"]), np.stack(records["largest: other"])
    rows = records[records["absent_label"] != ""]
    there = (rows["score"] - rows["base_score"]).to_numpy()
    absent = (rows["absent_score"] - rows["absent_base_score"]).to_numpy()
    draws = {"mean_box_iou": [], "max_box_acc": [], "max_box_acc_v2": [], "auroc": []}
    for _ in range(2000):
        drawn = random.integers(40, size=40)
        draws["mean_box_iou"].append(iou[drawn, 2].mean())
        draws["max_box_acc"].append((largest[drawn] >= 0.5).mean(0).max())
        best = [(iou[drawn] >= delta).mean(0).max() for delta in (0.3, 0.5, 0.7)]
        draws["max_box_acc_v2"].append(np.mean(best))
        # Both scores of an image are drawn together.
        drawn = random.integers(len(rows), size=len(rows))
        above, same = (np.sign(there[drawn][:, None] - absent[drawn]) == each for each in (1, 0))
        draws["auroc"].append((above + 0.5 * same).mean())
    found = found | {"mean_box_iou": found["mean_box_iou"][2], "auroc": summary["presence"]["auroc"]}
    for key, values in draws.items():
        expected = np.percentile(values, (2.5, 97.5))
        assert (found[key]["low"], found[key]["high"]) == pytest.approx(expected, abs=0.03), key
        assert found[key]["high"] - found[key]["low"] > 0.1
