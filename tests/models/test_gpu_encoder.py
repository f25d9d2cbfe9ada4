"""The encoder for a GPU, run on the CPU: its folded, lowered copy and its masks against the model itself."""

import copy
from functools import cache

import families
import pytest
import torch
import torch.nn.functional as F

import vlscore
from vlscore_lib.models import gpu_encoder
from vlscore_lib.models.gpu_encoder import GpuEncoder

DTYPES = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def load(request):
    """A model by its name, the same one for both precisions."""
    return cache(
        lambda name: families.make_model(name) if name in families.KINDS else request.getfixturevalue(name)
    )


def noise(model, count):
    pixels = torch.randn(count, 3, model.input_size, model.input_size, generator=torch.manual_seed(0))
    return pixels, torch.rand(count, 4, 4, generator=torch.manual_seed(1))


def embed(model, features):
    return F.normalize(model.project(features).double(), dim=-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["rn", "vit", "lite0", *families.KINDS])
def test_it_embeds_masked_images_as_the_model_does(load, name, dtype, monkeypatch):
    # A CPU computes in half precision slowly, so the batch is not filled up here.
    monkeypatch.setattr(gpu_encoder, "choose_padded_size", lambda count: count)
    if dtype == torch.bfloat16:  # the same operations, traced once is enough
        monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    model = load(name)
    encoder = GpuEncoder(model.visual, model.input_size, dtype, backend="eager")
    # Few images, too: one without a mask, two with different ones.
    for count in (1, 2):
        pixels, maps = noise(model, count)
        masked, masks = pixels, maps if count > 1 else None
        if masks is not None:
            up = F.interpolate(maps[:, None], (model.input_size,) * 2, mode="bilinear", align_corners=True)
            low, high = up.amin((2, 3), keepdim=True), up.amax((2, 3), keepdim=True)
            masked = pixels * ((up - low) / (high - low + 1e-7))
        with torch.inference_mode():
            expected = embed(model, model.visual(masked))
        found = embed(model, encoder(pixels, masks))
        assert found.shape == expected.shape
        assert F.cosine_similarity(found, expected).min() > (0.999 if dtype == torch.float16 else 0.99)


def test_a_batch_is_filled_up_so_that_few_sizes_are_compiled(rn):
    """Only the sizes matter here, so that what stands for the encoder returns some of what it is given."""
    encoder, seen = GpuEncoder(rn.visual, rn.input_size, torch.bfloat16, backend="eager"), []

    def keep(pixels, maps):
        seen.append((len(pixels), len(maps)))
        return torch.cat([pixels[:, :, 0, 0], maps.flatten(1)], 1)

    encoder.compiled = keep
    for count in (1, 64, 65, 100):
        pixels, maps = noise(rn, count)
        assert torch.equal(encoder(pixels, maps), keep(pixels, maps))
        seen.pop()
    assert seen == [(64, 64), (64, 64), (128, 128), (128, 128)]
    assert [gpu_encoder.choose_padded_size(count) for count in (512, 513)] == [512, 1024]


def test_batch_norms_are_folded_into_the_convolutions_before_them(rn):
    folded = gpu_encoder.fold_batch_norms(rn.visual, rn.input_size)
    kinds = [type(each).__name__ for each in folded.modules()]
    assert "BatchNorm2d" not in kinds
    assert "BatchNorm2d" in [type(each).__name__ for each in rn.visual.modules()]  # a copy was folded
    pixels, _ = noise(rn, 2)
    with torch.inference_mode():
        torch.testing.assert_close(folded(pixels), rn.visual(pixels), atol=1e-4, rtol=1e-4)


def test_a_batch_norm_that_runs_elsewhere_is_kept():
    class Backwards(torch.nn.Module):
        """Its norm is defined after the convolution and runs before it."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)
            self.norm.running_mean += 1.5

        def forward(self, pixels):
            return self.conv(self.norm(pixels).relu()).flatten(1)

    torch.manual_seed(0)
    net = Backwards().eval().requires_grad_(False)
    found = gpu_encoder.fold_batch_norms(net, 8)
    assert isinstance(found.norm, torch.nn.BatchNorm2d)


def test_norms_keep_their_precision(vit):
    net = gpu_encoder.lower_precision(copy.deepcopy(vit.visual), torch.float16)
    for name, parameter in net.named_parameters():
        assert parameter.dtype == (torch.float32 if ".ln_" in f".{name}" else torch.float16), name


def test_what_cannot_be_compiled_runs_uncompiled_and_is_said_once(rn, capsys):
    def fail(graph, inputs):
        raise RuntimeError("no compiler\nand more")

    encoder = GpuEncoder(rn.visual, rn.input_size, torch.bfloat16, backend=fail)
    pixels, maps = noise(rn, 2)
    found = [encoder(pixels, maps) for _ in range(3)]
    expected = GpuEncoder(rn.visual, rn.input_size, torch.bfloat16, backend="eager")(pixels, maps)
    assert all(torch.equal(each, expected) for each in found)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vlscore: PyTorch cannot compile the encoder (")
    assert line.endswith("): it runs as it is")


def test_the_encoding_s_maps_and_embeddings_are_on_the_cpu(rn, chelsea, monkeypatch):
    """With the GPU's encoder in place of the CPU's, an encoding is nearly the same."""
    exact = vlscore.encode(rn, chelsea, keep=16, precision="float32")
    encoder = GpuEncoder(rn.visual, rn.input_size, torch.float16, backend="eager")
    fast = vlscore.fast_encoder(rn, "float32")._replace(run=encoder)
    monkeypatch.setattr(vlscore, "fast_encoder", lambda *_: fast)
    found = vlscore.encode(rn, chelsea, keep=16, precision="float32")
    assert torch.equal(found.indices, exact.indices)
    cosines = F.cosine_similarity(found.mask_embeddings, exact.mask_embeddings)
    assert cosines.min() > 0.999
