"""Annotations, the photos they belong to, and files that are written whole or not at all."""

import errno
import os
import stat
from pathlib import Path

import pytest
from PIL import Image

import vlscore

PHOTOS = Path(__file__).parents[1] / "data" / "photos"
ANNOTATION = """<annotation>
  <folder>some/place</folder>
  <filename>photo.jpg</filename>
  <size><width>500</width><height>375</height><depth>3</depth></size>
  <object><name>cat</name><bndbox><xmin>0</xmin><ymin>10</ymin><xmax>99</xmax><ymax>29</ymax></bndbox></object>
  <object><name>dog</name><bndbox><xmin>499</xmin><ymin>374</ymin><xmax>499</xmax><ymax>374</ymax></bndbox></object>
</annotation>
"""


@pytest.fixture
def annotation(tmp_path):
    """Write an XML -> its path."""

    def write(text):
        (tmp_path / "photo.xml").write_text(text)
        return tmp_path / "photo.xml"

    return write


# ── VOC XML ──────────────────────────────────────────────────────────────────────────────────────


def test_last_pixels_become_half_open_edges(annotation):
    file, size, objects = vlscore.read_voc(annotation(ANNOTATION))
    assert (file, size) == ("some/place/photo.jpg", (500, 375))
    assert objects == [("cat", (0, 10, 100, 30)), ("dog", (499, 374, 500, 375))]


def test_an_annotation_may_have_no_objects(annotation):
    start, end = ANNOTATION.index("  <object>"), ANNOTATION.index("</annotation>")
    assert vlscore.read_voc(annotation(ANNOTATION[:start] + ANNOTATION[end:]))[2] == []


LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
REFUSED = {
    "billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>' + ANNOTATION.replace("cat", "&l9;"),
    "an entity": '<!DOCTYPE a [<!ENTITY l0 "ha">]>' + ANNOTATION.replace("cat", "&l0;"),
    "external entity": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    + ANNOTATION.replace("cat", "&x;"),
    "empty": "",
    "no XML": "a cat, at 0 10",
    "cut short": ANNOTATION[:200],
    "another XML": "<html><body>cat</body></html>",
    "a word for a number": ANNOTATION.replace("<xmin>0<", "<xmin>left<"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_annotation_is_told_in_a_line_with_the_path(annotation, name):
    path = annotation(REFUSED[name])
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.read_voc(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["folder", "filename", "size", "width", "height", "name", "bndbox", "ymax"])
def test_a_missing_field_is_told(annotation, field):
    path = annotation(ANNOTATION.replace(f"<{field}>", "<other>").replace(f"</{field}>", "</other>"))
    with pytest.raises(vlscore.VLScoreError, match="is no VOC annotation"):
        vlscore.read_voc(path)


@pytest.mark.parametrize("name", ["missing.xml", "."])
def test_a_path_of_no_file_is_told(tmp_path, name):
    with pytest.raises(vlscore.VLScoreError, match="is no VOC annotation"):
        vlscore.read_voc(tmp_path / name)


# ── Photos with hand-drawn boxes ─────────────────────────────────────────────────────────────────


def test_there_are_twenty_photos_or_more():
    photos = vlscore.hand_boxed_photos(PHOTOS)
    assert len(photos) >= 20
    assert photos["chelsea"].label == "cat"
    assert photos["chelsea"].path.name == "chelsea.png"


@pytest.mark.parametrize("name", sorted(path.stem for path in PHOTOS.glob("*.xml")))
def test_a_photo_is_installed_and_its_boxes_lie_in_it(name):
    photo = vlscore.hand_boxed_photos(PHOTOS)[name]
    _, size, objects = vlscore.read_voc(PHOTOS / f"{name}.xml")
    with Image.open(photo.path) as image:
        assert image.size == size
    assert photo.boxes == [box for _, box in objects] != []
    assert {label for label, _ in objects} == {photo.label}
    for x0, y0, x1, y1 in photo.boxes:
        assert 0 <= x0 < x1 <= size[0]
        assert 0 <= y0 < y1 <= size[1]


# ── Files ────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_written_over_an_old_one(tmp_path):
    path = tmp_path / "file.bin"
    for content in (b"old and long", b"new\0"):
        vlscore.write_whole(path, content)
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_name_without_a_folder_is_written_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vlscore.write_whole("file.bin", b"new")
    assert Path("file.bin").read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        vlscore.write_whole(tmp_path / "file.bin", b"new")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.bin").stat().st_mode) == mode


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    def fail(*_):
        raise error

    (tmp_path / "file.bin").write_bytes(b"old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        vlscore.write_whole(tmp_path / "file.bin", b"new")
    assert os.listdir(tmp_path) == ["file.bin"]
    assert (tmp_path / "file.bin").read_bytes() == b"old"


@pytest.mark.parametrize("folder", ["missing", "/proc"])
def test_a_folder_that_cannot_be_written_raises(tmp_path, folder):
    with pytest.raises(OSError, match=r"No such file|Permission denied"):
        vlscore.write_whole(tmp_path / folder / "file.bin", b"new")
