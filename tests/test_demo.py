"""The picture of the first page: its boxes are right, and it is drawn as the book shows it."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import demo
import numpy as np
import pytest
from PIL import Image

import vlscore

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def answered(lite0):
    """All answers, and what was printed."""
    with redirect_stdout(StringIO()) as printed:
        answers = demo.answer_all(lite0, demo.ASKED)
    return answers, printed.getvalue()


def drawn_boxes(answer) -> list[tuple]:
    """The boxes drawn by hand around what was asked for, in pixels of the picture."""
    photos = vlscore.hand_boxed_photos(ROOT / "data" / "photos").values()
    known = {photo.path.name: photo for photo in photos}
    word, joined = answer.title.removeprefix("a "), len(answer.places)
    for n, photo in enumerate(known[Path(place).name] for place in answer.places):
        if photo.label == word:
            return [move(box, photo.size, n, joined) for box in photo.boxes] if joined > 1 else photo.boxes
    raise AssertionError(f"no photo of {answer.title}")


def move(box, size, place: int, joined: int) -> tuple:
    """A box in a photo of which the middle stands at a place in a picture of 768×512 pixels."""
    width = 768 / joined
    scale = max(width / size[0], 512 / size[1])
    left, top = ((length * scale - part) / 2 for length, part in zip(size, (width, 512)))
    x0, x1 = (min(max(x * scale - left, 0), width) + place * width for x in box[::2])
    y0, y1 = (min(max(y * scale - top, 0), 512) for y in box[1::2])
    return x0, y0, x1, y1


def test_each_object_has_one_box_and_each_box_its_object(answered):
    for answer in answered[0]:
        truth, found = drawn_boxes(answer), answer.found.boxes
        assert len(found) == len(truth), answer.title
        for box in truth:
            assert vlscore.box_iou([box], found) > 0.5, answer.title
        for box in found:
            assert vlscore.box_iou([box], truth) > 0.5, answer.title


def test_one_picture_is_asked_for_two_objects(answered):
    first, second = answered[0][:2]
    assert first.picture is second.picture
    assert first.picture.size == (768, 512)
    assert vlscore.box_iou(first.found.boxes, second.found.boxes) < 0.5


def test_every_box_is_printed_below_its_text(answered):
    answers, printed = answered
    assert max(map(len, printed.splitlines())) <= 80
    for answer in answers:
        after = printed.split(f"an image of {answer.title}.")[1].splitlines()
        lines = [f"  box  x {x0} to {x1}  y {y0} to {y1}" for x0, y0, x1, y1 in answer.found.boxes]
        assert after[1 : 1 + len(lines)] == lines


def test_the_committed_picture_is_the_one_that_is_drawn(answered, tmp_path):
    committed = ROOT / "book" / "_static" / "demo.jpg"
    assert committed.stat().st_size < 250_000
    (tmp_path / "demo.jpg").write_bytes(demo.render(demo.draw(answered[0]), ".jpg"))
    now, then = (
        np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (tmp_path / "demo.jpg", committed)
    )
    assert now.shape == then.shape
    assert abs(now - then).mean() < 4


def test_a_picture_of_another_kind_or_place_is_refused(capsys):
    for name, why in {"demo.gif": "not a picture", "nowhere/demo.png": "no folder nowhere"}.items():
        with pytest.raises(SystemExit) as stopped:
            demo.main([name])
        assert stopped.value.code == 2
        assert why in capsys.readouterr().err


def test_a_photo_of_a_missing_package_is_told():
    with pytest.raises(vlscore.VLScoreError, match="comes with nopackage"):
        demo.find_photo("nopackage/photo.jpg")
