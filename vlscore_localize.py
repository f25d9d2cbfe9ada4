"""The command `localize`: texts in one or more images."""

from __future__ import annotations

import glob
import json
import os
import sys
import tempfile
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from vlscore_label import tell_unknown_words
from vlscore_lib.errors import VLScoreError, check_keep, check_temperature, check_threshold
from vlscore_lib.files import drop_nan, write_whole
from vlscore_lib.options import EncodingOptions
from vlscore_lib.photos import photo_endings
from vlscore_lib.progress import show_progress

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


def add_localize_options(add, add_encoding_options) -> None:
    """Add the options of `localize`."""
    add(
        "image",
        metavar="IMAGE",
        help="image file (JPEG, PNG, WebP, …); give several, or a pattern such as 'photos/*.jpg'",
    )
    add("texts", metavar="TEXT", nargs="+", help='what to find, such as "an image of a cat."')
    add_encoding_options(add)
    add(
        "--assume-present",
        action="store_true",
        help="draw boxes even if p says that the thing is absent: for photos that surely show it",
    )
    add(
        "--out",
        metavar="PICTURE.png",
        help="write a picture of photo, heat map and boxes; for several images, a folder",
    )
    add("--json", action="store_true", help="print a line of JSON for each image, and nothing else")


def encoding_options(options) -> dict:
    """The command line's options of `encode`, as far as all commands share them, by name."""
    return {
        "layer": options.layer,
        "maps": options.maps,
        "pca": options.pca,
        "keep": options.keep,
        "precision": options.precision,
        "fit": options.fit,
        "refined": options.refined,
    }


def check_numbers(options) -> None:
    """Report an option out of range before a model is loaded."""
    if options.threshold is not None:
        check_threshold(options.threshold, "--threshold")
    if options.temperature is not None:
        check_temperature(options.temperature, "--temperature")
    check_keep(options.keep)


def run_localize(options) -> None:
    """Find texts in images, and print what was found; an image that cannot be read does not stop others."""
    check_numbers(options)
    EncodingOptions(**encoding_options(options)).check()
    images, texts = split_images(options.image, options.texts)
    pictures = plan_pictures(images, options.out)
    if len(images) == 1:
        from vlscore_lib.images import load_image

        load_image(images[0])  # report a bad image before the seconds that PyTorch and the model take
    import vlscore

    model = vlscore.load_model(options.model)
    model.encode_text(texts)  # report a bad prompt before the long part
    tell_unknown_words(model, texts)
    bad = 0
    for path, picture in zip(images, pictures):
        try:
            localize_texts(model, path, texts, picture, options, has_name=len(images) > 1)
        except VLScoreError as error:
            if len(images) == 1:
                raise
            bad += 1
            print(f"vlscore: {error}", file=sys.stderr)
    if bad:
        raise VLScoreError(f"{bad} of {len(images)} images could not be used: fix them, or leave them out")


def split_images(first: str, others: list[str]) -> tuple[list[str], list[str]]:
    """Separate images from texts: an argument that is a file, or looks like the name of a photo, is an image.

    Raises:
        VLScoreError: a pattern without a file, or no text.
    """
    images, texts = [], [*others]
    names = [first]
    while texts and find_images(texts[0]):
        names.append(texts.pop(0))
    for name in names:
        images += find_images(name) or [name]
    if not texts:
        raise VLScoreError(f'{names[-1]} is an image, and no text follows: add one, "an image of a cat."')
    return list(dict.fromkeys(images)), texts


def find_images(name: str) -> list[str]:
    """List the images that an argument names: a file, all files of a pattern, or none if it is a text."""
    looks_so = Path(name).suffix.lower() in photo_endings()
    with suppress(OSError, ValueError):  # a text may not be a valid file name
        if looks_so and (" " not in name or Path(name).is_file()) and not glob.has_magic(name):
            return [name]
        if glob.has_magic(name) and not Path(name).exists():
            return sorted(path for path in glob.glob(name, recursive=True) if Path(path).is_file())
    return []


def plan_pictures(images: list[str], out: str | None) -> list[str | None]:
    """Choose the path of each image's picture: the one given, or a path in the folder given.

    Raises:
        VLScoreError: they cannot be written.
    """
    if len(images) == 1:
        check_output(out)
        return [out]
    if out is None:
        return [None] * len(images)
    if Path(out).suffix.lower() in PICTURE_ENDINGS:
        raise VLScoreError(f"--out {out} is one picture, but there are {len(images)} images: give a folder")
    Path(out).mkdir(parents=True, exist_ok=True)
    stems = [Path(path).stem for path in images]
    names = [Path(path).name if stems.count(stem) > 1 else stem for path, stem in zip(images, stems)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise VLScoreError(f"two images are named {twice}: their pictures would overwrite each other")
    return [str(Path(out) / f"{name}.png") for name in names]


def localize_texts(model, path: str, texts: list[str], picture, options, has_name: bool) -> None:
    """Find texts in one image, print what was found, and write the picture."""
    import vlscore

    image = vlscore.load_image(path)
    encoding = vlscore.encode(model, image, progress=show_progress, **encoding_options(options))
    asked = options.temperature, options.threshold, options.assume_present
    found = [vlscore.localize(model, encoding, text, *asked) for text in texts]
    if picture:
        encoded, count = len(encoding.indices), len(encoding.maps)
        maps = f"{count} maps" if encoded == count else f"{encoded} of {count} maps"
        title = f"{Path(path).name}: {encoding.model}, layer {encoding.layer}, {maps}"
        write_picture(picture, vlscore.draw_localizations(image, found, encoding, title))
    if options.json:
        print(json.dumps(drop_nan(vlscore.as_facts(path, image.size, model.name, found))), flush=True)
    else:
        print(*[path] * has_name, vlscore.as_text(found), sep="\n", flush=True)


def check_output(path: str | None) -> None:
    """Report a picture that cannot be written before the long part."""
    if path is None:
        return
    file = Path(path)
    if file.suffix.lower() not in PICTURE_ENDINGS:
        raise VLScoreError(f"--out {path} has none of the endings {', '.join(PICTURE_ENDINGS)}: use .png")
    try:
        is_folder = file.is_dir()
        with tempfile.TemporaryFile(dir=file.parent):
            is_locked = file.exists() and not os.access(file, os.W_OK)
    except OSError as error:
        raise unwritable(path, error.strerror) from None
    if is_folder or is_locked:
        raise unwritable(path, "it is a folder" if is_folder else "it is read-only")


def unwritable(path: str, reason: str) -> VLScoreError:
    """Make the error for a picture that cannot be written."""
    return VLScoreError(f"--out {path} cannot be written ({reason}): choose another place")


def write_picture(path: str, figure) -> None:
    """Write a matplotlib Figure atomically."""
    content = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph, such as an emoji, that the font does not have
        dpi = min(100, 60000 / figure.get_figheight())  # a JPEG or WebP has at most 65,535 rows
        figure.savefig(content, format=Path(path).suffix[1:].lower(), dpi=dpi)
    try:
        write_whole(path, content.getvalue())
    except OSError as error:
        raise unwritable(path, error.strerror) from None
