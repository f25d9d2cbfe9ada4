"""Models of open_clip: tiny ones of each kind, against its own code and formulas written out."""

import copy

import families
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import vlscore
from vlscore_lib.models import openclip
from vlscore_lib.models.openclip_encoders import choose_encoder

TRANSFORMERS = [kind for kind in families.KINDS if kind not in ("resnet", "convnext")]


@pytest.fixture(scope="module", params=families.KINDS)
def model(request):
    return families.make_model(request.param)


@pytest.fixture(scope="module", params=TRANSFORMERS)
def transformer(request):
    return families.make_model(request.param)


@pytest.fixture(scope="module")
def photo(chelsea):
    with Image.open(chelsea) as image:
        return image.convert("RGB")


def noise(model, count=2):
    return torch.randn(count, 3, model.input_size, model.input_size, generator=torch.manual_seed(0))


# ── Embeddings ───────────────────────────────────────────────────────────────────────────────────


def test_images_are_embedded_as_by_open_clip(model, photo):
    """On a real photo, with open_clip's own preprocessing."""
    transform = open_clip.image_transform(model.input_size, False, (0.5,) * 3, (0.5,) * 3)
    with torch.inference_mode():
        expected = model.clip.encode_image(transform(photo)[None])
    found = model.encode_image(model.preprocess(photo, "crop")[None])
    assert F.cosine_similarity(found, expected).item() >= 0.99999


def test_texts_are_embedded_as_by_open_clip(model):
    texts = ["an image of a cat.", "a red car on a long road", "Ünïcödé 🐱"]
    with torch.inference_mode():
        expected = model.clip.encode_text(model.tokenizer(texts))
    assert F.cosine_similarity(model.encode_text(texts), expected).min() >= 0.99999


def test_too_many_tokens_are_refused(model):
    with pytest.raises(vlscore.VLScoreError, match=f"at most {model.context_length}|{model.context_length}"):
        model.encode_text(["word " * 100])


def test_temperature_is_one_over_the_logit_scale(model):
    assert model.temperature == pytest.approx(1 / model.clip.logit_scale.exp().item(), rel=1e-3)
    assert model.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


def test_siglip_has_a_bias():
    assert families.make_model("siglip").logit_bias == -10
    assert families.make_model("vit").logit_bias is None


# ── Maps ─────────────────────────────────────────────────────────────────────────────────────────


def record_attention(model, monkeypatch, pixels) -> list:
    """(q, k, v) of each attention, as the library hands them to PyTorch: after norms and rotation."""
    seen, attend = [], F.scaled_dot_product_attention

    def record(q, k, v, *rest, **options):
        seen.append((q.detach(), k.detach(), v.detach()))
        return attend(q, k, v, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    model.visual(pixels.clone().requires_grad_())  # with gradients, PyTorch takes no shortcut
    return seen


def grid(tokens, prefix):
    """Patches (B, n, d) of 4×4 -> (B, d, 4, 4), by a loop."""
    maps = torch.zeros(len(tokens), tokens.shape[2], 4, 4)
    for y in range(4):
        for x in range(4):
            maps[:, :, y, x] = tokens[:, prefix + 4 * y + x]
    return maps


@pytest.mark.parametrize("layer", ["0", "2"])
def test_attention_and_values_are_the_library_s(transformer, monkeypatch, layer):
    pixels = noise(transformer)
    q, k, v = record_attention(transformer, monkeypatch, pixels)[int(layer)]
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)  # (B, heads, N, N)
    of_class = weights[:, :, 0] if transformer.has_class_token else weights.mean(2)
    tokens = {"attention": of_class.transpose(1, 2), "value": v.transpose(1, 2).flatten(2)}
    for maps, expected in tokens.items():
        found = transformer.feature_maps(pixels, layer, maps)
        torch.testing.assert_close(found, grid(expected, transformer.prefix), atol=1e-5, rtol=1e-4)


