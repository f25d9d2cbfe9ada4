"""The data of the studies: photos, pairs of photos and scenes with their prompts, each encoded once.

    python scripts/study_sets.py ROOT         # encodes all of it: an hour on two cores, seconds again

ROOT holds the photos with boxes that `PHOTOS` names, each set in a folder of its own.  Pairs and scenes are
made under `_work/study`, and so are the encodings, from which `choose_refinement.py` and `compare_passes.py`
take what they need.  Each image is encoded by 128 masks; some of each set, see `EXACT`, by all.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

import vlscore
from vlscore import scenes

WORK = Path(__file__).parents[1] / "_work" / "study"
FOLDS = 5
PHOTOS = {"imagenet": "imagenet-val-800", "kangaroo": "kangaroo-163", "raccoon": "raccoon-200"}
PAIRS = 125  # two photos of other classes side by side, each asked for
TUNING_SCENES = {  # number, seed, objects, all of one class; of two classes, one is asked for
    "tuning: one thing": (60, 31, 1, False),
    "tuning: one of two things": (60, 32, 2, False),
    "tuning: two of a class": (60, 33, 2, True),
    "tuning: three of a class": (60, 34, 3, True),
}
SCENES = {  # of other seeds, which chose no parameter
    "one thing": (100, 12, 1, False),
    "one of two things": (100, 14, 2, False),
    "two of a class": (100, 15, 2, True),
    "three of a class": (100, 16, 3, True),
}

HIDDEN = 5  # classes nearest to a word, without which a model does not know the word
FINEST = 48  # largest number of cells on a side of the features, as `vlscore.read_scales` has it
KEEP = 128  # masks by which each image is encoded
EXACT = {"one of two things": 4}  # one of so many images is encoded by all masks too


@dataclass(frozen=True)
class Ask:
    """A prompt for an image, and where its objects are.

    Attributes:
        path: of the image.
        names: of the class that is asked for.
        boxes: of its objects, (x0, y0, x1, y1) in pixels.
        size: (W, H) of the image in pixels.
        fold: 0 to 4, the same for all prompts of an image.
        side: left and right edge of the photo that is asked for, in a pair.
        unknown: whether the class is asked for as a word that the model does not know, see `embed_unknown`.
    """

    path: Path
    names: tuple[str, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    size: tuple[int, int]
    fold: int
    side: tuple[int, int] | None = None
    unknown: bool = False


def read_asks(root) -> list[Ask]:
    """One prompt for each photo of a data set; folds by its `folds.csv`, or by the order of the photos."""
    dataset = vlscore.read_dataset(root, skip_bad=True)
    photos = [photo for photo in dataset.photos if is_readable(photo.path)]
    file = Path(root) / "folds.csv"
    folds = {}
    if file.is_file():
        with file.open() as lines:
            folds = {row["image"]: int(row["fold"]) for row in csv.DictReader(lines)}
    return [
        Ask(
            photo.path,
            tuple(dataset.classes[photo.label]),
            tuple(photo.boxes),
            photo.size,
            folds.get(photo.path.stem, n % FOLDS),
        )
        for n, photo in enumerate(photos)
    ]


def is_readable(path) -> bool:
    try:
        vlscore.load_image(path)
    except vlscore.VLScoreError:
        return False
    return True


def constant_boxes(share: float, ask: Ask) -> list:
    """Boxes that read no image: one in its middle, in a pair one in the middle of each photo.

    Args:
        share: of the photo's sides that a box takes.
    """
    if ask.side is None:
        return [vlscore.constant_box(share, ask.size)]
    half = ask.size[0] / 2
    x0, y0, x1, y1 = vlscore.constant_box(share, (half, ask.size[1]))
    return [(x0, y0, x1, y1), (x0 + half, y0, x1 + half, y1)]


def constant_hits(asks: list[Ask], share: float) -> np.ndarray:
    """Whether `constant_boxes` of a share of the photo's sides hit each image: (n,) of bool."""
    return np.array([vlscore.box_iou(constant_boxes(share, ask), ask.boxes) > 0.5 for ask in asks])


