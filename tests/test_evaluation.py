"""Evaluation: records, baselines, runs that are stopped and go on, summaries, and their commands."""

import contextlib
import copy
import dataclasses
import errno
import functools
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import distributed
import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from test_command_line import one_line
from test_metrics import torchvision_iou

import vlscore
import vlscore_cli
from vlscore_lib import prompts, scenes
from vlscore_lib.evaluation import baselines, workers

# Few maps and thresholds, for runs that are about files: as options, and on the command line.
QUICK = {"keep": 4, "thresholds": (0.3, 0.6)}
FLAGS = ["--keep", "4", "--thresholds", "0.3,0.6"]
OURS = "VL-Score, τ = {:g}".format
TAU, ALPHA, _ = vlscore.SCENES_MODELS["scenes-rn"]
SWEEP = [n / 20 for n in range(1, 20)]


def draw(folder, count, seed, size):
    scenes.write_scenes(folder, count, seed, size)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of 12 small scenes: two parts, of 8 and 4."""
    return draw(tmp_path_factory.mktemp("small") / "scenes", 12, 5, (96, 80))


@pytest.fixture(scope="module")
def photos(small):
    return vlscore.read_dataset(small)


@pytest.fixture(scope="module")
def finished(rn, photos, tmp_path_factory):
    """The folder of a finished run of the tiny CNN."""
    out = tmp_path_factory.mktemp("finished") / "run"
    vlscore.evaluate(rn, photos, out, **QUICK)
    return out


@pytest.fixture
def finished_copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture(scope="module")
def undisturbed(scenes_rn, drawn, tmp_path_factory):
    """The folder of a run of scenes-rn that nothing stopped, and its records."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return out, vlscore.evaluate(scenes_rn, vlscore.read_dataset(drawn), out, keep=16)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def text_of(model, names):
    """A class's embedding: the mean over its names, of length 1."""
    every = model.encode_text([f"an image of a {name}." for name in names]).double().mean(0)
    return (every / every.norm()).float()


def counting(counts):
    """A progress function that notes what it is told."""
    return lambda count, measured=True: counts.append((count, measured))


def same_records(one, other):
    assert list(one["image"]) == list(other["image"])
    assert set(one) == set(other)
    for column in one:
        for a, b in zip(one[column], other[column]):
            assert np.array_equal(a, b), column


# ── Records ──────────────────────────────────────────────────────────────────────────────────────


def test_a_record_an_image_in_the_order_of_the_photos(undisturbed, drawn):
    _, records = undisturbed
    assert list(records["image"]) == [f"scenes_val_{n:08}" for n in range(1, 25)]
    solutions = (drawn / "LOC_val_solution.csv").read_text().splitlines()[1:]
    for line, (_, record) in zip(solutions, records.iterrows()):
        name, words = line.split(",")
        assert (record["image"], record["label"]) == (name, words.split()[0])
        assert record["objects"] == len(words.split()) / 5
        assert (record["width"], record["height"]) == (224, 224)


OPTIONS = {
    "default": {},
    "layer": {"layer": "layer2"},
    "crop": {"fit": "crop"},
    "pad": {"fit": "pad", "temperature": 0.5, "threshold": 0.33},
}


def check_record(model, photo, record, text, options, taus, alphas):
    """Compare a record with boxes found step by step and torchvision's IoU of them."""
    encoding = vlscore.encode(model, photo.path, **options)
    heats = {OURS(tau): vlscore.saliency(encoding, text, tau) for tau in taus}
    heats["mean of all maps"] = encoding.maps.double().mean(0).clamp(min=0).float()
    if "layer" not in options:
        pixels = model.preprocess(photo.path, options.get("fit", "squash"))
        last = model.feature_maps(pixels[None])[0]
        heats["similarity map (CAM)"] = model.similarity_map(last, text).relu()
    for method, heat in heats.items():
        for n, alpha in enumerate(alphas):
            boxes = vlscore.find_boxes(heat, encoding, alpha)
            assert record[f"iou: {method}"][n] == pytest.approx(torchvision_iou(boxes, photo.boxes), abs=1e-9)
            first = torchvision_iou(boxes[:1], photo.boxes)
            assert record[f"largest: {method}"][n] == pytest.approx(first, abs=1e-9)
            assert record[f"boxes: {method}"][n] == len(boxes)
        assert len(record[f"iou: {method}"]) == len(alphas)
    s = [F.cosine_similarity(each, text, dim=0).item() for each in encoding.mask_embeddings]
    base = F.cosine_similarity(encoding.base_embedding, text, dim=0).item()
    assert (record["score"], record["base_score"]) == pytest.approx((max(s), base), abs=1e-6)


@pytest.mark.parametrize("row", [2, 17])
def test_a_record_equals_boxes_found_step_by_step(undisturbed, scenes_rn, drawn, row):
    dataset = vlscore.read_dataset(drawn)
    photo, text = dataset.photos[row], text_of(scenes_rn, dataset.classes[dataset.photos[row].label])
    record = undisturbed[1].iloc[row]
    check_record(scenes_rn, photo, record, text, {"keep": 16}, (TAU, 1.0), sorted({ALPHA, *SWEEP}))
    assert len({*record[f"iou: {OURS(TAU)}"]}) > 3


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_that_of_encode(rn, photos, name):
    options = OPTIONS[name] | {"keep": 4}
    records = vlscore.evaluate(rn, photos, thresholds=(0.2, 0.7), **options)
    tau, alpha = options.pop("temperature", 0.01), options.pop("threshold", 0.6)
    beating = [row for row in range(12) if records["score"][row] > records["base_score"][row]]
    for row in beating[:2]:
        photo = photos.photos[row]
        text = text_of(rn, photos.classes[photo.label])
        check_record(rn, photo, records.iloc[row], text, options, (tau, 1.0), sorted({0.2, 0.7, alpha}))
    assert len(beating) > 2


def test_maps_of_a_vit_and_their_components_are_measured(vit, photos):
    options = {"maps": "key", "pca": 2, "layer": "0"}
    few = vlscore.Dataset(photos.layout, photos.photos[:3], photos.classes, [])
    records = vlscore.evaluate(vit, few, thresholds=(0.5,), **options)
    for row in range(3):
        text = text_of(vit, photos.classes[photos.photos[row].label])
        check_record(vit, photos.photos[row], records.iloc[row], text, options, (0.01, 1.0), (0.5, 0.55))


def test_top5_are_the_classes_of_highest_cosine_in_order(undisturbed, scenes_rn, drawn):
    dataset = vlscore.read_dataset(drawn)
    texts = np.stack([text_of(scenes_rn, names).numpy() for names in dataset.classes.values()])
    pixels = torch.stack([scenes_rn.preprocess(photo.path) for photo in dataset.photos])
    cosines = (
        vlscore.fast_encoder(scenes_rn)(pixels).numpy() @ texts.T
    )  # bfloat16 orders near ties in its own way
    for found, row in zip(undisturbed[1]["top5"], cosines):
        assert list(found) == [list(dataset.classes)[n] for n in np.argsort(-row)[:5]]


@pytest.mark.parametrize("templates", ["report", "clip"])
def test_a_class_is_embedded_by_all_its_names_in_all_templates(rn, photos, templates):
    wordings = prompts.prompt_templates(templates)
    assert len(wordings) == {"report": 1, "clip": 80}[templates]
    assert {"report": "an image of a {}.", "clip": "itap of a {}."}[templates] in wordings
    classes = dict(list(photos.classes.items())[:2])
    few = vlscore.Dataset("official", photos.photos, classes, [])
    found = vlscore.class_embeddings(rn, few, vlscore.Protocol(templates=templates))
    for row, names in enumerate(classes.values()):
        every = rn.encode_text([each.replace("{}", name) for name in names for each in wordings]).numpy()
        mean = every.mean(0)
        np.testing.assert_allclose(found[row], mean / np.linalg.norm(mean), atol=1e-6)
    assert found.shape == (2, 64)


def test_a_data_set_of_few_classes_has_no_more_than_these_in_top5(rn, photos):
    label = photos.photos[0].label
    others = [each for each in photos.classes if each != label][:2]
    few = vlscore.Dataset("official", photos.photos[:1], {each: ["red"] for each in (label, *others)}, [])
    (top,) = vlscore.evaluate(rn, few, keep=1)["top5"]
    assert sorted(top) == sorted([label, *others])