def test_queries_and_keys_are_the_projections_before_rotation(transformer, monkeypatch):
    """By slices of the weights, written out; the norms of heads by themselves."""
    block, pixels = transformer.blocks[1], noise(transformer)
    attention = block.attn
    with vlscore.tapped(attention) as seen:
        transformer.visual(pixels)
    x = seen.input
    if hasattr(attention, "in_proj_weight"):
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
    elif attention.qkv is not None:
        weight, bias = attention.qkv.weight, attention.qkv.bias
        if bias is None:
            bias = torch.cat([attention.q_bias, torch.zeros(64), attention.v_bias])
    else:
        weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight])
        bias = torch.cat([attention.q_proj.bias, torch.zeros(64)])
    for n, maps in enumerate(("query", "key")):
        rows = slice(64 * n, 64 * (n + 1))
        expected = torch.einsum("bnd,ed->bne", x, weight[rows]) + bias[rows]
        norm = getattr(attention, f"ln_{maps[0]}", getattr(attention, f"{maps[0]}_norm", None))
        if isinstance(norm, torch.nn.LayerNorm):
            heads = expected.unflatten(2, (2, 32))
            centred = heads - heads.mean(-1, keepdim=True)
            scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
            expected = (scaled * norm.weight + norm.bias).flatten(2)
        found = transformer.feature_maps(pixels, "1", maps)
        torch.testing.assert_close(found, grid(expected, transformer.prefix), atol=1e-5, rtol=1e-4)


def test_activation_maps_are_the_library_s_intermediates(model):
    pixels = noise(model)
    with torch.inference_mode():
        found = model.clip.visual.forward_intermediates(pixels, output_fmt="NCHW")["image_intermediates"]
    layers = model.layers if model.is_vit else [name for name in model.layers if name.count(".") < 2]
    if type(model).__name__ == "OpenClipResNet":
        layers, found = ["layer1", "layer2", "layer3", "layer4"], found[-4:]
    for layer, expected in zip(layers, found, strict=True):
        torch.testing.assert_close(model.feature_maps(pixels, layer), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["siglip", "registers", "eva", "eva-fused"])
def test_larger_pixels_are_read_as_by_a_network_set_to_them(kind):
    """timm's own `set_input_size` on a copy, at twice the side."""
    model = families.make_model(kind)
    larger = copy.deepcopy(model.clip.visual.trunk)
    larger.set_input_size((128, 128))
    pixels = torch.randn(1, 3, 128, 128, generator=torch.manual_seed(0))
    with torch.inference_mode():
        expected = larger.forward_intermediates(pixels, intermediates_only=True)[1]
    (found,) = model.read_layers(pixels, [("1", "activation")])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    before = noise(model)
    torch.testing.assert_close(model.encode_image(before), families.make_model(kind).encode_image(before))


@pytest.mark.parametrize("kind", ["vit", "mean", "coca"])
def test_larger_pixels_have_interpolated_positions(kind):
    model = families.make_model(kind)
    larger = copy.deepcopy(model.clip.visual)
    positions = larger.positional_embedding.data
    patches = positions[1:].T.reshape(1, 64, 4, 4)
    patches = F.interpolate(patches, (8, 8), mode="bicubic", align_corners=False).flatten(2)[0].T
    larger.positional_embedding = torch.nn.Parameter(torch.cat([positions[:1], patches]))
    pixels = torch.randn(1, 3, 128, 128, generator=torch.manual_seed(0))
    with torch.inference_mode():
        expected = larger.forward_intermediates(pixels)["image_intermediates"][1]
    (found,) = model.read_layers(pixels, [("1", "activation")])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_cell_is_embedded_as_an_image_of_nothing_else(model):
    """The network's own forward pass, all positions of whose last layer are replaced by the cell."""
    pixels, last = noise(model, 1), model.layer_modules()[model.layers[-1]]
    maps = model.feature_maps(pixels)[0]
    found = model.cell_embeddings(maps)
    if type(model).__name__ == "OpenClipResNet":
        attention = model.clip.visual.attnpool  # MaskCLIP: values and output, without query and key
        expected = attention.c_proj(attention.v_proj(maps[:, 1, 2]))
    else:

        def replace(_, inputs, output):
            cell = maps[:, 1, 2]
            return cell.expand_as(output) if model.is_vit else cell[None, :, None, None].expand_as(output)

        with last.register_forward_hook(replace):
            expected = model.visual(pixels)[0]
    torch.testing.assert_close(found[:, 1, 2], F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)


