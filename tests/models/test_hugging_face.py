"""Models of Hugging Face's transformers: tiny ones of each type, against its own code."""

import copy
import re
from dataclasses import replace

import families
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

import vlscore
from vlscore_lib.models import hub

TEXTS = ["an image of a cat.", "a red car on a long road"]


@pytest.fixture(scope="module", params=families.HF_KINDS)
def folder(request, tmp_path_factory):
    """The folder of a tiny model; its name is the type."""
    folder = tmp_path_factory.mktemp("hub") / request.param
    families.save_hf(families.make_hf_net(request.param), folder, with_tokenizer=request.param != "clip")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return vlscore.load_model(f"hf:{folder}", "cpu")


@pytest.fixture
def transformer(model):
    if not model.is_vit:
        pytest.skip("a CNN")
    return model


@pytest.fixture(scope="module")
def photo(chelsea):
    with Image.open(chelsea) as image:
        return image.convert("RGB")


def noise(model, count=2):
    return torch.randn(count, 3, model.input_size, model.input_size, generator=torch.manual_seed(0))


def pooled(found):
    return getattr(found, "pooler_output", found)


# ── Embeddings ───────────────────────────────────────────────────────────────────────────────────


def test_images_are_embedded_as_by_transformers(model, photo, folder):
    """On a real photo, with transformers' own preprocessing."""
    if folder.name == "clip":
        size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
        inputs = transformers.CLIPImageProcessorPil(**size)(photo, return_tensors="pt")
        found = model.preprocess(photo, "crop")
    elif folder.name == "siglip":
        processor = transformers.SiglipImageProcessorPil(size={"height": 64, "width": 64})
        inputs, found = processor(photo, return_tensors="pt"), model.preprocess(photo)
    elif folder.name == "align":
        square = {"size": {"height": 96, "width": 96}, "resample": 2, "do_center_crop": False}
        scaling = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}
        processor = transformers.EfficientNetImageProcessorPil(**square, **scaling)
        inputs, found = processor(photo, return_tensors="pt"), model.preprocess(photo)
    else:  # resized to the square first, since its own processor keeps the aspect ratio
        square = photo.resize((64, 64), Image.Resampling.BICUBIC)
        inputs = transformers.Siglip2ImageProcessorPil(max_num_patches=16)(square, return_tensors="pt")
        found = model.preprocess(photo)
    with torch.inference_mode():
        expected = pooled(model.net.get_image_features(**inputs))
    assert F.cosine_similarity(model.encode_image(found[None]), expected).item() >= 0.99999


def test_texts_are_embedded_as_by_transformers(model, folder):
    """CLIP's by OpenAI's tokenizer, which its folder lacks; SigLIP's here by BERT's."""
    if folder.name == "clip":
        inputs = {"input_ids": vlscore.import_clip().tokenize(TEXTS).long()}
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokens = tokenizer(TEXTS, padding="max_length", max_length=64, return_tensors="pt")
        inputs = tokens if folder.name == "align" else {"input_ids": tokens.input_ids}
    with torch.inference_mode():
        expected = pooled(model.net.get_text_features(**inputs))
    assert F.cosine_similarity(model.encode_text(TEXTS), expected).min() >= 0.99999


def test_too_many_tokens_are_refused(model):
    with pytest.raises(vlscore.VLScoreError, match=str(model.context_length)):
        model.encode_text(["word " * 200])


def test_temperature_and_bias(model, folder):
    if folder.name == "align":
        expected = model.net.temperature.item()  # that cosines are divided by
    else:
        expected = 1 / model.net.logit_scale.exp().item()
    assert model.temperature == pytest.approx(expected, rel=1e-3)
    assert (model.logit_bias is None) == (folder.name in ("clip", "align"))


# ── Maps ─────────────────────────────────────────────────────────────────────────────────────────


