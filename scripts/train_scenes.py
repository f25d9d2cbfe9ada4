"""Train a small CLIP on drawn scenes: OpenAI's architecture classes, contrastive, on a CPU.

    python scripts/train_scenes.py rn      the image encoder is a ModifiedResNet
    python scripts/train_scenes.py vit     the image encoder is a ViT

Each step scores a batch of scenes against a fresh wording of every caption, not against the captions
of the batch alone: with 80 classes, captions repeat, and a repeated caption is not a negative.  The
captions are those of the classes ("a red circle"), and of each shape and each colour by itself.

Everything but the result is kept in the work folder, where a stopped run goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from tqdm import tqdm
from training_data import TEMPLATES, VALIDATION_SEED, caption_groups, draw, training_set, wordings

import vlscore
from vlscore import scenes

HELD_OUT = 500  # single-object scenes that the curve is measured on
# Captions are short: the text encoder is trained on 16 positions, and the others stay 0.
TEXT = {
    "embed_dim": 128,
    "context_length": 16,
    "vocab_size": 49408,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 2,
}
ENCODERS = {
    "rn": {
        "image_resolution": 160,
        "vision_layers": (1, 1, 1, 1),
        "vision_width": 16,
        "vision_patch_size": None,
    },
    "vit": {
        "image_resolution": 80,
        "vision_layers": 4,
        "vision_width": 128,
        "vision_patch_size": 8,
    },
}


@dataclass(frozen=True)
class Recipe:
    """How long to train on how many scenes.

    Attributes:
        scenes, chunk: number of training scenes, and how many are drawn into one file.
        cycles: number of steps of each cycle of the learning rate.
        batch: number of scenes in a step.
        rate: the highest learning rate.
        guided: number of steps, from the first, that the trained CNN guides the ViT.
        every: steps between two points of the curve; the state is saved then.
    """

    scenes: int
    cycles: tuple[int, ...]
    batch: int
    rate: float
    guided: int = 0
    chunk: int = 1000
    every: int = 100


RECIPES = {
    "rn": Recipe(scenes=32_000, cycles=(1000, 600), batch=128, rate=2e-3),
    "vit": Recipe(scenes=48_000, cycles=(2000,), batch=64, rate=3e-3, guided=1300),
}


# ── Training ─────────────────────────────────────────────────────────────────────────────────────


def contrastive_loss(logits: torch.Tensor, fits: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric cross-entropy, with several right answers sharing the target.

    Args:
        logits: (B, N), scaled cosines of B scenes and N captions.
        fits: (B, N) of bool, which captions are right.
    """
    asked = fits.any(0)  # captions that no scene of the batch fits have no target
    by_scene = -(logits.log_softmax(1) * fits).sum(1) / fits.sum(1)
    by_caption = -(logits.log_softmax(0) * fits).sum(0)[asked] / fits.sum(0)[asked]
    return (by_scene.mean() + by_caption.mean()) / 2


def turn_and_mirror(pixels: torch.Tensor, quarters: int, mirrored: bool) -> torch.Tensor:
    """A batch (B, C, h, w) turned by quarters and mirrored: no class depends on either."""
    turned = torch.rot90(pixels, quarters, (2, 3))
    return turned.flip(3) if mirrored else turned


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, S, S) of uint8 as CLIP's image encoders take them."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (vlscore.CLIP_MEAN, vlscore.CLIP_STD))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


class FusedQuickGELU(torch.nn.Module):
    """CLIP's x·σ(1.702 x) by PyTorch's fused SiLU: a third less time for a step of the ViT."""

    def forward(self, x):
        return F.silu(1.702 * x) / 1.702


def build(kind: str):
    """CLIP of OpenAI's classes with random weights."""
    clip = vlscore.import_clip().model.CLIP(**TEXT, **ENCODERS[kind])
    if kind == "vit":
        for block in clip.visual.transformer.resblocks:
            block.mlp.gelu = FusedQuickGELU()
    return clip


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix, about, by five Newton-Schulz steps (Jordan et al. 2024, Muon)."""
    x = matrix / (matrix.norm() + 1e-7)
    if is_tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalised, for matrices (Jordan et al. 2024), in float32.

    PyTorch's own multiplies in bfloat16, which takes forty times as long on a CPU without it.
    """

    def __init__(self, weights):
        super().__init__(weights, {"lr": 0.0, "weight_decay": 0.05})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 0.05)
                change = orthogonalised(weight.grad.lerp(momentum, 0.95))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                # As large as a step of AdamW at the same rate.
                weight.add_(change, alpha=-0.2 * group["lr"] * max(change.shape) ** 0.5)


