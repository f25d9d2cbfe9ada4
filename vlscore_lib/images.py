"""Images: from a file to upright pixels, and the region of an image that the encoder's square shows."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlscore_lib.errors import VLScoreError, check_choice
from vlscore_lib.options import FITS

ORIENTATION = 0x0112  # the tag of EXIF and TIFF
# Orientation -> what turns the image upright: it is transposed, then mirrored, then flipped.
TURNS = {2: (0, 1, 0), 3: (0, 1, 1), 4: (0, 0, 1), 5: (1, 0, 0), 6: (1, 1, 0), 7: (1, 1, 1), 8: (1, 0, 1)}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"acTL", b"fcTL", b"fdAT")
EXIF_AS_TEXT = b"Raw profile type exif\0"


def read_content(path) -> bytes:
    """Read the bytes of a photo's file.

    Args:
        path: the file.

    Raises:
        VLScoreError: the file does not exist, or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise VLScoreError(f"{path} cannot be read ({error.strerror}): check the photo's path") from None


def load_image(source, formats=None, megapixels: float | None = None) -> Image.Image:
    """Open an image as upright 8-bit RGB.

    The orientation is the only metadata that is used.  An animation gives its first frame.  Transparent parts
    become white.  Grey, palette, CMYK and 16-bit images are converted; values that are not finite become 0.

    Args:
        source: a path, the content of a file as bytes, or a PIL image.
        formats: names of the formats allowed, such as ``("JPEG", "PNG")``; None allows all.
        megapixels: size of the largest image that is decoded, such as 50; None means Pillow's own limit.

    Returns:
        A new PIL image in RGB.  Boxes refer to its upright pixels.

    Raises:
        VLScoreError: the file does not exist, is not an image, is cut short, or is too large.
    """
    if isinstance(source, Image.Image):
        path, opened = "the image", nullcontext(source)
    elif isinstance(source, bytes):
        path, opened = "the image", open_image(BytesIO(source), formats)
    else:
        path = Path(source)
        if os.path.isdir(path):
            raise VLScoreError(f"{path} is a folder: give the path of one image")
        if not os.path.exists(path):
            raise VLScoreError(f"{path} does not exist: check the image's path")
        opened = open_image(path, formats)
    limit = (megapixels or Image.MAX_IMAGE_PIXELS / 1e6) * 1e6
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with opened as image:
                if image.width * image.height > limit:
                    raise Image.DecompressionBombError
                found = convert_to_rgb(turn_upright(image))
        found.info.clear()  # otherwise loading it again would turn it again
        return found
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise VLScoreError(
            f"{path} has more than {limit / 1e6:.0f} megapixels: give a smaller copy"
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly any type on a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its format is unknown"
        raise VLScoreError(
            f"{path} cannot be read as an image ({reason}): give a complete JPEG, PNG or WebP file"
        ) from None


@contextmanager
def open_image(source, formats=None):
    """Open a Pillow image while the block runs, without decoding it; raises what Pillow raises.

    Args:
        source: a path, or a binary file that is open for reading.
        formats: names of the formats allowed, as Pillow spells them; None allows all.
    """
    # An open file, not its path: Pillow 13 turns an uncompressed TIFF wrongly by its path.
    with nullcontext(source) if hasattr(source, "read") else open(source, "rb") as file:
        is_png = file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE
        file.seek(0)
        content = BytesIO(drop_metadata(file.read())) if is_png else file
        with Image.open(content, formats=formats) as image:
            yield image


def drop_metadata(png: bytes) -> bytes:
    """Leave out the chunks of a PNG file that no pixel depends on: Pillow refuses files where they are large.

    EXIF data, in a chunk of its own or as text, is kept, since it may hold the orientation.
    """
    kept, at = [png[: len(PNG_SIGNATURE)]], len(PNG_SIGNATURE)
    while at + 12 <= len(png):
        length, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        end = at + 12 + length
        is_exif = png[at + 8 : end].startswith(EXIF_AS_TEXT) and length < 2**16
        if kind in PNG_PIXELS or is_exif:
            kept.append(png[at:end])
        at = end
    return b"".join([*kept, png[at:]])


def read_orientation(image: Image.Image) -> int:
    """Read the orientation of an image, 1 to 8, before it is decoded; 1 if it is missing or broken."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
        value = int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # Pillow's parsers raise nearly any type on broken metadata
        return 1
    return value if value in TURNS else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(W, H) of an image as the file stores it, before its pixels are decoded."""
    # Pillow gives the upright size of a TIFF, and the stored size of all other formats.
    is_turned = image.format == "TIFF" and TURNS.get(read_orientation(image), (0,))[0]
    return image.size[::-1] if is_turned else image.size


def turn_upright(image: Image.Image) -> Image.Image:
    """Decode an image and turn it by its orientation."""
    orientation = read_orientation(image)
    image.load()
    if image.format == "TIFF":  # Pillow has turned it
        return image
    transposed, mirrored, flipped = TURNS.get(orientation, (0, 0, 0))
    for is_wanted, step in (
        (transposed, Image.Transpose.TRANSPOSE),
        (mirrored, Image.Transpose.FLIP_LEFT_RIGHT),
        (flipped, Image.Transpose.FLIP_TOP_BOTTOM),
    ):
        if is_wanted:
            image = image.transpose(step)
    return image


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Convert an upright image to 8-bit RGB, see `load_image`."""
    if image.mode.startswith(("I", "F")):  # 16-bit grey, or numbers of up to 1, 255 or 65535
        grey = np.asarray(image, dtype=np.float64)
        clear = grey == image.info["transparency"] if "transparency" in image.info else None
        grey = np.nan_to_num(grey, nan=0.0, posinf=0.0, neginf=0.0)
        tops = (1, 255, 65535) if image.mode == "F" else (65535,)
        top = next((top for top in tops if grey.max() <= top), grey.max())
        shown = (grey * 255 / top).round().clip(0, 255)
        if clear is not None:
            shown[clear] = 255  # laid on white
        return Image.fromarray(shown.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


class Fit(NamedTuple):
    """How an image was fitted into the encoder's square input.

    Attributes:
        size: (W, H) of the original image in pixels.
        region: (x0, y0, x1, y1), the part of the original image that the S×S input shows, in its pixels; it
            reaches beyond the image if the image was padded.
    """

    size: tuple[int, int]
    region: tuple[float, float, float, float]


def fit_region(size: tuple[int, int], fit: str) -> Fit:
    """Choose the region of an image that the encoder's square input shows.

    Args:
        size: (W, H) of the image in pixels.
        fit: ``"squash"`` shows the whole image and scales its sides separately; ``"crop"`` shows the largest
            centred square, as CLIP's own preprocessing does; ``"pad"`` shows the smallest square around it.

    Raises:
        VLScoreError: ``fit`` is none of `FITS`.
    """
    check_choice(fit, FITS, "fit")
    W, H = size
    if fit == "squash":
        return Fit(size, (0.0, 0.0, float(W), float(H)))
    side = min(W, H) if fit == "crop" else max(W, H)
    x0, y0 = (W - side) / 2, (H - side) / 2
    return Fit(size, (x0, y0, x0 + side, y0 + side))
