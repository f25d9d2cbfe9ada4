"""Draw the picture of the first page: photos, what was asked of each, its heat map and its boxes.

    python scripts/demo.py                     # prints the boxes, writes demo.png
    python scripts/demo.py demo.png demo.jpg   # the same picture, as PNG and as JPEG

The photos come with installed packages; two of them are put side by side.  They and the texts were picked
because the model finds these objects; chapter 03 shows where it fails.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

import vlscore

CAT, CAP = "skimage/data/chelsea.png", "foolbox/data/imagenet_09_455.jpg"
ASKED = {  # photos side by side, by their paths in installed packages -> what is looked for in the picture
    (CAT, CAP): ("a cat", "a bottle cap"),
    ("foolbox/data/imagenet_07_609.jpg",): ("a jeep",),
    ("foolbox/data/imagenet_17_22.jpg",): ("a bald eagle",),
    ("sklearn/datasets/images/flower.jpg",): ("a flower",),
    ("foolbox/data/imagenet_10_541.jpg",): ("a drum",),
}
MODEL = "lite0-minilm"
KEEP = 128
COLUMNS, RATIO = 3, 1.5  # of the grid; width over height of a cell, which shows the middle of a picture
HEIGHT = 512  # of photos side by side, in pixels
WIDTH, GAP, LINE = 7.0, 0.08, 0.36  # inches: the picture, between two cells, above a cell for its title
DPI = 200  # 1,400 pixels, twice the width at which the picture is read


class Answer(NamedTuple):
    """What was found for one text.

    Attributes:
        title: what was looked for, e.g. ``"a cat"``.
        places: of the photos, as in `ASKED`.
        picture: a photo, or several side by side.
    """

    title: str
    places: tuple[str, ...]
    picture: Image.Image
    encoding: vlscore.Encoding
    found: vlscore.Localization


def find_photo(place: str) -> Path:
    """The path of a photo that comes with a package; the package itself is not imported."""
    package, _, inside = place.partition("/")
    spec = find_spec(package)
    if spec is None:
        raise vlscore.VLScoreError(
            f"the photo {place} comes with {package}: install what is in requirements.txt"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def join(photos: list[Image.Image]) -> Image.Image:
    """Put photos side by side, the middle of each, so that they fill a cell; a single one stays whole."""
    if len(photos) == 1:
        return photos[0]
    wide = round(HEIGHT * RATIO / len(photos))
    picture = Image.new("RGB", (wide * len(photos), HEIGHT))
    for n, photo in enumerate(photos):
        picture.paste(ImageOps.fit(photo, (wide, HEIGHT)), (n * wide, 0))
    return picture


def answer_all(model: vlscore.Model, asked: dict[tuple, tuple]) -> list[Answer]:
    """Encode each picture once, ask it all its texts, and print what was found."""
    answers = []
    for places, titles in asked.items():
        picture = join([vlscore.load_image(find_photo(place)) for place in places])
        # float32, so that each machine draws the same picture
        encoding = vlscore.encode(model, picture, keep=KEEP, precision="float32", refined=True)
        found = [vlscore.localize(model, encoding, f"an image of {title}.") for title in titles]
        print("\n".join(places), vlscore.as_text(found), "", sep="\n", flush=True)
        answers += [Answer(title, places, picture, encoding, each) for title, each in zip(titles, found)]
    return answers


def draw(answers: list[Answer]):
    """A matplotlib Figure with a cell for each answer, row by row."""
    from matplotlib.figure import Figure

    rows = -(-len(answers) // COLUMNS)
    wide = (WIDTH - (COLUMNS + 1) * GAP) / COLUMNS
    high = wide / RATIO
    height = rows * (high + LINE) + GAP
    figure = Figure(figsize=(WIDTH, height))
    for n, answer in enumerate(answers):
        row, column = divmod(n, COLUMNS)
        left, top = GAP + column * (wide + GAP), height - row * (high + LINE) - LINE
        draw_cell(figure.add_axes((left / WIDTH, (top - high) / height, wide / WIDTH, high / height)), answer)
    return figure


def draw_cell(panel, answer: Answer) -> None:
    """Draw one answer on a matplotlib Axes: the middle of the picture, its heat map, boxes and title."""
    vlscore.show_heat(panel, answer.picture, answer.found.saliency, answer.encoding)
    vlscore.show_boxes(panel, answer.found.boxes)
    W, H = answer.encoding.fit.size
    wide, high = min(W, H * RATIO), min(H, W / RATIO)
    panel.set(xlim=((W - wide) / 2, (W + wide) / 2), ylim=((H + high) / 2, (H - high) / 2), aspect="auto")
    panel.set_axis_off()
    panel.set_title(f"“{answer.title}”", fontsize=14, pad=4)


def render(figure, ending: str) -> bytes:
    """The content of a PNG or JPEG file."""
    if ending != ".png":
        return vlscore.render_jpeg(figure, DPI)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def picture(text: str) -> Path:
    """An argparse type: a path of a PNG or JPEG file."""
    path = Path(text)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a picture: write demo.png or demo.jpg")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}: create it first")
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 0, or 2 for bad input, said in one line on stderr."""
    parser = argparse.ArgumentParser("demo.py", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=picture, nargs="*", default=[Path("demo.png")], help="default: demo.png")
    options = parser.parse_args(argv)
    try:
        figure = draw(answer_all(vlscore.load_model(MODEL), ASKED))
        for path in options.out:
            vlscore.write_whole(path, render(figure, path.suffix.lower()))
            print("picture:", path)
    except vlscore.VLScoreError as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"demo.py: {error.filename}: {error.strerror}: fix it and run the command again", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("demo.py: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
