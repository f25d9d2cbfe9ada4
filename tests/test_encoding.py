"""Exactness: encodings, scores, weights and saliency against the formulas, written out here in float64.

The reference below shares no code with vlscore.  It takes three things from the model under test: the
weights, the preprocessed pixels and the text embedding; test_models.py checks these by themselves.
"""

import copy
import dataclasses
import gc
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vlscore
from vlscore_lib import masks, selection
from vlscore_lib.models.base import Preprocessing
from vlscore_lib.models.facts import Defaults

CAT = "an image of a cat."


# ── The reference: method.md, section 1 ──────────────────────────────────────────────────────────


def resnet64(model, pixels):
    """ModifiedResNet in float64: pixels -> features and maps of the last stage."""
    v = copy.deepcopy(model.visual).double()

    def maps(x):
        for n in (1, 2, 3):
            x = getattr(v, f"relu{n}")(getattr(v, f"bn{n}")(getattr(v, f"conv{n}")(x)))
        return v.layer4(v.layer3(v.layer2(v.layer1(v.avgpool(x)))))

    return lambda x: v.attnpool(maps(x)), {"activation": maps(pixels)[0]}


def vit64(model, pixels):
    """ViT in float64, by hand from the state dict: CLIP's own layer norm casts to float32."""
    p = {name: weight.double() for name, weight in model.visual.state_dict().items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return x / ((x**2).mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name, kind=""):
        return x @ p[f"{name}{kind}weight"].T + p[f"{name}{kind}bias"]

    def run(x):
        B, inside = len(x), {}
        patches = x.reshape(B, 3, 4, 16, 4, 16).permute(0, 2, 4, 1, 3, 5).reshape(B, 16, 768)
        tokens = patches @ p["conv1.weight"].reshape(128, 768).T
        x = torch.cat([p["class_embedding"].expand(B, 1, 128), tokens], 1) + p["positional_embedding"]
        x = norm(x, "ln_pre")
        for n in range(2):
            block = f"transformer.resblocks.{n}"
            qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.", "in_proj_")
            inside = dict(zip(("query", "key", "value"), (qkv[..., i : i + 128] for i in (0, 128, 256))))
            q, k, v = (part.reshape(B, 17, 2, 64).transpose(1, 2) for part in inside.values())
            powers = (q @ k.transpose(2, 3) / 8).exp()
            attention = powers / powers.sum(-1, keepdim=True)
            mixed = (attention @ v).transpose(1, 2).reshape(B, 17, 128)
            x = x + linear(mixed, f"{block}.attn.out_proj.")
            hidden = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc.")
            x = x + linear(hidden / (1 + (-1.702 * hidden).exp()), f"{block}.mlp.c_proj.")
        inside = {kind: tokens[0, 1:].T.reshape(128, 4, 4) for kind, tokens in inside.items()}
        inside["activation"] = x[0, 1:].T.reshape(128, 4, 4)
        inside["attention"] = attention[0, :, 0, 1:].reshape(2, 4, 4)
        return norm(x[:, 0], "ln_post") @ p["proj"], inside

    return lambda x: run(x)[0], run(pixels)[1]


def lite64(model, pixels):
    """EfficientNet-Lite0 in float64 with the signed squares of its centred logits."""
    net = copy.deepcopy(model.visual.net).double()

    def embed(x):
        logits = net(x)
        centred = logits - logits.mean(1, keepdim=True)
        return centred.sign() * centred**2

    return embed, {"activation": net.extract_features(pixels)[0]}


REFERENCES = {"rn": resnet64, "vit": vit64, "lite0": lite64}


def stretch(n, S):
    """The (S, n) matrix of linear interpolation with aligned corners."""
    matrix = np.zeros((S, n))
    for i in range(S):
        place = i * (n - 1) / (S - 1)
        low = min(int(place), n - 2)
        matrix[i, low], matrix[i, low + 1] = low + 1 - place, place - low
    return matrix


def masks64(maps, S):
    """M_k = minmax(up(A_k)), NumPy: (C, h, w) -> (C, S, S)."""
    up = stretch(maps.shape[1], S) @ maps @ stretch(maps.shape[2], S).T
    low, high = up.min((1, 2), keepdims=True), up.max((1, 2), keepdims=True)
    return (up - low) / (high - low + 1e-7)


def unit64(rows):
    return rows / np.sqrt((rows**2).sum(-1, keepdims=True))


def process64(A, rows, e=None):
    """scikit-learn's Gaussian process over the masks of some maps: what it knows of all of them."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    cells = A.reshape(len(A), -1).astype(np.float64)
    cells = cells - cells.min(1, keepdims=True)
    cells /= cells.max(1, keepdims=True) + 1e-7
    energy = (A.reshape(len(A), -1).astype(np.float64) ** 2).sum(0)
    kernel = RBF(0.5 / np.sqrt(energy / energy.sum()))  # a length for each cell
    known = np.zeros((len(rows), 1)) if e is None else e - e.mean(0)
    process = GaussianProcessRegressor(kernel, alpha=selection.NOISE, optimizer=None).fit(cells[rows], known)
    return process.predict(cells, return_std=True)


def greedy64(A, keep):
    """One after the other, the map of the largest variance times what is not known of it."""
    energy, rows = A.reshape(len(A), -1).astype(np.float64).var(1), []
    while len(rows) < keep:
        worth = energy * (process64(A, rows)[1] ** 2 if rows else 1)
        worth[rows] = -1
        rows.append(int(worth.argmax()))
    return np.sort(rows)


class Reference:
    """Maps, scores and saliency of one image and one text; `keep` maps go through the encoder."""

    def __init__(self, name, model, image, text, kind, keep):
        X = model.preprocess(Image.open(image)).double()
        with torch.no_grad():
            f, maps = REFERENCES[name](model, X[None])
            A = maps[kind].numpy()
            rows = np.arange(len(A)) if keep is None else greedy64(A, keep)
            M = torch.from_numpy(masks64(A[rows], model.input_size))
            parts = [f(X * part[:, None]) for part in M.split(16)]
            base = f(torch.zeros_like(X)[None])[0]
        text = unit64(text.double().numpy())
        self.indices, self.A, self.base = rows, A, unit64(base.numpy())
        known = unit64(torch.cat(parts).numpy())
        self.e = unit64(process64(A, rows, known)[0] + known.mean(0)) if keep else known
        self.e[rows] = known
        # A constant map shows nothing: its score is the base score but for rounding, so not above it.
        self.varies = self.A.max((1, 2)) > self.A.min((1, 2))
        self.e[~self.varies] = self.base
        self.s, self.s_b = self.e @ text, self.base @ text

    def saliency(self, temperature):
        kept = self.varies & (self.s > self.s_b)
        powers = np.exp(self.s[kept] / temperature)
        w = powers / powers.sum()
        return np.maximum((w[:, None, None] * self.A[kept]).sum(0), 0)


KINDS = [("rn", "activation", None, CAT), *(("vit", kind, None, CAT) for kind in vlscore.MAPS)]
# The 48 maps of lite0 all show the cat; about half of them beat the base for this text.
KINDS += [("lite0", "activation", 48, "an image of a lens cap.")]


@pytest.fixture(scope="module", params=KINDS, ids=lambda case: "-".join(map(str, case[:2])))
def case(request, chelsea):
    """An encoding of the photo by vlscore, the text's embedding, and the reference."""
    name, kind, keep, prompt = request.param
    model = request.getfixturevalue(name)
    encoding = vlscore.encode(model, chelsea, maps=kind, keep=keep, precision="float32")
    text = model.encode_text([prompt])[0]
    return encoding, text, Reference(name, model, chelsea, text, kind, keep)


def test_the_cap_is_not_ambiguous(case):
    """No score of the chosen data is so near the base that rounding decides; some are kept, some not."""
    _, _, reference = case
    distances = (reference.s - reference.s_b)[reference.varies]
    assert np.abs(distances).min() > 1e-6
    assert (distances > 0).any()
    assert (distances < 0).any()


def test_maps_equal_the_reference(case):
    encoding, _, reference = case
    assert encoding.indices.tolist() == reference.indices.tolist()
    # Of the largest activation: float32's rounding through the 50 layers of lite0 gives 3e-6 of it.
    tolerance = 1e-5 * np.abs(reference.A).max()
    np.testing.assert_allclose(encoding.maps.numpy(), reference.A, atol=tolerance, rtol=0)


def test_embeddings_equal_the_reference(case):
    encoding, _, reference = case
    np.testing.assert_allclose(encoding.mask_embeddings.numpy(), reference.e, atol=1e-5, rtol=0)
    np.testing.assert_allclose(encoding.base_embedding.numpy(), reference.base, atol=1e-5, rtol=0)


def test_scores_equal_the_reference(case):
    encoding, text, reference = case
    s, base = vlscore.scores(encoding, text)
    assert s.dtype == torch.float32
    np.testing.assert_allclose(s.numpy(), reference.s, atol=1e-5, rtol=0)
    assert base.item() == pytest.approx(reference.s_b, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_saliency_equals_the_reference(case, temperature):
    encoding, text, reference = case
    found = vlscore.saliency(encoding, text, temperature)
    np.testing.assert_allclose(found.numpy(), reference.saliency(temperature), atol=1e-5, rtol=0)


def test_temperature_1_is_the_default(case):
    encoding, text, _ = case
    assert torch.equal(vlscore.saliency(encoding, text), vlscore.saliency(encoding, text, 1.0))


@pytest.mark.parametrize("size", [(3, 3), (7, 7), (4, 5), (2, 9)])
def test_masks_equal_the_reference(size):
    maps = torch.randn(5, *size, generator=torch.Generator().manual_seed(0))
    found = vlscore.make_masks(maps, 50)
    np.testing.assert_allclose(found.numpy(), masks64(maps.double().numpy(), 50), atol=1e-6, rtol=0)
    assert found.min() == 0
    assert found.max() <= 1


# ── Score-CAM of other packages ──────────────────────────────────────────────────────────────────


def test_pytorch_grad_cam_gives_the_same_weights_and_saliency(rn, chelsea):
    """The two definitions coincide for the target below, and only for it.

    The same in both: masks (bilinear, corners aligned, min-max; an epsilon of 1e-8 there and 1e-7
    here), X ⊙ M_k as the masked image, a softmax over the maps, relu(Σ w_k A_k) of the raw maps.
    Different there: no temperature, no base score and so no cap, and at the end the saliency is
    min-max normalised and resized by OpenCV, which is why it is taken here before that step.  A target
    that gives cos/τ above the base score, and -inf below, puts temperature and cap into its softmax.
    """
    from pytorch_grad_cam import ScoreCAM

    text, temperature = rn.encode_text([CAT])[0], 0.05
    encoding = vlscore.encode(rn, chelsea, precision="float32")
    s, base = vlscore.scores(encoding, text)

    def cosine(features):
        return torch.nn.functional.cosine_similarity(features, text, dim=0)

    def capped(features):
        score = cosine(features)
        # 1e-6: constant maps score the base, but for rounding; no other map is so near.
        return score / temperature if score > base + 1e-6 else torch.tensor(-torch.inf)

    pixels, layer = rn.preprocess(Image.open(chelsea))[None], rn.visual.layer4[-1]
    with ScoreCAM(rn.visual, [layer]) as cam, torch.no_grad():
        cam.activations_and_grads(pixels)
        maps = cam.activations_and_grads.activations[0].numpy()
        plain = torch.from_numpy(cam.get_cam_weights(pixels, layer, [cosine], maps, None)[0])
        theirs = torch.from_numpy(cam.get_cam_weights(pixels, layer, [capped], maps, None)[0])
        summed = cam.get_cam_image(pixels, layer, [capped], maps, None)[0]

    # A softmax keeps differences: its logarithm is the scores, up to a constant.
    torch.testing.assert_close(plain.log() - plain.log().mean(), s - s.mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(vlscore.weights(encoding, text, temperature), theirs, atol=1e-5, rtol=0)
    found = vlscore.saliency(encoding, text, temperature)
    np.testing.assert_allclose(found.numpy(), np.maximum(summed, 0), atol=1e-5, rtol=0)


class Toy(vlscore.Model):
    """Six maps of 8×8 from 8×8 pixels: small, and with nothing to upsample."""

    def __init__(self):
        torch.manual_seed(3)
        layers = [torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten()]
        visual = torch.nn.Sequential(*layers, torch.nn.Linear(384, 5))
        preprocessing = Preprocessing(8, mean=(127.0,) * 3, std=(64.0,) * 3)
        super().__init__("toy", visual, "cpu", preprocessing, Defaults(1.0, 0.5, 0.5))

    def layer_modules(self):
        return {"relu": self.visual[1]}


def test_torchcam_gives_the_same_scores_where_nothing_is_upsampled(chelsea):
    """The definitions coincide for the scores of maps as large as the input.

    Different there: it normalises before it upsamples, without aligning the corners, so smaller maps
    give other masks; it subtracts the score of the whole image, which a softmax does not see; no
    temperature, no cap.
    """
    from torchcam.methods import ScoreCAM

    model, text = Toy(), torch.randn(5, generator=torch.Generator().manual_seed(1))
    s, _ = vlscore.scores(vlscore.encode(model, chelsea, precision="float32"), text)

    def cosine(features):
        return torch.nn.functional.cosine_similarity(features, text, dim=0)

    with ScoreCAM(model.visual, "1") as cam, torch.no_grad():
        model.visual(model.preprocess(Image.open(chelsea))[None])
        theirs = cam._get_weights(None, targets=cosine)[0][0]
    torch.testing.assert_close(theirs.log() - theirs.log().mean(), s - s.mean(), atol=1e-5, rtol=0)


# ── Maps that are constant ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def with_constants(rn, chelsea, monkeypatch):
    """An encoding of four maps, of which 0, 1 and 3 are constant; 0.1 has no exact binary form."""
    maps = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    maps[0, 0], maps[0, 1], maps[0, 3] = 0, 0.1, -3.7
    monkeypatch.setattr(rn, "feature_maps", lambda *_: maps)
    return vlscore.encode(rn, chelsea, precision="float32")


def test_a_constant_map_is_a_mask_of_zeros():
    for value in (0.0, 0.1, -3.7, 1e6, 1e-9):
        assert (vlscore.make_masks(torch.full((1, 3, 3), value), 96) == 0).all()


def test_constant_maps_score_exactly_the_base(with_constants, rn):
    for text in rn.encode_text([CAT, "a dog", "grass", "x"]):
        s, base = vlscore.scores(with_constants, text)
        assert s.isfinite().all()
        assert s[[0, 1, 3]].tolist() == [base.item()] * 3
        assert s[2] != base


def test_constant_maps_are_never_kept(with_constants):
    """With a text that the one varying map beats the base for, it has all the weight."""
    text = with_constants.mask_embeddings[2]
    assert vlscore.weights(with_constants, text).tolist() == [0, 0, 1, 0]


def test_an_image_of_constant_maps_has_no_object(rn, chelsea, monkeypatch):
    """And no batch to encode: OpenVINO cannot run an empty one, nor anything after it."""
    encoder = vlscore.fast_encoder(rn, "float32")

    def refuse_nothing(pixels):
        assert len(pixels) > 0
        return encoder(pixels)

    monkeypatch.setattr(rn, "feature_maps", lambda *_: torch.full((1, 4, 3, 3), 0.1))
    monkeypatch.setattr(vlscore, "fast_encoder", lambda *_: refuse_nothing)
    encoding = vlscore.encode(rn, chelsea, precision="float32")
    assert vlscore.saliency(encoding, rn.encode_text([CAT])[0]) is None


# ── What an encoding does not depend on ──────────────────────────────────────────────────────────


def tensors(encoding):
    return {name: value for name, value in vars(encoding).items() if isinstance(value, torch.Tensor)}


@pytest.fixture(scope="module", params=["rn", "vit"])
def full(request, chelsea):
    """A model, and its encoding with all maps."""
    model = request.getfixturevalue(request.param)
    return model, vlscore.encode(model, chelsea, precision="float32")


def test_two_encodings_are_equal_bit_for_bit(full, chelsea):
    model, first = full
    second = vlscore.encode(model, chelsea, precision="float32")
    for name, value in tensors(first).items():
        assert torch.equal(value, getattr(second, name)), name


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_batch_size_changes_nothing(full, chelsea, batch_size):
    model, encoding = full
    found = vlscore.encode(model, chelsea, precision="float32", batch_size=batch_size)
    for name, value in tensors(encoding).items():
        torch.testing.assert_close(getattr(found, name), value, atol=1e-6, rtol=0)


def test_prompts_change_nothing(full, chelsea):
    """Texts neither enter an encoding nor leave a trace in it, or in the model."""
    model, encoding = full
    before = {name: value.clone() for name, value in tensors(encoding).items()}
    for text in model.encode_text([CAT, "a dog", "nothing at all"]):
        vlscore.saliency(encoding, text, 0.01)
    after = vlscore.encode(model, chelsea, precision="float32")
    for name, value in before.items():
        assert torch.equal(value, getattr(encoding, name)), name
        assert torch.equal(value, getattr(after, name)), name


def test_an_encoding_tells_what_it_is_of(vit, chelsea):
    found = vlscore.encode(vit, chelsea, 0, "key", pca=2, precision="float32", fit="crop")
    assert (found.model, found.layer, found.kind) == (vit.name, "0", "key, pca=2")
    assert (found.input_size, found.temperature, found.threshold) == (64, vit.temperature, vit.threshold)
    assert found.fit == ((451, 300), (75.5, 0.0, 375.5, 300.0))
    assert found.maps.shape == (4, 4, 4)
    for value in tensors(found).values():
        assert value.device.type == "cpu"


def test_an_encoding_names_the_default_layer(full):
    model, encoding = full
    assert encoding.layer == model.layers[-1]
    assert encoding.kind == "activation"
    assert encoding.indices.tolist() == list(range(len(encoding.maps)))


def test_the_image_and_the_base_embedding_are_the_encoder_s(full, chelsea):
    model, encoding = full
    pixels = model.preprocess(Image.open(chelsea))
    expected = model.encode_image(torch.stack([pixels, torch.zeros_like(pixels)]))
    found = torch.stack([encoding.image_embedding, encoding.base_embedding])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_both_signs_of_a_component_are_scored(vit, chelsea):
    """Their masks are each other's negative, up to the epsilon of the normalisation."""
    encoding = vlscore.encode(vit, chelsea, maps="key", pca=2, precision="float32")
    plus, minus = vlscore.make_masks(encoding.maps, 64).unflatten(0, (2, 2)).unbind(1)
    torch.testing.assert_close(plus + minus, torch.ones_like(plus), atol=1e-5, rtol=0)
    embeddings = encoding.mask_embeddings
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3


# ── keep ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [1, 20, 100])
def test_keep_sends_the_greedy_choice_through_the_encoder(full, chelsea, n):
    model, exact = full
    found = vlscore.encode(model, chelsea, keep=n, precision="float32")
    rows = greedy64(exact.maps.numpy(), n)
    assert found.indices.tolist() == rows.tolist()
    assert torch.equal(found.maps, exact.maps)
    torch.testing.assert_close(found.mask_embeddings[rows], exact.mask_embeddings[rows], atol=1e-6, rtol=0)
    assert torch.equal(found.base_embedding, exact.base_embedding)
    assert torch.equal(found.image_embedding, exact.image_embedding)


@pytest.mark.parametrize("n", [1, 20, 100])
def test_the_other_embeddings_are_a_gaussian_process(full, n):
    _, exact = full
    rows = greedy64(exact.maps.numpy(), n)
    known = exact.mask_embeddings.double().numpy()[rows]
    mean, _ = process64(exact.maps.numpy(), rows, known)
    expected = torch.from_numpy(unit64(mean.reshape(len(mean), -1) + known.mean(0))).float()
    expected[rows] = exact.mask_embeddings[rows]
    constant = ~vlscore.varies(exact.maps)
    expected[constant] = exact.mask_embeddings[constant]
    found = vlscore.predict_embeddings(exact.maps, torch.from_numpy(rows), exact.mask_embeddings)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99])
def test_keep_a_fraction_stops_when_that_share_of_the_variance_is_known(full, share):
    _, encoding = full
    A = encoding.maps.numpy()
    energy = A.reshape(len(A), -1).astype(np.float64).var(1)
    rows = vlscore.select_maps(encoding.maps, share).tolist()

    def known(rows):
        return 1 - energy @ process64(A, rows)[1] ** 2 / energy.sum()

    assert rows == greedy64(A, len(rows)).tolist()
    assert known(rows) >= share - 1e-9 or len(rows) == len(A)
    assert len(rows) == 1 or known(greedy64(A, len(rows) - 1).tolist()) < share


def test_several_images_share_batches(full, chelsea):
    """A batch holds masked images of both photos, and each `Encoding` is that of its photo alone."""
    model, _ = full
    seen, image = [], Image.open(chelsea)
    images = [image, image.rotate(90), image.crop((0, 0, 100, 80))]

    def progress(batches):
        for batch in batches:
            seen.append(batch[:, 0].unique().tolist())
            yield batch

    together = vlscore.encode_images(model, images, vlscore.EncodingOptions(keep=20, batch_size=16), progress)
    assert [0, 1] in seen
    for image, found in zip(images, together):
        alone = vlscore.encode(model, image, keep=20)
        assert found.fit == alone.fit
        assert torch.equal(found.indices, alone.indices)
        for name in ("maps", "mask_embeddings", "base_embedding", "image_embedding"):
            torch.testing.assert_close(getattr(found, name), getattr(alone, name), atol=1e-5, rtol=0)


def test_keep_more_than_there_are_is_all(full):
    _, encoding = full
    assert vlscore.select_maps(encoding.maps, 10**6).tolist() == list(range(len(encoding.maps)))


def test_keep_none_is_all():
    assert vlscore.select_maps(torch.zeros(5, 2, 2), None).tolist() == [0, 1, 2, 3, 4]


def test_keep_a_fraction_of_constant_maps_is_not_empty():
    assert len(vlscore.select_maps(torch.ones(5, 2, 2), 0.5)) >= 1


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.0, 1.5, -0.5, math.nan, math.inf, True, "8", [3]])
def test_keep_out_of_range(rn, chelsea, keep):
    with pytest.raises(vlscore.VLScoreError, match="keep"):
        vlscore.encode(rn, chelsea, keep=keep, precision="float32")


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_out_of_range(rn, chelsea, batch_size):
    with pytest.raises(vlscore.VLScoreError, match="batch_size"):
        vlscore.encode(rn, chelsea, batch_size=batch_size, precision="float32")


