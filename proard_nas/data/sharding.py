"""Batches shared between processes: each gets its part of every batch of the one order that all agree on."""

from __future__ import annotations

from collections.abc import Iterator

from proard_nas.data.loaders import DatasetSource
from proard_nas.data.sources import Batch, Source


def sharded(source: Source, batch_size: int, seed: int, rank: int, size: int) -> Iterator[tuple[Batch, int]]:
    """Pass over the data once, taking images ``rank``, ``rank + size``, ... of every batch.

    A map-style dataset loads only this process's part; any other source is sliced.

    Parameters
    ----------
    source : Source
    batch_size : int
        Of the joined batch.
    seed : int
        Decides the order, the same in every process.
    rank, size : int
        This process's number and how many there are.

    Yields
    ------
    ((Tensor, Tensor), int)
        This process's images and labels (there may be none), and the number of images in the joined batch.
    """
    if size > 1 and isinstance(source, DatasetSource):
        sizes = source.batch_sizes(batch_size)
        wanted = [n for n in sizes if n > rank]  # a loader skips batches of which this process has no part
        parts = source.batches(batch_size, seed=seed, shard=(rank, size))
        for n, part in zip(wanted, parts, strict=True):
            yield part, n
        return
    for x, y in source.batches(batch_size, seed=seed):
        yield (x[rank::size], y[rank::size]), len(y)
