"""The commands `crops` and `from-crops`: cut, delete, move, and write what is left."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import vlscore
from vlscore_lib.labelling import crops as room

CLASSES = ["cat", "a/b", "A/B"]  # two that a file system cannot tell apart


@pytest.fixture
def labels(tmp_path):
    """Two photos of known pixels, one of them in a folder, and the journal of their boxes."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((600, 400)).save(folder / "one.png")
    Image.new("RGBA", (50, 50), (200, 10, 10, 128)).save(folder / "more" / "two.png")
    Image.new("L", (50, 50)).save(folder / "none.png")
    journal = vlscore.Journal(tmp_path / "labels", {"classes": CLASSES, "model": "a model"})
    box = vlscore.LabelledBox
    journal.add(
        vlscore.LabelledPhoto(
            "one.png", (600, 400), [box("cat", 0.9, (100, 50, 300, 250)), box("a/b", 0.5, (0, 0, 600, 400))]
        )
    )
    journal.add(vlscore.LabelledPhoto("none.png", (50, 50), []))
    journal.add(vlscore.LabelledPhoto("more/two.png", (50, 50), [box("A/B", 0.126, (10, 20, 30, 50))]))
    return tmp_path


def cut(run, folder):
    return run("crops", folder / "photos", folder / "labels", "--out", folder / "crops")


def write(run, folder, *options):
    places = [folder / "photos", folder / "labels", "--crops", folder / "crops"]
    return run("from-crops", *places, "--out", folder / "checked", *options)


def read_boxes(folder):
    found = json.loads((folder / "checked" / "coco.json").read_text())
    names = {each["id"]: each["name"] for each in found["categories"]}
    files = {each["id"]: each["file_name"] for each in found["images"]}
    return [
        (files[each["image_id"]], names[each["category_id"]], each["bbox"]) for each in found["annotations"]
    ]


def test_a_crop_is_the_photo_in_its_box(run, labels):
    code, out, _ = cut(run, labels)
    assert (code, out.split(":")[0]) == (0, "3 crops")
    files = sorted(
        path.relative_to(labels / "crops").as_posix() for path in (labels / "crops").rglob("*.jpg")
    )
    assert files == ["A_B_/0.13-000002.jpg", "a_b/0.50-000001.jpg", "cat/0.90-000000.jpg"]
    whole = np.asarray(Image.open(labels / "photos" / "one.png"), dtype=float)
    found = np.asarray(Image.open(labels / "crops" / "cat" / "0.90-000000.jpg"), dtype=float)
    assert found.shape == (200, 200, 3)
    assert np.abs(found - whole[50:250, 100:300]).mean() < 10  # JPEG rounds
    assert Image.open(labels / "crops" / files[0]).size == (20, 30)


def test_all_crops_give_the_labels(run, labels):
    cut(run, labels)
    code, out, _ = write(run, labels)
    assert code == 0
    assert out.startswith("3 of 3 boxes kept")
    assert "no box left: none.png" in out
    assert read_boxes(labels) == [
        ("one.png", "cat", [100, 50, 200, 200]),
        ("one.png", "a/b", [0, 0, 600, 400]),
        ("more/two.png", "A/B", [10, 20, 20, 30]),
    ]


def test_deleted_crops_go_and_moved_ones_change_their_class(run, labels):
    cut(run, labels)
    crops = labels / "crops"
    (crops / "A_B_" / "0.13-000002.jpg").unlink()
    shutil.move(crops / "a_b" / "0.50-000001.jpg", crops / "cat")
    code, out, _ = write(run, labels, "--format", "coco,yolo")
    assert (code, "2 of 3 boxes kept" in out, "no box left: more/two.png" in out) == (0, True, True)
    assert [each[:2] for each in read_boxes(labels)] == [("one.png", "cat"), ("one.png", "cat")]
    assert len((labels / "checked" / "labels" / "one.txt").read_text().splitlines()) == 2


