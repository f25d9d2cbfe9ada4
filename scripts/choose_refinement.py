"""Choose parts and constants of the refinement by cross-validation: data/refinement.json (chapters 04, 06).

    python scripts/choose_refinement.py ROOT  # from the encodings of `study_sets.py`, half an hour

Every variant is measured on ImageNet's photos, kangaroos, pairs of photos, words that the model does not
know, and the tuning scenes.  On four of five folds, the variant and the CAM threshold are chosen that are
best in the mean over the sets, of GT-known localization and MaxBoxAccV2; they are measured on the fifth.  So
no image chose what is measured on it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import results
import study_sets
import torch

import vlscore

OUT = Path(__file__).parents[1] / "data" / "refinement.json"
THRESHOLDS = (*(n / 20 for n in range(2, 8)), *(n / 40 for n in range(16, 27)), 0.7, 0.75, 0.8, 0.85)
MODEL, SCENES_MODEL = "lite0-minilm", "scenes-rn"
SETS = ("imagenet", "kangaroo", "pairs", "unknown", "scenes")
PLAIN, MEAN = "plain VL-Score", "mean of all maps"  # baselines, which are no variants to choose


class Variant(NamedTuple):
    """A way to refine.

    Attributes:
        powers: of the evidence of masks, similarity and means in the seed, see `weigh_evidence`.
        agreement: see `weigh_evidence`.
        checked_by: the evidence that the similarity map has to agree with: masks or means.
        sizes: of the copies that the seed comes from, in S.
        fine: of the copy whose fine layer tells the object from the background, in S.
        how: see `sharpen`.
        prominence: of peaks, see `split_instances`; None for the model's.
    """

    powers: tuple[float, float, float] = (3, 2, 1)
    agreement: float = 4
    checked_by: str = "masks"
    sizes: tuple[float, ...] = (1, 3)
    fine: float = 3
    how: vlscore.Sharpening = vlscore.Sharpening()
    prominence: float | None = None


def sharpening(**changes) -> Variant:
    return Variant(how=vlscore.Sharpening()._replace(**changes))


def without_masks(similarity: float, means: float, agreement: float = 0) -> Variant:
    return Variant((0, similarity, means), agreement, checked_by="means")


CHOSEN = "chosen: masks³·similarity²·means by agreement, 1 and 3 S, twice"
FORMER = "former: masks·similarity, 1 and 2.5 S, once"
ONE_PASS, TEXTLESS = "similarity·means, no masked pass", "means, no masked pass and no text"
CHECKED = "similarity²·means by agreement with the means, no masked pass"
FORMER_SIDE = 2.5  # of its copy, in S
VARIANTS = {
    FORMER: Variant(
        (1, 1, 0),
        agreement=0,
        sizes=(1, FORMER_SIDE),
        fine=FORMER_SIDE,
        how=vlscore.Sharpening(1, 2, 1),
        prominence=0.2,
    ),
    CHOSEN: Variant(),
    "similarity trusted always": Variant(agreement=0),
    "agreement 8": Variant(agreement=8),
    "masks·similarity·means": Variant((1, 1, 1)),
    "masks³·means": Variant((3, 0, 1)),
    "masks": Variant((1, 0, 0)),
    "similarity, no masked pass": without_masks(1, 0),
    ONE_PASS: without_masks(1, 1),
    "similarity·means by agreement with the means, no masked pass": without_masks(1, 1, agreement=4),
    CHECKED: without_masks(2, 1, agreement=4),
    TEXTLESS: without_masks(0, 1),
    "1 S": Variant(sizes=(1,)),
    "3 S": Variant(sizes=(3,)),
    "not sharpened": sharpening(repeats=0),
    "sharpened once": sharpening(repeats=1),
    "sharpened three times": sharpening(repeats=3),
    "confidence 4": sharpening(confidence=4.0),
    "confidence 6": sharpening(confidence=6.0),
    "confidence 10": sharpening(confidence=10.0),
    "border 5": sharpening(border=5.0),
    "border 25": sharpening(border=25.0),
    "shrinkage 0.5": sharpening(shrinkage=0.5),
    "shrinkage 0.95": sharpening(shrinkage=0.95),
    "shrinkage 1": sharpening(shrinkage=1.0),
    "prominence 0.1": Variant(prominence=0.1),
    "components left whole": Variant(prominence=1.0),
}

# What is cross-validated: the choice of all of it, or of the CAM threshold of one method alone.
RUNS = {
    "choice": None,
    "project": CHOSEN,
    "former": FORMER,
    "one_pass": ONE_PASS,
    "checked": CHECKED,
    "textless": TEXTLESS,
    "plain": PLAIN,
    "mean": MEAN,
}

Copies = dict[float, study_sets.Copy]  # by their size in S


def stored_copies(encoding: vlscore.Encoding) -> Copies:
    """The copies that a refined encoding has: the plain size, and 3 S with its features."""
    plain, larger = encoding.scales
    return {1: study_sets.Copy(plain), 3: study_sets.Copy(larger, encoding.features)}


def read_copies(model: vlscore.Model, path, encoding: vlscore.Encoding) -> Copies:
    """The copies of a refined encoding, and the one that only the former refinement reads."""
    return stored_copies(encoding) | {FORMER_SIDE: study_sets.read_copy(model, path, FORMER_SIDE)}


def find_seed(copies: Copies, w, text, variant: Variant) -> torch.Tensor:
    """The seed of a variant: (h, w) in [0, 1]."""
    scales, features = [copies[size].scale for size in variant.sizes], copies[variant.fine].features
    evidence = vlscore.gather_evidence(scales, w, text, features.shape[1:])
    powers = variant.powers
    if variant.checked_by == "means":  # `weigh_evidence` compares the similarity map with what stands first
        evidence, powers = evidence.flip(0), powers[::-1]
    return vlscore.combine_evidence(evidence, vlscore.weigh_evidence(evidence, powers, variant.agreement))


def refine(encoding: vlscore.Encoding, copies: Copies, text, variant: Variant) -> torch.Tensor:
    """The heat map of a variant: (S, S) in [0, 1]; zeros where it reads masks and none is kept."""
    w, features = vlscore.weights(encoding, text, encoding.temperature), copies[variant.fine].features
    if not variant.powers[0]:
        w = torch.zeros(len(encoding.maps))
    if w is None:
        return torch.zeros(encoding.input_size, encoding.input_size)
    heat = vlscore.sharpen(find_seed(copies, w, text, variant), features, variant.how)
    return vlscore.upsample(heat, encoding.input_size)


@torch.inference_mode()
def measure(name: str, ask: study_sets.Ask) -> dict:
    """The box IoU (A,) of each variant for one prompt, and whether its peak is on the asked side."""
    encoding = study_sets.read(name, ask.path, vlscore.EncodingOptions(keep=study_sets.KEEP, refined=True))
    copies = read_copies(study_sets.load(name), ask.path, encoding)
    text = study_sets.embed_ask(name, ask)
    whole = encoding.without_refinement()
    heat = vlscore.saliency(whole, text, encoding.temperature)
    found = {PLAIN: judge(heat, whole, ask), MEAN: judge(whole.maps.mean(0).relu(), whole, ask)}
    for variant, settings in VARIANTS.items():
        heat = refine(encoding, copies, text, settings)
        cut = encoding if settings.prominence is None else replace(encoding, prominence=settings.prominence)
        found[variant] = judge(heat, cut, ask)
    return found


def judge(heat, encoding: vlscore.Encoding, ask: study_sets.Ask) -> dict:
    """What a heat map's boxes are worth at each CAM threshold, see `Rows`."""
    on_side = heat is not None and study_sets.is_on_side(heat, encoding, ask)
    sweep = vlscore.sweep_boxes(heat, encoding, THRESHOLDS)
    return results.compare_boxes(sweep, ask.boxes) | {"on_side": on_side}


