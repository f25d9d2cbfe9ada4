"""From a file to upright 8-bit RGB, and from there to the encoder's square."""

import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

import vlscore

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)  # 7×5 pixels, all unlike


def png(width, height, depth, colour, rows=b""):
    """A PNG made by hand: colour 0 is grey, 2 RGB; ``rows`` are raw, each after a filter byte."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def cut(name, folder):
    """A photo-like file without its second half."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / name)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


# What cannot be read, by file name: a function that puts it into a folder.
BROKEN = {
    "missing.png": lambda folder: None,
    "folder.png": lambda folder: (folder / "folder.png").mkdir(),
    "empty.jpg": write("empty.jpg", b""),
    "text.jpg": write("text.jpg", b"Dear diary,\n\ntoday I was a photo.\n"),
    "cut.jpg": lambda folder: cut("cut.jpg", folder),
    "cut.png": lambda folder: cut("cut.png", folder),
    "cut.webp": lambda folder: cut("cut.webp", folder),
    "bomb.png": write("bomb.png", png(60_000, 60_000, 8, 2)),
    "just_too_large.png": write("just_too_large.png", png(9_460, 9_460, 8, 2)),
}


def broken(name, folder):
    """Put the broken file into a folder -> its path."""
    BROKEN[name](folder)
    return folder / name


def pixels_of(path):
    image = vlscore.load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


# ── Odd, but valid ───────────────────────────────────────────────────────────────────────────────


def test_a_path_may_be_a_string(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    assert (pixels_of(str(tmp_path / "rgb.png")) == RGB).all()


@pytest.mark.parametrize("kind", ["webp", "tiff", "bmp", "ppm"])
def test_other_lossless_files(tmp_path, kind):
    Image.fromarray(RGB).save(tmp_path / f"rgb.{kind}", lossless=True)
    assert (pixels_of(tmp_path / f"rgb.{kind}") == RGB).all()


def test_the_content_counts_not_the_ending(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "really_a_png.jpg", "PNG")
    assert (pixels_of(tmp_path / "really_a_png.jpg") == RGB).all()


def test_16_bit_grey_png(tmp_path):
    (tmp_path / "grey.png").write_bytes(
        png(5, 1, 16, 0, b"\0" + struct.pack(">5H", 0, 257, 32768, 65278, 65535))
    )
    values = pixels_of(tmp_path / "grey.png")
    assert values.tolist() == [[[v] * 3 for v in (0, 1, 128, 254, 255)]]


def test_16_bit_rgb_png(tmp_path):
    (tmp_path / "rgb.png").write_bytes(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 65535, 32768, 0)))
    assert pixels_of(tmp_path / "rgb.png").tolist() == [[[255, 128, 0]]]


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_grey_tiff(tmp_path, order):
    values = np.array([[0, 257, 32768, 65535]], dtype=order)
    Image.fromarray(values).save(tmp_path / "grey.tiff")
    assert pixels_of(tmp_path / "grey.tiff")[0, :, 1].tolist() == [0, 1, 128, 255]


def test_8_bit_grey(tmp_path):
    Image.fromarray(RGB[..., 0]).save(tmp_path / "grey.png")
    assert (pixels_of(tmp_path / "grey.png") == RGB[..., :1]).all()


def test_1_bit(tmp_path):
    Image.fromarray(RGB[..., 0] > 127).save(tmp_path / "bits.png")
    assert (pixels_of(tmp_path / "bits.png") == (RGB[..., :1] > 127) * 255).all()


def test_cmyk_jpeg(tmp_path):
    """Adobe's CMYK files hold inverted values."""
    for name, colour in {"white": (255, 255, 255), "red": (255, 0, 0), "navy": (0, 0, 128)}.items():
        Image.new("RGB", (16, 16), colour).convert("CMYK").save(tmp_path / f"{name}.jpg", quality=95)
        assert np.abs(pixels_of(tmp_path / f"{name}.jpg").astype(int) - colour).max() <= 8


def test_palette(tmp_path):
    image = Image.fromarray(RGB).quantize(256)
    image.save(tmp_path / "palette.png")
    assert (pixels_of(tmp_path / "palette.png") == np.asarray(image.convert("RGB"))).all()


def test_a_transparent_palette_entry_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    assert pixels_of(tmp_path / "palette.png").tolist() == [[[255] * 3, [200, 100, 0]]]


def test_a_transparent_colour_is_white(tmp_path):
    image = Image.fromarray(np.uint8([[[10, 20, 30], [200, 100, 0]]]))
    image.save(tmp_path / "key.png", transparency=(10, 20, 30))
    assert pixels_of(tmp_path / "key.png").tolist() == [[[255] * 3, [200, 100, 0]]]


def test_rgba_lies_on_white(tmp_path):
    colours = [[0, 0, 0, 0], [200, 100, 0, 255], [0, 0, 0, 128]]
    Image.fromarray(np.uint8([colours])).save(tmp_path / "rgba.png")
    assert pixels_of(tmp_path / "rgba.png").tolist() == [[[255] * 3, [200, 100, 0], [127] * 3]]


def test_grey_with_alpha_lies_on_white(tmp_path):
    Image.fromarray(np.uint8([[[0, 0], [90, 255]]]), "LA").save(tmp_path / "la.png")
    assert pixels_of(tmp_path / "la.png").tolist() == [[[255] * 3, [90] * 3]]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    assert (pixels_of(tmp_path / "frames.gif") == (255, 0, 0)).all()