# ── The method ───────────────────────────────────────────────────────────────────────────────────


def exact_saliency(net, model, pixels, text, temperature):
    """VL-Score in float64, written out: masks, scores, cap, softmax, sum."""
    visual = net.visual
    maps = visual.forward_intermediates(pixels[None], output_fmt="NCHW")["image_intermediates"][-1][0]
    size, h = pixels.shape[-1], maps.shape[-1]
    at = torch.arange(size, dtype=torch.float64) * (h - 1) / (size - 1)  # corners aligned
    cells = torch.arange(h, dtype=torch.float64)
    ramp = (1 - (at[:, None] - cells).abs()).clamp(min=0)  # (size, h): bilinear interpolation
    up = ramp @ maps @ ramp.T  # (C, size, size)
    low, high = up.amin((1, 2), keepdim=True), up.amax((1, 2), keepdim=True)
    masked = pixels * ((up - low) / (high - low + 1e-7))[:, None]
    text = text / text.norm()
    with torch.inference_mode():
        every = torch.cat([masked, torch.zeros_like(pixels)[None]])
        embeddings = model.project(torch.cat([model.visual(each) for each in every.split(64)]))
        s = (embeddings / embeddings.norm(dim=-1, keepdim=True)) @ text
    # A map of zeros masks everything: the base image again, whatever its row's rounding.
    kept = (s[:-1] > s[-1]) & (high > low).flatten()
    assert kept.any()
    weights = torch.where(kept, (s[:-1] / temperature).exp(), 0)
    return torch.einsum("c,chw->hw", weights / weights.sum(), maps).clamp(min=0)


def test_exact_saliency_equals_a_reference_in_float64(model, photo):
    encoding = vlscore.encode(model, photo, precision="float32")
    exact = copy.deepcopy(model)
    exact.clip.double(), exact.visual.double()
    pixels = model.preprocess(photo).double()
    text = encoding.image_embedding - encoding.base_embedding  # a direction that some maps fit better
    expected = exact_saliency(exact.clip, exact, pixels, text.double(), 0.05)
    found = vlscore.saliency(encoding, text, 0.05)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize(
    "options", [{}, {"keep": 8}, {"refined": True}, {"refined": True, "keep": 8}], ids=str
)
def test_every_kind_localizes(model, photo, options):
    encoding = vlscore.encode(model, photo, precision="float32", **options)
    text = F.normalize(encoding.image_embedding - encoding.base_embedding, dim=0)
    saliency = vlscore.saliency(encoding, text, model.temperature)
    assert saliency.isfinite().all()
    for x0, y0, x1, y1 in vlscore.find_boxes(saliency, encoding):
        assert 0 <= x0 < x1 <= 451 and 0 <= y0 < y1 <= 300


def test_openvino_compiles_every_kind(model, capsys):
    pixels = noise(model, 3)
    found = vlscore.fast_encoder(model, "float32")(pixels)
    torch.testing.assert_close(found, model.encode_image(pixels), atol=1e-5, rtol=1e-4)
    assert "OpenVINO" not in capsys.readouterr().err


# ── Names and files ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A tiny architecture by a name of open_clip's; the path of weights for it."""
    folder = tmp_path_factory.mktemp("configs")
    file = folder / "tiny-test.json"
    families.edit_json(file, embed_dim=64, vision_cfg=families.VIT, text_cfg=families.TEXT)
    open_clip.add_model_config(file)
    return families.disturb(open_clip.create_model("tiny-test", load_weights=False)).state_dict()