def grid(tokens, prefix):
    """Patches (B, n, d) of 4×4 -> (B, d, 4, 4), by a loop."""
    maps = torch.zeros(len(tokens), tokens.shape[2], 4, 4)
    for y in range(4):
        for x in range(4):
            maps[:, :, y, x] = tokens[:, prefix + 4 * y + x]
    return maps


@pytest.mark.parametrize("layer", ["0", "2"])
def test_every_source_is_what_transformers_computes(transformer, layer):
    """Of its eager attention, which gives its weights, and its projections."""
    pixels, block = noise(transformer), transformer.blocks[int(layer)]
    config, before = block.self_attn.config, block.self_attn.config._attn_implementation
    config._attn_implementation = "eager"
    seen = {}
    handles = [
        block.register_forward_hook(lambda _, inputs, output: seen.update(activation=output)),
        block.self_attn.register_forward_hook(lambda _, inputs, output: seen.update(attention=output[1])),
    ]
    for each in ("query", "key", "value"):
        layer_of = block.self_attn.get_submodule(f"{each[0]}_proj")
        handles.append(
            layer_of.register_forward_hook(lambda _, i, output, each=each: seen.update({each: output}))
        )
    with torch.inference_mode():
        transformer.visual(pixels)
    for handle in handles:
        handle.remove()
    config._attn_implementation = before
    weights = seen["attention"]
    seen["attention"] = (weights[:, :, 0] if transformer.prefix else weights.mean(2)).transpose(1, 2)
    for maps, expected in seen.items():
        found = transformer.feature_maps(pixels, layer, maps)
        torch.testing.assert_close(found, grid(expected, transformer.prefix), atol=1e-5, rtol=1e-4)


def test_larger_pixels_are_read_with_interpolated_positions(transformer, folder):
    """By transformers' own interpolation."""
    pixels = torch.randn(1, 3, 128, 128, generator=torch.manual_seed(0))
    (found,) = transformer.read_layers(pixels, [("1", "activation")])
    with torch.inference_mode():
        if folder.name == "siglip2":
            processor = transformers.Siglip2ImageProcessorPil(
                max_num_patches=64, do_resize=False, do_rescale=False, do_normalize=False
            )
            inputs = processor(
                pixels[0].permute(1, 2, 0).numpy(), return_tensors="pt", input_data_format="channels_last"
            )
            done = transformer.net.vision_model(**inputs, output_hidden_states=True)
        else:
            done = transformer.net.vision_model(
                pixels, interpolate_pos_encoding=True, output_hidden_states=True
            )
    expected = done.hidden_states[2][:, transformer.prefix :]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-4)


def test_a_cell_is_embedded_as_an_image_of_nothing_else(model):
    maps = model.feature_maps(noise(model, 1))[0]

    def replace(_, inputs, output):
        cell = maps[:, 1, 2]
        return cell.expand_as(output) if model.is_vit else cell[:, None, None].expand_as(output)

    with model.layer_modules()[model.layers[-1]].register_forward_hook(replace):
        expected = model.visual(noise(model, 1))[0]
    found = model.cell_embeddings(maps)[:, 1, 2]
    torch.testing.assert_close(found, F.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)


# ── The method ───────────────────────────────────────────────────────────────────────────────────


