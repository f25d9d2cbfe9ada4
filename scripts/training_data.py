"""What the small CLIPs are trained on: drawn scenes as pixels and labels, and captions of them."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from vlscore import scenes

TRAINING_SEED, VALIDATION_SEED = 1_000_000, 1_000_001  # of the scenes; no other set has these seeds
TEMPLATES = (
    "an image of a {}.",
    "an image of the {}.",
    "a photo of a {}.",
    "a picture of a {}",
    "a drawing of a {}.",
    "there is a {} here.",
    "the {}",
    "a {}",
    "{}",
)
THINGS = ("thing", "shape", "object", "one")


def draw(seed: int, numbers: range, size: int, objects: int | None = None):
    """Draw scenes of many sizes, squashed to the encoder's input.

    Returns:
        pixels (N, 3, S, S) of uint8, and labels (N, 80) of bool: the classes in each scene.
    """
    pixels = np.empty((len(numbers), 3, size, size), np.uint8)
    labels = np.zeros((len(numbers), len(scenes.classes())), bool)
    for row, number in enumerate(numbers):
        rng = scenes.scene_rng(seed, number)
        width, height = (int(side) for side in rng.integers(160, 281) * rng.uniform(0.88, 1.12, 2))
        image, found = scenes.draw_scene(rng, (width, height), objects)
        squashed = image.resize((size, size), Image.Resampling.BICUBIC)
        pixels[row] = np.asarray(squashed).transpose(2, 0, 1)
        labels[row, [index for index, _ in found]] = True
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def draw_to_file(job) -> None:
    """Draw the scenes of one file, (path, numbers, size); the file is written whole or not at all."""
    path, numbers, size = job
    pixels, labels = draw(TRAINING_SEED, numbers, size)
    save_file({"pixels": pixels, "labels": labels}, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def training_set(work: Path, count: int, chunk: int, size: int):
    """Draw the training scenes on all cores, or read those drawn before: pixels, labels.

    Args:
        work: the folder they are kept in.
        count, chunk: number of scenes, and how many are drawn into one file.
        size: S, the side of the encoder's input.
    """
    starts = range(0, count, chunk)
    paths = [work / f"scenes-{size}-{start:06}.safetensors" for start in starts]
    jobs = [(path, range(start, start + chunk), size) for path, start in zip(paths, starts)]
    missing = [job for job in jobs if not job[0].exists()]
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(draw_to_file, missing)
        list(tqdm(drawn, "drawing scenes", len(missing), unit=f"{chunk}", disable=not missing))
    chunks = [load_file(path) for path in paths]
    return tuple(torch.cat([chunk[key] for chunk in chunks]) for key in ("pixels", "labels"))


def caption_groups():
    """Three sets of captions, each exclusive: classes, shapes, colours.

    Returns:
        For each set the names a caption may use, and (80, n) of bool: which captions a class fits.
    """
    index = torch.arange(len(scenes.classes()))
    shapes = [[shape, other] for shape, other in scenes.SHAPES.items()]
    colours = []
    for colour, (*_, other) in scenes.COLOURS.items():
        words = [colour, other] if other else [colour]
        colours.append([f"{word} {thing}" for word in words for thing in THINGS])
    fits = [index, index // len(colours), index % len(colours)]
    names = [[names for _, names in scenes.classes()], shapes, colours]
    return [(each, F.one_hot(fit).bool()) for each, fit in zip(names, fits)]


def wordings(generator, names: list[list[str]]) -> list[str]:
    """One caption for each list of names, its name and template drawn at random."""
    rolls = torch.rand(len(names), 2, generator=generator).tolist()
    return [
        TEMPLATES[int(t * len(TEMPLATES))].format(each[int(n * len(each))])
        for each, (n, t) in zip(names, rolls)
    ]
