"""The fastest encoder here equals `encode_image`."""

import gc
import weakref
from importlib.util import find_spec

import pytest
import torch
from models_helpers import PROMPTS, normalised

import vlscore
from vlscore_lib.models import fast_encoder, openvino_encoder


def noise(model, count=2):
    size = (count, 3, model.input_size, model.input_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def own_clip(clip_model, checkpoints):
    """The same checkpoint in the `clip` package's own class, without ours around it."""
    kind = "vit" if clip_model.is_vit else "rn"
    size = (64, 2, 128, 16) if clip_model.is_vit else (96, (1, 1, 1, 1), 8, None)
    own = vlscore.import_clip().model.CLIP(64, *size, 77, 49408, 64, 1, 1).eval()
    own.load_state_dict(torch.load(checkpoints[kind], weights_only=True))
    return own


def test_embeddings_are_unit_float32(model):
    for found in (model.encode_image(noise(model)), model.encode_text(PROMPTS)):
        assert found.dtype == torch.float32
        assert found.ndim == 2
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))


def test_both_embeddings_have_one_dimension(model):
    assert model.encode_image(noise(model, 1)).shape == model.encode_text(["a cat"]).shape


def test_encode_image_equals_clip(clip_model, own_clip):
    pixels = noise(clip_model)
    expected = normalised(own_clip.encode_image(pixels))
    torch.testing.assert_close(clip_model.encode_image(pixels), expected, atol=1e-6, rtol=0)


def test_encode_text_equals_clip(clip_model, own_clip):
    expected = normalised(own_clip.encode_text(vlscore.import_clip().tokenize(PROMPTS)))
    torch.testing.assert_close(clip_model.encode_text(PROMPTS), expected, atol=1e-6, rtol=0)


def test_compiled_encoder_equals_encode_image(model, monkeypatch):
    compiled = vlscore.fast_encoder(model, "float32")
    monkeypatch.setattr(model, "encode_image", None)  # it cannot be what we compare with
    found = compiled(noise(model, 3))  # a batch of another size than the one traced
    monkeypatch.undo()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.encode_image(noise(model, 3)), atol=1e-5, rtol=0)


def test_compiled_encoder_s_outputs_are_its_own(rn):
    """The next call must not write over the last one's result."""
    vlscore.fast_encoder(rn, "float32")
    run, pixels = fast_encoder.compiled_encoder(rn, "float32"), noise(rn)
    first = run(pixels)
    kept = first.clone()
    run(-pixels)
    assert torch.equal(first, kept)


def test_no_thread_of_the_encoder_is_bound_to_a_core(checkpoints, monkeypatch, tmp_path):
    """Bound, processes of one thread each share the first core by chance, and the others stand idle."""
    import openvino

    monkeypatch.setenv("VLSCORE_CACHE", str(tmp_path))
    compile_model, compiled = openvino.Core.compile_model, []

    def remember(*arguments):
        compiled.append(compile_model(*arguments))
        return compiled[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", remember)
    model = vlscore.load_model(str(checkpoints["rn"]), "cpu")
    vlscore.fast_encoder(model, "float32")(noise(model))
    assert compiled[0].get_property("ENABLE_CPU_PINNING") is False


def test_encoder_is_compiled_once(rn, monkeypatch):
    vlscore.fast_encoder(rn, "float32")
    monkeypatch.setattr(fast_encoder, "compile_encoder", None)
    assert vlscore.fast_encoder(rn, "float32")(noise(rn)).shape == (2, 64)


@pytest.fixture
def without_openvino(monkeypatch):
    monkeypatch.setattr(
        fast_encoder, "find_spec", lambda name: None if name == "openvino" else find_spec(name)
    )
    monkeypatch.setattr(fast_encoder, "compile_encoder", None)


def test_encoder_without_openvino_is_pytorch(clip_model, without_openvino):
    pixels = noise(clip_model)
    assert torch.equal(vlscore.fast_encoder(clip_model, "float32")(pixels), clip_model.encode_image(pixels))


def test_bfloat16_without_openvino_is_close(clip_model, without_openvino):
    pixels = noise(clip_model)
    found, exact = vlscore.fast_encoder(clip_model, "bfloat16")(pixels), clip_model.encode_image(pixels)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)  # bfloat16 was used
    assert ((found * exact).sum(1) > 0.99).all()


def test_bfloat16_with_openvino_is_close(clip_model):
    """Where the CPU has no bfloat16, OpenVINO may compute in float32."""
    pixels = noise(clip_model)
    found, exact = vlscore.fast_encoder(clip_model, "bfloat16")(pixels), clip_model.encode_image(pixels)
    assert found.dtype == torch.float32
    assert ((found * exact).sum(1) > 0.99).all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_compiled_reader_equals_read_layers_at_every_size(rn, size):
    side = size * rn.input_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(size))
    wanted = (("layer3", "activation"), (rn.layers[-1], "activation"))
    for ours, theirs in zip(
        fast_encoder.read_copy(rn, pixels, wanted, "float32"), rn.read_layers(pixels, wanted), strict=True
    ):
        assert ours.dtype == torch.float32
        rounding = 1e-5 * theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, atol=rounding, rtol=1e-4)


