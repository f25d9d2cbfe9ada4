"""What travels: the encoding of an image, which no prompt changes, and what a prompt finds in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from vlscore_lib.errors import VLScoreError
from vlscore_lib.files import write_whole
from vlscore_lib.images import Fit

PRESENT = 0.05  # p_absent up to which a refined thing is said to be there


class Scale(NamedTuple):
    """An image read at one size, see `read_scales`; each with a grid of its own.

    Attributes:
        maps: A (C, h, w), the encoding's layer.
        cells: (D, h, w), the last layer's cells in the joint space, see `Model.cell_embeddings`; of a CNN.
    """

    maps: torch.Tensor
    cells: torch.Tensor | None = None


@dataclass(frozen=True)
class Encoding:
    """An image as VL-Score sees it before any prompt; everything is float32 and on the CPU.

    Attributes:
        model, layer, kind: names of the model, of the layer and of the kind of maps.
        input_size: S in pixels.
        fit: how the image was fitted, to place boxes back.
        maps: A (C, h, w), raw.
        indices: (K,) which of the maps went through the encoder: all, or the ones that `keep` chose.
        mask_embeddings: e (C, D), unit; a constant map's is the base embedding, and those of the maps
            that did not go through the encoder are predicted, see `predict_embeddings`.
        base_embedding: (D,), unit, of the empty image: zeros in normalised pixels.
        image_embedding: (D,), unit, of the whole, unmasked image.
        temperature, threshold: the model's τ and α, of refined maps where the encoding is refined.
        prominence: the model's, of the peaks of refined maps, see `split_instances`.
        scales, features: what `refine` needs, see `read_scales`; none where it was not encoded for that.
        family: of the image encoder, ``"cnn"`` or ``"vit"``.
        refined: whether saliency maps and boxes are refined.
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
        """Whether the maps are a layer's own, as plain VL-Score needs; a refined ViT's are clusters."""
        return not (self.refined and self.family == "vit")

    def without_refinement(self) -> Encoding:
        """The same encoding for plain saliency maps and boxes."""
        return replace(self, refined=False)

    def save(self, path) -> None:
        """Write to a safetensors file, whole or not at all."""
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
        """Read what `save` wrote.

        Raises:
            VLScoreError: no such file, or another kind of file.
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
                facts.setdefault("refined", bool(scales))  # files of version 0.1.0 do not say it
                facts.setdefault("family", "vit" if facts["layer"].isdecimal() else "cnn")
                return cls(**facts, **tensors, scales=tuple(Scale(**scales[n]) for n in sorted(scales)))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise VLScoreError(
                f"{path} is no saved Encoding ({error}): give a file written by Encoding.save"
            ) from None


@dataclass(frozen=True)
class Localization:
    """Where a prompt's object is in an image.

    Attributes:
        prompt: the text.
        present: whether any map beats the base score; where the encoding was made ``refined``, whether
            p_absent is at most `PRESENT` too.
        boxes: see `find_boxes`; empty when absent.
        saliency: S (h, w), or None when absent.
        score: the highest score of a map, a cosine; present only if score > base_score.
        base_score: s_b, the empty image's.
        p_absent: see `p_absent`; None where the encoding was not made ``refined``.
    """

    prompt: str
    present: bool
    boxes: list[tuple[int, int, int, int]]
    saliency: torch.Tensor | None
    score: float
    base_score: float
    p_absent: float | None = None


def as_facts(name: str, size: tuple[int, int], model: str, found: list[Localization]) -> dict:
    """What was found in an image, as `vlscore localize --json` prints it and the page gives it.

    Args:
        name: of the image.
        size: (W, H) of the upright image in pixels, which the boxes are in.
        model: its name.
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
    """What was found in an image, as `vlscore localize` prints it."""
    lines = []
    for each in found:
        state = f"{len(each.boxes)} found" if each.present else "absent"
        told = f"score {each.score:.3f}, empty image {each.base_score:.3f}"
        if each.p_absent is not None:
            told += f", p {each.p_absent:.2f}"
        lines.append(f"{each.prompt}  {state}; {told}")
        lines += [f"  box  x {x0} to {x1}  y {y0} to {y1}" for x0, y0, x1, y1 in each.boxes]
    return "\n".join(lines)
