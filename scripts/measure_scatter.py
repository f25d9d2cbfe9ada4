"""Measure how many objects a map shows, and whether maps without negative values localize better: chapter 02.

    python scripts/measure_scatter.py              # a quarter of an hour on two cores

Scatter, on scenes of three objects: what a mask shows by more than half, of the maps and of their positive
part; and what its brightest tenth shows, a window of the same area for every source of maps: its shares on
one object, on the other objects and on the ground.  Three controls belong to the brightest tenth: the same
windows over the objects of another scene, as a level of chance; of each map, the better of it and its
negative, since a map may show an object by its low values; and the same of all maps, not of the strong ones.
Localization, on the scenes of `measure_scenes.py`: plain VL-Score with the maps of a ViT's last block, and
with their positive part.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import measure_scenes
import numpy as np
import torch
from tqdm import tqdm

import vlscore
from vlscore import scenes

OUT = Path(__file__).parents[1] / "data" / "scatter.json"
SCENES = (100, 41, 3)  # number, seed, objects in each
MAPS = 30  # of each source, as `select_maps` chooses them
SIDE = 100  # of the enlarged masks, in pixels
WINDOW = 0.1  # share of the image that a window of equal area covers
SHOWN = 0.25  # share of an object's box that must be in a window
BEFORE_RELU = "before ReLU"  # a CNN's maps with both signs, as its block adds them up
SOURCES = {  # model, layer, maps, components
    "CNN, layer2": ("rn", "layer2", "activation", None),
    "CNN, layer3": ("rn", "layer3", "activation", None),
    "CNN, layer3, before ReLU": ("rn", "layer3", BEFORE_RELU, None),
    "CNN, layer4": ("rn", "layer4", "activation", None),
    "CNN, layer4, before ReLU": ("rn", "layer4", BEFORE_RELU, None),
    **{
        f"ViT, block {n}, {maps}": ("vit", n, maps, None)
        for n in "0123"
        for maps in ("activation", "query", "key", "value")
    },
    "ViT, block 3, attention": ("vit", "3", "attention", None),
    **{f"ViT, block 3, {maps}, 8 components": ("vit", "3", maps, 8) for maps in ("query", "key", "value")},
}
CHANCE = ", another scene"  # after the name of a window: its twin on another scene's objects
FULL_SOURCES = tuple(f"ViT, block 3, {maps}" for maps in ("activation", "query", "key", "value"))
CONTROLS = {  # of the sign: which maps of a CNN's layer, which window
    "as the maps are": ("", "brightest tenth"),
    "without the last ReLU": (", before ReLU", "brightest tenth"),
    "better sign of each map": ("", "better sign"),
    "both": (", before ReLU", "better sign"),
}
FIGURES = ("area", "objects", "on one object", "on other objects", "on ground")  # of a window
LOCALIZED = ("activation", "query")  # sources of the last block whose positive part localizes too
LOCALIZED_SCENES = {"tune": 80, "test": 200}  # the first of the sets of `measure_scenes.py`
CURVES = {"CNN, layer4": "rn", "ViT, block 3, activation": "vit"}  # the models' default maps


def window_of_equal_area(masks: torch.Tensor, share: float) -> torch.Tensor:
    """The brightest part of each mask (C, S, S), of a given share of its area: weights in [0, 1].

    Where the limit falls among equal values, each of them counts by the same fraction.
    """
    flat = masks.flatten(1)
    count = share * flat.shape[1]
    limit = flat.kthvalue(flat.shape[1] - int(count) + 1, 1, keepdim=True).values
    above, equal = (flat > limit).float(), (flat == limit).float()
    rest = (count - above.sum(1, keepdim=True)) / equal.sum(1, keepdim=True)
    return (above + rest * equal).unflatten(1, masks.shape[1:])


def boxes_in_windows(photo: vlscore.AnnotatedPhoto, side: int) -> list[list[int]]:
    """The boxes of a scene's objects, (x0, y0, x1, y1) in pixels of windows with a given side."""
    scale = side / torch.tensor([*photo.size, *photo.size])
    return [(torch.tensor(box) * scale).round().int().tolist() for _, box in photo.objects]


