"""The tables of the scenes models: what is chosen on one set is measured on another."""

import measure_scenes
import numpy as np
import pytest
from measure_scenes import TEMPERATURES, THRESHOLDS

import vlscore

T, A = len(TEMPERATURES), len(THRESHOLDS)


def swept(hits, mean=(), right=()):
    """A scene's sweep: box IoU 0.9 where it hits and 0.1 elsewhere; peaks right at some temperatures."""
    iou = np.full((T, A), 0.1)
    for cell in hits:
        iou[cell] = 0.9
    means = np.full(A, 0.1)
    means[list(mean)] = 0.9
    peaks = np.zeros((2, T), bool)
    peaks[:, list(right)] = True
    return {"iou": iou, "mean": means, "peaks": peaks}


def test_temperature_and_threshold_are_those_of_the_tuning_set():
    tuned = [swept([(2, 3)], mean=[5], right=[4])] * 3 + [swept([(0, 0)], mean=[1], right=[1])]
    tested = [swept([(2, 3), (0, 0)], mean=[5])] * 6 + [swept([(0, 0), (2, 7)], mean=[1])] * 4
    paired = [swept([], right=[4])] + [swept([], right=[1])] * 3
    line = measure_scenes.row("some maps", tuned, tested, paired)
    cells = line.strip("| ").split(" | ")
    assert cells[:3] == ["some maps", f"{TEMPERATURES[2]:g}", f"{THRESHOLDS[3]:g}"]
    low, high = vlscore.wilson(6, 10)
    assert cells[3] == f"60.0 ({100 * low:.1f} to {100 * high:.1f})"  # not the 100 % of another cell
    assert cells[4].startswith("60.0 ")  # no threshold does better at this temperature
    assert cells[5].startswith("60.0 ")
    assert [cell.split()[0] for cell in cells[6:]] == [f"{TEMPERATURES[4]:g}", "25.0", "25.0"]


def test_the_best_constant_box_is_that_of_most_hits():
    def photo(share):
        size = 224, 224
        return vlscore.AnnotatedPhoto(None, "a", [("a", vlscore.constant_box(share, size))], size)

    best, hits = measure_scenes.best_constant_box([photo(0.3), photo(0.3), photo(0.9)])
    assert best == pytest.approx(0.3, abs=0.1)
    assert hits.tolist() == [True, True, False]


def test_a_scene_is_swept_as_localize_finds(monkeypatch, tmp_path, rn):
    """At each temperature and threshold, box IoU and peak are those of `saliency` and `find_boxes`."""
    from vlscore_lib import scenes

    scenes.write_scenes(tmp_path / "scenes", 1, 7, (120, 90), objects=2)
    photo = vlscore.read_dataset(tmp_path / "scenes").photos[0]
    names = dict(scenes.classes())
    texts = {wnid: vlscore.class_embedding(rn, names[wnid]) for wnid, _ in photo.objects}
    monkeypatch.setattr(measure_scenes, "load", lambda kind: (rn, texts))
    found = measure_scenes.sweep("rn", ("layer3", "activation", None), photo)
    encoding = vlscore.encode(rn, photo.path, "layer3", precision="float32")
    for t, a in ((0, 0), (2, 5), (4, 12)):
        saliency = vlscore.saliency(encoding, texts[photo.label], TEMPERATURES[t])
        boxes = vlscore.find_boxes(saliency, encoding, THRESHOLDS[a])
        assert found["iou"][t, a] == pytest.approx(vlscore.box_iou(boxes, photo.boxes))
        x, y = vlscore.find_peak(saliency, encoding)
        (x0, y0, x1, y1) = photo.boxes[0]
        assert found["peaks"][0][t] == (x0 <= x <= x1 and y0 <= y <= y1)
