"""Try what else might refine a CNN's boxes: data/ideas.json (chapter 06).

    python scripts/compare_ideas.py ROOT  # from the encodings of `study_sets.py`, half an hour on two cores

Each idea changes the module's refinement in one place.  All are measured on the sets that chose the
refinement, of ImageNet's photos two folds, each at the CAM threshold that is best for it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property

import choose_refinement
import numpy as np
import results
import study_sets
import torch
import torch.nn.functional as F
from choose_copies import measure_part
from choose_refinement import THRESHOLDS
from skimage.filters import threshold_otsu
from skimage.measure import label

import vlscore

OUT = choose_refinement.OUT.with_name("ideas.json")
NEIGHBOURS = {  # the fine layer's: one finer, one coarser
    "lite0-minilm": ("block4", "block10"),
    "scenes-rn": ("layer1", "layer3"),
}
SMALL = 0.2  # of the image: the largest box that is looked at again
WINDOW, LEAST_WINDOW = 1.8, 0.24  # its sides by those of the box, and at least so much of the image's
CELLS = 28  # on a side of the window's features, where no copy of it is read
RADIUS, SMOOTHING = 8, 0.01  # of the guided filter, in pixels and in squared grey values


@dataclass
class Question:
    """A prompt for an image, with what the module's refinement makes of it.

    Attributes:
        model: the model.
        ask: the prompt.
        encoding: of the image, refined.
        text: (D,), the prompt's embedding.
        w: (C,), the weights of the maps.
    """

    model: vlscore.Model
    ask: study_sets.Ask
    encoding: vlscore.Encoding
    text: torch.Tensor
    w: torch.Tensor

    @property
    def features(self) -> torch.Tensor:
        return self.encoding.features

    @cached_property
    def evidence(self) -> torch.Tensor:
        return self.gather(*self.encoding.scales)

    @cached_property
    def heat(self) -> torch.Tensor:
        """The module's refined map, in cells."""
        return self.refine()

    @cached_property
    def pixels(self) -> dict[float, torch.Tensor]:
        """The image at both of the sides that refinement reads."""
        return {
            size: self.model.preprocess(self.ask.path, size=study_sets.round_side(self.model, size))
            for size in (1, 3)
        }

    @cached_property
    def neighbours(self) -> list[torch.Tensor]:
        """The features of the layers beside the fine one, (F, h, w) on its grid."""
        _, *found = self.read(self.pixels[3], *NEIGHBOURS[self.model.name])
        return [unit(resize(pool(each), self.features.shape[1:])) for each in found]

    def gather(self, *scales: vlscore.Scale, grid=None) -> torch.Tensor:
        return vlscore.gather_evidence(scales, self.w, self.text, grid or self.features.shape[1:])

    def refine(self, evidence=None, features=None) -> torch.Tensor:
        """The refined map of other evidence or features, in cells."""
        evidence = self.evidence if evidence is None else evidence
        seed = vlscore.combine_evidence(evidence, vlscore.weigh_evidence(evidence))
        return vlscore.sharpen(seed, self.features if features is None else features)

    def read(self, pixels, *layers: str) -> tuple[torch.Tensor, ...]:
        """The last layer's maps of an image (3, T, T), and the features of other layers, in one pass."""
        wanted = [(layer, "activation") for layer in (self.model.layers[-1], *layers)]
        return tuple(found[0] for found in self.model.read_layers(pixels[None], wanted))

    def scale(self, maps) -> vlscore.Scale:
        return vlscore.Scale(maps, self.model.cell_embeddings(maps))


# ── Ideas: each makes a heat map of a question ─────────────────────────────────────────────────────


def as_it_is(question: Question) -> torch.Tensor:
    return question.heat


def mirror_plain_size(question: Question) -> torch.Tensor:
    """The seed also reads the plain size from right to left."""
    (maps,) = question.read(question.pixels[1].flip(2))
    return question.refine(question.evidence + question.gather(question.scale(maps.flip(2))))


def mirror_all(question: Question) -> torch.Tensor:
    """Seed and features are also read from right to left."""
    (plain,) = question.read(question.pixels[1].flip(2))
    larger, features = question.read(question.pixels[3].flip(2), question.model.fine_layer)
    scales = (question.scale(maps.flip(2)) for maps in (plain, larger))
    features = unit(pool(features).flip(2))
    return question.refine(question.evidence + question.gather(*scales), unit(question.features + features))


