"""Runs: a folder that keeps shards of records, the parameters and the summary, and can be resumed."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from vlscore_lib import __version__
from vlscore_lib.datasets.reading import Dataset
from vlscore_lib.errors import VLScoreError, import_extra
from vlscore_lib.evaluation.protocol import Protocol
from vlscore_lib.evaluation.summaries import summarize
from vlscore_lib.files import read_json, to_json, write_whole
from vlscore_lib.models.base import Model


class Run:
    """The folder of an evaluation, in which every file is written atomically.

    `evaluate` calls `Run.start`, then `Run.keep` with the records of each shard, then `Run.finish`.

    Args:
        model: from `load_model`.
        dataset: from `read_dataset`.
        protocol: with the model's values filled in, see `Protocol.resolve`.
        out: the folder; None keeps nothing.

    Attributes:
        shards: lists of (photo, whether slow baselines are run on it).  A shard is the unit of work and of
            resuming.  It has 8 photos, or more if there would be over 1,000 shards.
    """

    def __init__(self, model: Model, dataset: Dataset, protocol: Protocol, out=None):
        self.out, self.protocol, self.dataset = None if out is None else Path(out), protocol, dataset
        numbered = [(photo, n < protocol.slow_baselines) for n, photo in enumerate(dataset.photos)]
        size = max(8, -(-len(numbered) // 1000))  # no more than 1,000 shards
        self.shards = [numbered[start : start + size] for start in range(0, len(numbered), size)]
        self.model, self.left_out = model, {}  # number -> photos of a shard that could not be measured

    def shard_file(self, number: int) -> Path:
        """Return the path of a shard's records."""
        return self.out / f"part-{number:05}.parquet"

    def start(self, resume: bool) -> dict:
        """Open or create the folder, and return a dict from the index of each shard in it to its records.

        Args:
            resume: whether the folder may hold a run already.

        Raises:
            VLScoreError: it holds a run and ``resume`` is False, or a run with other parameters.
        """
        if self.out is None:
            return {}
        file = self.out / "run.json"
        if file.exists():
            if not resume:
                raise VLScoreError(
                    f"{self.out} holds a run: add --resume to continue it, or choose another folder"
                )
            self.check_same(read_parameters(self.out))
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            if any(self.out.glob("part-*.parquet")):
                raise VLScoreError(f"{self.out} has parts but no run.json: choose another folder")
            write_whole(file, to_json({"parameters": self.parameters(), "versions": package_versions()}))
        for stray in self.out.glob(".vlscore-*"):  # of a process that was killed while writing
            stray.unlink()
        done = {}
        for number, shard in enumerate(self.shards):
            left_out = read_left_out(self.left_out_file(number))
            expected = [photo.name for photo, _ in shard if photo.name not in left_out]
            if self.shard_file(number).exists():
                done[number], self.left_out[number] = read_shard(self.shard_file(number)), left_out
                if list(done[number]["image"]) != expected:
                    raise VLScoreError(f"{self.shard_file(number)} has other photos: remove it")
            elif not expected:
                done[number], self.left_out[number] = (), left_out
        return done

    def parameters(self) -> dict:
        """Return everything that the records depend on: the parameters in ``run.json``, a dict."""
        return {
            "vlscore": __version__,
            "model": self.model.name,
            "weights": self.model.checksum(),
            "images": len(self.dataset.photos),
            "data": self.dataset.checksum(),
            **asdict(self.protocol),
        }

    def check_same(self, theirs: dict) -> None:
        """Raise VLScoreError if the run in the folder has other parameters than this one."""
        ours = json.loads(json.dumps(self.parameters()))
        for key in ours | theirs:
            if ours.get(key) != theirs.get(key):
                raise VLScoreError(
                    f"{self.out} holds a run with {key} {theirs.get(key)}, not {ours.get(key)}:"
                    " give the same, or choose another folder"
                )

    def left_out_file(self, number: int) -> Path:
        """Return the path of the list of a shard's photos that could not be measured."""
        return self.out / f"part-{number:05}.json"

    def list_left_out(self) -> list[str]:
        """Return a line for each photo that could not be measured, in the order of the photos."""
        return [line for _, left_out in sorted(self.left_out.items()) for line in left_out.values()]

    def keep(self, number: int, records, left_out: dict[str, str]):
        """Write a shard and read it back, so that a resumed run computes on the same values.

        Args:
            number: the shard's index in ``shards``.
            records: a pandas DataFrame, one row for each photo.
            left_out: a dict from the name of each photo that could not be measured to why.

        Returns:
            The records.
        """
        self.left_out[number] = left_out
        if self.out is None:
            return records
        if left_out:  # first, since a shard whose records are there counts as measured
            write_whole(self.left_out_file(number), to_json(left_out))
        if not len(records):
            return records
        content = BytesIO()
        records.to_parquet(content, index=False, write_page_checksum=True)
        write_whole(self.shard_file(number), content.getvalue())
        return read_shard(self.shard_file(number))

    def finish(self, records) -> None:
        """Write ``summary.json``, see `summarize`, from the records of all shards."""
        if self.out is not None:
            facts = summarize(records, self.protocol)
            facts |= {
                "model": self.model.name,
                "square_copies": sum(photo.is_square_copy for photo in self.dataset.photos),
                "skipped": self.dataset.bad + self.list_left_out(),
            }
            write_whole(self.out / "summary.json", to_json(facts))


