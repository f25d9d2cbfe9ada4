"""Average precision of labels, against numbers worked out by hand."""

import json

import pytest
from evaluation_helpers import QUICK
from PIL import Image

import vlscore
from vlscore_lib.evaluation.detection import sum_up_labels

LEFT, RIGHT = (0, 0, 40, 40), (50, 0, 90, 40)


def test_the_interpolated_precision_at_101_recalls():
    """One right, one wrong, one right, in the order of their scores; three objects.

    Precision is 1 up to a recall of 1/3, that is at 34 of COCO's 101 recalls, and 2/3 at the 33 up to 2/3.
    """
    truth = [[("dog", LEFT)], [("dog", LEFT), ("dog", RIGHT)]]
    found = [[("dog", 0.9, LEFT), ("dog", 0.8, RIGHT)], [("dog", 0.7, RIGHT)]]
    result = vlscore.average_precision(found, truth)
    assert result["ap50"] == pytest.approx((34 + 33 * 2 / 3) / 101, abs=1e-6)
    assert result["ap"] == result["ap50"]  # since the boxes are exact
    assert result["precision"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert result["recall"]["value"] == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.parametrize("iou, right", [(0.5, 1), (0.7, 5), (0.95, 10), (0.49, 0)])
def test_a_box_is_right_up_to_its_iou(iou, right):
    """At 0.5, 0.55, …, 0.95; IoU 0.5 is a hit, as in COCO."""
    result = vlscore.average_precision(
        [[("dog", 1.0, (0, 0, 1000 * iou, 10))]], [[("dog", (0, 0, 1000, 10))]]
    )
    assert result["ap"] == pytest.approx(right / 10)
    assert result["ap50"] == (right > 0)


def test_the_mean_over_classes_and_a_class_that_nothing_shows():
    truth = [[("dog", LEFT), ("cat", RIGHT)]]
    found = [[("dog", 0.5, LEFT), ("bird", 0.9, RIGHT)]]
    result = vlscore.average_precision(found, truth)
    assert result["classes"] == {"cat": 0.0, "dog": 1.0}
    assert result["ap50"] == 0.5
    assert (result["precision"]["value"], result["recall"]["value"]) == (0.5, 0.5)


def test_one_object_is_met_once():
    result = vlscore.average_precision([[("dog", 0.9, LEFT), ("dog", 0.8, LEFT)]], [[("dog", LEFT)]])
    assert (result["precision"]["value"], result["recall"]["value"]) == (0.5, 1)


def test_nothing_found():
    result = vlscore.average_precision([[], []], [[("dog", LEFT)], [("cat", RIGHT)]])
    assert (result["ap50"], result["ap"], result["recall"]["value"]) == (0, 0, 0)
    assert result["precision"] == {"value": None, "low": None, "high": None}


def test_the_constant_box_keeps_classes_and_has_its_best_side():
    import pandas

    box = (10, 20, 90, 180)  # 80 % of each side of 100×200, centred
    row = {
        "photo": "a",
        "width": 100,
        "height": 200,
        "found": [{"label": "dog", "score": 0.5, "box": LEFT}, {"label": "dog", "score": 0.4, "box": RIGHT}],
        "truth": [{"label": "dog", "box": box}],
    }
    summary = sum_up_labels(pandas.DataFrame([row, row]))  # a photo of two classes is there twice
    assert summary["photos"] == 1
    assert summary["labels"]["ap50"] == 0
    assert summary["constant_box"]["ap50"] == 1
    assert 0.6 <= summary["constant_box"]["side"] <= 1
    assert summary["constant_box"]["precision"]["value"] == 1


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """Four photos in COCO's layout; two show two classes."""
    root = tmp_path_factory.mktemp("animals")
    images, rows = [], []
    for n in range(4):
        Image.effect_noise((90, 60), 40 + 20 * n).convert("RGB").save(root / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "width": 90, "height": 60})
        for category in (1, 2)[: 1 + n % 2]:
            rows.append({"image_id": n, "category_id": category, "bbox": [10, 10, 30 * category, 30]})
    categories = [{"id": n, "name": name} for n, name in enumerate(("dog", "cat", "bird"), start=1)]
    facts = {"images": images, "annotations": rows, "categories": categories}
    (root / "all.json").write_text(json.dumps(facts))
    return root


def test_a_data_set_of_detection_is_measured_by_class_and_encoded_by_photo(
    rn, animals, tmp_path, monkeypatch
):
    encode_images, encoded = vlscore.encode_images, []

    def spy(model, images, *others):
        encoded.extend(images)
        return encode_images(model, images, *others)

    monkeypatch.setattr(vlscore, "encode_images", spy)
    records = vlscore.evaluate(rn, vlscore.read_dataset(animals), tmp_path / "run", **QUICK)
    assert list(records["image"]) == ["0", "1 (dog)", "1 (cat)", "2", "3 (dog)", "3 (cat)"]
    assert len(encoded) == 4
    assert list(records["photo"]) == ["0", "1", "1", "2", "3", "3"]
    summary = json.loads((tmp_path / "run/summary.json").read_text())["average_precision"]
    assert summary["photos"] == 4
    parameters, again = vlscore.read_run(tmp_path / "run")
    assert parameters["average_precision"] is True
    assert sum_up_labels(again) == summary
    found = vlscore.find_labels(
        rn,
        vlscore.encode(rn, animals / "0.png", keep=4),
        {name: rn.encode_text([f"an image of a {name}."])[0] for name in ("dog", "cat", "bird")},
    )
    kept = [tuple(each.values()) for each in again["found"][0]]
    assert [(label, tuple(box)) for label, _, box in kept] == [(each.label, each.box) for each in found]


def test_other_data_sets_are_measured_so_if_asked(rn, photos, tmp_path):
    vlscore.evaluate(rn, photos, tmp_path / "plain", **QUICK)
    vlscore.evaluate(rn, photos, tmp_path / "asked", **QUICK, average_precision=True)
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text())["average_precision"]
        for name in ("plain", "asked")
    ]
    assert summaries[0] is None
    assert summaries[1]["photos"] == 12
    assert "labels of all classes in 12 photos" in vlscore.summary_table(
        json.loads((tmp_path / "asked/summary.json").read_text())
    )
