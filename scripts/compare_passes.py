"""What do the masks add? Accuracy against masked passes: data/passes.json.

    python scripts/compare_passes.py ROOT     # from the encodings of `study_sets.py`, a quarter of an hour

Zero masked passes are the similarity map and the mean of all maps, and for a ViT also the maps of
`one_pass_vit.py`.  Refined and without the text, the seed is the mean of all maps.  Every row stands at the
CAM threshold that is best for it on the same images, which favours some methods more than others.  A set of
images that is already in the file is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import choose_refinement
import numpy as np
import results
import study_sets
import torch
from choose_refinement import ONE_PASS, THRESHOLDS, constant_hits
from one_pass_vit import ONE_PASS as ONE_PASS_MAPS

import vlscore

OUT = Path(__file__).parents[1] / "data" / "passes.json"
KEEPS = (8, 16, 32, 64, 128)
MODELS = ("lite0-minilm", "scenes-rn", "scenes-vit")
MEAN, PLAIN, REFINED, TEXTLESS = "mean of all maps", "plain", "refined", "refined without text"
BASES = {MEAN: PLAIN, TEXTLESS: REFINED}  # what needs no masked pass -> the method that it is compared with
for one_pass in ONE_PASS_MAPS:  # of a ViT
    BASES |= {one_pass: PLAIN, f"{one_pass}, refined": REFINED}
METHODS = (PLAIN, REFINED, *BASES)
COMPARED = {  # (method, passes) -> what it is compared with, each at the threshold that other images chose
    (PLAIN, study_sets.KEEP): {"over_mean": (MEAN, 0)},
    (REFINED, study_sets.KEEP): {
        "over_plain": (PLAIN, study_sets.KEEP),
        "over_one_pass": (REFINED, 0),
        "over_textless": (TEXTLESS, 0),
    },
    (REFINED, 0): {"over_textless": (TEXTLESS, 0)},
}
for keep in KEEPS[:-1]:
    COMPARED[REFINED, keep] = {"over_most_passes": (REFINED, study_sets.KEEP)}


def with_passes(encoding: vlscore.Encoding, keep: int) -> vlscore.Encoding:
    """The encoding with fewer masked passes: the embeddings of the other maps are predicted."""
    rows = vlscore.select_maps(encoding.maps, keep)
    # A stored map is rounded, so that one may be selected that was not when it was encoded.
    rows = rows[torch.isin(rows, encoding.indices)]
    embeddings = vlscore.predict_embeddings(encoding.maps, rows, encoding.mask_embeddings)
    return replace(encoding, indices=rows, mask_embeddings=embeddings)


def without_passes(model, plain, refined, text) -> dict[str, tuple]:
    """The heat map of each method without a masked pass, and the encoding to cut boxes with."""
    similarity = model.similarity_map(plain.maps, text).relu()
    found = {PLAIN: (similarity, plain), MEAN: (plain.maps.mean(0).relu(), plain)}
    features, grid = refined.features, refined.features.shape[1:]
    if model.is_vit:
        regions = refined.maps
        everything = (regions / regions.sum((1, 2), keepdim=True)).mean(0)
        heats = vlscore.upsample(similarity, grid), everything
        named, seen = (vlscore.diffuse(each, features) for each in heats)
    else:
        no_masks = torch.zeros(len(refined.maps))
        mean = vlscore.gather_evidence(refined.scales, no_masks, text, grid)[2]
        seeds = vlscore.locate_seed(refined.scales, None, text, grid), vlscore.min_max(mean)
        named, seen = (vlscore.sharpen(each, features) for each in seeds)
    sides = refined.input_size  # `refine` enlarges its maps in this way
    heats = {REFINED: vlscore.upsample(named, sides), TEXTLESS: vlscore.upsample(seen, sides)}
    return found | {method: (heat, refined) for method, heat in heats.items()}


def find_one_pass(model, path, plain, refined, text) -> dict[str, tuple]:
    """The heat map of each of `ONE_PASS` for a ViT, and the encoding to cut boxes with."""
    grid, sides, found = refined.features.shape[1:], refined.input_size, {}
    for name, find_map in ONE_PASS_MAPS.items():
        heat = find_map(model, path, text).relu()
        spread = vlscore.diffuse(vlscore.upsample(heat, grid), refined.features)
        found |= {name: (heat, plain), f"{name}, refined": (vlscore.upsample(spread, sides), refined)}
    return found


def least_for_all(count: int) -> float:
    """The smallest of `KEEPS` that encodes all of so many maps; more would be the same."""
    return min((keep for keep in KEEPS if keep >= count), default=float("inf"))


def find_heats(model, plain, refined, text, passes: int | None) -> dict[str, tuple]:
    """The heat map of each method at a number of masked passes, None for all; none where maps are fewer."""
    pairs = {REFINED: refined}
    if model.is_vit:
        pairs[PLAIN] = plain
    if passes is not None:
        pairs = {
            name: with_passes(each, passes)
            for name, each in pairs.items()
            if passes <= least_for_all(len(each.maps))
        }
    if not model.is_vit and pairs:
        pairs[PLAIN] = pairs[REFINED].without_refinement()
    return {
        method: (vlscore.saliency(encoding, text, encoding.temperature), encoding)
        for method, encoding in pairs.items()
    }


def judge(heat, encoding: vlscore.Encoding, ask: study_sets.Ask) -> dict:
    """IoU and number of objects found at each CAM threshold, and where the peak is; None finds nothing."""
    found = results.compare_boxes(vlscore.sweep_boxes(heat, encoding, THRESHOLDS), ask.boxes)
    return found | {
        "in_box": heat is not None and study_sets.is_in_box(heat, encoding, ask),
        "on_side": heat is not None and study_sets.is_on_side(heat, encoding, ask),
    }


@torch.inference_mode()
def measure(name: str, exact: frozenset, ask: study_sets.Ask) -> dict:
    """(method, passes) -> its `judge` for one prompt; all passes for the images in ``exact`` alone."""
    model, text = study_sets.load(name), study_sets.embed_ask(name, ask)
    found = {}
    for keep in (study_sets.KEEP, None) if ask.path in exact else (study_sets.KEEP,):
        options = vlscore.EncodingOptions(keep=keep, refined=True)
        refined = study_sets.read(name, ask.path, options)
        plain = refined.without_refinement()
        if model.is_vit:
            plain = study_sets.read(name, ask.path, replace(options, refined=False))
        if keep is None:
            heats = {None: find_heats(model, plain, refined, text, None)}
        else:
            heats = {0: without_passes(model, plain, refined, text)}
            if model.is_vit:
                heats[0] |= find_one_pass(model, ask.path, plain, refined, text)
            heats |= {passes: find_heats(model, plain, refined, text, passes) for passes in KEEPS}
        for passes, methods in heats.items():
            found |= {(method, passes): judge(*pair, ask) for method, pair in methods.items()}
    return found


def find_own_threshold(name: str, method: str, passes: int | None) -> float | None:
    """The CAM threshold that other images chose for a method; None if none did.

    It is the model's own, or for what needs no masked pass, the one that `choose_refinement.py` found best.
    """
    model = study_sets.load(name)
    if passes != 0:
        return {PLAIN: model.threshold, REFINED: model.refined_threshold}.get(method)
    variant = {MEAN: choose_refinement.MEAN, REFINED: ONE_PASS, TEXTLESS: choose_refinement.TEXTLESS}.get(
        method
    )
    rows = json.loads(choose_refinement.OUT.read_text())["variants"] if name == MODELS[0] else []
    return next((row["threshold"] for row in rows if row["variant"] == variant), None)


def find_own_hits(name: str, records: list[dict]) -> dict[tuple, np.ndarray]:
    """(method, passes) -> whether each image that has it is hit at the threshold that other images chose."""
    hits = {}
    for key in {key for record in records for key in record}:
        own = find_own_threshold(name, *key)
        if own in THRESHOLDS:
            place = THRESHOLDS.index(own)
            hits[key] = np.array([record[key]["iou"][place] > 0.5 for record in records if key in record])
    return hits


def compare_at_own_thresholds(key: tuple, own: dict[tuple, np.ndarray], asks: list[study_sets.Ask]) -> dict:
    """Paired differences of one method to others, and to the best constant box.

    Args:
        key: the method and its masked passes.
        own: from `find_own_hits`.
        asks: n prompts.
    """
    others = {name: other for name, other in COMPARED.get(key, {}).items() if other in own}
    if key not in own or not others:
        return {}
    found = {name: vlscore.paired_difference(own[key], own[other]) for name, other in others.items()}
    return found | {"over_constant": vlscore.paired_difference(own[key], constant_hits(asks))}


def table(name: str, asks: list[study_sets.Ask], records: list[dict]) -> list[dict]:
    """A row for each method and number of passes of a model, with its paired differences.

    A gain is over the same method without a masked pass.  A row is also compared with the most passes of its
    method, with what needs no masked pass, and refined with plain at as many passes.  Where other images
    chose thresholds, some are also compared at these.
    """
    own = find_own_hits(name, records)
    rows, keys = [], sorted({key for record in records for key in record}, key=order)
    for method, passes in keys:
        base = BASES.get(method, method)
        most = max(count for each, count in keys if each == method and count is not None)
        here = [n for n, record in enumerate(records) if (method, passes) in record]

        def look_at(*key, here=here):
            return look([records[n][key] for n in here])

        (hit, peak, place), (base_hit, base_peak, _) = look_at(method, passes), look_at(base, 0)
        iou = np.array([records[n][method, passes]["iou"] for n in here])
        found = [records[n][method, passes]["found"][place] for n in here]
        of_each = np.concatenate([np.arange(len(asks[n].boxes)) < count for n, count in zip(here, found)])
        row = {
            "method": method,
            "passes": "all" if passes is None else passes,
            "images": len(here),
            "threshold": THRESHOLDS[place],
            "gt_known": vlscore.share_with_interval(hit),
            "gt_known_at_own_threshold": share_of(own.get((method, passes))),
            "at_own_thresholds": compare_at_own_thresholds((method, passes), own, asks),
            "v2": vlscore.rounded(vlscore.max_box_acc_v2(iou)),
            "objects_found": vlscore.share_with_interval(of_each),
            "peak_in_object": vlscore.share_with_interval(peak),
            "gain": vlscore.paired_difference(hit, base_hit),
            "peak_gain": vlscore.paired_difference(peak, base_peak),
            "over_most_passes": vlscore.paired_difference(hit, look_at(method, most)[0]),
        }
        if passes != 0:
            free = [each for each, base in BASES.items() if base == method and (each, 0) in keys]
            row["over"] = {each: vlscore.paired_difference(hit, look_at(each, 0)[0]) for each in free}
        if method == REFINED and all((PLAIN, passes) in records[n] for n in here):
            row["over_plain"] = vlscore.paired_difference(hit, look_at(PLAIN, passes)[0])
        if asks[0].side is not None:
            row["peak_on_side"] = vlscore.share_with_interval(
                np.array([records[n][method, passes]["on_side"] for n in here])
            )
        rows.append(row)
    return rows


def share_of(hits: np.ndarray | None) -> dict | None:
    return None if hits is None else vlscore.share_with_interval(hits)


def order(key: tuple) -> tuple:
    method, passes = key
    return METHODS.index(method), float("inf") if passes is None else passes


def look(judged: list[dict]) -> tuple[np.ndarray, np.ndarray, int]:
    """Whether each image is hit at the best threshold, whether its peak is in an object; the threshold."""
    iou = np.array([each["iou"] for each in judged])  # (n, A)
    place = int((iou > 0.5).mean(0).argmax())
    return iou[:, place] > 0.5, np.array([each["in_box"] for each in judged]), place


def read_sets(name: str, root) -> dict[str, list[study_sets.Ask]]:
    """The prompts that a model is asked: photos, or scenes; of the large sets the first folds or scenes."""
    if name != MODELS[0]:
        return {kind: asks[:60] for kind, asks in study_sets.scene_asks(study_sets.SCENES).items()}
    found = study_sets.photo_asks(root, ("kangaroo", "raccoon", "pairs", "imagenet"))
    found["unknown"] = study_sets.make_unknown(found)
    folds = {"pairs": 2, "imagenet": 1}
    return {kind: [ask for ask in asks if ask.fold < folds.get(kind, 5)] for kind, asks in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("compare_passes.py", description=__doc__.splitlines()[0])
    parser.add_argument("root", help="the folder of the sets of photos")
    parser.add_argument("--models", default=",".join(MODELS), help="some of the models, separated by commas")
    options = parser.parse_args(argv)
    try:
        result = json.loads(OUT.read_text()) if OUT.exists() else {}
        for name in options.models.split(","):
            found = result.setdefault(name, {})
            for kind, asks in read_sets(name, options.root).items():
                if kind in found:
                    continue
                exact = frozenset(ask.path for ask in study_sets.exact_part(kind, asks))
                records = study_sets.measure_all(partial(measure, name, exact), asks, f"{name}, {kind}")
                found[kind] = {"images": len(asks), "rows": table(name, asks, records)}
                vlscore.write_whole(OUT, (json.dumps(result, indent=1) + "\n").encode())
    except vlscore.VLScoreError as error:
        print(f"compare_passes.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("compare_passes.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
