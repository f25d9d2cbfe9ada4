"""What boxes alone say of the sets of images: by hand, and the pages against the stored file."""

import json
import re
from pathlib import Path

import describe_sets as sets
import numpy as np
import pytest
import study_sets

BOOK = Path(__file__).parents[1] / "book"
STORED = json.loads(sets.OUT.read_text())


def ask(*boxes, size=(100, 100), side=None):
    return study_sets.Ask(Path("a.png"), ("a",), boxes, size, 0, side)


def shown(share, digits=1):
    value, low, high = (100 * share[key] for key in ("value", "low", "high"))
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def test_a_constant_answer_for_a_pair_has_a_box_in_the_middle_of_each_half():
    pair = ask((0, 0, 1, 1), size=(200, 100), side=(0, 100))
    boxes = study_sets.constant_boxes(0.5, pair)
    assert boxes == [pytest.approx((25, 25, 75, 75)), pytest.approx((125, 25, 175, 75))]


def test_the_best_constant_answer_of_pairs_hits_either_half():
    left, right = (ask((x + 20, 20, x + 80, 80), size=(200, 100), side=(x, x + 100)) for x in (0, 100))
    row = sets.describe([left, right])
    assert row["constant"]["gt_known"]["value"] == 1
    assert (row["prompts"], row["images"], row["objects"]) == (2, 1, 1)
    assert row["largest"] == pytest.approx(0.36 / 2)


def test_the_largest_box_says_whether_an_image_shows_its_object_near_the_middle():
    assert sets.is_near_the_middle(ask((0, 0, 5, 5), (20, 20, 90, 80)))
    assert not sets.is_near_the_middle(ask((20, 20, 80, 80), (0, 0, 90, 80)))


def test_a_constant_answer_for_one_photo_is_one_box_in_its_middle():
    boxes = study_sets.constant_boxes(0.5, ask((0, 0, 1, 1), size=(200, 100)))
    assert boxes == [pytest.approx((50, 25, 150, 75))]


def test_each_photo_is_in_one_class_of_size():
    asks = [ask((0, 0, 10, 10)), ask((0, 0, 100, 25)), ask((0, 0, 100, 100)), ask((10, 10, 90, 90))]
    rows = sets.divide(asks)
    assert [row["photos"] for row in rows] == [1, 0, 1, 1, 1]
    assert [row["hits"] for row in rows] == [0, 0, 0, 1, 1]


def test_examples_have_white_boxes(drawn):
    asks = study_sets.read_asks(drawn)
    picture = sets.draw_examples(dict.fromkeys(("scenes", "two of a class", "three of a class"), asks))
    x0, y0, *_ = asks[0].boxes[0]
    x, y = (round(value * sets.TILE / side) for value, side in zip((x0, y0), asks[0].size))
    near = np.asarray(picture)[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
    assert (near == 255).all(-1).any()
    assert picture.size == (3 * sets.TILE + 2 * sets.GAP, 2 * sets.TILE + sets.GAP)


def test_the_constant_box_is_that_of_the_study_of_refinement():
    study = json.loads((sets.OUT.parent / "refinement.json").read_text())["folds"]["project"]["sets"]
    for name in ("imagenet", "kangaroo", "pairs"):
        assert STORED["sets"][name]["constant"]["gt_known"] == study[name]["constant_box"]


def test_the_results_pages_have_the_stored_numbers():
    text = "".join((BOOK / name).read_text() for name in ("results.md", "results_masks.md"))
    assert f"{shown(STORED['sets']['pairs']['constant']['gt_known'])}, two boxes" in text
    folds = json.loads((sets.OUT.parent / "refinement.json").read_text())["folds"]
    kept = read_kept("04_imagenet_evaluation")
    for run in ("one_pass", "textless", "mean"):
        for name in ("imagenet", "kangaroo", "pairs"):
            assert kept[f"{name} {run}"] == shown(folds[run]["sets"][name]["gt_known"])
            assert f"::{name} {run}:s`" in text
    unknown = {run: 100 * each["sets"]["unknown"]["gt_known"]["value"] for run, each in folds.items()}
    ours, one_pass = (f"{unknown[run]:.1f} %" for run in ("project", "one_pass"))
    assert f"refined boxes are right in {ours}, mask-free refinement in {one_pass}" in text


def read_kept(chapter: str) -> dict[str, str]:
    """What a chapter stores for other pages: its name and its text."""
    notebook = json.loads((BOOK.parent / "notebooks" / f"{chapter}.ipynb").read_text())
    outputs = [each for cell in notebook["cells"] for each in cell.get("outputs", [])]
    found = [each for each in outputs if "scrapbook" in each.get("metadata", {})]
    kind = "application/papermill.record/text/plain"
    return {each["metadata"]["scrapbook"]["name"]: each["data"][kind].strip("'") for each in found}


def test_the_page_of_the_data_has_the_stored_numbers():
    text = (BOOK / "results_data.md").read_text()
    near, sample = STORED["sets"]["imagenet"]["near_the_middle"]["value"], STORED["sample"]
    assert f"In {100 * near:.0f} % of the 800 photos" in text
    for share in sample.values():
        assert shown(share) in " ".join(text.split()).replace(" % (", " (")
    for row in STORED["sizes"]:
        assert f"{row['hits']} of {row['photos']}" in text
    table = text[text.index(":name: results-data\n") :].split(":::")[0]
    cells = {row.split("\n  - ")[0]: row.split("\n  - ")[3:] for row in re.split(r"\n\* - ", table)[2:]}
    names = {"imagenet": "800 photos of ImageNet", "pairs": "250 prompts for pairs"}
    names |= {"kangaroo": "163 photos of kangaroos", "raccoon": "200 photos of raccoons"}
    for key, name in (names | {"scenes": "200 drawn scenes"}).items():
        row = STORED["sets"][key]
        objects, largest, constant = cells[name]
        assert (objects, largest) == (f"{row['objects'] + 1e-9:.2f}", f"{100 * row['largest']:.0f} %")
        assert float(constant) == pytest.approx(100 * row["constant"]["gt_known"]["value"], abs=0.051)


def test_a_missing_folder_is_named(tmp_path, capsys):
    assert sets.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
