"""Annotations as other tools write them, names that repeat, files of the system, and other sets' classes."""

import pytest
from datasets_helpers import SIZE, add_photo, refusal, voc
from PIL import Image

import vlscore
from vlscore_lib.datasets.voc import find_frame, is_resized

BOX = (10, 5, 19, 14)  # its last pixel included
PLAIN = voc([("n02123045", BOX)])


def boxes(root, xml):
    """The boxes of the only photo of a data set, whose annotation is text or bytes."""
    _, path = add_photo(root, "p", [])
    path.write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    (photo,) = vlscore.read_dataset(root).photos
    assert (photo.label, photo.size) == ("n02123045", SIZE)
    return photo.boxes


def in_encoding(name, told=None, before=""):
    text = f'<?xml version="1.0" encoding="{told or name}"?>' + PLAIN.replace("val", before + "val")
    return text.encode(name)


DIALECTS = {
    "folder empty": PLAIN.replace("<folder>val</folder>", "<folder></folder>"),
    "folder closed": PLAIN.replace("<folder>val</folder>", "<folder/>"),
    "folder missing": PLAIN.replace("<folder>val</folder>", ""),
    "filename empty": PLAIN.replace("<filename>photo</filename>", "<filename/>"),
    "filename missing": PLAIN.replace("<filename>photo</filename>", ""),
    "both missing": PLAIN.replace("<folder>val</folder><filename>photo</filename>", ""),
    "name padded": PLAIN.replace("n02123045", "\n\t n02123045 "),
    "numbers padded": PLAIN.replace(">10<", "> 10\n<"),
    "whole floats": PLAIN.replace(">10<", ">10.0<").replace(">14<", ">1.4e1<"),
    "size of 0": voc([("n02123045", BOX)], (0, 0)),
    "width of 0": voc([("n02123045", BOX)], (0, SIZE[1])),
    "size empty": PLAIN.replace(f"<width>{SIZE[0]}</width>", "<width/>"),
    "size as floats": PLAIN.replace(f">{SIZE[0]}<", f">{SIZE[0]}.0<"),
    "size missing": PLAIN[: PLAIN.index("<size>")] + PLAIN[PLAIN.index("</size>") + 7 :],
    "corners in another order": PLAIN.replace("<xmin>10</xmin>", "").replace(
        "<xmax>19</xmax>", "<xmax>19</xmax><xmin>10</xmin>"
    ),
    "a part": PLAIN.replace(
        "</bndbox>",
        "</bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
        "</bndbox></part>",
    ),
    "a part before the box": PLAIN.replace(
        "<bndbox>", "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part><bndbox>"
    ),
    "a polygon beside the box": PLAIN.replace(
        "</bndbox>", "</bndbox><polygon><x1>0</x1><y1>0</y1><x2>9</x2><y2>9</y2></polygon>"
    ),
    "a polygon alone": PLAIN.replace(
        PLAIN[PLAIN.index("<bndbox>") : PLAIN.index("</bndbox>") + 9],
        "<polygon><x1>10</x1><y1>14</y1><x2>19</x2><y2>5</y2></polygon>",
    ),
    "points of a polygon": PLAIN.replace(
        PLAIN[PLAIN.index("<bndbox>") : PLAIN.index("</bndbox>") + 9],
        "<polygon><pt><x>10</x><y>14</y></pt><pt><x>19</x><y>5</y></pt></polygon>",
    ),
    "other fields": PLAIN.replace(
        "<object>",
        "<path>C:\\p.jpg</path><source><annotation>x</annotation></source><segmented>0</segmented><object>"
        "<pose>Left</pose><truncated>0</truncated><difficult>1</difficult><occluded>0</occluded>",
    ),
    "a byte order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "UTF-16": in_encoding("utf-16"),
    "Latin-1": in_encoding("latin-1", before="é"),
    "Windows-1252": in_encoding("windows-1252", before="“"),
    "GBK": in_encoding("gbk", before="图片"),
    "Shift JIS": in_encoding("shift_jis", before="写真"),
    "UTF-8 called UTF-16": in_encoding("utf-8", told="utf-16"),
    "Latin-1 called UTF-8": in_encoding("latin-1", told="utf-8", before="é"),
    "GBK that nothing tells": PLAIN.replace("val", "图片").encode("gbk"),
    "an unknown encoding": in_encoding("utf-8", told="x-user-defined"),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_each_dialect_gives_the_box(tmp_path, name):
    assert boxes(tmp_path, DIALECTS[name]) == [(10, 5, 20, 15)]


def test_fractions_of_a_pixel_are_kept(tmp_path):
    xml = PLAIN.replace(">10<", ">10.70000076293945<").replace(">14<", ">14.25<")
    ((x0, y0, x1, y1),) = boxes(tmp_path, xml)
    assert (x0, y0, x1, y1) == pytest.approx((10.7, 5, 20, 15.25))


BAD = {
    "NaN": PLAIN.replace(">10<", ">nan<"),
    "infinity": PLAIN.replace(">19<", ">inf<"),
    "a long number": PLAIN.replace(">19<", f">{'9' * 400}<"),
    "no name": PLAIN.replace("n02123045", " \n"),
    "a polygon without corners": PLAIN.replace("bndbox", "polygon").replace(">10<", "><x/><"),
    "a name in an encoding that nothing tells": PLAIN.replace("n02123045", "袋鼠").encode("gbk"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_box_is_still_refused(tmp_path, name):
    _, path = add_photo(tmp_path, "p", [])
    path.write_bytes(BAD[name] if isinstance(BAD[name], bytes) else BAD[name].encode())
    assert "p.xml is not a VOC annotation (" in refusal(tmp_path)


# ── Sizes ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("W", [7, 100, 333, 500, 4000])
@pytest.mark.parametrize("H", [9, 64, 375, 1001])
def test_every_rounding_of_a_copy_s_sides_is_taken_for_a_copy(W, H):
    for side in (5, 80, 224, 512, 2000):
        scale = side / min(W, H)
        for rounded in (int, round, lambda value: -int(-value)):
            copy = max(1, rounded(W * scale)), max(1, rounded(H * scale))
            assert is_resized((W, H), copy) and is_resized(copy, (W, H))


def test_a_size_of_no_photo_is_told_by_the_boxes():
    """Of a photo that is turned by its orientation."""
    stored, upright = (64, 48), (48, 64)
    assert find_frame(None, stored, upright, [(0, 0, 40, 40)]) == stored
    assert find_frame(None, stored, upright, [(0, 0, 40, 60)]) == upright
    assert find_frame(upright, stored, upright, []) == upright
    assert find_frame((640, 480), stored, upright, []) == stored
    assert find_frame((600, 594), stored, upright, []) is None
    assert find_frame((600, 594), (64, 64), (64, 64), []) == (64, 64)


# ── Names ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def repeated(tmp_path):
    """A folder for each of three classes, whose photos have the same names."""
    for number, wnid in enumerate(("n01440764", "n01443537", "n01484850")):
        for name in ("0001", "0002"):
            add_photo(tmp_path, f"{wnid}/{name}", [(wnid, (number, 0, 9, 9))])
    return tmp_path


def test_photos_of_one_name_are_told_apart_by_their_folder(repeated):
    photos = vlscore.read_dataset(repeated).photos
    assert sorted(photo.name for photo in photos) == [
        f"{wnid}/{name}" for wnid in ("n01440764", "n01443537", "n01484850") for name in ("0001", "0002")
    ]
    assert all(photo.label in photo.name and photo.label == photo.path.parent.name for photo in photos)
    assert sorted(photo.boxes[0][0] for photo in photos) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("word", ["n01443537/0002", "n01443537/0002.JPEG", "val/n01443537/0002.JPEG 7"])
def test_a_list_names_a_photo_by_its_path(repeated, tmp_path, word):
    (tmp_path / "list.txt").write_text(word)
    (photo,) = vlscore.read_dataset(repeated, ids=tmp_path / "list.txt").photos
    assert photo.name == "n01443537/0002"
    left = vlscore.read_dataset(repeated, blacklist=tmp_path / "list.txt").photos
    assert len(left) == 5 and photo.name not in {each.name for each in left}


def test_a_name_of_several_photos_in_a_list_is_told(repeated, tmp_path):
    (tmp_path / "list.txt").write_text("0001.JPEG\n")
    with pytest.raises(vlscore.VLScoreError, match=r"names 0001\.JPEG, but 3 photos have this name"):
        vlscore.read_dataset(repeated, ids=tmp_path / "list.txt")


def test_a_name_may_hold_dots(tmp_path):
    for name in ("a.b", "a.c"):
        add_photo(tmp_path, name, [("n02123045", BOX)])
    (tmp_path / "list.txt").write_text("a.c")
    assert [photo.name for photo in vlscore.read_dataset(tmp_path).photos] == ["a.b", "a.c"]
    assert [each.name for each in vlscore.read_dataset(tmp_path, ids=tmp_path / "list.txt").photos] == ["a.c"]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("one", "one"),
        ("one more", "one more"),
        ("one more.JPEG", "one more"),
        ("one 490", "one"),
        ("val/one more.JPEG", "one more"),
        ("my data/one.JPEG", "one"),
    ],
)
def test_a_list_may_name_photos_with_spaces(tmp_path, line, name):
    for each in ("one", "one more", "three"):
        add_photo(tmp_path, each, [("n02123045", BOX)])
    (tmp_path / "list.txt").write_text(f"{line}\n")
    (photo,) = vlscore.read_dataset(tmp_path, ids=tmp_path / "list.txt").photos
    assert photo.name == name


# ── Files of the system ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["._p.JPEG", ".p.jpg", ".hidden.png", "._p.webp"])
@pytest.mark.parametrize("folder", ["", "n02123045/"])
def test_dot_files_are_no_photos(tmp_path, name, folder):
    add_photo(tmp_path, f"{folder}p", [("n02123045", BOX)])
    (tmp_path / "val" / folder / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (tmp_path / "bbox/val" / folder / "._p.xml").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    for options in ({}, {"limit": 1}, {"sample": 1}):
        assert [photo.name for photo in vlscore.read_dataset(tmp_path, **options).photos] == ["p"]


def test_dot_files_of_a_list_are_no_photos(tmp_path):
    listed_set(tmp_path, {"ILSVRC2012_val_00000001.JPEG": 0, "._ILSVRC2012_val_00000001.JPEG": 0})
    assert [photo.name for photo in vlscore.read_dataset(tmp_path).photos] == ["ILSVRC2012_val_00000001"]


def test_dot_files_are_no_hand_drawn_boxes(tmp_path):
    (tmp_path / "._a.xml").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    with pytest.raises(vlscore.VLScoreError, match="holds no XML files"):
        vlscore.hand_boxed_photos(tmp_path)


# ── Class indices ────────────────────────────────────────────────────────────────────────────────────


def listed_set(root, labels):
    """A data set in wsolevaluation's layout: a photo and a box for each name."""
    for name in labels:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(root / name, "JPEG")
    (root / "class_labels.txt").write_text("".join(f"{name},{index}\n" for name, index in labels.items()))
    (root / "localization.txt").write_text("".join(f"{name},10,5,19,14\n" for name in labels))
    return root


@pytest.mark.parametrize(
    "name",
    ["001.Albatross/a_1.jpg", "val2/0/0.jpg", "0001.jpg", "train/n01440764x/1.jpg", "train/n01443537/1.jpg"],
)
def test_another_set_s_indices_are_not_taken_for_imagenet_s(tmp_path, name):
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.read_dataset(listed_set(tmp_path, {name: 0}))
    assert "class_labels.txt" in str(error.value) and "put " in str(error.value)
    assert "LOC_synset_mapping.txt" in str(error.value)


def test_a_class_list_tells_what_indices_mean(tmp_path):
    root = listed_set(tmp_path, {"001.Albatross/a_1.jpg": 0, "002.Auk/a_1.jpg": 1})
    (root / "LOC_synset_mapping.txt").write_text("001.Albatross albatross\n002.Auk auk, great auk\n")
    dataset = vlscore.read_dataset(root)
    assert dataset.classes == {"001.Albatross": ["albatross"], "002.Auk": ["auk", "great auk"]}
    assert [(photo.name, photo.label) for photo in dataset.photos] == [
        ("001.Albatross/a_1", "001.Albatross"),
        ("002.Auk/a_1", "002.Auk"),
    ]


@pytest.mark.parametrize(
    "name", ["val/ILSVRC2012_val_00000001.JPEG", "train/n01440764/1.jpg", "n01440764_18.JPEG"]
)
def test_indices_of_photos_with_imagenet_s_names_are_imagenet_s(tmp_path, name):
    (photo,) = vlscore.read_dataset(listed_set(tmp_path, {name: 0})).photos
    assert photo.label == "n01440764"