@pytest.mark.parametrize(
    "wrong", [{"layer": "layer9"}, {"maps": "keys"}, {"fit": "zoom"}, {"precision": "16"}]
)
def test_unknown_options(rn, chelsea, wrong):
    with pytest.raises(vlscore.VLScoreError, match="choose one of"):
        vlscore.encode(rn, chelsea, **{"precision": "float32", **wrong})


# ── Memory ───────────────────────────────────────────────────────────────────────────────────────


def live_tensors():
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


@pytest.mark.parametrize("name", ["rn", "vit"])
def test_100_encodings_leave_no_hook_and_no_memory(request, name, chelsea):
    """Keeping the masked images of every call would take 44 MB in the ResNet's case, 20 in the ViT's."""
    model, image = request.getfixturevalue(name), Image.open(chelsea).resize((60, 40))

    def encode(times):
        for _ in range(times):
            vlscore.encode(model, image, keep=4, precision="float32")

    encode(10)
    before, tensors_before = psutil.Process().memory_info().rss, live_tensors()
    encode(100)
    assert live_tensors() == tensors_before
    assert psutil.Process().memory_info().rss - before < 10e6
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    assert not any(getattr(module, kind) for module in model.visual.modules() for kind in hooks)


def test_one_batch_of_masked_images_at_a_time(rn, chelsea, monkeypatch):
    """So the peak of memory does not grow with the number of maps, here 256."""
    encoded, masked = [], []
    encoder, make_masks = vlscore.fast_encoder(rn, "float32"), masks.make_masks

    def count_images(pixels):
        encoded.append(len(pixels))
        return encoder(pixels)

    def count_masks(maps, size):
        masked.append(len(maps))
        return make_masks(maps, size)

    monkeypatch.setattr(vlscore, "fast_encoder", lambda *_: count_images)
    monkeypatch.setattr(masks, "make_masks", count_masks)
    found = vlscore.encode(rn, chelsea, precision="float32", batch_size=10)
    varying = int(vlscore.varies(found.maps).sum())
    assert sum(masked) == varying > 100
    assert sum(encoded) == varying + 2  # the image and the empty one
    assert max(encoded + masked) <= 10


