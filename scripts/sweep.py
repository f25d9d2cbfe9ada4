"""Run a chapter by papermill over a grid of parameters, into one table.

    python scripts/sweep.py MODEL=scenes-rn,scenes-vit LIMIT=20 --jobs 2

A value is YAML; alternatives stand between commas: `LAYER=layer3,layer4`
or `THRESHOLDS=[0.5],[0.55,0.6]`.  A sweep that was stopped goes on.
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import papermill
import yaml

import vlscore

CHAPTER = Path(__file__).parents[1] / "notebooks" / "04_imagenet_evaluation.ipynb"


def grid(words: list[str]) -> list[dict]:
    """NAME=VALUE,VALUE … -> every combination, as parameters by name."""
    choices = {}
    for word in words:
        name, is_pair, text = word.partition("=")
        try:
            choices[name] = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError:
            is_pair = ""
        if not is_pair or not choices[name]:
            raise vlscore.VLScoreError(f"{word!r} is no NAME=VALUE,VALUE: write LIMIT=20,40")
    rows = product(*choices.values())
    return [dict(zip(choices, row)) for row in rows]


def check_names(chapter: Path, names) -> None:
    """Papermill only warns of an unknown name, and runs the defaults."""
    known = papermill.inspect_notebook(str(chapter))
    if unknown := [name for name in names if name not in known]:
        raise vlscore.VLScoreError(
            f"{chapter.name} has no parameter {unknown[0]}: choose of {', '.join(known)}"
        )


def label(parameters: dict) -> str:
    """A name for the files of one run."""
    text = "_".join(f"{k}-{v}" for k, v in parameters.items()) or "defaults"
    return "".join(c if c.isalnum() or c in "-_.=" else "-" for c in text)


def run(chapter: Path, out: Path, parameters: dict) -> str | None:
    """Execute the chapter once; None, or why it failed."""
    name = label(parameters)
    if (out / "results" / f"{name}.json").exists():
        return None
    folders = {
        "OUT": str((out / "runs" / name).resolve()),
        "RESULTS": str((out / "results").resolve()),
    }
    try:
        papermill.execute_notebook(
            str(chapter),
            str(out / f"{name}.ipynb"),
            parameters=folders | parameters,
            cwd=str(chapter.parent),
            progress_bar=False,
        )
    except papermill.PapermillExecutionError as error:
        return f"{name}: {error.ename}: {error.evalue.splitlines()[0]}"
    return None


def table(out: Path) -> str:
    """A line a run, from the summaries in the results folder."""
    keys = ("gt_known", "top1_loc", "max_box_acc", "max_box_acc_v2")
    shown = ("GT-known", "Top-1 Loc", "MaxBoxAcc", "MaxBoxAccV2")
    rows = [f"{'run':40} {'images':>6} " + " ".join(f"{k:>11}" for k in shown)]
    for file in sorted((out / "results").glob("*.json")):
        summary = json.loads(file.read_text())["summary"]
        found = [summary["results"][key]["value"] for key in keys]
        figures = " ".join(f"{100 * value:11.1f}" for value in found)
        rows.append(f"{file.stem:40} {summary['images']:6} {figures}")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("sweep.py", description=__doc__.splitlines()[0])
    parser.add_argument("grid", nargs="*", metavar="NAME=VALUE,VALUE")
    parser.add_argument("--chapter", type=Path, default=CHAPTER)
    parser.add_argument("--out", type=Path, default=Path("sweep"))
    parser.add_argument("--jobs", type=int, default=1, help="at a time")
    options = parser.parse_args(argv)
    try:
        combinations = grid(options.grid)
        check_names(options.chapter, combinations[0])
        options.out.mkdir(parents=True, exist_ok=True)
        # Processes, since papermill changes the working directory.
        jobs = max(1, options.jobs), get_context("spawn")
        with ProcessPoolExecutor(*jobs) as pool:
            work = partial(run, options.chapter, options.out)
            failed = [why for why in pool.map(work, combinations) if why]
    except vlscore.VLScoreError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sweep.py: stopped; run it again to go on", file=sys.stderr)
        return 130
    text = table(options.out)
    vlscore.write_whole(options.out / "table.txt", (text + "\n").encode())
    print(text)
    for why in failed:
        print(f"sweep.py: failed: {why}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