def test_the_absent_class_is_not_in_the_photo(undisturbed, scenes_rn, drawn):
    dataset, records = vlscore.read_dataset(drawn), undisturbed[1]
    for photo, label in zip(dataset.photos, records["absent_label"]):
        assert label in dataset.classes
        assert label not in {each for each, _ in photo.objects}
    assert len(set(records["absent_label"])) > 12
    encoding = vlscore.encode(scenes_rn, dataset.photos[0].path, keep=16)
    text = text_of(scenes_rn, dataset.classes[records["absent_label"][0]])
    s = encoding.mask_embeddings @ text
    expected = s.max().item(), (encoding.base_embedding @ text).item()
    found = records["absent_score"][0], records["absent_base_score"][0]
    assert found == pytest.approx(expected, abs=1e-6)


def test_absent_classes_are_those_of_the_seed_and_the_photo(rn, photos):
    """Whatever else is in the data set."""

    def absent(rows, seed):
        few = vlscore.Dataset("official", [photos.photos[row] for row in rows], photos.classes, [])
        records = vlscore.evaluate(rn, few, keep=1, seed=seed, thresholds=(), temperatures=())
        return dict(zip(records["image"], records["absent_label"]))

    first, some = absent(range(6), 1), absent((4, 2), 1)
    assert some == {name: first[name] for name in some}
    assert len(some) == 2
    assert absent(range(6), 2) != first


def test_a_photo_of_all_classes_has_no_absent_class(rn, photos):
    photo = photos.photos[0]
    shown = {each: ["red circle"] for each, _ in photo.objects}
    records = vlscore.evaluate(rn, vlscore.Dataset("official", [photo], shown, []), keep=1)
    assert records["absent_label"][0] == ""
    assert np.isnan([records["absent_score"][0], records["absent_base_score"][0]]).all()
    assert vlscore.summarize(records, vlscore.Protocol(keep=1).resolve(rn))["presence"] is None


def test_constant_boxes_have_sides_from_10_to_100_percent(finished, photos):
    _, records = vlscore.read_run(finished)
    for photo, found in zip(photos.photos, records["constant"]):
        assert len(found) == 91
        for percent, iou in zip(range(10, 101), found):
            x, y = (side * (100 - percent) / 200 for side in (96, 80))
            assert iou == pytest.approx(torchvision_iou([(x, y, 96 - x, 80 - y)], photo.boxes), abs=1e-9)
    assert {*records["width"], *records["height"]} == {96, 80}


def test_where_every_map_is_capped_there_are_no_boxes_and_the_iou_is_0(rn, photos):
    """The empty image's own embedding as a text: no map can beat it."""
    photo = photos.photos[0]
    base = vlscore.encode(rn, photo.path, keep=1).base_embedding
    texts = torch.stack([base if each == photo.label else -base for each in photos.classes])
    protocol = vlscore.Protocol(keep=4).resolve(rn)
    image, job = (
        vlscore.load_image(photo.path),
        workers.EvaluationContext("rn", protocol, list(photos.classes), texts),
    )
    record = vlscore.measure(rn, photo, False, image, vlscore.encode(rn, image, keep=4), job)
    assert record["score"] <= record["base_score"] == pytest.approx(1, abs=1e-6)
    for tau in (0.01, 1):
        assert record[f"iou: {OURS(tau)}"] == record[f"largest: {OURS(tau)}"] == [0] * 19
        assert record[f"boxes: {OURS(tau)}"] == [0] * 19
    assert max(record["boxes: mean of all maps"]) > 0  # which no prompt can cap
    assert record["absent_score"] > record["absent_base_score"]
    summary = vlscore.summarize(pandas.DataFrame([record] * 3), protocol)
    assert summary["presence"]["label_said_absent"]["value"] == 1
    assert summary["presence"]["other_said_absent"]["value"] == 0


def test_records_are_the_same_with_and_without_a_folder(rn, photos, finished):
    records = vlscore.evaluate(rn, photos, **QUICK)
    same_records(records, vlscore.read_run(finished)[1])
    assert len(records) == 12


# ── Baselines ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def seen(chelsea):
    """A model -> its view of the photo of a cat: pixels, and an Encoding of few maps."""

    def look(model, **options):
        return model.preprocess(chelsea), vlscore.encode(model, chelsea, keep=2, **options)

    return look


def some_text(model, seed=0):
    return F.normalize(torch.randn(64, generator=torch.manual_seed(seed)), dim=0)


@pytest.mark.parametrize("cell", [(0, 0), (2, 1)])
def test_a_cell_of_a_cnn_s_similarity_map_goes_through_two_projections(rn, seen, cell):
    pixels, text = seen(rn)[0], some_text(rn)
    activation = rn.feature_maps(pixels[None], "layer4")[0, :, *cell].double().numpy()
    state = {name: value.double().numpy() for name, value in rn.visual.attnpool.state_dict().items()}
    value = state["v_proj.weight"] @ activation + state["v_proj.bias"]
    embedding = state["c_proj.weight"] @ value + state["c_proj.bias"]
    expected = embedding @ text.double().numpy() / np.linalg.norm(embedding)
    found = rn.similarity_map(rn.feature_maps(pixels[None])[0], text)
    assert found[cell].item() == pytest.approx(expected, abs=1e-5)
    assert found.shape == (3, 3)


@pytest.mark.parametrize("cell", [(0, 0), (3, 1)])
def test_a_cell_of_a_vit_s_similarity_map_goes_where_the_class_token_goes(vit, seen, cell):
    pixels, text = seen(vit)[0], some_text(vit)
    token = vit.feature_maps(pixels[None], "1")[0, :, *cell].double().numpy()
    norm = vit.visual.ln_post
    centred = (token - token.mean()) / np.sqrt(token.var() + norm.eps)
    normed = centred * norm.weight.double().numpy() + norm.bias.double().numpy()
    embedding = normed @ vit.visual.proj.double().numpy()
    expected = embedding @ text.double().numpy() / np.linalg.norm(embedding)
    found = vit.similarity_map(vit.feature_maps(pixels[None])[0], text)
    assert found[cell].item() == pytest.approx(expected, abs=1e-5)
    assert found.shape == (4, 4)


def test_lite0_s_similarity_map_is_the_class_activation_map_of_all_classes(lite0, chelsea):
    pixels, text = lite0.preprocess(chelsea), lite0.encode_text(["an image of a cat."])[0]
    with torch.inference_mode():
        maps = lite0.visual.net.extract_features(pixels[None])[0].double().numpy()  # (1280, 7, 7)
    weight, bias = (each.double().numpy() for each in lite0.visual.net._fc.parameters())
    cams = np.einsum("nc,chw->nhw", weight, maps) + bias[:, None, None]  # Zhou et al. 2016
    expected = np.einsum("n,nhw->hw", text.double().numpy(), cams - cams.mean(0))
    found = lite0.similarity_map(lite0.feature_maps(pixels[None])[0], text)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_similarity_map_is_of_the_last_layer_only(rn, seen, chelsea):
    image = vlscore.load_image(chelsea)
    last, other = (
        baselines.baseline_maps(rn, image, seen(rn, layer=layer)[1], "squash", some_text(rn))
        for layer in ("layer4", "layer2")
    )
    assert list(last) == ["mean of all maps", "similarity map (CAM)", "Grad-CAM"]
    assert list(other) == ["mean of all maps", "Grad-CAM"]
    assert all((heat >= 0).all() for heat in last.values())


@pytest.mark.parametrize("name", ["rn", "vit"])
def test_the_mean_of_all_maps_by_hand(request, seen, chelsea, name):
    model = request.getfixturevalue(name)
    _, encoding = seen(model)
    found = baselines.baseline_maps(model, vlscore.load_image(chelsea), encoding, "squash", some_text(model))
    mean = encoding.maps.double().numpy().mean(0)
    np.testing.assert_allclose(found["mean of all maps"], np.maximum(mean, 0), atol=1e-6)
    assert mean.max() > 0
    assert (mean.min() < 0) == (name == "vit")  # whose maps have two signs


