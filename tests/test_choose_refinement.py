"""The choice of the refinement: no fold is measured with what it chose, and the rows are of the module."""

import json

import choose_refinement as choice
import compare_passes
import numpy as np
import pytest
import study_sets
import torch

import vlscore

A = len(choice.THRESHOLDS)


def rows(iou) -> choice.Rows:
    """Rows of 20 prompts in five folds of four, one object each."""
    n = len(iou)
    ones = np.ones(n)
    fold = np.arange(n) % study_sets.FOLDS
    return choice.Rows(iou, (iou > 0.5).astype(int), iou, ones > 0, ones.astype(int), ones / 2, fold)


def hitting(*cells, n=20) -> np.ndarray:
    """IoU 0.9 at (prompts, threshold), 0.1 elsewhere."""
    iou = np.full((n, A), 0.1)
    for prompts, place in cells:
        iou[prompts, place] = 0.9
    return iou


def test_a_fold_is_measured_at_the_threshold_that_the_others_chose():
    """Threshold 5 is the best of fold 0 alone, 9 that of all the others: fold 0 is missed by both sets."""
    fold = np.arange(20) % study_sets.FOLDS
    iou = hitting((fold == 0, 5), (fold != 0, 9))
    found = {"only": {name: rows(iou) for name in choice.SETS}}
    run = choice.cross_validate(found, "only")
    for name in choice.SETS:
        assert run.hits(name).mean() == pytest.approx(0.8)
        assert run.place[name].tolist() == [9] * 20
    at_their_best = choice.describe("only", found["only"])
    assert at_their_best["sets"]["kangaroo"]["gt_known"] == pytest.approx(0.8)


def test_the_variant_of_a_fold_is_the_best_of_the_others():
    fold = np.arange(20) % study_sets.FOLDS
    good_at_0 = {name: rows(hitting((fold == 0, 5))) for name in choice.SETS}
    good_elsewhere = {name: rows(hitting((fold != 0, 5))) for name in choice.SETS}
    found = {"good at 0": good_at_0, "good elsewhere": good_elsewhere}
    run = choice.cross_validate(found)
    assert {row["variant"] for row in run.chosen} == {"good elsewhere"}
    assert run.hits("imagenet").mean() == pytest.approx(0.8)


def test_scenes_take_a_threshold_of_their_own_and_photos_share_one():
    sets = {name: rows(hitting((slice(None), 5 if name == "scenes" else 9))) for name in choice.SETS}
    assert choice.choose_thresholds(sets) == {name: 5 if name == "scenes" else 9 for name in choice.SETS}


def test_baselines_are_not_chosen():
    best = {name: rows(hitting((slice(None), 5))) for name in choice.SETS}
    found = {
        choice.PLAIN: best,
        choice.MEAN: best,
        "variant": {name: rows(hitting((slice(10), 5))) for name in choice.SETS},
    }
    assert choice.choose(found, lambda folds: folds >= 0) == "variant"


def test_the_hard_case_is_read_at_the_thresholds_of_the_other_sets():
    methods = [each for each in choice.RUNS.values() if each]
    found = {method: rows(hitting((slice(20 if method == choice.CHOSEN else 10), 5))) for method in methods}
    chosen = dict.fromkeys(methods, choice.THRESHOLDS[5]) | {choice.MEAN: choice.THRESHOLDS[0]}
    first, *others = choice.describe_hard_case(found, chosen, np.arange(20) < 5)
    assert (first["method"], first["gt_known"]["value"]) == (choice.CHOSEN, 1.0)
    assert first["above_constant"]["value"] == pytest.approx(0.75)
    gains = {row["method"]: row["chosen_above"]["value"] for row in others}
    assert gains == dict.fromkeys(methods[1:], 0.5) | {choice.MEAN: 1.0}
    assert {row["chosen_above_on_side"]["value"] for row in others} == {0.0}