def test_progress_sees_every_batch(rn, chelsea):
    seen = []

    def progress(batches):
        for batch in batches:
            seen.append(len(batch))
            yield batch

    vlscore.encode(rn, chelsea, keep=25, precision="float32", batch_size=10, progress=progress)
    assert seen == [10, 10, 5]


SENDER = """
import sys, vlscore
vlscore.fast_encoder(vlscore.load_model("lite0-minilm", "cpu"))
print("openvino" in sys.modules, [each for each in sys.modules if "telemetry" in each and "stub" not in each])
"""


def test_openvino_sends_no_usage_statistics(tmp_path):
    """Its import would leave a client's number in the home directory, and send it."""
    environment = os.environ | {"PYTHONPATH": str(Path(vlscore.__file__).parent), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", SENDER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    used, modules = done.stdout.strip().split(" ", 1)
    assert used == "True" and "openvino_telemetry" not in modules
    assert list(tmp_path.iterdir()) == []


RN50 = """
import re, sys, numpy as np, vlscore
from PIL import Image
pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
model = vlscore.load_model(sys.argv[1])
encoding = vlscore.encode(model, Image.fromarray(pixels), keep=64, precision="float32")
status = open("/proc/self/status").read()  # ru_maxrss would begin at what the tests' own process takes
print(*encoding.mask_embeddings.shape, re.search(r"VmHWM:\s+(\d+)", status)[1])
"""


def test_rn50_takes_less_than_3_gigabytes(tmp_path):
    """A process of its own with CLIP RN50, random weights: load, and encode 64 maps."""
    torch.manual_seed(0)
    net = vlscore.import_clip().model.CLIP(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)
    torch.save(net.half().state_dict(), tmp_path / "rn50.pt")
    command = [sys.executable, "-c", RN50, str(tmp_path / "rn50.pt")]
    environment = os.environ | {"PYTHONPATH": str(Path(vlscore.__file__).parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    maps, dimensions, kilobytes = map(int, done.stdout.split())
    assert (maps, dimensions) == (2048, 1024)
    assert kilobytes < 3e6


# ── Embeddings that are not finite ───────────────────────────────────────────────────────────────


def broken(monkeypatch, model, precisions, spoil):
    """Let `spoil` write NaN into the embeddings of the given precisions; returns what was asked for."""
    asked, encoder = [], vlscore.fast_encoder

    def choose(_, precision):
        asked.append(precision)
        run = encoder(model, "float32")
        return (lambda pixels: spoil(run(pixels))) if precision in precisions else run

    monkeypatch.setattr(vlscore, "fast_encoder", choose)
    return asked


def spoil_all(embeddings):
    return embeddings * math.nan


def spoil_masked(embeddings):
    """One masked image of a batch."""
    if len(embeddings) > 2:
        embeddings[1] = math.inf
    return embeddings


def spoil_base(embeddings):
    """The batch of two is the image and the empty image."""
    if len(embeddings) == 2:
        embeddings[1] = math.nan
    return embeddings


def spoil_image(embeddings):
    if len(embeddings) == 2:
        embeddings[0] = math.nan
    return embeddings


SPOILS = [spoil_all, spoil_masked, spoil_base, spoil_image]


@pytest.mark.parametrize("spoil", SPOILS)
def test_bfloat16_that_is_not_finite_falls_back_to_float32(rn, chelsea, monkeypatch, spoil):
    expected = vlscore.encode(rn, chelsea, keep=10, precision="float32")
    asked = broken(monkeypatch, rn, ["bfloat16"], spoil)
    found = vlscore.encode(rn, chelsea, keep=10, precision="bfloat16")
    assert asked == ["bfloat16", "float32"]
    for name, value in tensors(expected).items():
        assert torch.equal(getattr(found, name), value), name


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_float32_that_is_not_finite_is_an_error(rn, chelsea, monkeypatch, precision, spoil):
    broken(monkeypatch, rn, ["float32", "bfloat16"], spoil)
    with pytest.raises(vlscore.VLScoreError, match="not finite"):
        vlscore.encode(rn, chelsea, keep=10, precision=precision)


# ── Files ────────────────────────────────────────────────────────────────────────────────────────


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
    with pytest.raises(vlscore.VLScoreError, match="no saved Encoding") as error:
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


# ── Scores, weights, saliency ────────────────────────────────────────────────────────────────────


@pytest.fixture
def synthetic():
    """Four maps; for the text (1, 0) they score 0.8, 0.6, 0 and -0.6 and the empty image 0.28."""
    return vlscore.Encoding(
        model="none",
        layer="none",
        kind="activation",
        input_size=8,
        fit=vlscore.Fit((8, 8), (0.0, 0.0, 8.0, 8.0)),
        maps=torch.tensor([[[1.0, -5.0]], [[3.0, 2.0]], [[100.0, 100.0]], [[-100.0, 100.0]]]),
        indices=torch.arange(4),
        mask_embeddings=torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]]),
        base_embedding=torch.tensor([0.28, 0.96]),
        image_embedding=torch.tensor([1.0, 0.0]),
        temperature=1.0,
        threshold=0.5,
    )


