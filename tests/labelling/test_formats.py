"""Labels in the formats of other tools, read back by readers that are not ours."""

import contextlib
import io
import json
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import VOCDetection

import vlscore

CLASSES = ["dog", "red circle", "Küken & Söhne"]
PHOTOS = [
    vlscore.LabelledPhoto("a b.jpg", (100, 80), [vlscore.LabelledBox("dog", 0.75, (10, 20, 60, 80))]),
    vlscore.LabelledPhoto("deep/ünï/c.png", (33, 44), []),
    vlscore.LabelledPhoto(
        "deep/d.jpg",
        (640, 480),
        [
            vlscore.LabelledBox("Küken & Söhne", 0.5, (0, 0, 640, 480)),
            vlscore.LabelledBox("dog", 0.25, (600, 400, 601, 402)),
        ],
    ),
]


@pytest.fixture
def out(tmp_path):
    for form in vlscore.LABEL_FORMATS:
        vlscore.write_labels(PHOTOS, CLASSES, form, tmp_path / "out", tmp_path / "photos")
    return tmp_path / "out"


def test_coco_is_read_by_pycocotools(out):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(out / "coco.json"))
        assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == CLASSES
        for number, photo in enumerate(PHOTOS, 1):
            (image,) = coco.loadImgs([number])
            assert (image["file_name"], image["width"], image["height"]) == (photo.place, *photo.size)
            found = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
            for each, expected in zip(found, photo.boxes, strict=True):
                x, y, w, h = each["bbox"]
                assert (x, y, x + w, y + h) == expected.box
                assert coco.cats[each["category_id"]]["name"] == expected.label
                assert (each["area"], each["score"]) == (w * h, expected.score)
        results = json.loads((out / "coco.json").read_text())["annotations"]
        assert coco.loadRes(results).getAnnIds() == [1, 2, 3]  # as detections, which have scores


def test_voc_is_read_by_torchvision(out):
    for photo in PHOTOS:
        file = out / Path(photo.place).with_suffix(".xml")
        facts = VOCDetection.parse_voc_xml(ElementTree.parse(file).getroot())["annotation"]
        assert facts["filename"] == Path(photo.place).name
        assert (int(facts["size"]["width"]), int(facts["size"]["height"])) == photo.size
        for each, expected in zip(facts.get("object", []), photo.boxes, strict=True):
            x0, y0, x1, y1 = (int(each["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax"))
            assert (each["name"], (x0, y0, x1 + 1, y1 + 1)) == (expected.label, expected.box)


def test_voc_is_read_by_our_own_reader(out, tmp_path):
    """A folder of photos with these files beside them is a data set."""
    for photo in PHOTOS[:1]:
        path = out / photo.place
        Image.new("RGB", photo.size).save(path)
    from vlscore_lib.datasets.voc import read_voc

    _, size, objects = read_voc(out / "a b.xml")
    assert (size, objects) == ((100, 80), [("dog", (10, 20, 60, 80))])


def test_yolo_is_read_by_hand(out, tmp_path):
    facts = yaml.safe_load((out / "data.yaml").read_text())
    assert facts["names"] == dict(enumerate(CLASSES))
    assert (facts["nc"], facts["path"]) == (3, str((tmp_path / "photos").resolve()))
    for photo in PHOTOS:
        rows = (out / "labels" / Path(photo.place).with_suffix(".txt")).read_text().splitlines()
        W, H = photo.size
        for row, expected in zip(rows, photo.boxes, strict=True):
            number, x, y, w, h = map(float, row.split())
            assert facts["names"][int(number)] == expected.label
            box = ((x - w / 2) * W, (y - h / 2) * H, (x + w / 2) * W, (y + h / 2) * H)
            assert box == pytest.approx(expected.box, abs=0.01)


def test_label_studio_has_tasks_with_predictions(out):
    tasks = json.loads((out / "label-studio.json").read_text())
    for task, photo in zip(tasks, PHOTOS, strict=True):
        assert unquote(task["data"]["image"]) == f"/data/local-files/?d=photos/{photo.place}"
        (prediction,) = task["predictions"]
        for each, expected in zip(prediction["result"], photo.boxes, strict=True):
            value, (W, H) = each["value"], photo.size
            assert (each["from_name"], each["to_name"], each["type"]) == ("label", "image", "rectanglelabels")
            assert value["rectanglelabels"] == [expected.label]
            x0, y0 = value["x"] * W / 100, value["y"] * H / 100
            box = (x0, y0, x0 + value["width"] * W / 100, y0 + value["height"] * H / 100)
            assert box == pytest.approx(expected.box)
    view = ElementTree.parse(out / "label-studio.xml").getroot()
    assert [each.get("value") for each in view.iter("Label")] == CLASSES


def test_photos_of_one_name_keep_their_endings(tmp_path):
    photos = [vlscore.LabelledPhoto(name, (9, 9), []) for name in ("a.jpg", "a.png", "b.jpg")]
    vlscore.write_labels(photos, ["x"], "voc", tmp_path, tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jpg.xml", "a.png.xml", "b.xml"]


def test_an_unknown_format_is_told(tmp_path):
    with pytest.raises(vlscore.VLScoreError, match="unknown format 'pascal': choose one of coco, voc"):
        vlscore.write_labels(PHOTOS, CLASSES, "pascal", tmp_path, tmp_path)


@pytest.mark.parametrize("place", ["/photos/a.jpg", "../a.jpg", "deep/../../a.jpg"])
@pytest.mark.parametrize("form", vlscore.LABEL_FORMATS)
def test_no_file_is_written_outside_of_the_folder(tmp_path, form, place):
    photos = [*PHOTOS, vlscore.LabelledPhoto(place, (10, 10), [])]
    with pytest.raises(vlscore.VLScoreError, match=f"^{place} is not a path below the folder"):
        vlscore.write_labels(photos, CLASSES, form, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
