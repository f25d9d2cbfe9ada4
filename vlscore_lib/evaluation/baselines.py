"""Baselines: the saliency maps of other methods for the same model and text."""

from __future__ import annotations

from contextlib import contextmanager, redirect_stderr
from io import StringIO

import torch

from vlscore_lib.encoding import Encoding
from vlscore_lib.errors import import_extra
from vlscore_lib.masks import embed_masked
from vlscore_lib.models.base import Model, unit
from vlscore_lib.models.fast_encoder import fast_encoder


def mean_map(encoding: Encoding) -> torch.Tensor:
    """Compute relu of the mean of all maps, (h, w): a baseline that ignores the prompt.

    If the encoding is of a refined ViT, its maps are clusters, and this is their mean.

    Args:
        encoding: the encoded image.
    """
    return encoding.maps.mean(0).relu()


def baseline_maps(
    model: Model, image, encoding: Encoding, fit: str, text: torch.Tensor, with_slow_baselines: bool = False
) -> dict[str, torch.Tensor]:
    """Compute the saliency maps of other methods for a text (D,): name -> (h, w) or (S, S).

    They are the mean of all maps; the similarity map, if the architecture has one; Grad-CAM; and, on request,
    Score-CAM (both by pytorch-grad-cam) and gScoreCAM, which take one pass for each map and prompt.
    """
    pixels, layer = model.preprocess(image, fit), encoding.layer
    found = {"mean of all maps": mean_map(encoding)}
    if layer == model.layers[-1]:
        maps = encoding.maps if encoding.kind == "activation" else model.feature_maps(pixels[None])[0]
        if (similar := model.similarity_map(maps, text)) is not None:
            found["similarity map (CAM)"] = similar.relu()
    found["Grad-CAM"] = compute_cam("GradCAM", model, pixels, text, layer)
    if with_slow_baselines:
        found["Score-CAM"] = compute_cam("ScoreCAM", model, pixels, text, layer)
        found["gScoreCAM"] = compute_gscorecam(model, pixels, text, layer)
    return found


class CosineScorer(torch.nn.Module):
    """An encoder with gradients that turns pixels (B, 3, S, S) into the cosine with a text, (B, 1).

    Use it to run another gradient method on the model: libraries such as pytorch-grad-cam take a module with
    one output, as a classifier has for each class.  The weights of the encoder themselves have no gradients.

    Args:
        model: from `load_model`.
        text: (D,), the text's embedding, of any norm.
    """

    def __init__(self, model, text):
        super().__init__()
        self.visual, self.project, self.text = model.visual, model.project, unit(text).to(model.device)

    def forward(self, pixels):
        """Compute the cosine of each image with the text: (B, 1)."""
        return (unit(self.project(self.visual(pixels))) @ self.text)[:, None]


def compute_cam(
    method: str, model: Model, pixels: torch.Tensor, text: torch.Tensor, layer: str
) -> torch.Tensor:
    """Compute the Grad-CAM or Score-CAM of a text, by pytorch-grad-cam: (S, S) in [0, 1].

    The score is CLIP's logit, the cosine divided by the model's τ.  Score-CAM's softmax over the maps depends
    on this scale.

    Args:
        method: ``"GradCAM"`` or ``"ScoreCAM"``; other classes of the library by name, which are not tested.
        model: from `load_model`.
        pixels: (3, S, S), see `Model.preprocess`.
        text: (D,), the text's embedding, of any norm.
        layer: one of the model's layers.

    Returns:
        A float32 tensor on the CPU.

    Raises:
        VLScoreError: pytorch-grad-cam is not installed.
        AttributeError: the library has no class of this name.
        KeyError: the model has no such layer.
    """
    library = import_extra("pytorch_grad_cam", "evaluation")
    module, reshape = model.gradient_module(layer), model.output_maps if model.is_vit else None
    cam_class, scorer = getattr(library, method), CosineScorer(model, text)

    def logit(score):
        return score[0] / model.temperature

    silent = redirect_stderr(StringIO())  # ScoreCAM shows a progress bar of its own
    with silent, gradients_from(module), cam_class(scorer, [module], reshape_transform=reshape) as cam:
        return torch.from_numpy(cam(pixels[None].to(model.device), targets=[logit])[0])


@contextmanager
def gradients_from(module):
    """Let gradients begin at a module's outputs while the block runs; the list given collects these outputs.

    Earlier layers then take no part in the backward pass, which saves time.
    """
    outputs = []

    def begin(_, __, output):
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handle = module.register_forward_hook(begin)
    try:
        yield outputs
    finally:
        handle.remove()


def compute_gscorecam(model: Model, pixels: torch.Tensor, text: torch.Tensor, layer: str, k: int = 300):
    """Compute gScoreCAM (Chen et al. 2022) for a text: (h, w), 0 or more.

    Only the k maps with the largest mean gradient are scored, and maps that score below the empty image are
    kept, too.  The weights are a softmax at the model's τ.  All passes depend on the prompt.

    Args:
        model: from `load_model`.
        pixels: (3, S, S), see `Model.preprocess`.
        text: (D,), the text's embedding, of any norm.
        layer: one of the model's layers.
        k: largest number of maps that are scored, 1 or more.

    Returns:
        A float32 tensor on the CPU.

    Raises:
        KeyError: the model has no such layer.
    """
    with gradients_from(model.gradient_module(layer)) as outputs:
        score = CosineScorer(model, text)(pixels[None].to(model.device))
    (gradient,) = torch.autograd.grad(score.sum(), outputs)
    maps, gradient = model.output_maps(outputs[0].detach().float()), model.output_maps(gradient)
    rows = gradient[0].mean((1, 2)).topk(min(k, maps.shape[1])).indices
    chosen = maps[0, rows]
    base = model.encode_image(torch.zeros_like(pixels)[None])[0]
    every, pixels = [torch.arange(len(chosen))], pixels.to(model.device)
    (embeddings,) = embed_masked(fast_encoder(model, "float32"), pixels[None], chosen[None], every, base, 16)
    w = ((embeddings.cpu() @ unit(text)) / model.temperature).softmax(0)
    return torch.einsum("k,khw->hw", w, chosen.cpu()).relu()
