"""Encodings on disk: as good as fresh ones, found by content, model and options."""

import os
import warnings

import pytest
import torch

import vlscore
from vlscore_lib.options import EncodingOptions
from vlscore_lib.store import EncodingStore

MODELS = ("lite0-minilm", "scenes-rn", "scenes-vit")


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return vlscore.load_model(request.param, "cpu")


def options(**changes):
    return EncodingOptions(**{"keep": 16, "precision": "float32"} | changes)


def stored(model, path, folder, **changes):
    """A fresh encoding, and the same from a store."""
    chosen = options(**changes)
    fresh = vlscore.encode(model, path, keep=chosen.keep, precision="float32", refined=chosen.refined)
    store, content = EncodingStore(folder, model, chosen), vlscore.read_content(path)
    assert store.read(content) is None
    store.write(content, fresh)
    return fresh, store.read(content)


@pytest.mark.parametrize("changes", [{}, {"refined": True}, {"keep": None}], ids=str)
def test_boxes_are_the_same(model, chelsea, tmp_path, changes):
    if changes == {"keep": None} and model.name == "lite0-minilm":
        pytest.skip("1,280 passes")
    fresh, found = stored(model, chelsea, tmp_path, **changes)
    for name in ("model", "layer", "kind", "fit", "temperature", "threshold", "family", "refined"):
        assert getattr(fresh, name) == getattr(found, name)
    assert torch.equal(fresh.indices, found.indices)
    torch.testing.assert_close(fresh.mask_embeddings, found.mask_embeddings, atol=2e-3, rtol=0)
    for word in ("cat", "red circle", "car"):
        text = model.encode_text([f"an image of a {word}."])[0]
        boxes = [
            vlscore.find_boxes(vlscore.saliency(each, text, model.temperature), each)
            for each in (fresh, found)
        ]
        for one, other in zip(*boxes, strict=True):
            assert max(abs(a - b) for a, b in zip(one, other)) <= 1


def test_half_a_megabyte_is_enough(chelsea, tmp_path):
    """At keep=64, for `lite0-minilm` refined, too."""
    model = vlscore.load_model("lite0-minilm", "cpu")
    stored(model, chelsea, tmp_path, keep=64, refined=True)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 500_000


def test_what_changes_the_encoding_changes_the_file(rn, vit, chelsea, tmp_path):
    content = vlscore.read_content(chelsea)
    stores = [
        EncodingStore(tmp_path, rn, options()),
        EncodingStore(tmp_path, vit, options()),
        EncodingStore(tmp_path, rn, options(keep=17)),
        EncodingStore(tmp_path, rn, options(refined=True)),
        EncodingStore(tmp_path, rn, options(fit="pad")),
        EncodingStore(tmp_path, rn, options(layer="layer3")),
    ]
    files = {store.file(each) for store in stores for each in (content, content + b"x")}
    assert len(files) == 2 * len(stores)
    assert EncodingStore(tmp_path, rn, options(batch_size=3)).file(content) == stores[0].file(content)


def test_a_layer_s_own_cells_are_kept(scenes_rn, chelsea, tmp_path):
    """Where the maps are of another layer than the last, cells cannot be computed from them."""
    chosen = options(refined=True, layer="layer3")
    fresh = vlscore.encode(scenes_rn, chelsea, "layer3", keep=16, precision="float32", refined=True)
    store, content = EncodingStore(tmp_path, scenes_rn, chosen), vlscore.read_content(chelsea)
    found = store.write(content, fresh)
    for one, other in zip(fresh.scales, found.scales, strict=True):
        torch.testing.assert_close(one.cells, other.cells, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_damaged_file_is_encoded_again(rn, chelsea, tmp_path, damage):
    store, content = EncodingStore(tmp_path, rn, options()), vlscore.read_content(chelsea)
    store.write(content, vlscore.encode(rn, chelsea, keep=16))
    file = store.file(content)
    file.write_bytes(file.read_bytes()[:-50] if damage is None else damage)
    assert store.read(content) is None
    assert store.read_rows(content) is None


def test_the_least_recently_used_go_first(rn, chelsea, tmp_path):
    encoding, content = vlscore.encode(rn, chelsea, keep=16), vlscore.read_content(chelsea)
    free = EncodingStore(tmp_path, rn, options())
    for n in range(4):
        free.write(content + bytes([n]), encoding)
        os.utime(free.file(content + bytes([n])), (n, n))
    size = free.file(content + b"\0").stat().st_size
    os.utime(free.file(content + b"\0"))  # used again
    tight = EncodingStore(tmp_path, rn, options(), limit=2.5 * size / 1e9)
    tight.write(content, encoding)
    assert {file.name for file in tmp_path.iterdir()} == {
        tight.file(content).name,
        free.file(content + b"\0").name,
    }


def test_rows_are_those_of_the_maps_that_were_encoded(rn, chelsea, tmp_path):
    store, content = EncodingStore(tmp_path, rn, options()), vlscore.read_content(chelsea)
    encoding = vlscore.encode(rn, chelsea, keep=16)
    store.write(content, encoding)
    rows = store.read_rows(content)
    expected = encoding.mask_embeddings[encoding.indices]
    torch.testing.assert_close(rows.mask_embeddings, expected, atol=1e-3, rtol=0)
    assert torch.equal(rows.image_embedding, encoding.image_embedding)


def test_a_file_in_the_place_of_the_folder_is_told(rn, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(vlscore.VLScoreError, match="cannot hold encodings"):
        EncodingStore(tmp_path / "file", rn, options())


def test_rn50_s_encoding_has_half_a_megabyte(chelsea, tmp_path, monkeypatch):
    """Of RN50's shape with random weights, whose maps have fewer zeros than trained ones; plain.

    The embeddings are noise, which takes no less space than those of masked images.
    """
    CLIP = vlscore.import_clip().model.CLIP
    torch.manual_seed(0)
    net = CLIP(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 64, 1, 1)
    model = vlscore.ClipModel("rn50", net, "cpu")
    monkeypatch.setattr(
        vlscore, "fast_encoder", lambda *_: lambda pixels, maps=None: torch.randn(len(pixels), 1024)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored(model, chelsea, tmp_path, keep=64)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size < 500_000
