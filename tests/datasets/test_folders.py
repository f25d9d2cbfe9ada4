"""Data sets of one's own: COCO, YOLO and VOC folders, as the tools of others write them."""

import json
from pathlib import Path

import pytest
from datasets_helpers import refusal, voc
from PIL import Image

import vlscore

SIZE = (160, 120)
TRUTH = {
    "a": [("dog", (10, 20, 60, 80)), ("cat", (100, 30, 140, 90))],
    "b": [("cat", (0, 0, 160, 120))],
    "c": [("dog", (30, 40, 50, 60)), ("dog", (80, 40, 120, 100))],
}
NAMES = ["bird", "cat", "dog"]


def add_photos(folder, ending=".jpg", names=TRUTH):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", SIZE, (40 * number, 90, 90)).save(folder / f"{name}{ending}")


def coco(prefix="", names=TRUTH):
    """COCO's JSON; its numbers are no running ones, as in real files."""
    images = [
        {"id": 7 * n + 3, "file_name": f"{prefix}{name}.jpg", "width": SIZE[0], "height": SIZE[1]}
        for n, name in enumerate(names)
    ]
    rows = []
    for n, name in enumerate(names):
        for label, (x0, y0, x1, y1) in TRUTH[name]:
            rows.append(
                {
                    "id": len(rows),
                    "image_id": 7 * n + 3,
                    "category_id": 5 + 2 * NAMES.index(label),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 5 + 2 * n, "name": name} for n, name in enumerate(NAMES)]
    return {"images": images, "annotations": rows, "categories": categories}


def yolo(name):
    W, H = SIZE
    return "".join(
        f"{NAMES.index(label)} {(x0 + x1) / 2 / W} {(y0 + y1) / 2 / H} {(x1 - x0) / W} {(y1 - y0) / H}\n"
        for label, (x0, y0, x1, y1) in TRUTH[name]
    )


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def write_xml(folder, names=TRUTH):
    for name in names:
        corners = [(label, (x0, y0, x1 - 1, y1 - 1)) for label, (x0, y0, x1, y1) in TRUTH[name]]
        write(folder / f"{name}.xml", voc(corners, SIZE, f"{name}.jpg"))


def coco_split(root):
    add_photos(root / "val2017")
    write(root / "annotations/instances_val2017.json", coco())
    write(root / "annotations/captions_val2017.json", {"images": [], "annotations": []})


def coco_roboflow(root):
    add_photos(root / "valid")
    write(root / "valid/_annotations.coco.json", coco())


def coco_relative(root):
    add_photos(root / "deep/down")
    write(root / "labels.json", coco("down/"))


def coco_in_val(root):
    """The official layout's folder of photos, but no XML."""
    add_photos(root / "val")
    write(root / "val.json", coco())