class Rows(NamedTuple):
    """One method on one set of n prompts, at A thresholds.

    Attributes:
        iou: (n, A), box IoU.
        found: (n, A), objects that have a box of IoU > 0.5.
        ratio: (n, A), area of the nearest box over that of its object.
        on_side: (n,) of bool, whether the peak is in the photo that is asked for.
        objects: (n,), objects in the image.
        share: (n,), of the image, that the largest object's box covers.
        fold: (n,).
    """

    iou: np.ndarray
    found: np.ndarray
    ratio: np.ndarray
    on_side: np.ndarray
    objects: np.ndarray
    share: np.ndarray
    fold: np.ndarray

    def of(self, chosen) -> Rows:
        return Rows(*(each[chosen] for each in self))


def gather(asks: list[study_sets.Ask], records: list[dict]) -> dict[str, Rows]:
    """Method -> its rows on a set."""
    objects = np.array([len(ask.boxes) for ask in asks])
    share = np.array([max(map(results.area, ask.boxes)) / (ask.size[0] * ask.size[1]) for ask in asks])
    fold = np.array([ask.fold for ask in asks])
    found = {}
    for method in records[0]:
        each = (np.array([record[method][key] for record in records]) for key in Rows._fields[:4])
        found[method] = Rows(*each, objects, share, fold)
    return found


def measure_sets(measure, sets: dict[str, list[study_sets.Ask]]) -> dict[str, dict[str, Rows]]:
    """Method -> set -> its rows, from what ``measure(model, ask)`` finds for each prompt, see `judge`."""
    found = {}
    for name, asks in sets.items():
        model = SCENES_MODEL if name == "scenes" else MODEL
        records = study_sets.measure_all(partial(measure, model), asks, name)
        for method, rows in gather(asks, records).items():
            found.setdefault(method, {})[name] = rows
    return found


