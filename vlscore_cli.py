"""The command `vlscore`: arguments, output and exit codes.

Only a command that runs a model imports `vlscore`, and with it PyTorch, so that help comes at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from vlscore_crops import add_crops_options, add_from_crops_options, run_crops, run_from_crops
from vlscore_label import (
    add_cluster_options,
    add_label_options,
    add_search_options,
    run_label,
    run_search,
)
from vlscore_lib import __version__
from vlscore_lib.datasets.layouts import LAYOUTS
from vlscore_lib.errors import VLScoreError
from vlscore_lib.evaluation.protocol import Protocol
from vlscore_lib.files import drop_nan, read_json
from vlscore_lib.models.listing import Listed, describe_libraries, list_models
from vlscore_lib.options import FITS, MAPS, PRECISIONS
from vlscore_lib.progress import Pace, show_photos
from vlscore_localize import add_localize_options, check_numbers, encoding_options, run_localize

# ── Arguments ────────────────────────────────────────────────────────────────────────────────────


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line."""

    def error(self, message):
        raise VLScoreError(f"{message} (see `{self.prog} --help`)")


def parse_keep(text: str) -> int | float:
    """``64`` is a number of maps, ``0.9`` a share of their energy."""
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def parse_numbers(text: str) -> tuple[float, ...]:
    """``0.1,1``: a tuple of numbers."""
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0.1,1") from None


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser("vlscore", description="Find what a text names in an image, by VL-Score.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("localize", help="find what texts name in one or more images")
    add_localize_options(command.add_argument, add_encoding_options)
    add_evaluate_options(
        commands.add_parser("evaluate", help="measure a model on a data set with boxes").add_argument
    )
    add = commands.add_parser("compare", help="compare two runs of evaluate on the same images").add_argument
    add("first", metavar="RUN_A", help="folder of a run of evaluate")
    add("second", metavar="RUN_B", help="folder of another run")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    for name, add_options, help in (
        ("label", add_label_options, "find the objects of several classes in all photos of a folder"),
        ("search", add_search_options, "rank the photos of a folder by how surely they show a thing"),
    ):
        command = commands.add_parser(name, help=help)
        add_options(command.add_argument, add_encoding_options)
        command.set_defaults(keep=64)
    add_crops_options(
        commands.add_parser("crops", help="cut each labelled box out of its photo").add_argument
    )
    add_from_crops_options(
        commands.add_parser("from-crops", help="write the labels whose crops are left").add_argument
    )
    add = commands.add_parser(
        "models", help="list the models and whether they can be loaded here"
    ).add_argument
    add("family", metavar="FAMILY", nargs="?", help="own (default), open_clip or hf")
    add("word", metavar="WORD", nargs="?", default="", help="list only names that contain this word")
    return parser


def add_encoding_options(add) -> None:
    """Add the options of model and encoding, which all these commands share."""
    add(
        "--model",
        default="auto",
        metavar="M",
        help="a name listed by `vlscore models`, or the path of a checkpoint",
    )
    add("--layer", metavar="L", help="layer whose maps are read (default: the model's last layer)")
    add(
        "--maps",
        default="activation",
        metavar="KIND",
        help=f"kind of maps: {', '.join(MAPS)} (default: %(default)s)",
    )
    add("--pca", type=int, metavar="N", help="take N principal components of the query, key or value maps")
    add(
        "--keep",
        type=parse_keep,
        metavar="N",
        help="encode N maps, or a share of their variance such as 0.9, or with --refined and a CNN none: 0"
        " (default: all; label, search: 64)",
    )
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="temperature of the softmax over the maps (default: the model's)",
    )
    add("--threshold", type=float, metavar="A", help="CAM threshold between 0 and 1 (default: the model's)")
    add(
        "--refined",
        action="store_true",
        help="refine maps and boxes with a finer layer and a larger copy of the image",
    )
    add(
        "--fit",
        default="squash",
        metavar="F",
        help=f"how images become square: {', '.join(FITS)} (default: %(default)s)",
    )
    add(
        "--precision",
        default="auto",
        metavar="P",
        help=f"precision: {', '.join(PRECISIONS)} (default: %(default)s)",
    )


