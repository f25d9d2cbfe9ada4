"""Photos: uploads, examples, and how many may be decoded at a time."""

from __future__ import annotations

from hashlib import sha256
from io import BytesIO
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import NamedTuple

import streamlit as st
from PIL import Image
from starlette.formparsers import MultiPartParser

import vlscore

ROOT = Path(__file__).parent.parent
MEGABYTES, MEGAPIXELS = 20, 50  # most of an upload; config.toml has the first one too
SHOWN = 800  # longest side of a photo on the page, in pixels
EXAMPLES = (
    "chelsea",
    "coffee",
    "imagenet_06_609",
    "imagenet_10_541",
    "imagenet_13_471",
    "imagenet_15_99",
    "imagenet_16_251",
)

# Starlette would write uploads of more than 1 MB to a temporary file.
MultiPartParser.spool_max_size = (MEGABYTES + 1) * 2**20


@st.cache_resource
def locks() -> SimpleNamespace:
    """Return the process's locks.

    An encoder's hooks and a tokenizer serve one thread at a time.  Decoded photos are large, so there are
    two at most.
    """
    return SimpleNamespace(decode=Lock(), encode=Lock(), ask=Lock())


class Photo(NamedTuple):
    """A chosen photo: its name is only shown, never opened; ``shown`` is a small upright copy."""

    name: str
    content: bytes
    digest: str
    size: tuple[int, int]
    shown: Image.Image


def decode(content: bytes) -> Image.Image:
    """Decode an upload to upright RGB; its size is looked up in the header first.

    Raises:
        vlscore.VLScoreError: too large, or no JPEG, PNG or WebP.
    """
    if len(content) > MEGABYTES * 2**20:
        raise vlscore.VLScoreError(f"the photo has more than {MEGABYTES} MB: give a smaller copy")
    return vlscore.load_image(content, ("JPEG", "PNG", "WEBP"), MEGAPIXELS)


def jpeg(picture: Image.Image) -> bytes:
    """A picture for the browser."""
    content = BytesIO()
    picture.save(content, "JPEG", quality=88)
    return content.getvalue()


def open_photo(name: str, content: bytes) -> Photo:
    """Check a file and make the copy that is shown; raises the errors of `decode`."""
    with locks().decode:
        image = decode(content)
        size = image.size
        image.thumbnail((SHOWN, SHOWN))
    return Photo(name, content, sha256(content).hexdigest(), size, image)


class Example(NamedTuple):
    """A photo of the gallery, with its prompt."""

    content: bytes
    prompt: str
    thumbnail: bytes


@st.cache_resource
def examples() -> dict[str, Example]:
    """Photos that come with installed packages, and a scene for the models that know drawn scenes only."""
    photos, found = vlscore.hand_boxed_photos(ROOT / "data" / "photos"), {}
    for name in EXAMPLES:
        photo = photos[name]
        found[photo.label] = photo.path.read_bytes(), vlscore.TEMPLATE.format(photo.label)
    found["drawn scene"] = drawn_scene()
    return {name: Example(*each, _thumbnail(each[0])) for name, each in found.items()}


def drawn_scene() -> tuple[bytes, str]:
    """A scene as `vlscore.scenes` draws them, as PNG, and a prompt for each of its objects."""
    image, objects = vlscore.scenes.draw_scene(vlscore.scenes.scene_rng(1, 12), (400, 300), 2)
    names = [vlscore.scenes.classes()[index][1][0] for index, _ in objects]
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue(), "\n".join(vlscore.TEMPLATE.format(name) for name in names)


def _thumbnail(content):
    image = decode(content)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return jpeg(image.crop((left, top, left + side, top + side)).resize((240, 240)))
