"""Feature maps: what is read from inside the encoders, against values computed here from the weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vlscore

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
