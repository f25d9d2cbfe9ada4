"""Measure how well `p_absent` tells absent words, by masked passes and calibration: data/presence.json.

    python scripts/measure_presence.py ROOT       # from the encodings of `study_sets.py`, two minutes

Each photo is asked for 50 words that it does not show, as far as its class tells, and for its class.  A
word's fit may be high on every photo.  Calibration subtracts the mean of a text's fits over the hand-boxed
photos, and may divide by a power of their standard deviation; it uses no label.  With fewer masked passes,
the best of fewer masked images enters a fit, and with none the whole image alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import study_sets
import torch
from compare_passes import KEEPS, with_passes
from tqdm import tqdm

import vlscore

MASKS = (0, *KEEPS)
OUT = Path(__file__).parents[1] / "data" / "presence.json"
MODEL = "lite0-minilm"
EVERY = 3  # of ImageNet's photos, one in so many is asked
KEEP = 64  # masks of the photos that calibrate
ABSENT = 0.05  # above it, `localize` calls a text absent
POWERS = {
    "not calibrated": None,
    "mean": 0.0,
    "mean and root of the deviation": 0.5,
    "mean and deviation": 1.0,
}
# fmt: off
WORDS = [
    "candle", "snow", "volcano", "zebra", "piano", "violin", "umbrella", "airplane", "bicycle", "guitar",
    "lamp", "clock", "shoe", "banana", "pizza", "castle", "bridge", "waterfall", "mushroom", "spider",
    "shark", "whale", "penguin", "owl", "tiger", "elephant", "tractor", "bus", "train", "balloon",
    "sunglasses", "hat", "keyboard", "microscope", "telescope", "anchor", "fountain", "tent", "ladder",
    "bell", "drumstick", "desk", "sofa", "pillow", "bottle", "vase", "book", "pencil", "beach", "mountain",
]
# fmt: on


def find_fits(encoding: vlscore.Encoding, texts: torch.Tensor) -> np.ndarray:
    """The fit of each text (N, D) to an image, see `vlscore.p_absent`: (N,)."""
    fits = texts @ encoding.image_embedding
    if encoding.has_masks:
        fits = fits + (encoding.mask_embeddings[encoding.indices] @ texts.T).amax(0)
    return fits.double().numpy()


def calibrate(fits: np.ndarray, reference: np.ndarray, power: float | None) -> np.ndarray:
    """Calibrate fits (n, N) by those of the same texts on other photos (m, N); None leaves them alone."""
    if power is None:
        return fits
    return (fits - reference.mean(0)) / reference.std(0, ddof=1) ** power


def find_ranks(fits: np.ndarray, others: np.ndarray) -> np.ndarray:
    """p of each text in each photo, (n, M), by its fit (n, M) among those of other texts (n, N)."""
    better = others[:, None] > fits[..., None] + 1e-6
    return (1 + better.sum(-1)) / (1 + others.shape[1])


class Presence(NamedTuple):
    """p of each text in n photos.

    Attributes:
        absent: of each of M words, (n, M).
        shown: of the photo's class, (n,).
    """

    absent: np.ndarray
    shown: np.ndarray

    def called_present(self) -> np.ndarray:
        """Which texts are called present: (n, M + 1) of bool."""
        return np.column_stack([self.absent, self.shown]) <= ABSENT


def judge(fits: np.ndarray, count: int) -> Presence:
    """p of each word and of each photo's class, by the fits (n, N) of other texts, words and classes.

    Args:
        count: of the other texts.
    """
    others, words, classes = np.split(fits, [count, count + len(WORDS)], axis=1)
    own = classes[np.arange(len(fits)), np.arange(len(fits))][:, None]
    return Presence(find_ranks(words, others), find_ranks(own, others)[:, 0])


def describe(found: Presence, is_absent: np.ndarray) -> dict:
    """How many absent texts pass, on average and word by word, and how many shown classes do not.

    Args:
        is_absent: whether the photo's class is another one than the word, (n, M) of bool.
    """
    passed = np.where(is_absent, found.absent <= ABSENT, np.nan)
    by_word = np.nanmean(passed, axis=0)
    worst = int(by_word.argmax())
    return {
        "passed": vlscore.rounded(np.nanmean(passed)),
        "deviation over words": vlscore.rounded(by_word.std(ddof=1)),
        "worst word": {"word": WORDS[worst], "passed": vlscore.rounded(by_word[worst])},
        "missed": vlscore.share_with_interval(found.shown > ABSENT),
    }


def compare_masks(fits: dict[int, np.ndarray], count: int, is_absent: np.ndarray) -> list[dict]:
    """A row for each number of masked passes, with the share of present texts that most passes call present.

    Args:
        fits: masked passes -> the fits (n, N) of ``count`` other texts, words and classes.
    """
    found = {masks: judge(each, count) for masks, each in fits.items()}
    best = found[max(found)].called_present()
    return [
        {"masks": masks}
        | describe(each, is_absent)
        | {"also present with most": vlscore.rounded(best[each.called_present()].mean())}
        for masks, each in found.items()
    ]


@torch.inference_mode()
def measure(root) -> dict[str, list[dict]]:
    """The rows of all calibrations, with the most masks, and of all numbers of masks."""
    model = study_sets.load(MODEL)
    asks = study_sets.photo_asks(root, ("imagenet",))["imagenet"][::EVERY]
    others = vlscore.embed_other_words(model)
    words = model.encode_text([vlscore.TEMPLATE.format(word) for word in WORDS]).cpu()
    labels = torch.stack([study_sets.embed_class(MODEL, ask.names) for ask in asks])
    texts = vlscore.unit(torch.cat([others, words, labels]))
    photos = vlscore.hand_boxed_photos(OUT.parent / "photos").values()
    reference = np.stack(
        [
            find_fits(vlscore.encode(model, each.path, keep=KEEP, precision="float32"), texts)
            for each in tqdm(photos, "calibration")
        ]
    )
    options = vlscore.EncodingOptions(keep=study_sets.KEEP, refined=True)
    found = {masks: [] for masks in MASKS}
    for ask in tqdm(asks, "ImageNet"):
        encoding = study_sets.read(MODEL, ask.path, options)
        for masks in MASKS:
            found[masks].append(find_fits(with_passes(encoding, masks), texts))
    fits = {masks: np.stack(each) for masks, each in found.items()}
    is_absent = np.array([[all(word not in name for name in ask.names) for word in WORDS] for ask in asks])
    calibrated = {name: calibrate(fits[study_sets.KEEP], reference, power) for name, power in POWERS.items()}
    return {
        "calibration": [
            {"calibration": name} | describe(judge(each, len(others)), is_absent)
            for name, each in calibrated.items()
        ],
        "masks": compare_masks(fits, len(others), is_absent),
    }


def study(root: str) -> None:
    """Measure, and write what was found."""
    vlscore.write_whole(OUT, (json.dumps(measure(root), indent=1) + "\n").encode())


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    return study_sets.run_study("measure_presence.py", __doc__, study, argv)


if __name__ == "__main__":
    sys.exit(main())
