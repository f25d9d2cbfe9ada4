"""Photos that cannot be used."""

import itertools
import os
import threading
import time
import warnings
from xml.etree import ElementTree

import pytest
from datasets_helpers import (
    SOLUTION,
    H,
    W,
    add_photo,
    convert,
    copy,
    facts,
    numbers,
    refusal,
    scene,
    voc,
)
from PIL import Image, ImageFile

import vlscore
from vlscore_lib.datasets import reading, voc as voc_room


def edit(pattern, value):
    """Change the first field of that name in the XML."""

    def spoil(photo, xml):
        root = ElementTree.fromstring(xml.read_text())
        next(root.iter(pattern)).text = value
        xml.write_text(ElementTree.tostring(root, encoding="unicode"))

    return spoil


def rewrite(corners, label=None):
    """Leave one object in the XML, of the class it was of."""

    def spoil(photo, xml):
        old = ElementTree.fromstring(xml.read_text()).findtext("object/name")
        xml.write_text(voc([(label or old, corners)]))

    return spoil


def cut(share):
    def spoil(photo, xml):
        content = photo.read_bytes()
        photo.write_bytes(content[: int(share * len(content))])

    return spoil


def swap_sides(xml):
    text = xml.read_text().replace("width>", "depth>").replace("height>", "width>")
    xml.write_text(text.replace("depth>", "height>"))


BAD = {
    "no XML": (lambda photo, xml: xml.unlink(), "no annotation"),
    "XML cut short": (lambda photo, xml: xml.write_text(xml.read_text()[:200]), "not a VOC annotation"),
    "a folder for an XML": (lambda photo, xml: (xml.unlink(), xml.mkdir()), "no annotation"),
    "another class": (rewrite((0, 0, 9, 9), label="n90000999"), "n90000999"),
    "right of the image": (rewrite((0, 0, W + 1, 9)), "outside"),
    "below the image": (rewrite((0, 0, 9, H + 1)), "outside"),
    "left of the image": (rewrite((-2, 0, 9, 9)), "outside"),
    "above the image": (rewrite((0, -2, 9, 9)), "outside"),
    "inside out": (rewrite((9, 0, 7, 9)), "outside"),
    "wholly in the column beyond": (rewrite((W, 0, W, 9)), "outside"),
    "wholly in the column before": (rewrite((-1, 0, -1, 9)), "outside"),
    "wholly in the row before": (rewrite((0, -1, 9, -1)), "outside"),
    "wholly in the row beyond": (rewrite((0, H, 9, H)), "outside"),
    "a number of 400 digits": (rewrite((0, 0, 9, 10**400)), ".xml"),
    "no object": (lambda photo, xml: xml.write_text(voc([])), "no object"),
    "another width": (edit("width", "170"), "is for 170×"),
    "sides swapped": (lambda photo, xml: swap_sides(xml), "is for 120×160 pixels, but the photo"),
    "a negative height": (edit("height", "-120"), "-120"),
    "half a photo": (cut(0.5), "not a complete photo"),
    "most of a photo": (cut(0.95), "not a complete photo"),
    "an empty photo": (cut(0), "not a complete photo"),
    "garbage": (lambda photo, xml: photo.write_bytes(bytes(range(256)) * 9), "not a complete photo"),
    "an XML for a photo": (lambda photo, xml: photo.write_text(xml.read_text()), "not a complete photo"),
    "a folder for a photo": (lambda photo, xml: (photo.unlink(), photo.mkdir()), "not a complete photo"),
}


