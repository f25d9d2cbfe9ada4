"""Measure what each step between Score-CAM's loop and the fast path saves: data/bench_ladder.json.

    python scripts/bench_ladder.py            # lite0-minilm, one photo; some minutes on two cores

All steps run in float32 on this machine, each in a process of its own.  A short time is the median of five.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path

import bench
import torch

import vlscore

OUT = Path(__file__).parents[1] / "data" / "bench_ladder.json"
MODEL, PHOTO, PROMPT = "lite0-minilm", "chelsea", "an image of a cat."
BATCH = 16
AGAIN = 4  # further runs of a step of less than 10 seconds
LOOP, FURTHER = "plain loop, one masked image a pass", "a further prompt"


def run_in_batches(model, image, text, skip_constant: bool) -> torch.Tensor:
    """The saliency map by the formula of VL-Score, many masked images in a pass of PyTorch."""
    pixels = model.preprocess(image)
    maps = model.feature_maps(pixels[None])[0].cpu()
    if skip_constant:
        maps = maps[vlscore.varies(maps)]
    masked = (pixels * vlscore.make_masks(each, model.input_size)[:, None] for each in maps.split(BATCH))
    scores = torch.cat([model.encode_image(each).cpu() @ text for each in masked])
    base = (model.encode_image(torch.zeros_like(pixels)[None]).cpu() @ text)[0]
    powers = ((scores - base) / model.temperature).exp() * (scores > base)
    return torch.einsum("k,khw->hw", powers / powers.sum(), maps).relu()


def run_module(model, image, text, keep: int | None) -> torch.Tensor:
    """The saliency map and boxes by the module."""
    return bench.ours(model, image, text, keep, "float32")[0]


STEPS = {
    "pytorch-grad-cam's Score-CAM": lambda *case: bench.grad_cam(*case)[0],
    LOOP: lambda *case: bench.plain_loop(*case)[0],
    "in batches": partial(run_in_batches, skip_constant=False),
    "constant maps skipped": partial(run_in_batches, skip_constant=True),
    "compiled by OpenVINO (exact)": partial(run_module, keep=None),
    "64 maps, others predicted (keep=64)": partial(run_module, keep=bench.FAST),
}


def prepare() -> tuple:
    """The model, warm, with the photo and the text that all steps take."""
    model = vlscore.load_model(MODEL, "cpu")
    image = vlscore.load_image(vlscore.hand_boxed_photos("data/photos")[PHOTO].path)
    vlscore.encode(model, image, keep=1, precision="float32")  # compiles
    return model, image, model.encode_text([PROMPT])[0].cpu()


def measure(step: str) -> tuple[float, list]:
    """Seconds of one step, and its saliency map."""
    case = prepare()
    seconds, heat = bench.timed(STEPS[step], *case)
    if seconds < 10:
        again = [bench.timed(STEPS[step], *case)[0] for _ in range(AGAIN)]
        seconds = statistics.median([seconds, *again])
    return seconds, heat.tolist()


def measure_further() -> float:
    """Seconds of one more prompt for a photo that is encoded."""
    model, image, text = prepare()
    encoding = vlscore.encode(model, image, precision="float32")
    return statistics.median(bench.timed(bench.answer, encoding, text)[0] for _ in range(21))


def count_passes() -> dict[str, int]:
    """Passes of the image encoder in each step, with those for the maps and the empty image."""
    model, image, _ = prepare()
    maps = model.feature_maps(model.preprocess(image)[None])[0]
    varying = int(vlscore.varies(maps).sum())
    # The module also embeds the whole image, and the library adds a pass for its maps alone.
    counts = (len(maps) + 1, len(maps) + 2, len(maps) + 2, varying + 2, varying + 3, bench.FAST + 3)
    return dict(zip(STEPS, counts))


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("bench_ladder.py", description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    try:
        rows, loop, passes = [], None, count_passes()
        for step in STEPS:
            seconds, heat = bench.alone(measure, step)
            rows.append({"step": step, "seconds": seconds, "passes": passes[step]})
            if step == LOOP:
                loop = heat
            if loop is not None:
                rows[-1]["correlation"] = bench.correlation(heat, loop)
        rows.append({"step": FURTHER, "seconds": bench.alone(measure_further), "passes": 0})
        facts = {"model": MODEL, "photo": PHOTO, "precision": "float32", "machine": bench.machine()}
        vlscore.write_whole(OUT, (json.dumps(facts | {"rows": rows}, indent=1) + "\n").encode())
    except vlscore.VLScoreError as error:
        print(f"bench_ladder.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench_ladder.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
