"""The commands `label` and `search`: all photos of a folder."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlscore_lib.errors import VLScoreError, check_at_least, check_choice
from vlscore_lib.files import read_lines
from vlscore_lib.labelling.labels import check_classes
from vlscore_lib.options import EncodingOptions
from vlscore_lib.pipeline import finish_behind
from vlscore_lib.progress import Pace

if TYPE_CHECKING:
    from vlscore_lib.encoding import Encoding
    from vlscore_lib.labelling.labels import LabelledPhoto

FORMATS = ("coco", "voc", "yolo", "labelstudio")
SHARD = 8  # photos that a worker labels at a time
SHEET_ENDINGS = (".jpg", ".jpeg", ".png")


def add_label_options(add, add_encoding_options) -> None:
    """Add the options of `label`."""
    add("folder", metavar="FOLDER", help="folder of photos; photos in subfolders are labelled, too")
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for the labels, and for the journal from which an interrupted run resumes",
    )
    add("--classes", metavar="A,B", help='classes to look for, such as "dog,cat,person"')
    add("--classes-file", metavar="FILE", help="file of classes to look for, one in each line")
    add_format_option(add)
    add(
        "--min-score",
        type=float,
        default=0.0,
        metavar="S",
        help="leave out boxes with a lower score (default: 0)",
    )
    add(
        "--assume-present",
        action="store_true",
        help="draw boxes even if p says that a class is absent: if all photos show all classes",
    )
    add_shared_options(add, add_encoding_options)
    add("--skip-bad", action="store_true", help="leave out photos that cannot be used, and list them")
    add_cluster_options(add)


def add_format_option(add) -> None:
    """Add the formats of the labels, for `label` and `from-crops`."""
    add(
        "--format",
        default="coco",
        metavar="F",
        help=f"{', '.join(FORMATS)}, or several joined by commas (default: %(default)s)",
    )


def add_search_options(add, add_encoding_options) -> None:
    """Add the options of `search`."""
    add("folder", metavar="FOLDER", help="folder of photos; photos in subfolders are searched, too")
    add("text", metavar="TEXT", help='what to look for, such as "an image of a dog."')
    add("--top", type=int, default=20, metavar="N", help="number of photos to list (default: %(default)s)")
    add("--out", metavar="SHEET.jpg", help="write a contact sheet with boxes")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add_shared_options(add, add_encoding_options)


def add_shared_options(add, add_encoding_options) -> None:
    """Add what both commands share: the encoding's options (64 maps by default), and their folder."""
    add_encoding_options(add)
    add("--plain", action="store_true", help="use plain VL-Score; these commands refine by default")
    add(
        "--encodings",
        metavar="DIR",
        help="folder that keeps each photo's encoding, which makes later runs fast",
    )
    add(
        "--encodings-limit",
        type=float,
        metavar="GB",
        help="largest size of that folder; the least recently used encodings are deleted",
    )


def add_cluster_options(add) -> None:
    """Add where the work is done, for `label` and `evaluate`."""
    add("--workers", type=int, metavar="N", help="work in N processes on this machine, with Dask")
    add(
        "--scheduler",
        metavar="ADDRESS",
        help="work on the Dask scheduler at this address, such as tcp://10.0.0.1:8786",
    )


def read_classes(options) -> list[str]:
    """Read the classes from the command line, or from a file.

    Raises:
        VLScoreError: neither or both are given, or a class is empty or named twice.
    """
    if (options.classes is None) == (options.classes_file is None):
        raise VLScoreError("give what to look for: either --classes or --classes-file")
    if options.classes is not None:
        return list(check_classes([each.strip() for each in options.classes.split(",")]))
    lines = read_lines(options.classes_file, "a list of classes")
    return list(check_classes([line.strip() for line in lines if line.strip()]))


def read_formats(text: str) -> list[str]:
    """``coco,yolo``: the formats to write."""
    found = [each.strip() for each in text.split(",")]
    for each in found:
        check_choice(each, FORMATS, "--format")
    return found