def load(path):
    return vlscore.load_model(f"open_clip:tiny-test/{path}", "cpu")


def expected_embedding(config, model):
    net = open_clip.create_model("tiny-test", load_weights=False).eval()
    net.load_state_dict(config)
    with torch.inference_mode():
        return F.normalize(net.encode_image(noise(model)), dim=-1)


@pytest.mark.parametrize("key", ["", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "clip."])
def test_weights_are_found_under_any_key_and_prefix(config, tmp_path, key, prefix):
    state = {f"{prefix}{name}": value for name, value in config.items()}
    path = tmp_path / "weights.pt"
    torch.save({key: state, "epoch": 3, "optimizer": {"lr": torch.ones(1)}} if key else state, path)
    model = load(path)
    torch.testing.assert_close(model.encode_image(noise(model)), expected_embedding(config, model))


def test_a_folder_with_safetensors_and_its_configuration(config, tmp_path):
    save_file(
        {name: value.half() for name, value in config.items()}, tmp_path / "open_clip_model.safetensors"
    )
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear"}
    families.edit_json(
        tmp_path / "open_clip_config.json", model_cfg={"quick_gelu": True}, preprocess_cfg=preprocess
    )
    model = load(tmp_path)
    assert model.preprocessing.mean == pytest.approx((25.5, 51, 76.5))
    assert model.preprocessing.std == pytest.approx((127.5, 153, 178.5))
    assert model.preprocessing.interpolation == "bilinear"
    assert type(model.blocks[0].mlp.gelu).__name__ == "QuickGELU"


def test_siglip_s_weights_in_a_file_have_siglip_s_preprocessing():
    facts = openclip.read_facts(open_clip, "ViT-B-16-SigLIP", openclip.Path("nowhere"))
    found = openclip.read_preprocessing(facts, (224, 224))
    assert (found.input_size, found.mean, found.std) == (224, families.HALF, families.HALF)


