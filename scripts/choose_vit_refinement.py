"""Choose the constants of a ViT's refinement on the tuning scenes: data/vit_refinement.json.

    python scripts/choose_vit_refinement.py   # scenes-vit on 240 drawn scenes, ten minutes on two cores

A variant is the side of the copy whose patches are clustered, the leaves of the tree of clusters, and the
prominence of peaks.  All are measured at the model's temperature.  One CAM threshold serves all scenes, the
best on them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import results
import study_sets
import torch
import torch.nn.functional as F

import vlscore

OUT = Path(__file__).parents[1] / "data" / "vit_refinement.json"
MODEL = "scenes-vit"
SIDES = (2, 2.5, 3)  # of the copy, in S
LEAVES = (16, 24, 32)
PROMINENCES = (0.02, 0.03, 0.05)
THRESHOLDS = tuple(n / 40 for n in range(8, 38))
BATCH = 16


class Variant(NamedTuple):
    """A way to refine a ViT's maps; ``side`` is in S."""

    side: float
    leaves: int
    prominence: float


def read_copy(model: vlscore.Model, path, side: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and output of the middle block for a copy of another side, in S: (C, h, w) each."""
    cells = -(-model.input_size * side // model.stride)
    copy = model.preprocess(path, size=int(cells) * model.stride)[None]
    keys, features = model.read_layers(copy, [(model.fine_layer, "key"), (model.fine_layer, "activation")])
    return keys[0], features[0]


def encode_maps(model: vlscore.Model, path, encoding: vlscore.Encoding, maps) -> vlscore.Encoding:
    """The refined encoding of an image with other maps (C, h, w) of any grid as its masks."""
    encoder, pixels = vlscore.fast_encoder(model, "float32"), model.preprocess(path)
    batches = [encoder(pixels.expand(len(each), -1, -1, -1), each) for each in maps.split(BATCH)]
    return replace(
        encoding,
        maps=maps,
        indices=torch.arange(len(maps)),
        mask_embeddings=torch.cat(batches),
        scales=(vlscore.Scale(maps),),
    )


def encode_clusters(model: vlscore.Model, path, side: float, leaves: int) -> vlscore.Encoding:
    """Encode an image by the clusters of a copy of another side; the first 2(n - 1) are those of n leaves."""
    keys, features = read_copy(model, path, side)
    encoding = vlscore.encode(model, path, keep=1, refined=True, precision="float32")
    encoding = encode_maps(model, path, encoding, vlscore.cluster_maps(keys, leaves))
    return replace(encoding, features=F.normalize(features, dim=0))


def keep_leaves(encoding: vlscore.Encoding, leaves: int) -> vlscore.Encoding:
    """The encoding by a smaller tree of clusters."""
    count = 2 * (leaves - 1)
    return replace(
        encoding,
        maps=encoding.maps[:count],
        indices=torch.arange(count),
        mask_embeddings=encoding.mask_embeddings[:count],
        scales=(vlscore.Scale(encoding.maps[:count]),),
    )


@torch.inference_mode()
def measure(ask: study_sets.Ask) -> dict[Variant, tuple]:
    """The box IoU (A,) and the objects found (A,) of each variant for one prompt."""
    model, found = study_sets.load(MODEL), {}
    text = study_sets.embed_class(MODEL, ask.names)
    for side in SIDES:
        whole = encode_clusters(model, ask.path, side, max(LEAVES))
        for leaves in LEAVES:
            part = keep_leaves(whole, leaves)
            heat = vlscore.saliency(part, text, part.temperature)
            for prominence in PROMINENCES:
                cut = replace(part, prominence=prominence)
                each = results.compare_boxes(vlscore.sweep_boxes(heat, cut, THRESHOLDS), ask.boxes)
                found[Variant(side, leaves, prominence)] = each["iou"], each["found"]
    return found


def describe(variant: Variant, sets: dict[str, tuple[list, list]]) -> dict:
    """A variant's row: its figures on each set, at the CAM threshold with the best mean.

    Args:
        variant: one of those measured.
        sets: name -> the records of `measure`, and the number of objects of each prompt.
    """
    hits, recalls, v2 = {}, {}, {}
    for name, (records, objects) in sets.items():
        iou, found = (np.array([record[variant][n] for record in records]) for n in (0, 1))
        hits[name], recalls[name] = (iou > 0.5).mean(0), found.sum(0) / sum(objects)
        v2[name] = vlscore.max_box_acc_v2(iou)
    mean = np.mean([*hits.values(), *recalls.values()], axis=0)  # (A,)
    at = int(mean.argmax())
    rows = {
        name: {
            "gt_known": vlscore.rounded(hits[name][at]),
            "objects_found": vlscore.rounded(recalls[name][at]),
            "v2": vlscore.rounded(v2[name]),
        }
        for name in sets
    }
    worth = np.mean([[*row.values()] for row in rows.values()])
    return variant._asdict() | {"threshold": THRESHOLDS[at], "worth": vlscore.rounded(worth), "sets": rows}


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("choose_vit_refinement.py", description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    try:
        sets = {}
        for name, asks in study_sets.scene_asks(study_sets.TUNING_SCENES).items():
            sets[name] = study_sets.measure_all(measure, asks, name), [len(ask.boxes) for ask in asks]
        variants = [*sets[name][0][0]]
        rows = sorted((describe(each, sets) for each in variants), key=lambda row: -row["worth"])
        vlscore.write_whole(OUT, (json.dumps(rows, indent=1) + "\n").encode())
    except vlscore.VLScoreError as error:
        print(f"choose_vit_refinement.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("choose_vit_refinement.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
