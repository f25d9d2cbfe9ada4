"""Measure ideas for a ViT's maps one by one: data/ablation.json, a table of chapter 06.

    python scripts/ablate.py                  # scenes-vit on 200 drawn scenes

Each variant stands at the CAM threshold that is best for it on the same images, so all are a little
flattered, alike.  The constant box stands at its best side.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import choose_vit_refinement
import numpy as np
import torch
from one_pass_vit import ONE_PASS
from tqdm import tqdm

import vlscore
from vlscore import scenes

OUT = Path(__file__).parents[1] / "data" / "ablation.json"
THRESHOLDS = tuple(n / 40 for n in range(4, 38))
MODEL, SEED, COUNT = "scenes-vit", 21, 200  # of the scenes, which chose no parameter


SOURCES = {
    "activation maps, last block": {"maps": "activation"},
    "attention to patches": {"maps": "attention"},
    "keys, 8 components": {"maps": "key", "pca": 8},
    "queries, 8 components": {"maps": "query", "pca": 8},
    "values, 8 components": {"maps": "value", "pca": 8},
}


@lru_cache(1)
def load() -> vlscore.Model:
    """One model and one core for each process."""
    torch.set_num_threads(1)
    return vlscore.load_model(MODEL, "cpu")


def read_middle_block(model, photo, refined: vlscore.Encoding) -> dict[str, vlscore.Encoding]:
    """Encodings by the middle block's keys: components or clusters, at the image's side S or at 3 S.

    Clusters at 3 S are those of the refined method, which has a row of its own.
    """
    keys, _ = choose_vit_refinement.read_copy(model, photo.path, 1)
    large, _ = choose_vit_refinement.read_copy(model, photo.path, 3)
    found = {
        "middle block, 8 components of keys at S": vlscore.principal_maps(keys[None], 8)[0],
        "middle block, 8 components of keys at 3 S": vlscore.principal_maps(large[None], 8)[0],
        "middle block, clusters of keys at S": vlscore.cluster_maps(keys),
    }
    encode = partial(choose_vit_refinement.encode_maps, model, photo.path, refined)
    return {name: encode(maps).without_refinement() for name, maps in found.items()}


def find_heats(model, photo, text) -> list[tuple]:
    """Ideas for maps of a ViT: (name, heat map, encoding to cut boxes with)."""
    tau, heats = model.temperature, []
    for name, source in SOURCES.items():
        encoding = vlscore.encode(model, photo.path, **source, precision="float32")
        heats.append((name, vlscore.saliency(encoding, text, tau), encoding))
        if name == "activation maps, last block":
            similarity = model.similarity_map(encoding.maps, text).relu()
            heats.append(("similarity map", similarity, encoding))
            for name, find_map in ONE_PASS.items():
                heats.append((name, find_map(model, photo.path, text).relu(), encoding))
    refined = vlscore.encode(model, photo.path, precision="float32", refined=True)
    for name, encoding in read_middle_block(model, photo, refined).items():
        heats.append((name, vlscore.saliency(encoding, text, tau), encoding))
    plain = refined.without_refinement()
    regions = plain.maps
    spread = torch.einsum("k,khw->hw", vlscore.weights(plain, text, tau), regions / regions.sum((1, 2), True))
    return [
        *heats,
        ("middle block, clusters of keys at 3 S", vlscore.saliency(plain, text, tau), plain),
        ("clusters, spread over area", spread, plain),
        ("diffused over middle block", vlscore.diffuse(spread, refined.features), plain),
        ("split into instances", vlscore.saliency(refined, text, tau), refined),
    ]


def measure(classes: dict, photo: vlscore.AnnotatedPhoto) -> dict:
    """The box IoU (A,) of each variant on one image, and of each constant box."""
    model = load()
    found = {"constant box": [vlscore.box_iou([box], photo.boxes) for box in constant_boxes(photo)]}
    with torch.inference_mode():
        text = vlscore.class_embedding(model, classes[photo.label])
        for variant, heat, encoding in find_heats(model, photo, text):
            boxes = vlscore.sweep_boxes(heat, encoding, THRESHOLDS)
            found[variant] = [vlscore.box_iou(each, photo.boxes) for each in boxes]
    return found


def constant_boxes(photo):
    size = vlscore.load_image(photo.path).size
    return [vlscore.constant_box(share, size) for share in vlscore.SHARES]


def table(records: list[dict]) -> list[dict]:
    """A row a variant: GT-known, MaxBoxAccV2, and the paired gain in GT-known over plain VL-Score."""
    rows, plain = [], None
    for variant in records[0]:
        iou = np.array([record[variant] for record in records])  # (n, A)
        best = int((iou > 0.5).mean(0).argmax())
        hit = iou[:, best] > 0.5
        row = {
            "variant": variant,
            "gt_known": vlscore.share_with_interval(hit),
            "v2": vlscore.max_box_acc_v2(iou),
        }
        if variant != "constant box":
            plain = hit if plain is None else plain
            row |= {"threshold": THRESHOLDS[best], "gain": vlscore.paired_difference(hit, plain)}
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("ablate.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("_work"), help="folder for the scenes (default: _work)"
    )
    options = parser.parse_args(argv)
    try:
        root = options.work / "scenes-ablate"
        if not root.exists():
            scenes.write_scenes(root, COUNT, SEED, (224, 224), None)
        dataset = vlscore.read_dataset(root)
        run = partial(measure, dataset.classes)
        with ProcessPoolExecutor() as pool:
            records = list(tqdm(pool.map(run, dataset.photos, chunksize=4), total=len(dataset.photos)))
        found = {
            "model": MODEL,
            "data": f"scenes, seed {SEED}",
            "images": len(records),
            "rows": table(records),
        }
        vlscore.write_whole(OUT, (json.dumps(found, indent=1) + "\n").encode())
    except vlscore.VLScoreError as error:
        print(f"ablate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ablate.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