def add_evaluate_options(add) -> None:
    """Add the options of `evaluate`."""
    add("root", metavar="ROOT", help="folder of the data set; its layout is recognized automatically")
    add("--out", required=True, metavar="DIR", help="folder for part-*.parquet, run.json and summary.json")
    add("--resume", action="store_true", help="continue the run in DIR that was stopped")
    add_encoding_options(add)
    add(
        "--temperatures",
        type=parse_numbers,
        default=Protocol.temperatures,
        metavar="T,T",
        help="further values of τ to measure",
    )
    add(
        "--thresholds",
        type=parse_numbers,
        default=Protocol.thresholds,
        metavar="A,A",
        help="further values of α to measure",
    )
    add(
        "--plain-threshold",
        type=float,
        metavar="A",
        help="CAM threshold of plain VL-Score in a refined run (default: the model's for plain maps)",
    )
    add("--names", default="imagenet", metavar="N", help="ImageNet's names: imagenet (all synonyms) or clip")
    add("--templates", default="report", metavar="N", help="prompts: report (one) or clip (80)")
    add(
        "--average-precision",
        action=argparse.BooleanOptionalAction,
        help="measure average precision over all classes (default: for COCO, YOLO and VOC folders)",
    )
    add(
        "--slow-baselines",
        type=int,
        default=0,
        metavar="N",
        help="run Score-CAM and gScoreCAM, too, on the first N photos",
    )
    add("--layout", metavar="L", help=f"layout of the data set: {', '.join(LAYOUTS)}")
    add("--boxes", metavar="DIR", help="folder of XML files, or COCO's JSON file (default: look for it)")
    add("--classes", metavar="FILE", help="names for prompts: a line 'label: name, name' for each class")
    add("--limit", type=int, metavar="N", help="measure at most N photos")
    add("--first", type=int, metavar="N", help="take the first N photos of the data set")
    add("--ids", metavar="FILE", help="take only the photos named in this file, one in each line")
    add("--sample", type=int, metavar="N", help="take N photos at random")
    add("--seed", type=int, default=0, metavar="N", help="seed of the sample and of the absent classes")
    add("--blacklist", metavar="FILE", help="leave out the photos that this file names or numbers")
    add("--skip-bad", action="store_true", help="leave out photos that cannot be used, and list them")
    add_cluster_options(add)


def folder_options(options) -> dict:
    """Return the same for the commands on folders, which refine by default."""
    if options.refined and options.plain:
        raise VLScoreError("--refined and --plain contradict each other: leave one out")
    return encoding_options(options) | {"refined": not options.plain}


def protocol_options(options) -> dict:
    """The command line's options of the `Protocol`, by name."""
    return encoding_options(options) | {
        "temperature": options.temperature,
        "threshold": options.threshold,
        "plain_threshold": options.plain_threshold,
        "temperatures": options.temperatures,
        "thresholds": options.thresholds,
        "names": options.names,
        "templates": options.templates,
        "slow_baselines": options.slow_baselines,
        "average_precision": options.average_precision,
        "seed": options.seed,
    }


def dataset_options(options) -> dict:
    """The command line's options of `read_dataset`, by name."""
    return {
        "layout": options.layout,
        "boxes": options.boxes,
        "names": options.names,
        "limit": options.limit,
        "first": options.first,
        "ids": options.ids,
        "sample": options.sample,
        "seed": options.seed,
        "blacklist": options.blacklist,
        "skip_bad": options.skip_bad,
        "classes": options.classes,
    }


# ── Commands ─────────────────────────────────────────────────────────────────────────────────────


def run_evaluate(options) -> None:
    """Measure a model, and print the layout and a table; --resume continues a stopped run."""
    check_numbers(options)
    import vlscore
    from vlscore_lib.evaluation.tables import published_table
    from vlscore_lib.evaluation.workers import start_cluster

    dataset = vlscore.read_dataset(options.root, **dataset_options(options), progress=show_photos)
    for line in dataset.bad:
        print(f"vlscore: left out: {line}", file=sys.stderr)
    if copies := sum(photo.is_square_copy for photo in dataset.photos):
        print(f"{options.root}: {copies} photos are square copies; their boxes are scaled to match")
    different = len({photo.path for photo in dataset.photos})
    if several := len(dataset.photos) - different:
        print(f"{options.root}: {different} photos, measured once for each class shown, {several} times more")
    if dataset.empty:
        print(f"{options.root}: {dataset.empty} photos without an object or an annotation are left out")
    count = f"{len(dataset.photos)} photos of {len({photo.label for photo in dataset.photos})} classes"
    print(f"{options.root}: {count}, layout {dataset.layout} ({LAYOUTS[dataset.layout]})", flush=True)
    model = vlscore.load_model(options.model)
    chosen = protocol_options(options)
    Protocol(**chosen).resolve(model)  # report a bad option before workers are started
    with start_cluster(options.workers, options.scheduler) as client, Pace(len(dataset.photos)) as pace:
        vlscore.evaluate(model, dataset, options.out, options.resume, client, pace, **chosen)
    summary = read_json(Path(options.out) / "summary.json")
    print(vlscore.summary_table(summary), published_table(), sep="\n\n", end="\n\n")
    print(f"summary: {Path(options.out) / 'summary.json'}")


