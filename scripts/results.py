"""Measure plain and refined VL-Score on drawn scenes: data/results.json, read by the results page.

    python scripts/results.py                 # a quarter of an hour on two cores

Refined stands at the model's α, plain at the α that is best for it on the same images, and so does
the constant box at its best side: both are a little flattered.  `choose_refinement.py` measures photos.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import vlscore
from vlscore import scenes

OUT = Path(__file__).parents[1] / "data" / "results.json"
THRESHOLDS = tuple(n / 40 for n in range(4, 38))
SMALL = 0.1  # of the image: a photo whose largest box is smaller shows a small object
COUNT, SEED = 200, 13  # of the scenes, which chose no parameter
SAME_COUNT, SAME_SEEDS = 60, {2: 15, 3: 16}  # of the scenes of two and of three things of one class


@dataclass(frozen=True)
class Setting:
    """A model, and where its plain maps are read; τ is the model's if None."""

    model: str
    layer: str | None = None
    maps: str = "activation"
    pca: int | None = None
    temperature: float | None = None
    keep: int | None = None

    @property
    def name(self) -> str:
        return f"{self.model}, {self.layer}" if self.layer else self.model


SCENES = (
    Setting("scenes-rn", "layer3", temperature=0.1, keep=128),
    Setting("scenes-rn", "layer4", keep=128),
    Setting("scenes-vit", maps="query", pca=8, temperature=0.3),
)


@lru_cache(1)
def load(name: str) -> vlscore.Model:
    """One model and one core for each process."""
    torch.set_num_threads(1)
    return vlscore.load_model(name, "cpu")


def heats(setting: Setting, model, photo, text) -> dict[str, tuple]:
    """The heat map of each method, and the encoding to cut boxes with."""
    of_plain = {"layer": setting.layer, "maps": setting.maps, "pca": setting.pca}
    common = {"keep": setting.keep, "precision": "float32"}
    tau = model.temperature if setting.temperature is None else setting.temperature
    if model.is_vit:  # whose refined maps are others, at the model's own τ
        refined = vlscore.encode(model, photo.path, refined=True, **common)
        plain = vlscore.encode(model, photo.path, **of_plain, **common)
        at = {"plain": tau, "refined": model.temperature}
    else:
        refined = vlscore.encode(model, photo.path, refined=True, **of_plain, **common)
        plain = refined.without_refinement()
        at = {"plain": tau, "refined": tau}
    pairs = {"plain": plain, "refined": refined}
    return {name: (vlscore.saliency(each, text, at[name]), each) for name, each in pairs.items()}


def measure(setting: Setting, classes: dict, photo: vlscore.AnnotatedPhoto) -> dict:
    """One image: box IoU, objects found and size of the best box, of each method over the thresholds."""
    model = load(setting.model)
    size = vlscore.load_image(photo.path).size
    record = {
        "constant": [
            vlscore.box_iou([vlscore.constant_box(share, size)], photo.boxes) for share in vlscore.SHARES
        ],
        "objects": len(photo.boxes),
        "share": max(map(area, photo.boxes)) / (size[0] * size[1]),
    }
    with torch.inference_mode():
        text = vlscore.class_embedding(model, classes[photo.label])
        for name, (heat, encoding) in heats(setting, model, photo, text).items():
            record[name] = compare_boxes(vlscore.sweep_boxes(heat, encoding, THRESHOLDS), photo.boxes)
    return record


def area(box) -> float:
    x0, y0, x1, y1 = box
    return (x1 - x0) * (y1 - y0)


def compare_boxes(sweep, truth) -> dict[str, list]:
    """Compare the boxes at each threshold with the true ones: three lists, one value for each threshold.

    ``iou`` is the best IoU, see `vlscore.box_iou`.  ``found`` is how many objects have a box of IoU > 0.5; no
    box fits two objects that well.  ``ratio`` is the area of the box nearest to the truth over that of the
    object it is nearest to, and 0 without a box.
    """
    from torchvision.ops import box_area, box_iou

    every = torch.tensor([box for boxes in sweep for box in boxes], dtype=torch.float64).reshape(-1, 4)
    truth = torch.tensor(np.asarray(truth), dtype=torch.float64)
    ious, ratios = box_iou(every, truth).numpy(), (box_area(every)[:, None] / box_area(truth)).numpy()
    ends = np.cumsum([len(boxes) for boxes in sweep])[:-1]
    found = {"iou": [], "found": [], "ratio": []}
    for iou, ratio in zip(np.split(ious, ends), np.split(ratios, ends)):  # (boxes, objects)
        found["iou"].append(float(iou.max(initial=0)))
        found["found"].append(int((iou.max(0, initial=0) > 0.5).sum()))
        found["ratio"].append(float(ratio.flat[iou.argmax()]) if len(iou) else 0.0)
    return found


