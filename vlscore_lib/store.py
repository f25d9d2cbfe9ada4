"""Encodings on disk: each photo is encoded once for a model and its options, whatever is asked later."""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from vlscore_lib.encoding import Encoding, Scale
from vlscore_lib.errors import VLScoreError, check_at_least
from vlscore_lib.files import write_whole
from vlscore_lib.images import Fit
from vlscore_lib.models.base import Model
from vlscore_lib.options import EncodingOptions
from vlscore_lib.refinement import LEAVES
from vlscore_lib.selection import predict_embeddings
from vlscore_lib.sources import COPY_SCALE

ENDING = ".encoding"
LARGEST_HALF = 60_000.0  # half precision has no larger numbers


class Rows(NamedTuple):
    """The part of a photo's encoding that tells whether a text fits: its embeddings, without the maps.

    Attributes:
        mask_embeddings: (K, D), unit, of the maps that went through the encoder.
        base_embedding: (D,), unit, of the empty image.
        image_embedding: (D,), unit, of the whole image.
        size: (W, H) of the upright photo.
    """

    mask_embeddings: torch.Tensor
    base_embedding: torch.Tensor
    image_embedding: torch.Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, encoding: Encoding) -> Rows:
        """Take them from a whole encoding."""
        embeddings = encoding.mask_embeddings[encoding.indices]
        return cls(embeddings, encoding.base_embedding, encoding.image_embedding, encoding.fit.size)


class EncodingStore:
    """A folder of encodings, looked up by a photo's content, the model's weights and the options.

    Several processes may share a folder.  Files are written atomically, and an encoding that another process
    has deleted is made again.

    Args:
        folder: created if it does not exist.
        model: the model that makes the encodings.
        options: the `EncodingOptions` that they are made with.
        limit: largest size of the folder in GB; beyond it, the least recently used encodings are deleted.
            None sets no limit.

    Raises:
        VLScoreError: the folder cannot be created, or the limit is below 0.
    """

    def __init__(self, folder, model: Model, options: EncodingOptions, limit: float | None = None):
        check_at_least(0, limit, "--encodings-limit")
        self.folder, self.model, self.limit = Path(folder), model, limit
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VLScoreError(
                f"{folder} cannot hold encodings ({error.strerror}): choose another folder"
            ) from None
        facts = asdict(options) | {"model": model.checksum(), "name": model.name}
        facts.pop("batch_size")  # it changes only the speed
        if options.refined:  # else encodings of other copies and clusters would be read
            facts["copy"] = (COPY_SCALE, LEAVES)
        self.base = sha256(json.dumps(facts, sort_keys=True).encode()).digest()

    def file(self, content: bytes) -> Path:
        """Return the path of the encoding of a photo whose file has this content."""
        return self.folder / f"{sha256(self.base + sha256(content).digest()).hexdigest()[:40]}{ENDING}"

    def read(self, content: bytes) -> Encoding | None:
        """Read the encoding of a photo whose file has this content; None if it is missing or damaged."""
        return self.use(content, lambda file: unpack(file, self.model))

    def read_rows(self, content: bytes) -> Rows | None:
        """Read only the embeddings that judge whether a text fits; None if the file is missing or damaged."""
        return self.use(content, read_rows)

    def use(self, content: bytes, read):
        """Apply a function to a stored file, and mark it as used; None if the file is missing or damaged."""
        file = self.file(content)
        with suppress(OSError, VLScoreError):
            found = read(file)
            os.utime(file)
            return found
        return None

    def write(self, content: bytes, encoding: Encoding) -> Encoding:
        """Store an encoding, and return it as a later read will give it.

        The file holds rounded numbers.  Use the returned encoding, so that the first answer equals all later
        ones.

        Raises:
            OSError: the file cannot be written.
        """
        file = self.file(content)
        write_whole(file, pack(encoding, self.model))
        if self.limit is not None:
            self.shrink()
        return unpack(file, self.model)

    def shrink(self) -> None:
        """Delete the least recently used encodings until the folder is within its limit."""
        found = []
        for file in self.folder.glob(f"*{ENDING}"):
            with suppress(OSError):  # another process deleted it
                status = file.stat()
                found.append((status.st_mtime_ns, status.st_size, file))
        excess = sum(size for _, size, _ in found) - self.limit * 1e9
        for _, size, file in sorted(found)[:-1]:  # never the newest
            if excess <= 0:
                break
            file.unlink(missing_ok=True)
            excess -= size