def run_label(options, chosen: dict) -> None:
    """Label all photos of a folder; the same command resumes an interrupted run.

    Args:
        chosen: the options of `encode`.
    """
    classes, formats = read_classes(options), read_formats(options.format)
    EncodingOptions(**chosen).check()
    check_at_least(0, options.encodings_limit, "--encodings-limit")
    if not 0 <= options.min_score <= 1:
        raise VLScoreError(f"--min-score is {options.min_score}: give a number from 0 to 1")
    import vlscore
    from vlscore_lib.evaluation.workers import start_cluster

    root = Path(options.folder)
    photos = {path.relative_to(root).as_posix(): path for path in vlscore.find_photos(root, options.out)}
    model = vlscore.load_model(options.model)
    tell_unknown_words(model, classes)
    asked = {
        "temperature": options.temperature,
        "threshold": options.threshold,
        "min_score": options.min_score,
    }
    if options.assume_present:  # not named otherwise, so that earlier journals stay valid
        asked["assume_present"] = True
    facts = {"model": model.name, "weights": model.checksum(), "classes": classes}
    journal = vlscore.Journal(options.out, facts | asked | chosen)
    kept = {"encodings": options.encodings, "encodings_limit": options.encodings_limit}
    context = LabelContext(model.name, classes, kept | asked | chosen, options.skip_bad)
    waiting = [Place(place, path) for place, path in photos.items() if not journal.is_done(place)]
    with start_cluster(options.workers, options.scheduler) as client, Pace(len(photos), "labelling") as show:
        show(len(photos) - len(waiting), measured=False)
        for found, left_out in label_places(model, client, context, waiting):
            for photo in found:
                journal.add(photo)
            for place, why in left_out.items():
                journal.skip(place, why)
            show(len(found) + len(left_out))
    found = [journal.photos[place] for place in photos if place in journal.photos]
    for form in formats:
        vlscore.write_labels(found, classes, form, options.out, root)
    for why in journal.skipped.values():
        print(f"vlscore: left out: {why}", file=sys.stderr)
    boxes = sum(len(photo.boxes) for photo in found)
    shown = sum(bool(photo.boxes) for photo in found)
    print(f"{boxes} boxes in {shown} of {len(found)} photos: {options.out}")


class LabelContext(NamedTuple):
    """What a process needs besides the photos.

    Attributes:
        model: its name.
        classes: what is looked for.
        options: of the `Labeller`.
        skips_bad: whether a photo that cannot be read is left out.
    """

    model: str
    classes: list[str]
    options: dict
    skips_bad: bool


class Place(NamedTuple):
    """A photo to label: its path below the folder, and its whole path."""

    name: str
    path: Path


def label_places(model, client, context: LabelContext, places: list[Place]):
    """Label photos here, or on the workers of a Dask client, and yield (labelled, left out) in turn."""
    import vlscore

    if client is None:
        labeller = vlscore.Labeller(model, context.classes, **context.options)
        vlscore.embed_other_words(model)  # once, before several threads ask for them
        read = encode_places(labeller, places, context.skips_bad)
        yield from finish_behind(read, partial(finish_place, labeller))
        return
    from vlscore_lib.evaluation.workers import measure_by_dask

    shards = [[(place, False) for place in places[n : n + SHARD]] for n in range(0, len(places), SHARD)]
    for _, *found in measure_by_dask(client, label_on_worker, context, dict(enumerate(shards))):
        yield found


class ReadPlace(NamedTuple):
    """A photo that is labelled from its stored encoding, or encoded, or left out.

    Attributes:
        found: its boxes, if its encoding was stored.
        encoding: its encoding, if that was not stored.
        why: a line that says why it is left out.
    """

    place: Place
    found: LabelledPhoto | None = None
    encoding: Encoding | None = None
    why: str | None = None


