"""Two runs compared by the paired bootstrap."""

import functools
import json

import numpy as np
import pytest
from evaluation_helpers import FILES, OURS, QUICK, draw, made_up, rows_of
from scipy import stats
from test_command_line import one_line

import vlscore

PARAMETERS = {"temperature": 0.1, "threshold": 0.4, "thresholds": [0.2, 0.4, 0.6, 0.8], "data": "same"}


METRICS = ["GT-known", "Top-1 Loc", "Top-5 Loc", "mean box IoU", "MaxBoxAcc", "MaxBoxAccV2"]


def changed(records, **columns):
    return records.assign(**columns)


def figures(records, at=1, method="VL-Score, τ = 0.1"):
    """The six metrics by plain loops."""
    rows, n = rows_of(records), len(records)
    hit = [row[f"iou: {method}"][at] > 0.5 for row in rows]
    count = len(rows[0][f"iou: {method}"])

    def best(kind, delta):
        return max(sum(row[f"{kind}: {method}"][m] >= delta for row in rows) for m in range(count)) / n

    return [
        sum(hit) / n,
        sum(a and row["top5"][0] == row["label"] for a, row in zip(hit, rows)) / n,
        sum(a and row["label"] in list(row["top5"]) for a, row in zip(hit, rows)) / n,
        sum(row[f"iou: {method}"][at] for row in rows) / n,
        best("largest", 0.5),
        sum(best("iou", delta) for delta in (0.3, 0.5, 0.7)) / 3,
    ]


@pytest.fixture(scope="module")
def pair():
    """Records of two runs on the same images: the second hits a third of the images that the first misses."""
    first, second = made_up(60), made_up(60)
    for kind in ("iou", "largest"):
        column = [list(each) for each in second[f"{kind}: {OURS(0.1)}"]]
        for row in range(0, 60, 3):
            column[row] = [0.8] * 4
        second[f"{kind}: {OURS(0.1)}"] = column
    return first, second


@pytest.fixture(scope="module")
def compared(pair):
    return vlscore.compare(*((PARAMETERS, records) for records in pair), count=4000)


def test_a_difference_is_that_of_the_two_figures(compared, pair):
    assert list(compared) == METRICS
    for metric, one, other in zip(METRICS, *map(figures, pair)):
        found = compared[metric]
        expected = (one, other, other - one)
        assert (found["first"], found["second"], found["difference"]) == pytest.approx(expected, abs=2e-7)
        assert found["low"] <= found["difference"] <= found["high"]


def test_a_clearly_better_run_has_a_small_p(compared):
    for metric in ("GT-known", "mean box IoU"):
        assert compared[metric]["p"] < 0.01
        assert compared[metric]["low"] > 0


def test_the_other_way_around_all_signs_turn(compared, pair):
    back = vlscore.compare(*((PARAMETERS, records) for records in pair[::-1]), count=4000)
    for metric, found in compared.items():
        assert back[metric]["difference"] == pytest.approx(-found["difference"], abs=1e-7)
        assert back[metric]["low"] == pytest.approx(-found["high"], abs=1e-6)
        assert back[metric]["p"] == found["p"]


def test_the_interval_of_a_difference_equals_scipy_s_paired_bootstrap(compared, pair):
    one, other = (np.stack(each[f"iou: {OURS(0.1)}"])[:, 1] for each in pair)
    for metric, (a, b) in {"GT-known": (one > 0.5, other > 0.5), "mean box IoU": (one, other)}.items():
        expected = stats.bootstrap(
            (a.astype(float), b.astype(float)),
            lambda x, y, axis: y.mean(axis) - x.mean(axis),
            paired=True,
            n_resamples=5000,
            method="percentile",
            rng=3,
        ).confidence_interval
        found = compared[metric]["low"], compared[metric]["high"]
        assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_p_is_twice_the_share_of_resamples_that_turn_the_difference_around():
    """One run hits 5 images that the other misses, which hits 2 others: resamples by hand."""
    first, second = made_up(30), made_up(30)
    for records, hits in ((first, range(5)), (second, range(20, 22))):
        records[f"iou: {OURS(0.1)}"] = [[0.9 if row in hits else 0.1] * 4 for row in range(30)]
    found = vlscore.compare((PARAMETERS, first), (PARAMETERS, second), count=4000)["GT-known"]
    change = np.array([-1] * 5 + [0] * 15 + [1] * 2 + [0] * 8)
    drawn = np.random.default_rng(8).integers(30, size=(20_000, 30))
    share = (change[drawn].sum(1) >= 0).mean()
    assert found["difference"] == pytest.approx(-0.1, abs=1e-7)
    assert found["p"] == pytest.approx(2 * share, abs=0.03)
    assert 0.1 < found["p"] < 0.9


