"""Shards of an evaluation measured in this process, or on the workers of a Dask cluster."""

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

TRIES = 3  # of a shard, each of which ends when as many workers died of it as Dask allows, by default 4
PATIENCE = 5  # seconds without a result, after which the number of workers is looked at


class EvaluationContext(NamedTuple):
    """What a process needs beside the photos.

    Attributes:
        model: its name.
        protocol: what is measured.
        labels, texts: the classes, and their embeddings (N, D).
        skips_bad: whether a photo that cannot be read is left out.
    """

    model: str
    protocol: Protocol
    labels: list[str]
    texts: torch.Tensor
    skips_bad: bool = False


class ReadShard(NamedTuple):
    """A shard whose photos were read.

    Attributes:
        photos: those of `Run.shards` that could be read.
        images: of each.
        left_out: name -> a line that says why, of each other photo.
    """

    photos: list
    images: list[Image.Image]
    left_out: dict[str, str]


def read_shard_images(shard, skips_bad: bool) -> ReadShard:
    """Read and decode the photos of one of `Run.shards`.

    Raises:
        VLScoreError: a photo cannot be read, and bad ones are not to be left out.
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
    """Measure shard after shard in this process -> (number, records, photos left out) of each.

    While a shard goes through the encoder, threads read the photos of the next and measure those of the one
    before.

    Args:
        observe: a function of a shard and its images -> what the model gives of each photo.
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
    """Run the model on shard after shard, see `measure_here` -> (number, what it gives, photos left out)."""
    shards = list(todo.items())
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read_shard_images, shards[0][1], skips_bad)
        for (number, _), following in zip(shards, [*shards[1:], None]):
            read = ahead.result()
            if following:
                ahead = reader.submit(read_shard_images, following[1], skips_bad)
            yield number, observe(read.photos, read.images), read.left_out


def measure_by_dask(client, measure_on_worker, context: EvaluationContext, todo: dict):
    """Measure shards on the workers of a `dask.distributed.Client`, as each comes in.

    A task brings all it needs, and few wait at a time, so a lost worker loses but the shards in its hands,
    which others measure.  A shard that Dask gives up, after so many workers died with it, is tried again
    when all others are done, alone, so that none is blamed for another's fault.

    Args:
        measure_on_worker: what a worker runs, a function of the context and a shard -> records, and the
            photos left out.
        todo: number -> shard.

    Yields:
        (number, records, photos left out), as `measure_here`.

    Raises:
        VLScoreError: the scheduler was lost; a shard killed its workers in each of `TRIES` tries, and bad
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
                        "the Dask scheduler was lost: start it, and go on by --resume"
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
    """A Dask client of so many own processes, or of a scheduler, while the block runs; None for neither.

    Raises:
        VLScoreError: both are given, fewer than one worker, or no scheduler at that address.
    """
    if workers is None and scheduler is None:
        yield None
        return
    if workers is not None and (scheduler is not None or workers < 1):
        raise VLScoreError(f"--workers is {workers}: give 1 or more, and no --scheduler beside it")
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
    """A Dask cluster of so many processes on this machine, while the block runs."""
    from distributed import LocalCluster

    cluster = LocalCluster(count, threads_per_worker=1, dashboard_address="127.0.0.1:0", **options)
    try:
        yield cluster
    finally:
        with suppress(AssertionError):  # Dask cannot wait for the end of a worker that it just starts again
            cluster.close()


def count_workers(client) -> int:
    """The number of workers that a scheduler has now."""
    return len(client.scheduler_info(n_workers=-1)["workers"])


def tell_of_no_workers(client) -> None:
    """Say on stderr what a scheduler without workers waits for."""
    address = client.scheduler.address
    print(
        f"vlscore: the Dask scheduler at {address} has no workers: waiting for one; start it by"
        f" 'dask worker {address}'",
        file=sys.stderr,
    )


def tell_of_killed_workers(client, shard, error, deaths: list[str]) -> str:
    """What is said of a shard that killed its workers in all tries."""
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
    """Collect, while the block runs, what Dask says of workers that it stopped for their memory.

    Those of a cluster of this process alone; what a distant one says stands in its own log.
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
