"""Summaries as text and as tables, and the published figures."""

from __future__ import annotations

import math
from html import escape

from vlscore_lib.encoding import PRESENT
from vlscore_lib.errors import import_extra

# Published figures, percent: GT-known, Top-1 Loc, Top-5 Loc, and their source.
PUBLISHED = [
    ("VL-Score, RN50, α = 0.55", 64.24, 37.65, 54.90, "report, Table 2"),
    ("VL-Score, RN50, α = 0.60", 66.93, 39.30, 57.20, "report, Table 2"),
    ("VL-Score, RN50, α = 0.65", 66.60, 39.20, 57.08, "report, Table 2"),
    ("VL-Score, RN101, α = 0.55", 64.44, 38.94, 55.50, "report, Table 2"),
    ("VL-Score, RN101, α = 0.60", 65.40, 39.50, 56.31, "report, Table 2"),
    ("VL-Score, RN101, α = 0.65", 63.49, 38.39, 54.71, "report, Table 2"),
    ("VL-Score, ViT-B/16, α = 0.55", 20.80, 14.63, 19.57, "report, first 10k"),
    ("VL-Score, ViT-B/16, α = 0.60", 15.08, 10.85, 14.18, "report, first 10k"),
    ("VL-Score, ViT-B/16, α = 0.65", 9.66, 6.82, 9.10, "report, first 10k"),
    ("CAM, ResNet50, weakly supervised", 51.86, 38.99, 49.47, "report, Table 1"),
    ("ADL, ResNet50, weakly supervised", 61.04, 48.23, None, "report, Table 1"),
    ("FAM, ResNet50, weakly supervised", 64.56, 54.46, None, "report, Table 1"),
    ("PSOL, ResNet50, weakly supervised", 65.44, 53.98, 63.08, "report, Table 1"),
    ("I²C, ResNet50, weakly supervised", 68.50, 54.83, 64.60, "report, Table 1"),
    ("SPOL, ResNet50, weakly supervised", 69.02, 59.14, 67.15, "report, Table 1"),
    ("BGC, ResNet50, weakly supervised", 69.89, 53.76, 65.75, "report, Table 1"),
    ("constant box, 75 % of each side", 53.29, None, None, "the 50,000 boxes"),
    ("whole image", 40.34, None, None, "the 50,000 boxes"),
]


def summary_table(summary: dict) -> str:
    """Format a summary as text: a row for each method at its best threshold, and for VL-Score at its own.

    Args:
        summary: from `summarize`, or read from ``summary.json`` by `read_json`.
    """
    width = max(20, *map(len, summary["methods"]))

    def line(name, alpha, known, *figures):
        shown = " ".join(f"{100 * each['value']:5.1f}" for each in figures)
        return f"{name:{width}} {alpha:>5} {_percent(known):>16} {shown}".rstrip()

    names = ("Top-1", "Top-5", "IoU", "Acc", "AccV2")
    rows = [f"{'percent':{width}} {'α':>5} {'GT-known':>16} " + " ".join(f"{name:>5}" for name in names)]
    for name, method in summary["methods"].items():
        own, best = choose_thresholds(summary, name)
        shown = name if method["images"] == summary["images"] else f"{name}, {method['images']}"
        for n in dict.fromkeys([*own, best]):
            alpha = f"{summary['thresholds'][n]:g}" + "*" * (n == best)
            figures = [method[key][n] for key in ("gt_known", "top1_loc", "top5_loc", "mean_box_iou")]
            rows.append(line(shown, alpha, *figures, method["max_box_acc"], method["max_box_acc_v2"]))
    constant = summary["constant_box"]
    rows.append(line("constant box, side", f"{constant['side']:g}*", constant["gt_known"]))
    rows.append(line("whole image", "", summary["whole_image"]["gt_known"]))
    rows.append("IoU: mean box IoU; Acc, AccV2: MaxBoxAcc and V2 at their best threshold")
    rows.append("*: best on these images; a number after a name: of the first so many")
    rows.append("GT-known at its own α above others at their best on these images:")
    for name in ("constant box", *(each for each in summary["gt_known_above"] if "VL-Score" in each)):
        above = summary["gt_known_above"][name]
        value, low, high = (100 * above[key] for key in ("value", "low", "high"))
        change = f"{value:+.1f} ({low:+.1f} to {high:+.1f}), p = {above['p']:.3f}"
        rows.append(f"  {name:{width}} {change}")
    right = summary["classification"]
    rows.append(f"classification: top-1 {_percent(right['top1'])}, top-5 {_percent(right['top5'])}")
    boxes = summary["boxes"]
    same = _percent(boxes["same_number"])
    predicted, objects = (f"{boxes[name]:.2f}" for name in ("predicted", "objects"))
    rows.append(f"boxes: {predicted} an image, objects of the class {objects}; as many: {same}")
    if presence := summary["presence"]:
        label, other = _percent(presence["label_said_absent"]), _percent(presence["other_said_absent"])
        rows.append(f"absent by the base score: label {label}, other {other}")
        label, other = _percent(presence["label_p_above"]), _percent(presence["other_p_above"])
        rows.append(f"absent by p > {PRESENT}: label {label}, other {other}")
        margin, p = _percent(presence["auroc"]), _percent(presence["auroc_of_p"])
        rows.append(f"AUROC of presence: margin {margin}, p {p}")
    if found := summary.get("average_precision"):
        rows.append(f"labels of all classes in {found['photos']} photos, by pycocotools, in percent:")
        for name, each in (("ours", found["labels"]), ("constant box", found["constant_box"])):
            rows.append(
                f"  {name:12}  AP at IoU 0.5 {100 * each['ap50']:.1f}, at 0.5 to 0.95 {100 * each['ap']:.1f};"
                f" precision {_percent(each['precision'])}, recall {_percent(each['recall'])}"
            )
    return "\n".join(rows)


