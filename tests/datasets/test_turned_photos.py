"""Photos that the camera turned."""

import numpy as np
import pytest
from datasets_helpers import CLASS_LIST, SOLUTION, add_photo, convert, refusal, voc
from PIL import Image

import vlscore

# In the stored pixels, and in whole blocks of a JPEG: (x0, y0, x1, y1), half-open.
STORED, BRIGHT = (64, 48), (8, 16, 24, 40)


def turned_photo(path, orientation, size=STORED):
    """A dark photo with one bright rectangle, as the camera stores it."""
    pixels = np.full((size[1], size[0], 3), 20, np.uint8)
    x0, y0, x1, y1 = BRIGHT
    pixels[y0:y1, x0:x1] = 240
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=95, subsampling=0, exif=exif)


def bright_box(path):
    """The bright rectangle of the photo as vlscore loads it."""
    bright = np.asarray(vlscore.load_image(path).convert("L")) > 128
    rows, columns = bright.any(1).nonzero()[0], bright.any(0).nonzero()[0]
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def with_last_pixel(box):
    return box[0], box[1], box[2] - 1, box[3] - 1


@pytest.mark.parametrize("size", [STORED, (48, 48)], ids=["oblong", "square"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_the_stored_photo_is_turned_with_it(tmp_path, orientation, size):
    photo, _ = add_photo(tmp_path, "photo", [("cat", with_last_pixel(BRIGHT))], size)
    turned_photo(photo, orientation, size)
    [read] = vlscore.read_dataset(tmp_path).photos
    assert read.boxes == [bright_box(photo)]
    assert read.size == vlscore.load_image(photo).size == (size[::-1] if orientation > 4 else size)


@pytest.mark.parametrize("orientation", range(5, 9))
def test_a_box_of_the_upright_photo_stays(tmp_path, orientation):
    photo, xml = add_photo(tmp_path, "photo", [])
    turned_photo(photo, orientation)
    box = bright_box(photo)
    xml.write_text(voc([("cat", with_last_pixel(box))], size=STORED[::-1]))
    assert vlscore.read_dataset(tmp_path).photos[0].boxes == [box]


@pytest.mark.parametrize("upright", [False, True])
def test_a_turned_photo_s_box_is_scaled_too(tmp_path, upright):
    """The annotation is of a photo of three times the size."""
    photo, xml = add_photo(tmp_path, "photo", [])
    turned_photo(photo, 6)
    (x0, y0, x1, y1) = box = bright_box(photo)
    if upright:
        xml.write_text(voc([("cat", (3 * x0, 3 * y0, 3 * x1 - 1, 3 * y1 - 1))], size=(3 * 48, 3 * 64)))
    else:
        x0, y0, x1, y1 = BRIGHT
        xml.write_text(voc([("cat", (3 * x0, 3 * y0, 3 * x1 - 1, 3 * y1 - 1))], size=(3 * 64, 3 * 48)))
    assert vlscore.read_dataset(tmp_path).photos[0].boxes == [box]


@pytest.mark.parametrize("kind", ["wsolevaluation", "kaggle, CSV"])
def test_boxes_of_a_turned_photo_in_a_list_are_of_the_stored_photo(tmp_path, kind):
    """These layouts were measured on the pixels in the files."""
    source = tmp_path / "source"
    photo, _ = add_photo(source, "photo", [("n90000001", with_last_pixel(BRIGHT))], STORED)
    turned_photo(photo, 6)
    (source / CLASS_LIST).write_text("n90000001 cat\n")
    (source / SOLUTION).write_text(
        "ImageId,PredictionString\nphoto,n90000001 " + " ".join(map(str, with_last_pixel(BRIGHT))) + "\n"
    )
    [read] = vlscore.read_dataset(convert(kind, source, tmp_path / "set")).photos
    assert read.boxes == [bright_box(photo)] != [BRIGHT]


@pytest.mark.parametrize("upright", [False, True])
def test_a_huge_size_of_a_turned_photo_is_told(tmp_path, upright):
    photo, xml = add_photo(tmp_path, "photo", [])
    turned_photo(photo, 6)
    size = (10**400, 9) if upright else (9, 10**400)
    xml.write_text(voc([("cat", (1, 1, 2, 2))], size))
    assert "photo" in refusal(tmp_path)
