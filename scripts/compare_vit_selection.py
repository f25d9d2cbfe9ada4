"""Look for a fast path of a Vision Transformer: how near each comes to the exact saliency, for its cost.

    python scripts/compare_vit_selection.py        # some minutes on two cores

With `scenes-vit`, on the drawn scenes of `bench.py`, every mask is encoded once, and each way of saving
passes is compared with that.  A way's cost is its share of the exact method's operations in the blocks.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bench import correlation

import vlscore
from vlscore import scenes

SHARES = (0.25, 0.5, 0.75)  # of the passes, or of the tokens
LEVELS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)  # errors of scores, in cosines


class Transformer:
    """The steps of a `scenes-vit`, one by one."""

    def __init__(self, model):
        self.net, self.blocks = model.visual, list(model.visual.transformer.resblocks)

    def embed(self, pixels):
        """Tokens before the first block: (B, 1 + n, d)."""
        x = self.net.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.net.class_embedding.expand(len(x), 1, -1), x], dim=1)
        return self.net.ln_pre(x + self.net.positional_embedding)

    def run(self, tokens, first=0, last=None):
        """Tokens (B, n, d) through some of the blocks."""
        tokens = tokens.transpose(0, 1)
        for block in self.blocks[first:last]:
            tokens = block(tokens)
        return tokens.transpose(0, 1)

    def project(self, tokens):
        """The class token in the joint space: (B, D), unit."""
        return vlscore.unit(self.net.ln_post(tokens[:, 0]) @ self.net.proj)


def rbf(points):
    """A kernel over points (C, n) whose width is the median squared distance: (C, C)."""
    squares = torch.cdist(points, points) ** 2
    return (-squares / squares[squares > 0].median()).exp()


def predict(kernel, rows, embeddings, noise):
    """The other embeddings by a Gaussian process over a kernel (Rasmussen and Williams 2006, eq. 2.25)."""
    others, known = np.setdiff1d(np.arange(len(kernel)), rows), embeddings[rows]
    within = kernel[rows][:, rows] + noise * torch.eye(len(rows))
    found, mean = embeddings.clone(), known.mean(0)
    found[others] = vlscore.unit(kernel[others][:, rows] @ torch.linalg.solve(within, known - mean) + mean)
    return found


def keep_tokens(tokens, importance, share):
    """The class token, and the share of the patches of largest importance (B, n)."""
    rows = importance.topk(int(share * importance.shape[1]), dim=1).indices[..., None]
    patches = tokens[:, 1:].gather(1, rows.expand(-1, -1, tokens.shape[-1]))
    return torch.cat([tokens[:, :1], patches], dim=1)


def fast_paths(model, encoding, pixels):
    """Each way of saving passes: (name, cost) -> embeddings of all masks (C, D)."""
    net, exact, C = Transformer(model), encoding.mask_embeddings, len(encoding.maps)
    masked = pixels * vlscore.make_masks(encoding.maps, model.input_size)[:, None]
    masks = vlscore.make_masks(encoding.maps, model.input_size)[:, None]
    cells = F.avg_pool2d(masks, model.stride).flatten(1)  # (C, n)
    energy = F.avg_pool2d((masked**2).sum(1, keepdim=True), model.stride).flatten(1)
    tokens, whole = net.embed(masked), net.run(net.embed(pixels[None]), 0, 2)[0, 1:]
    pooled = cells / cells.sum(1, keepdim=True) @ whole  # what the mask shows of the middle block
    early = net.run(tokens, 0, 1)
    found = {}
    for share in SHARES:
        count = int(share * C)
        chosen = vlscore.select_maps(encoding.maps, count)
        strong = encoding.maps.flatten(1).var(1).topk(count).indices
        today = vlscore.predict_embeddings(encoding.maps, chosen, exact)
        both = rbf(cells) * rbf((pooled - pooled.mean(0)) / pooled.std(0))
        found["the fast path", share] = today
        found["strongest maps, masks' kernel, more noise", share] = predict(rbf(cells), strong, exact, 0.1)
        found["strongest maps, kernel of masks and tokens", share] = predict(both, strong, exact, 0.1)
        found["patches the mask shows most", share] = net.project(net.run(keep_tokens(tokens, cells, share)))
        found["patches of most energy", share] = net.project(net.run(keep_tokens(tokens, energy, share)))
        cost = 1 / len(net.blocks) + share * (1 - 1 / len(net.blocks))
        features = torch.cat([early[:, 0], early[:, 1:].mean(1)], dim=1)
        found["one block for all maps", cost] = predict(rbf(features), chosen, exact, 0.01)
    return found


def compare(model, dataset) -> dict:
    """Correlations with the exact saliency, errors of scores, and what errors of a given size would do."""
    from tqdm import tqdm

    texts = {name: vlscore.class_embedding(model, names) for name, names in dataset.classes.items()}
    r, errors, levels, spread = {}, {}, {level: [] for level in LEVELS}, []
    random = torch.Generator().manual_seed(0)
    for photo in tqdm(dataset.photos):
        exact, text = vlscore.encode(model, photo.path, precision="float32"), texts[photo.label]
        pixels = model.preprocess(vlscore.load_image(photo.path))
        scores, base = vlscore.scores(exact, text)
        spread.append(scores.std().item())

        def heat_of(embeddings, exact=exact, text=text):
            return vlscore.saliency(replace(exact, mask_embeddings=embeddings), text, model.temperature)

        wanted = heat_of(exact.mask_embeddings)
        for key, embeddings in fast_paths(model, exact, pixels).items():
            r.setdefault(key, []).append(correlation(wanted, heat_of(embeddings)))
            off = (embeddings - exact.mask_embeddings) @ text
            errors.setdefault(key, []).append(off.square().mean().sqrt().item())
        for level in LEVELS:
            wrong = scores + level * torch.randn(scores.shape, generator=random)
            beats = wrong > base
            w = (wrong / model.temperature).masked_fill(~beats, -torch.inf).softmax(0)
            heat = torch.einsum("k,khw->hw", w, exact.maps).relu() if beats.any() else None
            levels[level].append(correlation(wanted, heat))
    rows = [
        {"path": path, "cost": cost, "mean": float(np.mean(each)), "median": statistics.median(each)}
        | {"worst": min(each), "error": float(np.mean(errors[path, cost]))}
        for (path, cost), each in r.items()
    ]
    noise = [{"error": level, "mean": float(np.mean(each))} for level, each in levels.items()]
    facts = {"images": len(dataset.photos), "model": model.name, "temperature": model.temperature}
    return facts | {"spread": float(np.mean(spread)), "paths": rows, "noise": noise}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--out", default="data/vit_selection.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes.write_scenes(Path(folder), options.images, 31, (224, 224))
        with torch.inference_mode():
            found = compare(vlscore.load_model("scenes-vit", "cpu"), vlscore.read_dataset(folder))
    vlscore.write_whole(options.out, json.dumps(found, indent=1).encode())
    for row in sorted(found["paths"], key=lambda row: (row["cost"], -row["mean"])):
        print(f"{row['cost']:5.0%}  r {row['mean']:.3f}, median {row['median']:.3f}  {row['path']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
