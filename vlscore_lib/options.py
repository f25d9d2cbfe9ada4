"""The options of `encode`, in one object, and their allowed values."""

from __future__ import annotations

from dataclasses import dataclass

from vlscore_lib.errors import VLScoreError, check_at_least, check_choice, check_keep

FITS = ("squash", "crop", "pad")
MAPS = ("activation", "attention", "query", "key", "value")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class EncodingOptions:
    """The options of `encode`: which maps are read, how many of them are encoded, and how.

    It cannot be changed: `dataclasses.replace` makes one with other values.

    A refined ViT makes its own maps, 62 clusters of cells.  For it, another layer than ``fine_layer`` and
    another kind than ``"activation"`` are errors.  ``pca`` is an error for every refined model.

    Attributes:
        layer: name of the layer that the maps come from; None means the model's last, or for a refined ViT
            its ``fine_layer``.
        maps: kind of maps, one of `MAPS`, see `Model.feature_maps`.
        pca: take this number of principal components of query, key or value maps; None takes the maps.
        keep: how many maps, or clusters, go through the encoder: an int (a number above C takes all), a float
            in (0, 1) as a share of their variance, or None for all.  See `select_maps`.  0 encodes no masked
            image, which is mask-free refinement: only for a refined CNN, see `locate_seed`.
        precision: ``"float32"``, ``"bfloat16"``, ``"float16"`` on a GPU, or ``"auto"``, see
            `choose_precision`.
        batch_size: number of masked images encoded at once, 1 or more; None means `choose_batch_size`.
        fit: ``"squash"``, ``"crop"`` or ``"pad"``, see `fit_region`.
        refined: whether saliency maps and boxes are refined, see `refine` and `split_instances`.
    """

    layer: str | None = None
    maps: str = "activation"
    pca: int | None = None
    keep: int | float | None = None
    precision: str = "auto"
    batch_size: int | None = None
    fit: str = "squash"
    refined: bool = False

    def check(self) -> None:
        """Check everything that does not depend on the model; `encode` calls it.

        Raises:
            VLScoreError: an option is out of range.
        """
        check_choice(self.maps, MAPS, "maps")
        check_choice(self.precision, PRECISIONS, "precision")
        check_choice(self.fit, FITS, "fit")
        check_keep(self.keep)
        check_at_least(1, self.batch_size, "batch_size")
        if self.keep == 0 and not self.refined:
            raise VLScoreError("keep is 0, and only refined boxes need no masks: set refined, or keep 1")
        if self.refined and self.pca is not None:
            raise VLScoreError("refined takes no principal components: leave pca out")
        if self.pca is not None and self.maps not in MAPS[2:]:
            raise VLScoreError(f"pca is for query, key and value maps, not for {self.maps}: leave one out")
