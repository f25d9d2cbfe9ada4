"""Feature maps: what is read from inside the encoders, against values computed here from the weights."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoding_helpers import greedy64
from PIL import Image

import vlscore

TEXT = (77, 49408, 64, 1, 1)  # context, vocabulary, width, heads, layers

TOKENS = ("query", "key", "value")


def noise(model, count=1, seed=0):
    size = (count, 3, model.input_size, model.input_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def block_input(vit, pixels, n):
    """Tokens (B, 1 + n, d) that enter the n-th block."""
    kept = []
    block = vit.visual.transformer.resblocks[n]
    handle = block.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].clone()))
    vit.visual(pixels)
    handle.remove()
    return kept[0].transpose(0, 1)


def heads_of(vit, pixels, n):
    """q, k and v (B, heads, 1 + n, d/heads) of the n-th block, by matrix algebra from its weights."""
    x = block_input(vit, pixels, n).double()
    block = vit.visual.transformer.resblocks[n]
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    x = centred / (variance + 1e-5).sqrt() * block.ln_1.weight.double() + block.ln_1.bias.double()
    found = []
    for part in range(3):
        rows = slice(part * 128, (part + 1) * 128)
        weight = block.attn.in_proj_weight[rows].double()
        bias = block.attn.in_proj_bias[rows].double()
        found.append((x @ weight.T + bias).reshape(len(x), 17, 2, 64).transpose(1, 2))
    return found


def attention_of(q, k):
    """Softmax over the keys of q·k / √(d/heads): (B, heads, 1 + n, 1 + n)."""
    logits = q @ k.transpose(-1, -2) / 64**0.5
    powers = (logits - logits.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def as_maps(tokens):
    """Patch tokens (B, n, C) -> (B, C, h, w), row by row."""
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], 4, 4)


# ── Layers and shapes ────────────────────────────────────────────────────────────────────────────


def test_layers_of_a_resnet_are_its_blocks_and_its_stages(rn):
    assert rn.layers == [f"layer{n}{part}" for n in range(1, 5) for part in (".0", "")]


def test_layers_of_a_vit_are_its_blocks(vit):
    assert vit.layers == ["0", "1"]


def test_layers_of_lite0_are_its_blocks_and_the_head(lite0):
    assert lite0.layers == [*(f"block{n}" for n in range(16)), "head"]


@pytest.mark.parametrize("stage, shape", [(1, (32, 24)), (2, (64, 12)), (3, (128, 6)), (4, (256, 3))])
def test_shapes_of_a_resnet(rn, stage, shape):
    channels, side = shape
    found = rn.feature_maps(noise(rn, 2), f"layer{stage}")
    assert found.shape == (2, channels, side, side)
    assert found.dtype == torch.float32
    assert torch.equal(found, rn.feature_maps(noise(rn, 2), f"layer{stage}.0"))


@pytest.mark.parametrize("layer", ["0", "1", 0, 1])
@pytest.mark.parametrize("maps, C", [("activation", 128), ("attention", 2), *((m, 128) for m in TOKENS)])
def test_shapes_of_a_vit(vit, layer, maps, C):
    found = vit.feature_maps(noise(vit, 2), layer, maps)
    assert found.shape == (2, C, 4, 4)
    assert found.dtype == torch.float32


def test_shapes_of_lite0(lite0):
    pixels = noise(lite0)
    assert lite0.feature_maps(pixels).shape == (1, 1280, 7, 7)
    assert lite0.feature_maps(pixels, "block10").shape == (1, 112, 14, 14)


def test_default_layer_is_the_last_block_of_the_last_stage():
    """A fixed index, such as layer4[0] or layer4[2], would be another block of this model."""
    torch.manual_seed(1)
    clip = vlscore.import_clip().model.CLIP(64, 64, (1, 1, 1, 2), 8, None, 77, 100, 64, 1, 1)
    torch.nn.init.normal_(clip.visual.layer4[1].bn3.weight)  # zeros would make the block do nothing
    model = vlscore.ClipModel("two blocks", clip, "cpu")
    pixels = noise(model)
    found = model.feature_maps(pixels)
    assert torch.equal(found, model.feature_maps(pixels, "layer4.1"))
    assert not torch.equal(found, model.feature_maps(pixels, "layer4.0"))


def test_default_layer_of_a_vit_is_the_last_block(vit):
    pixels = noise(vit)
    for maps in vlscore.MAPS:
        assert torch.equal(vit.feature_maps(pixels, maps=maps), vit.feature_maps(pixels, "1", maps))


@pytest.mark.parametrize("name, right", [("rn", "layer1.0, layer1, layer2.0"), ("vit", "0, 1")])
def test_an_unknown_layer_lists_the_right_ones(request, name, right):
    model = request.getfixturevalue(name)
    with pytest.raises(vlscore.VLScoreError, match="no layer 'layer9'.*" + right):
        model.feature_maps(noise(model), "layer9")


def test_unknown_maps_list_the_right_ones(vit):
    with pytest.raises(vlscore.VLScoreError, match="activation, attention, query, key, value"):
        vit.feature_maps(noise(vit), maps="keys")


@pytest.mark.parametrize("maps", vlscore.MAPS[1:])
def test_a_cnn_has_activation_maps_only(rn, maps):
    with pytest.raises(vlscore.VLScoreError, match=f"no {maps} maps"):
        rn.feature_maps(noise(rn), maps=maps)


# The image encoders of OpenAI's nine models (Radford et al. 2021, tables 19 and 20): input size, blocks
# of each stage or of the ViT, width, patch size, embedding size; then the maps of the last layer.
CLIP_SHAPES = {
    "RN50": ((224, (3, 4, 6, 3), 64, None, 1024), (2048, 7)),
    "RN101": ((224, (3, 4, 23, 3), 64, None, 512), (2048, 7)),
    "RN50x4": ((288, (4, 6, 10, 6), 80, None, 640), (2560, 9)),
    "RN50x16": ((384, (6, 8, 18, 8), 96, None, 768), (3072, 12)),
    "RN50x64": ((448, (3, 15, 36, 10), 128, None, 1024), (4096, 14)),
    "ViT-B/32": ((224, 12, 768, 32, 512), (768, 7)),
    "ViT-B/16": ((224, 12, 768, 16, 512), (768, 14)),
    "ViT-L/14": ((224, 24, 1024, 14, 768), (1024, 16)),
    "ViT-L/14@336px": ((336, 24, 1024, 14, 768), (1024, 24)),
}


def openai_clip(name, device):
    """A model of one of OpenAI's shapes with random weights and a small text encoder."""
    (size, blocks, width, patch, dimensions), _ = CLIP_SHAPES[name]
    with torch.device(device):
        clip = vlscore.import_clip().model.CLIP(dimensions, size, blocks, width, patch, *TEXT)
    return vlscore.ClipModel(name, clip, device)