RIGHT, DOWN = torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1.0])


def test_scores_are_cosines(synthetic):
    s, base = vlscore.scores(synthetic, RIGHT)
    torch.testing.assert_close(s, torch.tensor([0.8, 0.6, 0.0, -0.6]))
    torch.testing.assert_close(base, torch.tensor(0.28))


@pytest.mark.parametrize("length", [1e-3, 7.0, 1e4])
def test_scores_do_not_depend_on_the_text_s_length(synthetic, length):
    expected = vlscore.scores(synthetic, RIGHT)
    torch.testing.assert_close(vlscore.scores(synthetic, RIGHT * length), expected)


def test_scores_are_float32_for_a_half_precision_text(synthetic):
    s, base = vlscore.scores(synthetic, RIGHT.half())
    assert s.dtype == base.dtype == torch.float32


@pytest.mark.parametrize("temperature", [1e-4, 0.01, 0.05, 1.0, 1e4])
def test_weights_sum_to_1_and_are_0_on_capped_maps(synthetic, temperature):
    w = vlscore.weights(synthetic, RIGHT, temperature)
    assert w.sum().item() == pytest.approx(1, abs=1e-6)
    assert w[2:].tolist() == [0, 0]
    assert w[0] > w[1]


def test_weights_are_a_softmax_over_the_kept_maps(synthetic):
    ratio = math.exp((0.8 - 0.6) / 0.1)
    expected = torch.tensor([ratio / (1 + ratio), 1 / (1 + ratio), 0, 0])
    torch.testing.assert_close(vlscore.weights(synthetic, RIGHT, 0.1), expected, atol=1e-6, rtol=0)


