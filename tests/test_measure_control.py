"""The control of chapter 05: a constant for what was not encoded, pairs of photos, and the stored file."""

import json
from types import SimpleNamespace

import measure_control as study
import pytest
import torch
from PIL import Image

import vlscore


@pytest.fixture(scope="module")
def exact(scenes_rn, drawn):
    photo = vlscore.read_dataset(drawn).photos[0]
    return vlscore.encode(scenes_rn, photo.path, precision="float32")


def test_the_control_gives_all_other_maps_one_embedding(exact):
    rows = vlscore.select_maps(exact.maps, 8)
    found = study.constant(exact, 8).mask_embeddings
    assert torch.equal(found[rows], exact.mask_embeddings[rows])
    others = [k for k in range(len(found)) if vlscore.varies(exact.maps)[k] and k not in rows]
    assert len(found[others].unique(dim=0)) == 1
    torch.testing.assert_close(found[others[0]], vlscore.unit(exact.mask_embeddings[rows].mean(0)))


def test_random_maps_are_those_of_a_seed_and_keep_their_embeddings(exact):
    first, again, other = (study.random_predicted(exact, 8, seed).mask_embeddings for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    same = (first == exact.mask_embeddings).all(1) & vlscore.varies(exact.maps)
    assert same.sum() >= 8


def test_all_maps_compare_as_equal(scenes_rn, exact):
    text = scenes_rn.encode_text(["an image of a red cross."])[0]
    ways = {"predicted": {study.bench.FAST: exact}}
    found = study.compare(exact, text, study.Ask("red cross", [(0, 0, 224, 224)]), ways)
    assert found["predicted"][study.bench.FAST] == [pytest.approx(1), found["exact"]]
    assert found["single scores"] == pytest.approx(1)
    assert found["mean of all maps"][0] < 1


def test_a_pair_holds_both_objects_where_they_are_drawn(tmp_path):
    photos = []
    for colour in ("red", "blue"):
        image = Image.new("RGB", (120, 60))
        image.paste(Image.new("RGB", (40, 20), colour), (60, 30))
        path = tmp_path / f"{colour}.png"
        image.save(path)
        photos.append(SimpleNamespace(name=colour, path=path, label=colour, boxes=[(60, 30, 100, 50)]))
    photos = [*photos[:1] * study.APART, photos[1]]
    [pair] = study.pairs(photos)
    assert pair.name == "red + blue" and [ask.label for ask in pair.asks] == ["red", "blue"]
    for ask, colour in zip(pair.asks, ((255, 0, 0), (0, 0, 255))):
        x0, y0, x1, y1 = map(int, ask.boxes[0])
        assert {pair.image.getpixel(((x0 + x1) // 2, (y0 + y1) // 2))} == {colour}
        assert pair.image.getpixel((x0 - 4, y0 - 4)) == (0, 0, 0)


def test_the_file_is_json_with_a_line_for_each_prompt():
    result = {"a": {"model": "m", "rows": [{"x": [1, 2]}, {"x": [3]}]}, "b": {"model": "n", "rows": [{}]}}
    assert json.loads(study.as_text(result)) == result
    assert '\n{"x": [3]}\n' in study.as_text(result)


def test_the_stored_photos_agree_with_the_benchmark():
    stored = json.loads(study.OUT.read_text())
    assert [stored[name]["model"] for name in study.SETS] == [model for model, _ in study.SETS.values()]
    assert [len(stored[name]["rows"]) for name in study.SETS] == [23, 22, 100, 100]
    curve = json.loads((study.OUT.parent / "bench.json").read_text())["fidelity"]["lite0-minilm"]["curve"]
    [row] = [each for each in curve if each["selection"] == "chosen and predicted" and each["keep"] == 64]
    r = [each["predicted"]["64"][0] for each in stored["photos"]["rows"]]
    assert sum(r) / len(r) == pytest.approx(row["correlation"], abs=0.005)