def optimisers(kind: str, clip, guide=None) -> list[torch.optim.Optimizer]:
    """Decay for matrices only: not for biases, gains, positions and word embeddings.

    The ViT's matrices learn by Muon, which took it about a quarter fewer steps than AdamW.
    """
    decayed, free = [], []
    for name, weight in clip.named_parameters():
        (decayed if weight.ndim > 1 and "embedding" not in name else free).append(weight)
    adam = {"lr": 0.0, "betas": (0.9, 0.98)}
    if kind == "rn":
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, **adam)]
    matrices = [weight for weight in decayed if weight.ndim == 2]
    others = free + [weight for weight in decayed if weight.ndim != 2]
    if guide is not None:
        others += list(guide.heads.parameters())
    return [Muon(matrices), torch.optim.AdamW(others, weight_decay=0.0, **adam)]


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate: 200 steps of warming up, and half a cosine down to 0 in each cycle.

    A cycle starts at half the rate of the one before (restarts: Loshchilov and Hutter 2017).
    """
    highest, start = recipe.rate * min(1, (step + 1) / 200), 0
    for steps in recipe.cycles:
        if step < start + steps:
            break
        highest, start = highest / 2, start + steps
    return float(highest * 0.5 * (1 + np.cos(np.pi * (step - start) / steps)))


def caption_loss(clip, images, labels, captions, groups) -> torch.Tensor:
    """The mean contrastive loss over the three sets of captions.

    Args:
        images: (B, D) embeddings of the scenes.
        labels: (B, 80) of bool.
        captions: one wording of each caption of each of the groups.
    """
    tokens = vlscore.import_clip().tokenize(list(chain(*captions)), TEXT["context_length"])
    texts = F.normalize(clip.encode_text(tokens), dim=-1)  # (N, D)
    logits = clip.logit_scale.exp() * F.normalize(images, dim=-1) @ texts.T  # (B, N)
    losses = []
    for part, (_, fit) in zip(logits.split([len(each) for each in captions], dim=1), groups):
        losses.append(contrastive_loss(part, (labels.float() @ fit.float()) > 0))
    return torch.stack(losses).mean()


def start_text(clip) -> None:
    """Start the text encoder from the trained CNN's, so that both models have one embedding space."""
    state = vlscore.load_model("scenes-rn", "cpu").clip.state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("visual.")}
    state["positional_embedding"] = state["positional_embedding"][: TEXT["context_length"]]
    clip.load_state_dict(state, strict=False)


class Guide(torch.nn.Module):
    """In the first steps the trained CNN shows the ViT what is where (FitNets, Romero et al. 2015).

    Linear maps of the patch tokens of the ViT's second and third block are to equal the CNN's layer3
    and layer4 maps, and its embedding that of the CNN.  Without it the ViT learns colours and no shape
    within 1,000 steps.  The patch tokens of the last block, where maps are read, have no such aim.
    """

    def __init__(self, pixels: torch.Tensor):
        super().__init__()
        self.cnn, self.pixels = vlscore.load_model("scenes-rn", "cpu").visual, pixels
        width = ENCODERS["vit"]["vision_width"]
        self.heads = torch.nn.ModuleList([torch.nn.Linear(width, 256), torch.nn.Linear(width, 512)])

    @contextmanager
    def watching(self, clip):
        """Keep the two blocks' outputs while the block runs."""
        self.tokens = []
        blocks = clip.visual.transformer.resblocks[1:3]
        handles = [
            block.register_forward_hook(lambda _, __, output: self.tokens.append(output)) for block in blocks
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, images, rows, quarters, mirrored) -> torch.Tensor:
        """Distances to the CNN's maps of the same scenes, each channel of variance 1, and embeddings."""
        seen = normalise(turn_and_mirror(self.pixels[rows], quarters, mirrored))
        cnn = self.cnn
        with torch.no_grad(), vlscore.tapped(cnn.layer3) as third, vlscore.tapped(cnn.layer4) as fourth:
            embeddings = cnn(seen)
        losses = [1 - F.cosine_similarity(images, embeddings).mean()]
        for tokens, head, maps in zip(self.tokens, self.heads, (third.output, fourth.output)):
            patches = head(tokens[1:]).permute(1, 2, 0)  # (B, C, h·w)
            side = round(patches.shape[2] ** 0.5)
            target = F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)
            target = F.batch_norm(target, None, None, training=True, eps=1e-4)
            losses.append(F.mse_loss(patches.unflatten(2, (side, side)), target))
        return sum(losses)


@torch.inference_mode()
def top1(clip, pixels, labels) -> float:
    """Zero-shot accuracy: share of scenes with one of whose classes the embedding agrees most.

    All 80 classes are candidates, each by the mean of its names' text embeddings.
    """
    clip.eval()
    texts = []
    for _, names in scenes.classes():
        prompts = [vlscore.TEMPLATE.format(name) for name in names]
        tokens = vlscore.import_clip().tokenize(prompts, TEXT["context_length"])
        texts.append(vlscore.unit(clip.encode_text(tokens)).mean(0))
    images = torch.cat([clip.encode_image(normalise(each)) for each in pixels.split(100)])
    first = (vlscore.unit(images) @ vlscore.unit(torch.stack(texts)).T).argmax(1)
    clip.train()
    return labels[torch.arange(len(labels)), first].float().mean().item()