def test_a_photo_may_have_any_name_that_the_file_system_has(run, labels):
    name = os.fsdecode(b"caf\xe9.png")  # Latin-1, no UTF-8
    shutil.copy(labels / "photos" / "none.png", labels / "photos" / name)
    box = vlscore.LabelledBox("cat", 1.0, (0, 0, 9, 9))
    vlscore.Journal.open(labels / "labels").add(vlscore.LabelledPhoto(name, (50, 50), [box]))
    assert cut(run, labels)[0] == 0
    code, out, _ = write(run, labels)
    assert (code, "4 of 4 boxes kept" in out) == (0, True)


def test_folders_may_be_deleted_whole(run, labels):
    cut(run, labels)
    shutil.rmtree(labels / "crops" / "a_b")
    write(run, labels)
    assert [each[1] for each in read_boxes(labels)] == ["cat", "A/B"]


def add_photo(labels):
    journal = vlscore.Journal.open(labels / "labels")
    journal.add(vlscore.LabelledPhoto("new.png", (50, 50), [vlscore.LabelledBox("cat", 1.0, (0, 0, 9, 9))]))


DAMAGE = {
    "no crops": (lambda folder: shutil.rmtree(folder / "crops"), "holds no crops.json"),
    "a list that is none": (lambda folder: (folder / "crops" / "crops.json").write_text("{"), "crops.json"),
    "a list of nothing": (
        lambda folder: (folder / "crops" / "crops.json").write_text('{"crops": [1]}'),
        "crops.json is damaged",
    ),
    "other labels": (add_photo, "cut from other labels, or before the last photos"),
    "a stranger": (
        lambda folder: shutil.copy(
            folder / "crops" / "cat" / "0.90-000000.jpg", folder / "crops" / "cat" / "x.jpg"
        ),
        "x.jpg is not a crop of these labels",
    ),
    "no class": (
        lambda folder: (folder / "crops" / "cat").rename(folder / "crops" / "dog"),
        "is in no class's folder: move it to one of",
    ),
    "twice": (
        lambda folder: shutil.copy(folder / "crops" / "cat" / "0.90-000000.jpg", folder / "crops" / "a_b"),
        "is there twice",
    ),
    "no labels": (lambda folder: shutil.rmtree(folder / "labels"), "holds no labels.jsonl"),
    "damaged labels": (lambda folder: (folder / "labels" / "labels.jsonl").write_text("{\n"), "is damaged"),
    "a full folder": (
        lambda folder: shutil.copytree(folder / "labels", folder / "checked"),
        "is not an empty folder",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_fit_is_told_in_a_line_and_nothing_is_written(run, labels, damage):
    cut(run, labels)
    do, said = DAMAGE[damage]
    do(labels)
    before = (labels / "checked").exists()
    code, _, err = write(run, labels)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert (labels / "checked").exists() == before
    assert not (labels / "checked" / "coco.json").exists()


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (
            lambda folder: (folder / "crops").mkdir() or (folder / "crops" / "old.jpg").touch(),
            "is not an empty folder",
        ),
        (lambda folder: (folder / "photos" / "one.png").unlink(), "one.png"),
        (lambda folder: (folder / "photos" / "one.png").write_text("no photo"), "one.png"),
        (lambda folder: shutil.rmtree(folder / "labels"), "holds no labels.jsonl"),
    ],
)
def test_a_cut_that_cannot_be_made_is_told_in_a_line(run, labels, do, said):
    do(labels)
    code, _, err = cut(run, labels)
    assert (code, said in err, err.count("\n")) == (2, True, 1)


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (["dog", "bald eagle"], ["dog", "bald eagle"]),
        (["..", "a:b", "a|b"], ["_", "a_b", "a_b_"]),
        (["Jaguar", "jaguar", "größe"], ["Jaguar", "jaguar_", "größe"]),
    ],
)
def test_a_class_has_a_folder_that_every_file_system_takes(classes, folders):
    assert list(room.name_folders(classes).values()) == folders
