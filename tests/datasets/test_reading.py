"""Reading a data set: choosing photos, labels, classes, checksum."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from datasets_helpers import (
    CLASS_LIST,
    ROOT,
    add_photo,
    convert,
    numbers,
    packaged,
    refusal,
    scene,
)

import vlscore

SHARED = ROOT.parent / "shared/imagenet-val-300"


# In every copy that is sorted into classes, val/n01440764 begins with this photo.
TENCH = "n01440764", "ILSVRC2012_val_00000293"


# ── The checksum ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "change",
    [
        {"label": "dog"},
        {"objects": [("cat", (0, 0, 2, 2)), ("dog", (0, 0, 1, 1))]},
        {"size": (9, 9)},
        {"path": Path("a/other.png")},
    ],
)
def test_the_checksum_tells_another_truth(change):
    photo = vlscore.AnnotatedPhoto(
        Path("a/photo.png"), "cat", [("cat", (0, 0, 1, 1)), ("dog", (0, 0, 1, 1))], (8, 8)
    )
    one = vlscore.Dataset("official", [photo], {"cat": ["cat"], "dog": ["dog"]}, [])
    assert replace(one, photos=[replace(photo, **change)]).checksum() != one.checksum()
    assert replace(one, photos=[photo, photo]).checksum() != one.checksum()
    assert replace(one, classes={"cat": ["tabby"], "dog": ["dog"]}).checksum() != one.checksum()
    same = replace(photo, path=Path("b/photo.JPEG"), objects=photo.objects[:1])
    assert replace(one, layout="kaggle", photos=[same]).checksum() == one.checksum()


# ── Photos named as ImageNet's ──────────────────────────────────────────────────────────────────────


def write_known(root, known, wrong=()):
    """Four photos named as ImageNet's first, some of them with the XML of another class."""
    for n, (name, label) in enumerate(itertools.islice(known.items(), 4), start=1):
        other = "n01443537" if label != "n01443537" else "n01440764"
        add_photo(root, name, [(other, (1, 1, 2, 2)), (other if n in wrong else label, (3, 3, 4, 4))])
    return root


def test_the_package_tells_the_class_where_most_annotations_agree(tmp_path, known):
    dataset = vlscore.read_dataset(write_known(tmp_path, known))
    assert [photo.name for photo in dataset.photos] == list(known)[:4]
    assert [photo.label for photo in dataset.photos] == list(known.values())[:4]
    assert all(photo.boxes == [(3, 3, 5, 5)] for photo in dataset.photos)


def test_an_annotation_of_another_class_is_told_where_most_annotations_agree(tmp_path, known):
    write_known(tmp_path, known, wrong=[3])
    message = refusal(tmp_path)
    assert message.startswith("1 of 4 photos")
    assert "ILSVRC2012_val_00000003" in message
    assert known["ILSVRC2012_val_00000003"] in message
    assert numbers(vlscore.read_dataset(tmp_path, skip_bad=True)) == [1, 2, 4]


@pytest.mark.parametrize("wrong", [(1, 2), (1, 2, 3), (1, 2, 3, 4)])
def test_other_photos_under_imagenet_s_names_are_of_their_annotations_class(tmp_path, known, wrong):
    dataset = vlscore.read_dataset(write_known(tmp_path, known, wrong))
    assert [photo.label for photo in dataset.photos] == [photo.objects[0][0] for photo in dataset.photos]
    assert dataset.photos[0].boxes == [(1, 1, 3, 3), (3, 3, 5, 5)]


def test_the_folder_goes_before_the_package(tmp_path, known):
    for n, name in enumerate(itertools.islice(known, 3)):
        label = "n01440764" if n == 2 else known[name]
        add_photo(tmp_path, name, [(label, (1, 1, 2, 2))], place=f"val/{label}")
    assert vlscore.read_dataset(tmp_path).photos[2].label == "n01440764"


