"""The layouts of ImageNet and its like."""

import shutil

import numpy as np
import pytest
from datasets_helpers import (
    CLASS_LIST,
    KINDS,
    ROOT,
    SIZE,
    WITH_SIZES,
    H,
    W,
    add_photo,
    convert,
    copy,
    facts,
    refusal,
    scene,
    write_kaggle,
    write_kaggle_csv,
    write_official,
    write_torchvision,
)
from PIL import Image

import vlscore
from vlscore_lib import scenes
from vlscore_lib.datasets import imagenet

# ── The layouts, made from drawn scenes ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_tells_the_same_of_the_same_photos(sets, ten, truth, kind):
    dataset = vlscore.read_dataset(sets[kind])
    assert dataset.layout == vlscore.find_layout(sets[kind]) == kind.partition(",")[0]
    assert facts(dataset) == truth
    assert dataset.classes == dict(scenes.classes())
    assert dataset.bad == []
    assert dataset.checksum() == vlscore.read_dataset(ten).checksum()
    for photo in dataset.photos:
        assert photo.path.is_relative_to(sets[kind])
        assert photo.path.read_bytes() == (ten / "val" / photo.path.name).read_bytes()


def test_as_drawn_all_files_together_are_the_official_layout(ten, truth):
    """XML files, class list and CSV: only the XML files tell of objects of other classes."""
    dataset = vlscore.read_dataset(ten)
    assert dataset.layout == "official"
    assert facts(dataset) == truth
    others = [label for photo in dataset.photos for label, _ in photo.objects if label != photo.label]
    assert others
    for photo in dataset.photos:
        assert sum(len(photo.boxes_of(label)) for label in dict(photo.objects)) == len(photo.objects)
        assert photo.boxes_of("n00000000") == []


def resize(root, kind, folder, size):
    """A copy of a data set whose photos, not its boxes, have another size."""
    source = shutil.copytree(root, folder / "source")
    for path in (source / "val").iterdir():
        with Image.open(path) as image:
            image.resize(size).save(path)
    return convert(kind, source, folder / "resized")


