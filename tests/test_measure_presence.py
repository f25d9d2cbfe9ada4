"""The study of presence: its ranks are `p_absent`, and the results page has the stored figures."""

import json

import measure_presence as study
import numpy as np
import pytest
import torch

import vlscore


def test_ranks_of_uncalibrated_fits_are_p_absent(scenes_rn, drawn):
    photo = vlscore.read_dataset(drawn).photos[0]
    encoding = vlscore.encode(scenes_rn, photo.path, keep=8)
    others = vlscore.embed_other_words(scenes_rn)
    texts = scenes_rn.encode_text(["an image of a red cross.", "an image of a blue star."])
    fits = study.find_fits(encoding, torch.cat([others, texts]))[None]
    found = study.find_ranks(fits[:, len(others) :], fits[:, : len(others)])[0]
    assert found.tolist() == pytest.approx([vlscore.p_absent(encoding, text, others) for text in texts])


def test_calibration_takes_off_what_a_text_has_on_every_photo():
    reference = np.array([[1.0, 10.0], [3.0, 14.0]])  # means 2 and 12, deviations √2 and 2√2
    fits = np.array([[2.0, 12.0], [4.0, 12.0]])
    assert study.calibrate(fits, reference, None) is fits
    assert study.calibrate(fits, reference, 0.0).tolist() == [[0, 0], [2, 0]]
    assert study.calibrate(fits, reference, 1.0)[1, 0] == pytest.approx(2**0.5)


def test_a_row_counts_what_passes_and_what_is_missed(monkeypatch):
    monkeypatch.setattr(study, "WORDS", ["a", "b"])
    absent = np.array([[0.01, 0.5], [0.5, 0.5], [0.04, 0.01]])
    is_absent = np.array([[True, True], [True, True], [True, False]])
    row = study.describe(study.Presence(absent, np.array([0.05, 0.06, 0.9, 0.01])), is_absent)
    assert row["passed"] == pytest.approx(2 / 5)
    assert row["worst word"] == {"word": "a", "passed": pytest.approx(2 / 3, abs=1e-6)}
    assert row["deviation over words"] == pytest.approx(np.std([2 / 3, 0], ddof=1), abs=1e-6)
    assert row["missed"]["value"] == 0.5


def test_each_photo_is_asked_for_its_own_class(monkeypatch):
    """Two other texts, one word, and the classes of two photos, by hand."""
    monkeypatch.setattr(study, "WORDS", ["a"])
    fits = np.array([[0.1, 0.2, 0.15, 0.3, 0.0], [0.1, 0.2, 0.3, 0.0, 0.05]])
    found = study.judge(fits, 2)
    assert found.absent.tolist() == [[2 / 3], [1 / 3]]
    assert found.shown.tolist() == [1 / 3, 1]


def test_what_is_called_present_is_looked_up_with_the_most_masks(monkeypatch):
    monkeypatch.setattr(study, "WORDS", ["a", "b"])
    others = np.linspace(0, 1, 40)
    most = np.concatenate([others, [2.0] * 4])[None].repeat(2, 0)  # two words and two classes, all present
    fewer = most.copy()
    most[0, 40] = -1  # with most masks, the first word is absent in the first photo
    few, many = study.compare_masks({8: fewer, 128: most}, 40, np.ones((2, 2), bool))
    assert (few["masks"], few["passed"]) == (8, 1)
    assert few["also present with most"] == pytest.approx(5 / 6, abs=1e-6)
    assert (many["masks"], many["passed"], many["also present with most"]) == (128, 0.75, 1)


def test_the_results_page_has_the_stored_figures():
    stored = json.loads(study.OUT.read_text())
    rows = {row["calibration"]: row for row in stored["calibration"]}
    most = {key: value for key, value in stored["masks"][-1].items() if key in rows["not calibrated"]}
    assert most == {key: value for key, value in rows["not calibrated"].items() if key in most}
    assert [*rows] == [*study.POWERS]
    plain = rows["not calibrated"]
    text = (study.OUT.parents[1] / "book" / "results.md").read_text()
    paragraph = text[text.index("**Word by word**") :].split("\n\n")[0]
    worst = plain["worst word"]
    assert f"{worst['word']}, {100 * worst['passed']:.0f} %" in paragraph
    assert f"{100 * plain['passed']:.1f} %" in paragraph
