"""What an encoding does not depend on, the memory it takes, embeddings that are not finite."""

import gc
import math
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from encoding_helpers import CAT, tensors
from PIL import Image

import vlscore
from vlscore_lib.models import fast_encoder

# ── What an encoding does not depend on ─────────────────────────────────────────────────────────────


def test_two_encodings_are_equal_bit_for_bit(full, chelsea):
    model, first = full
    second = vlscore.encode(model, chelsea, precision="float32")
    for name, value in tensors(first).items():
        assert torch.equal(value, getattr(second, name)), name


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_batch_size_changes_nothing(full, chelsea, batch_size):
    model, encoding = full
    found = vlscore.encode(model, chelsea, precision="float32", batch_size=batch_size)
    for name, value in tensors(encoding).items():
        torch.testing.assert_close(getattr(found, name), value, atol=1e-6, rtol=0)


def test_prompts_change_nothing(full, chelsea):
    """Texts neither enter an encoding nor leave a trace in it, or in the model."""
    model, encoding = full
    before = {name: value.clone() for name, value in tensors(encoding).items()}
    for text in model.encode_text([CAT, "a dog", "nothing at all"]):
        vlscore.saliency(encoding, text, 0.01)
    after = vlscore.encode(model, chelsea, precision="float32")
    for name, value in before.items():
        assert torch.equal(value, getattr(encoding, name)), name
        assert torch.equal(value, getattr(after, name)), name


def test_an_encoding_tells_what_it_is_of(vit, chelsea):
    found = vlscore.encode(vit, chelsea, 0, "key", pca=2, precision="float32", fit="crop")
    assert (found.model, found.layer, found.kind) == (vit.name, "0", "key, pca=2")
    assert (found.input_size, found.temperature, found.threshold) == (64, vit.temperature, vit.threshold)
    assert found.fit == ((451, 300), (75.5, 0.0, 375.5, 300.0))
    assert found.maps.shape == (4, 4, 4)
    for value in tensors(found).values():
        assert value.device.type == "cpu"


def test_an_encoding_names_the_default_layer(full):
    model, encoding = full
    assert encoding.layer == model.layers[-1]
    assert encoding.kind == "activation"
    assert encoding.indices.tolist() == list(range(len(encoding.maps)))


def test_the_image_and_the_base_embedding_are_the_encoder_s(full, chelsea):
    model, encoding = full
    pixels = model.preprocess(Image.open(chelsea))
    expected = model.encode_image(torch.stack([pixels, torch.zeros_like(pixels)]))
    found = torch.stack([encoding.image_embedding, encoding.base_embedding])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_both_signs_of_a_component_are_scored(vit, chelsea):
    """Their masks are each other's negative, up to the epsilon of the normalisation."""
    encoding = vlscore.encode(vit, chelsea, maps="key", pca=2, precision="float32")
    plus, minus = vlscore.make_masks(encoding.maps, 64).unflatten(0, (2, 2)).unbind(1)
    torch.testing.assert_close(plus + minus, torch.ones_like(plus), atol=1e-5, rtol=0)
    embeddings = encoding.mask_embeddings
    assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3


# ── Memory ──────────────────────────────────────────────────────────────────────────────────────────


def live_tensors():
    gc.collect()
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


@pytest.mark.parametrize("name", ["rn", "vit"])
def test_80_encodings_leave_no_hook_and_no_memory(request, name, chelsea):
    """Keeping the masked images of 25 calls would take 11 MB in the ResNet's case, 5 in the ViT's.

    What is kept grows in every round; the allocator takes and gives memory back in some of them.
    """
    model, image = request.getfixturevalue(name), Image.open(chelsea).resize((60, 40))

    def encode(times):
        for _ in range(times):
            vlscore.encode(model, image, keep=4, precision="float32")

    encode(5)
    tensors_before, grown = live_tensors(), []
    for _ in range(3):
        before = psutil.Process().memory_info().rss
        encode(25)
        grown.append(psutil.Process().memory_info().rss - before)
    assert live_tensors() <= tensors_before  # what tests before held may go meanwhile
    assert min(grown) < 2.5e6
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    assert not any(getattr(module, kind) for module in model.visual.modules() for kind in hooks)