@pytest.mark.parametrize("layout", ["official", "torchvision"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_photo_is_told_or_left_out(ten, truth, tmp_path, name, layout):
    """The photo's class is told by LOC_val_solution.csv in one layout, by the folder in the other."""
    root = convert(layout, ten, tmp_path / "set")
    if layout == "official":
        copy(ten / SOLUTION, root / SOLUTION)
    spoil, said = BAD[name]
    spoil(next(root.glob(f"val/**/{scene(3)}.JPEG")), root / f"bbox/val/{scene(3)}.xml")
    message = refusal(root)
    assert message.startswith("1 of 10 photos cannot be used: ")
    assert scene(3) in message
    assert said in message
    dataset = vlscore.read_dataset(root, skip_bad=True)
    assert facts(dataset) == truth[:2] + truth[3:]
    assert len(dataset.bad) == 1
    assert scene(3) in dataset.bad[0]
    assert said in dataset.bad[0]


@pytest.mark.parametrize("text", ["n90000001\nn90000002", "two\u2028lines"])
def test_a_class_of_two_lines_is_told_in_one(official, text):
    (official / f"bbox/val/{scene(3)}.xml").write_text(voc([(text, (0, 0, 9, 9))]))
    assert scene(3) in refusal(official)


def test_a_photo_that_is_listed_but_missing_is_told(ten, truth, tmp_path):
    root = convert("wsolevaluation", ten, tmp_path / "set")
    (root / f"val/{scene(3)}.JPEG").unlink()
    assert f"{scene(3)}.JPEG does not exist" in refusal(root)
    dataset = vlscore.read_dataset(root, skip_bad=True)
    assert facts(dataset) == truth[:2] + truth[3:]


def test_all_bad_photos_are_told_at_once_and_in_order(official):
    (official / f"bbox/val/{scene(2)}.xml").unlink()
    (official / f"bbox/val/{scene(9)}.xml").write_text(voc([]))
    (official / f"val/{scene(5)}.JPEG").write_bytes(b"no photo")
    message = refusal(official)
    assert message.startswith("3 of 10 photos cannot be used: ")
    assert message.index(scene(2)) < message.index(scene(5)) < message.index(scene(9))
    dataset = vlscore.read_dataset(official, skip_bad=True)
    assert numbers(dataset) == [1, 3, 4, 6, 7, 8, 10]
    assert [next(n for n in (2, 5, 9) if scene(n) in line) for line in dataset.bad] == [2, 5, 9]


def test_only_chosen_photos_are_checked(official):
    (official / f"val/{scene(5)}.JPEG").write_bytes(b"no photo")
    assert numbers(vlscore.read_dataset(official, first=4)) == [1, 2, 3, 4]


def test_a_set_of_bad_photos_alone_is_refused_even_when_they_are_left_out(official):
    for path in (official / "bbox/val").iterdir():
        path.unlink()
    assert scene(1) in refusal(official, skip_bad=True)


def test_a_hundred_bad_photos_are_named_and_the_others_counted(tmp_path):
    for n in range(103):
        _, xml = add_photo(tmp_path, scene(n), [("cat", (0, 0, 1, 1))], pixels=(8, 8))
        xml.unlink()
    message = refusal(tmp_path)
    assert message.startswith("103 of 103 photos")
    assert scene(99) in message
    assert scene(100) not in message
    assert "and 3 more" in message


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        ((-1, 5, 9, 9), (0, 5, 10, 10)),
        ((5, -1, 9, 9), (5, 0, 10, 10)),
        ((5, 5, W, 9), (5, 5, W, 10)),
        ((5, 5, 9, H), (5, 5, 10, H)),
        ((-1, -1, W, H), (0, 0, W, H)),
    ],
)
def test_a_box_that_ends_one_pixel_outside_is_clipped(tmp_path, corners, box):
    add_photo(tmp_path, "photo", [("cat", corners)])
    assert vlscore.read_dataset(tmp_path).photos[0].boxes == [box]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [40, 200, 1000])
def test_a_photo_that_cannot_be_loaded_is_not_accepted(tmp_path, ten, missing, progressive):
    """A photo is decoded at an eighth of its size for the check: what is cut short shows all the same."""
    photo, _ = add_photo(tmp_path, "photo", [("cat", (0, 0, 1, 1))])
    with Image.open(ten / f"val/{scene(1)}.JPEG") as image:
        image.save(photo, quality=95, progressive=progressive)
    photo.write_bytes(photo.read_bytes()[:-missing])
    with pytest.raises(vlscore.VLScoreError):
        vlscore.load_image(photo)
    assert "not a complete photo" in refusal(tmp_path)


def test_a_photo_too_large_to_be_decoded_is_told(official, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H - 1)
    message = refusal(official)
    assert message.startswith("10 of 10 photos")


def test_checking_in_threads_leaves_python_s_warnings_as_they_were(ten, monkeypatch):
    """Python's filters are the process's own: here, the second photo's check begins and ends the later."""
    annotate, load = voc_room.annotate, ImageFile.ImageFile.load
    begun, turns, loads = [threading.Event(), threading.Event()], itertools.count(), itertools.count()

    def annotate_in_turn(listed):
        if next(turns) == 1:
            begun[0].wait(1)
        return annotate(listed)

    def load_in_turn(image):
        turn = next(loads)
        begun[turn].set()
        begun[1].wait(1)
        time.sleep(0.1 * turn)
        return load(image)

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(reading, "annotate", annotate_in_turn)
    monkeypatch.setattr(ImageFile.ImageFile, "load", load_in_turn)
    with warnings.catch_warnings():
        before = list(warnings.filters)
        vlscore.read_dataset(ten, first=2)
        assert list(warnings.filters) == before


def test_progress_wraps_the_photos(ten):
    seen = []

    def progress(photos):
        for each in photos:
            seen.append(each)
            yield each

    dataset = vlscore.read_dataset(ten, limit=3, progress=progress)
    assert seen == dataset.photos