def test_exact_saliency_equals_a_reference_in_float64(model, photo):
    encoding = vlscore.encode(model, photo, precision="float32")
    text = encoding.image_embedding - encoding.base_embedding
    exact = copy.deepcopy(model)
    exact.net.double(), exact.visual.double()
    pixels = model.preprocess(photo).double()
    seen = []
    with torch.inference_mode():
        last = exact.layer_modules()[exact.layers[-1]]
        with last.register_forward_hook(lambda _, inputs, output: seen.append(output)):
            exact.visual(pixels[None])
        maps = (grid(seen[0], model.prefix) if model.is_vit else seen[0])[0].double()
        S, h = model.input_size, maps.shape[-1]
        at = torch.arange(S, dtype=torch.float64) * (h - 1) / (S - 1)
        cells = torch.arange(h, dtype=torch.float64)
        ramp = (1 - (at[:, None] - cells).abs()).clamp(min=0)  # bilinear interpolation, corners aligned
        up = ramp @ maps @ ramp.T
        low, high = up.amin((1, 2), keepdim=True), up.amax((1, 2), keepdim=True)
        masked = pixels * ((up - low) / (high - low + 1e-7))[:, None]
        s = F.normalize(exact.visual(torch.cat([masked, torch.zeros_like(pixels)[None]])), dim=-1)
    s = s @ F.normalize(text.double(), dim=0)
    weights = torch.where(s[:-1] > s[-1], (s[:-1] / 0.05).exp(), 0)
    expected = torch.einsum("c,chw->hw", weights / weights.sum(), maps).clamp(min=0)
    assert expected.max() > 0
    found = vlscore.saliency(encoding, text, 0.05)
    assert (found - expected).abs().max() <= 1e-5 * expected.max().clamp(min=1)


def test_align_reads_cells_of_32_and_of_8_pixels(tmp_path):
    model = vlscore.load_model(f"hf:{families.save_hf(families.make_hf_net('align'), tmp_path)}", "cpu")
    pixels = torch.zeros(1, 3, 96, 96)
    for layer, side in ((None, 3), (model.fine_layer, 12)):
        assert model.feature_maps(pixels, layer).shape[2:] == (side, side)
    assert (model.stride, model.family) == (32, "cnn")
    after = model.layers[model.layers.index(model.fine_layer) + 1]
    assert model.feature_maps(pixels, after).shape[2:] == (6, 6)  # the fine layer is the last of its size


@pytest.mark.parametrize("options", [{"keep": 8}, {"refined": True}], ids=str)
def test_every_type_localizes(model, photo, options):
    encoding = vlscore.encode(model, photo, precision="float32", **options)
    text = F.normalize(encoding.image_embedding - encoding.base_embedding, dim=0)
    saliency = vlscore.saliency(encoding, text, model.temperature)
    for x0, y0, x1, y1 in vlscore.find_boxes(saliency, encoding):
        assert 0 <= x0 < x1 <= 451 and 0 <= y0 < y1 <= 300


def test_openvino_compiles_every_type(model, capsys):
    pixels = noise(model, 3)
    found = vlscore.fast_encoder(model, "float32")(pixels)
    torch.testing.assert_close(found, model.encode_image(pixels), atol=1e-5, rtol=1e-4)
    assert "OpenVINO" not in capsys.readouterr().err


# ── One network in several libraries ─────────────────────────────────────────────────────────────


def to_hugging_face(state):
    """OpenAI's layout -> Hugging Face's: written against the names in transformers, not by the loader."""
    found = {}
    names = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.proj": "visual_projection.weight",
        "text_projection": "text_projection.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    for kind in ("weight", "bias"):
        names[f"visual.ln_pre.{kind}"] = f"vision_model.pre_layrnorm.{kind}"
        names[f"visual.ln_post.{kind}"] = f"vision_model.post_layernorm.{kind}"
        names[f"ln_final.{kind}"] = f"text_model.final_layer_norm.{kind}"
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts["attn.out_proj"] = "self_attn.out_proj"
    for name, value in state.items():
        if name in names:
            found[names[name]] = value.T if name in ("visual.proj", "text_projection") else value
            continue
        side, number, part, kind = re.fullmatch(
            r"(visual\.|)transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)", name
        ).groups()
        block = f"{'vision' if side else 'text'}_model.encoder.layers.{number}"
        if part == "attn.in_proj":
            for each, rows in zip("qkv", value.chunk(3)):
                found[f"{block}.self_attn.{each}_proj.{kind}"] = rows
        else:
            found[f"{block}.{parts[part]}.{kind}"] = value
    return {name: value.contiguous() for name, value in found.items()}


