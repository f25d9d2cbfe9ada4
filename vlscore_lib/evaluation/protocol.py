"""The protocol of an evaluation: what is measured, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlscore_lib.errors import check_choice, check_temperature, check_threshold
from vlscore_lib.options import EncodingOptions
from vlscore_lib.prompts import TEMPLATES

if TYPE_CHECKING:
    from vlscore_lib.models.base import Model


@dataclass(frozen=True)
class Protocol(EncodingOptions):
    """What an evaluation measures, and how; None means the model's own.

    Attributes:
        layer, maps, pca, keep, precision, batch_size, fit, refined: see `EncodingOptions`.
        temperature, threshold: τ and α of the results.
        temperatures, thresholds: of the sweep; the two above are added to them.
        names: of the classes, see `read_dataset`.
        templates: ``"report"``, the one prompt of the report, or ``"clip"``, the 80 of CLIP's authors.
        slow_baselines: on so many images, the first, Score-CAM and gScoreCAM are measured too.
        seed: of the choice of absent classes.
        average_precision: whether boxes of all classes are compared with all objects; None, as data sets of
            detection need it.
    """

    temperature: float | None = None
    threshold: float | None = None
    temperatures: tuple[float, ...] = (1.0,)
    thresholds: tuple[float, ...] = tuple(n / 20 for n in range(1, 20))
    names: str = "imagenet"
    templates: str = "report"
    slow_baselines: int = 0
    seed: int = 0
    average_precision: bool | None = None

    def resolve(self, model: Model) -> Protocol:
        """The same with the model's own values filled in, and checked.

        Raises:
            VLScoreError: a value out of range.
        """
        from vlscore_lib.models.fast_encoder import choose_precision

        tau = model.temperature if self.temperature is None else self.temperature
        alpha = self.threshold
        if alpha is None:
            alpha = model.refined_threshold if self.refined else model.threshold
        taus, alphas = sorted({tau, *self.temperatures}), sorted({alpha, *self.thresholds})
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
            temperatures=tuple(taus),
            thresholds=tuple(alphas),
        )

    @property
    def method(self) -> str:
        """The name of what is measured, at the protocol's τ, in records and summaries."""
        return method_name(self.temperature, self.refined)


def method_name(temperature: float, refined: bool = False) -> str:
    """What VL-Score at τ is called in records and summaries."""
    return f"{'refined ' * refined}VL-Score, τ = {temperature:g}"