# ── Selection ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def listing(tmp_path):
    """Write a list of photos -> its path."""

    def write(lines, name="list.txt"):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"limit": 3}, [1, 2, 3]),
        ({"limit": 30}, list(range(1, 11))),
        ({"first": 4}, [1, 2, 3, 4]),
        ({"first": 30}, list(range(1, 11))),
        ({"first": 4, "limit": 2}, [1, 2]),
        ({"first": 2, "limit": 4}, [1, 2]),
        ({"ids": (7, 2, 10)}, [2, 7, 10]),
        ({"ids": (7, 2, 10), "limit": 2}, [2, 7]),
        ({"ids": (7, 2, 10), "first": 7}, [2, 7]),
        ({"ids": (7, 2, 10), "blacklist": (2,)}, [7, 10]),
        ({"blacklist": (1, 3, 99)}, [2, 4, 5, 6, 7, 8, 9, 10]),
        ({"blacklist": (1, 3), "limit": 3}, [2, 4, 5]),
        ({"blacklist": (1, 3), "first": 4}, [2, 4]),
        ({"blacklist": (1, 3), "sample": 8}, [2, 4, 5, 6, 7, 8, 9, 10]),
        ({"sample": 10}, list(range(1, 11))),
        ({"sample": 99}, list(range(1, 11))),
        ({"ids": (7, 2), "sample": 2, "seed": 5}, [2, 7]),
    ],
)
def test_photos_are_chosen(ten, listing, options, expected):
    lists = {key: listing(map(scene, options[key]), key) for key in ("ids", "blacklist") if key in options}
    assert numbers(vlscore.read_dataset(ten, **options | lists)) == expected


@pytest.mark.parametrize(
    "line",
    [
        scene(3),
        f"{scene(3)}.JPEG",
        f"{scene(3)}.jpg",
        f"val/{scene(3)}",
        f"./val/{scene(3)}.JPEG",
        f"  {scene(3)}.JPEG  12 ",
        f"{scene(3)}\r",
    ],
)
@pytest.mark.parametrize("kind", ["official", "kaggle", "torchvision", "wsolevaluation"])
def test_a_photo_is_named_with_or_without_ending_and_folder(sets, listing, kind, line):
    assert numbers(vlscore.read_dataset(sets[kind], ids=listing([line, ""]))) == [3]
    left = vlscore.read_dataset(sets[kind], blacklist=listing(["", line]), limit=3)
    assert numbers(left) == [1, 2, 4]


def test_an_unknown_name_is_told(ten, listing):
    message = refusal(ten, ids=listing([scene(3), scene(11)]))
    assert scene(11) in message
    assert "list.txt" in message
    assert scene(3) not in message


def test_a_name_left_out_of_the_first_is_known_all_the_same(ten, listing):
    assert numbers(vlscore.read_dataset(ten, first=3, ids=listing([scene(3), scene(9)]))) == [3]


@pytest.mark.parametrize("option", ["ids", "blacklist"])
@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"9" * 5000], ids=["missing", "binary", "digits"])
def test_a_list_that_cannot_be_read_is_told(official, tmp_path, option, content):
    """A number of 5,000 digits is one that Python refuses to convert."""
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    assert "list.txt" in refusal(official, **{option: path})


@pytest.mark.parametrize("option", ["ids", "blacklist"])
def test_a_list_that_leaves_nothing_is_told(ten, listing, option):
    lines = [] if option == "ids" else map(scene, range(1, 11))
    assert "none of the photos" in refusal(ten, **{option: listing(lines)})


def test_a_sample_is_the_same_by_seed_sorted_and_of_all_photos(ten):
    drawn = [numbers(vlscore.read_dataset(ten, sample=3, seed=seed)) for seed in range(12)]
    assert drawn == [numbers(vlscore.read_dataset(ten, sample=3, seed=seed)) for seed in range(12)]
    assert drawn[0] == numbers(vlscore.read_dataset(ten, sample=3))
    assert all(len(set(each)) == 3 and each == sorted(each) for each in drawn)
    assert len(set(map(tuple, drawn))) > 6
    assert set().union(*drawn) == set(range(1, 11))


