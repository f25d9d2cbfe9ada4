"""Draw scenes of coloured shapes, with ground truth, in ImageNet's official layout.

    python scripts/draw_scenes.py OUT --count 500 --seed 1

What a scene is and what OUT gets stand in `vlscore.scenes`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import vlscore
from vlscore import scenes


def parse_size(text: str) -> tuple[int, int]:
    """``224`` or ``320x240`` -> (W, H)."""
    try:
        sides = [int(side) for side in text.split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or not all(64 <= side <= 4096 for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size: write 224 or 320x240, each side 64 to 4096"
        )
    return sides[0], sides[-1]


def whole_number(lowest: int):
    """An argparse type: a whole number of `lowest` or more."""

    def parse(text):
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {lowest} or more")
        return int(text)

    return parse


class Parser(argparse.ArgumentParser):
    """A parser whose errors are told in one line."""

    def error(self, message):
        raise vlscore.VLScoreError(f"{message} (see `{self.prog} --help`)")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0, or 2 for bad input, said in one line on stderr."""
    parser = Parser(
        "draw_scenes.py", description="Draw scenes with ground truth in ImageNet's official layout."
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="a new folder")
    add("--count", type=whole_number(1), default=500, metavar="N", help="number of scenes (default: 500)")
    add(
        "--seed", type=whole_number(0), default=1, metavar="N", help="seed of the random numbers (default: 1)"
    )
    add(
        "--size",
        type=parse_size,
        default=(224, 224),
        metavar="WxH",
        help="size of a scene in pixels (default: 224)",
    )
    add(
        "--objects",
        type=int,
        choices=(1, 2, 3),
        help="number of objects in each scene (default: one to three, at random)",
    )
    add("--same", action="store_true", help="draw all objects of a scene from one class")
    try:
        options = parser.parse_args(argv)
        shown = options.objects, options.same
        scenes.write_scenes(options.out, options.count, options.seed, options.size, *shown)
    except vlscore.VLScoreError as error:
        print(f"draw_scenes.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"draw_scenes.py: {error.filename}: {error.strerror}: fix it and run the command again",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("draw_scenes.py: stopped", file=sys.stderr)
        return 130
    print(f"{options.count} scenes of {len(scenes.classes())} classes in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
