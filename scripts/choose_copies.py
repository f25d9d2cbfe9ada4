"""Compare the copies of an image that a refined CNN may read: data/copies.json (chapter 06).

    python scripts/choose_copies.py ROOT  # of the sets of photos, see `study_sets.py`; an hour on two cores

A variant is the sides of the copies, in S, and the one whose fine layer tells the object from the background.
All are measured with 64 masks on the sets that chose the refinement, each at the CAM threshold that is best
for it.  Larger copies cost more: a copy with a side of 4 S has the pixels of 16 passes.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import choose_refinement
import study_sets
import torch
import torch.nn.functional as F

import vlscore

OUT = Path(__file__).parents[1] / "data" / "copies.json"
KEEP = 64
FINEST = 48  # largest number of cells on a side of the features, as `vlscore.read_scales` has it


class Variant(NamedTuple):
    """Which copies are read besides the plain size, and which of them gives the features; in S."""

    sizes: tuple[float, ...]
    fine: float

    @property
    def name(self) -> str:
        sides = " and ".join(f"{size:g}" for size in self.sizes)
        return f"{sides} S" + (f", features at {self.fine:g} S" if len(self.sizes) > 1 else "")


PROJECT = Variant((2.5, 4), 2.5)
VARIANTS = (
    PROJECT,
    Variant((2.5,), 2.5),
    Variant((3,), 3),
    Variant((3.5,), 3.5),
    Variant((4,), 4),
    Variant((2, 3), 2),
    Variant((2, 3), 3),
    Variant((2.5, 3), 2.5),
    Variant((2, 4), 2),
    Variant((2.5, 3.5), 2.5),
    Variant((3, 4), 3),
)
SIZES = sorted({size for variant in VARIANTS for size in variant.sizes})


def round_side(model: vlscore.Model, size: float) -> int:
    """The side of a copy in pixels, whole cells."""
    return int(-(-model.input_size * size // model.stride)) * model.stride


def read_copy(model: vlscore.Model, path, size: float) -> tuple[vlscore.Scale, torch.Tensor]:
    """The maps and cells of the last layer for a copy, and the fine layer's unit features (F, h, w)."""
    pixels = model.preprocess(path, size=round_side(model, size))[None]
    wanted = [(model.layers[-1], "activation"), (model.fine_layer, "activation")]
    (maps,), (features,) = model.read_layers(pixels, wanted)
    if features.shape[-1] > FINEST:
        features = F.avg_pool2d(features, 2)
    return vlscore.Scale(maps, model.cell_embeddings(maps)), F.normalize(features, dim=0)


@lru_cache(1)
def read_all(name: str, path: Path) -> tuple[vlscore.Encoding, dict]:
    """The refined encoding of an image, and each of its copies; the prompts of a pair share them."""
    model = study_sets.load(name)
    encoding = vlscore.encode(model, path, keep=KEEP, refined=True)
    return encoding, {size: read_copy(model, path, size) for size in SIZES}


@torch.inference_mode()
def measure(name: str, ask: study_sets.Ask) -> dict[str, dict]:
    """What each variant's boxes are worth for one prompt, see `choose_refinement.judge`."""
    (encoding, copies), found = read_all(name, ask.path), {}
    text = study_sets.embed_class(name, ask.names)
    w = vlscore.weights(encoding, text, encoding.temperature)
    for variant in VARIANTS:
        scales = (encoding.scales[0], *(copies[size][0] for size in variant.sizes))
        refined = replace(encoding, scales=scales, features=copies[variant.fine][1])
        heat = torch.zeros(refined.input_size, refined.input_size)
        if w is not None:
            heat = vlscore.refine(refined, w, text)
        found[variant.name] = choose_refinement.judge(heat, refined, ask)
    return found


def count_passes(model: vlscore.Model, variant: Variant) -> float:
    """How many passes of the plain size have as many pixels as the copies."""
    return sum((round_side(model, size) / model.input_size) ** 2 for size in variant.sizes)


def compare(found: dict[str, dict[str, choose_refinement.Rows]]) -> list[dict]:
    """A row for each variant: its accuracy, its passes, and what it gains over the project's on each set."""
    at = {name: choose_refinement.choose_thresholds(sets) for name, sets in found.items()}
    hits = {
        variant: {name: rows.iou[:, at[variant][name]] > 0.5 for name, rows in sets.items()}
        for variant, sets in found.items()
    }
    model, rows = vlscore.load_model(choose_refinement.MODEL, "cpu"), []
    for variant in VARIANTS:
        row = choose_refinement.describe(variant.name, found[variant.name])
        row |= {"passes": vlscore.rounded(count_passes(model, variant)), "gain": {}}
        for name, each in hits[variant.name].items():
            row["gain"][name] = vlscore.paired_difference(each, hits[PROJECT.name][name])
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("choose_copies.py", description=__doc__.splitlines()[0])
    parser.add_argument("root", help="the folder of the sets of photos")
    options = parser.parse_args(argv)
    try:
        sets = study_sets.photo_asks(options.root)
        drawn = study_sets.scene_asks(study_sets.TUNING_SCENES)
        sets["scenes"] = [ask for asks in drawn.values() for ask in asks]
        found = {}
        for name, asks in sets.items():
            model = choose_refinement.SCENES_MODEL if name == "scenes" else choose_refinement.MODEL
            records = study_sets.measure_all(partial(measure, model), asks, name)
            for variant, rows in choose_refinement.gather(asks, records).items():
                found.setdefault(variant, {})[name] = rows
        vlscore.write_whole(OUT, (json.dumps(compare(found), indent=1) + "\n").encode())
    except vlscore.VLScoreError as error:
        print(f"choose_copies.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("choose_copies.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