def test_every_clip_name_has_a_row_in_the_table_of_shapes():
    assert tuple(CLIP_SHAPES) == vlscore.CLIP_NAMES


@pytest.mark.parametrize("name", CLIP_SHAPES)
def test_the_table_of_chapter_01_is_that_of_openai_s_models(name):
    """The same as here, and the text encoder's width as open_clip has it."""
    from open_clip import get_model_config

    chapter = Path(__file__).parents[2] / "notebooks" / "01_clip_structure.ipynb"
    sources = ["".join(cell["source"]) for cell in json.loads(chapter.read_text())["cells"]]
    (table,) = [source for source in sources if source.startswith("OPENAI = ")]
    dimensions, size, blocks, width, patch, text = ast.literal_eval(table.removeprefix("OPENAI = "))[name]
    assert (size, blocks, width, patch, dimensions) == CLIP_SHAPES[name][0]
    config = get_model_config(name.replace("/", "-").replace("@336px", "-336"))
    assert (text, text // 64, 12) == tuple(config["text_cfg"][key] for key in ("width", "heads", "layers"))
    assert tuple(config["text_cfg"][key] for key in ("context_length", "vocab_size")) == (77, 49408)


@pytest.mark.parametrize("name", CLIP_SHAPES)
def test_shapes_of_openai_s_models(name):
    """On PyTorch's meta device, where tensors have shapes and no values, so that RN50x64 costs nothing."""
    (size, blocks, width, _, dimensions), (C, side) = CLIP_SHAPES[name]
    model = openai_clip(name, "meta")
    pixels = torch.empty(2, 3, size, size, device="meta")
    assert model.input_size == size
    assert model.encode_image(pixels).shape == (2, dimensions)
    assert model.feature_maps(pixels).shape == (2, C, side, side)
    if isinstance(blocks, int):
        assert model.layers == [str(n) for n in range(blocks)]
        wanted = [(layer, maps) for layer in ("0", str(blocks - 1)) for maps in ("attention", *TOKENS)]
        for (_, maps), found in zip(wanted, model.read_layers(pixels, wanted), strict=True):
            assert found.shape == (2, width // 64 if maps == "attention" else width, side, side)
        return
    expected = []
    for n, count in enumerate(blocks, start=1):
        expected += [*(f"layer{n}.{m}" for m in range(count)), f"layer{n}"]
    assert model.layers == expected
    wanted = [(f"layer{n}{part}", "activation") for n in range(1, 5) for part in (".0", "")]
    for (layer, _), found in zip(wanted, model.read_layers(pixels, wanted), strict=True):
        n = 4 - int(layer[5])
        assert found.shape == (2, C >> n, side << n, side << n)


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_the_last_layer_of_openai_s_models_is_what_the_embedding_is_made_of(name):
    """With values: attention pooling, or the layers after the last block, take what was read."""
    torch.manual_seed(0)
    model = openai_clip(name, "cpu")
    pixels = noise(model)
    maps, visual = model.feature_maps(pixels), model.visual
    if name == "RN50":
        embedding = visual.attnpool(maps)
    else:
        blocks = visual.transformer.resblocks
        last = blocks[-1](block_input(model, pixels, len(blocks) - 1).transpose(0, 1))  # (1 + n, B, d)
        torch.testing.assert_close(maps[0].flatten(1).T, last[1:, 0], atol=1e-4, rtol=1e-4)
        embedding = visual.ln_post(last[0]) @ visual.proj
    torch.testing.assert_close(model.encode_image(pixels), vlscore.unit(embedding), atol=1e-4, rtol=1e-4)


# ── Values ───────────────────────────────────────────────────────────────────────────────────────


def test_maps_of_a_resnet_equal_a_forward_pass(rn):
    v, x = rn.visual, noise(rn, 2)
    x = F.relu(v.bn1(v.conv1(x)))
    x = F.relu(v.bn2(v.conv2(x)))
    x = F.avg_pool2d(F.relu(v.bn3(v.conv3(x))), 2)
    for n, stage in enumerate((v.layer1, v.layer2, v.layer3, v.layer4), start=1):
        x = stage(x)
        torch.testing.assert_close(rn.feature_maps(noise(rn, 2), f"layer{n}"), x, atol=1e-5, rtol=1e-5)


def test_maps_of_lite0_are_the_head_before_pooling(lite0, chelsea):
    pixels = lite0.preprocess(Image.open(chelsea))[None]
    expected = lite0.visual.net.extract_features(pixels)
    torch.testing.assert_close(lite0.feature_maps(pixels), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_activation_of_a_vit_is_the_block_output_without_the_class_token(vit, layer):
    pixels = noise(vit, 2)
    block = vit.visual.transformer.resblocks[layer]
    tokens = block(block_input(vit, pixels, layer).transpose(0, 1)).transpose(0, 1)
    found = vit.feature_maps(pixels, layer)
    torch.testing.assert_close(found, as_maps(tokens[:, 1:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("part", range(3))
def test_query_key_and_value_equal_matrix_algebra(vit, layer, part):
    pixels = noise(vit, 2)
    heads = heads_of(vit, pixels, layer)[part]  # (B, heads, 1 + n, d/heads)
    expected = as_maps(heads[:, :, 1:].transpose(1, 2).flatten(2))
    found = vit.feature_maps(pixels, layer, TOKENS[part])
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_of_the_class_token_equals_matrix_algebra(vit, layer):
    """Its row sums to 1 with the class token included, so without it to less than 1."""
    pixels = noise(vit, 2)
    q, k, _ = heads_of(vit, pixels, layer)
    rows = attention_of(q, k)[:, :, 0]  # (B, heads, 1 + n)
    found = vit.feature_maps(pixels, layer, "attention").double()
    torch.testing.assert_close(found, rows[:, :, 1:].reshape(2, 2, 4, 4), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.sum((2, 3)) + rows[:, :, 0], torch.ones(2, 2).double())
    assert (found.sum((2, 3)) < 1 - 1e-3).all()


@pytest.mark.parametrize("layer", [0, 1])
def test_attention_rebuilt_from_q_k_v_is_the_block_s_own(vit, layer):
    """So the algebra above, and with it our maps, is what the encoder computes."""
    pixels = noise(vit, 2)
    block = vit.visual.transformer.resblocks[layer]
    q, k, v = heads_of(vit, pixels, layer)
    mixed = (attention_of(q, k) @ v).transpose(1, 2).flatten(2)  # (B, 1 + n, d)
    rebuilt = mixed @ block.attn.out_proj.weight.double().T + block.attn.out_proj.bias.double()
    own = block.attention(block.ln_1(block_input(vit, pixels, layer).transpose(0, 1))).transpose(0, 1)
    torch.testing.assert_close(rebuilt.float(), own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("maps", vlscore.MAPS)
def test_images_of_a_batch_are_not_mixed(vit, maps):
    """CLIP's blocks work on (tokens, batch, width): a mix-up of the first two would show here."""
    pixels = noise(vit, 2)
    found = vit.feature_maps(pixels, maps=maps)
    swapped = vit.feature_maps(pixels.flip(0), maps=maps)
    torch.testing.assert_close(swapped, found.flip(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(vit.feature_maps(pixels[:1], maps=maps), found[:1], atol=1e-6, rtol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("maps", TOKENS)
@pytest.mark.parametrize("row, column", [(1, 2), (0, 3), (3, 0)])
def test_a_cell_belongs_to_the_patch_in_its_place(vit, maps, row, column):
    """Before the first attention a token knows its own 16×16 patch only."""
    before, after = noise(vit), noise(vit)
    after[..., row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] += 1
    change = vit.feature_maps(after, 0, maps) - vit.feature_maps(before, 0, maps)
    changed = change[0].abs().amax(0) > 1e-4
    assert changed.nonzero().tolist() == [[row, column]]


# ── Principal components ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("maps", TOKENS)
def test_pca_equals_a_singular_value_decomposition(vit, maps):
    """The entry of largest magnitude of each component is positive; its negative comes after it."""
    pixels = noise(vit, 2)
    tokens = vit.feature_maps(pixels, maps=maps).double().numpy().reshape(2, 128, 16)
    found = vit.feature_maps(pixels, maps=maps, pca=3)
    assert found.shape == (2, 6, 4, 4)
    for image, ours in zip(tokens, found):
        centred = image.T - image.T.mean(0)  # (n, C)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
        axes = [axis * np.sign(axis[np.abs(axis).argmax()]) for axis in axes]
        expected = [sign * (centred @ axis).reshape(4, 4) for axis in axes for sign in (1, -1)]
        # Two neighbouring singular values turn the axes by float32's rounding over their distance.
        np.testing.assert_allclose(ours.numpy(), np.stack(expected), atol=2e-3, rtol=0)


def test_pca_is_deterministic(vit):
    pixels = noise(vit)
    first = vit.feature_maps(pixels, maps="key", pca=3)
    assert torch.equal(first, vit.feature_maps(pixels, maps="key", pca=3))


def test_pca_does_not_depend_on_the_batch(vit):
    pixels = noise(vit, 2)
    both = vit.feature_maps(pixels, maps="key", pca=2)
    alone = vit.feature_maps(pixels[1:], maps="key", pca=2)
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n", [0, -1, 17])
def test_pca_out_of_range(vit, n):
    with pytest.raises(vlscore.VLScoreError, match="1 to 16"):
        vit.feature_maps(noise(vit), maps="key", pca=n)


@pytest.mark.parametrize("maps", ["activation", "attention"])
def test_pca_is_for_query_key_and_value(vit, maps):
    with pytest.raises(vlscore.VLScoreError, match=f"not for {maps}"):
        vit.feature_maps(noise(vit), maps=maps, pca=2)


# ── Hooks ────────────────────────────────────────────────────────────────────────────────────────


def test_tapped_sees_input_and_output():
    module = torch.nn.Linear(2, 3)
    x = torch.ones(1, 2)
    with vlscore.tapped(module) as seen:
        y = module(x)
    assert torch.equal(seen.input, x)
    assert torch.equal(seen.output, y)
    assert not module._forward_hooks


def test_tapped_removes_its_hook_when_the_forward_pass_fails():
    module = torch.nn.Linear(2, 3)
    with pytest.raises(RuntimeError), vlscore.tapped(module):
        assert len(module._forward_hooks) == 1
        module(torch.ones(1, 5))
    assert not module._forward_hooks


def test_tapped_keeps_copies():
    """CLIP's ReLUs work in place: a view of the output would be changed by the next layer."""
    module = torch.nn.Identity()
    x = torch.ones(3)
    with vlscore.tapped(module) as seen:
        module(x).mul_(-1)
    assert torch.equal(seen.input, torch.ones(3))
    assert torch.equal(seen.output, torch.ones(3))


def test_feature_maps_leave_no_hook(vit):
    for maps in vlscore.MAPS:
        vit.feature_maps(noise(vit), maps=maps)
    assert not any(module._forward_hooks for module in vit.visual.modules())


# ── Sources and the case study ───────────────────────────────────────────────────────────────────


def test_sources_of_a_vit_are_the_report_s(vit):
    assert list(vlscore.list_sources(vit, pca=2)) == [*vlscore.MAPS, *(f"{maps}, pca=2" for maps in TOKENS)]
    for options in vlscore.list_sources(vit, pca=2).values():
        assert vit.feature_maps(noise(vit), **options).shape[2:] == (4, 4)


def test_a_cnn_has_one_source(rn, lite0):
    assert vlscore.list_sources(rn) == vlscore.list_sources(lite0) == {"activation": {"maps": "activation"}}


def test_the_case_study_shows_the_chosen_maps_and_the_saliency_of_each_prompt(rn, vit, chelsea):
    prompts = ["an image of a cat.", "a dog"]
    rows = {}
    for name, model, options in (("CNN", rn, {"keep": 8}), ("heads", vit, {"maps": "attention"})):
        encoding, texts = vlscore.encode(model, chelsea, **options), model.encode_text(prompts)
        rows[name] = encoding, [vlscore.saliency(encoding, text, encoding.temperature) for text in texts]
    axes = np.array(vlscore.draw_case_study(chelsea, rows, prompts, count=3).axes).reshape(2, 5)
    assert [panel.get_title().split() for panel in axes[0, 3:]] == [prompt.split() for prompt in prompts]
    assert [row[0].get_ylabel() for row in axes] == list(rows)
    for row, (encoding, saliencies) in zip(axes, rows.values()):
        expected = encoding.maps[greedy64(encoding.maps.numpy(), min(3, len(encoding.maps)))]
        for panel, one in zip(row, expected):
            shown = panel.images[1].get_array()
            np.testing.assert_allclose(shown, vlscore.heat_map(one, encoding.input_size), atol=1e-6)
        for panel, found in zip(row[3:], saliencies):
            assert len(panel.images) == 1 + (found is not None)
            if found is not None:
                heat = vlscore.heat_map(found, encoding.input_size)
                np.testing.assert_allclose(panel.images[1].get_array(), heat, atol=1e-6)
    assert [panel.get_visible() for panel in axes[1]] == [True, True, False, True, True]  # two heads


def test_the_case_study_can_show_maps_alone(vit, chelsea):
    rows = {"keys": (vlscore.encode(vit, chelsea, maps="key", keep=4), ())}
    assert len(vlscore.draw_case_study(chelsea, rows, count=2).axes) == 2