def test_one_batch_of_masked_images_at_a_time(rn, chelsea, monkeypatch):
    """So the peak of memory does not grow with the number of maps, here 256."""
    encoded, masked = [], []
    encoder, make_masks = vlscore.fast_encoder(rn, "float32"), vlscore.make_masks

    def count_images(pixels, maps=None):
        encoded.append(len(pixels))
        return encoder(pixels, maps)

    def count_masks(maps, size):
        masked.append(len(maps))
        return make_masks(maps, size)

    monkeypatch.setattr(vlscore, "fast_encoder", lambda *_: count_images)
    monkeypatch.setattr(fast_encoder, "make_masks", count_masks)
    found = vlscore.encode(rn, chelsea, precision="float32", batch_size=10)
    varying = int(vlscore.varies(found.maps).sum())
    assert sum(masked) == varying > 100
    assert sum(encoded) == varying + 2  # the image and the empty one
    assert max(encoded + masked) <= 10


def test_progress_sees_every_batch(rn, chelsea):
    seen = []

    def progress(batches):
        for batch in batches:
            seen.append(len(batch))
            yield batch

    vlscore.encode(rn, chelsea, keep=25, precision="float32", batch_size=10, progress=progress)
    assert seen == [10, 10, 5]


SENDER = """
import sys, vlscore
vlscore.fast_encoder(vlscore.load_model("lite0-minilm", "cpu"))
print("openvino" in sys.modules, [each for each in sys.modules if "telemetry" in each and "stub" not in each])
"""


def test_openvino_sends_no_usage_statistics(tmp_path):
    """Its import would leave a client's number in the home directory, and send it."""
    environment = os.environ | {"PYTHONPATH": str(Path(vlscore.__file__).parent), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", SENDER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    used, modules = done.stdout.strip().split(" ", 1)
    assert used == "True" and "openvino_telemetry" not in modules
    assert list(tmp_path.iterdir()) == []


RN50 = """
import re, sys, numpy as np, vlscore
from PIL import Image
pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
model = vlscore.load_model(sys.argv[1])
encoding = vlscore.encode(model, Image.fromarray(pixels), keep=32, precision="float32", batch_size=16)
status = open("/proc/self/status").read()  # ru_maxrss would begin at what the tests' own process takes
print(*encoding.mask_embeddings.shape, re.search(r"VmHWM:\s+(\d+)", status)[1])
"""


def test_rn50_takes_less_than_3_gigabytes(tmp_path):
    """A process of its own with CLIP RN50, random weights: load, and encode 32 maps in two batches."""
    torch.manual_seed(0)
    net = vlscore.import_clip().model.CLIP(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)
    torch.save(net.half().state_dict(), tmp_path / "rn50.pt")
    command = [sys.executable, "-c", RN50, str(tmp_path / "rn50.pt")]
    environment = os.environ | {"PYTHONPATH": str(Path(vlscore.__file__).parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    maps, dimensions, kilobytes = map(int, done.stdout.split())
    assert (maps, dimensions) == (2048, 1024)
    assert kilobytes < 3e6


# ── Embeddings that are not finite ──────────────────────────────────────────────────────────────────


def broken(monkeypatch, model, precisions, spoil):
    """Let `spoil` write NaN into the embeddings of the given precisions; returns what was asked for."""
    asked, encoder = [], vlscore.fast_encoder

    def choose(_, precision):
        asked.append(precision)
        run = encoder(model, "float32")
        return (lambda *images: spoil(run(*images))) if precision in precisions else run

    monkeypatch.setattr(vlscore, "fast_encoder", choose)
    return asked


def spoil_all(embeddings):
    return embeddings * math.nan


def spoil_masked(embeddings):
    """One masked image of a batch."""
    if len(embeddings) > 2:
        embeddings[1] = math.inf
    return embeddings


def spoil_base(embeddings):
    """The batch of two is the image and the empty image."""
    if len(embeddings) == 2:
        embeddings[1] = math.nan
    return embeddings


def spoil_image(embeddings):
    if len(embeddings) == 2:
        embeddings[0] = math.nan
    return embeddings


SPOILS = [spoil_all, spoil_masked, spoil_base, spoil_image]


@pytest.mark.parametrize("spoil", SPOILS)
def test_bfloat16_that_is_not_finite_falls_back_to_float32(rn, chelsea, monkeypatch, spoil):
    expected = vlscore.encode(rn, chelsea, keep=10, precision="float32")
    asked = broken(monkeypatch, rn, ["bfloat16"], spoil)
    found = vlscore.encode(rn, chelsea, keep=10, precision="bfloat16")
    assert asked == ["bfloat16", "float32"]
    for name, value in tensors(expected).items():
        assert torch.equal(getattr(found, name), value), name


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_float32_that_is_not_finite_is_an_error(rn, chelsea, monkeypatch, precision, spoil):
    broken(monkeypatch, rn, ["float32", "bfloat16"], spoil)
    with pytest.raises(vlscore.VLScoreError, match="not finite"):
        vlscore.encode(rn, chelsea, keep=10, precision=precision)
