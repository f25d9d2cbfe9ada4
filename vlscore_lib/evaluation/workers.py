"""Shards of an evaluation measured in this process, or on the workers of a Dask cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import torch
from PIL import Image

from vlscore_lib.errors import VLScoreError
from vlscore_lib.evaluation.protocol import Protocol
from vlscore_lib.images import load_image


class EvaluationContext(NamedTuple):
    """What a process needs beside the photos: the model by name, the protocol, the classes' embeddings."""

    model: str
    protocol: Protocol
    labels: list[str]
    texts: torch.Tensor  # (N, D)


def read_shard_images(shard) -> list[Image.Image]:
    """Read and decode the photos of one of `Run.shards`."""
    return [load_image(photo.path) for photo, _ in shard]


def measure_here(measure_shard, todo: dict):
    """Measure shard after shard in this process -> (number, records) of each.

    A thread reads the photos of the next shard meanwhile.

    Args:
        measure_shard: a function of a shard and its images -> records.
        todo: number -> shard.
    """
    shards = list(todo.items())
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read_shard_images, shards[0][1])
        for (number, shard), following in zip(shards, [*shards[1:], None]):
            images = ahead.result()
            if following:
                ahead = reader.submit(read_shard_images, following[1])
            yield number, measure_shard(shard, images)


def measure_by_dask(client, measure_on_worker, context: EvaluationContext, todo: dict):
    """Measure shards on the workers of a `dask.distributed.Client`, as each comes in.

    A task brings all it needs, and few wait at a time, so a lost worker loses but the shard in its hands.

    Args:
        measure_on_worker: what a worker runs, a function of the context and a shard -> records.
        todo: number -> shard.

    Raises:
        VLScoreError: the scheduler was lost.
    """
    from distributed import CancelledError, as_completed

    waiting, running, numbers = iter(todo.items()), as_completed(), {}

    def submit(count):
        for number, shard in islice(waiting, count):
            future = client.submit(measure_on_worker, context, shard, pure=False)
            numbers[future.key] = number
            running.add(future)

    submit(2 * max(1, len(client.scheduler_info(n_workers=-1)["workers"])))
    for future in running:
        try:
            records = future.result()
        except CancelledError:
            raise VLScoreError("the Dask scheduler was lost: start it, and go on by --resume") from None
        yield numbers[future.key], records
        submit(1)