def shift_plain_size(question: Question) -> torch.Tensor:
    """The seed also reads the plain size, moved by half a cell to the right, down, and both."""
    step, evidence = question.model.stride // 2, question.evidence
    pixels, (rows, columns) = question.pixels[1], question.features.shape[1:]
    for down, right in ((0, 1), (1, 0), (1, 1)):
        (maps,) = question.read(move(pixels, down * step, right * step))
        found = question.gather(question.scale(maps))
        back = [
            -round(each * step * cells / pixels.shape[1]) for each, cells in ((down, rows), (right, columns))
        ]
        evidence = evidence + move(found, *back) / 3
    return question.refine(evidence)


def add_features(question: Question, *others: torch.Tensor) -> torch.Tensor:
    """The discriminant also reads other features."""
    return question.refine(features=unit(torch.cat([question.features, *others])))


def add_finer_layer(question: Question) -> torch.Tensor:
    return add_features(question, question.neighbours[0])


def add_coarser_layer(question: Question) -> torch.Tensor:
    return add_features(question, question.neighbours[1])


def add_both_layers(question: Question) -> torch.Tensor:
    return add_features(question, *question.neighbours)


def filter_by_edges(question: Question) -> torch.Tensor:
    """The heat map follows the photo's edges, by a guided filter (He et al. 2013, equations 5, 6 and 8)."""
    guide = vlscore.min_max(question.pixels[1].mean(0))
    heat = vlscore.upsample(question.heat, guide.shape)
    mean, mean_heat = smooth(guide), smooth(heat)
    slope = (smooth(guide * heat) - mean * mean_heat) / (smooth(guide * guide) - mean**2 + SMOOTHING)
    return (smooth(slope) * guide + smooth(mean_heat - slope * mean)).relu()


def discriminate_again(question: Question) -> torch.Tensor:
    """A small object is told from what is around it, and no longer from the whole image."""
    window = find_window(question)
    if window is None:
        return question.heat
    seed = vlscore.min_max(crop(question.heat[None], window, CELLS)[0])
    return paste(vlscore.sharpen(seed, unit(crop(question.features, window, CELLS))), window, question.heat)


def zoom_in(question: Question) -> torch.Tensor:
    """The part around a small object is read again, with a side of 2 S."""
    window = find_window(question)
    if window is None:
        return question.heat
    whole = question.model.preprocess(question.ask.path, size=study_sets.round_side(question.model, 6))
    part = crop(whole, window, study_sets.round_side(question.model, 2))
    maps, features = question.read(part, question.model.fine_layer)
    before = crop(question.evidence, window, features.shape[1])
    before = before / before.amax((1, 2), keepdim=True).clamp_min(1e-9)
    evidence = 2 * before + question.gather(question.scale(maps), grid=features.shape[1:])
    return paste(question.refine(evidence, unit(features)), window, question.heat)


IDEAS = {  # name -> what makes the heat map, and the passes that it needs beside the module's
    "as it is": (as_it_is, 0),
    "the plain size mirrored too": (mirror_plain_size, 1),
    "both sizes and the features mirrored too": (mirror_all, 10),
    "the plain size shifted by half a cell, three times": (shift_plain_size, 3),
    "features of a finer layer too": (add_finer_layer, 0),
    "features of a coarser layer too": (add_coarser_layer, 0),
    "features of both layers too": (add_both_layers, 0),
    "heat along the photo's edges (guided filter)": (filter_by_edges, 0),
    "small objects: discriminant of the part around": (discriminate_again, 0),
    "small objects: the part around read again at 2 S": (zoom_in, 4),
}
BASE, OTSU = "as it is", "threshold from the heat itself (Otsu)"


# ── Maps ───────────────────────────────────────────────────────────────────────────────────────────


def unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features, dim=0)


def pool(features: torch.Tensor) -> torch.Tensor:
    """Halve features (F, h, w) until their sides have at most `study_sets.FINEST` cells."""
    while features.shape[-1] > study_sets.FINEST:
        features = F.avg_pool2d(features, 2)
    return features


def resize(maps: torch.Tensor, size) -> torch.Tensor:
    """Interpolate (K, h, w)."""
    return F.interpolate(maps[None], size=tuple(size), mode="bilinear", align_corners=False)[0]


