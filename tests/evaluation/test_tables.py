"""Summaries as text, and the published figures."""

import json

import pytest
from evaluation_helpers import ALPHA, OURS, PROTOCOL, TAU, made_up, methods_of

import vlscore
from vlscore_lib.evaluation import tables

RESULTS = ("gt_known", "top1_loc", "top5_loc", "mean_box_iou", "max_box_acc", "max_box_acc_v2")


def test_the_table_shows_the_figures_of_each_method(undisturbed):
    out, _ = undisturbed
    summary = json.loads((out / "summary.json").read_text())
    lines = vlscore.summary_table(summary).splitlines()
    for method, found in summary["methods"].items():
        rows = [line for line in lines if line.startswith(f"{method} ")]
        best = max(each["value"] for each in found["gt_known"])
        assert rows
        assert f"{100 * best:.1f} (" in rows[-1]
        assert "*" in rows[-1]
    ours = next(line for line in lines if line.startswith(f"{OURS(TAU)} ")).split()[4:]
    known, *others = (summary["results"][metric] for metric in RESULTS)
    assert ours[0].rstrip("*") == f"{ALPHA:g}"
    assert (
        ours[1:3]
        == "{value:.1f} ({low:.1f}–{high:.1f})".format(
            **{key: 100 * value for key, value in known.items()}
        ).split()
    )
    assert ours[3:] == [f"{100 * each['value']:.1f}" for each in others]


@pytest.mark.parametrize(("best", "rows"), [(1, 1), (2, 2)])
def test_the_table_has_a_row_for_the_chosen_and_one_for_the_best_threshold(best, rows):
    """Which may be the same."""
    records = made_up(6)
    for method in methods_of(records):
        records[f"iou: {method}"] = [[0.9 if n == best else 0.1 for n in range(4)]] * 6
    table = vlscore.summary_table(vlscore.summarize(records, PROTOCOL))
    found = [line for line in table.splitlines() if line.startswith(f"{OURS(0.1)} ")]
    assert len(found) == rows
    assert [line.split()[4] for line in found] == (["0.4*"] if best == 1 else ["0.4", "0.6*"])


def test_the_table_leaves_presence_out_where_no_photo_lacks_a_class():
    records = made_up(6).assign(absent_label="")
    table = vlscore.summary_table(vlscore.summarize(records, PROTOCOL))
    assert "AUROC" not in table
    assert "absent by" not in table
    assert "AUROC of presence" in vlscore.summary_table(vlscore.summarize(made_up(6), PROTOCOL))


def test_every_published_figure_has_its_source():
    head, *lines = vlscore.published_table().splitlines()
    assert head.split()[-4:] == ["GT-known", "Top-1", "Top-5", "source"]
    assert len(lines) == len(tables.PUBLISHED)
    for line, (name, *figures, source) in zip(lines, tables.PUBLISHED):
        assert line.startswith(f"{name} ")
        assert line.endswith(f"  {source}")
        shown = line.removeprefix(name).removesuffix(source).split()
        assert shown == [f"{each:.2f}" for each in figures if each is not None]
