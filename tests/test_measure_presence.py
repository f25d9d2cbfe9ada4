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
    row = study.describe("none", absent, is_absent, np.array([0.05, 0.06, 0.9, 0.01]))
    assert row["passed"] == pytest.approx(2 / 5)
    assert row["worst word"] == {"word": "a", "passed": pytest.approx(2 / 3, abs=1e-6)}
    assert row["deviation over words"] == pytest.approx(np.std([2 / 3, 0], ddof=1), abs=1e-6)
    assert row["missed"]["value"] == 0.5


def test_the_results_page_has_the_stored_figures():
    rows = {row["calibration"]: row for row in json.loads(study.OUT.read_text())}
    assert [*rows] == [*study.POWERS]
    plain = rows["not calibrated"]
    text = (study.OUT.parents[1] / "book" / "results.md").read_text()
    paragraph = text[text.index("**Word by word**") :].split("\n\n")[0]
    worst = plain["worst word"]
    assert f"{worst['word']}, {100 * worst['passed']:.0f} %" in paragraph
    assert f"{100 * plain['passed']:.1f} %" in paragraph