def test_the_project_s_variant_is_the_module_s_refinement(drawn, monkeypatch):
    name, ask = "scenes-rn", study_sets.read_asks(drawn)[0]
    model = vlscore.load_model(name, "cpu")
    encoding = vlscore.encode(model, ask.path, keep=128, precision="float32", refined=True)
    monkeypatch.setattr(study_sets, "read", lambda *_: encoding)
    found = choice.measure(name, ask)
    text = vlscore.class_embedding(model, ask.names)
    of_module = {
        list(choice.VARIANTS)[1]: encoding,
        choice.PLAIN: encoding.without_refinement(),
    }
    for variant, each in of_module.items():
        heat = vlscore.saliency(each, text, model.temperature)
        wanted = [
            vlscore.box_iou(boxes, ask.boxes) for boxes in vlscore.sweep_boxes(heat, each, choice.THRESHOLDS)
        ]
        assert found[variant]["iou"] == pytest.approx(wanted, abs=0.02)


def test_a_seed_of_one_piece_of_evidence_is_that_evidence(drawn):
    model = vlscore.load_model("scenes-rn", "cpu")
    ask = study_sets.read_asks(drawn)[0]
    encoding = vlscore.encode(model, ask.path, keep=8, precision="float32", refined=True)
    text = vlscore.class_embedding(model, ask.names)
    w = vlscore.weights(encoding, text, model.temperature)
    evidence = vlscore.gather_evidence(encoding.scales, w, text, encoding.features.shape[1:])
    copies = choice.read_copies(model, ask.path, encoding)
    for n, powers in enumerate(np.eye(3)):
        seed = choice.find_seed(copies, w, text, choice.Variant(tuple(powers)))
        torch.testing.assert_close(seed, vlscore.min_max(evidence[n]))


def test_without_masks_the_means_may_check_the_similarity_map(lite0, chelsea):
    """By the correlation of the two over all cells, here computed by NumPy."""
    encoding = vlscore.encode(lite0, chelsea, keep=8, precision="float32", refined=True)
    text, nothing = vlscore.class_embedding(lite0, ["tabby cat"]), torch.zeros(len(encoding.maps))
    grid = encoding.features.shape[1:]
    _, similarity, means = vlscore.gather_evidence(encoding.scales, nothing, text, grid).double().numpy()
    power = 2 * np.corrcoef(similarity.ravel(), means.ravel())[0, 1].clip(0) ** 4
    expected = (similarity**power * means) ** (1 / (1 + power))
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    copies = choice.stored_copies(encoding)
    found = choice.find_seed(copies, nothing, text, choice.VARIANTS[choice.CHECKED])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert 0.01 < power < 1.99  # neither ignored nor trusted fully


def test_what_reads_no_mask_needs_none_to_be_kept(drawn, monkeypatch):
    """And it is the mask-free refinement of the other study."""
    model, ask = vlscore.load_model("scenes-rn", "cpu"), study_sets.read_asks(drawn)[0]
    encoding = vlscore.encode(model, ask.path, keep=8, precision="float32", refined=True)
    text = vlscore.class_embedding(model, ask.names)
    copies = choice.stored_copies(encoding)
    monkeypatch.setattr(vlscore, "weights", lambda *_: None)
    wanted = compare_passes.without_passes(model, encoding.without_refinement(), encoding, text)
    for variant, method in (
        (choice.ONE_PASS, compare_passes.REFINED),
        (choice.TEXTLESS, compare_passes.TEXTLESS),
    ):
        found = choice.refine(encoding, copies, text, choice.VARIANTS[variant])
        torch.testing.assert_close(found, wanted[method][0])
    assert choice.refine(encoding, copies, text, choice.VARIANTS[choice.CHOSEN]).max() == 0


def test_the_stored_table_is_of_the_variants_in_the_code():
    stored = json.loads(choice.OUT.read_text())
    assert [row["variant"] for row in stored["variants"]] == [choice.PLAIN, choice.MEAN, *choice.VARIANTS]
    assert [*stored["folds"]] == [*choice.RUNS]
    assert {row["method"] for row in stored["hard_case"]} == {each for each in choice.RUNS.values() if each}


def test_the_project_refines_photos_at_the_threshold_that_was_chosen():
    stored = json.loads(choice.OUT.read_text())
    (project,) = [row for row in stored["variants"] if row["variant"] == choice.CHOSEN]
    model = vlscore.load_model("lite0-minilm", "cpu")
    assert model.refined_threshold == pytest.approx(project["threshold"], abs=0.03)
