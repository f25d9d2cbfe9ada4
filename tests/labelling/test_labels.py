"""The journal of a labelling, and the photos below a folder."""

import os

import pytest
from PIL import Image

import vlscore

PARAMETERS = {"model": "m", "classes": ["dog", "cat"], "keep": 64, "threshold": None}
PHOTO = vlscore.LabelledPhoto("a.jpg", (10, 20), [vlscore.LabelledBox("dog", 0.5, (1, 2, 3, 4))])


def test_a_journal_is_read_as_it_was_written(tmp_path):
    journal = vlscore.Journal(tmp_path / "out", PARAMETERS)
    journal.add(PHOTO)
    journal.skip("b.jpg", "b.jpg is broken")
    again = vlscore.Journal(tmp_path / "out", PARAMETERS)
    assert again.photos == {"a.jpg": PHOTO}
    assert again.skipped == {"b.jpg": "b.jpg is broken"}
    assert [again.is_done(name) for name in ("a.jpg", "b.jpg", "c.jpg")] == [True, True, False]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_short_is_dropped(tmp_path, cut):
    journal = vlscore.Journal(tmp_path / "out", PARAMETERS)
    journal.add(PHOTO)
    whole = journal.file.read_bytes()
    journal.add(vlscore.LabelledPhoto("b.jpg", (5, 5), []))
    content = journal.file.read_bytes()
    journal.file.write_bytes(content[: min(len(whole) + cut, len(content) - 1)])
    again = vlscore.Journal(tmp_path / "out", PARAMETERS)
    assert list(again.photos) == ["a.jpg"]
    assert journal.file.read_bytes() == whole


@pytest.mark.parametrize("change", [{"classes": ["dog"]}, {"keep": 32}, {"threshold": 0.5}])
def test_other_options_are_refused_by_name(tmp_path, change):
    vlscore.Journal(tmp_path / "out", PARAMETERS)
    (name,) = change
    with pytest.raises(vlscore.VLScoreError, match=f"labels made with other {name}"):
        vlscore.Journal(tmp_path / "out", PARAMETERS | change)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(vlscore.VLScoreError, match="holds files other"):
        vlscore.Journal(tmp_path / "out", PARAMETERS)
    (tmp_path / "file").touch()
    with pytest.raises(vlscore.VLScoreError, match="is a file"):
        vlscore.Journal(tmp_path / "file", PARAMETERS)


def test_a_file_that_a_kill_left_half_written_is_nothing_else(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".vlscore-abc").touch()
    vlscore.Journal(tmp_path / "out", PARAMETERS).add(PHOTO)


@pytest.mark.parametrize("content", [b"no json\n", b"{}\n", b"[1]\n"])
def test_a_damaged_journal_is_told(tmp_path, content):
    journal = vlscore.Journal(tmp_path / "out", PARAMETERS)
    journal.file.write_bytes(content)
    with pytest.raises(vlscore.VLScoreError, match="is damaged"):
        vlscore.Journal(tmp_path / "out", PARAMETERS)


@pytest.mark.parametrize(
    "classes, words",
    [
        ([], "there is no class"),
        (["dog", " "], "without a name"),
        (["dog", "cat", "dog "], "'dog' is named twice"),
        ("dog", "expected a list of classes, not one text"),
    ],
)
def test_classes_that_cannot_be_used(classes, words):
    with pytest.raises(vlscore.VLScoreError, match=words):
        vlscore.check_classes(classes)


def test_photos_below_a_folder(tmp_path):
    """Of any format and depth; no hidden ones, no other files, nothing that links lead out to."""
    root = tmp_path / "photos"
    for name in (
        "b.JPG",
        "a.png",
        "deep/er/c.webp",
        "deep/with space ü.bmp",
        ".hidden/d.jpg",
        ".e.jpg",
        "out/f.jpg",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(path)
    (root / "notes.txt").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (9, 9)).save(outside / "g.jpg")
    os.symlink(outside / "g.jpg", root / "link.jpg")
    os.symlink(outside, root / "linked")
    os.symlink(root / "a.png", root / "inside.png")
    found = [path.relative_to(root).as_posix() for path in vlscore.find_photos(root, root / "out")]
    assert found == ["a.png", "b.JPG", "deep/er/c.webp", "deep/with space ü.bmp", "inside.png"]


def test_no_folder_and_no_photo(tmp_path):
    with pytest.raises(vlscore.VLScoreError, match="is not a folder"):
        vlscore.find_photos(tmp_path / "nothing")
    with pytest.raises(vlscore.VLScoreError, match="has no photo"):
        vlscore.find_photos(tmp_path)
