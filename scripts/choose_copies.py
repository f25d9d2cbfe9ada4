"""Compare the copies of an image that a refined CNN may read: data/copies.json (chapter 06).

    python scripts/choose_copies.py ROOT  # from the encodings of `study_sets.py`, half an hour on two cores

A variant is the sides of the copies, in S, and the one whose fine layer tells the object from the background.
All are measured on the sets that chose the refinement, of ImageNet's photos two folds, each at the CAM
threshold that is best for it.  Larger copies cost more: one with a side of 4 S has the pixels of 16 passes.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from pathlib import Path

import choose_refinement
import study_sets
import torch
from choose_refinement import Copies, Variant

import vlscore

OUT = Path(__file__).parents[1] / "data" / "copies.json"


def with_copies(*sizes: float, fine: float) -> Variant:
    return Variant(sizes=(1, *sizes), fine=fine)


PROJECT = "3 S"
VARIANTS = {
    PROJECT: with_copies(3, fine=3),
    "2.5 S": with_copies(2.5, fine=2.5),
    "4 S": with_copies(4, fine=4),
    "2.5 and 4 S, features at 2.5 S": with_copies(2.5, 4, fine=2.5),
    "3 and 4 S, features at 3 S": with_copies(3, 4, fine=3),
}
SIZES = (2.5, 4)  # of the copies that no encoding has stored
FOLDS = 2  # of ImageNet's photos; of the other sets all are measured


@lru_cache(1)
def read_all(name: str, path: Path) -> tuple[vlscore.Encoding, Copies]:
    """The encoding of an image, and all its copies; the prompts of a pair share them."""
    model = study_sets.load(name)
    encoding = study_sets.read(name, path, vlscore.EncodingOptions(keep=study_sets.KEEP, refined=True))
    copies = choose_refinement.stored_copies(encoding)
    return encoding, copies | {size: study_sets.read_copy(model, path, size) for size in SIZES}


@torch.inference_mode()
def measure(name: str, ask: study_sets.Ask) -> dict[str, dict]:
    """What each variant's boxes are worth for one prompt, see `choose_refinement.judge`."""
    encoding, copies = read_all(name, ask.path)
    text = study_sets.embed_ask(name, ask)
    return {
        variant: choose_refinement.judge(
            choose_refinement.refine(encoding, copies, text, settings), encoding, ask
        )
        for variant, settings in VARIANTS.items()
    }


def count_passes(model: vlscore.Model, variant: Variant) -> float:
    """How many passes of the plain size have as many pixels as the larger copies."""
    sides = [study_sets.round_side(model, size) for size in variant.sizes if size > 1]
    return sum((side / model.input_size) ** 2 for side in sides)


def compare(found: dict[str, dict[str, choose_refinement.Rows]]) -> list[dict]:
    """A row for each variant: its accuracy, its passes, and what it gains over the project's on each set."""
    model = vlscore.load_model(choose_refinement.MODEL, "cpu")
    return [
        row | {"passes": vlscore.rounded(count_passes(model, VARIANTS[row["variant"]]))}
        for row in choose_refinement.compare_with(PROJECT, found)
    ]


def measure_part(root: str, measure) -> dict[str, dict[str, choose_refinement.Rows]]:
    """Measure variants on the tuning sets, with two fifths of ImageNet's photos."""
    sets = study_sets.tuning_asks(root)
    sets["imagenet"] = [ask for ask in sets["imagenet"] if ask.fold < FOLDS]
    return choose_refinement.measure_sets(measure, sets)


def study(root: str) -> None:
    """Compare the copies, and write what was found."""
    found = measure_part(root, measure)
    vlscore.write_whole(OUT, (json.dumps(compare(found), indent=1) + "\n").encode())


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    return study_sets.run_study("choose_copies.py", __doc__, study, argv)


if __name__ == "__main__":
    sys.exit(main())