def parts_in_boxes(windows: torch.Tensor, photo: vlscore.AnnotatedPhoto) -> tuple[torch.Tensor, torch.Tensor]:
    """How much of each window (C, S, S) lies in a scene's n boxes: (n, C), and their areas (n, 1)."""
    inside = boxes_in_windows(photo, windows.shape[-1])
    parts = torch.stack([windows[:, y0:y1, x0:x1].sum((1, 2)) for x0, y0, x1, y1 in inside])
    return parts, torch.tensor([(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in inside])[:, None]


def share_on_one(windows: torch.Tensor, photo: vlscore.AnnotatedPhoto) -> torch.Tensor:
    """The largest share of each window (C, S, S) that lies in one object's box: (C,)."""
    parts, _ = parts_in_boxes(windows, photo)
    return (parts / windows.sum((1, 2)).clamp_min(1e-9)).amax(0)


def share_on_ground(windows: torch.Tensor, photo: vlscore.AnnotatedPhoto) -> torch.Tensor:
    """The share of each window (C, S, S) that lies in no object's box: (C,)."""
    ground = torch.ones(windows.shape[1:])
    for x0, y0, x1, y1 in boxes_in_windows(photo, windows.shape[-1]):
        ground[y0:y1, x0:x1] = 0
    return (windows * ground).sum((1, 2)) / windows.sum((1, 2)).clamp_min(1e-9)


def count_objects(windows: torch.Tensor, photo: vlscore.AnnotatedPhoto) -> tuple[float, ...]:
    """What windows (C, S, S) show.

    Returns:
        Means over the windows, see `FIGURES`: of the share of the image, of the number of objects with enough
        of their box inside, see `SHOWN`, of `share_on_one`, of the share on the other objects, and of
        `share_on_ground`. An empty window lies on nothing.
    """
    parts, areas = parts_in_boxes(windows, photo)
    shown = (parts / areas > SHOWN).sum(0).float()
    one, ground = share_on_one(windows, photo), share_on_ground(windows, photo)
    others = (windows.sum((1, 2)) > 0).float() - one - ground
    return tuple(each.mean().item() for each in (windows, shown, one, others, ground))


def better_sign(windows: torch.Tensor, negative: torch.Tensor, photo: vlscore.AnnotatedPhoto) -> torch.Tensor:
    """Of each map's window and its negative's (C, S, S), the one that keeps more to one object."""
    is_better = share_on_one(negative, photo) > share_on_one(windows, photo)
    return torch.where(is_better[:, None, None], negative, windows)


def read_maps(model: vlscore.Model, source, photo: vlscore.AnnotatedPhoto) -> torch.Tensor:
    """The maps (C, h, w) of a scene by a layer, maps and components; of a CNN, also before its last ReLU."""
    layer, maps, pca = source
    pixels = model.preprocess(photo.path)[None]
    if maps != BEFORE_RELU:
        return model.feature_maps(pixels, layer, maps, pca)[0]
    block = getattr(model.visual, layer)[-1]
    with vlscore.tapped(block.bn3) as residual, vlscore.tapped(block.downsample) as identity:
        model.encode_image(pixels)
    return (residual.output + identity.output)[0]


def measure_scene(source: str, photos) -> dict[str, tuple[float, ...]]:
    """What the maps of a source show of a scene, by the kind of window.

    Args:
        source: a key of `SOURCES`.
        photos: the scene, and another one whose objects say what the same windows show by chance.
    """
    photo, other = photos
    kind, *chosen = SOURCES[source]
    model, _ = measure_scenes.load(kind)
    every = read_maps(model, chosen, photo)
    found = every[vlscore.select_maps(every, MAPS)]
    masks = vlscore.make_masks(found, SIDE)
    brightest, darkest = (window_of_equal_area(each, WINDOW) for each in (masks, -masks))
    windows = {
        "above half": (masks > 0.5).float(),
        "above half, positive part": (vlscore.make_masks(found.relu(), SIDE) > 0.5).float(),
        "brightest tenth": brightest,
    }
    masks_of_all = vlscore.make_masks(every[vlscore.varies(every)], SIDE)  # a constant map shows nothing
    of_all = window_of_equal_area(masks_of_all, WINDOW)
    shown = {name: count_objects(each, photo) for name, each in windows.items()}
    for name, each in ("", photo), (CHANCE, other):
        shown[f"better sign{name}"] = count_objects(better_sign(brightest, darkest, each), each)
        shown[f"all maps, brightest tenth{name}"] = count_objects(of_all, each)
    return shown | {f"brightest tenth{CHANCE}": count_objects(brightest, other)}


def encode_positive(maps: str, photo: vlscore.AnnotatedPhoto) -> vlscore.Encoding:
    """Encode a scene by the positive part of the maps of a ViT's last block."""
    model, _ = measure_scenes.load("vit")
    encoding = vlscore.encode(model, photo.path, maps=maps, keep=1, precision="float32")
    pixels, positive = model.preprocess(photo.path), encoding.maps.relu()
    encoder, found = vlscore.fast_encoder(model, "float32"), encoding.base_embedding.repeat(len(positive), 1)
    for batch in vlscore.varies(positive).nonzero()[:, 0].split(16):  # a constant map shows nothing
        found[batch] = encoder(pixels.expand(len(batch), -1, -1, -1), positive[batch])
    return replace(encoding, maps=positive, mask_embeddings=found, indices=torch.arange(len(positive)))


def measure_boxes(maps: str, is_positive: bool, photo: vlscore.AnnotatedPhoto) -> np.ndarray:
    """The box IoU (T, A) of a scene's label at each temperature and threshold."""
    if is_positive:
        encoding = encode_positive(maps, photo)
    else:
        encoding = measure_scenes.encode("vit", (None, maps, None), photo)
    text = measure_scenes.load("vit")[1][photo.label]
    heats = [vlscore.saliency(encoding, text, tau) for tau in measure_scenes.TEMPERATURES]
    found = [vlscore.sweep_boxes(heat, encoding, measure_scenes.THRESHOLDS) for heat in heats]
    return np.array([[vlscore.box_iou(boxes, photo.boxes) for boxes in each] for each in found])


def find_hits(kind: str, photo: vlscore.AnnotatedPhoto) -> np.ndarray:
    """Whether a box is right in a scene at each CAM threshold, with a model's default maps and τ: (A,)."""
    model, texts = measure_scenes.load(kind)
    encoding = vlscore.encode(model, photo.path, precision="float32")
    heat = vlscore.saliency(encoding, texts[photo.label], model.temperature)
    found = vlscore.sweep_boxes(heat, encoding, measure_scenes.THRESHOLDS)
    return np.array([vlscore.box_iou(boxes, photo.boxes) > 0.5 for boxes in found])


def summarize(values: np.ndarray) -> dict[str, float]:
    """The mean of a figure (n,) over the scenes, with its bootstrapped 95 % interval."""
    return vlscore.paired_difference(values, np.zeros_like(values))


def above_chance(rows: dict[str, np.ndarray], window: str) -> np.ndarray:
    """How much more of a window lies on one object than of the same window on another scene: (n,)."""
    column = FIGURES.index("on one object")
    return rows[window][:, column] - rows[window + CHANCE][:, column]


def compare_layers(found: dict[str, dict[str, np.ndarray]]) -> list[dict]:
    """The lead of a CNN's layers over the mean of a ViT's full sources above chance, by each control."""
    leads = []
    for layer in ("layer3", "layer4"):
        for control, (suffix, window) in CONTROLS.items():
            of_vit = np.mean([above_chance(found[source], window) for source in FULL_SOURCES], axis=0)
            lead = vlscore.paired_difference(above_chance(found[f"CNN, {layer}{suffix}"], window), of_vit)
            leads.append({"layer": layer, "control": control, "lead": lead})
    return leads


def describe(source: str, rows: dict[str, np.ndarray], twin: dict[str, np.ndarray]) -> dict:
    """A source's figures for each kind of window, and how many more objects it shows than the CNN's layer3.

    Args:
        rows: kind of window -> (n, 5), see `count_objects`.
        twin: the same of the CNN's layer with as many cells.
    """
    row = {"source": source}
    for window, values in rows.items():
        row[window] = {name: summarize(figure) for name, figure in zip(FIGURES, values.T)}
        for name, said in ("objects", "more objects"), ("on one object", "more on one object"):
            column = FIGURES.index(name)
            difference = vlscore.paired_difference(values[:, column], twin[window][:, column])
            row[window][f"{said} than the CNN"] = difference
        if window + CHANCE in rows:
            row[window]["above chance"] = summarize(above_chance(rows, window))
    return row


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("measure_scatter.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("_work"), help="folder for the scenes (default: _work)"
    )
    options = parser.parse_args(argv)
    count, seed, objects = SCENES
    folder = options.work / f"scenes-{seed}-{objects}"
    try:
        if not folder.exists():
            scenes.write_scenes(folder, count, seed, (224, 224), objects)
        photos = vlscore.read_dataset(folder).photos
        others = photos[1:] + photos[:1]
        scenes_of_curves = measure_scenes.draw_set(options.work, "test")
        sets = [measure_scenes.draw_set(options.work, name)[:n] for name, n in LOCALIZED_SCENES.items()]
        with ProcessPoolExecutor() as pool:

            def over(function, photos, said):
                return list(tqdm(pool.map(function, photos, chunksize=4), said, len(photos)))

            found = {}
            for source in SOURCES:
                every = over(partial(measure_scene, source), [*zip(photos, others)], source)
                found[source] = {window: np.array([each[window] for each in every]) for window in every[0]}
            curves = {
                source: over(partial(find_hits, kind), scenes_of_curves, f"{source}, by threshold")
                for source, kind in CURVES.items()
            }
            boxes = {
                (maps, part): [
                    over(partial(measure_boxes, maps, part), each, f"{maps}, {part}") for each in sets
                ]
                for maps in LOCALIZED
                for part in (False, True)
            }
    except vlscore.VLScoreError as error:
        print(f"measure_scatter.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("measure_scatter.py: stopped", file=sys.stderr)
        return 130
    twin = found["CNN, layer3"]
    hits = {key: choose_and_measure(*each) for key, each in boxes.items()}
    result = {
        "scenes": count,
        "scatter": [describe(source, rows, twin) for source, rows in found.items()],
        "leads": compare_layers(found),
        "thresholds": describe_curves(curves),
        "localization": [compare_parts(maps, hits[maps, False], hits[maps, True]) for maps in LOCALIZED],
    }
    vlscore.write_whole(OUT, (json.dumps(result, indent=1) + "\n").encode())
    return 0


def describe_curves(curves: dict[str, list[np.ndarray]]) -> list[dict]:
    """A row for each source and CAM threshold, from the hits (A,) of each scene."""
    return [
        {"source": source, "threshold": alpha, "gt_known": vlscore.share_with_interval(hits)}
        for source, curve in curves.items()
        for alpha, hits in zip(measure_scenes.THRESHOLDS, np.transpose(curve))
    ]


def compare_parts(maps: str, whole: np.ndarray, positive: np.ndarray) -> dict:
    """A row: the hits (n,) with a source's maps as they are, and with their positive part."""
    return {
        "maps": maps,
        "as they are": vlscore.share_with_interval(whole),
        "positive part": vlscore.share_with_interval(positive),
        "difference": vlscore.paired_difference(positive, whole),
    }


def choose_and_measure(tuned, tested) -> np.ndarray:
    """Whether a box is right in each test scene, at the τ and α that hit most of the tuning scenes: (n,)."""
    shares = np.mean(np.array(tuned) > 0.5, 0)
    tau, alpha = np.unravel_index(shares.argmax(), shares.shape)
    return np.array(tested)[:, tau, alpha] > 0.5


if __name__ == "__main__":
    sys.exit(main())
