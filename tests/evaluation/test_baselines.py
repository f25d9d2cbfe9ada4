"""Baselines: other methods' saliency maps for the same model and text."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation_helpers import QUICK, contents

import vlscore
from vlscore_lib.evaluation import baselines


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
    # Shards of which one has slow baselines and one has none are put together again.
    (tmp_path / "run" / "part-00000.parquet").unlink()
    vlscore.evaluate(rn, photos, tmp_path / "run", resume=True, **options)
    assert contents(tmp_path / "run")["summary.json"] == before["summary.json"]
