"""The studies' data: pairs of photos, folds, and scenes that chose nothing."""

import numpy as np
import pytest
import study_sets
import torch
from PIL import Image

import vlscore

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


@pytest.fixture
def asks(tmp_path):
    """Two photos of other classes and shapes, a white object on black in each."""
    found = []
    for name, size, box in (("cat", (100, 50), (10, 10, 30, 40)), ("dog", (40, 80), (0, 40, 20, 80))):
        image = Image.new("RGB", size)
        image.paste(WHITE, box)
        image.save(tmp_path / f"{name}.png")
        found.append(study_sets.Ask(tmp_path / f"{name}.png", (name,), (box,), size, 3))
    return found


def test_a_pair_s_boxes_lie_on_its_objects(asks, tmp_path):
    pair = study_sets.make_pair(tuple(asks), tmp_path / "pair.png")
    picture = np.asarray(Image.open(tmp_path / "pair.png").convert("L")) > 127
    assert [ask.names for ask in pair] == [("cat",), ("dog",)]
    for ask, (left, right) in zip(pair, ((0, 320), (320, 640))):
        rows, columns = np.nonzero(picture[:, left:right])
        drawn = columns.min() + left, rows.min(), columns.max() + 1 + left, rows.max() + 1
        assert ask.boxes[0] == pytest.approx(drawn, abs=1)
        assert ask.side == (left, right)
        assert ask.fold == 3
        assert ask.size == (640, 320)


def test_pairs_are_of_one_fold_and_of_two_classes(asks, tmp_path):
    many = [
        study_sets.Ask(ask.path, ask.names, ask.boxes, ask.size, fold)
        for fold in range(study_sets.FOLDS)
        for ask in (*asks, asks[0], asks[1])
    ]
    found = study_sets.make_pairs(many, tmp_path / "pairs")
    assert found
    for one, other in zip(found[::2], found[1::2]):
        assert one.path == other.path
        assert one.fold == other.fold
        assert one.names != other.names


def test_the_peak_of_a_pair_is_looked_for_on_the_asked_side(asks, tmp_path, rn):
    left, right = study_sets.make_pair(tuple(asks), tmp_path / "pair.png")
    encoding = vlscore.encode(rn, left.path, keep=4, precision="float32")
    heat = torch.zeros(32, 32)
    heat[16, 3] = 1.0  # on the cat: at a tenth of the width, half-way down
    assert study_sets.is_on_side(heat, encoding, left)
    assert not study_sets.is_on_side(heat, encoding, right)
    assert study_sets.is_in_box(heat, encoding, left)
    assert not study_sets.is_in_box(heat.flip(1), encoding, left)


def test_folds_are_those_of_the_file_where_there_is_one(drawn, tmp_path):
    found = study_sets.read_asks(drawn)
    assert [ask.fold for ask in found] == [n % study_sets.FOLDS for n in range(24)]


def test_no_scene_that_is_measured_chose_a_parameter():
    tuning = {seed for _, seed, *_ in study_sets.TUNING_SCENES.values()}
    assert not tuning & {seed for _, seed, *_ in study_sets.SCENES.values()}


def test_a_missing_folder_is_named(tmp_path, capsys):
    assert study_sets.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_an_unknown_word_is_described_without_the_classes_nearest_to_it():
    model, goldfish = study_sets.load("lite0-minilm"), ("goldfish",)
    likeness = model.likeness(["an image of a goldfish."])[0].double().numpy()
    nearest = likeness.argsort()[-study_sets.HIDDEN :]
    shares = np.exp(likeness)
    shares[nearest] = 0
    wanted = shares / shares.sum() - 1 / 1000
    found = study_sets.embed_unknown("lite0-minilm", goldfish)
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), atol=1e-5)
    assert study_sets.embed_class("lite0-minilm", goldfish).argmax() == 1  # its class of ImageNet
    assert 1 in nearest


def test_unknown_words_are_asked_of_a_quarter_of_the_photos_and_of_all_kangaroos():
    photos = [study_sets.Ask(None, (f"thing {n}",), ((0, 0, 1, 1),), (9, 9), 0) for n in range(8)]
    kangaroo = study_sets.Ask(None, ("kangaroo",), ((0, 0, 1, 1),), (9, 9), 0)
    found = study_sets.make_unknown({"imagenet": photos, "kangaroo": [kangaroo]})
    assert [ask.names for ask in found] == [("thing 0",), ("thing 4",), ("kangaroo",)]
    for ask in found:
        assert ask.unknown
    known, unknown = (study_sets.embed_ask("lite0-minilm", ask) for ask in (kangaroo, found[-1]))
    assert torch.equal(known, study_sets.embed_class("lite0-minilm", ("kangaroo",)))
    assert torch.equal(unknown, study_sets.embed_unknown("lite0-minilm", ("kangaroo",)))
    assert not torch.equal(known, unknown)