def gradients(model, pixels, text, layer):
    """The maps (C, h, w) of a layer, and by autograd the cosine's gradients in them."""
    kept = []
    block = model.layer_modules()[layer]
    block = block.ln_1 if model.is_vit else block  # at its output, the last block's patches have no gradient
    handle = block.register_forward_hook(lambda *given: kept.append(given[-1]))
    embedding = model.visual(pixels[None].clone().requires_grad_())[0]
    handle.remove()
    (gradient,) = torch.autograd.grad(F.cosine_similarity(embedding, text, dim=0), kept)
    both = [kept[0].detach(), gradient]
    if model.is_vit:  # (1 + n, 1, d), the class token first
        side = model.input_size // 16
        return [each[1:, 0].T.reshape(-1, side, side).double() for each in both]
    return [each[0].double() for each in both]


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_grad_cam_of_a_cnn_equals_autograd_s(rn, seen, layer):
    check_grad_cam(rn, *seen(rn), layer)


def test_grad_cam_of_a_vit_equals_autograd_s(vit, seen):
    check_grad_cam(vit, *seen(vit), "0")


def check_grad_cam(model, pixels, encoding, layer):
    image_size = (model.input_size, model.input_size)
    shown = 0
    for seed in range(6):
        text = some_text(model, seed)
        maps, gradient = gradients(model, pixels, text, layer)
        cam = (gradient.mean((1, 2))[:, None, None] * maps).sum(0).clamp(min=0)  # Selvaraju et al. 2017
        expected = F.interpolate(cam[None, None], image_size, mode="bilinear", align_corners=False)[0, 0]
        found = vlscore.compute_cam("GradCAM", model, pixels, text, layer)
        assert found.shape == image_size
        if cam.max() > cam.min():
            shown += 1
            assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.999
        else:
            assert (found == 0).all()
    assert shown >= 2


def test_grad_cam_of_a_vit_shows_something_at_its_last_layer(vit, seen):
    """Only the class token leaves a ViT: at the last block's output, the patches have no gradient."""
    pixels, _ = seen(vit)
    found = [vlscore.compute_cam("GradCAM", vit, pixels, some_text(vit, n), vit.layers[-1]) for n in range(8)]
    assert any(cam.max() > 0 for cam in found)


def gscorecam_by_hand(model, pixels, text, layer, k):
    """Chen et al. 2022: the k maps of largest mean gradient, scored one at a time."""
    maps, gradient = gradients(model, pixels, text, layer)
    rows = np.argsort(-gradient.mean((1, 2)).numpy())[:k]
    size, cosines = pixels.shape[1:], []
    for row in rows:
        up = F.interpolate(maps[None, None, row], tuple(size), mode="bilinear", align_corners=True)[0, 0]
        mask = (up - up.min()) / (up.max() - up.min() + 1e-7)
        embedding = model.encode_image((pixels * mask)[None].float())[0]
        cosines.append(F.cosine_similarity(embedding, text, dim=0).item() / model.temperature)
    shares = np.exp(np.array(cosines) - max(cosines))
    total = sum(share * maps[row].numpy() for share, row in zip(shares / shares.sum(), rows))
    return rows, np.maximum(total, 0)


@pytest.mark.parametrize("k", [1, 10, 32])
def test_gscorecam_scores_the_maps_of_largest_mean_gradient(rn, seen, k):
    pixels, _ = seen(rn)
    _, expected = gscorecam_by_hand(rn, pixels, some_text(rn), "layer1", k)
    found = vlscore.compute_gscorecam(rn, pixels, some_text(rn), "layer1", k).numpy()
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, atol=2e-3 * expected.max())


def test_gscorecam_of_a_vit(vit, seen):
    pixels, _ = seen(vit)
    _, expected = gscorecam_by_hand(vit, pixels, some_text(vit), "0", 10)
    found = vlscore.compute_gscorecam(vit, pixels, some_text(vit), "0", 10).numpy()
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, atol=2e-3 * expected.max())


def test_gscorecam_takes_all_maps_where_there_are_fewer_than_k(rn, seen):
    pixels, text = seen(rn)[0], some_text(rn)
    every, more = (vlscore.compute_gscorecam(rn, pixels, text, "layer1", k) for k in (32, 300))
    assert torch.equal(every, more)


def test_peers_are_measured_on_the_first_photos_only(rn, photos, tmp_path):
    options = {"layer": "layer1", "slow_baselines": 2, **QUICK}
    records = vlscore.evaluate(rn, photos, tmp_path / "run", **options)
    before = contents(tmp_path / "run")
    summary = json.loads(before["summary.json"])
    for method in ("Score-CAM", "gScoreCAM"):
        for kind in ("iou", "largest", "boxes"):
            assert list(records[f"{kind}: {method}"].notna()) == [True] * 2 + [False] * 10
        assert summary["methods"][method]["images"] == 2
        expected = np.stack(records[f"iou: {method}"][:2])[:, 0].mean()
        assert summary["methods"][method]["mean_box_iou"][0]["value"] == pytest.approx(expected, abs=1e-6)
    assert summary["methods"]["Grad-CAM"]["images"] == 12
    # Parts of which one has peers and one has none are put together again.
    (tmp_path / "run" / "part-00000.parquet").unlink()
    vlscore.evaluate(rn, photos, tmp_path / "run", resume=True, **options)
    assert contents(tmp_path / "run")["summary.json"] == before["summary.json"]


# ── Runs ─────────────────────────────────────────────────────────────────────────────────────────

FILES = ["part-00000.parquet", "part-00001.parquet", "run.json", "summary.json"]


def test_a_run_s_folder_holds_parts_parameters_and_a_summary(finished, rn, photos):
    assert sorted(os.listdir(finished)) == FILES
    parts = [pandas.read_parquet(finished / name) for name in FILES[:2]]
    assert [len(part) for part in parts] == [8, 4]
    assert list(pandas.concat(parts)["image"]) == [photo.name for photo in photos.photos]
    facts = json.loads((finished / "run.json").read_text())
    assert facts["parameters"]["model"] == rn.name
    assert (facts["parameters"]["images"], facts["parameters"]["keep"]) == (12, 4)
    assert facts["parameters"]["layer"] == "layer4"
    assert (facts["parameters"]["temperature"], facts["parameters"]["threshold"]) == (0.01, 0.6)
    assert facts["versions"]["pandas"] == pandas.__version__
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["model"], summary["images"], summary["skipped"]) == (rn.name, 12, [])


def test_a_folder_that_holds_a_run_is_refused_without_resume(rn, photos, finished_copy):
    before = contents(finished_copy)
    with pytest.raises(vlscore.VLScoreError, match="holds a run: add --resume"):
        vlscore.evaluate(rn, photos, finished_copy, **QUICK)
    assert contents(finished_copy) == before


