"""The choice of a ViT's constants: its encodings are the module's, and its figures are by hand."""

import json
from dataclasses import replace

import choose_vit_refinement as study
import numpy as np
import pytest
import torch

import vlscore
from vlscore_lib import refinement, sources


@pytest.fixture(scope="module")
def scene(drawn):
    return vlscore.read_dataset(drawn).photos[0].path


def test_clusters_at_the_chosen_side_are_the_module_s(scene):
    model = vlscore.load_model("scenes-vit", "cpu")
    wanted = vlscore.encode(model, scene, precision="float32", refined=True)
    found = study.encode_clusters(model, scene, sources.COPY_SCALE, refinement.LEAVES)
    assert torch.equal(found.maps, wanted.maps)
    for key in ("mask_embeddings", "features"):
        torch.testing.assert_close(getattr(found, key), getattr(wanted, key), atol=1e-5, rtol=0)


def test_fewer_leaves_are_a_smaller_tree(scene):
    model = vlscore.load_model("scenes-vit", "cpu")
    whole = study.encode_clusters(model, scene, 2, 12)
    wanted = study.encode_clusters(model, scene, 2, 8)
    found = study.keep_leaves(whole, 8)
    assert torch.equal(found.maps, wanted.maps) and torch.equal(found.scales[0].maps, wanted.maps)
    torch.testing.assert_close(found.mask_embeddings, wanted.mask_embeddings, atol=1e-5, rtol=0)


def test_a_row_has_the_figures_at_the_best_threshold():
    variant, count = study.Variant(2, 16, 0.03), len(study.THRESHOLDS)
    iou, found = np.zeros((2, count)), np.zeros((2, count), int)
    iou[:, 5], found[:, 5] = (0.8, 0.6), (2, 1)
    records = [{variant: (iou[n].tolist(), found[n].tolist())} for n in range(2)]
    row = study.describe(variant, {"two": (records, [2, 2])})
    assert row["threshold"] == study.THRESHOLDS[5]
    figures = {"gt_known": 1.0, "objects_found": 0.75, "v2": pytest.approx((1 + 1 + 0.5) / 3, abs=1e-6)}
    assert row["sets"] == {"two": figures}
    assert row["worth"] == pytest.approx((1 + 0.75 + 2.5 / 3) / 3, abs=1e-6)


def test_the_constants_of_the_code_are_the_best_of_the_stored_rows():
    rows = json.loads(study.OUT.read_text())
    assert len(rows) == len(study.SIDES) * len(study.LEAVES) * len(study.PROMINENCES)
    best = max(rows, key=lambda row: row["worth"])
    facts = vlscore.SCENES_MODELS["scenes-vit"]
    assert (best["side"], best["leaves"]) == (sources.COPY_SCALE, refinement.LEAVES)
    assert (best["prominence"], best["threshold"]) == (facts.prominence, facts.refined_threshold)


def test_a_stored_encoding_of_other_clusters_is_not_read(scene, tmp_path, monkeypatch):
    model, options = vlscore.load_model("scenes-vit", "cpu"), vlscore.EncodingOptions(keep=8, refined=True)
    content = vlscore.read_content(scene)
    file = vlscore.EncodingStore(tmp_path, model, options).file(content)
    plain = vlscore.EncodingStore(tmp_path, model, replace(options, refined=False)).file(content)
    monkeypatch.setattr("vlscore_lib.store.LEAVES", 5)
    assert vlscore.EncodingStore(tmp_path, model, options).file(content) != file
    assert vlscore.EncodingStore(tmp_path, model, replace(options, refined=False)).file(content) == plain
