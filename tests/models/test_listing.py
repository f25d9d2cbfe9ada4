"""Lists of models, of which nothing is loaded or downloaded."""

import socket
from importlib.metadata import PackageNotFoundError

import families
import open_clip
import pytest

import vlscore
from vlscore_lib.models import facts, listing


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a list needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache, name, kind, size=3_000_000):
    """A model in the cache, as huggingface_hub lays it out."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / "0123").write_bytes(bytes(size))
    (folder / "snapshots" / "abc").mkdir(parents=True)
    file = "open_clip_config.json" if kind == "open_clip" else "config.json"
    families.edit_json(folder / "snapshots" / "abc" / file, model_type=kind)


def test_own_models_have_sizes_on_disk_or_of_the_download(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = {each.name: each for each in vlscore.list_models("own")}
    assert list(found) == ["lite0-minilm", "scenes-rn", "scenes-vit", *vlscore.CLIP_NAMES]
    assert found["scenes-rn"].megabytes == facts.scenes_file("scenes-rn").stat().st_size / 1e6
    assert 100 < found["lite0-minilm"].megabytes < 130  # 19 MB of EfficientNet-Lite0, 91 MB of MiniLM
    assert (found["RN50"].is_here, found["RN50"].megabytes) == (False, 256)
    assert 600 < found["RN50x16"].megabytes < found["RN50x64"].megabytes < 1500


def test_open_clip_lists_its_published_models(run, cache):
    code, out, err = run("models", "open_clip")
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert (code, err) == (0, "")
    assert names == [f"open_clip:{architecture}/{tag}" for architecture, tag in open_clip.list_pretrained()]


@pytest.mark.parametrize("word", ["siglip", "SigLIP", "webli"])
def test_a_word_searches_the_names(run, cache, word):
    rows = run("models", "open_clip", word)[1].splitlines()[1:]
    assert len(rows) > 5
    assert all(word.lower() in row.split()[0].lower() for row in rows)


def test_what_is_cached_is_here_with_its_size(run, cache):
    put(cache, "timm/ViT-B-16-SigLIP", "open_clip")
    put(cache, "owner/own-clip", "clip")
    put(cache, "owner/words", "bert")
    (row,) = [
        line for line in run("models", "open_clip", "SigLIP/")[1].splitlines() if "B-16-SigLIP/" in line
    ]
    assert row.split()[1:4] == ["yes", "3", "MB"]
    rows = [line.split() for line in run("models", "hf")[1].splitlines()]
    assert rows[1][:4] == ["hf:owner/own-clip", "yes", "3", "MB"]
    assert not any("owner/words" in row[0] for row in rows)
    out = run("models")[1]
    assert out.count(f"1 in {cache}, 3 MB") == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["opn_clip"], "unknown family 'opn_clip': choose one of own, open_clip, hf"),
        (["open_clip", "siglap"], "no model of open_clip has 'siglap' in its name: choose"),
        (["own", "RN51"], "RN50"),
    ],
)
def test_an_unknown_family_or_word_is_told_in_a_line(run, cache, arguments, words):
    code, out, err = run("models", *arguments)
    assert (code, out) == (2, "")
    assert words in err and err.count("\n") == 1


def test_a_library_that_is_missing_names_the_extra(run, cache, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(listing, "version", missing)
    out = run("models")[1]
    assert "open-clip-torch is missing: pip install 'vlscore[models]'" in out
    assert "transformers is missing: pip install 'vlscore[models]'" in out
