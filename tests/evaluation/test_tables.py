"""Summaries as text, and the published figures."""

import json

import pandas
import pytest
from bs4 import BeautifulSoup
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


def test_the_tabulated_summary_has_the_rows_and_figures_of_the_text(undisturbed):
    out, _ = undisturbed
    summary = json.loads((out / "summary.json").read_text())
    table = vlscore.tabulate_summary(summary)
    lines = vlscore.summary_table(summary).splitlines()[1:]
    assert len(table) == lines.index(next(line for line in lines if line.startswith("IoU: ")))
    results = summary["results"]
    row = table[table["Method"].str.contains(f"{OURS(TAU)}$")].iloc[0]
    assert row["α"].rstrip("*") == f"{ALPHA:g}"
    decimals = int(summary["images"] >= 100)
    for heading, key in zip(("Top-1", "Top-5", "Box IoU", "MaxBoxAcc", "V2"), RESULTS[1:]):
        assert row[heading] == f"{100 * results[key]['value']:.{decimals}f}"
    figures = (f"{100 * results['gt_known'][key]:.{decimals}f}" for key in ("value", "low", "high"))
    assert row["GT-known"].replace("\N{NO-BREAK SPACE}", " ") == "{} ({} to {})".format(*figures)
    assert list(table["Top-1"].iloc[-2:]) == ["", ""]  # boxes that read nothing have no class


def test_a_tabulated_summary_names_the_best_threshold_and_a_part_of_the_images():
    records = made_up(6)
    for method in methods_of(records):
        records[f"iou: {method}"] = [[0.9 if n == 2 else 0.1 for n in range(4)]] * 6
    summary = vlscore.summarize(records, PROTOCOL)
    last = list(summary["methods"])[-1]
    summary["methods"][last]["images"] = 2
    table = vlscore.tabulate_summary(summary)
    ours = table[table["Method"] == OURS(0.1)]
    assert list(ours["α"]) == ["0.4", "0.6*"]
    assert f"{last[0].upper()}{last[1:]}, first 2 images" in set(table["Method"])
    assert list(table["α"].iloc[-2:]) == [f"side {100 * summary['constant_box']['side']:.0f} %*", ""]


@pytest.mark.parametrize(
    ("decimals", "share", "gain"),
    [
        (0, "12 (5 to 26)", "\u22129 (\u221222 to +3)"),
        (1, "12.4 (5.1 to 26.0)", "\u22128.7 (\u221221.7 to +2.6)"),
    ],
)
def test_percentages_have_as_many_decimals_as_are_asked_for(decimals, share, gain):
    row = {"a": {"value": 0.124, "low": 0.051, "high": 0.26}}
    row["b"] = {"value": -0.087, "low": -0.217, "high": 0.026, "p": 0.3}
    table = vlscore.tabulate_figures([row], {"share": "a", "gain": "b", "none": "c.d"}, decimals)
    assert list(table.iloc[0]) == [share, gain, ""]


def test_every_published_figure_has_its_source():
    head, *lines = tables.published_table().splitlines()
    assert head.split()[-4:] == ["GT-known", "Top-1", "Top-5", "source"]
    assert len(lines) == len(tables.PUBLISHED)
    for line, (name, *figures, source) in zip(lines, tables.PUBLISHED):
        assert line.startswith(f"{name} ")
        assert line.endswith(f"  {source}")
        shown = line.removeprefix(name).removesuffix(source).split()
        assert shown == [f"{each:.2f}" for each in figures if each is not None]


def test_a_shown_table_has_a_title_and_a_head():
    table = pandas.DataFrame({"α": [0.5], "name": ["<b>"]})
    found = BeautifulSoup(vlscore.show_table(table, "Share & size").data, "html.parser")
    assert found.caption.text == "Share & size"
    assert [each.text for each in found.select("thead th")] == ["α", "name"]
    assert [each.text for each in found.select("tbody td")] == ["0.5", "<b>"]