def pack(encoding: Encoding, model: Model) -> bytes:
    """Pack an encoding in half precision, without anything that can be computed from the rest.

    Left out are the predicted embeddings of maps that did not go through the encoder, and the embeddings of
    the last layer's cells.  The rest is compressed: after a rectifier, most cells of a map are 0.  In larger
    copies of the image, each map and each channel of the features is rounded to steps of its largest value.
    """
    from safetensors.torch import save

    tensors, shapes = {}, {}
    of_last_layer = (encoding.layer, encoding.kind) == (model.layers[-1], "activation")

    def keep(name: str, value: torch.Tensor) -> None:
        shapes[name] = [*value.shape], str(value.dtype).removeprefix("torch.")
        packed = zlib.compress(value.contiguous().numpy().tobytes(), 6)
        tensors[name] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)

    def keep_rounded(name: str, value: torch.Tensor, steps: int) -> None:
        step = value.abs().amax((1, 2), keepdim=True).clamp_min(1e-12) / steps  # (C, 1, 1)
        tensors[f"{name} step"] = step
        keep(name, (value / step).round().to(torch.int8 if steps < 128 else torch.int16))

    tensors["indices"] = encoding.indices.int()
    tensors["mask_embeddings"] = in_half(encoding.mask_embeddings[encoding.indices])
    for name in ("base_embedding", "image_embedding"):
        tensors[name] = getattr(encoding, name).contiguous()
    keep("maps", in_half(encoding.maps))
    scales = []
    for n, scale in enumerate(encoding.scales):
        is_same = scale.maps.shape == encoding.maps.shape and torch.equal(scale.maps, encoding.maps)
        has_cells = scale.cells is not None
        scales.append({"has_maps": not is_same, "has_cells": has_cells, "of_last_layer": of_last_layer})
        if not is_same:
            keep_rounded(f"scale {n} maps", scale.maps, 127)
        if has_cells and not of_last_layer:
            keep(f"scale {n} cells", in_half(scale.cells))
    if encoding.features is not None:
        keep_rounded("features", encoding.features, 1000)
    whole = ("indices", "maps", "mask_embeddings", "base_embedding", "image_embedding", "scales", "features")
    facts = {name: value for name, value in vars(encoding).items() if name not in whole}
    facts |= {"scales": scales, "shapes": shapes}
    return save(tensors, {"vlscore.store": json.dumps(facts)})


def in_half(value: torch.Tensor) -> torch.Tensor:
    """Convert to half precision if the values are within its range."""
    return value.half() if (value.abs() < LARGEST_HALF).all() else value


def unpack(path: Path, model: Model) -> Encoding:
    """Read what `pack` wrote.

    Raises:
        VLScoreError: the file is of another kind, or damaged.
        OSError: the file does not exist.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["vlscore.store"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, (shape, dtype) in facts.pop("shapes").items():
            values = np.frombuffer(zlib.decompress(tensors[name].numpy().tobytes()), dtype)
            value = torch.from_numpy(values.astype(np.float32)).reshape(shape)
            tensors[name] = value * tensors.get(f"{name} step", 1)
        maps, indices = tensors["maps"], tensors["indices"].long()
        rows = torch.nn.functional.normalize(tensors["mask_embeddings"].float(), dim=-1)
        embeddings = tensors["base_embedding"].repeat(len(maps), 1)
        embeddings[indices] = rows
        scales = []
        for n, each in enumerate(facts.pop("scales")):
            scale = tensors[f"scale {n} maps"] if each["has_maps"] else maps
            cells = None
            if each["has_cells"]:
                cells = model.cell_embeddings(scale) if each["of_last_layer"] else tensors[f"scale {n} cells"]
            scales.append(Scale(scale, cells))
        size, region = facts.pop("fit")
        return Encoding(
            **facts,
            fit=Fit(tuple(size), tuple(region)),
            maps=maps,
            indices=indices,
            mask_embeddings=predict_embeddings(maps, indices, embeddings),
            base_embedding=tensors["base_embedding"],
            image_embedding=tensors["image_embedding"],
            scales=tuple(scales),
            features=tensors.get("features"),
        )
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, zlib.error, RuntimeError) as error:
        raise VLScoreError(f"{path} is not a stored encoding ({error}): delete it") from None


def read_rows(path: Path) -> Rows:
    """Read only the `Rows` of a packed encoding.

    Raises:
        VLScoreError: the file is of another kind, or damaged.
        OSError: the file does not exist.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            size, _ = json.loads(file.metadata()["vlscore.store"])["fit"]
            rows = torch.nn.functional.normalize(file.get_tensor("mask_embeddings").float(), dim=-1)
            others = (file.get_tensor(name) for name in ("base_embedding", "image_embedding"))
            return Rows(rows, *others, tuple(size))
    except FileNotFoundError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise VLScoreError(f"{path} is not a stored encoding ({error}): delete it") from None