def test_a_relative_path_is_made_absolute(config, tmp_path, monkeypatch):
    torch.save(config, tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    name = vlscore.absolute_name("open_clip:tiny-test/weights.pt")
    assert name == f"open_clip:tiny-test/{tmp_path}/weights.pt"
    assert vlscore.load_model(name, "cpu").name == name
    assert vlscore.absolute_name("open_clip:ViT-B-16/openai") == "open_clip:ViT-B-16/openai"


def refuse(name) -> str:
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.load_model(name, "cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name, words",
    [
        ("open_clip:ViT-B-61/openai", "ViT-B-61.*ViT-B-16"),
        ("open_clip:vit-b-16/openai", "no architecture.*ViT-B-16"),
        ("open_clip:ViT-B-16/laion2b", "laion2b.*laion2b_s34b_b88k"),
        ("open_clip:ViT-B-16", "a tag or a file to name.*openai"),
        ("open_clip:", "no architecture ''"),
        ("open_clip:tiny-test/x", "not published"),
    ],
)
def test_an_unknown_name_gives_the_nearest(config, name, words):
    import re

    assert re.search(words, refuse(name))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", ["visual.conv1.weight", "text_projection", "logit_scale"])
def test_weights_that_are_not_finite_are_refused_with_their_name(config, tmp_path, name, value):
    state = {key: each.clone() for key, each in config.items()}
    state[name].view(-1)[0] = value
    torch.save(state, tmp_path / "weights.pt")
    assert f"of {name} are not finite" in refuse(f"open_clip:tiny-test/{tmp_path}/weights.pt")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state.pop("visual.proj"), "lacks 1 tensors, visual.proj"),
        (lambda state: state.update(further=torch.ones(2)), "has beside it 1 tensors, further"),
        (lambda state: state.update({"visual.proj": torch.ones(3, 3)}), "size mismatch for visual.proj"),
        (lambda state: state.clear(), "does not fit"),
    ],
)
def test_weights_of_something_else_are_refused(config, tmp_path, change, words):
    state = dict(config)
    change(state)
    torch.save(state, tmp_path / "weights.pt")
    assert words in refuse(f"open_clip:tiny-test/{tmp_path}/weights.pt")


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No network, and an empty cache."""
    import huggingface_hub
    from open_clip import pretrained

    def fail(*_, **__):
        raise OSError("no network here\nsecond line")

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(pretrained, "download_pretrained_from_url", fail)
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["ViT-B-16/openai", "ViT-B-16-SigLIP/webli", "ViT-B-32/laion2b_e16"])
def test_no_network_names_the_cache_to_fill(no_network, name):
    message = refuse(f"open_clip:{name}")
    assert f"weights of {name} cannot be downloaded" in message
    assert str(no_network) in message


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_in_the_cache_need_no_network(config, no_network, monkeypatch, form):
    """A tag's repository as huggingface_hub keeps it; safetensors before a pickle."""
    import huggingface_hub

    folder = no_network / "snapshot"
    folder.mkdir(parents=True)
    if form == "safetensors":
        save_file(config, folder / "open_clip_model.safetensors")
    torch.save(config, folder / "open_clip_pytorch_model.bin")

    def from_cache(repository, allow_patterns, local_files_only=False):
        assert local_files_only and repository == "owner/tiny"
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", from_cache)
    facts = {"hf_hub": "owner/tiny/", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    source = openclip.Source("tiny-test", None, facts, "tag")
    assert openclip.download_weights(open_clip, source).suffix == f".{form}"


def test_a_tokenizer_that_cannot_be_downloaded_is_told_when_a_text_comes(monkeypatch, no_network):
    def fail(*_, **__):
        raise OSError("no network here\nsecond line")

    monkeypatch.setattr(open_clip.tokenizer.HFTokenizer, "__init__", fail)
    with pytest.raises(vlscore.VLScoreError, match=r"timm/ViT-B-16-SigLIP.*no network here.*tokenizer\.json"):
        openclip.make_tokenizer(open_clip, "ViT-B-16-SigLIP", no_network)


def test_a_tokenizer_beside_the_weights_is_used(tmp_path):
    """BERT's, which MiniLM's package has, in the place of SigLIP's."""
    families.save_hf(families.make_hf_net("clip"), tmp_path)
    found = openclip.make_tokenizer(open_clip, "ViT-B-16-SigLIP", tmp_path)
    assert found(["a cat"]).shape == (1, 64)
    model = families.make_model("siglip")
    model.make_tokenizer = lambda: found
    assert model.count_tokens("a cat") == 4  # with BERT's first and last
    assert model.context_length == 64


# ── One network in several libraries ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["rn", "vit"])
def test_openai_s_networks_have_the_same_saliency(request, name, photo):
    own = request.getfixturevalue(name)
    vision = families.VIT | {"width": 128, "layers": 2, "head_width": 64}
    if name == "rn":
        vision = {"image_size": 96, "layers": (1, 1, 1, 1), "width": 8}
    text = families.TEXT | {"heads": 1}
    net = open_clip.CLIP(64, vision, text, quick_gelu=True)
    net.load_state_dict(own.clip.state_dict())
    tokenizer = open_clip.get_tokenizer("RN50")
    other = choose_encoder(net.visual)("other", net, "cpu", own.preprocessing, lambda: tokenizer)
    for options in ({}, {"refined": True}, {"maps": "attention"}, {"maps": "key"}):
        if name == "rn" and "maps" in options:
            continue
        found = []
        for model in (own, other):
            encoding = vlscore.encode(model, photo, precision="float32", **options)
            text = model.encode_text(["an image of a cat."])[0]
            saliency = vlscore.saliency(encoding, text, 0.05)
            found.append(encoding.mask_embeddings if saliency is None else saliency)
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