@pytest.mark.parametrize("kind", WITH_SIZES)
@pytest.mark.parametrize("size", [(W // 2, H // 2), (2 * W, 2 * H), (W, W), (40, 40)])
def test_boxes_are_scaled_to_a_resized_copy(ten, truth, tmp_path, kind, size):
    """A square copy of a photo that is not square has each side scaled by its own factor."""
    dataset = vlscore.read_dataset(resize(ten, kind, tmp_path, size))
    across, down = size[0] / W, size[1] / H
    scaled = [
        [(x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in boxes] for *_, boxes in truth
    ]
    assert [photo.size for photo in dataset.photos] == [size] * 10
    assert np.allclose(np.concatenate([photo.boxes for photo in dataset.photos]), np.concatenate(scaled))
    assert {photo.is_square_copy for photo in dataset.photos} == {size[0] == size[1]}


@pytest.mark.parametrize("kind", WITH_SIZES)
@pytest.mark.parametrize("size", [(W // 2, H * 2), (H, W), (W, H + 3), (W - 3, H), (20, 18)])
def test_a_photo_of_another_shape_is_listed_as_bad_with_both_sizes(ten, tmp_path, kind, size):
    message = refusal(resize(ten, kind, tmp_path, size))
    assert message.startswith("10 of 10 photos cannot be used: ")
    assert f"{W}×{H}" in message and f"{size[0]}×{size[1]}" in message


@pytest.mark.parametrize("size", [(81, 60), (80, 61), (33, 25), (213, 160), (214, 160)])
def test_sides_that_were_rounded_are_no_other_shape(ten, tmp_path, size):
    photos = vlscore.read_dataset(resize(ten, "official", tmp_path, size)).photos
    assert len(photos) == 10 and not any(photo.is_square_copy for photo in photos)


def test_without_sizes_wsolevaluation_tells_boxes_in_the_files_own_pixels(ten, truth, tmp_path):
    root = convert("wsolevaluation", ten, tmp_path / "set")
    (root / "image_sizes.txt").unlink()
    assert facts(vlscore.read_dataset(root)) == truth


@pytest.mark.parametrize("boxes", imagenet.BOX_FOLDERS)
def test_the_xml_files_are_found_in_each_of_their_folders(ten, truth, tmp_path, boxes):
    write_official(ten, tmp_path, boxes)
    copy(ten / CLASS_LIST, tmp_path / CLASS_LIST)
    assert facts(vlscore.read_dataset(tmp_path)) == truth


@pytest.mark.parametrize("inside", ["", "{label}"])
def test_the_folder_of_the_xml_files_can_be_given(ten, truth, tmp_path, inside):
    write_torchvision(ten, tmp_path / "set", boxes=f"../elsewhere/{inside}")
    copy(ten / CLASS_LIST, tmp_path / "set" / CLASS_LIST)
    assert "has no annotation" in refusal(tmp_path / "set")
    assert facts(vlscore.read_dataset(tmp_path / "set", boxes=tmp_path / "elsewhere")) == truth


def test_a_folder_of_xml_files_that_is_not_there_is_told(ten, tmp_path):
    assert f"{tmp_path / 'missing'} does not exist" in refusal(ten, boxes=tmp_path / "missing")


@pytest.mark.parametrize("here", [False, True])
@pytest.mark.parametrize("write", [write_torchvision, write_kaggle, write_kaggle_csv])
def test_the_folder_given_may_be_an_inner_one(ten, truth, tmp_path, monkeypatch, write, here):
    """``val`` of torchvision's layout, ``ILSVRC`` of Kaggle's; by its path, or as the folder we are in."""
    write(ten, tmp_path)
    inner = tmp_path / ("val" if write == write_torchvision else "ILSVRC")
    copy(ten / CLASS_LIST, inner / CLASS_LIST)
    monkeypatch.chdir(inner)
    assert facts(vlscore.read_dataset("." if here else inner)) == truth


def test_photos_of_any_usual_format_are_read(tmp_path):
    """ImageNet itself has a PNG that is named JPEG, and JPEGs in grey and CMYK."""
    for n, (mode, ending, kind) in enumerate(
        [("L", "JPEG", "JPEG"), ("CMYK", "JPG", "JPEG"), ("RGB", "jpeg", "PNG"), ("RGBA", "webp", "WEBP")]
    ):
        photo, _ = add_photo(tmp_path, f"photo{n}", [("cat", (1, 2, 3, 4))])
        photo.unlink()
        Image.new(mode, SIZE).save(photo.with_suffix(f".{ending}"), kind)
    dataset = vlscore.read_dataset(tmp_path)
    assert [photo.path.name for photo in dataset.photos] == [
        "photo0.JPEG",
        "photo1.JPG",
        "photo2.jpeg",
        "photo3.webp",
    ]
    assert all(photo.boxes == [(1, 2, 4, 5)] for photo in dataset.photos)


def test_two_photos_of_one_name_are_told(official):
    copy(official / f"val/{scene(1)}.JPEG", official / f"val/{scene(1)}.png")
    assert f"two photos named {scene(1)}" in refusal(official)


# ── Which layout ────────────────────────────────────────────────────────────────────────────────────


MIXED = [
    ("official", "torchvision"),
    ("official", "kaggle"),
    ("kaggle", "torchvision"),
    ("kaggle", "wsolevaluation"),
    ("official", "wsolevaluation"),
    ("torchvision", "wsolevaluation"),
]


@pytest.mark.parametrize(("one", "two"), MIXED)
def test_two_layouts_in_a_folder_are_refused_and_one_can_be_chosen(ten, truth, tmp_path, one, two):
    for n, layout in enumerate((one, two)):
        shutil.copytree(convert(layout, ten, tmp_path / str(n)), tmp_path / "set", dirs_exist_ok=True)
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.find_layout(tmp_path / "set")
    assert str(error.value) == refusal(tmp_path / "set")
    assert "mixes layouts" in str(error.value)
    assert one in str(error.value)
    assert two in str(error.value)
    for layout in (one, two):
        dataset = vlscore.read_dataset(tmp_path / "set", layout=layout)
        assert (dataset.layout, facts(dataset)) == (layout, truth)


def test_hand_boxed_photos_among_others_are_refused_and_can_be_chosen(tmp_path):
    add_photo(tmp_path, "photo", [("dog", (0, 0, 1, 1))])
    shutil.copy(ROOT / "data/photos/chelsea.xml", tmp_path)
    message = refusal(tmp_path)
    assert "official" in message
    assert "hand-boxed" in message
    assert [photo.label for photo in vlscore.read_dataset(tmp_path, "hand-boxed").photos] == ["cat"]
    assert [photo.label for photo in vlscore.read_dataset(tmp_path, "official").photos] == ["dog"]


@pytest.fixture
def nowhere(tmp_path):
    """Places that are no data set, by what they are."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("no folder")
    (tmp_path / "odd/val/pictures").mkdir(parents=True)
    (tmp_path / "odd/val/readme.txt").write_text("no photo")
    return {
        "missing": tmp_path / "missing",
        "a file": tmp_path / "file.txt",
        "empty": tmp_path / "empty",
        "odd": tmp_path / "odd",
    }


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("missing", "is not a folder"),
        ("a file", "is not a folder"),
        ("empty", "has none of the known layouts"),
        ("odd", "has none of the known layouts"),
    ],
)
def test_a_folder_of_no_known_layout_is_told(nowhere, place, said):
    message = refusal(nowhere[place])
    assert str(nowhere[place]) in message
    assert said in message
    if place in ("empty", "odd"):
        assert all(layout in message for layout in vlscore.LAYOUTS)


@pytest.mark.parametrize("place", ["missing", "a file", "empty", "odd"])
@pytest.mark.parametrize("layout", vlscore.LAYOUTS)
def test_a_chosen_layout_that_is_not_there_is_told(nowhere, place, layout):
    assert str(nowhere[place]) in refusal(nowhere[place], layout=layout)


def test_an_unknown_layout_is_told_with_those_there_are(ten):
    message = refusal(ten, layout="tfrecord")
    assert "'tfrecord'" in message
    assert all(layout in message for layout in vlscore.LAYOUTS)
