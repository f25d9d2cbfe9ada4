"""Run a chapter by papermill over a grid of parameters, into one table.

    python scripts/sweep.py MODEL=scenes-rn,scenes-vit LIMIT=20 --jobs 2

A value is YAML; alternatives stand between commas: `LAYER=layer3,layer4`
or `THRESHOLDS=[0.5],[0.55,0.6]`.  Paths count from the folder where the
command is run.  A sweep that was stopped goes on.
"""

import argparse
import ast
import json
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from hashlib import sha256
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import nbformat
import papermill
import yaml

import vlscore

CHAPTER = Path(__file__).parents[1] / "notebooks" / "04_imagenet_evaluation.ipynb"


FOLDERS = ("ROOT", "OUT", "RESULTS")  # parameters that are paths
MODELS = ("MODEL", "OTHER", "CNN", "VIT")  # parameters that are models' names or checkpoints' paths
LONGEST_NAME = 150  # characters of a run's name, which files have


class Loader(yaml.SafeLoader):
    """YAML in which 1e-1 is a number: version 1.1 wants a dot and a sign in it."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def grid(words: list[str]) -> list[dict]:
    """NAME=VALUE,VALUE … -> every combination, as parameters by name."""
    choices = {}
    for word in words:
        name, is_pair, text = word.partition("=")
        try:
            choices[name] = yaml.load(f"[{text}]", Loader)
        except yaml.YAMLError:
            is_pair = ""
        if not is_pair or not choices[name]:
            raise vlscore.VLScoreError(f"{word!r} is not NAME=VALUE,VALUE: write LIMIT=20,40")
    rows = product(*choices.values())
    return [dict(zip(choices, row)) for row in rows]


def check_names(chapter: Path, names) -> None:
    """Papermill only warns of an unknown name, and runs the defaults."""
    cells = nbformat.read(chapter, as_version=4).cells
    sources = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    lines = [line for source in sources for line in ast.parse(source).body if isinstance(line, ast.Assign)]
    known = [target.id for line in lines for target in line.targets if isinstance(target, ast.Name)]
    if unknown := [name for name in names if name not in known]:
        raise vlscore.VLScoreError(
            f"{chapter.name} has no parameter {unknown[0]}: choose one of {', '.join(known)}"
        )


def make_absolute(parameters: dict) -> dict:
    """Parameters in which paths count from this folder, not from the chapter's."""
    found = dict(parameters)
    for name, value in parameters.items():
        if isinstance(value, str) and name in FOLDERS:
            found[name] = os.path.abspath(value)
        if isinstance(value, str) and name in MODELS:
            found[name] = vlscore.absolute_name(value)
    return found


def label(parameters: dict) -> str:
    """A name for the files of one run; a long one ends in a checksum."""
    text = "_".join(f"{k}-{v}" for k, v in parameters.items()) or "defaults"
    name = "".join(c if c.isalnum() or c in "-_.=" else "-" for c in text)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    short = name.encode()[: LONGEST_NAME - 9].decode(errors="ignore")
    return f"{short}-{sha256(text.encode()).hexdigest()[:8]}"


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
            parameters=folders | make_absolute(parameters),
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
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time")
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