# ── Choice ─────────────────────────────────────────────────────────────────────────────────────────


def shares(iou: np.ndarray) -> np.ndarray:
    """GT-known localization at each CAM threshold: (A,)."""
    return (iou > 0.5).mean(0)


def choose_thresholds(sets: dict[str, Rows]) -> dict[str, int]:
    """Set -> the place of its CAM threshold: the best of the scenes, or the best in the mean over photos."""
    photos = [name for name in sets if name != "scenes"]
    chosen = {}
    for together in (photos, ["scenes"]):
        if sets.keys() >= set(together):
            mean = np.mean([shares(sets[name].iou) for name in together], axis=0)  # (A,)
            chosen |= dict.fromkeys(together, int(mean.argmax()))
    return chosen


def worth(sets: dict[str, Rows]) -> float:
    """What a variant is chosen by: the mean over sets of GT-known localization and MaxBoxAccV2."""
    at = choose_thresholds(sets)
    found = [(shares(rows.iou)[at[name]], vlscore.max_box_acc_v2(rows.iou)) for name, rows in sets.items()]
    return float(np.mean(found))


def choose(found: dict[str, dict[str, Rows]], keeps) -> str:
    """The best variant, on the rows that ``keeps`` takes of each."""
    variants = {name: sets for name, sets in found.items() if name not in (PLAIN, MEAN)}
    parts = {
        variant: {name: rows.of(keeps(rows.fold)) for name, rows in sets.items()}
        for variant, sets in variants.items()
    }
    return max(parts, key=lambda variant: worth(parts[variant]))


class Run(NamedTuple):
    """What `cross_validate` measured: the rows of each set, in the order of the folds, with their hits.

    Attributes:
        chosen: of each fold, the variant and the CAM threshold of each set.
        rows: set -> `Rows`.
        place: set -> (n,), where in `THRESHOLDS` that of each image's fold stands.
    """

    chosen: list[dict]
    rows: dict[str, Rows]
    place: dict[str, np.ndarray]

    def at(self, name: str, figure: str) -> np.ndarray:
        """A figure (n,) of a set, each image's at the threshold that the other folds chose."""
        return getattr(self.rows[name], figure)[np.arange(len(self.place[name])), self.place[name]]

    def hits(self, name: str) -> np.ndarray:
        return self.at(name, "iou") > 0.5


def cross_validate(found: dict[str, dict[str, Rows]], fixed: str | None = None) -> Run:
    """Choose on four folds, measure on the fifth, five times.

    Args:
        fixed: a method whose CAM threshold alone is chosen.
    """
    chosen, parts, places = [], {}, {}
    for fold in range(study_sets.FOLDS):
        variant = fixed or choose(found, lambda folds, fold=fold: folds != fold)
        at = choose_thresholds({name: rows.of(rows.fold != fold) for name, rows in found[variant].items()})
        for name, rows in found[variant].items():
            parts.setdefault(name, []).append(rows.of(rows.fold == fold))
            places.setdefault(name, []).extend([at[name]] * int((rows.fold == fold).sum()))
        row = {"variant": variant, "thresholds": {name: THRESHOLDS[place] for name, place in at.items()}}
        chosen.append(row)
    rows = {name: Rows(*map(np.concatenate, zip(*each))) for name, each in parts.items()}
    return Run(chosen, rows, {name: np.array(each) for name, each in places.items()})


# ── Tables ─────────────────────────────────────────────────────────────────────────────────────────


def describe(variant: str, sets: dict[str, Rows]) -> dict:
    """A variant's row: at one CAM threshold for all photos, the best on them."""
    at = choose_thresholds(sets)
    row = {"variant": variant, "threshold": THRESHOLDS[at["pairs"]], "sets": {}}
    for name, rows in sets.items():
        row["sets"][name] = {
            "gt_known": vlscore.rounded(shares(rows.iou)[at[name]]),
            "v2": vlscore.rounded(vlscore.max_box_acc_v2(rows.iou)),
        }
    row["sets"]["pairs"]["on_side"] = vlscore.rounded(sets["pairs"].on_side.mean())
    row["worth"] = vlscore.rounded(worth(sets))
    return row


def compare_with(base: str, found: dict[str, dict[str, Rows]]) -> list[dict]:
    """A row for each method by `describe`, with what it gains in GT-known localization over one of them."""
    hits = {}
    for method, sets in found.items():
        at = choose_thresholds(sets)
        hits[method] = {name: rows.iou[:, at[name]] > 0.5 for name, rows in sets.items()}
    rows = []
    for method, sets in hits.items():
        gain = {name: vlscore.paired_difference(each, hits[base][name]) for name, each in sets.items()}
        rows.append(describe(method, found[method]) | {"gain": gain})
    return rows