def move(maps: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Move (K, h, w) by whole cells; what comes in repeats the border."""
    (h, w), (y, x) = maps.shape[1:], (abs(down), abs(right))
    wide = F.pad(maps[None], (x, x, y, y), mode="replicate")[0]
    return wide[:, y - down : y - down + h, x - right : x - right + w]


def smooth(heat: torch.Tensor) -> torch.Tensor:
    """The mean of (h, w) over the square around each pixel."""
    wide = F.pad(heat[None, None], (RADIUS,) * 4, mode="replicate")
    return F.avg_pool2d(wide, 2 * RADIUS + 1, 1)[0, 0]


def find_window(question: Question) -> tuple[float, float, float, float] | None:
    """The part around the hottest component, (y0, y1, x0, x1) in [0, 1]; None if this is large."""
    side = question.model.input_size
    heat = vlscore.min_max(vlscore.upsample(question.heat, side)).numpy()
    parts = label(heat > question.model.refined_threshold, connectivity=1)
    rows, columns = np.nonzero(parts == parts.flat[heat.argmax()])
    ends = [(each.min() / side, (each.max() + 1) / side) for each in (rows, columns)]
    if np.prod([high - low for low, high in ends]) >= SMALL:
        return None
    window = []
    for low, high in ends:
        middle, half = (low + high) / 2, max(WINDOW * (high - low), LEAST_WINDOW) / 2
        window += [max(middle - half, 0.0), min(middle + half, 1.0)]
    return tuple(window)


def find_cells(window, side: int) -> tuple[slice, slice]:
    """The pixels of a window in an image of so many pixels on a side."""
    y0, y1, x0, x1 = (round(edge * side) for edge in window)
    return slice(y0, y1), slice(x0, x1)


def crop(maps: torch.Tensor, window, side: int) -> torch.Tensor:
    """Cut a window from maps (K, h, w) and interpolate it to so many cells on a side."""
    fine = maps if maps.shape[-1] > 4 * side else resize(maps, (4 * side, 4 * side))
    part = fine[(slice(None), *find_cells(window, fine.shape[-1]))]
    return F.interpolate(part[None], size=(side, side), mode="bilinear", antialias=True)[0]


def paste(part: torch.Tensor, window, heat: torch.Tensor) -> torch.Tensor:
    """Put a window's heat in the place of what was there: (S', S')."""
    side = 8 * heat.shape[-1]
    found = vlscore.min_max(vlscore.upsample(heat, side)).clone()
    rows, columns = find_cells(window, side)
    found[rows, columns] = vlscore.upsample(part, found[rows, columns].shape)
    return found


# ── Measurement ────────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def measure(name: str, ask: study_sets.Ask) -> dict[str, dict]:
    """What the boxes of each idea are worth for one prompt, see `choose_refinement.judge`."""
    model, text = study_sets.load(name), study_sets.embed_ask(name, ask)
    options = vlscore.EncodingOptions(keep=study_sets.KEEP, refined=True)
    encoding = study_sets.read(name, ask.path, options)
    w = vlscore.weights(encoding, text, encoding.temperature)
    if w is None:  # no mask beats the empty image
        nothing = choose_refinement.judge(None, encoding, ask)
        return dict.fromkeys((*IDEAS, OTSU), nothing)
    question, found = Question(model, ask, encoding, text, w), {}
    for idea, (make, _) in IDEAS.items():
        heat = vlscore.upsample(make(question), encoding.input_size)
        found[idea] = choose_refinement.judge(heat, encoding, ask)
    return found | {OTSU: judge_by_otsu(question)}


def judge_by_otsu(question: Question) -> dict:
    """The map at multiples of the threshold that parts its values best in two classes (Otsu 1979)."""
    heat = vlscore.min_max(vlscore.upsample(question.heat, question.encoding.input_size))
    scale = float(threshold_otsu(heat.numpy())) / question.model.refined_threshold
    thresholds = [min(max(each * scale, 0.01), 0.99) for each in THRESHOLDS]
    sweep = vlscore.sweep_boxes(heat, question.encoding, thresholds)
    on_side = study_sets.is_on_side(heat, question.encoding, question.ask)
    return results.compare_boxes(sweep, question.ask.boxes) | {"on_side": on_side}


def compare(found: dict[str, dict[str, choose_refinement.Rows]]) -> list[dict]:
    """A row for each idea: its accuracy, its passes, and what it gains over the module on each set."""
    rows = choose_refinement.compare_with(BASE, found)
    for row in rows:
        photos = found[row["variant"]]["imagenet"]
        place = THRESHOLDS.index(row["threshold"])
        small = photos.share < results.SMALL
        row["passes"] = IDEAS.get(row["variant"], (None, 0))[1]
        row["small"] = {"images": int(small.sum()), "hits": int((photos.iou[small, place] > 0.5).sum())}
    return rows


def study(root: str) -> None:
    """Compare the ideas, and write what was found."""
    found = measure_part(root, measure)
    vlscore.write_whole(OUT, (json.dumps(compare(found), indent=1) + "\n").encode())


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    return study_sets.run_study("compare_ideas.py", __doc__, study, argv)


if __name__ == "__main__":
    sys.exit(main())