def make_pairs(asks: list[Ask], folder: Path) -> list[Ask]:
    """Two photos of other classes side by side, within a fold, and a prompt for each of them."""
    random, found = np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    for fold in range(FOLDS):
        here = [ask for ask in asks if ask.fold == fold]
        order = iter(random.permutation(len(here)))
        pairs = ((here[a], here[b]) for a, b in zip(order, order))
        others = [pair for pair in pairs if pair[0].names != pair[1].names]
        for n, pair in enumerate(others[: PAIRS // FOLDS]):
            found += make_pair(pair, folder / f"pair-{fold}-{n:02}.png")
    return found


def make_pair(pair: tuple[Ask, Ask], path: Path) -> list[Ask]:
    """Put two photos side by side into a file, each scaled to 320×320 pixels."""
    side = 320
    if not path.exists():
        canvas = Image.new("RGB", (2 * side, side))
        for n, ask in enumerate(pair):
            canvas.paste(vlscore.load_image(ask.path).resize((side, side)), (n * side, 0))
        part = path.with_name(f".{path.name}")
        canvas.save(part, "png")
        os.replace(part, path)
    found = []
    for n, ask in enumerate(pair):
        x, y = side / ask.size[0], side / ask.size[1]
        boxes = [(n * side + x0 * x, y0 * y, n * side + x1 * x, y1 * y) for x0, y0, x1, y1 in ask.boxes]
        edges = n * side, (n + 1) * side
        found.append(replace(ask, path=path, boxes=tuple(boxes), size=(2 * side, side), side=edges))
    return found


def scene_asks(sets: dict, work: Path = WORK) -> dict[str, list[Ask]]:
    """The prompts for each set of drawn scenes."""
    found = {}
    for name, (count, seed, objects, same) in sets.items():
        folder = work / f"scenes-{seed}-{objects}"
        if not folder.exists():
            scenes.write_scenes(folder, count, seed, (224, 224), objects, same)
        found[name] = read_asks(folder)
    return found


def photo_asks(root, names=("imagenet", "kangaroo", "pairs"), work: Path = WORK) -> dict[str, list[Ask]]:
    """The prompts for sets of photos, of pairs too, which are made of those of ImageNet."""
    found = {}
    for name in names:
        if name == "pairs":
            found[name] = make_pairs(read_asks(Path(root) / PHOTOS["imagenet"]), work / "pairs")
        else:
            found[name] = read_asks(Path(root) / PHOTOS[name])
    return found


def make_unknown(sets: dict[str, list[Ask]]) -> list[Ask]:
    """A quarter of ImageNet's photos and all kangaroos, asked for by words that the model does not know."""
    return [replace(ask, unknown=True) for ask in [*sets["imagenet"][::4], *sets["kangaroo"]]]


def tuning_asks(root, work: Path = WORK) -> dict[str, list[Ask]]:
    """The prompts of each set that chooses the refinement of a CNN."""
    found = photo_asks(root, work=work)
    found["unknown"] = make_unknown(found)
    found["scenes"] = [ask for asks in scene_asks(TUNING_SCENES, work).values() for ask in asks]
    return found


# ── Encodings ──────────────────────────────────────────────────────────────────────────────────────


@lru_cache(4)
def load(name: str) -> vlscore.Model:
    """One model and one core for each process."""
    torch.set_num_threads(1)
    return vlscore.load_model(name, "cpu")


@lru_cache(8)
def open_store(name: str, options: vlscore.EncodingOptions, work: Path) -> vlscore.EncodingStore:
    return vlscore.EncodingStore(work / "encodings", load(name), options)


@lru_cache(2048)
def embed_class(name: str, names: tuple[str, ...]) -> torch.Tensor:
    return vlscore.class_embedding(load(name), names).cpu()


@lru_cache(2048)
@torch.inference_mode()
def embed_unknown(name: str, names: tuple[str, ...]) -> torch.Tensor:
    """A class as `lite0-minilm` would embed it if it had never learned the class, nor those nearest to it.

    The model describes a text by ImageNet's classes that it resembles.  Here the `HIDDEN` nearest are left
    out, so that a class of ImageNet becomes as new to the text encoder as *raccoon* is.
    """
    model = load(name)
    likeness = model.likeness([vlscore.TEMPLATE.format(each) for each in names])  # (N, 1000)
    likeness[:, likeness[0].topk(HIDDEN).indices] = -torch.inf
    embeddings = F.normalize(model.embed_likeness(likeness), dim=-1)
    return F.normalize(embeddings.mean(0), dim=0).cpu()


def embed_ask(name: str, ask: Ask) -> torch.Tensor:
    """The embedding of what a prompt asks for."""
    return (embed_unknown if ask.unknown else embed_class)(name, ask.names)


def read(name: str, path: Path, options: vlscore.EncodingOptions, work: Path = WORK) -> vlscore.Encoding:
    """An image's encoding in float32 on every machine, from the store where it was encoded before."""
    model, options = load(name), replace(options, precision="float32")
    return vlscore.read_encoding(model, path, options, open_store(name, options, work))


class Copy(NamedTuple):
    """What refinement reads from an image at one size.

    Attributes:
        scale: maps and cells of the last layer.
        features: (F, h, w), unit, of the finer layer; None if they are not read.
    """

    scale: vlscore.Scale
    features: torch.Tensor | None = None


def round_side(model: vlscore.Model, size: float) -> int:
    """The side of a copy in pixels, whole cells."""
    return int(-(-model.input_size * size // model.stride)) * model.stride


def read_copy(model: vlscore.Model, path, size: float) -> Copy:
    """Read a copy of an image with a side of so many S."""
    pixels = model.preprocess(path, size=round_side(model, size))[None]
    wanted = [(model.layers[-1], "activation"), (model.fine_layer, "activation")]
    (maps,), (features,) = model.read_layers(pixels, wanted)
    if features.shape[-1] > FINEST:
        features = F.avg_pool2d(features, 2)
    return Copy(vlscore.Scale(maps, model.cell_embeddings(maps)), F.normalize(features, dim=0))


def find_peak_of(heat: torch.Tensor, encoding: vlscore.Encoding, ask: Ask) -> tuple[float, float]:
    """Where a heat map is highest: (x, y) in pixels of the image, inside of it."""
    x, y = vlscore.find_peak(heat, encoding)
    return min(x, ask.size[0] - 0.5), min(y, ask.size[1] - 0.5)


def is_on_side(heat: torch.Tensor, encoding: vlscore.Encoding, ask: Ask) -> bool:
    """Whether a heat map is highest in the photo that is asked for; always where it stands alone."""
    x, _ = find_peak_of(heat, encoding, ask)
    return ask.side is None or ask.side[0] <= x < ask.side[1]


def is_in_box(heat: torch.Tensor, encoding: vlscore.Encoding, ask: Ask) -> bool:
    """The pointing game (Zhang et al. 2016): whether a heat map is highest in an object that is asked for."""
    return vlscore.find_box_at(find_peak_of(heat, encoding, ask), ask.boxes) is not None


def measure_all(measure, asks: list[Ask], description: str) -> list:
    """What a function makes of each prompt, by a process for each core."""
    with ProcessPoolExecutor() as pool:
        found = pool.map(measure, asks, chunksize=4)
        return list(tqdm(found, description, len(asks)))


def encode(name: str, keep: int | None, ask: Ask) -> None:
    """Encode an image for plain and refined maps: of a CNN, one encoding has both."""
    for refined in (True, False) if load(name).is_vit else (True,):
        read(name, ask.path, vlscore.EncodingOptions(keep=keep, refined=refined))


def encode_all(name: str, sets: dict[str, list[Ask]], keep: int | None) -> None:
    """Encode the images of each set by ``keep`` masks; those of `exact_part` where it is None, for all."""
    for kind, asks in sets.items():
        wanted = exact_part(kind, asks) if keep is None else asks
        unique = list({ask.path: ask for ask in wanted}.values())
        measure_all(partial(encode, name, keep), unique, f"{name}, {kind}, {keep or 'all'} masks")


def exact_part(kind: str, asks: list[Ask]) -> list[Ask]:
    """The prompts of a set whose images are encoded by all masks: evenly spread over it."""
    paths = list(dict.fromkeys(ask.path for ask in asks))
    taken = set(paths[:: EXACT[kind]] if kind in EXACT else [])
    return [ask for ask in asks if ask.path in taken]


def run_study(file: str, purpose: str, study, argv: list[str] | None = None) -> int:
    """Run the command line of a study of the photos in a folder ROOT -> the exit status.

    Args:
        file: name of the script.
        purpose: its docstring.
        study: a function of ROOT, which writes what it finds.
        argv: the arguments; None means those of the command line.
    """
    parser = argparse.ArgumentParser(file, description=purpose.splitlines()[0])
    parser.add_argument("root", help="the folder of the sets of photos")
    options = parser.parse_args(argv)
    try:
        study(options.root)
    except vlscore.VLScoreError as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{file}: stopped", file=sys.stderr)
        return 130
    return 0


def encode_everything(root: str) -> None:
    """Encode all sets of photos in a folder, and all scenes."""
    photos, tuning, drawn = photo_asks(root), scene_asks(TUNING_SCENES), scene_asks(SCENES)
    unseen = photo_asks(root, ("raccoon",))
    encode_all("lite0-minilm", photos, KEEP)
    encode_all("lite0-minilm", unseen, KEEP)
    encode_all("scenes-rn", tuning, KEEP)
    for keep in (KEEP, None):
        for name in ("scenes-rn", "scenes-vit"):
            encode_all(name, drawn, keep)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    return run_study("study_sets.py", __doc__, encode_everything, argv)


if __name__ == "__main__":
    sys.exit(main())
