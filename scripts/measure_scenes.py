"""Measure the scenes models on held-out scenes: the tables of data/models/README.md.

    python scripts/measure_scenes.py rn
    python scripts/measure_scenes.py vit --work _work

Temperatures and CAM threshold are chosen for each source of maps on one set of scenes (seed 11), and
measured on others: zero-shot accuracy (seed 12), GT-known localization (13), the saliency's peak when
one of two objects is asked for, then the other (14).
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import vlscore
from vlscore import scenes

SETS = {  # seed, number of scenes, objects in each
    "tune": (11, 200, None),
    "single": (12, 1000, 1),
    "test": (13, 500, None),
    "pairs": (14, 500, 2),
}
TEMPERATURES = (1.0, 0.3, 0.1, 0.05, 0.03, 0.02, 0.01)
THRESHOLDS = tuple(n / 20 for n in range(2, 19))
SHARES = tuple(n / 50 for n in range(5, 50))  # sides of the constant box
SOURCES = {  # layer, maps, pca
    "rn": [("layer2", "activation", None), ("layer3", "activation", None), ("layer4", "activation", None)],
    "vit": [
        ("3", maps, pca)
        for maps, pca in [
            ("activation", None),
            ("attention", None),
            ("query", None),
            ("key", None),
            ("value", None),
            ("query", 8),
            ("key", 8),
            ("value", 8),
        ]
    ],
}


@lru_cache(1)
def load(kind: str):
    """The model, and the text embedding of each class by its wnid; one core for each process."""
    torch.set_num_threads(1)
    model = vlscore.load_model(f"scenes-{kind}", "cpu")
    return model, {wnid: vlscore.class_embedding(model, names) for wnid, names in scenes.classes()}


def draw_set(work: Path, name: str) -> list[vlscore.AnnotatedPhoto]:
    """One of the sets, drawn on first use."""
    seed, count, objects = SETS[name]
    folder = work / f"scenes-{name}"
    if not folder.exists():
        scenes.write_scenes(folder, count, seed, (224, 224), objects)
    return vlscore.read_dataset(folder).photos


def is_right(kind: str, photo: vlscore.AnnotatedPhoto) -> bool:
    """Whether a scene's label is the class that its embedding agrees with most."""
    model, texts = load(kind)
    image = model.encode_image(model.preprocess(photo.path)[None])[0]
    return max(texts, key=lambda wnid: image @ texts[wnid]) == photo.label


def encode(kind: str, source, photo: vlscore.AnnotatedPhoto) -> vlscore.Encoding:
    """A scene's encoding with one source of maps."""
    layer, maps, pca = source
    return vlscore.encode(load(kind)[0], photo.path, layer, maps=maps, pca=pca, precision="float32")


def sweep(kind: str, source, photo: vlscore.AnnotatedPhoto) -> dict:
    """Measure a scene with one source of maps.

    Returns:
        ``iou`` (T, A), the box IoU when asked for its label, for each temperature and threshold; ``mean``
        (A,), the same of the mean of the maps; ``peaks`` (n, T), for each of its n classes whether the
        peak is on an object of the class asked for.
    """
    encoding, texts = encode(kind, source, photo), load(kind)[1]

    def ious(saliency):
        found = vlscore.sweep_boxes(saliency, encoding, THRESHOLDS)
        return [vlscore.box_iou(boxes, photo.boxes) for boxes in found]

    asked = {
        label: [vlscore.saliency(encoding, texts[label], tau) for tau in TEMPERATURES]
        for label in dict(photo.objects)
    }
    return {
        "iou": np.array([ious(each) for each in asked[photo.label]]),
        "mean": np.array(ious(vlscore.mean_map(encoding))),
        "peaks": np.array(
            [
                [each is not None and in_box(each, encoding, photo.boxes_of(label)) for each in found]
                for label, found in asked.items()
            ]
        ),
    }


def in_box(saliency, encoding, boxes) -> bool:
    """Whether the highest cell lies in one of the boxes."""
    return vlscore.find_box_at(vlscore.find_peak(saliency, encoding), boxes) is not None


def share(hits) -> str:
    """Hits (n,) of bool as a percentage with its 95 % interval."""
    low, high = vlscore.wilson(int(np.sum(hits)), len(hits))
    return f"{100 * np.mean(hits):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def best_constant_box(photos) -> tuple[float, np.ndarray]:
    """The share of the sides that hits most, and the scenes it hits."""
    hits = {}
    for each in SHARES:
        box = vlscore.constant_box(each, (224, 224))
        hits[each] = np.array([vlscore.box_iou([box], photo.boxes) > 0.5 for photo in photos])
    best = max(hits, key=lambda each: hits[each].sum())
    return best, hits[best]


def measure(kind: str, work: Path, only: str | None) -> None:
    """Print the tables of one model."""
    sets = {name: draw_set(work, name) for name in SETS}
    print(f"scenes-{kind}: percent, with 95 % intervals (Wilson)\n", flush=True)
    with ProcessPoolExecutor() as pool:

        def over(function, name, said):
            photos = sets[name]
            return list(tqdm(pool.map(function, photos, chunksize=4), said, len(photos), leave=False))

        right = over(partial(is_right, kind), "single", "zero-shot")
        print(f"zero-shot top-1, {len(right)} single-object scenes: {share(right)}")
        print(f"best constant box on the test scenes: {share(best_constant_box(sets['test'])[1])}\n")
        print(
            "| layer, maps | τ | α | GT-known | at its best α on the test set | mean of all maps"
            " | τ | peak in the asked box | both prompts right |\n|---|---|---|---|---|---|---|---|---|"
        )
        for source in SOURCES[kind]:
            name = ", ".join(f"pca={each}" if isinstance(each, int) else each for each in source if each)
            if only and only not in name:
                continue
            found = [over(partial(sweep, kind, source), each, name) for each in ("tune", "test", "pairs")]
            print(row(name, *found), flush=True)


def row(name: str, tuned, tested, paired) -> str:
    """A row of the table.

    τ and α are those that hit most of the tuning scenes; the peak's τ is the one with most of the peaks
    right in those of several classes.
    """
    hits = np.mean([each["iou"] > 0.5 for each in tuned], 0)  # (T, A)
    t, a = np.unravel_index(hits.argmax(), hits.shape)
    m = np.mean([each["mean"] > 0.5 for each in tuned], 0).argmax()
    iou = np.stack([each["iou"] for each in tested])  # (n, T, A)
    mean = [each["mean"][m] > 0.5 for each in tested]
    best = max((iou[:, t, n] > 0.5 for n in range(iou.shape[2])), key=np.sum)
    several = np.concatenate([each["peaks"] for each in tuned if len(each["peaks"]) > 1])
    p = several.mean(0).argmax()
    right = np.stack([each["peaks"][:, p] for each in paired])  # (n, 2)
    cells = [name, f"{TEMPERATURES[t]:g}", f"{THRESHOLDS[a]:g}", share(iou[:, t, a] > 0.5), share(best)]
    cells += [share(mean), f"{TEMPERATURES[p]:g}", share(right.ravel()), share(right.all(1))]
    return "| " + " | ".join(cells) + " |"


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("measure_scenes.py", description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=tuple(SOURCES), help="the image encoder")
    parser.add_argument(
        "--work", type=Path, default=Path("_work"), help="folder for the scenes (default: _work)"
    )
    parser.add_argument("--only", metavar="WORD", help="measure only sources whose name has this word")
    options = parser.parse_args(argv)
    try:
        measure(options.kind, options.work, options.only)
    except vlscore.VLScoreError as error:
        print(f"measure_scenes.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("measure_scenes.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