# How a camera that writes each EXIF orientation stores the upright picture.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def oriented(upright, orientation, path):
    """Save upright pixels in the way of an EXIF orientation -> the path."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_is_made_upright(tmp_path, orientation):
    assert (pixels_of(oriented(RGB, orientation, tmp_path / "turned.png")) == RGB).all()


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_exif_orientation_of_a_tiff(tmp_path, compression):
    """Pillow 13 garbles an uncompressed grey one if it is given the path, and not an open file."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(RGB[..., 0])))
    stored.save(tmp_path / "turned.tiff", tiffinfo=tags, compression=compression)
    assert pixels_of(tmp_path / "turned.tiff")[..., 0].tolist() == RGB[..., 0].tolist()


def test_exif_orientation_of_16_bit_grey(tmp_path):
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257
    assert pixels_of(oriented(values, 6, tmp_path / "turned.png"))[..., 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_pil_image_is_not_changed():
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = 6
    found = vlscore.load_image(image)
    found.paste("black", (0, 0, 2, 2))
    assert found.size == (5, 7)
    assert (image.size, image.mode, image.getexif()[0x0112]) == ((7, 5), "RGB", 6)
    assert (np.asarray(image) == RGB).all()


def test_a_plain_pil_image_is_copied():
    image = Image.fromarray(RGB)
    vlscore.load_image(image).paste("black", (0, 0, 7, 5))
    assert (np.asarray(image) == RGB).all()


# ── Bad input ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_told_in_a_line_with_the_path(tmp_path, name):
    path = broken(name, tmp_path)
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.load_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def peak_memory():
    """The most that this process has held since its peak was last reset, in KiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.parametrize("name", ["bomb.png", "just_too_large.png"])
def test_a_decompression_bomb_costs_neither_time_nor_memory(tmp_path, name):
    path = broken(name, tmp_path)
    assert path.stat().st_size < 200
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held now
    start, peak = time.process_time(), peak_memory()
    with pytest.raises(vlscore.VLScoreError, match="megapixels"):
        vlscore.load_image(path)
    assert time.process_time() - start < 0.5
    assert peak_memory() - peak < 50_000


def test_a_name_too_long_for_the_file_system_is_bad_input():
    with pytest.raises(vlscore.VLScoreError):
        vlscore.load_image("a" * 300 + ".png")


# ── Into the square ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fit", "region"),
    [("squash", (0, 0, 300, 201)), ("crop", (49.5, 0, 250.5, 201)), ("pad", (0, -49.5, 300, 250.5))],
)
def test_fit_region_of_a_wide_image(fit, region):
    assert vlscore.fit_region((300, 201), fit) == ((300, 201), region)


@pytest.mark.parametrize(("fit", "region"), [("crop", (0, 50, 200, 250)), ("pad", (-50, 0, 250, 300))])
def test_fit_region_of_a_tall_image(fit, region):
    assert vlscore.fit_region((200, 300), fit) == ((200, 300), region)


@pytest.mark.parametrize("fit", vlscore.FITS)
def test_fit_region_of_a_square_image_is_the_image(fit):
    assert vlscore.fit_region((64, 64), fit).region == (0, 0, 64, 64)


def test_an_unknown_fit_is_told(lite0):
    with pytest.raises(vlscore.VLScoreError, match=r"'stretch'.*squash, crop, pad"):
        lite0.preprocess(Image.new("RGB", (9, 9)), "stretch")


@pytest.mark.parametrize("fit", vlscore.FITS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (224, 224), (449, 223)])
def test_any_size_fits(lite0, size, fit):
    """White becomes (255 - 127) / 128 = 1, and only padding is 0."""
    X = lite0.preprocess(Image.new("RGB", size, "white"), fit)
    assert (X.shape, X.dtype) == ((3, 224, 224), torch.float32)
    assert set(X.unique().tolist()) <= {0.0, 1.0}
    rows, columns = (X[0] == 1).any(1).sum().item(), (X[0] == 1).any(0).sum().item()
    W, H = size
    longest = max(size) if fit == "pad" else 0
    assert rows == pytest.approx(max(1, 224 * H / longest) if longest else 224, abs=1)
    assert columns == pytest.approx(max(1, 224 * W / longest) if longest else 224, abs=1)


def test_each_channel_is_normalised_by_its_own_mean_and_deviation(vit):
    X = vit.preprocess(Image.new("RGB", (10, 10), (255, 128, 0)))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = [(v / 255 - m) / s for v, m, s in zip((255, 128, 0), mean, std)]
    torch.testing.assert_close(X.amax((1, 2)), torch.tensor(expected))
    torch.testing.assert_close(X.amin((1, 2)), torch.tensor(expected))


def halves(width, height):
    """Black on the left, white on the right."""
    image = Image.new("RGB", (width, height))
    image.paste("white", (width // 2, 0, width, height))
    return image


def test_squash_shows_all_of_a_wide_image(lite0):
    X = lite0.preprocess(halves(400, 100), "squash")[0]
    assert (X[:, :108] < 0).all() and (X[:, 116:] > 0).all()


def test_crop_shows_the_middle(lite0):
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    assert (lite0.preprocess(image, "crop")[..., 2:-2] == 1).all()


def test_pad_puts_the_image_in_the_middle(lite0):
    X = lite0.preprocess(halves(448, 224), "pad")[0]
    assert (X[:56] == 0).all() and (X[168:] == 0).all()
    assert (X[56:168, :108] < 0).all() and (X[56:168, 116:] > 0).all()


def test_an_image_of_the_input_size_is_not_resampled(lite0):
    values = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    expected = (torch.from_numpy(values).float() - 127) / 128
    for fit in vlscore.FITS:
        torch.testing.assert_close(lite0.preprocess(Image.fromarray(values), fit), expected.permute(2, 0, 1))


def test_preprocess_takes_a_path_and_turns_it_upright(lite0, tmp_path):
    path = oriented(RGB, 6, tmp_path / "turned.png")
    assert lite0.preprocess(path).equal(lite0.preprocess(Image.fromarray(RGB)))
