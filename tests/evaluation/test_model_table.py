"""Several models on the same images, in one table."""

import numpy as np
import pandas as pd
import pytest

import vlscore

PARAMETERS = {"temperature": 0.1, "threshold": 0.5, "thresholds": [0.25, 0.5], "refined": False}


def run(hits, constant, right):
    """A run whose images have an IoU of 0.8 or 0.2 at its own threshold, and 0.6 at the other."""
    n = len(hits)
    iou = [np.array([0.6, 0.8 if hit else 0.2]) for hit in hits]
    records = {
        "image": [f"{k}.jpg" for k in range(n)],
        "label": ["a"] * n,
        "objects": [1] * n,
        "iou: VL-Score, τ = 0.1": iou,
        "largest: VL-Score, τ = 0.1": iou,
        "constant": [np.array([0.1, 0.9 if hit else 0.1]) for hit in constant],
        "top5": [["a", "b"] if each else ["b", "a"] for each in right],
    }
    return PARAMETERS, pd.DataFrame(records)


def made_up():
    return {
        "one": run([1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 1], [1] * 8),
        "two": run([1, 1, 1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 1], [1, 0] * 4),
    }


@pytest.fixture(scope="module")
def rows():
    """Both models measured, once: a comparison draws many samples."""
    return vlscore.measure_models(made_up(), {"one": 1.25, "two": 2})


def test_shares_margins_and_differences(rows):
    one, two = rows
    assert (one["gt_known"]["value"], two["gt_known"]["value"]) == (0.375, 0.75)
    assert (one["top1"]["value"], two["top1"]["value"]) == (1, 0.5)
    assert one["above_constant"]["value"] == pytest.approx(0.375 - 0.25)
    assert two["above_first"]["difference"] == pytest.approx(0.375)
    assert two["above_first"]["low"] <= 0.375 <= two["above_first"]["high"]
    assert "above_first" not in one
    # at IoU 0.3 and 0.5 all images pass at 0.25, at 0.7 three pass at 0.5
    assert one["v2"] == pytest.approx((1 + 1 + 0.375) / 3)


def test_the_table_is_text(rows):
    table = vlscore.tabulate_models(rows)
    assert list(table["Model"]) == ["one", "two"]
    assert table["GT-known, %"][0].startswith("37.5 (")
    assert table["Above the first model, points"][0] == "–"
    assert table["Above the first model, points"][1].startswith("+37.5 (")
    assert list(table["Seconds an image"]) == ["1.25", "2.00"]


def test_without_times_there_is_no_such_column():
    first = dict(list(made_up().items())[:1])
    assert "Seconds an image" not in vlscore.tabulate_models(vlscore.measure_models(first))


def test_runs_of_other_images_are_refused():
    runs = made_up()
    runs["two"][1].loc[0, "image"] = "other.jpg"
    with pytest.raises(vlscore.VLScoreError, match="different images"):
        vlscore.measure_models(runs)