def train(kind: str, recipe: Recipe, work: Path):
    """Train, or go on where a run in the same folder stopped: the same weights either way.

    Args:
        kind: ``"rn"`` or ``"vit"``.
        work: where scenes and the run's state are kept.

    Returns:
        CLIP, trained, and the curve: (step, mean loss since the last point, zero-shot accuracy).
    """
    work.mkdir(parents=True, exist_ok=True)
    size, groups = ENCODERS[kind]["image_resolution"], caption_groups()
    pixels, labels = training_set(work, recipe.scenes, recipe.chunk, size)
    held_out = draw(VALIDATION_SEED, range(HELD_OUT), size, objects=1)
    torch.manual_seed(0)
    clip, guide = build(kind), None
    if recipe.guided:
        guide = Guide(training_set(work, recipe.scenes, recipe.chunk, ENCODERS["rn"]["image_resolution"])[0])
        start_text(clip)
    run = Run(work / f"{kind}.pt", clip, guide, optimisers(kind, clip, guide))
    steps = sum(recipe.cycles)
    bar = tqdm(range(run.step, steps), f"scenes-{kind}", steps, initial=run.step, unit="step")
    losses = []
    for step in bar:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(pixels), (recipe.batch,), generator=generator)
        captions = [wordings(generator, names) for names, _ in groups]
        turn = int(torch.randint(4, (1,), generator=generator)), torch.rand(1, generator=generator) < 0.5
        batch = normalise(turn_and_mirror(pixels[rows], *turn))
        is_guided = step < recipe.guided
        with guide.watching(clip) if is_guided else nullcontext():
            images = clip.encode_image(batch)  # (B, D)
        loss = caption_loss(clip, images, labels[rows], captions, groups)
        losses.append(loss.item())
        run.take_step(loss + guide.loss(images, rows, *turn) if is_guided else loss, rate_at(step, recipe))
        if (step + 1) % recipe.every == 0:
            run.save(step + 1, float(np.mean(losses)), top1(clip, *held_out))
            losses = []
            bar.set_postfix_str("loss {:.3f}, top-1 {:.3f}".format(*run.curve[-1][1:]))
    return clip.eval(), run.curve


class Run:
    """All that changes while training, kept in a file.

    Attributes:
        step: the number of steps done.
        curve: (step, mean loss since the last point, zero-shot accuracy).
    """

    def __init__(self, path: Path, clip, guide, rules):
        self.path, self.rules, self.step, self.curve = path, rules, 0, []
        self.learning = torch.nn.ModuleList([clip] if guide is None else [clip, guide])
        if path.exists():
            saved = torch.load(path, weights_only=True)
            self.learning.load_state_dict(saved["learning"])
            for rule, state in zip(rules, saved["rules"]):
                rule.load_state_dict(state)
            self.step, self.curve = saved["step"], saved["curve"]

    def take_step(self, loss: torch.Tensor, rate: float) -> None:
        """One step down the loss, its gradient cut to length 1."""
        self.learning.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learning.parameters(), 1.0)
        for rule in self.rules:
            for group in rule.param_groups:
                group["lr"] = rate
            rule.step()
        self.learning[0].logit_scale.data.clamp_(max=float(np.log(100)))  # as CLIP does

    def save(self, step: int, loss: float, accuracy: float) -> None:
        """Add a point to the curve, and write all to the file."""
        self.curve.append((step, loss, accuracy))
        saved = {"learning": self.learning.state_dict(), "rules": [rule.state_dict() for rule in self.rules]}
        torch.save(saved | {"step": step, "curve": self.curve}, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").replace(self.path)


def release(clip, path: Path) -> str:
    """Write the weights in half precision, of the word embeddings those that captions use.

    Returns:
        The file's SHA-256.
    """
    groups = caption_groups()
    captions = [
        template.format(name)
        for names, _ in groups
        for each in names
        for name in each
        for template in TEMPLATES
    ]
    tokens = vlscore.import_clip().tokenize(captions, TEXT["context_length"]).unique()
    state = {key: value.half().contiguous() for key, value in clip.state_dict().items()}
    state["token_embedding.weight"] = state["token_embedding.weight"][tokens]
    state["token_ids"] = tokens.int()
    content = save(state)
    vlscore.write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Train and write data/models/scenes-KIND.safetensors."""
    parser = argparse.ArgumentParser("train_scenes.py", description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=tuple(ENCODERS), help="the image encoder")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("_work"),
        help="folder for the training data, kept between runs (default: _work)",
    )
    parser.add_argument("--out", type=Path, help="default: data/models/scenes-KIND.safetensors")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    out = options.out or Path(__file__).parents[1] / "data" / "models" / f"scenes-{options.kind}.safetensors"
    try:
        clip, curve = train(options.kind, RECIPES[options.kind], options.work)
        checksum = release(clip, out)
    except KeyboardInterrupt:
        print("train_scenes.py: stopped; run it again to go on", file=sys.stderr)
        return 130
    except vlscore.VLScoreError as error:
        print(f"train_scenes.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"train_scenes.py: {error.filename}: {error.strerror}: fix it and run the command again",
            file=sys.stderr,
        )
        return 2
    for step, loss, accuracy in curve:
        print(f"step {step:6}  loss {loss:.3f}  top-1 {accuracy:.3f}")
    print(f"{out}  sha256 {checksum}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