def test_equal_runs_have_no_difference_and_p_is_1(pair):
    same = vlscore.compare((PARAMETERS, pair[0]), (PARAMETERS, pair[0].copy()), count=100)
    for found in same.values():
        assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)


def test_each_run_is_taken_at_its_own_temperature_and_threshold(pair):
    own = PARAMETERS | {"temperature": 1.0, "threshold": 0.8}
    found = vlscore.compare((PARAMETERS, pair[0]), (own, pair[0]), count=10)
    expected = figures(pair[0], 3, OURS(1))
    assert [each["second"] for each in found.values()] == pytest.approx(expected, abs=1e-7)
    assert [each["first"] for each in found.values()] == pytest.approx(figures(pair[0]), abs=1e-7)


@pytest.mark.parametrize("rows", [range(59), [1, 0, *range(2, 60)]], ids=["fewer", "another order"])
def test_runs_of_other_images_are_not_compared(pair, rows):
    other = pair[0].iloc[list(rows)].reset_index(drop=True)
    with pytest.raises(vlscore.VLScoreError, match="different images"):
        vlscore.compare((PARAMETERS, pair[0]), (PARAMETERS, other))


@pytest.fixture(scope="module")
def other_run(rn, photos, tmp_path_factory):
    """A run with other maps, on the images of `finished`."""
    out = tmp_path_factory.mktemp("other") / "run"
    vlscore.evaluate(rn, photos, out, layer="layer1", threshold=0.3, **QUICK)
    return out


def test_runs_of_other_photos_of_the_same_names_are_not_compared(run, monkeypatch, rn, finished, tmp_path):
    monkeypatch.setattr(vlscore, "compare", functools.partial(vlscore.compare, count=500))
    other = vlscore.read_dataset(draw(tmp_path / "scenes", 12, 99, (96, 80)))
    vlscore.evaluate(rn, other, tmp_path / "run", **QUICK)
    code, out, err = run("compare", finished, tmp_path / "run")
    assert (code, out) == (2, "")
    assert "different images" in one_line(err)


def test_compare_prints_json(run, monkeypatch, finished, other_run):
    monkeypatch.setattr(vlscore, "compare", functools.partial(vlscore.compare, count=500))
    code, out, err = run("compare", finished, other_run, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert list(found) == METRICS
    records = [vlscore.read_run(folder)[1] for folder in (finished, other_run)]
    expected = figures(records[0], 1, OURS(0.01)), figures(records[1], 0, OURS(0.01))
    for metric, one, other in zip(METRICS, *expected):
        assert list(found[metric]) == ["first", "second", "difference", "low", "high", "p"]
        assert (found[metric]["first"], found[metric]["second"]) == pytest.approx((one, other), abs=1e-7)


def test_compare_prints_a_line_a_metric_in_percent(run, monkeypatch, finished, compared):
    monkeypatch.setattr(vlscore, "compare", lambda *_: compared)
    code, out, err = run("compare", finished, finished)
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == ["percent", "first", "second", "difference", "p"]
    for line, (metric, each) in zip(lines, compared.items()):
        words = line.removeprefix(metric).split()
        assert line.startswith(metric)
        assert words[0] == f"{100 * each['first']:.1f}"
        assert words[1] == f"{100 * each['second']:.1f}"
        assert words[2] == f"{100 * each['difference']:+.1f}"
        assert words[-1] == f"{each['p']:.4f}"
    assert len(lines) == 6


@pytest.mark.parametrize("name", ["missing", "stopped", "no run"])
def test_compare_tells_of_what_is_no_finished_run(run, finished, finished_copy, tmp_path, name):
    folder = {"missing": tmp_path / "missing", "stopped": finished_copy, "no run": tmp_path / "empty"}[name]
    (tmp_path / "empty").mkdir()
    (finished_copy / FILES[1]).unlink()
    code, out, err = run("compare", finished, folder)
    assert (code, out) == (2, "")
    assert str(folder) in one_line(err)
    if name == "stopped":
        assert "--resume" in err
