"""Selection: which maps are encoded, and what is predicted for the others."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoding_helpers import greedy64, process64, unit64
from PIL import Image

import vlscore
from vlscore_lib.selection import select_for_images
from vlscore_lib.sources import read_plain_sources, read_sources


@pytest.mark.parametrize("n", [1, 20, 100])
def test_keep_sends_the_greedy_choice_through_the_encoder(full, chelsea, n):
    model, exact = full
    found = vlscore.encode(model, chelsea, keep=n, precision="float32")
    rows = greedy64(exact.maps.numpy(), n)
    assert found.indices.tolist() == rows.tolist()
    assert torch.equal(found.maps, exact.maps)
    torch.testing.assert_close(found.mask_embeddings[rows], exact.mask_embeddings[rows], atol=1e-6, rtol=0)
    assert torch.equal(found.base_embedding, exact.base_embedding)
    assert torch.equal(found.image_embedding, exact.image_embedding)


@pytest.mark.parametrize("n", [1, 20, 100])
def test_the_other_embeddings_are_a_gaussian_process(full, n):
    _, exact = full
    rows = greedy64(exact.maps.numpy(), n)
    known = exact.mask_embeddings.double().numpy()[rows]
    mean, _ = process64(exact.maps.numpy(), rows, known)
    expected = torch.from_numpy(unit64(mean.reshape(len(mean), -1) + known.mean(0))).float()
    expected[rows] = exact.mask_embeddings[rows]
    constant = ~vlscore.varies(exact.maps)
    expected[constant] = exact.mask_embeddings[constant]
    found = vlscore.predict_embeddings(exact.maps, torch.from_numpy(rows), exact.mask_embeddings)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99])
def test_keep_a_fraction_stops_when_that_share_of_the_variance_is_known(full, share):
    _, encoding = full
    A = encoding.maps.numpy()
    energy = A.reshape(len(A), -1).astype(np.float64).var(1)
    rows = vlscore.select_maps(encoding.maps, share).tolist()

    def known(rows):
        return 1 - energy @ process64(A, rows)[1] ** 2 / energy.sum()

    assert rows == greedy64(A, len(rows)).tolist()
    assert known(rows) >= share - 1e-9 or len(rows) == len(A)
    assert len(rows) == 1 or known(greedy64(A, len(rows) - 1).tolist()) < share


def test_several_images_share_batches(full, chelsea):
    """A batch holds masked images of both photos, and each `Encoding` is that of its photo alone."""
    model, _ = full
    seen, image = [], Image.open(chelsea)
    images = [image, image.rotate(90), image.crop((0, 0, 100, 80))]

    def progress(batches):
        for batch in batches:
            seen.append(batch[:, 0].unique().tolist())
            yield batch

    together = vlscore.encode_images(model, images, vlscore.EncodingOptions(keep=20, batch_size=16), progress)
    assert [0, 1] in seen
    for image, found in zip(images, together):
        alone = vlscore.encode(model, image, keep=20)
        assert found.fit == alone.fit
        assert torch.equal(found.indices, alone.indices)
        for name in ("maps", "mask_embeddings", "base_embedding", "image_embedding"):
            torch.testing.assert_close(getattr(found, name), getattr(alone, name), atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep", [1, 40, 0.9, None])
def test_several_images_are_ranked_together(rn, chelsea, keep):
    """Each gets the maps that it would get alone."""
    image = Image.open(chelsea)
    images = [image, image.rotate(90), image.crop((0, 0, 100, 80))]
    maps = torch.cat([rn.feature_maps(rn.preprocess(each)[None]) for each in images])
    together = select_for_images(maps, keep)
    assert [each.tolist() for each in together] == [vlscore.select_maps(each, keep).tolist() for each in maps]


def test_ranking_takes_as_many_steps_for_eight_images_as_for_one(full):
    """A GPU waits for Python between two operations, so their number is what counts there."""
    _, encoding = full

    def count_operations(maps):
        with torch.profiler.profile() as profile:
            select_for_images(maps, 20)
        return sum(each.count for each in profile.key_averages())

    maps = encoding.maps[None]
    assert count_operations(maps.repeat(8, 1, 1, 1)) < 1.2 * count_operations(maps)


def test_plain_maps_of_several_images_in_one_pass(rn, chelsea):
    """As a GPU reads them: the same as one by one, up to rounding."""
    image, options = Image.open(chelsea), vlscore.EncodingOptions(layer="layer3")
    images = [image, image.rotate(90)]
    pixels = torch.stack([rn.preprocess(each) for each in images])
    together = read_plain_sources(rn, pixels, options)
    for found, alone in zip(together, read_sources(rn, images, pixels, options), strict=True):
        assert (found.layer, found.kind) == (alone.layer, alone.kind) == ("layer3", "activation")
        torch.testing.assert_close(found.maps, alone.maps, atol=1e-5, rtol=1e-5)


def test_keep_more_than_there_are_is_all(full):
    _, encoding = full
    assert vlscore.select_maps(encoding.maps, 10**6).tolist() == list(range(len(encoding.maps)))


def test_keep_none_is_all():
    assert vlscore.select_maps(torch.zeros(5, 2, 2), None).tolist() == [0, 1, 2, 3, 4]


def test_keep_a_fraction_of_constant_maps_is_not_empty():
    assert len(vlscore.select_maps(torch.ones(5, 2, 2), 0.5)) >= 1


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.0, 1.5, -0.5, math.nan, math.inf, True, "8", [3]])
def test_keep_out_of_range(rn, chelsea, keep):
    with pytest.raises(vlscore.VLScoreError, match="keep"):
        vlscore.encode(rn, chelsea, keep=keep, precision="float32")


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_out_of_range(rn, chelsea, batch_size):
    with pytest.raises(vlscore.VLScoreError, match="batch_size"):
        vlscore.encode(rn, chelsea, batch_size=batch_size, precision="float32")


@pytest.mark.parametrize(
    "wrong", [{"layer": "layer9"}, {"maps": "keys"}, {"fit": "zoom"}, {"precision": "16"}]
)
def test_unknown_options(rn, chelsea, wrong):
    with pytest.raises(vlscore.VLScoreError, match="choose one of"):
        vlscore.encode(rn, chelsea, **{"precision": "float32", **wrong})


def test_keep_comes_nearer_to_the_exact_saliency_than_the_largest_deviations(scenes_rn, drawn):
    """What the choice and the prediction are for, on drawn scenes at 24 of 256 maps."""
    ours, theirs = [], []
    dataset = vlscore.read_dataset(drawn)
    for photo in dataset.photos[:6]:
        exact = vlscore.encode(scenes_rn, photo.path, layer="layer3", precision="float32")
        text = vlscore.class_embedding(scenes_rn, dataset.classes[photo.label])
        wanted = vlscore.saliency(exact, text, 0.1).flatten()
        rows = vlscore.select_maps(exact.maps, 24)
        e = vlscore.predict_embeddings(exact.maps, rows, exact.mask_embeddings)
        kept = vlscore.saliency(replace(exact, mask_embeddings=e), text, 0.1)
        strongest = exact.maps.std((1, 2)).topk(24).indices
        some = {"maps": exact.maps[strongest], "mask_embeddings": exact.mask_embeddings[strongest]}
        plain = vlscore.saliency(replace(exact, **some), text, 0.1)
        for each, correlations in ((kept, ours), (plain, theirs)):
            correlations.append(torch.corrcoef(torch.stack([wanted, each.flatten()]))[0, 1].item())
    assert np.mean(ours) > 0.98
    assert np.mean(ours) > np.mean(theirs)
