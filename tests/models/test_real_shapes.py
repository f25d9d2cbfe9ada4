"""Networks of published shapes with random weights: from a file through encoding to boxes.

With one map, small copies for refinement, and in PyTorch, since each is compiled for longer than it runs
here; `test_openclip.py` and `test_hugging_face.py` compile tiny ones of each kind, and compare their numbers.
"""

import logging

import families
import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

import vlscore
from vlscore_lib import sources
from vlscore_lib.models import fast_encoder
from vlscore_lib.models.base import principal_maps

# Architecture -> side of the input, and cells on a side and channels of the last layer's maps.
OPEN_CLIP = {
    "RN50": (224, 7, 2048),
    "ViT-B-16": (224, 14, 768),
    "ViT-B-16-SigLIP": (224, 14, 768),
    "convnext_base": (224, 7, 1024),
    "coca_ViT-B-32": (224, 7, 768),
    "EVA02-B-16": (224, 14, 768),
    "MobileCLIP2-S0": (256, 8, 1024),
}


def make_siglip():
    return transformers.SiglipModel(transformers.SiglipConfig())


def make_siglip2():
    words = {"vocab_size": 30522, "bos_token_id": 101, "eos_token_id": 102}
    return transformers.Siglip2Model(transformers.Siglip2Config(text_config=words))


def make_clip():
    return transformers.CLIPModel(transformers.CLIPConfig(vision_config={"patch_size": 16}))


def make_align():
    return transformers.AlignModel(transformers.AlignConfig())


HUGGING_FACE = {
    "clip": (make_clip, 224, 14, 768),
    "siglip": (make_siglip, 224, 14, 768),
    "siglip2": (make_siglip2, 256, 16, 768),
    "align": (make_align, 289, 9, 640),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """In PyTorch, with a copy of 2 S, which resizes positions as one of 3 S does."""
    monkeypatch.setattr(fast_encoder, "find_spec", lambda name: None)
    monkeypatch.setattr(sources, "COPY_SCALE", 2)


DRAWS = {f"{name}_" for name in ("normal", "uniform", "trunc_normal", "kaiming_normal", "kaiming_uniform")}
DRAWS |= {"xavier_normal_", "xavier_uniform_", "erfinv_"}


class Undrawn(TorchFunctionMode):
    """Networks start with zeros: to draw 150 million numbers, twice, takes longer than to use them.

    Memory as it comes would not do: `trunc_normal_` draws again until each number lies within its bounds.
    """

    def __torch_function__(self, function, types, arguments=(), options=None):
        if getattr(function, "__name__", "") not in DRAWS:
            return function(*arguments, **(options or {}))
        with torch.no_grad():
            return (arguments[0] if arguments else options["tensor"]).zero_()


def fill(net):
    """Random matrices that keep the size of a signal, of one noise from here and there, in half precision."""
    generator = torch.manual_seed(0)
    noise, piece = torch.randn(2**22, generator=generator), 2**21
    net.half()
    for value in net.state_dict().values():
        if value.ndim < 2 or not value.is_floating_point():
            value.nan_to_num_()  # some of open_clip's parameters are never set
            continue
        for part in value.view(-1).split(piece):
            start = int(torch.randint(piece, (), generator=generator))
            part.copy_(noise[start : start + len(part)] * value[0].numel() ** -0.5)
    return net


def load(name):
    with Undrawn():
        return vlscore.load_model(name, "cpu")


def check_grids(model, pixels, side, channels):
    """The maps of every source, all read in one pass."""
    every = vlscore.list_sources(model).values()
    layers = {each["maps"]: model.check_source(None, **{"pca": None} | each) for each in every}
    found = dict(zip(layers, model.read_layers(pixels, [(layer, maps) for maps, layer in layers.items()])))
    for kind, maps in found.items():
        count = maps.shape[1] if kind != "attention" else 64 * maps.shape[1]  # heads 64 wide
        assert (count, *maps.shape[2:]) == (channels, side, side)
        assert maps.isfinite().all()
    if "key" in found:  # the components of query and value are computed alike, which takes seconds
        assert {each["maps"]: each["pca"] for each in every if "pca" in each}["key"] == 4
        components = principal_maps(found["key"], 4)
        assert components.shape[1:] == (8, side, side)
        assert components.isfinite().all()


def check(model, chelsea, size, side, channels):
    """Grids of all sources, boxes of a text, plain and refined."""
    with Image.open(chelsea) as image:
        photo = image.convert("RGB")
    pixels = model.preprocess(photo)[None]
    assert pixels.shape == (1, 3, size, size)
    check_grids(model, pixels, side, channels)
    refined = vlscore.encode(model, photo, precision="float32", keep=1, refined=True)
    # A CNN's refined encoding has the maps of the plain one; a ViT's has regions.
    plain = (
        vlscore.encode(model, photo, precision="float32", keep=1)
        if model.is_vit
        else refined.without_refinement()
    )
    assert plain.maps.shape == (channels, side, side)
    for encoding in (plain, refined):
        text = F.normalize(encoding.image_embedding - encoding.base_embedding, dim=0)
        saliency = vlscore.saliency(encoding, text, model.temperature)
        assert saliency is None or saliency.isfinite().all()
        for x0, y0, x1, y1 in vlscore.find_boxes(saliency, encoding):
            assert 0 <= x0 < x1 <= 451 and 0 <= y0 < y1 <= 300


@pytest.mark.parametrize("architecture", OPEN_CLIP)
def test_open_clip(architecture, chelsea, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    weights = tmp_path / "weights.safetensors"
    with Undrawn():
        net = open_clip.create_model(architecture, load_weights=False)
    save_file(fill(net).state_dict(), weights)
    del net
    check(load(f"open_clip:{architecture}/{weights}"), chelsea, *OPEN_CLIP[architecture])


def test_open_clip_s_siglip_2_has_the_image_encoder_of_siglip():
    """So its maps are those above; it has other texts, of 256,000 words, which are not run here."""
    first, second = (open_clip.get_model_config(f"ViT-B-16-{name}") for name in ("SigLIP", "SigLIP2"))
    assert first["vision_cfg"] == second["vision_cfg"]
    assert first["embed_dim"] == second["embed_dim"]


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_face(kind, chelsea, tmp_path):
    make, *sizes = HUGGING_FACE[kind]
    with Undrawn():
        net = make()
    families.save_hf(fill(net), tmp_path, with_tokenizer=kind != "clip")
    del net
    model = load(f"hf:{tmp_path}")
    check(model, chelsea, *sizes)
    assert model.encode_text(["an image of a cat."]).isfinite().all()