def test_a_reader_without_openvino_is_pytorch(rn, without_openvino, monkeypatch):
    monkeypatch.setattr(fast_encoder, "compile_reader", None)
    pixels, wanted = torch.rand(1, 3, 64, 64), ((rn.layers[-1], "activation"),)
    (found,) = fast_encoder.read_copy(rn, pixels, wanted, "float32")
    torch.testing.assert_close(found, rn.read_layers(pixels, wanted)[0], atol=1e-5, rtol=1e-4)


class OfOneSize(torch.nn.Module):
    """What a tracer gets wrong: a branch on the size of the input."""

    def forward(self, pixels):
        return (pixels if pixels.shape[-1] > 32 else 2 * pixels,)


def test_compiling_draws_no_random_number(checkpoints, monkeypatch, tmp_path):
    monkeypatch.setenv("VLSCORE_CACHE", str(tmp_path))
    model, before = vlscore.load_model(str(checkpoints["rn"]), "cpu"), torch.get_rng_state()
    fast_encoder.compiled_encoder(model, "float32")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_graph_that_computes_something_else_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("VLSCORE_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="computes something else"):
        openvino_encoder.compile_reader(OfOneSize(), 32, "float32")
    assert not any(tmp_path.iterdir())  # nor kept


def test_choose_precision_takes_what_is_asked():
    assert vlscore.choose_precision("float32", torch.device("cpu")) == "float32"
    assert vlscore.choose_precision("bfloat16", torch.device("cpu")) == "bfloat16"


@pytest.mark.parametrize("has, chosen", [(True, "bfloat16"), (False, "float32")])
def test_choose_precision_auto_asks_the_hardware(has, chosen, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has})
    assert vlscore.choose_precision("auto", torch.device("cpu")) == chosen
    assert vlscore.choose_precision("auto", torch.device("cuda")) == "float16"
    assert vlscore.choose_precision("auto", torch.device("mps")) == "float32"


def test_choose_precision_lists_the_right_ones():
    with pytest.raises(vlscore.VLScoreError, match="auto, float32, bfloat16, float16"):
        vlscore.choose_precision("float64", torch.device("cpu"))


def test_float16_needs_a_gpu():
    with pytest.raises(vlscore.VLScoreError, match="float16 needs a GPU: choose auto"):
        vlscore.choose_precision("float16", torch.device("cpu"))
    assert vlscore.choose_precision("float16", torch.device("cuda")) == "float16"


def test_a_compiled_encoder_goes_with_its_model(checkpoints):
    model = vlscore.load_model(str(checkpoints["rn"]), "cpu")
    first = fast_encoder.compiled_encoder(model, "float32")
    assert fast_encoder.compiled_encoder(model, "float32") is first
    assert fast_encoder.compiled_reader(model, (("layer4", "activation"),), "float32")
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("name", ["scenes-rn", "scenes-vit"])
def test_the_scenes_models_compare_with_their_own_classes(name):
    model = vlscore.load_model(name, "cpu")
    found = vlscore.embed_other_words(model)
    assert vlscore.embed_other_words(model) is found  # embedded once
    names = [names[0] for _, names in vlscore.scenes.classes()]
    expected = model.encode_text([vlscore.TEMPLATE.format(each) for each in names])
    assert found.shape == expected.shape == (80, 128)
    best = (found @ expected.T).amax(1)
    torch.testing.assert_close(best, torch.ones(80), atol=1e-5, rtol=0)


def test_a_compiled_encoder_is_read_from_disk_the_second_time(checkpoints, monkeypatch, tmp_path):
    """It gives the same, bit for bit; a damaged file is compiled again."""
    monkeypatch.setenv("VLSCORE_CACHE", str(tmp_path))
    converted, convert = [], openvino_encoder.convert

    def count(*arguments):
        converted.append(arguments)
        return convert(*arguments)

    monkeypatch.setattr(openvino_encoder, "convert", count)
    found = []
    for damage in (False, False, True):
        if damage:
            (file,) = tmp_path.iterdir()
            file.write_bytes(file.read_bytes()[:1000])
        model = vlscore.load_model(str(checkpoints["rn"]), "cpu")
        found.append(vlscore.fast_encoder(model, "float32")(noise(model)))
    assert len(converted) == 2
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    other = vlscore.load_model(str(checkpoints["vit"]), "cpu")
    vlscore.fast_encoder(other, "float32")
    assert len(converted) == 3