def summarize_folds(found, constant: dict[str, np.ndarray]) -> dict:
    """The cross-validated figures of the whole choice, and of each method of `RUNS`."""
    runs = {name: cross_validate(found, fixed) for name, fixed in RUNS.items()}
    return {
        name: {
            "chosen": run.chosen,
            "sets": {each: summarize(each, run, runs, constant[each]) for each in SETS},
        }
        for name, run in runs.items()
    }


def summarize(name: str, run: Run, runs: dict[str, Run], constant: np.ndarray) -> dict:
    """A run's figures on one set."""
    rows, hits = run.rows[name], run.hits(name)
    of_each = [np.arange(n) < count for n, count in zip(rows.objects, run.at(name, "found"))]
    small = rows.share < results.SMALL
    ratio = run.at(name, "ratio")[small]
    return {
        "images": len(hits),
        "gt_known": vlscore.share_with_interval(hits),
        "v2": vlscore.rounded(vlscore.max_box_acc_v2(rows.iou)),
        "best_threshold_of_each": vlscore.rounded((rows.iou > 0.5).any(1).mean()),
        "constant_box": vlscore.share_with_interval(constant),
        "above_constant": vlscore.paired_difference(hits, constant),
        "above": {
            other: vlscore.paired_difference(hits, each.hits(name))
            for other, each in runs.items()
            if each is not run
        },
        "on_side": vlscore.share_with_interval(rows.on_side),
        "objects_found": vlscore.share_with_interval(np.concatenate(of_each)),
        "small": {
            "images": int(small.sum()),
            "hits": int(hits[small].sum()),
            "median_ratio": vlscore.rounded(np.median(ratio)) if len(ratio) else None,
        },
    }


def constant_hits(asks: list[study_sets.Ask]) -> np.ndarray:
    """Whether constant boxes, those that are best on the same images, hit each of them: (n,)."""
    hits = [study_sets.constant_hits(asks, share) for share in vlscore.SHARES]
    return max(hits, key=np.mean)


def describe_hard_case(found: dict[str, Rows], chosen: dict[str, float], constant: np.ndarray) -> list[dict]:
    """A row for each method of `RUNS` on pairs asked for by unknown words.

    These prompts chose nothing, but the same pairs with known words are among the sets that chose.

    Args:
        found: method -> its rows on these n prompts.
        chosen: method -> the CAM threshold that all sets of photos chose.
        constant: (n,), whether constant boxes hit.
    """
    rows, ours = [], None
    for method in (CHOSEN, *(each for each in RUNS.values() if each not in (None, CHOSEN))):
        hits = found[method].iou[:, THRESHOLDS.index(chosen[method])] > 0.5
        side = found[method].on_side
        ours = ours or (hits, side)
        row = {"method": method, "threshold": chosen[method], "gt_known": vlscore.share_with_interval(hits)}
        row["on_side"] = vlscore.share_with_interval(side)
        row["chosen_above"] = vlscore.paired_difference(ours[0], hits)
        row["chosen_above_on_side"] = vlscore.paired_difference(ours[1], side)
        row["above_constant"] = vlscore.paired_difference(hits, constant)
        rows.append(row)
    return rows


def measure_hard_case(pairs: list[study_sets.Ask], variants: list[dict]) -> list[dict]:
    """Measure `describe_hard_case` on pairs of photos, at the thresholds of rows by `describe`."""
    asks = [replace(ask, unknown=True) for ask in pairs]
    records = study_sets.measure_all(partial(measure, MODEL), asks, "pairs, unknown words")
    chosen = {row["variant"]: row["threshold"] for row in variants}
    return describe_hard_case(gather(asks, records), chosen, constant_hits(asks))


def study(root: str) -> None:
    """Measure all variants on the tuning sets, and choose one."""
    sets = study_sets.tuning_asks(root)
    found = measure_sets(measure, sets)
    variants = compare_with(CHOSEN, found)
    constant = {name: constant_hits(sorted(asks, key=lambda ask: ask.fold)) for name, asks in sets.items()}
    result = {
        "images": {name: len(asks) for name, asks in sets.items()},
        "variants": variants,
        "best": choose(found, lambda folds: folds >= 0),
        "folds": summarize_folds(found, constant),
        "hard_case": measure_hard_case(sets["pairs"], variants),
    }
    vlscore.write_whole(OUT, (json.dumps(result, indent=1) + "\n").encode())


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    return study_sets.run_study("choose_refinement.py", __doc__, study, argv)


if __name__ == "__main__":
    sys.exit(main())
