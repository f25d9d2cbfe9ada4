"""The data that functions exchange: the encoding of an image, and the answer to a prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from vlscore_lib.errors import VLScoreError
from vlscore_lib.files import write_whole
from vlscore_lib.images import Fit

PRESENT = 0.05  # the largest p_absent at which a refined answer says that the object is present


class Scale(NamedTuple):
    """The maps and cells of an image read at one size, on a grid of their own.

    Attributes:
        maps: A (C, h, w), the maps of the encoding's layer.
        cells: (D, h, w), the cells of the last layer in the joint space, see `Model.cell_embeddings`; None
            for a ViT.
    """

    maps: torch.Tensor
    cells: torch.Tensor | None = None


@dataclass(frozen=True)
class Encoding:
    """What a model computes of an image before any prompt: its maps, and the embeddings of the masked images.

    All tensors are on the CPU.  They are float32, except for the integer ``indices``.

    Attributes:
        model: name of the model.
        layer: name of the layer that the maps come from.
        kind: kind of maps: the option ``maps``, such as ``"activation"``; for principal components with their
            number, such as ``"key, pca=4"``; or ``"cluster"`` for a refined ViT, which no option names.
        input_size: S, the side of the encoder's input in pixels.
        fit (Fit): how the image was fitted into the input, which places boxes back in the image.
        maps: A (C, h, w), the raw maps.
        indices: (K,), which maps went through the encoder: all, or those that `select_maps` chose; none if
            made with ``keep=0``.
        mask_embeddings: e (C, D), unit.  A constant map has the base embedding.  Maps that did not go through
            the encoder have predicted embeddings, see `predict_embeddings`.
        base_embedding: (D,), unit, of the empty image, which is zero in normalised pixels.
        image_embedding: (D,), unit, of the whole, unmasked image.
        temperature: the model's τ.
        threshold: the model's α; if ``refined``, its α for refined maps.
        scales (tuple[Scale, ...]): the image at several sizes, for `refine`; empty if not ``refined``.
        features: (F, h, w), unit, features of a finer layer, for `refine`; None if not ``refined``.
        family: of the image encoder, ``"cnn"`` or ``"vit"``.
        refined: whether saliency maps and boxes are refined.
        prominence: in [0, 1], how far a peak of a refined map must rise, see `split_instances`.
    """

    model: str
    layer: str
    kind: str
    input_size: int
    fit: Fit
    maps: torch.Tensor
    indices: torch.Tensor
    mask_embeddings: torch.Tensor
    base_embedding: torch.Tensor
    image_embedding: torch.Tensor
    temperature: float
    threshold: float
    scales: tuple[Scale, ...] = ()
    features: torch.Tensor | None = None
    family: str = "cnn"
    refined: bool = False
    prominence: float = 0.2

    @property
    def has_layer_maps(self) -> bool:
        """Whether the maps are those of a layer, as plain VL-Score needs; a refined ViT has clusters."""
        return not (self.refined and self.family == "vit")

    @property
    def has_masks(self) -> bool:
        """Whether masked images went through the encoder; not with ``keep=0``."""
        return len(self.indices) > 0

    def without_refinement(self) -> Encoding:
        """Return the same encoding for plain saliency maps and boxes.

        ``threshold`` stays that of refined maps: for plain boxes, pass ``model.threshold``.  The maps of a
        refined ViT stay clusters, see ``has_layer_maps``.
        """
        return replace(self, refined=False)

    def save(self, path) -> None:
        """Write the encoding to a safetensors file, atomically, without rounding."""
        from safetensors.torch import save

        tensors, facts = {}, {}
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                tensors[name] = value.contiguous()
            elif name == "scales":
                for n, scale in enumerate(value):
                    every = scale._asdict().items()
                    tensors |= {f"scale {n} {key}": each for key, each in every if each is not None}
            elif value is not None:
                facts[name] = value
        write_whole(path, save(tensors, {"vlscore.Encoding": json.dumps(facts)}))

    @classmethod
    def load(cls, path) -> Encoding:
        """Read a file that `save` wrote.

        Raises:
            VLScoreError: the file does not exist, or is not a saved encoding.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["vlscore.Encoding"])
                size, region = facts["fit"]
                facts["fit"] = Fit(tuple(size), tuple(region))
                tensors, scales = {}, {}
                for name in file.keys():  # noqa: SIM118
                    if name.startswith("scale "):
                        _, n, key = name.split()
                        scales.setdefault(int(n), {})[key] = file.get_tensor(name)
                    else:
                        tensors[name] = file.get_tensor(name)
                facts.setdefault("refined", bool(scales))  # files of version 0.1.0 lack it
                facts.setdefault("family", "vit" if facts["layer"].isdecimal() else "cnn")
                return cls(**facts, **tensors, scales=tuple(Scale(**scales[n]) for n in sorted(scales)))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise VLScoreError(
                f"{path} is not a saved Encoding ({error}): give a file written by Encoding.save"
            ) from None


@dataclass(frozen=True)
class Localization:
    """The answer to a prompt: whether its object is in the image, and where.

    Attributes:
        prompt: the text.
        present: whether a map scores above the base score, which also happens for many absent objects.  If
            the encoding was made with ``refined=True``, ``p_absent`` must also be at most `PRESENT`.
        boxes: (x0, y0, x1, y1) in pixels of the original image, see `find_boxes`; empty if absent.
        saliency: (h, w), or (S, S) if refined, see `saliency`; None if absent.
        score: the highest score of a map, also of those with predicted embeddings, a cosine in [-1, 1];
            without masks, that of the whole image.
        base_score: s_b, the score of the empty image, a cosine in [-1, 1].
        p_absent: in (0, 1], the share of texts, itself included, that fit no worse, see `p_absent`; None if
            not refined.
    """

    prompt: str
    present: bool
    boxes: list[tuple[int, int, int, int]]
    saliency: torch.Tensor | None
    score: float
    base_score: float
    p_absent: float | None = None


def as_facts(name: str, size: tuple[int, int], model: str, found: list[Localization]) -> dict:
    """Arrange answers about an image as the dict that ``vlscore localize --json`` prints.

    Args:
        name: name of the image.
        size: (W, H) of the upright image in pixels; the boxes refer to it.
        model: name of the model.
        found: the answers.

    Returns:
        A dict with ``image``, ``size``, ``model`` and ``results``, a list with one dict for each text: its
        ``text``, ``present``, ``boxes`` (four integers each, in pixels), ``score`` and ``base_score``
        (cosines), and ``p_absent`` if the encoding is refined.
    """
    results = [
        {
            "text": each.prompt,
            "present": each.present,
            "boxes": [list(box) for box in each.boxes],
            "score": each.score,
            "base_score": each.base_score,
        }
        | ({} if each.p_absent is None else {"p_absent": each.p_absent})
        for each in found
    ]
    return {"image": name, "size": list(size), "model": model, "results": results}


def as_text(found: list[Localization]) -> str:
    """Format answers about an image as the text that ``vlscore localize`` prints.

    Args:
        found: the answers.
    """
    lines = []
    for each in found:
        state = f"{len(each.boxes)} found" if each.present else "absent"
        told = f"score {each.score:.3f}, empty image {each.base_score:.3f}"
        if each.p_absent is not None:
            told += f", p {each.p_absent:.2f}"
        lines.append(f"{each.prompt}  {state}; {told}")
        lines += [f"  box  x {x0} to {x1}  y {y0} to {y1}" for x0, y0, x1, y1 in each.boxes]
    return "\n".join(lines)