def encode_places(labeller, places: list[Place], skips_bad: bool):
    """Label photos with stored encodings in several threads, and encode the others -> a `ReadPlace` each."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(places), SHARD):
            shard = places[start : start + SHARD]
            for place, known in zip(shard, pool.map(partial(label_stored, labeller), shard)):
                try:  # encoded here, since an encoder serves one thread at a time
                    yield ReadPlace(place, known, None if known else labeller.encode(place.path))
                except VLScoreError as error:
                    yield ReadPlace(place, why=leave_out(error, skips_bad))


def finish_place(labeller, read: ReadPlace):
    """Cut the boxes of an encoded photo -> what `label_shard` gives."""
    if read.why:
        return [], {read.place.name: read.why}
    found = read.found or labeller.describe(read.place.path, read.encoding)
    return [replace(found, place=read.place.name)], {}


def label_stored(labeller, place: Place):
    """Label a photo with a stored encoding; None if it must be encoded, or cannot be read."""
    try:
        return labeller.label_stored(place.path)
    except VLScoreError:
        return None


def leave_out(error: VLScoreError, skips_bad: bool) -> str:
    """Return the line for a photo that cannot be used.

    Raises:
        VLScoreError: bad photos are not to be left out.
    """
    if not skips_bad:
        raise VLScoreError(f"{error}; or add --skip-bad to leave out such photos") from None
    return str(error)


def label_shard(labeller, shard, skips_bad: bool):
    """Label the photos of a shard -> those labelled, and a line for each one that was left out, by name."""
    found, left_out = [], {}
    for place, _ in shard:
        try:
            found.append(replace(labeller(place.path), place=place.name))
        except VLScoreError as error:
            left_out[place.name] = leave_out(error, skips_bad)
    return found, left_out


def label_on_worker(context: LabelContext, shard):
    """Label a shard on a Dask worker, with a labeller that is kept for the next shards."""
    labeller = load_worker_labeller(context.model, json.dumps([context.classes, context.options]))
    return label_shard(labeller, shard, context.skips_bad)


@lru_cache(1)
def load_worker_labeller(model: str, facts: str):
    """Load the labeller of a worker process."""
    import vlscore

    classes, options = json.loads(facts)
    return vlscore.Labeller(vlscore.load_model(model), classes, **options)


def tell_unknown_words(model, classes: list[str]) -> None:
    """Say on stderr which words of the classes a model does not know."""
    unknown = dict.fromkeys(word for each in classes for word in model.unknown_words(each))
    if unknown:
        words = ", ".join(map(repr, unknown))
        print(f"vlscore: {model.name} does not know {words}: left out of the prompt", file=sys.stderr)


def rank_photos(labeller, paths: list[Path], pool) -> tuple[list[tuple[float, float, Path]], bool]:
    """Photos by `Labeller.judge`, the surest first: (p, -score, path); and whether all were stored."""
    found, all_stored = [], True
    with Pace(len(paths), "looking") as show:
        for path, known in zip(paths, pool.map(partial(judge_stored, labeller), paths)):
            all_stored &= known is not None
            try:
                p, sure = (each.item() for each in known or labeller.judge(path))
                found.append((p, -sure, path))
            except VLScoreError as error:
                print(f"vlscore: left out: {error}", file=sys.stderr)
            show(1)
    return sorted(found), all_stored


def judge_stored(labeller, path):
    """Judge a photo with a stored encoding, see `Labeller.judge`; None for another, which needs the model.

    Several threads may ask at a time.
    """
    try:
        rows = labeller.store and labeller.store.read_rows(path.read_bytes())
    except OSError:
        return None  # `Labeller.judge` reports it
    return labeller.judge_rows(rows) if rows else None


def run_search(options, chosen: dict) -> None:
    """Print the photos of a folder, those first that most surely show what a text names."""
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
    model.encode_text([options.text])  # report a bad prompt before the long part
    tell_unknown_words(model, [options.text])
    asked = {"temperature": options.temperature, "threshold": options.threshold}
    kept = {"encodings": options.encodings, "encodings_limit": options.encodings_limit}
    labeller = vlscore.Labeller(model, [options.text], ("{}",), **kept, **asked, **chosen)
    vlscore.embed_other_words(model)  # once, before several threads ask for them
    results = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ranked, all_stored = rank_photos(labeller, paths, pool)
        best = ranked[: options.top]
        # An encoder serves one thread at a time.
        found = (pool.map if all_stored else map)(labeller, [path for _, _, path in best])
        for (p, minus, path), photo in zip(best, found):
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
