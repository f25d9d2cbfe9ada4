"""Evaluate several models on one data set, and compare them: the table and picture of an open question.

    python scripts/compare_models.py ROOT --models RN50,open_clip:ViT-B-16/openai --out models

A folder of --out holds each model's run, so that the same command goes on where it was stopped.  The others
are compared with the first model.  A model that cannot be loaded or measured is named, and left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

import vlscore

TIMED = 3  # images, after one that warms up


def folder_name(model: str) -> str:
    """A name of a folder for a model: that of its file, and no character that a path has."""
    return re.sub(r"[^\w.-]+", "_", model.strip("/"))[-100:]


def time_image(model: vlscore.Model, dataset, options: dict) -> float:
    """Median seconds to encode and localize one image."""
    found = []
    for photo in (dataset.photos * (TIMED + 1))[: TIMED + 1]:
        start = time.perf_counter()
        vlscore.localize(model, photo.path, f"an image of a {photo.label}.", **options)
        found.append(time.perf_counter() - start)
    return sorted(found[1:])[TIMED // 2]


def run_model(name: str, dataset, out: Path, options: dict) -> tuple[tuple, float]:
    """Evaluate a model, or go on with it -> its run, see `vlscore.read_run`, and its seconds an image."""
    folder, times = out / folder_name(name), out / f"{folder_name(name)}.json"
    model = vlscore.load_model(name)
    vlscore.evaluate(model, dataset, folder, resume=(folder / "run.json").exists(), **options)
    if not times.exists():  # written once, so that a resumed command gives the same table
        seconds = time_image(model, dataset, options)
        vlscore.write_whole(times, (json.dumps({"seconds": seconds}) + "\n").encode())
    return vlscore.read_run(folder), json.loads(times.read_text())["seconds"]


def draw_models(rows: list[dict], path: Path) -> None:
    """GT-known and V2 of each model, with intervals, beside the constant box."""
    import matplotlib.pyplot as plt

    fig, axis = plt.subplots(figsize=(8, 1.2 + 0.5 * len(rows)), layout="constrained")
    places = range(len(rows))[::-1]
    values = [100 * row["gt_known"]["value"] for row in rows]
    known = [row["gt_known"] for row in rows]
    errors = [[100 * abs(each["value"] - each[end]) for each in known] for end in ("low", "high")]
    axis.errorbar(values, places, xerr=errors, fmt="o", color="#00798c", capsize=3, label="GT-known")
    axis.plot([100 * row["v2"] for row in rows], places, "D", color="#d1495b", label="MaxBoxAccV2")
    constant = 100 * (rows[0]["gt_known"]["value"] - rows[0]["above_constant"]["value"])
    axis.axvline(constant, linestyle=":", color="grey", label="best constant box")
    axis.set(xlim=(0, 100), ylim=(-0.6, len(rows) - 0.4), xlabel=f"percent of {rows[0]['images']} images")
    axis.set_yticks(places, [row["model"] for row in rows])
    fig.legend(loc="outside upper center", ncols=3, fontsize="small", frameon=False)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser("compare_models.py", description=__doc__.splitlines()[0])
    parser.add_argument("root", help="the folder of photos with boxes")
    parser.add_argument("--models", required=True, help="names, separated by commas")
    parser.add_argument(
        "--out", type=Path, default=Path("models"), help="folder for the results (default: models)"
    )
    parser.add_argument("--keep", type=int, help="number of maps to encode (default: all)")
    parser.add_argument("--refined", action="store_true")
    parser.add_argument("--limit", type=int, help="largest number of photos")
    options = parser.parse_args(argv)
    try:
        dataset = vlscore.read_dataset(options.root, limit=options.limit)
        runs, seconds, failed = {}, {}, 0
        chosen = {"keep": options.keep, "refined": options.refined}
        options.out.mkdir(parents=True, exist_ok=True)
        for name in filter(None, map(str.strip, options.models.split(","))):
            print(f"{name}: {len(dataset.photos)} photos", file=sys.stderr)
            try:
                runs[name], seconds[name] = run_model(name, dataset, options.out, chosen)
            except vlscore.VLScoreError as error:
                print(f"compare_models.py: {name} is left out: {error}", file=sys.stderr)
                failed += 1
        if not runs:
            raise vlscore.VLScoreError("no model could be measured: see `vlscore models`")
        rows = vlscore.measure_models(runs, seconds)
        table = vlscore.tabulate_models(rows)
        vlscore.write_whole(options.out / "models.json", (json.dumps(rows, indent=1) + "\n").encode())
        vlscore.write_whole(options.out / "models.html", table.to_html(index=False).encode())
        draw_models(rows, options.out / "models.png")
        print(table.to_string(index=False))
        return 1 if failed else 0
    except vlscore.VLScoreError as error:
        print(f"compare_models.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