def save_as_hugging_face(own, folder):
    """Save OpenAI's CLIP with a ViT as a CLIPModel."""
    visual, clip = own.clip.visual, own.clip
    block, words = visual.transformer.resblocks[0], clip.transformer.resblocks[0]
    vision = {
        "hidden_size": block.attn.embed_dim,
        "num_attention_heads": block.attn.num_heads,
        "num_hidden_layers": len(visual.transformer.resblocks),
        "intermediate_size": block.mlp.c_fc.out_features,
        "image_size": visual.input_resolution,
        "patch_size": visual.conv1.stride[0],
    }
    text = {
        "hidden_size": words.attn.embed_dim,
        "num_attention_heads": words.attn.num_heads,
        "num_hidden_layers": len(clip.transformer.resblocks),
        "intermediate_size": words.mlp.c_fc.out_features,
        "max_position_embeddings": clip.context_length,
    }
    config = transformers.CLIPConfig(
        vision_config=vision, text_config=text, projection_dim=clip.text_projection.shape[1]
    )
    net = transformers.CLIPModel(config)
    net.load_state_dict(to_hugging_face(clip.state_dict()))
    net.save_pretrained(folder)
    return vlscore.load_model(f"hf:{folder}", "cpu")


def test_openai_s_vit_has_the_same_saliency(vit, tmp_path, photo):
    other = save_as_hugging_face(vit, tmp_path)
    for options in ({}, {"refined": True}, {"maps": "attention"}, {"maps": "key"}):
        found = []
        for model in (vit, other):
            encoding = vlscore.encode(model, photo, precision="float32", **options)
            saliency = vlscore.saliency(encoding, model.encode_text(TEXTS)[0], 0.05)
            found.append(encoding.mask_embeddings if saliency is None else saliency)
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_scenes_vit_in_hugging_face_s_layout_gives_its_own_boxes(tmp_path, drawn):
    own = vlscore.load_model("scenes-vit", "cpu")
    other = save_as_hugging_face(own, tmp_path)
    count = 0
    for photo in vlscore.read_dataset(drawn).photos[:4]:
        for refined in (False, True):
            found = []
            for model in (own, other):
                encoding = vlscore.encode(model, photo.path, keep=24, precision="float32", refined=refined)
                text = model.encode_text([f"an image of a {photo.label}."])[0]
                saliency = vlscore.saliency(encoding, text, own.temperature)
                threshold = own.refined_threshold if refined else own.threshold
                encoding = replace(encoding, prominence=own.prominence)  # known by the name alone
                found.append(vlscore.find_boxes(saliency, encoding, threshold))
            assert found[0] == found[1]
            count += len(found[0])
    assert count >= 4


def test_the_loader_by_path_and_the_family_agree(vit, tmp_path, photo):
    """`PATH` builds OpenAI's modules from a CLIPModel's tensors, ``hf:`` runs transformers' own."""
    other = save_as_hugging_face(vit, tmp_path)
    pixels = vit.preprocess(photo)[None]
    torch.testing.assert_close(
        vlscore.load_model(str(tmp_path), "cpu").encode_image(pixels),
        other.encode_image(pixels),
        atol=1e-5,
        rtol=1e-4,
    )


# ── Folders ──────────────────────────────────────────────────────────────────────────────────────


def refuse(name) -> str:
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.load_model(name, "cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def small(tmp_path):
    """The folder of a tiny CLIPModel, to be broken."""
    return families.save_hf(families.make_hf_net("clip"), tmp_path / "model", with_tokenizer=False)


def test_a_preprocessor_s_configuration_is_used(small):
    families.edit_json(
        small / "preprocessor_config.json",
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.5, 0.5, 0.5],
        resample=2,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        do_center_crop=True,
        crop_size={"height": 96, "width": 96},
        size={"shortest_edge": 128},
    )
    found = vlscore.load_model(f"hf:{small}", "cpu").preprocessing
    assert found.input_size == 96
    assert found.interpolation == "bilinear"
    # v/127.5 - 1 - mean = 0 at v = 127.5 (1 + mean)
    assert found.mean == pytest.approx((140.25, 153, 165.75))
    assert found.std == pytest.approx((63.75,) * 3)


