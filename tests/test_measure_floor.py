"""The study of the floor and the temperature: weights without the floor, and rows counted by hand."""

import json

import measure_floor as study
import torch

import vlscore

CHAPTER = study.OUT.parents[1] / "notebooks" / "03_vl_score.ipynb"


def test_without_the_floor_every_map_has_its_softmax_weight(scenes_rn, drawn):
    photo = vlscore.read_dataset(drawn).photos[0]
    encoding = vlscore.encode(scenes_rn, photo.path, keep=8)
    text = scenes_rn.encode_text(["an image of a red cross."])[0]
    s, base = vlscore.scores(encoding, text)
    assert (s <= base).any()  # else the floor would change nothing
    for temperature in (encoding.temperature, 1.0):
        found = vlscore.weights(study.without_floor(encoding, text), text, temperature)
        torch.testing.assert_close(found, (s / temperature).softmax(0))


def test_the_best_map_alone_is_what_a_tiny_temperature_leaves(scenes_rn, drawn):
    photo = vlscore.read_dataset(drawn).photos[0]
    encoding = vlscore.encode(scenes_rn, photo.path, keep=8)
    text = scenes_rn.encode_text(["an image of a red cross."])[0]
    _, temperature = study.CHANGES["τ → 0: the best map alone"]
    found = vlscore.weights(encoding, text, temperature)
    assert found.argmax() == vlscore.scores(encoding, text)[0].argmax()
    assert found.max() > 0.99


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
