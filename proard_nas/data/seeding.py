"""Random streams of one's own for code that draws from the global generators, such as users' transforms."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch

Item = TypeVar("Item")


class RandomStreams:
    """Python's, NumPy's and torch's (CPU) global random streams, replaced inside a ``with`` block.

    The streams go on where the last block stopped; outside the blocks the global ones are as they were.

    Parameters
    ----------
    seed : int
        Where the three streams start.
    """

    def __init__(self, seed: int) -> None:
        self._own: tuple[Any, ...] = (
            random.Random(seed).getstate(),
            np.random.RandomState(seed % 2**32).get_state(),
            torch.Generator().manual_seed(seed).get_state(),
        )
        self._outside: tuple[Any, ...] = ()

    def __enter__(self) -> RandomStreams:
        self._outside = _global_states()
        _set_global_states(self._own)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._own = _global_states()
        _set_global_states(self._outside)


# NumPy's legacy functions, on purpose: the global stream is what users' transforms draw from.
def _global_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _set_global_states(states: tuple[Any, ...]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def seeded_pass(iterable: Iterable[Item], seed: int) -> Iterator[Item]:
    """Iterate once, with every global random draw a function of the seed and none left behind.

    Parameters
    ----------
    iterable : iterable
        A loader, for instance; its workers, if any, are seeded by it as always.
    seed : int
        Where the random streams start.

    Yields
    ------
    object
        What the iterable yields. The code that takes it runs with the global streams as they were.
    """
    streams = RandomStreams(seed)
    with streams:
        items = iter(iterable)
    while True:
        with streams:
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
