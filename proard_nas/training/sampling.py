"""Which students a training step sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from proard_nas.supernets import Architecture, SearchSpace

Sampler = Callable[[SearchSpace, int, np.random.Generator], list[Architecture]]


def uniform(space: SearchSpace, n: int, rng: np.random.Generator) -> list[Architecture]:
    """Draw ``n`` students, each choice uniform."""
    return [space.sample(rng) for _ in range(n)]


def sandwich(space: SearchSpace, n: int, rng: np.random.Generator) -> list[Architecture]:
    """Take the largest and the smallest student and draw the rest (Yu and Huang 2019, section 3)."""
    return [space.largest, space.smallest, *uniform(space, n - 2, rng)][:n]


SAMPLERS: dict[str, Sampler] = {"sandwich": sandwich, "uniform": uniform}
