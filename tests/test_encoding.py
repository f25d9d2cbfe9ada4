"""An encoding is saved and loaded."""

import dataclasses
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from encoding_helpers import tensors
from safetensors.torch import save_file

import vlscore
from vlscore_lib import sources


@pytest.mark.parametrize("fit", vlscore.FITS)
def test_save_and_load_give_every_field_back(vit, chelsea, tmp_path, fit):
    encoding = vlscore.encode(vit, chelsea, maps="value", keep=9, precision="float32", fit=fit)
    encoding.save(tmp_path / "one.safetensors")
    found = vlscore.Encoding.load(tmp_path / "one.safetensors")
    for field in dataclasses.fields(vlscore.Encoding):
        before, after = getattr(encoding, field.name), getattr(found, field.name)
        assert type(before) is type(after), field.name
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype, field.name
            assert torch.equal(before, after), field.name
        else:
            assert before == after, field.name


def missing(path, encoding):
    pass


def a_folder(path, encoding):
    path.mkdir()


def empty(path, encoding):
    path.touch()


def a_text(path, encoding):
    path.write_text("no encoding\n" * 100)


def cut_short(path, encoding):
    encoding.save(path)
    path.write_bytes(path.read_bytes()[:-100])


def without_facts(path, encoding):
    save_file({"maps": encoding.maps}, path)


def other_facts(path, encoding):
    save_file({"maps": encoding.maps}, path, {"format": "pt"})


def bad_facts(path, encoding):
    save_file(tensors(encoding), path, {"vlscore.Encoding": "[1, 2"})


def a_tensor_less(path, encoding):
    encoding.save(path)
    with vlscore_file(path) as file:
        facts = file.metadata()
    save_file({"maps": encoding.maps}, path, facts)


def a_tensor_more(path, encoding):
    encoding.save(path)
    with vlscore_file(path) as file:
        facts = file.metadata()
    save_file(tensors(encoding) | {"more": torch.zeros(1)}, path, facts)


def vlscore_file(path):
    from safetensors import safe_open

    return safe_open(path, framework="pt")


JUNK = [missing, a_folder, empty, a_text, cut_short, without_facts, other_facts, bad_facts]


JUNK += [a_tensor_less, a_tensor_more]


@pytest.mark.parametrize("kind", JUNK, ids=lambda kind: kind.__name__)
def test_what_is_no_encoding_is_told_in_one_line(synthetic, tmp_path, kind):
    path = tmp_path / "junk.safetensors"
    kind(path, synthetic)
    with pytest.raises(vlscore.VLScoreError, match="not a saved Encoding") as error:
        vlscore.Encoding.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_save_that_fails_leaves_the_old_file(synthetic, tmp_path, monkeypatch, step):
    path = tmp_path / "one.safetensors"
    synthetic.save(path)
    old = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="disk full"):
            dataclasses.replace(synthetic, model="another").save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["one.safetensors"]


# ── Files of version 0.1.0 ───────────────────────────────────────────────────────────────────────

SAVED = Path(__file__).parent / "encodings"


@pytest.mark.parametrize(
    "file, model, refined, threshold",
    [
        ("scenes-rn", "scenes-rn", False, 0.65),
        ("scenes-vit", "scenes-vit", False, 0.2),
        ("scenes-vit-refined", "scenes-vit", True, 0.675),
    ],
)
def test_a_file_of_version_0_1_0_loads_and_is_what_is_encoded_now(
    file, model, refined, threshold, monkeypatch
):
    """But for α, which the file keeps, and a ViT's clusters: 30 then, of a copy of twice the side."""
    monkeypatch.setattr(sources, "COPY_SCALE", 2)
    monkeypatch.setattr(sources, "cluster_maps", partial(vlscore.cluster_maps, leaves=16))
    model = vlscore.load_model(model, "cpu")
    image, _ = vlscore.scenes.draw_scene(vlscore.scenes.scene_rng(1, 12), (200, 150), 2)
    old = vlscore.Encoding.load(SAVED / f"{file}.safetensors")
    new = vlscore.encode(model, image, precision="float32", keep=32, refined=refined)
    assert (old.refined, old.family) == (new.refined, new.family) == (refined, model.family)
    assert (old.layer, old.kind, old.fit) == (new.layer, new.kind, new.fit)
    assert old.threshold == threshold
    # Other processors round otherwise, and may break a tie between two maps the other way.
    torch.testing.assert_close(old.maps, new.maps, atol=1e-3, rtol=0)
    torch.testing.assert_close(old.image_embedding, new.image_embedding, atol=1e-4, rtol=0)
    text = model.encode_text(["an image of a red circle."])[0]
    one, other = (vlscore.saliency(each, text, 1.0).flatten() for each in (old, new))
    assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.99


def test_without_refinement_it_is_plain():
    refined = vlscore.Encoding.load(SAVED / "scenes-vit-refined.safetensors")
    assert refined.refined and not refined.has_layer_maps
    plain = refined.without_refinement()
    assert not plain.refined and plain.has_layer_maps
    assert vlscore.saliency(plain, refined.image_embedding).shape == refined.maps.shape[1:]
