"""Measure what the floor and the temperature of plain VL-Score are worth: data/floor.json (chapter 03).

    python scripts/measure_floor.py ROOT      # from the encodings of `study_sets.py`, some minutes

Each row leaves one part of the method out, and is compared with the whole method on the same prompts.  Every
row stands at the CAM threshold that is best for it on these images.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import study_sets
import torch
from compare_passes import judge, look

import vlscore

OUT = Path(__file__).parents[1] / "data" / "floor.json"
WHOLE, MEAN = "VL-Score", "mean of all maps"
CHANGES = {  # whether the floor is kept, and the temperature; None for the model's own
    WHOLE: (True, None),
    "no floor": (False, None),
    "τ = 1": (True, 1.0),
    "no floor, τ = 1": (False, 1.0),
    "τ → 0: the best map alone": (True, 1e-6),
}
WITHOUT_FLOOR = {WHOLE: "no floor", "τ = 1": "no floor, τ = 1"}
SETS = {
    "lite0-minilm": ("imagenet", "kangaroo", "pairs"),
    "scenes-rn": ("one thing", "one of two things", "three of a class"),
    "scenes-vit": ("one thing", "one of two things", "three of a class"),
}


def without_floor(encoding: vlscore.Encoding, text: torch.Tensor) -> vlscore.Encoding:
    """The encoding with a base score of -1 for a text (D,), which every map beats."""
    return replace(encoding, base_embedding=-vlscore.unit(text))


@torch.inference_mode()
def measure(name: str, ask: study_sets.Ask) -> dict:
    """Change -> its `judge` for one prompt, and the share of the varying maps that the floor keeps."""
    options = vlscore.EncodingOptions(keep=study_sets.KEEP, refined=not study_sets.load(name).is_vit)
    encoding = study_sets.read(name, ask.path, options).without_refinement()
    text = study_sets.embed_class(name, ask.names)
    heats = {MEAN: vlscore.mean_map(encoding)}
    for change, (floor, temperature) in CHANGES.items():
        each = encoding if floor else without_floor(encoding, text)
        heats[change] = vlscore.saliency(each, text, temperature or encoding.temperature)
    s, base = vlscore.scores(encoding, text)
    kept = (s > base)[vlscore.varies(encoding.maps)].float().mean().item()
    return {"kept": kept, "judged": {change: judge(heat, encoding, ask) for change, heat in heats.items()}}


def tabulate(records: list[dict]) -> dict:
    """The rows of a set, with paired differences from the whole method, and what the floor gains in them."""
    looked = {change: look([record["judged"][change] for record in records]) for change in (*CHANGES, MEAN)}
    whole_hit, whole_peak, _ = looked[WHOLE]
    rows = []
    for change, (hit, peak, _) in looked.items():
        row = {
            "change": change,
            "gt_known": vlscore.share_with_interval(hit),
            "over_whole": vlscore.paired_difference(hit, whole_hit),
            "peak_in_object": vlscore.share_with_interval(peak),
            "peak_over_whole": vlscore.paired_difference(peak, whole_peak),
        }
        if change in WITHOUT_FLOOR:
            row["floor_gain"] = vlscore.paired_difference(hit, looked[WITHOUT_FLOOR[change]][0])
        rows.append(row)
    kept = vlscore.rounded(np.mean([record["kept"] for record in records]))
    return {"prompts": len(records), "kept": kept, "rows": rows}


def study(root: str) -> None:
    """Measure the floor on scenes and photos."""
    sets = study_sets.scene_asks(study_sets.SCENES)
    sets |= study_sets.photo_asks(root, SETS["lite0-minilm"])
    result = {
        name: {
            kind: tabulate(study_sets.measure_all(partial(measure, name), sets[kind], f"{name}, {kind}"))
            for kind in kinds
        }
        for name, kinds in SETS.items()
    }
    vlscore.write_whole(OUT, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    return study_sets.run_study("measure_floor.py", __doc__, study, argv)


if __name__ == "__main__":
    sys.exit(main())
