"""What training code saves: wrappers, prefixes, types, several files, other libraries and lengths."""

import argparse
import json
import pathlib
from functools import lru_cache
from itertools import cycle

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vlscore

PROMPT = "an image of a red square."
CLIP_CONFIG = {"embed_dim": 64, "vision_cfg": {"image_size": 64, "layers": 2, "width": 320, "patch_size": 16}}
CLIP_CONFIG["text_cfg"] = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}


@pytest.fixture(params=["rn", "vit"])
def plain(request, checkpoints):
    """A tiny checkpoint's path."""
    return checkpoints[request.param]


@pytest.fixture
def state(checkpoints):
    return torch.load(checkpoints["vit"], weights_only=True)


def picture(size=(96, 64)):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def saliency(path):
    model = vlscore.load_model(str(path), "cpu")
    return vlscore.localize(model, vlscore.encode(model, picture(), keep=16), PROMPT).saliency


plain_saliency = lru_cache(saliency)  # of the checkpoints that all tests share


def save(content, path, **options):
    torch.save(content, path, **options)
    return path


# ── Wrappers and prefixes ────────────────────────────────────────────────────────────────────────────


def prefixed(prefix):
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


def settings(state):
    """Settings and scores beside the weights, of types that `torch.load` refuses."""
    return {
        "model": state,
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), names={"a", "b"}),
        "best": np.float64(0.5),
        "history": np.arange(3),
    }


def optimizer(state):
    weights = [torch.nn.Parameter(value.clone()) for value in state.values() if value.is_floating_point()]
    adam = torch.optim.AdamW(weights)
    sum(weight.sum() for weight in weights).backward()
    adam.step()
    facts = {"epoch": 3, "optimizer": adam.state_dict(), "scaler": {"scale": 2.0}, "name": "run"}
    return facts | {"state_dict": prefixed("module.")(state)}


def average(state):
    return {"model_ema": {name: value + 1 for name, value in state.items()}, "model": state}


def compiled_inside(state):
    return {name.replace("visual.", "visual._orig_mod.", 1): value for name, value in state.items()}


def head_beside(state):
    return {"state_dict": prefixed("clip.")(state) | {"head.weight": torch.zeros(3, 64)}}


def parameters(state):
    return {name: torch.nn.Parameter(v) if v.is_floating_point() else v for name, v in state.items()}


WRAPPERS = {
    "model": lambda state: {"model": state},
    "state_dict": lambda state: {"state_dict": state},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state, "loss": 0.5},
    "a key of one's own": lambda state: {"my_best_weights": state},
    "two deep": lambda state: {"checkpoint": {"model": state}},
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "model.": prefixed("model."),
    "clip.": prefixed("clip."),
    "module._orig_mod.model.": prefixed("module._orig_mod.model."),
    "compiled inside": compiled_inside,
    "a head beside": head_beside,
    "parameters": parameters,
    "optimizer": optimizer,
    "settings": settings,
    "average": average,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_checkpoint_gives_the_same_saliency_bit_for_bit(plain, tmp_path, wrap):
    state = torch.load(plain, weights_only=True)
    assert torch.equal(saliency(save(wrap(state), tmp_path / "wrapped.pt")), plain_saliency(plain))


def test_the_old_format_of_torch_is_read_too(plain, tmp_path):
    content = {"epoch": 1, "state_dict": prefixed("module.")(torch.load(plain, weights_only=True))}
    old = save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(saliency(old), plain_saliency(plain))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_computed_with_in_float32(plain, tmp_path, dtype):
    state = torch.load(plain, weights_only=True)
    typed = {name: v.to(dtype) if v.is_floating_point() else v for name, v in state.items()}
    exact = {name: v.float() if v.is_floating_point() else v for name, v in typed.items()}
    expected = saliency(save(exact, tmp_path / "exact.pt"))
    for write, ending in ((save, "pt"), (save_file, "safetensors")):
        write(typed, tmp_path / f"typed.{ending}")
        assert torch.equal(saliency(tmp_path / f"typed.{ending}"), expected)
    if dtype == torch.float64:
        assert torch.equal(expected, plain_saliency(plain))


