"""A ViT's one-pass maps: with the block's own attention they are the module's, and the others are by hand."""

import one_pass_vit
import pytest
import torch
import torch.nn.functional as F

import vlscore


@pytest.fixture(scope="module")
def vit():
    return vlscore.load_model("scenes-vit", "cpu")


@pytest.fixture(scope="module")
def scene(drawn):
    return vlscore.read_dataset(drawn).photos[0].path


def test_with_the_block_s_own_attention_the_patches_are_the_module_s(vit, scene):
    maps = vit.feature_maps(vit.preprocess(scene)[None])[0]
    found = one_pass_vit.embed_patches(vit, scene, F.scaled_dot_product_attention, True)
    torch.testing.assert_close(found, vit.cell_embeddings(maps), atol=1e-5, rtol=0)


def by_hand(vit, scene, weights, with_mlp):
    """One patch after another, from the values that the module reads; ``weights`` from one head's values."""
    pixels, block = vit.preprocess(scene)[None], vit.visual.transformer.resblocks[-1]
    with vlscore.tapped(block.ln_1) as before, vlscore.tapped(block) as whole:
        vit.encode_image(pixels)
    d = before.output.shape[-1]
    values = before.output[:, 0] @ block.attn.in_proj_weight[2 * d :].T + block.attn.in_proj_bias[2 * d :]
    heads = values.split(d // block.attn.num_heads, 1)
    mixed = torch.cat([weights(head) @ head for head in heads], 1)
    found = []
    for token, read in zip(whole.input[1:, 0], mixed[1:]):
        token = token + block.attn.out_proj(read)
        token = token + block.mlp(block.ln_2(token)) if with_mlp else token
        found.append(F.normalize(vit.visual.ln_post(token) @ vit.visual.proj, dim=0))
    return torch.stack(found, 1)


@pytest.mark.parametrize(
    ("find_map", "weights", "with_mlp"),
    [
        (one_pass_vit.maskclip_map, lambda head: torch.eye(len(head)), True),
        (one_pass_vit.surgery_map, lambda head: (head @ head.T / head.shape[1] ** 0.5).softmax(1), False),
    ],
)
@torch.inference_mode()
def test_a_map_is_the_cosine_of_each_patch(vit, scene, find_map, weights, with_mlp):
    text = vit.encode_text(["an image of a red star."])[0]
    wanted = text @ by_hand(vit, scene, weights, with_mlp)
    torch.testing.assert_close(find_map(vit, scene, text).flatten(), wanted, atol=1e-5, rtol=0)
