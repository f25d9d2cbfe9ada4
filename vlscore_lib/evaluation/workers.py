"""Shards of an evaluation, measured in this process or on the workers of a Dask cluster."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import torch
from PIL import Image

from vlscore_lib.errors import VLScoreError, import_extra
from vlscore_lib.evaluation.protocol import Protocol
from vlscore_lib.images import load_image
from vlscore_lib.pipeline import finish_behind

TRIES = 3  # of a shard; each ends after the number of dead workers that Dask allows, by default 4
PATIENCE = 5  # seconds without a result, after which the workers are counted


class EvaluationContext(NamedTuple):
    """What a process needs, besides the photos, to measure them.

    Attributes:
        model: name of the model.
        protocol: what is measured.
        labels: the N classes.
        texts: their embeddings (N, D), unit.
        skips_bad: whether a photo that cannot be read is left out.
    """

    model: str
    protocol: Protocol
    labels: list[str]
    texts: torch.Tensor
    skips_bad: bool = False


class ReadShard(NamedTuple):
    """A shard whose photos have been read.

    Attributes:
        photos: the entries of the shard that could be read.
        images: the PIL image of each.
        left_out: for each other photo, its name -> a line that says why.
    """

    photos: list
    images: list[Image.Image]
    left_out: dict[str, str]


def read_shard_images(shard, skips_bad: bool) -> ReadShard:
    """Read and decode the photos of one of `Run.shards`.

    Raises:
        VLScoreError: a photo cannot be read, and ``skips_bad`` is False.
    """
    read = ReadShard([], [], {})
    for photo, with_slow_baselines in shard:
        try:
            read.images.append(load_image(photo.path))
            read.photos.append((photo, with_slow_baselines))
        except VLScoreError as error:
            if not skips_bad:
                raise
            read.left_out[photo.name] = str(error)
    return read


def measure_here(observe, record, todo: dict, skips_bad: bool):
    """Measure one shard after the other in this process -> (number, records, photos left out) of each.

    While one shard goes through the encoder, threads read the photos of the next and measure those of the
    previous one.

    Args:
        observe: a function of a shard and its images -> what the model computes for each photo.
        record: a function of that -> a photo's record; the model is not run.
        todo: number -> shard.
        skips_bad: see `read_shard_images`.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def finish(observed):
            number, of_photos, left_out = observed
            return number, list(pool.map(record, of_photos)), left_out

        yield from finish_behind(observe_shards(observe, todo, skips_bad), finish)


def observe_shards(observe, todo: dict, skips_bad: bool):
    """Run the model on one shard after the other -> (number, results, photos left out) of each."""
    shards = list(todo.items())
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read_shard_images, shards[0][1], skips_bad)
        for (number, _), following in zip(shards, [*shards[1:], None]):
            read = ahead.result()
            if following:
                ahead = reader.submit(read_shard_images, following[1], skips_bad)
            yield number, observe(read.photos, read.images), read.left_out


