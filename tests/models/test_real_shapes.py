"""Networks of published shapes with random weights: from a file through encoding to boxes.

With few maps and in PyTorch, since each is compiled for longer than it runs here; `test_openclip.py` and
`test_hugging_face.py` compile tiny ones of each kind, and compare their numbers.
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

import vlscore
from vlscore_lib.models import fast_encoder

# Architecture -> side of the input, and cells on a side and channels of the last layer's maps.
OPEN_CLIP = {
    "RN50": (224, 7, 2048),
    "ViT-B-16": (224, 14, 768),
    "ViT-B-16-SigLIP": (224, 14, 768),
    "ViT-B-16-SigLIP2": (224, 14, 768),
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
def in_pytorch(monkeypatch):
    monkeypatch.setattr(fast_encoder, "find_spec", lambda name: None)


def check(model, chelsea, size, side, channels):
    """Grids of all sources, boxes of a text, plain and refined."""
    with Image.open(chelsea) as image:
        photo = image.convert("RGB")
    pixels = model.preprocess(photo)[None]
    assert pixels.shape == (1, 3, size, size)
    for name, options in vlscore.list_sources(model).items():
        found = model.feature_maps(pixels, **options)
        count = found.shape[1] if name != "attention" else 64 * found.shape[1]  # heads 64 wide
        assert (count, *found.shape[2:]) == (8 if "pca" in name else channels, side, side)
        assert found.isfinite().all()
    for options in ({"keep": 2}, {"keep": 2, "refined": True}):
        encoding = vlscore.encode(model, photo, precision="float32", **options)
        text = F.normalize(encoding.image_embedding - encoding.base_embedding, dim=0)
        saliency = vlscore.saliency(encoding, text, model.temperature)
        assert saliency is None or saliency.isfinite().all()
        for x0, y0, x1, y1 in vlscore.find_boxes(saliency, encoding):
            assert 0 <= x0 < x1 <= 451 and 0 <= y0 < y1 <= 300


@pytest.mark.parametrize("architecture", OPEN_CLIP)
def test_open_clip(architecture, chelsea, tmp_path, caplog):
    caplog.set_level(logging.CRITICAL)
    torch.manual_seed(0)
    net = open_clip.create_model(architecture, load_weights=False).eval()
    weights = tmp_path / "weights.safetensors"
    # Some parameters of open_clip's networks start as memory that nothing has written to.
    save_file({name: each.nan_to_num() for name, each in net.half().state_dict().items()}, weights)
    del net
    model = vlscore.load_model(f"open_clip:{architecture}/{weights}", "cpu")
    check(model, chelsea, *OPEN_CLIP[architecture])


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_face(kind, chelsea, tmp_path):
    torch.manual_seed(0)
    make, *sizes = HUGGING_FACE[kind]
    families.save_hf(make().half(), tmp_path, with_tokenizer=kind != "clip")
    model = vlscore.load_model(f"hf:{tmp_path}", "cpu")
    check(model, chelsea, *sizes)
    assert model.encode_text(["an image of a cat."]).isfinite().all()
