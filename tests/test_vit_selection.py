"""The comparison of a ViT's fast paths: its steps are the network's, and the book has its numbers."""

import json
import re
from pathlib import Path

import compare_vit_selection as study
import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

import vlscore

ROOT = Path(vlscore.__file__).parent


@torch.inference_mode()
def test_the_steps_together_are_the_network():
    scenes_vit = vlscore.load_model("scenes-vit", "cpu")
    pixels = torch.randn(3, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    net = study.Transformer(scenes_vit)
    early = net.run(net.embed(pixels), 0, 2)
    torch.testing.assert_close(net.project(net.run(early, 2)), scenes_vit.encode_image(pixels))


def test_prediction_is_scikit_learns_gaussian_process():
    random = np.random.default_rng(0)
    points, embeddings = random.normal(size=(2, 12, 3)).astype(np.float32)
    squares = ((points[:, None] - points) ** 2).sum(-1)
    width = np.sort(squares[squares > 0])[65]  # the lower of the two middle ones, as PyTorch takes it
    rows, others = np.arange(0, 12, 2), np.arange(1, 12, 2)
    kernel = RBF((width / 2) ** 0.5, "fixed")
    process = GaussianProcessRegressor(kernel, alpha=0.1, optimizer=None)
    mean = embeddings[rows].mean(0)
    expected = process.fit(points[rows], embeddings[rows] - mean).predict(points[others]) + mean
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    points, embeddings = torch.from_numpy(points), torch.from_numpy(embeddings)
    found = study.predict(study.rbf(points), torch.from_numpy(rows), embeddings, 0.1)
    np.testing.assert_allclose(found[others], expected, atol=1e-6)
    assert torch.equal(found[rows], embeddings[rows])


def test_the_most_important_patches_are_kept():
    tokens = torch.arange(2 * 5.0).reshape(1, 5, 2)
    found = study.keep_tokens(tokens, torch.tensor([[0.1, 0.9, 0.3, 0.5]]), 0.5)
    assert found[0, :, 0].tolist() == [0, 4, 8]


@pytest.fixture(scope="module")
def committed():
    return json.loads((ROOT / "data" / "vit_selection.json").read_text())


def test_the_chapter_on_speed_repeats_the_table(committed):
    cells = json.loads((ROOT / "notebooks" / "05_speed_and_fidelity.ipynb").read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    table = text[text.index(":name: tab-vit-selection") : text.index("What bounds it")]
    shown = re.findall(r"- (\d+) %\n  - ([\d.]+)\n  - ([\d.]+)\n  - ([\d.]+)", table)
    stored = {
        tuple(f"{value:.3f}" for value in (row["mean"], row["median"], row["error"])): row["cost"]
        for row in committed["paths"]
    }
    assert len(shown) == 7
    for cost, *values in shown:
        assert float(cost) == pytest.approx(100 * stored[tuple(values)], abs=0.51)
    halves = [row for row in committed["paths"] if row["cost"] == 0.5]
    assert max(row["mean"] for row in halves) == pytest.approx(0.922, abs=5e-4)
    assert min(row["error"] for row in halves) == pytest.approx(0.069, abs=5e-4)
    noise = {row["error"]: row["mean"] for row in committed["noise"]}
    assert (round(noise[0.02], 2), round(noise[0.05], 2)) == (0.96, 0.77)
