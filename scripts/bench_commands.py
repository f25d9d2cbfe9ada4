"""Measure what a user waits for: a command's start, classes, data sets, and a machine with other load.

    python scripts/bench_commands.py                # a quarter of an hour on two cores
    python scripts/bench_commands.py --only classes

Ratios compare neighbouring measurements of one run, since machines differ and are shared.  The model is
`lite0-minilm` where none is named, and the cache folder is empty at first.  RN50, ViT-B/16 and ConvNeXt have
random weights, right for time only.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import alone, load, machine, timed

import vlscore

PHOTOS = Path("data/photos")
CLASSES = 1000  # names that are embedded
MODELS = ("lite0-minilm", "scenes-rn", "scenes-vit", "RN50", "ViT-B/16", "open_clip:convnext_base")


def choose_photo() -> Path:
    """A hand-boxed photo, of a cat."""
    (photo,) = (each for each in vlscore.read_dataset(PHOTOS).photos if each.name == "chelsea")
    return photo.path


def run_command(cache: Path, *words) -> float:
    """Seconds that the installed command takes, with its cache in a folder."""
    command = [Path(sys.executable).with_name("vlscore"), *words]
    environment = os.environ | {"VLSCORE_CACHE": str(cache)}
    seconds, _ = timed(partial(subprocess.run, command, env=environment, check=True, capture_output=True))
    return seconds


def spin(is_busy, is_done) -> None:
    """Keep a core busy."""
    is_busy.set()
    while not is_done.is_set():
        sum(range(100_000))


@contextmanager
def other_load(processes: int = 2):
    """Keep so many processes busy while the block runs."""
    context = multiprocessing.get_context("spawn")
    is_done, started = context.Event(), [context.Event() for _ in range(processes)]
    busy = [context.Process(target=spin, args=(each, is_done), daemon=True) for each in started]
    for each in busy:
        each.start()
    try:
        for each in started:
            each.wait(60)
        yield busy
    finally:
        is_done.set()
        for each in busy:
            each.join()


def time_commands(rounds: int, folder: Path) -> dict:
    """Seconds of ``localize``: with an empty cache, a filled one, refined, and beside two busy processes."""
    begin = ("localize", str(choose_photo()), "an image of a cat.", "--model", "lite0-minilm", "--keep")
    command, refined = (*begin, "64"), (*begin, "64", "--refined")
    found = {"first": [run_command(folder / f"empty-{n}", *command) for n in range(rounds)]}
    run_command(folder / "empty-0", *refined)  # compiles the encoder of the larger copy
    found |= {key: [] for key in ("second", "refined", "refined, keep=8", "help")}
    for _ in range(rounds):
        found["second"].append(run_command(folder / "empty-0", *command))
        found["refined"].append(run_command(folder / "empty-0", *refined))
        found["refined, keep=8"].append(run_command(folder / "empty-0", *begin, "8", "--refined"))
        found["help"].append(run_command(folder / "empty-0", "--help"))
    with other_load():
        found["busy"] = [run_command(folder / "empty-0", *command) for _ in range(rounds)]
    return {f"{key} (s)": statistics.median(each) for key, each in found.items()}


def time_classes(names: int) -> dict:
    """Seconds to embed class names together and one after the other, without what is kept on disk."""
    model = vlscore.load_model("lite0-minilm")
    classes = [synonyms[:1] for synonyms in vlscore.imagenet_classes().values()][:names]
    vlscore.class_embeddings(model, classes[:2])
    together, _ = timed(vlscore.class_embeddings, model, classes)
    alone, _ = timed(lambda: [vlscore.class_embedding(model, each) for each in classes])
    return {"names": names, "together (s)": together, "one by one (s)": alone, "ratio": alone / together}


def time_data_sets(keep: int) -> dict:
    """Photos a second of `evaluate` with all baselines of one pass, and of labelling with three words."""
    model, dataset = vlscore.load_model("lite0-minilm"), vlscore.read_dataset(PHOTOS)
    vlscore.evaluate(model, replace(dataset, photos=dataset.photos[:1]), keep=1)  # compiles
    found = {}
    for name, options in (("plain", {}), ("refined", {"refined": True})):
        seconds, _ = timed(partial(vlscore.evaluate, keep=keep, **options), model, dataset)
        found[f"evaluate, {name}, keep={keep} (photos/s)"] = len(dataset.photos) / seconds
    paths = [photo.path for photo in dataset.photos]
    seconds, _ = timed(lambda: list(vlscore.label(model, paths, ["dog", "cat", "cup"], keep=64)))
    return found | {"label, refined, keep=64 (photos/s)": len(paths) / seconds}


def time_parts(name: str, keep: int, rounds: int, folder: Path) -> dict:
    """Seconds of one encoding, plain and refined, and of the encoder passes in it."""
    model = load(name, folder)
    encoder, image = vlscore.fast_encoder(model), vlscore.load_image(choose_photo())
    pixels = model.preprocess(image)[None].repeat(min(keep, vlscore.choose_batch_size(model)), 1, 1, 1)
    batches = -(-keep // len(pixels))
    calls = {
        "passes": lambda: [encoder(pixels.to(model.device)).cpu() for _ in range(batches)],
        "plain": lambda: vlscore.encode(model, image, keep=keep),
        "refined": lambda: vlscore.encode(model, image, keep=keep, refined=True),
    }
    found = {call: [] for call in calls}
    for n in range(rounds + 1):
        for call in calls:
            seconds, _ = timed(calls[call])
            if n:  # the first round compiles
                found[call].append(seconds)
    result = {f"{call} (s)": statistics.median(each) for call, each in found.items()}
    return result | {"refined over plain": result["refined (s)"] / result["plain (s)"]}


def time_keeps(name: str, keeps: tuple[int, ...], rounds: int, folder: Path) -> dict:
    """Seconds of a refined encoding in float32 for each number of masks, and how many times those of none."""
    model, image = load(name, folder), vlscore.load_image(choose_photo())
    found = {keep: [] for keep in keeps}
    for n in range(rounds + 1):
        for keep in keeps:
            encode = partial(vlscore.encode, keep=keep, refined=True, precision="float32")
            seconds, _ = timed(encode, model, image)
            if n:  # the first round compiles
                found[keep].append(seconds)
    medians = {keep: statistics.median(each) for keep, each in found.items()}
    result = {f"keep={keep} (s)": each for keep, each in medians.items()}
    result |= {f"keep={keep} over none": each / medians[0] for keep, each in medians.items() if keep}
    return result | {"device": machine()["device"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each command; medians are kept")
    parser.add_argument(
        "--only", default="", metavar="WORD", help="measure the parts again whose name has it"
    )
    parser.add_argument("--out", default="data/bench_commands.json")
    options = parser.parse_args()
    out = Path(options.out)
    result = json.loads(out.read_text()) if out.exists() else {}
    if not options.only:
        result["machine"] = machine()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        os.environ["VLSCORE_CACHE"] = str(folder / "cache")
        parts = {"localize": partial(time_commands, options.rounds, folder)}
        parts |= {
            f"encode, keep=64, {name}": partial(alone, time_parts, name, 64, options.rounds, folder)
            for name in MODELS
        }
        parts["encode, keep=8"] = partial(alone, time_parts, "lite0-minilm", 8, options.rounds, folder)
        parts |= {
            f"masks, {name}": partial(alone, time_keeps, name, (0, 8, 64), options.rounds, folder)
            for name in ("lite0-minilm", "RN50")
        }
        parts |= {
            "classes": partial(alone, time_classes, CLASSES),
            "data sets": partial(alone, time_data_sets, 128),
        }
        for name, measure in parts.items():
            if options.only in name:
                result[name] = measure()
    vlscore.write_whole(out, json.dumps(result, indent=1).encode())
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except vlscore.VLScoreError as error:
        sys.exit(f"bench_commands: {error}")