def summary(setting: Setting, data: str, records: list[dict]) -> dict:
    """Shares with their intervals, from the records of one setting on one data set."""
    model = load(setting.model)
    constant = np.array([record["constant"] for record in records]) > 0.5
    side = int(constant.mean(0).argmax())
    ious = {name: np.array([record[name]["iou"] for record in records]) for name in ("plain", "refined")}
    at = {"plain": best(ious["plain"]), "refined": THRESHOLDS.index(model.refined_threshold)}
    hits = {name: iou[:, at[name]] > 0.5 for name, iou in ious.items()}
    row = {"model": setting.model, "name": setting.name, "data": data, "images": len(records)}
    row["constant"] = {
        "side": vlscore.SHARES[side],
        "gt_known": vlscore.share_with_interval(constant[:, side]),
    }
    for name, iou in ious.items():
        row[name] = {
            "threshold": THRESHOLDS[at[name]],
            "gt_known": vlscore.share_with_interval(hits[name]),
            "v2": vlscore.rounded(vlscore.max_box_acc_v2(iou)),
            "above_constant": vlscore.paired_difference(hits[name], constant[:, side]),
            "objects_found": vlscore.share_with_interval(spread(records, name, at[name])),
        }
    row["refined"]["above_plain"] = vlscore.paired_difference(hits["refined"], hits["plain"])
    small = np.array([record["share"] < SMALL for record in records])
    row["small"] = {"images": int(small.sum())}
    for name in ("plain", "refined"):
        sizes = [record[name]["ratio"][at[name]] for record, each in zip(records, small) if each]
        middle = vlscore.rounded(np.median(sizes)) if sizes else None
        row["small"][name] = {"hits": int(hits[name][small].sum()), "median_ratio": middle}
    return row


def best(iou) -> int:
    return int((iou > 0.5).mean(0).argmax())


def spread(records, name: str, at: int):
    """Whether each object of each image was found: (objects,) of bool."""
    counts = [(record[name]["found"][at], record["objects"]) for record in records]
    return np.concatenate([np.arange(n) < hit for hit, n in counts])


def run(pool, setting: Setting, root, data: str) -> dict:
    dataset = vlscore.read_dataset(root)
    of_one = partial(measure, setting, dataset.classes)
    records = list(tqdm(pool.map(of_one, dataset.photos, chunksize=4), setting.name, len(dataset.photos)))
    return summary(setting, data, records)


def store(row: dict) -> None:
    """Put a row into the file, in place of an older one of the same name and data."""
    rows = json.loads(OUT.read_text()) if OUT.exists() else {}
    others = [each for each in rows.get(row["data"], []) if each["name"] != row["name"]]
    rows[row["data"]] = [*others, row]
    vlscore.write_whole(OUT, (json.dumps(rows, indent=1) + "\n").encode())


def drawn(folder: Path, count: int, seed: int, objects=None, same: bool = False) -> Path:
    if not folder.exists():
        scenes.write_scenes(folder, count, seed, (224, 224), objects, same)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("results.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("_work"), help="folder for the scenes (default: _work)"
    )
    options = parser.parse_args(argv)
    try:
        with ProcessPoolExecutor() as pool:
            data = {"scenes": drawn(options.work / "results", COUNT, SEED)}
            for n, seed in SAME_SEEDS.items():
                folder = options.work / f"results-same-{n}"
                data[f"{n} of one class"] = drawn(folder, SAME_COUNT, seed, n, True)
            for name, root in data.items():
                for setting in SCENES:
                    store(run(pool, setting, root, name))
    except vlscore.VLScoreError as error:
        print(f"results.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("results.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