def test_a_sample_is_drawn_of_the_photos_that_the_other_options_leave(ten, listing):
    lists = {"ids": listing(map(scene, (1, 2, 3, 4, 5, 9))), "blacklist": listing([scene(2)], "left out")}
    drawn = [numbers(vlscore.read_dataset(ten, first=5, sample=2, seed=n, **lists)) for n in range(12)]
    assert {len(each) for each in drawn} == {2}
    assert set().union(*drawn) == {1, 3, 4, 5}
    limited = [numbers(vlscore.read_dataset(ten, first=5, sample=2, seed=n, limit=1)) for n in range(6)]
    assert {len(each) for each in limited} == {1}
    assert len(set(map(tuple, limited))) > 1


@pytest.mark.parametrize("option", ["limit", "first", "sample"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_number_below_one_is_told(ten, option, value):
    assert f"--{option} is {value}" in refusal(ten, **{option: value})


def test_a_negative_seed_is_told(ten):
    assert "seed" in refusal(ten, sample=3, seed=-1)


@pytest.mark.parametrize("lines", [["2", "40001"], ["00000002", "ILSVRC2012_val_00040001"]])
def test_a_bare_number_is_that_of_an_imagenet_photo(tmp_path, known, listing, lines):
    for n in (1, 2, 3, 40001):
        name = f"ILSVRC2012_val_{n:08}"
        add_photo(tmp_path, name, [(known[name], (0, 0, 1, 1))])
    assert numbers(vlscore.read_dataset(tmp_path, blacklist=listing(lines))) == [1, 3]
    assert numbers(vlscore.read_dataset(tmp_path, ids=listing(lines))) == [2, 40001]


# ── Classes and their names ─────────────────────────────────────────────────────────────────────────


def test_imagenet_has_a_thousand_classes_in_the_order_of_their_wnids():
    classes = vlscore.imagenet_classes()
    assert len(classes) == 1000
    assert list(classes) == sorted(classes) == list(packaged("imagenet1k_to_21k.json").values())
    assert all(names and all(name == name.strip() != "" for name in names) for names in classes.values())
    assert classes["n01440764"] == ["tench", "Tinca tinca"]
    assert list(classes)[281] == "n02123045"
    assert classes["n02123045"] == ["tabby", "tabby cat"]
    assert classes["n15075141"] == ["toilet tissue", "toilet paper", "bathroom tissue"]


def test_clip_has_one_name_for_each_class():
    classes = vlscore.imagenet_classes("clip")
    assert list(classes) == list(vlscore.imagenet_classes())
    assert len(classes) == 1000
    assert all(len(names) == 1 and names[0].strip() == names[0] != "" for names in classes.values())
    assert classes["n02012849"] == ["crane bird"]
    assert classes["n03126707"] == ["construction crane"]
    assert classes["n15075141"] == ["toilet paper"]


def test_unknown_names_are_told(ten):
    with pytest.raises(vlscore.VLScoreError, match="'wordnet'"):
        vlscore.imagenet_classes("wordnet")
    assert "'wordnet'" in refusal(ten, names="wordnet")


def test_the_names_of_a_set_of_imagenet_can_be_chosen(tmp_path):
    wnid, name = TENCH
    add_photo(tmp_path, name, [(wnid, (0, 0, 1, 1))])
    for names, expected in (("imagenet", ["tench", "Tinca tinca"]), ("clip", ["tench"])):
        classes = vlscore.read_dataset(tmp_path, names=names).classes
        assert len(classes) == 1000
        assert classes[wnid] == expected
    assert len(vlscore.read_dataset(tmp_path).classes) == 1000


def test_a_known_photo_has_its_label(known):
    wnid, name = TENCH
    assert vlscore.imagenet_label(name) == known[name] == wnid
    for each in (1, 2, 361, 12345, 50000):
        name = f"ILSVRC2012_val_{each:08}"
        assert vlscore.imagenet_label(name) == known[name]


@pytest.mark.parametrize("name", ["ILSVRC2012_val_00050001", "ILSVRC2012_val_00000293.JPEG", "chelsea", ""])
def test_another_photo_has_no_label_of_imagenet(name):
    assert vlscore.imagenet_label(name) is None


@pytest.mark.parametrize("kind", ["official", "kaggle, CSV", "torchvision"])
def test_classes_unknown_to_imagenet_need_a_list(ten, tmp_path, kind):
    root = convert(kind, ten, tmp_path / "set")
    (root / CLASS_LIST).unlink()
    message = refusal(root)
    assert CLASS_LIST in message
    assert "n9000" in message


def test_a_class_that_the_list_lacks_is_told(official, truth):
    label = truth[0][1]
    lines = (official / CLASS_LIST).read_text().splitlines(keepends=True)
    (official / CLASS_LIST).write_text("".join(line for line in lines if not line.startswith(label)))
    message = refusal(official)
    assert label in message
    assert CLASS_LIST in message


def test_classes_that_are_words_are_their_own_names(tmp_path):
    add_photo(tmp_path, "one", [("dog", (0, 0, 1, 1))])
    add_photo(tmp_path, "two", [("cat", (0, 0, 1, 1)), ("bird", (0, 0, 1, 1))])
    assert vlscore.read_dataset(tmp_path).classes == {"cat": ["cat"], "dog": ["dog"]}


def test_the_project_s_photos_are_hand_boxed():
    dataset = vlscore.read_dataset(ROOT / "data/photos")
    assert dataset.layout == "hand-boxed"
    assert dataset.bad == []
    assert {photo.name for photo in dataset.photos} == {
        path.stem for path in (ROOT / "data/photos").glob("*.xml")
    }
    assert dataset.classes == {label: [label] for label in sorted({photo.label for photo in dataset.photos})}
    cat = next(photo for photo in dataset.photos if photo.name == "chelsea")
    assert (cat.label, cat.size, cat.boxes) == ("cat", (451, 300), [(0, 0, 401, 300)])


def test_a_class_list_gives_names_by_wnid(tmp_path):
    (tmp_path / "list.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    expected = {"n01440764": ["tench", "Tinca tinca"], "n01443537": ["goldfish"]}
    assert vlscore.read_classes(tmp_path / "list.txt") == expected
    assert list(vlscore.read_classes(tmp_path / "list.txt")) == list(expected)


def test_a_line_without_names_is_told(tmp_path):
    (tmp_path / "list.txt").write_text("n01440764 tench\nn01443537\n")
    with pytest.raises(vlscore.VLScoreError, match="line 2"):
        vlscore.read_classes(tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_a_class_list_that_cannot_be_read_is_told(tmp_path, name):
    with pytest.raises(vlscore.VLScoreError, match="cannot be read"):
        vlscore.read_classes(tmp_path / name)


# ── Real photos ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_real_photos_of_imagenet_are_of_the_classes_that_the_package_tells(known):
    dataset = vlscore.read_dataset(SHARED)
    assert dataset.layout == "official"
    assert len(dataset.photos) == 300
    assert dataset.bad == []
    assert [photo.label for photo in dataset.photos] == [known[photo.name] for photo in dataset.photos]
    assert dataset.classes == vlscore.imagenet_classes()
    for photo in dataset.photos:
        assert photo.boxes
        assert all(0 <= x0 < x1 <= 227 and 0 <= y0 < y1 <= 227 for _, (x0, y0, x1, y1) in photo.objects)
    # By hand: 83 81 419 311 in 500×349, the last pixel included.
    [box] = next(photo for photo in dataset.photos if photo.name == "ILSVRC2012_val_00000361").boxes
    assert box == pytest.approx((83 * 227 / 500, 81 * 227 / 349, 420 * 227 / 500, 312 * 227 / 349))
