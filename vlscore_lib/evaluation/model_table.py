"""Several models on the same images: a table of shares, their intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vlscore_lib.errors import import_extra
from vlscore_lib.evaluation.metrics import max_box_acc_v2, paired_difference, share_with_interval
from vlscore_lib.evaluation.protocol import method_name
from vlscore_lib.evaluation.summaries import classification_hits, compare


def measure_models(
    runs: Mapping[str, tuple[dict, object]], seconds: Mapping[str, float] | None = None
) -> list[dict]:
    """Summarize runs of several models on the same images, each at its own τ and α.

    Args:
        runs: a dict from model name to parameters and records, see `read_run`.
        seconds: a dict from model name to its time for one image, in seconds; None shows no times.

    Returns:
        A dict for each model.  ``model``, ``images``, ``temperature``, ``threshold`` and ``seconds`` describe
        the run.  ``gt_known`` and ``top1`` are shares in [0, 1] with 95 % intervals, and ``v2`` is
        MaxBoxAccV2.  ``above_constant`` is GT-known minus that of the constant box that is best on these
        images, see `paired_difference`.  ``above_first``, which the first model lacks, is GT-known minus that
        of the first model, see `compare`.

    Raises:
        VLScoreError: the runs are on different images.
    """
    rows, first = [], next(iter(runs.values()))
    for name, (parameters, records) in runs.items():
        ours = method_name(
            parameters["temperature"], parameters.get("refined", False), parameters.get("keep")
        )
        iou = np.stack(records[f"iou: {ours}"])
        hit = iou[:, parameters["thresholds"].index(parameters["threshold"])] > 0.5
        constant = np.stack(records["constant"]) > 0.5
        row = {
            "model": name,
            "images": len(records),
            "temperature": parameters["temperature"],
            "threshold": parameters["threshold"],
            "gt_known": share_with_interval(hit),
            "v2": max_box_acc_v2(iou),
            "top1": share_with_interval(classification_hits(records)[0]),
            "above_constant": paired_difference(hit, constant[:, constant.mean(0).argmax()]),
            "seconds": None if seconds is None else seconds.get(name),
        }
        if rows:
            row["above_first"] = compare(first, (parameters, records))["GT-known"]
        rows.append(row)
    return rows


def tabulate_models(rows: list[dict]):
    """Format the rows of `measure_models` as a table: a pandas DataFrame of text, a row for each model.

    Args:
        rows: from `measure_models`.
    """
    pandas = import_extra("pandas", "evaluation")

    def share(figure) -> str:
        return "{value:.1f} ({low:.1f}–{high:.1f})".format(**to_percent(figure))

    def change(figure) -> str:
        if figure is None:
            return "–"
        return "{value:+.1f} ({low:+.1f} to {high:+.1f}), p = {p:.3f}".format(**to_percent(figure))

    table = pandas.DataFrame(
        {
            "Model": row["model"],
            "α": f"{row['threshold']:g}",
            "GT-known, %": share(row["gt_known"]),
            "MaxBoxAccV2, %": f"{100 * row['v2']:.1f}",
            "Top-1, %": share(row["top1"]),
            "Above the constant box, points": change(row["above_constant"]),
            "Above the first model, points": change(row.get("above_first")),
            "Seconds an image": "–" if row["seconds"] is None else f"{row['seconds']:.2f}",
        }
        for row in rows
    )
    timed = any(row["seconds"] is not None for row in rows)
    return table if timed else table.drop(columns="Seconds an image")


def to_percent(figure: dict) -> dict:
    """Convert a figure with its interval to percent; the p of a difference is unchanged."""
    value = figure["value"] if "value" in figure else figure["difference"]
    shares = {"value": value, "low": figure["low"], "high": figure["high"]}
    return {name: 100 * each for name, each in shares.items()} | {"p": figure.get("p")}