def test_code_of_a_repository_is_refused(small):
    families.edit_json(small / "config.json", auto_map={"AutoModel": "modeling_own.OwnModel"})
    (small / "modeling_own.py").write_text("raise SystemExit('this ran')")
    assert "asks to run code of the repository" in refuse(f"hf:{small}")


def test_weights_that_may_hold_code_are_refused(small):
    (small / "model.safetensors").unlink()
    torch.save({}, small / "pytorch_model.bin")
    assert "no safetensors" in refuse(f"hf:{small}")


def test_weights_that_are_not_finite_are_refused(small):
    net = transformers.CLIPModel.from_pretrained(small)
    net.visual_projection.weight.data[0, 0] = torch.nan
    net.save_pretrained(small)
    assert "visual_projection.weight are not finite" in refuse(f"hf:{small}")


def test_missing_weights_are_named(small):
    from safetensors.torch import load_file, save_file

    state = load_file(small / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, small / "model.safetensors", {"format": "pt"})
    assert "lacks 1 tensors, visual_projection.weight" in refuse(f"hf:{small}")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "bert"}, "type 'bert': choose one of clip, siglip"),
        ({"model_type": None}, "type None: choose one of"),
    ],
)
def test_another_type_is_refused(small, change, words):
    families.edit_json(small / "config.json", **change)
    assert words in refuse(f"hf:{small}")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_configuration_is_named(small, text):
    (small / "config.json").write_text(text)
    assert f"{small}/config.json cannot be read" in refuse(f"hf:{small}")
    (small / "config.json").unlink()
    assert "config.json cannot be read" in refuse(f"hf:{small}")


@pytest.mark.parametrize("name", ["no/such/folder/here", "./nothing", "", "one"])
def test_a_folder_that_is_not_there(name):
    assert "there is no folder" in refuse(f"hf:{name}")


def test_no_network_names_the_cache_to_fill(monkeypatch, tmp_path):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError("no network here\nsecond line")

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refuse("hf:openai/clip-vit-base-patch32")
    assert str(tmp_path / "hub") in message and "no network here" in message


def test_a_model_in_the_hub_s_cache_needs_no_network(small, monkeypatch, tmp_path):
    """As huggingface_hub lays it out: a commit by the branch's name, and its files as a snapshot."""
    import huggingface_hub

    cache = tmp_path / "hub"
    snapshot = cache / "models--owner--name" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    small.rename(snapshot)
    (cache / "models--owner--name" / "refs").mkdir()
    (cache / "models--owner--name" / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    assert vlscore.load_model("hf:owner/name", "cpu").family == "vit"
    assert hub.list_cached() == {"owner/name": ("clip", 0)}


def test_a_folder_without_a_tokenizer_is_told_when_a_text_comes(tmp_path, photo):
    folder = families.save_hf(families.make_hf_net("siglip"), tmp_path / "model", with_tokenizer=False)
    model = vlscore.load_model(f"hf:{folder}", "cpu")
    assert model.encode_image(model.preprocess(photo)[None]).isfinite().all()
    with pytest.raises(vlscore.VLScoreError, match=r"has no tokenizer: put the model's tokenizer\.json"):
        model.encode_text(["a cat"])


def test_a_relative_folder_is_made_absolute(small, monkeypatch):
    monkeypatch.chdir(small.parent)
    assert vlscore.absolute_name("hf:model") == f"hf:{small}"
    assert vlscore.absolute_name("hf:owner/name") == "hf:owner/name"
