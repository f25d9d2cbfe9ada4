"""Pixels never depend on metadata: only the orientation is read, and odd entries beside it change nothing."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw, PngImagePlugin, TiffImagePlugin

import vlscore

# Sizes of EXIF's types 1 to 13; the others do not exist.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
KINDS = (*SIZES, 0, 99, 65535)
EXIF_TAGS = sorted(set(ExifTags.TAGS) - {ExifTags.Base.Orientation})


def picture():
    image = Image.new("RGB", (96, 64), "navy")
    ImageDraw.Draw(image).rectangle((0, 0, 32, 21), fill="red")
    return image


def exif(*entries, orientation=6):
    """A little-endian TIFF header of (tag, type, count, bytes) entries."""
    entries = sorted([(0x0112, 3, 1, struct.pack("<HH", orientation, 0)), *entries])
    offset, head, tail = 8 + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind, count, value in entries:
        inline = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", offset + len(tail))
        tail += value if len(value) > 4 else b""
        head += struct.pack("<HHI", tag, kind, count) + inline
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + head + bytes(4) + tail


def encoded(form, data=None, **options):
    """The picture as a file's content, with EXIF data in it."""
    content = BytesIO()
    options |= {} if data is None else {"exif": b"Exif\0\0" + data if form == "JPEG" else data}
    picture().save(content, form, **options)
    return content.getvalue()


def read(tmp_path, content):
    (tmp_path / "photo").write_bytes(content)
    return vlscore.load_image(tmp_path / "photo")


def assert_upright(image, atol=40):
    """Turned by orientation 6: the red corner is at the top right."""
    assert image.size == (64, 96)
    pixels = np.asarray(image, dtype=int)
    assert (abs(pixels[5:25, 48:60] - [255, 0, 0]) <= atol).all()
    assert (abs(pixels[50:90, 5:35] - [0, 0, 128]) <= atol).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_entry_of_a_wrong_type_hides_the_orientation(form, kind):
    """Read from memory: these are 13,000 photos, and files of such entries follow below."""
    for tag in EXIF_TAGS:
        value = b"\7" * SIZES.get(kind, 4)
        assert_upright(vlscore.load_image(encoded(form, exif((tag, kind, 1, value)))))


