"""Models by name."""

import urllib.error
import urllib.request

import pytest

import vlscore
from vlscore_lib.models import lite0_minilm, openai_clip, registry


@pytest.mark.parametrize("name", ["RN51", "no/such/checkpoint.pt", "", "/tmp"])
def test_an_unknown_model_lists_the_known_ones(name):
    with pytest.raises(
        vlscore.VLScoreError,
        match=r"lite0-minilm, scenes-rn, scenes-vit, RN50, .*ViT-B/16.*path of a checkpoint",
    ):
        vlscore.load_model(name)


def test_the_names_are_clip_s_own():
    assert list(vlscore.CLIP_NAMES) == vlscore.import_clip().available_models()


def test_clip_file_is_where_clip_keeps_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = []

    def refuse(url, *_):
        asked.append(url)
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    for name in vlscore.CLIP_NAMES:
        with pytest.raises(vlscore.VLScoreError):
            vlscore.load_model(name)
        assert vlscore.clip_file(name).name == asked[-1].split("/")[-1]
        assert vlscore.clip_file(name).parent == tmp_path / ".cache" / "clip"


def test_no_network_tells_where_to_put_the_weights(monkeypatch, tmp_path):
    def refuse(*_):
        raise urllib.error.URLError("no network here")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.load_model("RN50")
    message = str(error.value)
    assert str(tmp_path / ".cache" / "clip") in message
    assert "RN50.pt" in message
    assert "lite0-minilm" in message
    assert "no network here" in message
    assert "\n" not in message


@pytest.fixture
def loaders(monkeypatch, tmp_path):
    """Stand-ins for the two loaders; a cache folder of its own."""
    monkeypatch.setattr(registry, "clip_file", lambda name: tmp_path / "cache" / f"{name}.pt")
    monkeypatch.setattr(openai_clip, "download_clip", lambda name: f"weights of {name}")
    monkeypatch.setattr(openai_clip, "ClipModel", lambda name, weights, device: (name, weights))
    monkeypatch.setattr(lite0_minilm, "Lite0MiniLM", lambda name, device: (name, "offline"))
    return tmp_path / "cache"


def test_auto_is_lite0_without_clip_s_weights(loaders, capsys):
    assert vlscore.load_model("auto") == ("lite0-minilm", "offline")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"vlscore: model lite0-minilm (no weights of CLIP RN50 in {loaders})\n"


def test_auto_is_rn50_when_its_weights_are_in_the_cache(loaders, capsys):
    loaders.mkdir()
    (loaders / "RN50.pt").touch()
    assert vlscore.load_model("auto") == ("RN50", "weights of RN50")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"vlscore: model RN50 (its weights are in {loaders})\n"


def test_auto_is_lite0_when_clip_s_weights_cannot_be_used(loaders, monkeypatch, capsys):
    """As after a download that was cut short, without network."""
    loaders.mkdir()
    (loaders / "RN50.pt").touch()

    def unusable(_):
        raise vlscore.VLScoreError("cut short")

    monkeypatch.setattr(openai_clip, "download_clip", unusable)
    assert vlscore.load_model("auto") == ("lite0-minilm", "offline")
    err = capsys.readouterr().err
    assert err.endswith(f"vlscore: model lite0-minilm (no usable weights of CLIP RN50 in {loaders})\n")


def test_auto_is_the_default(loaders, capsys):
    assert vlscore.load_model() == ("lite0-minilm", "offline")


def test_a_named_model_is_not_announced(loaders, capsys):
    vlscore.load_model("lite0-minilm")
    assert capsys.readouterr() == ("", "")