def measure_by_dask(client, measure_on_worker, context: EvaluationContext, todo: dict):
    """Measure shards on the workers of a `dask.distributed.Client`, and yield each as it is finished.

    A task carries all it needs, and few tasks wait at a time.  A lost worker therefore loses only the shards
    that it was working on, and others measure them.  If too many workers die on a shard, Dask gives it up; it
    is tried again at the end, alone, so that no shard is blamed for another's fault.

    Args:
        measure_on_worker: what a worker runs, a function of the context and a shard -> records, and the
            photos left out.
        todo: number -> shard.

    Yields:
        (number, records, photos left out), as `measure_here`.

    Raises:
        VLScoreError: the scheduler was lost; or a shard killed its workers in each of `TRIES` tries, and bad
            photos are not to be left out.
    """
    from distributed import CancelledError, KilledWorker, wait

    waiting, suspects, tries, running = deque(todo), deque(), dict.fromkeys(todo, 0), {}
    if not count_workers(client):
        tell_of_no_workers(client)
    with watch_memory() as deaths:
        while waiting or suspects or running:
            workers = count_workers(client)
            while (waiting and len(running) < 2 * max(1, workers)) or (suspects and not running):
                number = waiting.popleft() if waiting else suspects.popleft()
                future = client.submit(measure_on_worker, context, todo[number], pure=False)
                running[future] = number
            try:
                finished = wait(list(running), timeout=PATIENCE, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                if workers and not count_workers(client):
                    tell_of_no_workers(client)
                continue
            except CancelledError:
                finished = list(running)
            for future in finished:
                number = running.pop(future)
                try:
                    yield number, *future.result()
                except CancelledError:
                    raise VLScoreError(
                        "the Dask scheduler was lost: start it, and continue with --resume"
                    ) from None
                except KilledWorker as error:
                    tries[number] += 1
                    if tries[number] < TRIES:
                        suspects.append(number)
                        continue
                    why = tell_of_killed_workers(client, todo[number], error, deaths)
                    if not context.skips_bad:
                        raise VLScoreError(why) from None
                    yield number, [], {photo.name: f"{photo.path}: {why}" for photo, _ in todo[number]}


@contextmanager
def start_cluster(workers: int | None, scheduler: str | None):
    """Open a Dask client while the block runs: with own processes, or with a scheduler; None for neither.

    Raises:
        VLScoreError: both are given, the number of workers is below 1, or no scheduler answers.
    """
    if workers is None and scheduler is None:
        yield None
        return
    if workers is not None and (scheduler is not None or workers < 1):
        raise VLScoreError(f"--workers is {workers}: give 1 or more, and leave --scheduler out")
    import_extra("dask", "evaluation")
    distributed = import_extra("distributed", "evaluation")
    with ExitStack() as stack:
        place = scheduler or stack.enter_context(open_local_cluster(workers))
        try:
            client = stack.enter_context(distributed.Client(place, timeout=20))
        except (OSError, ValueError) as error:
            raise VLScoreError(f"no Dask scheduler at {scheduler} ({error}): start one") from None
        yield client


@contextmanager
def open_local_cluster(count: int, **options):
    """Run a Dask cluster of ``count`` processes on this machine while the block runs."""
    from distributed import LocalCluster

    cluster = LocalCluster(count, threads_per_worker=1, dashboard_address="127.0.0.1:0", **options)
    try:
        yield cluster
    finally:
        with suppress(AssertionError):  # Dask cannot wait for the end of a worker that it just starts again
            cluster.close()


def count_workers(client) -> int:
    """Count the workers that a scheduler has now."""
    return len(client.scheduler_info(n_workers=-1)["workers"])


def tell_of_no_workers(client) -> None:
    """Say on stderr that a scheduler without workers waits for one."""
    address = client.scheduler.address
    print(
        f"vlscore: the Dask scheduler at {address} has no workers: waiting for one; start it by"
        f" 'dask worker {address}'",
        file=sys.stderr,
    )


def tell_of_killed_workers(client, shard, error, deaths: list[str]) -> str:
    """Write the message for a shard that killed its workers in all tries."""
    names = [photo.path.name for photo, _ in shard]
    count = TRIES * (error.allowed_failures + 1)
    limits = [each["memory_limit"] for each in client.scheduler_info(n_workers=-1)["workers"].values()]
    memory = f" of {min(limits) / 1e9:.1f} GB" if any(limits) else ""
    reason = (
        f"they ran out of memory{memory}: give each more, by fewer --workers for instance"
        if deaths
        else f"if their memory{memory} is too small, give each more; else leave these photos out"
    )
    return f"{count} workers died while they measured {names[0]} to {names[-1]}; {reason}"


@contextmanager
def watch_memory():
    """Collect, while the block runs, Dask's messages about workers that it stopped for their memory.

    Only a cluster of this process is watched; a remote one writes such messages to its own log.
    """
    deaths = []

    class Collector(logging.Handler):
        def emit(self, record):
            if "exceeded" in record.getMessage():
                deaths.append(record.getMessage())

    logger, collector = logging.getLogger("distributed.nanny.memory"), Collector()
    logger.addHandler(collector)
    try:
        yield deaths
    finally:
        logger.removeHandler(collector)