ODD = {
    "a value beyond the file": (0x010F, 2, 400, b"\xff\xff\xff\x7f"),
    "a count of four billion": (0x011A, 5, 2**32 - 1, b"\x08\0\0\0"),
    "a broken sub-IFD": (0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    "a sub-IFD that is its own": (0x8769, 4, 1, b"\x08\0\0\0"),
    "a broken GPS IFD": (0x8825, 4, 1, b"\x01\0\0\0"),
    "a maker note of zeros": (0x927C, 7, 60_000, bytes(60_000)),
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("entry", ODD.values(), ids=ODD)
def test_broken_entries_change_nothing(tmp_path, form, entry):
    assert_upright(read(tmp_path, encoded(form, exif(entry))))


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_an_unknown_orientation_turns_nothing(tmp_path, orientation):
    assert read(tmp_path, encoded("JPEG", exif(orientation=orientation))).size == (96, 64)


@pytest.mark.parametrize("content", [b"", b"II", b"II*\0", b"MM\0*\xff\xff\xff\xff", bytes(50)])
def test_exif_data_that_is_no_exif_turns_nothing(tmp_path, content):
    assert read(tmp_path, encoded("JPEG", content)).size == (96, 64)


TIFF_TAGS = [
    (271, 2, "maker"),
    (271, 3, 7),
    (282, 2, "abc"),
    (296, 12, 2.0),
    (305, 4, 7),
    (34665, 4, 2**31 - 1),
    (34853, 2, "no IFD"),
    (34675, 7, bytes(70_000)),
    (700, 1, b"<x:xmpmeta"),
]


@pytest.mark.parametrize("tag, kind, value", TIFF_TAGS)
def test_a_tiff_is_turned_whatever_else_it_says(tmp_path, tag, kind, value):
    facts = TiffImagePlugin.ImageFileDirectory_v2()
    facts[274] = 6
    facts.tagtype[tag] = kind
    facts[tag] = value
    path = tmp_path / "photo.tif"
    picture().save(path, tiffinfo=facts)
    assert_upright(vlscore.load_image(path))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "jpeg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_compressed_tiff_is_turned_once(tmp_path, compression, orientation):
    path = tmp_path / "photo.tif"
    picture().save(path, tiffinfo={274: orientation}, compression=compression)
    one = np.asarray(vlscore.load_image(path), dtype=int)
    other = np.asarray(read(tmp_path, encoded("PNG", exif(orientation=orientation))), dtype=int)
    assert one.shape == other.shape
    assert abs(one - other).mean() < 8


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_loaded_photo_is_not_turned_again(tmp_path, form):
    once = read(tmp_path, encoded(form, exif()))
    again = vlscore.load_image(once)
    assert_upright(again)
    assert again.tobytes() == once.tobytes()


# ── PNG ──────────────────────────────────────────────────────────────────────────────────────────


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


LARGE = zlib.compress(b"x" * 3_000_000)
CHUNKS = {
    "text": chunk(b"tEXt", b"comment\0" + b"x" * 3_000_000),
    "compressed text": chunk(b"zTXt", b"comment\0\0" + LARGE),
    "international text": chunk(b"iTXt", b"comment\0\1\0\0\0" + LARGE),
    "a colour profile": chunk(b"iCCP", b"profile\0\0" + LARGE),
    "a profile of unknown compression": chunk(b"iCCP", b"profile\0\7" + LARGE),
    "a gamma cut short": chunk(b"gAMA", b"\0"),
    "a private chunk": chunk(b"prVt", bytes(2_000_000)),
}


@pytest.mark.parametrize("place", ["before the pixels", "after them"])
@pytest.mark.parametrize("extra", CHUNKS.values(), ids=CHUNKS)
def test_chunks_beside_the_pixels_change_nothing(tmp_path, extra, place):
    png = encoded("PNG")
    at = 33 if place == "before the pixels" else len(png) - 12  # behind IHDR, or before IEND
    assert read(tmp_path, png[:at] + extra + png[at:]).tobytes() == picture().tobytes()


def test_the_orientation_may_stand_in_a_text_of_a_png(tmp_path):
    """As older versions of ImageMagick write it."""
    data, info = b"Exif\0\0" + exif(), PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    assert_upright(read(tmp_path, encoded("PNG", pnginfo=info)))


def test_a_png_cut_short_is_still_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    content = BytesIO()
    Image.fromarray(noise).save(content, "PNG")
    with pytest.raises(vlscore.VLScoreError, match="cannot be read as an image"):
        read(tmp_path, content.getvalue()[:5000])


# ── Values ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_0_and_spoils_no_other(tmp_path, value):
    grey = np.linspace(0, 1, 96 * 64, dtype=np.float32).reshape(64, 96)
    spoilt = grey.copy()
    spoilt[30, 30] = value
    grey[30, 30] = 0
    Image.fromarray(spoilt).save(tmp_path / "spoilt.tif")
    found = np.asarray(vlscore.load_image(tmp_path / "spoilt.tif"))[..., 0]
    assert np.array_equal(found, (grey * 255).round())


def test_transparent_16_bit_grey_is_laid_on_white(tmp_path):
    grey = np.full((64, 96), 20_000, np.uint16)
    grey[:32] = 1000
    png = BytesIO()
    Image.fromarray(grey).save(png, "PNG")
    content = png.getvalue()
    content = content[:33] + chunk(b"tRNS", struct.pack(">H", 1000)) + content[33:]
    found = np.asarray(read(tmp_path, content))
    assert (found[:32] == 255).all()
    assert (found[32:] == round(20_000 / 257)).all()