OTHERS = {
    "keep": ({"keep": 5}, "keep 4, not 5"),
    "temperature": ({"temperature": 0.5}, "temperature 0.01, not 0.5"),
    "threshold": ({"threshold": 0.31}, "threshold 0.6, not 0.31"),
    "layer": ({"layer": "layer3"}, "layer layer4, not layer3"),
    "fit": ({"fit": "pad"}, "fit squash, not pad"),
    "thresholds": ({"thresholds": (0.6,)}, r"thresholds \[0.3, 0.6\], not \[0.6\]"),
    "seed": ({"seed": 1}, "seed 0, not 1"),
    "templates": ({"templates": "clip"}, "templates report, not clip"),
    "slow_baselines": ({"slow_baselines": 1}, "peers 0, not 1"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_with_another_option_is_refused_and_the_difference_named(rn, photos, finished_copy, name):
    options, told = OTHERS[name]
    before = contents(finished_copy)
    with pytest.raises(vlscore.VLScoreError, match=f"holds a run with {told}"):
        vlscore.evaluate(rn, photos, finished_copy, resume=True, **QUICK | options)
    assert contents(finished_copy) == before


def test_a_run_on_fewer_images_is_refused(rn, small, finished_copy):
    with pytest.raises(vlscore.VLScoreError, match="holds a run with images 12, not 8"):
        vlscore.evaluate(rn, vlscore.read_dataset(small, limit=8), finished_copy, resume=True, **QUICK)


def test_a_run_on_other_images_is_refused(rn, finished_copy, tmp_path):
    """As many, of the same names."""
    other = vlscore.read_dataset(draw(tmp_path / "other", 12, 99, (96, 80)))
    with pytest.raises(vlscore.VLScoreError, match="holds a run with data "):
        vlscore.evaluate(rn, other, finished_copy, resume=True, **QUICK)


def test_a_run_with_other_weights_is_refused(rn, photos, finished_copy):
    """Of a model of the same name, a checkpoint that was trained on, say."""
    other = copy.deepcopy(rn.clip)
    other.visual.attnpool.c_proj.bias[0] += 1e-6
    model = vlscore.ClipModel(rn.name, other, "cpu")
    with pytest.raises(vlscore.VLScoreError, match="holds a run with weights "):
        vlscore.evaluate(model, photos, finished_copy, resume=True, **QUICK)


def test_a_finished_run_that_goes_on_measures_nothing_and_sums_up_the_same(
    rn, photos, finished_copy, monkeypatch
):
    before, counts = contents(finished_copy), []
    (finished_copy / "summary.json").unlink()
    monkeypatch.setattr(vlscore, "measure", lambda *_, **__: pytest.fail("measured"))
    records = vlscore.evaluate(rn, photos, finished_copy, resume=True, progress=counting(counts), **QUICK)
    assert contents(finished_copy) == before
    assert (len(records), counts) == (12, [(12, False)])


@pytest.mark.parametrize("missing", [0, 1])
def test_only_the_missing_part_is_measured_and_the_run_ends_the_same(rn, photos, finished_copy, missing):
    before, counts = contents(finished_copy), []
    (finished_copy / FILES[missing]).unlink()
    records = vlscore.evaluate(rn, photos, finished_copy, resume=True, progress=counting(counts), **QUICK)
    assert list(records["image"]) == [photo.name for photo in photos.photos]
    assert counts == [((4, 8)[missing], False), ((8, 4)[missing], True)]
    assert contents(finished_copy)["summary.json"] == before["summary.json"]


def test_resume_in_a_new_folder_starts_a_run(rn, photos, finished, tmp_path):
    vlscore.evaluate(rn, photos, tmp_path / "deep" / "run", resume=True, **QUICK)
    found, expected = contents(tmp_path / "deep" / "run"), contents(finished)
    assert found["summary.json"] == expected["summary.json"]
    assert found["run.json"] == expected["run.json"]


def test_a_temporary_file_of_a_killed_process_is_removed(rn, photos, finished_copy):
    (finished_copy / ".vlscore-k3jx9").write_bytes(b"half of a part")
    vlscore.evaluate(rn, photos, finished_copy, resume=True, **QUICK)
    assert sorted(os.listdir(finished_copy)) == FILES


def cut(content):
    return content[: len(content) // 2]


def overwrite(content):
    """The end, where Parquet keeps what the file holds."""
    return content[:-60] + b"\xff" * 52 + content[-8:]


DAMAGES = {
    "cut short": cut,
    "its end overwritten": overwrite,
    "empty": lambda _: b"",
    "no Parquet": lambda _: b"no parquet" * 99,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_told_in_a_line(run, offline, small, finished_copy, damage):
    part = finished_copy / FILES[1]
    part.write_bytes(DAMAGES[damage](part.read_bytes()))
    code, _, err = run("evaluate", small, "--out", finished_copy, *FLAGS, "--resume")
    assert code == 2
    line = one_line(without_bar(err))
    assert f"{part} cannot be read" in line and "remove it" in line


def test_a_flipped_bit_in_a_part_s_data_is_told_or_harmless(finished_copy):
    part = finished_copy / FILES[0]
    content, whole = part.read_bytes(), pandas.read_parquet(part)
    data = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # where Parquet's footer starts
    told = 0
    for position in np.linspace(4, data - 1, 40).astype(int):
        flipped = bytearray(content)
        flipped[position] ^= 16
        part.write_bytes(flipped)
        try:
            same_records(vlscore.read_shard(part), whole)
        except vlscore.VLScoreError:
            told += 1
    assert told > 10


def test_a_part_of_something_else_is_told_in_a_line(run, offline, small, finished_copy):
    part = finished_copy / FILES[1]
    pandas.DataFrame({"one": [1]}).to_parquet(part)
    code, _, err = run("evaluate", small, "--out", finished_copy, *FLAGS, "--resume")
    assert (code, str(part) in one_line(without_bar(err))) == (2, True)


@pytest.mark.parametrize(
    "order", [[0, 1, 2], [0, 1, 2, 3, 0], [1, 0, 2, 3]], ids=["one less", "more", "order"]
)
def test_a_part_with_other_photos_is_told(rn, photos, finished_copy, order):
    part = finished_copy / FILES[1]
    pandas.read_parquet(part).iloc[order].to_parquet(part, index=False)
    with pytest.raises(vlscore.VLScoreError, match=r"part-00001\.parquet has other photos: remove it"):
        vlscore.evaluate(rn, photos, finished_copy, resume=True, **QUICK)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"parameters": 1}', b"\xff"])
def test_a_run_json_that_is_none_is_told_in_a_line(run, offline, small, finished_copy, content):
    (finished_copy / "run.json").write_bytes(content)
    code, _, err = run("evaluate", small, "--out", finished_copy, *FLAGS, "--resume")
    assert (code, "run.json" in one_line(without_bar(err))) == (2, True)


def test_parts_without_parameters_are_told(rn, photos, finished_copy):
    (finished_copy / "run.json").unlink()
    with pytest.raises(vlscore.VLScoreError, match="has parts but no run"):
        vlscore.evaluate(rn, photos, finished_copy, resume=True, **QUICK)
    assert "run.json" not in os.listdir(finished_copy)


def test_a_thousand_photos_and_more_are_at_most_a_thousand_parts(rn, photos):
    every = vlscore.Dataset("official", photos.photos * 1000, photos.classes, [])
    protocol = vlscore.Protocol(slow_baselines=20)
    parts = vlscore.Run(rn, every, protocol).shards
    assert len(parts) == 1000
    assert [photo for part in parts for photo, _ in part] == every.photos
    assert [peers for part in parts for _, peers in part] == [True] * 20 + [False] * 11_980


# ── Stopped by force, and full disks ─────────────────────────────────────────────────────────────


def test_a_run_that_is_killed_goes_on_and_ends_as_if_nothing_had_been(
    run, monkeypatch, scenes_rn, undisturbed, drawn, tmp_path
):
    out = tmp_path / "run"
    arguments = ["evaluate", drawn, "--out", out, "--model", "scenes-rn", "--keep", 16, "--resume"]
    command = [sys.executable, "-m", "vlscore_cli", *map(str, arguments)]
    stopped = []
    for count in (1, 2):
        with (tmp_path / "told").open("w") as told:
            process = subprocess.Popen(command, stdout=told, stderr=told)
            try:
                while len(list(out.glob("part-*"))) < count:
                    assert process.poll() is None, (tmp_path / "told").read_text()
                    time.sleep(0.01)
            finally:
                process.send_signal(signal.SIGKILL)
                stopped.append(process.wait() == -signal.SIGKILL)
    assert any(stopped)
    monkeypatch.setattr(vlscore, "load_model", lambda *_: scenes_rn)
    assert run(*arguments)[0] == 0
    expected, records = undisturbed
    assert (out / "summary.json").read_bytes() == (expected / "summary.json").read_bytes()
    assert sorted(os.listdir(out)) == sorted(os.listdir(expected))
    images = pandas.concat([pandas.read_parquet(path) for path in sorted(out.glob("part-*"))])["image"]
    assert list(images) == list(records["image"])
    same_records(vlscore.read_run(out)[1], vlscore.read_run(expected)[1])


# What is there when the disk is full -> what there is after that.
FULL = {"run.json": [], "part-00001.parquet": [FILES[0], "run.json"], "summary.json": FILES[:3]}


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_told_in_a_line_and_leaves_no_half_of_a_file(
    run, offline, monkeypatch, small, finished, tmp_path, name
):
    out, synced = tmp_path / "run", os.fsync
    order = ["run.json", FILES[0], FILES[1], "summary.json"]
    written = []

    def full(handle):
        if order[len(written)] == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(handle)
        synced(handle)

    monkeypatch.setattr(os, "fsync", full)
    arguments = ["evaluate", small, "--out", out, *FLAGS, "--resume"]
    code, _, err = run(*arguments)
    assert code == 2
    assert "No space left on device" in one_line(without_bar(err))
    assert sorted(os.listdir(out)) == FULL[name]
    monkeypatch.setattr(os, "fsync", synced)
    assert run(*arguments)[0] == 0
    assert (out / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


# ── Summaries ────────────────────────────────────────────────────────────────────────────────────

LABELS = "abcdefgh"
RESULTS = ("gt_known", "top1_loc", "top5_loc", "mean_box_iou", "max_box_acc", "max_box_acc_v2")
PROTOCOL = vlscore.Protocol(
    temperature=0.1, threshold=0.4, temperatures=(0.1, 1.0), thresholds=(0.2, 0.4, 0.6, 0.8)
)


def made_up(n=40, seed=0):
    """Records of random figures, among them many at the edges."""
    random = np.random.default_rng(seed)
    ious = [0, 0.2, 0.3, 0.5, np.nextafter(0.5, 1), 0.62, 0.7, 0.91]
    # Both scores of a photo are high or low together, as they are in earnest.
    common = random.integers(-6, 7, n) / 10
    records = {
        "image": [f"photo {row}" for row in range(n)],
        "label": list(random.choice([*LABELS], n)),
        "objects": random.integers(1, 4, n),
        "top5": [list(random.permutation([*LABELS])[:5]) for _ in range(n)],
        "score": common + random.integers(-1, 4, n) / 10,
        "base_score": random.integers(-1, 3, n) / 10,
        "absent_label": ["" if row % 9 == 4 else "z" for row in range(n)],
        "absent_score": common + random.integers(-3, 2, n) / 10,
        "absent_base_score": random.integers(-1, 3, n) / 10,
        "p_absent": (1 + np.arange(n) % 8) / 81,
        "absent_p": (1 + 7 * np.arange(n) % 81) / 81,
        "constant": list(random.choice(ious, (n, 91))),
    }
    for method in (OURS(0.1), OURS(1), "other"):
        iou = random.choice(ious, (n, 4))
        records[f"iou: {method}"] = iou.tolist()
        records[f"largest: {method}"] = np.where(random.random((n, 4)) < 0.6, iou, 0.1 * iou).tolist()
        records[f"boxes: {method}"] = random.integers(0, 4, (n, 4)).tolist()
    return pandas.DataFrame(records)


@pytest.fixture(scope="module", params=["made up", "drawn scenes"])
def summed(request):
    """Records and their summary, the thresholds, the index of α, and τ."""
    if request.param == "made up":
        records, thresholds = made_up(), [0.2, 0.4, 0.6, 0.8]
        return SimpleNamespace(
            records=records,
            summary=vlscore.summarize(records, PROTOCOL),
            thresholds=thresholds,
            at=1,
            tau=0.1,
        )
    (out, records), thresholds = request.getfixturevalue("undisturbed"), sorted({ALPHA, *SWEEP})
    summary = json.loads((out / "summary.json").read_text())
    at = thresholds.index(ALPHA)
    return SimpleNamespace(records=records, summary=summary, thresholds=thresholds, at=at, tau=TAU)


def is_share(found, hits):
    """Whether a figure is a share with its Wilson interval, to six digits."""
    hits = list(hits)
    expected = stats.binomtest(int(sum(hits)), len(hits)).proportion_ci(0.95, method="wilson")
    wanted = (sum(hits) / len(hits), expected.low, expected.high)
    return (found["value"], found["low"], found["high"]) == pytest.approx(wanted, abs=2e-6)


def rows_of(records):
    return [row for _, row in records.iterrows()]


def methods_of(records):
    return [column.removeprefix("iou: ") for column in records if column.startswith("iou: ")]


def test_gt_known_and_loc_are_shares_of_images_above_a_half(summed):
    records, summary, thresholds = summed.records, summed.summary, summed.thresholds
    assert list(summary["methods"]) == methods_of(records)
    assert summary["thresholds"] == thresholds
    for method, found in summary["methods"].items():
        for n in range(len(thresholds)):
            hit = [row[f"iou: {method}"][n] > 0.5 for row in rows_of(records)]
            first = [row["top5"][0] == row["label"] for row in rows_of(records)]
            five = [row["label"] in list(row["top5"]) for row in rows_of(records)]
            assert is_share(found["gt_known"][n], hit)
            assert is_share(found["top1_loc"][n], [a and b for a, b in zip(hit, first)])
            assert is_share(found["top5_loc"][n], [a and b for a, b in zip(hit, five)])
    assert is_share(summary["classification"]["top1"], first)
    assert is_share(summary["classification"]["top5"], five)


def test_the_mean_box_iou_is_the_mean(summed):
    records, summary, thresholds = summed.records, summed.summary, summed.thresholds
    for method, found in summary["methods"].items():
        for n in range(len(thresholds)):
            expected = sum(row[f"iou: {method}"][n] for row in rows_of(records)) / len(records)
            assert found["mean_box_iou"][n]["value"] == pytest.approx(expected, abs=1e-6)


def test_max_box_acc_is_at_the_best_threshold_of_all(summed):
    records, summary, thresholds = summed.records, summed.summary, summed.thresholds

    def share(kind, n, delta):
        return sum(row[kind][n] >= delta for row in rows_of(records)) / len(records)

    every = range(len(thresholds))
    for method, found in summary["methods"].items():
        shares = [share(f"largest: {method}", n, 0.5) for n in every]
        assert found["max_box_acc"]["value"] == pytest.approx(max(shares), abs=1e-6)
        assert shares[thresholds.index(found["max_box_acc"]["threshold"])] == max(shares)
        best = [max(share(f"iou: {method}", n, delta) for n in every) for delta in (0.3, 0.5, 0.7)]
        assert found["max_box_acc_v2"]["value"] == pytest.approx(sum(best) / 3, abs=1e-6)


def test_the_results_are_those_of_the_protocol_s_temperature_and_threshold(summed):
    summary, at = summed.summary, summed.at
    ours, found = summary["methods"][OURS(summed.tau)], summary["results"]
    assert (summary["temperature"], summary["threshold"]) == (summed.tau, summary["thresholds"][at])
    for key in ("gt_known", "top1_loc", "top5_loc", "mean_box_iou"):
        assert found[key] == ours[key][at]
    for key in ("max_box_acc", "max_box_acc_v2", "images"):
        assert found[key] == ours[key]


def test_boxes_are_counted_against_objects(summed):
    records, found = summed.records, summed.summary["boxes"]
    counts = [row[f"boxes: {OURS(summed.tau)}"][summed.at] for row in rows_of(records)]
    assert found["predicted"] == pytest.approx(sum(counts) / len(counts), abs=1e-6)
    assert found["objects"] == pytest.approx(sum(records["objects"]) / len(counts), abs=1e-6)
    assert is_share(found["same_number"], [a == b for a, b in zip(counts, records["objects"])])


def test_presence_is_told_by_the_cap(summed):
    rows = [row for row in rows_of(summed.records) if row["absent_label"]]
    there = [row["score"] - row["base_score"] for row in rows]
    absent = [row["absent_score"] - row["absent_base_score"] for row in rows]
    found = summed.summary["presence"]
    assert is_share(found["label_said_absent"], [each <= 0 for each in there])
    assert is_share(found["other_said_absent"], [each <= 0 for each in absent])
    assert is_share(found["label_p_above"], [row["p_absent"] > 0.05 for row in rows])
    assert is_share(found["other_p_above"], [row["absent_p"] > 0.05 for row in rows])
    pairs = [
        (a["p_absent"] < b["absent_p"]) + 0.5 * (a["p_absent"] == b["absent_p"]) for a in rows for b in rows
    ]
    assert found["auroc_of_p"]["value"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    pairs = [(a > b) + 0.5 * (a == b) for a in there for b in absent]
    assert found["auroc"]["value"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert found["auroc"]["low"] <= found["auroc"]["value"] <= found["auroc"]["high"]


def test_the_best_constant_box_and_the_whole_image(summed):
    records, summary = summed.records, summed.summary
    hits = [[row["constant"][n] > 0.5 for row in rows_of(records)] for n in range(91)]
    side = summary["constant_box"]["side"]
    assert sum(hits[round(100 * side) - 10]) == max(map(sum, hits))
    assert is_share(summary["constant_box"]["gt_known"], hits[round(100 * side) - 10])
    assert is_share(summary["whole_image"]["gt_known"], hits[90])


def test_an_iou_of_a_half_is_a_hit_for_max_box_acc_and_none_for_gt_known():
    """Choe et al. 2020 count IoU >= 0.5, GT-known localization IoU > 0.5."""
    records = made_up(1)
    for kind in ("iou", "largest"):
        records[f"{kind}: {OURS(0.1)}"] = [[vlscore.box_iou([(0, 0, 10, 5)], [(0, 0, 10, 10)])] * 4]
    found = vlscore.summarize(records, PROTOCOL)["results"]
    assert found["gt_known"]["value"] == found["top5_loc"]["value"] == 0
    assert found["max_box_acc"]["value"] == 1
    assert found["max_box_acc_v2"]["value"] == pytest.approx(2 / 3, abs=1e-6)


def test_bootstrapped_intervals_equal_those_of_drawn_rows():
    records = made_up()
    summary = vlscore.summarize(records, PROTOCOL)
    random, found = np.random.default_rng(77), summary["methods"]["other"]
    iou, largest = np.stack(records["iou: other"]), np.stack(records["largest: other"])
    rows = records[records["absent_label"] != ""]
    there = (rows["score"] - rows["base_score"]).to_numpy()
    absent = (rows["absent_score"] - rows["absent_base_score"]).to_numpy()
    draws = {"mean_box_iou": [], "max_box_acc": [], "max_box_acc_v2": [], "auroc": []}
    for _ in range(2000):
        drawn = random.integers(40, size=40)
        draws["mean_box_iou"].append(iou[drawn, 2].mean())
        draws["max_box_acc"].append((largest[drawn] >= 0.5).mean(0).max())
        best = [(iou[drawn] >= delta).mean(0).max() for delta in (0.3, 0.5, 0.7)]
        draws["max_box_acc_v2"].append(np.mean(best))
        # Both scores of an image are drawn together.
        drawn = random.integers(len(rows), size=len(rows))
        above, same = (np.sign(there[drawn][:, None] - absent[drawn]) == each for each in (1, 0))
        draws["auroc"].append((above + 0.5 * same).mean())
    found = found | {"mean_box_iou": found["mean_box_iou"][2], "auroc": summary["presence"]["auroc"]}
    for key, values in draws.items():
        expected = np.percentile(values, (2.5, 97.5))
        assert (found[key]["low"], found[key]["high"]) == pytest.approx(expected, abs=0.03), key
        assert found[key]["high"] - found[key]["low"] > 0.1


def test_the_table_shows_the_figures_of_each_method(undisturbed):
    out, _ = undisturbed
    summary = json.loads((out / "summary.json").read_text())
    lines = vlscore.summary_table(summary).splitlines()
    for method, found in summary["methods"].items():
        rows = [line for line in lines if line.startswith(f"{method} ")]
        best = max(each["value"] for each in found["gt_known"])
        assert rows
        assert f"{100 * best:.1f} (" in rows[-1]
        assert "*" in rows[-1]
    ours = next(line for line in lines if line.startswith(f"{OURS(TAU)} ")).split()[4:]
    known, *others = (summary["results"][metric] for metric in RESULTS)
    assert ours[0].rstrip("*") == f"{ALPHA:g}"
    assert (
        ours[1:3]
        == "{value:.1f} ({low:.1f}–{high:.1f})".format(
            **{key: 100 * value for key, value in known.items()}
        ).split()
    )
    assert ours[3:] == [f"{100 * each['value']:.1f}" for each in others]


@pytest.mark.parametrize(("best", "rows"), [(1, 1), (2, 2)])
def test_the_table_has_a_row_for_the_chosen_and_one_for_the_best_threshold(best, rows):
    """Which may be the same."""
    records = made_up(6)
    for method in methods_of(records):
        records[f"iou: {method}"] = [[0.9 if n == best else 0.1 for n in range(4)]] * 6
    table = vlscore.summary_table(vlscore.summarize(records, PROTOCOL))
    found = [line for line in table.splitlines() if line.startswith(f"{OURS(0.1)} ")]
    assert len(found) == rows
    assert [line.split()[4] for line in found] == (["0.4*"] if best == 1 else ["0.4", "0.6*"])


# ── Comparing two runs ───────────────────────────────────────────────────────────────────────────

PARAMETERS = {"temperature": 0.1, "threshold": 0.4, "thresholds": [0.2, 0.4, 0.6, 0.8], "data": "same"}
METRICS = ["GT-known", "Top-1 Loc", "Top-5 Loc", "mean box IoU", "MaxBoxAcc", "MaxBoxAccV2"]


def changed(records, **columns):
    return records.assign(**columns)


def figures(records, at=1, method="VL-Score, τ = 0.1"):
    """The six metrics by plain loops."""
    rows, n = rows_of(records), len(records)
    hit = [row[f"iou: {method}"][at] > 0.5 for row in rows]
    count = len(rows[0][f"iou: {method}"])

    def best(kind, delta):
        return max(sum(row[f"{kind}: {method}"][m] >= delta for row in rows) for m in range(count)) / n

    return [
        sum(hit) / n,
        sum(a and row["top5"][0] == row["label"] for a, row in zip(hit, rows)) / n,
        sum(a and row["label"] in list(row["top5"]) for a, row in zip(hit, rows)) / n,
        sum(row[f"iou: {method}"][at] for row in rows) / n,
        best("largest", 0.5),
        sum(best("iou", delta) for delta in (0.3, 0.5, 0.7)) / 3,
    ]


@pytest.fixture(scope="module")
def pair():
    """Records of two runs on the same images: the second hits a third of the images that the first misses."""
    first, second = made_up(60), made_up(60)
    for kind in ("iou", "largest"):
        column = [list(each) for each in second[f"{kind}: {OURS(0.1)}"]]
        for row in range(0, 60, 3):
            column[row] = [0.8] * 4
        second[f"{kind}: {OURS(0.1)}"] = column
    return first, second


@pytest.fixture(scope="module")
def compared(pair):
    return vlscore.compare(*((PARAMETERS, records) for records in pair), count=4000)


def test_a_difference_is_that_of_the_two_figures(compared, pair):
    assert list(compared) == METRICS
    for metric, one, other in zip(METRICS, *map(figures, pair)):
        found = compared[metric]
        expected = (one, other, other - one)
        assert (found["first"], found["second"], found["difference"]) == pytest.approx(expected, abs=2e-7)
        assert found["low"] <= found["difference"] <= found["high"]


def test_a_clearly_better_run_has_a_small_p(compared):
    for metric in ("GT-known", "mean box IoU"):
        assert compared[metric]["p"] < 0.01
        assert compared[metric]["low"] > 0


def test_the_other_way_around_all_signs_turn(compared, pair):
    back = vlscore.compare(*((PARAMETERS, records) for records in pair[::-1]), count=4000)
    for metric, found in compared.items():
        assert back[metric]["difference"] == pytest.approx(-found["difference"], abs=1e-7)
        assert back[metric]["low"] == pytest.approx(-found["high"], abs=1e-6)
        assert back[metric]["p"] == found["p"]


def test_the_interval_of_a_difference_equals_scipy_s_paired_bootstrap(compared, pair):
    one, other = (np.stack(each[f"iou: {OURS(0.1)}"])[:, 1] for each in pair)
    for metric, (a, b) in {"GT-known": (one > 0.5, other > 0.5), "mean box IoU": (one, other)}.items():
        expected = stats.bootstrap(
            (a.astype(float), b.astype(float)),
            lambda x, y, axis: y.mean(axis) - x.mean(axis),
            paired=True,
            n_resamples=5000,
            method="percentile",
            rng=3,
        ).confidence_interval
        found = compared[metric]["low"], compared[metric]["high"]
        assert found == pytest.approx((expected.low, expected.high), abs=0.02)


def test_p_is_twice_the_share_of_resamples_that_turn_the_difference_around():
    """One run hits 5 images that the other misses, which hits 2 others: resamples by hand."""
    first, second = made_up(30), made_up(30)
    for records, hits in ((first, range(5)), (second, range(20, 22))):
        records[f"iou: {OURS(0.1)}"] = [[0.9 if row in hits else 0.1] * 4 for row in range(30)]
    found = vlscore.compare((PARAMETERS, first), (PARAMETERS, second), count=4000)["GT-known"]
    change = np.array([-1] * 5 + [0] * 15 + [1] * 2 + [0] * 8)
    drawn = np.random.default_rng(8).integers(30, size=(20_000, 30))
    share = (change[drawn].sum(1) >= 0).mean()
    assert found["difference"] == pytest.approx(-0.1, abs=1e-7)
    assert found["p"] == pytest.approx(2 * share, abs=0.03)
    assert 0.1 < found["p"] < 0.9


def test_equal_runs_have_no_difference_and_p_is_1(pair):
    same = vlscore.compare((PARAMETERS, pair[0]), (PARAMETERS, pair[0].copy()), count=100)
    for found in same.values():
        assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)


def test_each_run_is_taken_at_its_own_temperature_and_threshold(pair):
    own = PARAMETERS | {"temperature": 1.0, "threshold": 0.8}
    found = vlscore.compare((PARAMETERS, pair[0]), (own, pair[0]), count=10)
    expected = figures(pair[0], 3, OURS(1))
    assert [each["second"] for each in found.values()] == pytest.approx(expected, abs=1e-7)
    assert [each["first"] for each in found.values()] == pytest.approx(figures(pair[0]), abs=1e-7)


@pytest.mark.parametrize("rows", [range(59), [1, 0, *range(2, 60)]], ids=["fewer", "another order"])
def test_runs_of_other_images_are_not_compared(pair, rows):
    other = pair[0].iloc[list(rows)].reset_index(drop=True)
    with pytest.raises(vlscore.VLScoreError, match="other images"):
        vlscore.compare((PARAMETERS, pair[0]), (PARAMETERS, other))


@pytest.fixture(scope="module")
def other_run(rn, photos, tmp_path_factory):
    """A run with other maps, on the images of `finished`."""
    out = tmp_path_factory.mktemp("other") / "run"
    vlscore.evaluate(rn, photos, out, layer="layer1", threshold=0.3, **QUICK)
    return out


def test_runs_of_other_photos_of_the_same_names_are_not_compared(run, monkeypatch, rn, finished, tmp_path):
    monkeypatch.setattr(vlscore, "compare", functools.partial(vlscore.compare, count=500))
    other = vlscore.read_dataset(draw(tmp_path / "scenes", 12, 99, (96, 80)))
    vlscore.evaluate(rn, other, tmp_path / "run", **QUICK)
    code, out, err = run("compare", finished, tmp_path / "run")
    assert (code, out) == (2, "")
    assert "other images" in one_line(err)


def test_compare_prints_json(run, monkeypatch, finished, other_run):
    monkeypatch.setattr(vlscore, "compare", functools.partial(vlscore.compare, count=500))
    code, out, err = run("compare", finished, other_run, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert list(found) == METRICS
    records = [vlscore.read_run(folder)[1] for folder in (finished, other_run)]
    expected = figures(records[0], 1, OURS(0.01)), figures(records[1], 0, OURS(0.01))
    for metric, one, other in zip(METRICS, *expected):
        assert list(found[metric]) == ["first", "second", "difference", "low", "high", "p"]
        assert (found[metric]["first"], found[metric]["second"]) == pytest.approx((one, other), abs=1e-7)


def test_compare_prints_a_line_a_metric_in_percent(run, monkeypatch, finished, compared):
    monkeypatch.setattr(vlscore, "compare", lambda *_: compared)
    code, out, err = run("compare", finished, finished)
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == ["percent", "first", "second", "difference", "p"]
    for line, (metric, each) in zip(lines, compared.items()):
        words = line.removeprefix(metric).split()
        assert line.startswith(metric)
        assert words[0] == f"{100 * each['first']:.1f}"
        assert words[1] == f"{100 * each['second']:.1f}"
        assert words[2] == f"{100 * each['difference']:+.1f}"
        assert words[-1] == f"{each['p']:.4f}"
    assert len(lines) == 6


@pytest.mark.parametrize("name", ["missing", "stopped", "no run"])
def test_compare_tells_of_what_is_no_finished_run(run, finished, finished_copy, tmp_path, name):
    folder = {"missing": tmp_path / "missing", "stopped": finished_copy, "no run": tmp_path / "empty"}[name]
    (tmp_path / "empty").mkdir()
    (finished_copy / FILES[1]).unlink()
    code, out, err = run("compare", finished, folder)
    assert (code, out) == (2, "")
    assert str(folder) in one_line(err)
    if name == "stopped":
        assert "--resume" in err


# ── Dask ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def client():
    """Of the cluster that ``--workers 2`` starts: two processes of one thread."""
    with vlscore_cli.start_cluster(SimpleNamespace(workers=2, scheduler=None)) as client:
        processes = set(client.run(os.getpid).values())
        assert len(processes - {os.getpid()}) == 2
        yield client


def test_a_cluster_gives_the_same_records_and_summary(rn, photos, client, finished, tmp_path):
    counts = []
    records = vlscore.evaluate(
        rn, photos, tmp_path / "run", client=client, progress=counting(counts), **QUICK
    )
    same_records(records, vlscore.read_run(finished)[1])
    assert contents(tmp_path / "run")["summary.json"] == contents(finished)["summary.json"]
    assert (counts[0], sorted(counts[1:])) == ((0, False), [(4, True), (8, True)])


def test_a_scheduler_that_runs_already_is_used(run, offline, small, client, finished, tmp_path):
    arguments = ["evaluate", small, "--out", tmp_path / "run", *FLAGS]
    code, _, err = run(*arguments, "--scheduler", client.scheduler.address)
    assert (code, "vlscore:" in err) == (0, False)
    assert contents(tmp_path / "run")["summary.json"] == contents(finished)["summary.json"]
    assert len(client.scheduler_info()["workers"]) == 2  # which are not ours to stop


@pytest.fixture
def started(monkeypatch, client):
    """Notes how many workers are started, and takes those of `client`, started as these would be."""
    started, address = [], client.scheduler.address

    def start(n, **_):
        started.append(n)
        return contextlib.nullcontext(address)

    monkeypatch.setattr(distributed, "LocalCluster", start)
    return started


def test_workers_on_this_machine_give_the_same_summary(run, offline, small, started, finished, tmp_path):
    code, out, err = run("evaluate", small, "--out", tmp_path / "run", *FLAGS, "--workers", 2)
    assert (code, "vlscore:" in err, started) == (0, False, [2])
    assert contents(tmp_path / "run")["summary.json"] == contents(finished)["summary.json"]
    assert str(tmp_path / "run" / "summary.json") in out


def test_a_full_disk_is_not_taken_for_a_missing_scheduler(
    run, offline, monkeypatch, small, started, tmp_path
):
    def full(_):
        if (tmp_path / "run" / "run.json").exists():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run("evaluate", small, "--out", tmp_path / "run", *FLAGS, "--workers", 2)
    line = one_line(without_bar(err))
    assert (code, "No space left" in line, "Dask" in line) == (2, True, False)
    assert os.listdir(tmp_path / "run") == ["run.json"]


def test_the_program_runs_functions_of_the_module_and_not_of_main(monkeypatch):
    """Those of ``__main__`` would be others in a worker."""
    monkeypatch.setattr(vlscore_cli, "main", lambda: 77)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(vlscore_cli.__file__, run_name="__main__")
    assert end.value.code == 77


def test_a_worker_that_is_killed_costs_nothing_but_time(rn, client, tmp_path):
    many = vlscore.read_dataset(draw(tmp_path / "scenes", 96, 7, (64, 64)))
    options = {"layer": "layer1", "keep": 1, "thresholds": (), "temperatures": ()}
    expected = vlscore.evaluate(rn, many, **options)
    victims = list(client.run(os.getpid).values())
    killed = []

    def progress(count, measured=True):
        if measured and not killed:  # one part of twelve is done
            killed.append(victims[0])
            os.kill(victims[0], signal.SIGKILL)

    records = vlscore.evaluate(rn, many, tmp_path / "run", client=client, progress=progress, **options)
    assert killed == victims[:1]
    assert len(list((tmp_path / "run").glob("part-*"))) == 12
    same_records(records, expected)


def test_a_scheduler_that_is_not_there_is_told(run, offline, monkeypatch, small, tmp_path):
    waited, connect = [], distributed.Client

    def impatient(*where, timeout):
        waited.append(timeout)
        return connect(*where, timeout=0.5)

    monkeypatch.setattr(distributed, "Client", impatient)
    arguments = ["evaluate", small, "--out", tmp_path / "run", *FLAGS]
    code, _, err = run(*arguments, "--scheduler", "tcp://127.0.0.1:1")
    assert code == 2
    assert "no Dask scheduler at tcp://127.0.0.1:1" in one_line(without_bar(err))
    assert len(waited) == 1 and waited[0] <= 25
    assert not (tmp_path / "run").exists()


# ── Command line ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def offline(monkeypatch, rn):
    """Take the tiny CNN, whichever is asked for."""
    monkeypatch.setattr(vlscore, "load_model", lambda *_: rn)


def without_bar(err):
    """What is on stderr beside the bar of a job that had begun."""
    lines = err.replace("\r", "\n").split("\n")
    return "\n".join(line for line in lines if line and not line.startswith("evaluating:")) + "\n"


def test_evaluate_prints_the_layout_the_table_and_where_the_summary_is(
    run, offline, small, photos, finished, tmp_path
):
    code, out, err = run("evaluate", small, "--out", tmp_path / "run", *FLAGS)
    assert code == 0
    assert without_bar(err) == "\n"
    lines = out.splitlines()
    count = len({photo.label for photo in photos.photos})
    assert lines[0] == f"{small}: 12 photos of {count} classes, layout official (val/*.JPEG, one XML a photo)"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert vlscore.summary_table(summary) in out
    assert "report, Table 2" in out
    assert lines[-1] == f"summary: {tmp_path / 'run' / 'summary.json'}"
    assert contents(tmp_path / "run")["summary.json"] == contents(finished)["summary.json"]


def test_the_sweep_is_of_the_temperatures_and_thresholds_given(run, offline, small, tmp_path):
    sweep = ["--temperatures", "0.2,2", "--thresholds", "0.3,0.6,0.1"]
    arguments = ["--keep", 4, "--temperature", 0.5, "--threshold", 0.45, "--limit", 3]
    code, out, _ = run("evaluate", small, "--out", tmp_path / "run", *sweep, *arguments)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (code, summary["images"]) == (0, 3)
    assert (summary["temperature"], summary["threshold"]) == (0.5, 0.45)
    assert summary["thresholds"] == [0.1, 0.3, 0.45, 0.6]
    ours = [each for each in summary["methods"] if each.startswith("VL-Score")]
    assert ours == [OURS(0.2), OURS(0.5), OURS(2)]
    assert all(len(each["gt_known"]) == 4 for each in summary["methods"].values())
    assert all(each in out for each in ours)


@pytest.fixture
def damaged(small, tmp_path):
    """The small scenes with a photo cut short -> the folder, and the photo."""
    folder = shutil.copytree(small, tmp_path / "damaged")
    photo = folder / "val" / "scenes_val_00000003.JPEG"
    photo.write_bytes(cut(photo.read_bytes()))
    return folder, photo


def test_a_photo_that_cannot_be_used_is_told_before_anything_is_written(run, damaged, monkeypatch, tmp_path):
    monkeypatch.setattr(vlscore, "load_model", lambda *_: pytest.fail("loaded"))
    code, out, err = run("evaluate", damaged[0], "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert str(damaged[1]) in one_line(err)
    assert not (tmp_path / "run").exists()


def test_skip_bad_leaves_photos_out_and_lists_them(run, offline, damaged, tmp_path):
    folder, photo = damaged
    code, out, err = run("evaluate", folder, "--out", tmp_path / "run", *FLAGS, "--skip-bad")
    assert code == 0
    line = one_line(without_bar(err))
    assert line.startswith("vlscore: left out: ") and str(photo) in line
    assert out.startswith(f"{folder}: 11 photos of ")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images"] == 11
    assert [str(photo) in each for each in summary["skipped"]] == [True]
    assert "scenes_val_00000003" not in list(vlscore.read_run(tmp_path / "run")[1]["image"])


# Bad options, and what the message must name.
BAD_OPTIONS = {
    "--threshold 2": ["threshold", "2"],
    "--threshold nan": ["threshold", "nan"],
    "--thresholds 0.5,2": ["threshold", "2"],
    "--thresholds half": ["--thresholds", "half"],
    "--temperature 0": ["temperature", "0"],
    "--temperatures 1,0": ["temperature", "0"],
    "--temperatures 1,nan": ["temperature", "nan"],
    "--temperatures 1,": ["--temperatures", "1,"],
    "--layer nonsense": ["nonsense", "layer4"],
    "--maps nonsense": ["nonsense", "activation"],
    "--maps key --pca 2": ["key", "CNN"],
    "--pca 2": ["pca"],
    "--fit nonsense": ["nonsense", "squash"],
    "--precision nonsense": ["nonsense", "float32"],
    "--templates nonsense": ["nonsense", "report"],
    "--names nonsense": ["nonsense", "imagenet"],
    "--layout nonsense": ["nonsense", "official"],
    "--limit 0": ["limit", "0"],
    "--first 0": ["first", "0"],
    "--sample 0": ["sample", "0"],
    "--sample 3 --seed -1": ["seed", "-1"],
    "--seed -1": ["seed", "-1"],
    "--keep 0": ["keep", "0"],
    "--keep 1.5": ["keep", "1.5"],
    "--ids missing.txt": ["missing.txt"],
    "--workers 0": ["--workers", "0"],
    "--workers 1 --scheduler tcp://127.0.0.1:1": ["--workers", "--scheduler"],
    "--nonsense": ["--nonsense"],
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_a_bad_option_is_told_in_a_line_and_leaves_no_folder(run, offline, small, tmp_path, options):
    code, _, err = run("evaluate", small, "--out", tmp_path / "run", "--limit", 2, *options.split())
    assert code == 2
    assert all(each in one_line(without_bar(err)) for each in BAD_OPTIONS[options])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", ["--thresholds 0.5,2", "--layer nonsense", "--templates nonsense"])
def test_a_bad_option_is_told_before_a_bar_is_shown(run, offline, small, tmp_path, options):
    _, _, err = run("evaluate", small, "--out", tmp_path / "run", *options.split())
    one_line(err)


def test_a_bad_option_is_told_before_workers_are_started(run, offline, small, monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "LocalCluster", lambda *_, **__: pytest.fail("started"))
    arguments = ["--layer", "nonsense", "--workers", 2]
    code, _, err = run("evaluate", small, "--out", tmp_path / "run", *arguments)
    assert (code, "nonsense" in err) == (2, True)


@pytest.mark.parametrize("name", ["missing", "empty", "a file"])
def test_a_folder_without_a_data_set_is_told(run, offline, tmp_path, name):
    root = tmp_path / name
    if name == "empty":
        root.mkdir()
    if name == "a file":
        root.write_bytes(b"")
    code, out, err = run("evaluate", root, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert str(root) in one_line(err)
    assert not (tmp_path / "run").exists()


def test_an_unknown_model_is_told_and_leaves_no_folder(run, small, tmp_path):
    code, _, err = run("evaluate", small, "--out", tmp_path / "run", "--model", "nonsense")
    assert (code, "nonsense" in one_line(err)) == (2, True)
    assert not (tmp_path / "run").exists()


def test_an_out_that_is_a_file_is_told(run, offline, small, tmp_path):
    (tmp_path / "run").write_bytes(b"mine")
    code, _, err = run("evaluate", small, "--out", tmp_path / "run", *FLAGS)
    assert (code, str(tmp_path / "run") in one_line(without_bar(err))) == (2, True)
    assert (tmp_path / "run").read_bytes() == b"mine"


def test_an_out_that_holds_a_run_is_told_in_a_line(run, offline, small, finished_copy):
    before = contents(finished_copy)
    code, _, err = run("evaluate", small, "--out", finished_copy, *FLAGS)
    assert (code, "--resume" in one_line(without_bar(err))) == (2, True)
    assert contents(finished_copy) == before


# ── Selection ────────────────────────────────────────────────────────────────────────────────────


def test_keep_comes_nearer_to_the_exact_saliency_than_the_largest_deviations(scenes_rn, drawn):
    """What the choice and the prediction are for, on drawn scenes at 24 of 256 maps."""
    ours, theirs = [], []
    dataset = vlscore.read_dataset(drawn)
    for photo in dataset.photos[:6]:
        exact = vlscore.encode(scenes_rn, photo.path, layer="layer3", precision="float32")
        text = vlscore.class_embedding(scenes_rn, dataset.classes[photo.label])
        wanted = vlscore.saliency(exact, text, 0.1).flatten()
        rows = vlscore.select_maps(exact.maps, 24)
        e = vlscore.predict_embeddings(exact.maps, rows, exact.mask_embeddings)
        kept = vlscore.saliency(dataclasses.replace(exact, mask_embeddings=e), text, 0.1)
        strongest = exact.maps.std((1, 2)).topk(24).indices
        some = {"maps": exact.maps[strongest], "mask_embeddings": exact.mask_embeddings[strongest]}
        plain = vlscore.saliency(dataclasses.replace(exact, **some), text, 0.1)
        for each, correlations in ((kept, ours), (plain, theirs)):
            correlations.append(torch.corrcoef(torch.stack([wanted, each.flatten()]))[0, 1].item())
    assert np.mean(ours) > 0.98
    assert np.mean(ours) > np.mean(theirs)