def yolo_ultralytics(root):
    for split, names in (("train", "a"), ("val", "bc")):
        add_photos(root / f"images/{split}", names=names)
        for name in names:
            write(root / f"labels/{split}/{name}.txt", yolo(name))
    write(root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\nnames: [bird, cat, dog]\n")


def yolo_roboflow(root):
    add_photos(root / "train/images")
    for name in TRUTH:
        write(root / f"train/labels/{name}.txt", yolo(name))
    write(root / "data.yaml", "train: ../train/images\nnc: 3\nnames:\n  0: bird\n  1: cat\n  2: dog\n")


def yolo_of_lists(root):
    add_photos(root / "images")
    for name in TRUTH:
        write(root / f"labels/{name}.txt", yolo(name))
    write(root / "train.txt", "./images/a.jpg\n./images/b.jpg\n")
    write(root / "val.txt", "images/c.jpg\n")
    write(root / "animals.yaml", "train: train.txt\nval: [val.txt]\nnames: [bird, cat, dog]\n")


def yolo_label_img(root):
    add_photos(root)
    for name in TRUTH:
        write(root / f"{name}.txt", yolo(name))
    write(root / "classes.txt", "bird\ncat\ndog\n")


def yolo_elsewhere(root):
    """The data set's path is of another machine."""
    yolo_ultralytics(root)
    content = (root / "data.yaml").read_text()
    write(root / "data.yaml", content.replace("path: .", "path: /content/animals"))


def voc_devkit(root):
    add_photos(root / "VOC2012/JPEGImages")
    write_xml(root / "VOC2012/Annotations")
    write(root / "VOC2012/ImageSets/Main/val.txt", "a\nb\nc\n")


def voc_beside(root):
    add_photos(root)
    write_xml(root)


def voc_splits(root):
    for split, names in (("train", "a"), ("valid", "bc")):
        add_photos(root / split, names=names)
        write_xml(root / split, names)


def voc_in_val(root):
    add_photos(root / "val")
    write_xml(root / "annots")


WRITERS = {
    "coco": [coco_split, coco_roboflow, coco_relative, coco_in_val],
    "yolo": [yolo_ultralytics, yolo_roboflow, yolo_of_lists, yolo_label_img, yolo_elsewhere],
    "voc": [voc_devkit, voc_beside, voc_splits, voc_in_val],
}
KINDS = [(layout, each) for layout, writers in WRITERS.items() for each in writers]


def boxes_by_photo(dataset):
    """Of each photo, its objects with boxes rounded to a thousandth of a pixel."""
    return {
        photo.path.stem: sorted(
            (label, tuple(round(each, 3) for each in box)) for label, box in photo.objects
        )
        for photo in dataset.photos
    }


EXPECTED = {name: sorted((label, tuple(map(float, box))) for label, box in TRUTH[name]) for name in TRUTH}


@pytest.mark.parametrize("layout, writer", KINDS, ids=[each.__name__ for _, each in KINDS])
def test_a_layout_is_found_and_read(tmp_path, layout, writer):
    writer(tmp_path)
    dataset = vlscore.read_dataset(tmp_path)
    assert dataset.layout == layout
    assert boxes_by_photo(dataset) == EXPECTED
    assert list(dataset.classes) == ([*NAMES] if layout != "voc" else ["cat", "dog"])
    assert [(photo.name, photo.label) for photo in dataset.photos] == [
        ("a (dog)", "dog"),
        ("a (cat)", "cat"),
        ("b", "cat"),
        ("c", "dog"),
    ]


def test_choices_count_photos_not_classes(tmp_path):
    coco_split(tmp_path)
    assert [photo.name for photo in vlscore.read_dataset(tmp_path, first=1).photos] == ["a (dog)", "a (cat)"]
    (tmp_path / "ids.txt").write_text("a.jpg\nc\n")
    chosen = vlscore.read_dataset(tmp_path, ids=tmp_path / "ids.txt").photos
    assert [photo.path.stem for photo in chosen] == ["a", "a", "c"]


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_our_own_labels_are_read_back(tmp_path, form):
    photos, out = tmp_path / "my photos", tmp_path / "labels"
    add_photos(photos / "deep")
    labelled = [
        vlscore.LabelledPhoto(
            f"deep/{name}.jpg", SIZE, [vlscore.LabelledBox(label, 0.5, box) for label, box in objects]
        )
        for name, objects in TRUTH.items()
    ]
    out.mkdir()
    vlscore.write_labels(labelled, NAMES, form, out, photos)
    boxes = {"coco": out / "coco.json", "voc": out, "yolo": out / "data.yaml"}[form]
    dataset = vlscore.read_dataset(photos, boxes=boxes)
    assert dataset.layout == form
    found = boxes_by_photo(dataset)
    assert found.keys() == EXPECTED.keys()
    for name, objects in EXPECTED.items():
        for (label, box), (expected, corners) in zip(found[name], objects):
            assert label == expected
            assert box == pytest.approx(corners, abs=0.01)  # YOLO's shares have six digits
    if form == "yolo":
        assert boxes_by_photo(vlscore.read_dataset(out)) == found


def test_boxes_of_a_turned_photo_are_upright_in_yolo(tmp_path):
    """A row tells of the photo as it is seen, also where its file stores it turned or mirrored."""
    photo = Image.new("RGB", SIZE)
    for orientation in (1, 3, 6, 8, 2, 5):
        root = tmp_path / str(orientation)
        (root / "images").mkdir(parents=True)
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(root / "images/a.jpg", exif=exif)
        write(root / "labels/a.txt", "0 0.25 0.25 0.5 0.5\n")
        write(root / "data.yaml", "train: images\nnames: [dog]\n")
        (found,) = vlscore.read_dataset(root).photos
        W, H = SIZE if orientation in (1, 2, 3) else SIZE[::-1]
        assert found.size == (W, H)
        assert found.boxes == [(0, 0, W / 2, H / 2)]


def test_polygons_and_scores_in_yolo_s_rows(tmp_path):
    add_photos(tmp_path / "images", names="a")
    write(tmp_path / "labels/a.txt", "0 0.1 0.2 0.5 0.2 0.5 0.6\n1 0.5 0.5 0.5 0.5 0.93\n\n")
    write(tmp_path / "data.yaml", "train: images\nnames: [dog, cat]\n")
    dataset = vlscore.read_dataset(tmp_path)
    assert boxes_by_photo(dataset) == {"a": [("cat", (40, 30, 120, 90)), ("dog", (16, 24, 80, 72))]}


def test_photos_without_an_object_are_counted(tmp_path):
    coco_split(tmp_path / "coco")
    facts = coco()
    facts["annotations"] = [each for each in facts["annotations"] if each["image_id"] != 10]
    write(tmp_path / "coco/annotations/instances_val2017.json", facts)
    yolo_ultralytics(tmp_path / "yolo")
    (tmp_path / "yolo/labels/val/b.txt").write_text("")
    voc_beside(tmp_path / "voc")
    (tmp_path / "voc/b.xml").unlink()
    voc_devkit(tmp_path / "empty")
    write(tmp_path / "empty/VOC2012/Annotations/b.xml", voc([], SIZE, "b.jpg"))
    for root in ("coco", "yolo", "voc", "empty"):
        dataset = vlscore.read_dataset(tmp_path / root)
        assert dataset.empty == 1
        assert {photo.path.stem for photo in dataset.photos} == {"a", "c"}


def test_crowds_and_empty_boxes_of_coco_are_left_out(tmp_path):
    add_photos(tmp_path, names="ac")
    facts = coco(names="ac")
    crowd = {"image_id": 3, "category_id": 7, "bbox": [0, 0, 90, 90], "iscrowd": 1}
    flat = {"image_id": 3, "category_id": 7, "bbox": [5, 5, 0, 9]}
    facts["annotations"] += [crowd, flat]
    write(tmp_path / "all.json", facts)
    assert boxes_by_photo(vlscore.read_dataset(tmp_path)) == {name: EXPECTED[name] for name in "ac"}


def test_classes_have_names_for_prompts(tmp_path):
    facts = coco()
    facts["categories"][2]["name"] = "guide_dog"
    add_photos(tmp_path)
    write(tmp_path / "all.json", facts)
    assert vlscore.read_dataset(tmp_path).classes == {
        "bird": ["bird"],
        "cat": ["cat"],
        "guide_dog": ["guide dog"],
    }
    (tmp_path / "names.txt").write_text("cat: cat, kitten\n\nguide_dog: dog of the blind\n")
    classes = vlscore.read_dataset(tmp_path, classes=tmp_path / "names.txt").classes
    assert classes == {"bird": ["bird"], "cat": ["cat", "kitten"], "guide_dog": ["dog of the blind"]}


@pytest.mark.parametrize(
    "lines, message",
    [
        ("cow: ox", "there is no class 'cow'"),
        ("cat", "'cat' is not 'label: name, name'"),
        ("cat: ,", "is not 'label: name, name'"),
    ],
)
def test_a_bad_file_of_names_is_told_by_its_line(tmp_path, lines, message):
    coco_split(tmp_path)
    (tmp_path / "names.txt").write_text(f"dog: dog\n{lines}\n")
    told = refusal(tmp_path, classes=tmp_path / "names.txt")
    assert "names.txt, line 2" in told
    assert message in told


def damage(**changes):
    """A change of COCO's JSON."""

    def change(root):
        facts = coco()
        for key, value in changes.items():
            if value is None:
                del facts[key]
            else:
                facts[key] = value
        write(root / "all.json", facts)

    return change


ROW = {"image_id": 3, "category_id": 7, "bbox": [1, 2, 3, 4]}
BAD = {
    "no category": (damage(annotations=[ROW | {"category_id": 99}]), "all.json is not a COCO annotation"),
    "no image": (damage(annotations=[ROW | {"image_id": 99}]), "to an image 99 that is not listed"),
    "a word as a box": (damage(annotations=[ROW | {"bbox": "abcd"}]), "all.json is not a COCO annotation"),
    "three numbers": (damage(annotations=[ROW | {"bbox": [1, 2, 3]}]), "all.json is not a COCO annotation"),
    "a list of lists": (damage(images=[[1]]), "all.json is not a COCO annotation"),
    "a name twice": (damage(categories=[{"id": n, "name": "x"} for n in (5, 7, 9)]), "have the same name"),
    "outside": (
        damage(images=[{"id": n, "file_name": "../../etc/a.jpg"} for n in (3, 10, 17)]),
        "outside of",
    ),
    "absolute": (damage(images=[{"id": n, "file_name": "/etc/a.jpg"} for n in (3, 10, 17)]), "outside of"),
    "two files": (
        lambda root: [write(root / f"{name}.json", coco()) for name in ("train", "val")],
        "several COCO files, train.json, val.json: choose one with --boxes FILE",
    ),
    "a broken file": (lambda root: write(root / "_annotations.coco.json", '{"images": ['), "is not a COCO"),
    "no names": (lambda root: write(root / "data.yaml", "train: ."), "data.yaml is not a YOLO data set"),
    "no YAML": (lambda root: write(root / "data.yaml", "names: [a"), "data.yaml is not a YOLO data set"),
    "no labels": (lambda root: write(root / "data.yaml", "names: [a]"), "has no labels of its photos"),
    "a split that is not there": (
        lambda root: write(root / "data.yaml", "names: [a]\ntrain: images/train"),
        "names images/train, which is not there",
    ),
    "two of a name": (lambda root: write(root / "data.yaml", "names: [a, a]"), "no names, or repeats one"),
}


@pytest.mark.parametrize("write_bad, message", BAD.values(), ids=BAD)
def test_a_broken_data_set_is_told(tmp_path, write_bad, message):
    add_photos(tmp_path)
    write_bad(tmp_path)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    "row, message",
    [
        ("7 0.5 0.5 0.1 0.1", "class 7, but the names are for 0 to 2"),
        ("0 0.5 0.5 0.1", "a row has 4 fields"),
        ("dog 0.5 0.5 0.1 0.1", "is not a YOLO label"),
        ("0 0.5 nan 0.1 0.1", "not finite"),
        ("0 80 60 20 20", "has a box outside of the image"),
    ],
)
def test_a_bad_row_is_a_bad_photo(tmp_path, row, message):
    yolo_ultralytics(tmp_path)
    (tmp_path / "labels/val/b.txt").write_text(f"{row}\n")
    assert message in refusal(tmp_path)
    dataset = vlscore.read_dataset(tmp_path, skip_bad=True)
    assert {photo.path.stem for photo in dataset.photos} == {"a", "c"}
    assert len(dataset.bad) == 1 and message in dataset.bad[0]


