"""Images: from a file to upright pixels, and the region of an image that the encoder's square shows."""

from __future__ import annotations

import os
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlscore_lib.errors import VLScoreError, check_choice
from vlscore_lib.options import FITS


def load_image(source) -> Image.Image:
    """Open an image as upright 8-bit RGB.

    EXIF orientation is applied; an animation gives its first frame; transparency is laid on white;
    grey, palette, CMYK and 16-bit images are converted.

    Args:
        source: a path or a PIL image.

    Returns:
        A new RGB image; boxes of it are in its pixels, that is, in the upright frame.

    Raises:
        VLScoreError: no such file, not an image, cut short, or too large to be decoded safely.
    """
    if isinstance(source, Image.Image):
        path, opened = "the image", nullcontext(source)
    else:
        path = Path(source)
        if os.path.isdir(path):
            raise VLScoreError(f"{path} is a folder: give the path of one image")
        if not os.path.exists(path):
            raise VLScoreError(f"{path} does not exist: check the image's path")
        # An open file, not its path: Pillow 13 turns an uncompressed TIFF wrongly by its path.
        opened = open(path, "rb")  # noqa: SIM115
    try:
        with warnings.catch_warnings(), opened as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return convert_to_rgb(file if isinstance(file, Image.Image) else Image.open(file))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = Image.MAX_IMAGE_PIXELS / 1e6
        raise VLScoreError(f"{path} has more than {limit:.0f} megapixels: give a smaller copy") from None
    except Exception as error:  # Pillow's decoders raise nearly any type on a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its format is unknown"
        raise VLScoreError(
            f"{path} cannot be read as an image ({reason}): give a complete JPEG, PNG or WebP file"
        ) from None


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Turn a decoded image upright and convert it to 8-bit RGB, see `load_image`."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # 16-bit grey, or numbers of up to 1, 255 or 65535
        grey = np.asarray(upright, dtype=np.float64)
        tops = (1, 255, 65535) if upright.mode == "F" else (65535,)
        top = next((top for top in tops if grey.max() <= top), grey.max())
        return Image.fromarray((grey * 255 / top).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return upright.convert("RGB")


class Fit(NamedTuple):
    """How an image was fitted into the encoder's square input.

    Attributes:
        size: (W, H) of the original image in pixels.
        region: (x0, y0, x1, y1), the part of the original's plane that the S×S input shows; it
            reaches beyond the image where the image was padded.
    """

    size: tuple[int, int]
    region: tuple[float, float, float, float]


def fit_region(size: tuple[int, int], fit: str) -> Fit:
    """Choose the region of a W×H image that the square input shows.

    Args:
        size: (W, H) in pixels.
        fit: ``"squash"`` the whole image, its sides scaled separately; ``"crop"`` the largest
            centred square, as CLIP's own preprocessing; ``"pad"`` the smallest square around it.
    """
    check_choice(fit, FITS, "fit")
    W, H = size
    if fit == "squash":
        return Fit(size, (0.0, 0.0, float(W), float(H)))
    side = min(W, H) if fit == "crop" else max(W, H)
    x0, y0 = (W - side) / 2, (H - side) / 2
    return Fit(size, (x0, y0, x0 + side, y0 + side))
