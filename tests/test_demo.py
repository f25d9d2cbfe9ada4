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
DRAWN = {  # boxes drawn by hand around objects that data/photos does not have
    ("motorcycle_left.png", "a motorbike"): [(92, 75, 685, 452)],
    ("motorcycle_left.png", "a shelf"): [(335, 0, 722, 292)],
}


@pytest.fixture(scope="module")
def answered(lite0):
    """All answers, and what was printed."""
    with redirect_stdout(StringIO()) as printed:
        answers = demo.answer_all(lite0, demo.ASKED)
    return answers, printed.getvalue()


def drawn_boxes(answer) -> list[tuple]:
    """The boxes drawn by hand around the objects that were asked for."""
    photos = vlscore.hand_boxed_photos(ROOT / "data" / "photos").values()
    known = {(photo.path.name, photo.label): photo.boxes for photo in photos}
    word = answer.title.removeprefix("a ")
    return DRAWN.get((answer.photo.name, answer.title)) or known[answer.photo.name, word]


def test_each_object_has_one_box_and_each_box_its_object(answered):
    for answer in answered[0]:
        truth, found = drawn_boxes(answer), answer.found.boxes
        assert len(found) == len(truth), answer.title
        for box in truth:
            assert vlscore.box_iou([box], found) > 0.5, answer.title
        for box in found:
            assert vlscore.box_iou([box], truth) > 0.5, answer.title


def test_one_photo_is_asked_for_two_objects(answered):
    first, second = answered[0][:2]
    assert first.photo == second.photo
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