def run_compare(options) -> None:
    """Print how two runs differ on the same images."""
    import vlscore

    found = vlscore.compare(vlscore.read_run(options.first), vlscore.read_run(options.second))
    if options.json:
        print(json.dumps(drop_nan(found)))
        return
    print(f"{'percent':14} {'first':>7} {'second':>7} {'difference':>26} {'p':>8}")
    for metric, each in found.items():
        first, second, difference, low, high = (
            100 * each[key] for key in ("first", "second", "difference", "low", "high")
        )
        change = f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"
        print(f"{metric:14} {first:7.1f} {second:7.1f} {change:>26} {each['p']:8.4f}")


def run_models(options) -> None:
    """Print the models of a family, by default our own, and how to list those of other libraries."""
    if options.family:
        found = list_models(options.family, options.word)
        width = max(len(each.name) for each in found)
        print(f"{'model':{width}} {'here':5} {'size':>9}  what it is")
        for each in found:
            print(f"{each.name:{width}} {format_place(each)}  {each.note}")
        return
    print(f"{'model':15} {'here':5} {'τ':>5} {'α':>5} {'refined':>7} {'size':>9}  what it is")
    for each in list_models("own"):
        here, size = format_place(each).split(maxsplit=1)
        chosen = each.defaults.temperature, each.defaults.threshold, each.defaults.refined_threshold
        print("{:15} {:5} {:5} {:5} {:7} {:>9}  {}".format(each.name, here, *chosen, size, each.note))
    for family, state, note in describe_libraries():
        print(f"{family:15} {note}; {state}; `vlscore models {family}` lists them")
    print("PATH            a checkpoint in OpenAI's or Hugging Face's layout; PATH:gelu if trained with GELU")


def format_place(model: Listed) -> str:
    """Format whether a model's weights are here, and their size in MB."""
    size = "?" if model.megabytes is None else f"{model.megabytes:,.0f} MB"
    return f"{'yes' if model.is_here else 'no':5} {size:>9}"


COMMANDS = {
    "localize": run_localize,
    "evaluate": run_evaluate,
    "compare": run_compare,
    "models": run_models,
    "label": lambda options: run_label(options, folder_options(options)),
    "search": lambda options: run_search(options, folder_options(options)),
    "crops": run_crops,
    "from-crops": run_from_crops,
}


def start() -> int:
    """Run the command line in a process of its own, see `main`.

    An import makes many objects and no garbage.  With fewer searches for garbage, and none at the end of the
    process, a command starts and ends half a second sooner.
    """
    gc.set_threshold(100_000, 20, 100)
    code = main()
    gc.freeze()
    return code


def main(argv: list[str] | None = None) -> int:
    """Run the command line -> the exit code: 0, or 2 for bad input, with one line on stderr."""
    # Otherwise PyTorch's idle threads would spin and take cores from OpenVINO's.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without τ or emoji
    try:
        options = build_parser().parse_args(argv)
        COMMANDS[options.command](options)
        sys.stdout.flush()
        return 0
    except VLScoreError as error:
        message, code = str(error), 2
    except KeyboardInterrupt:
        message, code = "stopped", 130
    except BrokenPipeError:  # nobody reads our output any more
        drop_output()
        return 0
    except OSError as error:
        drop_output()
        message, code = (
            f"{error.filename or 'the output'}: {error.strerror}: fix it and run the command again",
            2,
        )
    except Exception as error:
        message, code = f"unexpected {type(error).__name__}: {error}: please report it", 1
    print("vlscore: " + " ".join(message.split()), file=sys.stderr)
    return code


def drop_output() -> None:
    """Keep the interpreter from flushing to a broken stdout when it ends."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    from vlscore_cli import start  # functions sent to other processes must not belong to `__main__`

    sys.exit(start())