def test_a_map_that_equals_the_base_is_capped(synthetic):
    equal = dataclasses.replace(synthetic, base_embedding=synthetic.mask_embeddings[1])
    assert vlscore.weights(equal, RIGHT).tolist() == [1, 0, 0, 0]


def test_saliency_is_the_rectified_sum_of_raw_maps(synthetic):
    """Half of each: (1 + 3)/2, and -1.5, which is cut off."""
    found = vlscore.saliency(synthetic, RIGHT, 1e9)
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0]]))


def test_a_high_temperature_is_the_mean_of_the_kept_maps(full):
    model, encoding = full
    text = model.encode_text([CAT])[0]
    s, base = vlscore.scores(encoding, text)
    expected = encoding.maps[s > base].mean(0).relu()
    torch.testing.assert_close(vlscore.saliency(encoding, text, 1e6), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45, 5e-324])
def test_a_low_temperature_is_the_best_map(full, temperature):
    """To the smallest number there is: every one above 0 is allowed."""
    model, encoding = full
    text = model.encode_text([CAT])[0]
    best = vlscore.scores(encoding, text)[0].argmax()
    found = vlscore.saliency(encoding, text, temperature)
    torch.testing.assert_close(found, encoding.maps[best].relu(), atol=1e-5, rtol=1e-5)


def test_an_absent_object_has_no_weights_and_no_saliency(synthetic):
    """For the text (0, -1) the empty image scores -0.96; raise it to -0.5, above all four."""
    base = torch.tensor([3**0.5 / 2, 0.5])
    absent = dataclasses.replace(synthetic, base_embedding=base)
    assert (vlscore.scores(absent, DOWN)[0] < vlscore.scores(absent, DOWN)[1]).all()
    assert vlscore.weights(absent, DOWN) is None
    assert vlscore.saliency(absent, DOWN) is None
    assert vlscore.find_boxes(None, absent) == []


@pytest.mark.parametrize("temperature", [0, 0.0, -1, -0.05, math.nan, math.inf, -math.inf])
def test_temperature_out_of_range(synthetic, temperature):
    with pytest.raises(vlscore.VLScoreError, match="temperature"):
        vlscore.saliency(synthetic, RIGHT, temperature)


def test_temperature_is_checked_for_an_absent_object_too(synthetic):
    with pytest.raises(vlscore.VLScoreError, match="temperature"):
        vlscore.weights(dataclasses.replace(synthetic, base_embedding=RIGHT), RIGHT, 0)
