"""VOC XML, and the photos with hand-drawn boxes."""

from pathlib import Path

import pytest
from PIL import Image

import vlscore

PHOTOS = Path(__file__).parents[2] / "data" / "photos"


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


# ── VOC XML ─────────────────────────────────────────────────────────────────────────────────────────


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


@pytest.mark.parametrize("field", ["name", "bndbox", "xmin", "ymax", "annotation"])
def test_a_missing_field_is_told(annotation, field):
    path = annotation(ANNOTATION.replace(f"<{field}>", "<other>").replace(f"</{field}>", "</other>"))
    with pytest.raises(vlscore.VLScoreError, match="is not a VOC annotation"):
        vlscore.read_voc(path)


@pytest.mark.parametrize("name", ["missing.xml", "."])
def test_a_path_of_no_file_is_told(tmp_path, name):
    with pytest.raises(vlscore.VLScoreError, match="is not a VOC annotation"):
        vlscore.read_voc(tmp_path / name)


# ── Photos with hand-drawn boxes ────────────────────────────────────────────────────────────────────


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
