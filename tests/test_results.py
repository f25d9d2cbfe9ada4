"""What the pages of results read: figures by hand, and what chapters stored against the pages."""

import json
import re

import pytest
import results

import vlscore

THING, OTHER = (0, 0, 10, 10), (50, 50, 60, 60)


def test_boxes_are_compared_at_each_threshold():
    """Each object needs a box of its own, and the ratio is that of the nearest box."""
    sweep = [
        [(0, 0, 10, 9)],
        [],
        [(0, 0, 60, 60)],
        [OTHER, THING],
        [(0, 0, 20, 10), (200, 200, 201, 201)],
    ]
    found = results.compare_boxes(sweep, [THING, OTHER])
    assert found["found"] == [1, 0, 0, 2, 0]
    assert found["iou"] == pytest.approx([vlscore.box_iou(boxes, [THING, OTHER]) for boxes in sweep])
    assert found["ratio"] == pytest.approx([0.9, 0, 36, 1, 2])


def record(iou, share, found=1, objects=2):
    one = {"iou": [iou] * len(results.THRESHOLDS), "found": [found] * len(results.THRESHOLDS)}
    one["ratio"] = [5.0] * len(results.THRESHOLDS)
    constant = [0.0] * len(vlscore.SHARES)
    return {"constant": constant, "objects": objects, "share": share, "plain": one, "refined": one}


def test_a_row_counts_hits_objects_and_small_things():
    records = [record(0.9, 0.5), record(0.9, 0.05), record(0.2, 0.05, found=0), record(0.2, 0.5, found=0)]
    row = results.summary(results.Setting("scenes-rn"), "made up", records)
    assert row["images"] == 4
    assert row["refined"]["gt_known"]["value"] == 0.5
    assert row["refined"]["objects_found"]["value"] == 0.25
    assert row["constant"]["gt_known"]["value"] == 0
    assert row["small"] == {"images": 2} | {
        name: {"hits": 1, "median_ratio": 5.0} for name in ("plain", "refined")
    }


@pytest.mark.parametrize("setting", results.SCENES[1:], ids=lambda setting: setting.name)
def test_refined_is_measured_as_the_module_finds_it(drawn, setting):
    dataset = vlscore.read_dataset(drawn)
    photo = dataset.photos[0]
    measured = results.measure(setting, dataset.classes, photo)
    model = vlscore.load_model(setting.model, "cpu")
    encoding = vlscore.encode(model, photo.path, keep=setting.keep, precision="float32", refined=True)
    text = vlscore.class_embedding(model, dataset.classes[photo.label])
    boxes = vlscore.find_boxes(vlscore.saliency(encoding, text, model.temperature), encoding)
    at = results.THRESHOLDS.index(model.refined_threshold)
    assert measured["refined"]["iou"][at] == pytest.approx(vlscore.box_iou(boxes, photo.boxes), abs=0.02)


def test_a_row_replaces_the_one_of_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "OUT", tmp_path / "results.json")
    for value in (1, 2):
        results.store({"data": "scenes", "name": "a", "value": value})
        results.store({"data": "scenes", "name": "b", "value": 0})
    stored = json.loads(results.OUT.read_text())["scenes"]
    assert sorted((row["name"], row["value"]) for row in stored) == [("a", 2), ("b", 0)]


def test_pages_show_only_what_a_chapter_stored():
    root = results.OUT.parent.parent
    shown = {page.name: page.read_text() for page in (root / "book").glob("*.md")}
    assert {name for name, text in shown.items() if "{glue:text}" in text} >= {
        "results.md",
        "results_speed.md",
    }
    for page, text in shown.items():
        for chapter, name in re.findall(r"\{glue:text\}`\.\./(notebooks/\w+\.ipynb)::([^`]+):s`", text):
            cells = json.loads((root / chapter).read_text())["cells"]
            outputs = [output for cell in cells for output in cell.get("outputs", [])]
            names = {each.get("metadata", {}).get("scrapbook", {}).get("name") for each in outputs}
            assert name in names, f"{page}: {chapter} stores no {name}"


def test_plain_raccoons_are_those_of_the_study():
    """`vlscore evaluate` and `compare_passes.py` measured the same photos, each with its own code."""
    summary = json.loads(results.OUT.with_name("raccoons.json").read_text())
    rows = json.loads(results.OUT.with_name("passes.json").read_text())["lite0-minilm"]["raccoon"]["rows"]
    rows = {row["method"]: row for row in rows if row["passes"] == 128}
    known = summary["results"]["gt_known"]["value"]
    assert known == rows["plain"]["gt_known_at_own_threshold"]["value"]
    refined = rows["refined"]
    constant = refined["gt_known_at_own_threshold"]["value"]
    constant -= refined["at_own_thresholds"]["over_constant"]["value"]
    assert summary["constant_box"]["gt_known"]["value"] == pytest.approx(constant, abs=1e-6)
    above = summary["gt_known_above"]["constant box"]["value"]
    assert above == pytest.approx(known - constant, abs=1e-6)
