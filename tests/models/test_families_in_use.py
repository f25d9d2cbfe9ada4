"""Models of other libraries wherever a model goes: command, evaluation, workers, page, half precision."""

import json
from pathlib import Path

import families
import pytest
import torch
from streamlit.testing.v1 import AppTest

import vlscore
from vlscore_lib.models import fast_encoder

APP = Path(vlscore.__file__).with_name("app.py")


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    """The name of a tiny CLIPModel in a folder."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    return f"hf:{families.save_hf(families.make_hf_net('clip'), folder, with_tokenizer=False)}"


@pytest.mark.parametrize("option", [[], ["--keep", "8"], ["--refined"], ["--maps", "key", "--pca", "3"]])
def test_localize(run, name, chelsea, option):
    code, out, err = run("localize", chelsea, "an image of a cat.", "--model", name, "--json", *option)
    (found,) = json.loads(out)["results"] if "results" in json.loads(out) else [json.loads(out)]
    assert (code, err) == (0, "")
    assert found


def test_two_workers_measure_the_same(run, name, drawn, tmp_path):
    """Each worker loads the model by its name."""
    options = ["--model", name, "--limit", "4", "--keep", "4", "--precision", "float32"]
    assert run("evaluate", drawn, *options, "--out", tmp_path / "here")[0] == 0
    assert run("evaluate", drawn, *options, "--out", tmp_path / "there", "--workers", "2")[0] == 0
    here, there = ((tmp_path / each / "summary.json").read_bytes() for each in ("here", "there"))
    assert here == there
    assert json.loads(here)["model"] == name


@pytest.fixture(scope="module", params=families.KINDS)
def model(request):
    return families.make_model(request.param)


def test_bfloat16_is_near_float32(model, chelsea):
    pixels = model.preprocess(chelsea)[None]
    found = vlscore.fast_encoder(model, "bfloat16")(pixels)
    assert torch.cosine_similarity(found, model.encode_image(pixels)).item() > 0.99


def test_gradient_baselines_look_at_every_kind(model, chelsea, monkeypatch):
    """Four maps are scored by PyTorch, since to compile each kind takes longer."""
    monkeypatch.setattr(fast_encoder, "find_spec", lambda name: None)
    text = torch.randn(64, generator=torch.manual_seed(0))
    pixels = model.preprocess(chelsea)
    found = vlscore.compute_gscorecam(model, pixels, text, model.layers[-1], k=4)
    assert found.isfinite().all()


def test_what_openvino_cannot_compile_runs_in_pytorch_and_is_said_once(monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no such operation\nand more")

    monkeypatch.setattr(fast_encoder, "compile_encoder", fail)
    model = families.make_model("eva", name="tiny-eva")
    pixels = torch.zeros(1, 3, 64, 64)
    for _ in range(3):
        found = vlscore.fast_encoder(model, "float32")(pixels)
    assert torch.equal(found, model.encode_image(pixels))
    err = capsys.readouterr().err
    assert err == "vlscore: OpenVINO cannot compile tiny-eva (no such operation): PyTorch runs it\n"


def test_the_page_offers_what_it_was_started_with(monkeypatch, name):
    monkeypatch.setenv("VLSCORE_MODELS", f"{name},open_clip:no-such/tag")
    app = AppTest.from_file(str(APP), default_timeout=120).run()
    (box,) = [each for each in app.selectbox if each.label == "Model"]
    assert box.options[:2] == [name, "open_clip:no-such/tag"]
    assert not app.exception
    box.select("open_clip:no-such/tag").run()
    assert "no architecture" in app.error[0].value.replace("\\", "")
    assert not app.exception
