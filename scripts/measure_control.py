"""Measure whether predicting the maps that were not encoded beats a control: data/control.json, chapter 05.

    python scripts/measure_control.py            # a quarter of an hour on two cores

The control encodes the same maps and gives all others one embedding, the mean of those.  Every way of saving
passes is compared with the saliency of all maps, at the default layer in float32: on the hand-boxed photos,
asked for their own label, on pairs of them side by side, asked for each object, and on drawn scenes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import bench
import torch
from PIL import Image
from tqdm import tqdm

import vlscore
from vlscore import scenes

ROOT = Path(__file__).parents[1]
OUT = ROOT / "data" / "control.json"
KEEPS = (8, 16, 32, 64, 128)
DRAWS = 3  # random choices of maps
APART = 11  # places between the photos of a pair, in the order of their names: none share a label
SIDE = 240  # of each photo in a pair, in pixels


class Ask(NamedTuple):
    """A prompt for an image, as the label, and the boxes that answer it."""

    label: str
    boxes: list


class Picture(NamedTuple):
    """An image, and what it is asked for."""

    name: str
    image: Image.Image
    asks: list[Ask]


def single_photos(photos: list) -> Iterator[Picture]:
    """Each photo, asked for its own label."""
    for photo in photos:
        yield Picture(photo.name, vlscore.load_image(photo.path), [Ask(photo.label, photo.boxes)])


def pairs(photos: list) -> Iterator[Picture]:
    """Two photos side by side, each scaled to a square, asked for the object of each."""
    for first, second in zip(photos[:APART], photos[APART:]):
        image, asks = Image.new("RGB", (2 * SIDE, SIDE)), []
        for left, photo in ((0, first), (SIDE, second)):
            part = vlscore.load_image(photo.path)
            image.paste(part.resize((SIDE, SIDE)), (left, 0))
            x, y = SIDE / part.width, SIDE / part.height
            boxes = [(left + x0 * x, y0 * y, left + x1 * x, y1 * y) for x0, y0, x1, y1 in photo.boxes]
            asks.append(Ask(photo.label, boxes))
        yield Picture(f"{first.name} + {second.name}", image, asks)


SETS = {  # the model, and what it is shown
    "photos": ("lite0-minilm", single_photos),
    "pairs": ("lite0-minilm", pairs),
    "scenes, CNN": ("scenes-rn", single_photos),
    "scenes, ViT": ("scenes-vit", single_photos),
}
SCENES = (100, 31, (224, 224))  # number, seed and size, as in `bench.py`


def constant(encoding, keep: int):
    """The chosen maps as they are, and for all others the mean of their embeddings: the control."""
    rows = vlscore.select_maps(encoding.maps, keep)
    mean = encoding.mask_embeddings[rows].mean(0)
    others = vlscore.varies(encoding.maps)
    others[rows] = False
    every = encoding.mask_embeddings.clone()
    every[others] = mean / mean.norm()
    return replace(encoding, mask_embeddings=every)


def predict_from(encoding, rows: torch.Tensor):
    """The embeddings of all maps, predicted from those of some."""
    every = vlscore.predict_embeddings(encoding.maps, rows, encoding.mask_embeddings)
    return replace(encoding, mask_embeddings=every)


def strongest_predicted(encoding, keep: int):
    """The maps of largest standard deviation, and the others predicted."""
    return predict_from(encoding, encoding.maps.flatten(1).std(1).topk(keep).indices)


def random_predicted(encoding, keep: int, seed: int):
    """Maps chosen at random among those that vary, and the others predicted."""
    live = vlscore.varies(encoding.maps).nonzero()[:, 0]
    order = torch.randperm(len(live), generator=torch.Generator().manual_seed(seed))
    return predict_from(encoding, live[order[:keep]])


WAYS = {
    "predicted": bench.predicted,
    "chosen only": bench.chosen,
    "constant": constant,
    "strongest only": bench.strongest,
    "strongest, the others predicted": strongest_predicted,
}


def compare(exact, text: torch.Tensor, ask: Ask, ways: dict) -> dict:
    """The IoU of the exact boxes; of each way, the correlation with the exact saliency and the IoU."""
    wanted = vlscore.saliency(exact, text, exact.temperature)
    found = {"exact": score(wanted, exact, ask)}
    mean = vlscore.mean_map(exact)
    found["mean of all maps"] = [bench.correlation(wanted, mean), score(mean, exact, ask)]
    for way, at in ways.items():
        heats = {keep: vlscore.saliency(each, text, exact.temperature) for keep, each in at.items()}
        found[way] = {
            keep: [bench.correlation(wanted, heat), score(heat, at[keep], ask)]
            for keep, heat in heats.items()
        }
    truth, guessed = (vlscore.scores(each, text)[0] for each in (exact, ways["predicted"][bench.FAST]))
    others = vlscore.varies(exact.maps)
    others[vlscore.select_maps(exact.maps, bench.FAST)] = False
    found["single scores"] = bench.correlation(truth[others], guessed[others])
    return found


def score(heat, encoding, ask: Ask) -> float:
    """The best IoU of a box found and a box of the object."""
    return vlscore.box_iou(vlscore.find_boxes(heat, encoding), ask.boxes)


def measure(model, picture: Picture, texts: dict) -> list[dict]:
    """A row for each prompt of an image, from one exact encoding."""
    exact = vlscore.encode(model, picture.image, precision="float32")
    keeps = [keep for keep in KEEPS if keep < len(exact.maps)]
    ways = {way: {keep: at(exact, keep) for keep in keeps} for way, at in WAYS.items()}
    for seed in range(DRAWS):
        ways[f"random, draw {seed}"] = {bench.FAST: random_predicted(exact, bench.FAST, seed)}
    rows = []
    for ask in picture.asks:
        facts = {"image": picture.name, "label": ask.label}
        rows.append(facts | rounded(compare(exact, texts[ask.label], ask, ways)))
    return rows


def rounded(value):
    """The numbers in nested lists and dictionaries, to four places."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else round(value, 4)


def measure_set(name: str, folder: Path) -> dict:
    """The model of a set, and a row for each prompt."""
    model_name, pictures = SETS[name]
    model, dataset = vlscore.load_model(model_name, "cpu"), vlscore.read_dataset(folder)
    texts = {label: vlscore.class_embedding(model, names) for label, names in dataset.classes.items()}
    progress = tqdm(list(pictures(dataset.photos)), desc=name)
    return {"model": model_name, "rows": [row for each in progress for row in measure(model, each, texts)]}


def as_text(result: dict) -> str:
    """JSON with a line for each prompt."""
    parts = []
    for name, each in result.items():
        lines = ",\n".join(json.dumps(row) for row in each["rows"])
        parts.append(f'{json.dumps(name)}: {{"model": {json.dumps(each["model"])}, "rows": [\n{lines}\n]}}')
    return "{" + ",\n".join(parts) + "}\n"


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("measure_control.py", description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS), help="default: all")
    options = parser.parse_args(argv)
    result = json.loads(OUT.read_text()) if OUT.exists() else {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            drawn = Path(folder) / "scenes"
            scenes.write_scenes(drawn, *SCENES)
            for name in options.sets:
                result[name] = measure_set(name, drawn if "scenes" in name else ROOT / "data" / "photos")
                ordered = {each: result[each] for each in SETS if each in result}
                vlscore.write_whole(OUT, as_text(ordered).encode())
    except vlscore.VLScoreError as error:
        print(f"measure_control.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("measure_control.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
