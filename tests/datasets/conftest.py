"""Fixtures of the tests of datasets."""

import shutil

import pytest
from datasets_helpers import KINDS, SEED, SIZE, convert, packaged, scene

from vlscore_lib import scenes


@pytest.fixture(scope="session")
def ten(tmp_path_factory):
    """The root of ten scenes as drawn, in the official layout: not to be changed."""
    root = tmp_path_factory.mktemp("ten") / "scenes"
    scenes.write_scenes(root, 10, SEED, SIZE)
    return root


@pytest.fixture(scope="session")
def truth():
    """Name, class, size and boxes of each scene, as the drawing tells."""
    drawn = [scenes.draw_scene(scenes.scene_rng(SEED, n), SIZE)[1] for n in range(1, 11)]
    wnids = [wnid for wnid, _ in scenes.classes()]
    return [
        (scene(n), wnids[found[0][0]], SIZE, [box for index, box in found if index == found[0][0]])
        for n, found in enumerate(drawn, start=1)
    ]


@pytest.fixture(scope="session")
def sets(ten, tmp_path_factory):
    """The root of the ten scenes by layout: not to be changed."""
    folder = tmp_path_factory.mktemp("sets")
    return {kind: convert(kind, ten, folder / str(n)) for n, kind in enumerate(KINDS)}


@pytest.fixture
def official(ten, tmp_path):
    """A copy of the ten scenes, to be spoilt."""
    return shutil.copytree(ten, tmp_path / "official")


@pytest.fixture(scope="session")
def known():
    """wnid of each ImageNet validation photo, by name; the photos' order is that of the names."""
    wnids, labels = packaged("imagenet1k_to_21k.json"), packaged("val_image_to_1k_label.json")
    return {name.removesuffix(".JPEG"): wnids[str(index)] for name, index in sorted(labels.items())}
