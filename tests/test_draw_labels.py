"""The counts of the book's page of labels: right and wrong boxes by hand, and the page's numbers."""

import draw_labels as labels
import pytest

import vlscore


def box(label, score, *corners):
    return vlscore.LabelledBox(label, score, corners)


TRUTH = [("cat", (0, 0, 10, 10)), ("cat", (20, 0, 30, 10)), ("dog", (0, 20, 10, 30))]


def test_the_box_with_the_highest_score_has_the_object():
    judged = labels.judge([box("cat", 0.5, 0, 0, 10, 10), box("cat", 0.9, 0, 0, 10, 9)], TRUTH)
    assert judged.taken == [None, 0]
    assert judged.right == 1
    assert [each.score for each in judged.wrong] == [0.5]


def test_a_box_is_right_only_for_an_object_of_its_class():
    judged = labels.judge([box("dog", 1.0, 0, 0, 10, 10), box("dog", 0.2, 0, 21, 10, 31)], TRUTH)
    assert judged.taken == [None, 2]


def test_a_box_of_half_its_object_is_right_and_a_smaller_one_is_not():
    assert labels.judge([box("dog", 1.0, 0, 20, 10, 25)], TRUTH).taken == [2]
    assert labels.judge([box("dog", 1.0, 0, 20, 10, 24)], TRUTH).taken == [None]


def test_a_constant_box_stands_once_for_each_class_that_was_found():
    judged = labels.judge([box("cat", 0.5, 0, 0, 10, 10), box("cat", 0.9, 20, 0, 30, 10)], TRUTH)
    constant = labels.put_constant(judged, 0.5, (40, 40))
    assert constant.boxes == [box("cat", 0.9, 10, 10, 30, 30)]
    assert constant.right == 0


def test_the_best_box_of_each_class_is_named():
    boxes = [box("cat", 0.9, 0, 0, 10, 9), box("cat", 0.5, 0, 0, 5, 5), box("dog", 0.2, 0, 0, 1, 1)]
    assert labels.find_named(boxes) == [boxes[2], boxes[0]]


def test_photos_are_counted_by_hand():
    found = [
        labels.judge([box("cat", 1.0, 0, 0, 10, 10), box("cup", 1.0, 0, 0, 9, 9)], TRUTH),
        labels.judge([box("dog", 0.4, 0, 0, 10, 10)], TRUTH),
    ]
    counts = labels.count(found, [(40, 40), (40, 40)])
    del counts["recall above the constant box"]
    assert counts == {
        "photos": 2,
        "objects": 6,
        "boxes": 3,
        "right": 1,
        "wrong, of another class": 1,
        "wrong, of a class of the photo": 1,
        "wrong, with a score of 1.00": 1,
        "objects without a right box": 5,
    }


def test_the_difference_in_recall_counts_objects_and_resamples_photos():
    all_right = labels.Judged(TRUTH, [None] * 3, [0, 1, 2])
    none_right = labels.Judged(TRUTH, [None] * 3, [None] * 3)
    found = labels.compare_recall([all_right, none_right], [none_right, none_right])
    assert found == {"value": pytest.approx(0.5), "low": 0, "high": 1}  # half of the photos


def test_a_missing_model_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(labels, "MODEL", "no-such-model")
    assert labels.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1
