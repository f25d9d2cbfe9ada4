"""What is kept on disk: made once, made again where it is lost or damaged, and never in the way."""

import os

import pytest
import torch

from vlscore_lib import cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VLSCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def count(calls):
    calls.append(1)
    return torch.arange(6.0).reshape(2, 3)


def test_a_tensor_is_made_once(folder):
    calls = []
    found = [cache.remember_tensor("numbers", lambda: count(calls)) for _ in range(3)]
    assert len(calls) == 1
    for each in found:
        assert torch.equal(each, torch.arange(6.0).reshape(2, 3))
    assert [path.name for path in folder.iterdir()] == ["numbers"]


@pytest.mark.parametrize("content", [b"", b"no tensor", b"\xff" * 200])
def test_a_damaged_file_is_made_again(folder, content):
    folder.mkdir()
    (folder / "numbers").write_bytes(content)
    calls = []
    for _ in range(2):
        assert cache.remember_tensor("numbers", lambda: count(calls)).shape == (2, 3)
    assert len(calls) == 1


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("VLSCORE_CACHE", str(tmp_path / "file" / "cache"))
    calls = []
    for _ in range(2):
        assert cache.remember_tensor("numbers", lambda: count(calls)).shape == (2, 3)
    assert len(calls) == 2


def test_an_error_in_making_is_told(folder):
    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.remember_tensor("numbers", fail)
    assert not folder.exists()


def test_the_user_s_own_folder_for_caches_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("VLSCORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "vlscore"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache.cache_folder() == tmp_path / "me" / ".cache" / "vlscore"


def test_other_facts_have_another_name():
    assert cache.digest("a", ["b"]) == cache.digest("a", ["b"])
    assert len({cache.digest(*facts) for facts in (("a", "b"), ("ab",), ("a", ["b"]), ("\ud800",))}) == 4


def test_a_file_that_was_cut_short_is_not_read(folder):
    cache.write_cached("thing", b"content" * 100)
    assert cache.read_cached("thing") == b"content" * 100
    file = folder / "thing"
    file.write_bytes(file.read_bytes()[:-1])
    assert cache.read_cached("thing") is None


def test_modules_of_the_same_weights_that_compute_other_things_differ():
    """The number of heads and an epsilon are in no weight."""
    torch.manual_seed(0)
    one, other = (torch.nn.MultiheadAttention(8, heads) for heads in (2, 4))
    other.load_state_dict(one.state_dict())
    assert cache.hash_weights({"a": one}) == cache.hash_weights({"a": other})
    assert cache.describe_module(one) != cache.describe_module(other)
    norms = [torch.nn.LayerNorm(4, eps=eps) for eps in (1e-5, 1e-6, 1e-5)]
    facts = [cache.describe_module(torch.nn.Sequential(each)) for each in norms]
    assert facts[0] == facts[2] != facts[1]


def test_tests_have_a_cache_of_their_own():
    assert "cache" in os.environ["VLSCORE_CACHE"]
