"""The study of the floor and the temperature: its whole method is VL-Score, its rows are counted by hand."""

import json

import measure_floor as study
import pytest
import torch

import vlscore

CHAPTER = study.OUT.parents[1] / "notebooks" / "03_vl_score.ipynb"


def test_the_whole_method_is_vl_score(scenes_rn, drawn):
    photo = vlscore.read_dataset(drawn).photos[0]
    encoding = vlscore.encode(scenes_rn, photo.path, keep=8)
    text = scenes_rn.encode_text(["an image of a red cross."])[0]
    s, base = vlscore.scores(encoding, text)
    for temperature in (encoding.temperature, 1.0):
        found = study.weigh(s, base, True, temperature)
        torch.testing.assert_close(found, vlscore.weights(encoding, text, temperature))


def test_weights_with_and_without_the_floor_by_hand():
    s, base = torch.tensor([0.30, 0.26, 0.21]), torch.tensor(0.22)
    kept = study.weigh(s, base, True, 0.05)
    assert kept.tolist() == pytest.approx([0.690, 0.310, 0.0], abs=1e-3)  # the worked example of chapter 03
    every = study.weigh(s, base, False, 0.05)
    assert every.tolist() == pytest.approx((s / 0.05).softmax(0).tolist())
    best = study.weigh(s, base, *study.CHANGES["τ → 0: the best map alone"])
    assert best.tolist() == [1, 0, 0]
    assert study.weigh(s, torch.tensor(0.4), True, 1.0) is None


def record(**hits):
    """A record whose methods hit, with their peak in the object, or miss at every threshold."""
    judged = {
        name: {"iou": [0.9 * hits.get(name, 0)] * 3, "in_box": hits.get(name, False)}
        for name in (*study.CHANGES, study.MEAN)
    }
    return {"kept": 0.5, "judged": judged}


def test_rows_are_counted_by_hand():
    both = {study.WHOLE: True, "no floor": True, "τ = 1": True}
    found = study.tabulate([record(**both), record(**{study.WHOLE: True}), record(), record()])
    rows = {row["change"]: row for row in found["rows"]}
    assert found["prompts"] == 4 and found["kept"] == 0.5
    shares = {name: row["gt_known"]["value"] for name, row in rows.items()}
    assert shares[study.WHOLE] == 0.5 and shares["no floor"] == shares["τ = 1"] == 0.25
    assert shares[study.MEAN] == 0
    assert rows["no floor"]["over_whole"]["value"] == rows["τ = 1"]["peak_over_whole"]["value"] == -0.25
    assert rows[study.WHOLE]["floor_gain"]["value"] == rows["τ = 1"]["floor_gain"]["value"] == 0.25
    assert [name for name, row in rows.items() if "floor_gain" in row] == [study.WHOLE, "τ = 1"]


def test_the_chapter_has_the_stored_differences():
    stored = json.loads(study.OUT.read_text())
    assert {name: tuple(sets) for name, sets in stored.items()} == study.SETS
    cells = json.loads(CHAPTER.read_text())["cells"]
    (text,) = ["".join(cell["source"]) for cell in cells if "**The floor.**" in "".join(cell["source"])]
    text = " ".join(text.split())
    rows = {row["change"]: row for row in stored["lite0-minilm"]["pairs"]["rows"]}
    for found in (rows["τ = 1"]["floor_gain"], rows["τ = 1"]["over_whole"]):
        low, high = sorted(abs(round(100 * found[key], 1)) for key in ("low", "high"))
        assert f"{abs(100 * found['value']):.1f} points ({low:.1f} to {high:.1f})" in text
