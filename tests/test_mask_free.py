"""Mask-free refinement, ``keep=0``: against its formula, through every command, and what it cannot do."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vlscore

PROMPT = "an image of a cat."


def mask_free(model, image, **options):
    return vlscore.encode(model, image, keep=0, refined=True, precision="float32", **options)


def scaled(x):
    return (x - x.min()) / (x.max() - x.min())


@pytest.mark.parametrize("name", ["rn", "lite0", "scenes_rn"])
def test_the_heat_map_is_the_formula(request, name, chelsea):
    """Geometric mean of similarity map and mean of all maps, each summed over two sizes, then sharpened."""
    model = request.getfixturevalue(name)
    encoding, text = mask_free(model, chelsea), model.encode_text([PROMPT])[0]
    grid, sums = encoding.features.shape[1:], [0, 0]
    for maps, cells in encoding.scales:
        similarity = sum(t * cell for t, cell in zip(text / text.norm(), cells)).clamp(min=0)
        for n, each in enumerate((similarity, maps.mean(0).clamp(min=0))):
            larger = F.interpolate((each / each.max())[None, None], grid, mode="bilinear")[0, 0]
            sums[n] = sums[n] + larger
    heat = vlscore.sharpen(scaled(torch.sqrt(sums[0] * sums[1])), encoding.features)
    wanted = F.interpolate(heat[None, None], (encoding.input_size,) * 2, mode="bilinear")[0, 0]
    torch.testing.assert_close(vlscore.saliency(encoding, text), scaled(wanted), atol=1e-4, rtol=0)


def test_no_masked_image_is_encoded(lite0, chelsea):
    batches = []

    def progress(todo):
        batches.extend(todo)
        return todo

    found = vlscore.encode(lite0, chelsea, keep=0, refined=True, progress=progress)
    assert batches == []
    assert (found.has_masks, found.indices.tolist()) == (False, [])
    assert vlscore.encode(lite0, chelsea, keep=2, refined=True).has_masks


def test_temperature_has_no_effect(lite0, chelsea):
    encoding, text = mask_free(lite0, chelsea), lite0.encode_text([PROMPT])[0]
    hot, cold = (vlscore.saliency(encoding, text, tau) for tau in (100.0, 0.001))
    assert hot.equal(cold)


def test_p_and_the_score_compare_the_whole_image(lite0, chelsea):
    encoding, others = mask_free(lite0, chelsea), vlscore.embed_other_words(lite0)
    for prompt in (PROMPT, "an image of a volcano."):
        found = vlscore.localize(lite0, encoding, prompt)
        text = lite0.encode_text([prompt])[0]
        fit, rest = (each @ encoding.image_embedding for each in (text, others))
        assert found.p_absent == pytest.approx((1 + int((rest > fit + 1e-6).sum())) / 81)
        assert found.score == pytest.approx(float(fit), abs=1e-6)
        assert found.present == (found.p_absent <= 0.05)
    assert not found.present  # the volcano
    assert found.boxes == []


def test_plain_maps_need_masks(lite0, chelsea):
    for way in (lambda: vlscore.encode(lite0, chelsea, keep=0), vlscore.EncodingOptions(keep=0).check):
        with pytest.raises(vlscore.VLScoreError, match="only refined boxes need no masks"):
            way()
    plain = mask_free(lite0, chelsea).without_refinement()
    assert vlscore.saliency(plain, lite0.encode_text([PROMPT])[0]) is None


def test_a_vit_needs_masks(vit, chelsea):
    with pytest.raises(vlscore.VLScoreError, match="is a ViT, whose refinement needs masks: keep 1 or more"):
        mask_free(vit, chelsea)


def test_it_is_stored_and_saved(lite0, chelsea, tmp_path):
    options = vlscore.EncodingOptions(keep=0, refined=True)
    encoding, text = vlscore.encode(lite0, chelsea, keep=0, refined=True), lite0.encode_text([PROMPT])[0]
    encoding.save(tmp_path / "encoding")
    stored = vlscore.EncodingStore(tmp_path / "store", lite0, options).write(chelsea.read_bytes(), encoding)
    for again in (vlscore.Encoding.load(tmp_path / "encoding"), stored):
        assert not again.has_masks
        torch.testing.assert_close(
            vlscore.saliency(again, text), vlscore.saliency(encoding, text), atol=0.02, rtol=0
        )
    others = vlscore.embed_other_words(lite0)
    rows = vlscore.EncodingStore(tmp_path / "store", lite0, options).read_rows(chelsea.read_bytes())
    judged, wanted = (vlscore.judge_presence(each, text[None], others) for each in (rows, encoding))
    assert judged[0].equal(wanted[0])


def test_evaluate_names_it_and_compares_it(scenes_rn, drawn, tmp_path):
    dataset = vlscore.read_dataset(drawn)
    dataset = replace(dataset, photos=dataset.photos[:6])
    runs = {keep: tmp_path / str(keep) for keep in (0, 8)}
    for keep, out in runs.items():
        records = vlscore.evaluate(scenes_rn, dataset, out, keep=keep, refined=True)
    free, masked = (vlscore.read_run(out) for out in runs.values())
    assert "iou: mask-free refinement" in free[1]
    assert not any("VL-Score" in column for column in free[1])
    summary = vlscore.read_json(runs[0] / "summary.json")
    at = summary["thresholds"].index(scenes_rn.refined_threshold)
    encoding = vlscore.encode(scenes_rn, dataset.photos[0].path, keep=0, refined=True)
    text = vlscore.class_embedding(scenes_rn, dataset.classes[dataset.photos[0].label])
    iou = vlscore.box_iou(
        vlscore.find_boxes(vlscore.saliency(encoding, text), encoding), dataset.photos[0].boxes
    )
    assert free[1]["iou: mask-free refinement"][0][at] == pytest.approx(iou, abs=1e-6)
    gain = vlscore.compare(free, masked)["GT-known"]
    hits = np.stack(records[f"iou: refined VL-Score, τ = {scenes_rn.temperature:g}"])
    at = masked[0]["thresholds"].index(scenes_rn.refined_threshold)
    assert gain["second"] == pytest.approx((hits[:, at] > 0.5).mean())
    assert vlscore.measure_models({"free": free, "masked": masked})[1]["above_first"] == gain
    assert f"mask-free refinement {scenes_rn.refined_threshold:g} " in " ".join(
        vlscore.summary_table(summary).split()
    )


def test_the_commands_take_it(run, chelsea, tmp_path):
    code, out, _ = run(
        "localize", chelsea, PROMPT, "--model", "lite0-minilm", "--refined", "--keep", 0, "--json"
    )
    assert code == 0
    [found] = json.loads(out)["results"]
    assert len(found["boxes"]) == 1
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(chelsea.read_bytes())
    label = ["--classes", "cat", "--format", "coco", "--out", tmp_path / "labels", "--keep", 0]
    code, *_ = run("label", tmp_path / "photos", "--model", "lite0-minilm", *label)
    assert code == 0
    [written] = (tmp_path / "labels").rglob("*.json")
    (x, y, w, h) = json.loads(written.read_text())["annotations"][0]["bbox"]
    assert np.allclose([x, y, x + w, y + h], found["boxes"][0], atol=1)


@pytest.mark.parametrize("command", ["localize", "label", "evaluate"])
def test_a_command_says_in_a_line_that_a_vit_needs_masks(run, chelsea, drawn, tmp_path, command):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(chelsea.read_bytes())
    arguments = {
        "localize": [chelsea, "an image of a cross.", "--refined"],
        "label": [tmp_path / "photos", "--classes", "cross", "--out", tmp_path / "out"],
        "evaluate": [drawn, "--refined", "--limit", 2, "--out", tmp_path / "out"],
    }[command]
    code, _, err = run(command, *arguments, "--model", "scenes-vit", "--keep", 0)
    assert code == 2
    assert "scenes-vit is a ViT, whose refinement needs masks: keep 1 or more" in err
    assert "Traceback" not in err
