"""The method against a reference written out in float64, and against Score-CAM of other packages."""

import copy

import numpy as np
import pytest
import torch
from encoding_helpers import CAT, KINDS, greedy64, process64, unit64
from PIL import Image

import vlscore
from vlscore_lib.models.base import Preprocessing
from vlscore_lib.models.facts import Defaults

# ── The reference: method.md, section 1 ─────────────────────────────────────────────────────────────


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


# ── Score-CAM of other packages ─────────────────────────────────────────────────────────────────────


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


# ── Maps that are constant ──────────────────────────────────────────────────────────────────────────


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

    def refuse_nothing(pixels, maps=None):
        assert len(pixels) > 0
        return encoder(pixels, maps)

    monkeypatch.setattr(rn, "feature_maps", lambda *_: torch.full((1, 4, 3, 3), 0.1))
    monkeypatch.setattr(vlscore, "fast_encoder", lambda *_: refuse_nothing)
    encoding = vlscore.encode(rn, chelsea, precision="float32")
    assert vlscore.saliency(encoding, rn.encode_text([CAT])[0]) is None
