"""The protocol of an evaluation: what is measured, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlscore_lib.errors import VLScoreError, check_choice, check_temperature, check_threshold
from vlscore_lib.options import EncodingOptions
from vlscore_lib.prompts import TEMPLATES

if TYPE_CHECKING:
    from vlscore_lib.models.base import Model


@dataclass(frozen=True)
class Protocol(EncodingOptions):
    """The options of `evaluate`: how photos are encoded, and which thresholds and baselines are measured.

    It has the fields of `EncodingOptions` and those below.

    Attributes:
        temperature: τ > 0 of the results; None means the model's own.
        threshold: α in (0, 1) of the results; None means the model's own, for refined maps if ``refined``.
        plain_threshold: α in (0, 1) at which a refined run also shows plain VL-Score; None means the model's
            own for plain maps.  Only for refined runs.
        temperatures: further values of τ > 0 to measure; by default 1, as in the released code of the report.
            ``temperature`` is added.
        thresholds: further values of α in (0, 1) to measure; `Protocol.resolve` adds the two above and sorts,
            so that entry i of a record's lists belongs to ``thresholds[i]``.
        names: has no effect on the results and is only recorded in ``run.json``.  The prompts take the names
            in ``dataset.classes``, which you choose in `read_dataset`.
        templates: name of a set of prompts, ``"report"`` or ``"clip"``, see `prompt_templates`.
        slow_baselines: number of photos, from the first one on, on which Score-CAM and gScoreCAM are also
            run; 0 runs them on none.
        seed: seed of the random choice of absent classes, 0 or more.
        average_precision: whether to compare the boxes of all classes with all objects; None means True for
            the layouts ``coco``, ``yolo`` and ``voc``, and False for others.
    """

    temperature: float | None = None
    threshold: float | None = None
    plain_threshold: float | None = None
    temperatures: tuple[float, ...] = (1.0,)
    thresholds: tuple[float, ...] = tuple(n / 20 for n in range(1, 20))
    names: str = "imagenet"
    templates: str = "report"
    slow_baselines: int = 0
    seed: int = 0
    average_precision: bool | None = None

    def resolve(self, model: Model) -> Protocol:
        """Fill in the model's own values, and check all values.

        Args:
            model: from `load_model`.

        Raises:
            VLScoreError: a value is out of range.
        """
        from vlscore_lib.models.fast_encoder import choose_precision

        tau = model.temperature if self.temperature is None else self.temperature
        alpha, plain = self.threshold, self.plain_threshold
        if alpha is None:
            alpha = model.refined_threshold if self.refined else model.threshold
        if plain is not None and not self.refined:
            raise VLScoreError("plain_threshold is for refined runs: set refined, or set threshold")
        if plain is None and self.refined:
            plain = model.threshold
        taus = sorted({tau, *self.temperatures})
        alphas = sorted({alpha, *self.thresholds} | ({plain} if self.refined else set()))
        self.check()
        for each in taus:
            check_temperature(each)
        for each in alphas:
            check_threshold(each)
        check_choice(self.templates, TEMPLATES, "templates")
        layer = self.layer
        if layer is None and self.refined and model.is_vit:
            layer = model.fine_layer
        return replace(
            self,
            layer=model.check_source(layer, self.maps, self.pca),
            precision=choose_precision(self.precision, model.device),
            temperature=tau,
            threshold=alpha,
            plain_threshold=plain,
            temperatures=tuple(taus),
            thresholds=tuple(alphas),
        )

    def own_threshold(self, method: str) -> float | None:
        """Return the α of a method that was not chosen on the measured images; None for a baseline."""
        if "VL-Score" not in method and method != self.method:
            return None
        return self.plain_threshold if self.refined and method != self.method else self.threshold

    @property
    def method(self) -> str:
        """Name of the measured method, with its τ if it has one, in records and summaries."""
        return method_name(self.temperature, self.refined, self.keep)


def method_name(temperature: float, refined: bool = False, keep: int | float | None = None) -> str:
    """Name VL-Score at a temperature, as records and summaries do: such as ``"VL-Score, τ = 0.1"``.

    Args:
        temperature: τ > 0.
        refined: whether its maps are refined.
        keep: see `EncodingOptions`; 0 gives ``"mask-free refinement"``, on which τ has no effect.
    """
    if keep == 0:
        return "mask-free refinement"
    return f"{'refined ' * refined}VL-Score, τ = {temperature:g}"
