"""Lists and annotations from elsewhere."""

import shutil

import pytest
from datasets_helpers import (
    LAUGHS,
    SIZE,
    SOLUTION,
    convert,
    numbers,
    refusal,
    scene,
    voc,
)
from PIL import Image

import vlscore

HOSTILE = {
    "billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>' + voc([("&l9;", (0, 0, 1, 1))]),
    "external entity": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    + voc([("&x;", (0, 0, 1, 1))]),
    "more than a megabyte": voc([("cat", (0, 0, 1, 1))]) + " " * 1_000_000,
    "ten megabytes": voc([("cat", (0, 0, 1, 1))]) + " " * 10_000_000,
    "deep": "<annotation>" * 70_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_xml_is_told(official, name):
    (official / f"bbox/val/{scene(3)}.xml").write_text(HOSTILE[name])
    message = refusal(official)
    assert f"{scene(3)}.xml is not a VOC annotation" in message
    assert len(message) < 1000
    assert numbers(vlscore.read_dataset(official, skip_bad=True)) == [1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_an_xml_may_have_a_megabyte_and_no_more(tmp_path):
    path = tmp_path / "photo.xml"
    path.write_text(voc([("cat", (0, 0, 1, 1))]).ljust(1_000_000))
    assert vlscore.read_voc(path) == ("val/photo", SIZE, [("cat", (0, 0, 2, 2))])
    path.write_text(voc([("cat", (0, 0, 1, 1))]).ljust(1_000_001))
    with pytest.raises(vlscore.VLScoreError, match="larger than a megabyte"):
        vlscore.read_voc(path)


@pytest.mark.parametrize("size", [(-1, 9), (9, -1), (-5, -5)])
def test_an_xml_tells_no_negative_size(tmp_path, size):
    (tmp_path / "photo.xml").write_text(voc([], size))
    with pytest.raises(vlscore.VLScoreError, match="its size is"):
        vlscore.read_voc(tmp_path / "photo.xml")
    (tmp_path / "photo.xml").write_text(voc([], (1, 1)))
    assert vlscore.read_voc(tmp_path / "photo.xml")[1] == (1, 1)


ROWS = {
    "a field of 10 MB": "name," + "9" * 10_000_000,
    "a name of 10 MB": "9" * 10_000_000 + ",n90000001 1 2 3 4",
    "a number of 5,000 digits": f"{scene(1)},n90000001 1 2 3 {'9' * 5000}",
    "a folder above": "../photo,n90000001 1 2 3 4",
    "a folder above a folder": "val/../../photo,n90000001 1 2 3 4",
    "no name": "..,n90000001 1 2 3 4",
    "a path": "/etc/photo,n90000001 1 2 3 4",
    "a name of two lines": '"../photo\nphoto",n90000001 1 2 3 4',
    "one field": scene(1),
    "three fields": f"{scene(1)},n90000001 1 2 3 4,5",
    "four words": f"{scene(1)},n90000001 1 2 3",
    "six words": f"{scene(1)},n90000001 1 2 3 4 n90000001",
    "words for numbers": f"{scene(1)},n90000001 left top 3 4",
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", ["official, CSV", "kaggle, CSV"])
def test_a_bad_row_of_kaggle_s_solution_is_told(ten, tmp_path, kind, name):
    root = convert(kind, ten, tmp_path / "set")
    with open(root / SOLUTION, "a") as file:
        file.write(ROWS[name] + "\n")
    message = refusal(root)
    assert SOLUTION in message
    assert len(message) < 1000


@pytest.fixture
def wsol(ten, tmp_path):
    """A copy of the wsolevaluation layout, and a function that adds rows to its files."""
    root = convert("wsolevaluation", ten, tmp_path / "set")

    def add(**rows):
        for file, row in rows.items():
            with open(root / f"{file}.txt", "a") as opened:
                opened.write(row + "\n")
        return root

    return add


@pytest.mark.parametrize("name", ["../{}", "val/../../{}", "{folder}/{}", "val/../val/../../{}"])
def test_a_photo_outside_of_the_folder_is_refused(ten, wsol, tmp_path, name):
    shutil.copy(ten / f"val/{scene(1)}.JPEG", tmp_path / "outside.JPEG")
    name = name.format("outside.JPEG", folder=tmp_path)
    root = wsol(localization=f"{name},1,2,3,4", class_labels=f"{name},0")
    message = refusal(root)
    assert name in message
    assert "outside of" in message
    assert name in refusal(root, skip_bad=True)


# Rows for wsolevaluation's files, and what the message names; a.JPEG is there.
METADATA = {
    "no class": ({"localization": "val/a.JPEG,1,2,3,4"}, "class_labels.txt"),
    "a class beyond the list": (
        {"localization": "val/a.JPEG,1,2,3,4", "class_labels": "val/a.JPEG,80"},
        "class_labels.txt",
    ),
    "a class beyond the list, no box": ({"class_labels": "val/a.JPEG,80"}, "a.JPEG"),
    "a negative class": (
        {"localization": "val/a.JPEG,1,2,3,4", "class_labels": "val/a.JPEG,-1"},
        "class_labels.txt",
    ),
    "no box": ({"class_labels": "val/a.JPEG,0"}, "a.JPEG has no object"),
    "a word for a class": ({"class_labels": "val/a.JPEG,cat"}, "class_labels.txt"),
    "four fields": ({"localization": f"val/{scene(1)}.JPEG,1,2,3"}, "localization.txt"),
    "a word for a corner": ({"localization": f"val/{scene(1)}.JPEG,1,2,3,right"}, "localization.txt"),
    "no number": ({"localization": f"val/{scene(1)}.JPEG,1,2,3,nan"}, scene(1)),
    "infinity": ({"localization": f"val/{scene(1)}.JPEG,1,2,3,inf"}, scene(1)),
    "a field of 10 MB": ({"localization": "9" * 10_000_000 + ",1,2,3,4"}, "localization.txt"),
    "no width": ({"image_sizes": f"val/{scene(1)}.JPEG,0,120"}, scene(1)),
    "a negative size": ({"image_sizes": f"val/{scene(1)}.JPEG,-160,-120"}, scene(1)),
    "half a size": ({"image_sizes": f"val/{scene(1)}.JPEG,160"}, "image_sizes.txt"),
    "no size, a box within the tolerance": (
        {
            "localization": "val/a.JPEG,0,0,0,0",
            "class_labels": "val/a.JPEG,0",
            "image_sizes": "val/a.JPEG,0,0",
        },
        "a.JPEG",
    ),
    "a name of two lines, no class": ({"localization": '"val/a\nb.JPEG",1,2,3,4'}, "class_labels.txt"),
    "a name of two lines, outside": (
        {"localization": '"../a\nb.JPEG",1,2,3,4', "class_labels": '"../a\nb.JPEG",0'},
        "outside",
    ),
    "a name of two lines, missing": (
        {"localization": '"val/a\nb.JPEG",1,2,3,4', "class_labels": '"val/a\nb.JPEG",0'},
        "val/a",
    ),
}


@pytest.mark.parametrize("name", METADATA)
def test_a_bad_row_of_wsolevaluation_s_files_is_told(wsol, name):
    rows, said = METADATA[name]
    root = wsol(**rows)
    shutil.copy(root / f"val/{scene(1)}.JPEG", root / "val/a.JPEG")
    message = refusal(root)
    assert said in message
    assert len(message) < 1000


def test_a_missing_file_of_wsolevaluation_is_told(wsol):
    root = wsol()
    (root / "class_labels.txt").unlink()
    assert "class_labels.txt" in refusal(root)


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("skimage/data", "../../secret.png"),
        ("skimage/data/..", "../../../secret.png"),
        ("skimage", "{outside}"),
        ("skimage", "/{outside}"),
        ("{outside}", "photo.png"),
        ("..", "secret.png"),
        (".", "secret.png"),
        ("os", "secret.png"),
        ("__main__", "secret.png"),
        ("no_such_package_here", "secret.png"),
        ("skimage.data", "secret.png"),
    ],
)
def test_a_hand_boxed_photo_is_one_of_a_package(tmp_path, folder, file):
    outside = tmp_path / "outside" / "secret.png"
    outside.parent.mkdir()
    Image.new("RGB", SIZE).save(outside)
    (tmp_path / "set").mkdir()
    folder, file = (each.format(outside=outside) for each in (folder, file))
    (tmp_path / "set/secret.xml").write_text(voc([("cat", (0, 0, 1, 1))], folder=folder, file=file))
    assert "secret.xml" in refusal(tmp_path / "set")