def choose_thresholds(summary: dict, name: str) -> tuple[list[int], int]:
    """Choose the thresholds at which tables show a method: indices of its own, if any, and of its best."""
    method = summary["methods"][name]
    own = method.get("own_threshold", summary["threshold"] if "VL-Score" in name else None)  # older files
    best = max(range(len(method["gt_known"])), key=lambda n: method["gt_known"][n]["value"])
    return [] if own is None else [summary["thresholds"].index(own)], best


def tabulate_figures(rows: list[dict], columns: dict[str, str], decimals: int = 1):
    """Format numbers of stored rows as a table: a pandas DataFrame of text, shares in percent.

    Args:
        rows: nested dicts, as in the files of ``data/``.
        columns: a dict from heading to the keys of its figure, joined by dots.  A share or difference with an
            interval is shown with it; if a row has no such figure, the cell is empty.
        decimals: number of decimals of a percentage; 0 is enough for a few images.

    Raises:
        VLScoreError: pandas is not installed.
    """
    pandas = import_extra("pandas", "evaluation")

    def read(row: dict, where: str) -> str:
        for key in where.split("."):
            row = (row or {}).get(key)
        return format_figure(row, decimals)

    return pandas.DataFrame(
        [[read(row, where) for where in columns.values()] for row in rows], columns=columns
    )


def tabulate_summary(summary: dict):
    """Format a summary as a table: a pandas DataFrame of text, shares in percent.

    There is a row for each method at the CAM threshold that is best for it on these images, marked by a
    star.  VL-Score also has a row for its own threshold.  GT-known is shown with its 95 % interval; V2 is
    MaxBoxAccV2.  Below 100 images, no decimals are shown.

    Args:
        summary: from `summarize`.

    Raises:
        VLScoreError: pandas is not installed.
    """
    alphas, rows = summary["thresholds"], []
    for name, method in summary["methods"].items():
        own, best = choose_thresholds(summary, name)
        shown = name[0].upper() + name[1:].removesuffix(" (CAM)")  # of some models it is another map
        if method["images"] != summary["images"]:
            shown += f", first {method['images']} images"
        for n in dict.fromkeys([*own, best]):
            row = {"method": shown, "alpha": f"{alphas[n]:g}" + "*" * (n == best)}
            row["gt_known"] = method["gt_known"][n]
            row |= {key: method[key][n]["value"] for key in ("top1_loc", "top5_loc", "mean_box_iou")}
            rows.append(row | {key: method[key]["value"] for key in ("max_box_acc", "max_box_acc_v2")})
    constant = summary["constant_box"]
    side = f"side {100 * constant['side']:.0f} %*"
    rows.append({"method": "Constant box", "alpha": side, "gt_known": constant["gt_known"]})
    rows.append({"method": "Whole image", "gt_known": summary["whole_image"]["gt_known"]})
    columns = {"Method": "method", "α": "alpha", "GT-known": "gt_known", "Top-1": "top1_loc"}
    columns |= {"Top-5": "top5_loc", "Box IoU": "mean_box_iou"}
    columns |= {"MaxBoxAcc": "max_box_acc", "V2": "max_box_acc_v2"}
    table = tabulate_figures(rows, columns, decimals=int(summary["images"] >= 100))
    table["GT-known"] = table["GT-known"].str.replace(" ", "\N{NO-BREAK SPACE}")
    return table


def show_table(table, title: str):
    """Show a pandas DataFrame as a table with a title, at the end of a notebook's cell.

    Args:
        table: the DataFrame.
        title: plain text.
    """
    display = import_extra("IPython.display", "notebooks")
    html = table.to_html(index=False, border=0)
    head, body = html.split("\n", 1)
    return display.HTML(f"{head}\n  <caption>{escape(title)}</caption>\n{body}")


def format_figure(figure, decimals: int = 1) -> str:
    """Format a share in percent, with its interval if it has one; a difference gets a sign; text stays."""
    if isinstance(figure, dict):
        one = f"{{:{'+' * ('p' in figure)}.{decimals}f}}"
        shares = (in_percent(figure[key], decimals) for key in ("value", "low", "high"))
        return f"{one} ({one} to {one})".format(*shares).replace("-", "\N{MINUS SIGN}")
    if isinstance(figure, float):
        return f"{in_percent(figure, decimals):.{decimals}f}"
    return "" if figure is None else str(figure)


def in_percent(share: float, decimals: int) -> float:
    """A share in percent; without decimals a half is rounded up, where Python takes the even number."""
    percent = 100 * share
    return percent if decimals else math.floor(round(percent, 6) + 0.5)


def published_table() -> str:
    """Format the published figures as text, each with its source."""
    rows = [f"{'on ImageNet, not measured here':33} GT-known Top-1 Top-5  source"]
    for name, known, first, five, source in PUBLISHED:
        figures = " ".join(f"{'' if each is None else f'{each:.2f}':>5}" for each in (first, five))
        rows.append(f"{name:33} {known:8.2f} {figures}  {source}")
    return "\n".join(rows)


def _percent(figure):
    if figure["value"] is None:
        return "none"
    return "{:.1f} ({:.1f}–{:.1f})".format(*(100 * figure[key] for key in ("value", "low", "high")))