# ── Safetensors ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sharded(plain, tmp_path):
    """A folder with two safetensors files and their index."""
    names = sorted(state := prefixed("module.")(torch.load(plain, weights_only=True)))
    weight_map = {}
    for number, share in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: state[name] for name in share}, tmp_path / file)
        weight_map |= dict.fromkeys(share, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_a_safetensors_file_gives_the_same(plain, tmp_path):
    save_file(torch.load(plain, weights_only=True), tmp_path / "clip.safetensors", {"format": "pt"})
    assert torch.equal(saliency(tmp_path / "clip.safetensors"), plain_saliency(plain))


@pytest.mark.parametrize("asked", ["model.safetensors.index.json", ""])
def test_an_index_of_several_files_gives_the_same(plain, sharded, asked):
    assert torch.equal(saliency(sharded / asked), plain_saliency(plain))


def missing_file(folder, index):
    (folder / "model-00002-of-00002.safetensors").unlink()
    return "model-00002-of-00002.safetensors, which it names, is missing"


def missing_tensor(folder, index):
    index["weight_map"]["visual.extra"] = "model-00001-of-00002.safetensors"
    return "model-00001-of-00002.safetensors lacks visual.extra"


def outside(folder, index):
    index["weight_map"]["visual.extra"] = "../other.safetensors"
    return "is not a file of weights next to it"


def no_map(folder, index):
    index.clear()
    return "it has no weight_map"


@pytest.mark.parametrize("spoil", [missing_file, missing_tensor, outside, no_map])
def test_an_index_that_is_wrong_is_told(sharded, spoil):
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    expected = spoil(sharded, index)
    file.write_text(json.dumps(index))
    with pytest.raises(vlscore.VLScoreError, match=expected):
        vlscore.load_model(str(file))


# ── Context length, heads, activation ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("length", [16, 32, 248])
def test_a_checkpoint_s_own_context_length_is_used(state, tmp_path, length):
    positions = torch.randn(length, 64)
    model = vlscore.load_model(str(save(state | {"positional_embedding": positions}, tmp_path / "a.pt")))
    assert model.context_length == length
    longest = " ".join(["cat"] * (length - 2))
    assert model.encode_text([longest]).isfinite().all()
    with pytest.raises(vlscore.VLScoreError, match=f"{length + 1} tokens, at most {length} fit"):
        model.encode_text([f"{longest} cat"])


def test_a_shorter_context_changes_no_short_prompt(state, checkpoints, tmp_path):
    short = state | {"positional_embedding": state["positional_embedding"][:32].clone()}
    assert torch.allclose(
        saliency(save(short, tmp_path / "a.pt")), plain_saliency(checkpoints["vit"]), atol=1e-6
    )


def open_clip_model(folder, head_width, quick_gelu=False):
    """A random model of open_clip, and its checkpoint."""
    vision = CLIP_CONFIG["vision_cfg"] | {"head_width": head_width}
    config = CLIP_CONFIG | {"vision_cfg": vision, "quick_gelu": quick_gelu}
    torch.manual_seed(0)
    model = open_clip.CLIP(**{name: config[name] for name in ("embed_dim", "vision_cfg", "text_cfg")})
    if quick_gelu:
        facts = {name: config[name] for name in ("embed_dim", "vision_cfg", "text_cfg")}
        model = open_clip.CLIP(**facts, quick_gelu=True)
    for value in model.parameters():
        torch.nn.init.normal_(value, 0, 0.2)
    model.eval()
    return model, config, save({"epoch": 1, "state_dict": model.state_dict()}, folder / "clip.pt")


def cosines(model, other):
    """Cosines of image and text embeddings of the same weights in open_clip and here."""
    tokens = open_clip.get_tokenizer("ViT-B-32")([PROMPT])
    pixels = model.preprocess(picture())[None]
    with torch.no_grad():
        theirs = other.encode_image(pixels, normalize=True), other.encode_text(tokens, normalize=True)
    ours = model.encode_image(pixels), model.encode_text([PROMPT])
    return [(a * b).sum().item() for a, b in zip(ours, theirs)]


@pytest.mark.parametrize("head_width", [64, 80, 160])
@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("place", ["open_clip_config.json", "clip.json"])
def test_heads_and_activation_are_read_from_open_clip_s_config(tmp_path, head_width, quick_gelu, place):
    other, config, path = open_clip_model(tmp_path, head_width, quick_gelu)
    is_whole = place == "open_clip_config.json"
    facts = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    (tmp_path / place).write_text(json.dumps(facts if is_whole else config))
    model = vlscore.load_model(str(path))
    assert min(cosines(model, other)) > 0.99999
    assert (model.preprocessing.mean == (127.5, 127.5, 127.5)) == is_whole


@pytest.mark.parametrize("width", [320, 160, 200, 1280, 1408, 1664])
def test_heads_that_nothing_tells_are_refused(tmp_path, width):
    """Published ViTs of such widths have heads of 80, 88 and 104 channels."""
    vision = CLIP_CONFIG["vision_cfg"] | {"width": width, "layers": 1, "head_width": width // 4}
    with torch.device("meta"):
        shapes = open_clip.CLIP(64, vision, CLIP_CONFIG["text_cfg"]).state_dict()
    # Zeros will do: it is the shapes that do not tell.
    path = save({name: torch.zeros(each.shape) for name, each in shapes.items()}, tmp_path / "clip.pt")
    with pytest.raises(vlscore.VLScoreError, match=r"put its open_clip_config\.json"):
        vlscore.load_model(str(path))


@pytest.mark.parametrize("name", ["", ":gelu", ":quick_gelu"])
def test_the_activation_is_an_option_and_said(checkpoints, capsys, name):
    model = vlscore.load_model(f"{checkpoints['vit']}{name}")
    assert model.name == f"{checkpoints['vit']}{name}"
    said = capsys.readouterr().err
    assert said == "" if name else f"{checkpoints['vit']}:gelu" in said and said.count("\n") == 1
    layer = model.clip.transformer.resblocks[0].mlp.gelu
    x = torch.linspace(-3, 3, 50)
    gelu, quick = x * (1 + torch.erf(x / 2**0.5)) / 2, x * torch.sigmoid(1.702 * x)
    assert torch.allclose(layer(x), gelu if name == ":gelu" else quick, atol=1e-6)
    assert not torch.allclose(gelu, quick, atol=1e-3)


def test_a_configuration_tells_the_activation_without_a_word(state, tmp_path, capsys):
    path = save(state, tmp_path / "clip.pt")
    (tmp_path / "clip.json").write_text(json.dumps(CLIP_CONFIG | {"vision_cfg": {"head_width": 64}}))
    model = vlscore.load_model(str(path))
    assert isinstance(model.clip.visual.transformer.resblocks[1].mlp.gelu, torch.nn.GELU)
    assert capsys.readouterr().err == ""
    asked = vlscore.load_model(f"{path}:quick_gelu")
    assert not isinstance(asked.clip.visual.transformer.resblocks[1].mlp.gelu, torch.nn.GELU)


@pytest.mark.parametrize(
    "tower", [{"pool_type": "avg"}, {"no_ln_pre": True}, {"attentional_pool": True}, {"head_width": 60}]
)
def test_a_configuration_of_another_architecture_is_refused(state, tmp_path, tower):
    path = save(state, tmp_path / "clip.pt")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": tower}}))
    with pytest.raises(vlscore.VLScoreError, match=r"clip\.pt|open_clip_config\.json"):
        vlscore.load_model(str(path))


@pytest.mark.parametrize("content", ['{"architectures": ["BertModel"]}', "[1, 2]", "{}"])
def test_a_configuration_of_something_else_changes_nothing(state, checkpoints, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert torch.equal(saliency(save(state, tmp_path / "clip.pt")), plain_saliency(checkpoints["vit"]))


def test_a_broken_configuration_is_named(state, tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(vlscore.VLScoreError, match=r"config\.json cannot be used for the weights beside it"):
        vlscore.load_model(str(save(state, tmp_path / "clip.pt")))


# ── Hugging Face ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """Random CLIPModels, saved by transformers: (model, folder) by activation."""
    transformers = pytest.importorskip("transformers")
    common = {"num_hidden_layers": 2, "intermediate_size": 96}
    found = {}
    for activation in ("quick_gelu", "gelu"):
        vision = {"hidden_size": 64, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}
        text = {"hidden_size": 48, "num_attention_heads": 3, "eos_token_id": 49407, "bos_token_id": 49406}
        config = transformers.CLIPConfig(
            vision_config=common | vision | {"hidden_act": activation},
            text_config=common | text | {"hidden_act": activation},
            projection_dim=32,
        )
        torch.manual_seed(0)
        model = transformers.CLIPModel(config).eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, 0, 0.3)
        found[activation] = model, tmp_path_factory.mktemp(activation)
        model.save_pretrained(found[activation][1])
    return found


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("asked", ["", "model.safetensors"])
def test_hugging_face_s_clip_is_loaded_by_renaming(hugging_face, activation, asked, capsys):
    other, folder = hugging_face[activation]
    model = vlscore.load_model(str(folder / asked), "cpu")
    assert capsys.readouterr().err == ""  # its config.json tells the activation
    pixels, tokens = model.preprocess(picture())[None], vlscore.import_clip().tokenize([PROMPT])
    with torch.no_grad():
        found = other(input_ids=tokens, pixel_values=pixels)
    assert torch.allclose(model.encode_image(pixels), found.image_embeds, atol=1e-5)
    assert torch.allclose(model.encode_text([PROMPT]), found.text_embeds, atol=1e-5)
    assert vlscore.localize(model, vlscore.encode(model, picture()), PROMPT).saliency.isfinite().all()


def test_a_wrapped_hugging_face_checkpoint_is_loaded(hugging_face, tmp_path):
    other, folder = hugging_face["quick_gelu"]
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    path = save({"model": prefixed("module.clip.")(other.state_dict())}, tmp_path / "run.ckpt")
    assert torch.equal(saliency(path), saliency(folder))


# ── What is refused ──────────────────────────────────────────────────────────────────────────────────


def test_a_value_that_is_not_finite_in_any_tensor_is_refused_by_name(plain, tmp_path):
    """NaN and infinity in turns, since each tensor takes reading a whole file."""
    state = torch.load(plain, weights_only=True)
    floating = [name for name, tensor in state.items() if tensor.is_floating_point()]
    assert len(floating) > 30
    for name, value in zip(floating, cycle([float("nan"), -float("inf")])):
        spoiled = state[name].clone()
        spoiled.view(-1)[-1] = value
        with pytest.raises(vlscore.VLScoreError) as error:
            vlscore.load_model(str(save({"model": state | {name: spoiled}}, tmp_path / "a.pt")))
        assert f"1 of the {spoiled.numel()} values of {name} " in str(error.value)


def test_a_double_too_large_for_float32_is_refused(state, tmp_path):
    large = state["text_projection"].double()
    large[0, 0] = 1e300
    with pytest.raises(vlscore.VLScoreError, match="values of text_projection are not finite"):
        vlscore.load_model(str(save(state | {"text_projection": large}, tmp_path / "a.pt")))


class Code:
    """Unpickling this makes a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return pathlib.os.mkdir, (self.target,)


def test_code_beside_good_weights_is_refused_and_not_run(state, tmp_path):
    path = save({"state_dict": state, "hook": Code(tmp_path / "made")}, tmp_path / "a.pt")
    with pytest.raises(vlscore.VLScoreError, match=r"it refers to posix\.mkdir"):
        vlscore.load_model(str(path))
    assert not (tmp_path / "made").exists()


def two_models(state):
    return {"student": state, "teacher": dict(state)}


def another_vocabulary(state):
    return state | {"token_embedding.weight": torch.zeros(32000, 64)}


def endless_positions(state):
    return state | {"positional_embedding": torch.zeros(77 * 64, 64)}


def in_itself(state):
    content = {"epoch": 1, "weights": {}}
    content["weights"]["all"] = content
    return content


REFUSED = {
    two_models: "several models, student and teacher",
    another_vocabulary: "its vocabulary has 32000 tokens",
    endless_positions: "4928 positions",
    in_itself: "no tensor named visual.conv1.weight",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_cannot_be_loaded_is_told_why(state, tmp_path, change):
    with pytest.raises(vlscore.VLScoreError, match=REFUSED[change]):
        vlscore.load_model(str(save(change(state), tmp_path / "a.pt")))