def test_names_that_repeat_in_folders_find_their_own_photo(tmp_path):
    """Every split numbers its photos from 1, as many tools do."""
    for split, name in (("train", "a"), ("test", "c")):
        folder = tmp_path / "JPEGImages" / split
        add_photos(folder, names=name)
        (folder / f"{name}.jpg").rename(folder / "0001.jpg")
        write_xml(tmp_path / "Annotations" / split, name)
        (tmp_path / "Annotations" / split / f"{name}.xml").rename(
            tmp_path / "Annotations" / split / "0001.xml"
        )
    dataset = vlscore.read_dataset(tmp_path)
    found = {photo.name: len(photo.objects) for photo in dataset.photos}
    assert found == {"test/0001": 2, "train/0001 (dog)": 2, "train/0001 (cat)": 2}
    colours = {photo.name: Image.open(photo.path).getpixel((0, 0))[0] for photo in dataset.photos}
    assert len(colours) == 3


SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.skipif(not (SHARED / "kangaroo-163").is_dir(), reason="the photos are outside the repository")
@pytest.mark.parametrize(
    "name, photos, objects, bad", [("kangaroo-163", 163, 263, 1), ("raccoon-200", 200, 217, 0)]
)
def test_data_sets_of_others_are_read_as_they_are(name, photos, objects, bad):
    dataset = vlscore.read_dataset(SHARED / name, skip_bad=True)
    assert (dataset.layout, len(dataset.photos), len(dataset.bad)) == ("voc", photos, bad)
    assert sum(len(photo.objects) for photo in dataset.photos) == objects
