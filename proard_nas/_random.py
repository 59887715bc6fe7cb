"""Seeds derived from seeds, so that every random choice is a pure function of where it is made."""

from __future__ import annotations

import zlib

import numpy as np


def derive_seed(seed: int, *place: int | str) -> int:
    """Return a seed for one place: the same seed and place always give the same one.

    Parameters
    ----------
    seed : int
        The user's seed.
    *place : int or str
        What the randomness is for, such as ``('step', stage, epoch, batch)``.

    Examples
    --------
    >>> derive_seed(0, 'step', 3) == derive_seed(0, 'step', 3) != derive_seed(0, 'step', 4)
    True
    """
    parts = [zlib.crc32(p.encode()) if isinstance(p, str) else p for p in place]
    return int(np.random.SeedSequence([seed, *parts]).generate_state(1, np.uint32)[0])


def process_seed(seed: int, rank: int) -> int:
    """Return a seed of one process's own, for what several must not draw alike; the first keeps the given one."""
    return derive_seed(seed, "process", rank) if rank else seed