def read_left_out(path: Path) -> dict[str, str]:
    """Read which photos of a shard could not be measured: name -> a line that says why."""
    return read_json(path) if path.exists() else {}


def read_shard(path):
    """Read the records of one shard: a pandas DataFrame.

    Args:
        path: a file ``part-*.parquet``.

    Returns:
        One row for each photo; its columns are the keys of a record, see `measure`.

    Raises:
        VLScoreError: the file is missing, damaged or not a shard, or pandas is not installed.
    """
    pandas = import_extra("pandas", "evaluation")
    try:
        records = pandas.read_parquet(path, page_checksum_verification=True)
        records["image"]  # a KeyError if it holds something else
        return records
    except Exception as error:  # a damaged footer raises nearly any type
        raise VLScoreError(f"{path} cannot be read ({error}): remove it and run again") from None


def read_parameters(out) -> dict:
    """Read the parameters of the run in a folder.

    Raises:
        VLScoreError: the folder holds no run.
    """
    facts = read_json(Path(out) / "run.json")
    parameters = facts.get("parameters") if isinstance(facts, dict) else None
    if not isinstance(parameters, dict) or "images" not in parameters:
        raise VLScoreError(f"{Path(out) / 'run.json'} has no parameters of a run: choose another folder")
    if "peers" in parameters:  # as version 0.1.0 called them
        parameters["slow_baselines"] = parameters.pop("peers")
    return {"average_precision": False} | parameters  # older runs lack it


def read_run(out) -> tuple[dict, object]:
    """Read a finished run: its parameters, a dict, and its records, a pandas DataFrame.

    Args:
        out: the folder of the run.

    Raises:
        VLScoreError: there is no run in the folder, or it was stopped before its end.
    """
    pandas = import_extra("pandas", "evaluation")
    out = Path(out)
    parameters = read_parameters(out)
    shards = [read_shard(path) for path in sorted(out.glob("part-*.parquet"))]
    left_out = [read_left_out(path) for path in out.glob("part-*.json")]
    if sum(map(len, [*shards, *left_out])) != parameters["images"]:
        raise VLScoreError(f"{out} holds a run that was stopped: finish it with vlscore evaluate --resume")
    return parameters, pandas.concat(shards, ignore_index=True)


def package_versions():
    from importlib.metadata import version

    packages = ("torch", "openvino", "numpy", "pillow", "scipy", "pandas", "pyarrow")
    return {"python": sys.version.split()[0]} | {
        each: version(each) for each in packages if find_spec(each.replace("pillow", "PIL"))
    }
