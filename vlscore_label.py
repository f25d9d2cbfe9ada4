"""The commands `label` and `search`: all photos of a folder."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from vlscore_lib.errors import VLScoreError, check_at_least, check_choice
from vlscore_lib.labelling.labels import check_classes
from vlscore_lib.options import EncodingOptions

FORMATS = ("coco", "voc", "yolo", "labelstudio")
SHEET_ENDINGS = (".jpg", ".jpeg", ".png")


def add_label_options(add, add_encoding_options) -> None:
    """The options of `label`."""
    add("folder", metavar="FOLDER", help="all photos below it are labelled")
    add("--out", required=True, metavar="DIR", help="for the labels, and the journal to go on from")
    add("--classes", metavar="A,B", help='what to look for, e.g. "dog,cat,person"')
    add("--classes-file", metavar="FILE", help="the same, one a line")
    add("--format", default="coco", metavar="F", help=f"{', '.join(FORMATS)}; several with commas")
    add("--min-score", type=float, default=0.0, metavar="S", help="leave out boxes of a lower score")
    add_shared_options(add, add_encoding_options)
    add("--skip-bad", action="store_true", help="leave out photos that cannot be used, and list them")


def add_search_options(add, add_encoding_options) -> None:
    """The options of `search`."""
    add("folder", metavar="FOLDER", help="all photos below it are looked at")
    add("text", metavar="TEXT", help='e.g. "an image of a dog."')
    add("--top", type=int, default=20, metavar="N", help="so many photos")
    add("--out", metavar="SHEET.jpg", help="write a contact sheet with boxes")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add_shared_options(add, add_encoding_options)


def add_shared_options(add, add_encoding_options) -> None:
    """What both commands share: the encoding's options (64 maps are the default), and where they are kept."""
    add_encoding_options(add)
    add("--plain", action="store_true", help="plain VL-Score; refined is these commands' default")
    add("--encodings", metavar="DIR", help="keep each photo's encoding there, for other words")
    add("--encodings-limit", type=float, metavar="GB", help="of that folder; the least recently used go")


def read_classes(options) -> list[str]:
    """The classes of the command line, or of a file.

    Raises:
        VLScoreError: neither or both are given, or a class is empty or named twice.
    """
    if (options.classes is None) == (options.classes_file is None):
        raise VLScoreError("give what to look for: either --classes or --classes-file")
    if options.classes is not None:
        return list(check_classes([each.strip() for each in options.classes.split(",")]))
    try:
        lines = Path(options.classes_file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VLScoreError(
            f"{options.classes_file} cannot be read ({error}): give a list of classes"
        ) from None
    return list(check_classes([line.strip() for line in lines if line.strip()]))


def read_formats(text: str) -> list[str]:
    """``coco,yolo``: the formats to write."""
    found = [each.strip() for each in text.split(",")]
    for each in found:
        check_choice(each, FORMATS, "--format")
    return found


def run_label(options, chosen: dict, pace) -> None:
    """Label all photos of a folder; the same command goes on where it was stopped.

    Args:
        chosen: the options of `encode`.
        pace: makes the progress of so many photos.
    """
    classes, formats = read_classes(options), read_formats(options.format)
    EncodingOptions(**chosen).check()
    if not 0 <= options.min_score <= 1:
        raise VLScoreError(f"--min-score is {options.min_score}: give a number from 0 to 1")
    import vlscore

    root = Path(options.folder)
    photos = {path.relative_to(root).as_posix(): path for path in vlscore.find_photos(root, options.out)}
    model = vlscore.load_model(options.model)
    tell_unknown_words(model, classes)
    asked = {
        "temperature": options.temperature,
        "threshold": options.threshold,
        "min_score": options.min_score,
    }
    facts = {"model": model.name, "weights": model.checksum(), "classes": classes}
    journal = vlscore.Journal(options.out, facts | asked | chosen)
    kept = {"encodings": options.encodings, "encodings_limit": options.encodings_limit}
    labeller = vlscore.Labeller(model, classes, **kept, **asked, **chosen)
    waiting = [place for place in photos if not journal.is_done(place)]
    with pace(len(photos)) as show:
        show(len(photos) - len(waiting), measured=False)
        for place in waiting:
            try:
                journal.add(replace(labeller(photos[place]), place=place))
            except VLScoreError as error:
                if not options.skip_bad:
                    raise VLScoreError(f"{error}; or leave out such photos by --skip-bad") from None
                journal.skip(place, str(error))
            show(1)
    found = [journal.photos[place] for place in photos if place in journal.photos]
    for form in formats:
        vlscore.write_labels(found, classes, form, options.out, root)
    for why in journal.skipped.values():
        print(f"vlscore: left out: {why}", file=sys.stderr)
    boxes = sum(len(photo.boxes) for photo in found)
    shown = sum(bool(photo.boxes) for photo in found)
    print(f"{boxes} boxes in {shown} of {len(found)} photos: {options.out}")


def tell_unknown_words(model, classes: list[str]) -> None:
    """Say on stderr which words of the classes a model never met."""
    unknown = dict.fromkeys(word for each in classes for word in model.unknown_words(each))
    if unknown:
        words = ", ".join(map(repr, unknown))
        print(f"vlscore: {model.name} does not know {words}: left out of the prompt", file=sys.stderr)


def run_search(options, chosen: dict, pace) -> None:
    """Print the photos of a folder in the order of how sure the model is that they show a text."""
    EncodingOptions(**chosen).check()
    check_at_least(1, options.top, "--top")
    if options.out and Path(options.out).suffix.lower() not in SHEET_ENDINGS:
        raise VLScoreError(
            f"--out {options.out} has none of the endings {', '.join(SHEET_ENDINGS)}: use .jpg"
        )
    import vlscore

    root = Path(options.folder)
    paths = vlscore.find_photos(root)
    model = vlscore.load_model(options.model)
    model.encode_text([options.text])  # a bad prompt is told before the long part
    tell_unknown_words(model, [options.text])
    asked = {"temperature": options.temperature, "threshold": options.threshold}
    kept = {"encodings": options.encodings, "encodings_limit": options.encodings_limit}
    labeller = vlscore.Labeller(model, [options.text], ("{}",), **kept, **asked, **chosen)
    found = []
    with pace(len(paths)) as show:
        for path in paths:
            try:
                p, sure = (each.item() for each in labeller.judge(path))
                found.append((p, -sure, path))
            except VLScoreError as error:
                print(f"vlscore: left out: {error}", file=sys.stderr)
            show(1)
    results = []
    for p, minus, path in sorted(found)[: options.top]:
        photo = labeller(path)
        place = path.relative_to(root).as_posix()
        boxes = [list(each.box) for each in photo.boxes]
        results.append(
            {"image": place, "size": list(photo.size), "p_absent": p, "score": -minus, "boxes": boxes}
        )
    if options.out:
        pairs = [(root / each["image"], each["boxes"]) for each in results]
        sheet = vlscore.draw_contact_sheet(pairs, Path(options.out).suffix)
        vlscore.write_whole(options.out, sheet)
    if options.json:
        print(
            json.dumps(
                {"folder": options.folder, "text": options.text, "model": model.name, "results": results}
            )
        )
        return
    for each in results:
        boxes = "".join(f"  box  x {x0} to {x1}  y {y0} to {y1}" for x0, y0, x1, y1 in each["boxes"])
        print(f"p {each['p_absent']:.2f}, score {each['score']:.3f}  {each['image']}{boxes}")
