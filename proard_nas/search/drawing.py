"""Architectures from the smallest sizes to the largest, for searches to begin with and labels to be chosen from."""

from __future__ import annotations

import numpy as np

from proard_nas.supernets.architecture import Architecture
from proard_nas.supernets.space import SearchSpace


def first_generation(space: SearchSpace, n: int, rng: np.random.Generator) -> list[Architecture]:
    """Draw ``n`` architectures that reach from the smallest sizes to the largest.

    Every second one is uniform, as in the paper; uniform draws alone concentrate in the middle of the
    range of costs and leave a tight limit without a start. The others first draw a size between 0
    and 1 and then each choice with that probability of being larger.
    """
    return [space.sample(rng) if i % 2 else _graded(space, rng) for i in range(n)]


def _graded(space: SearchSpace, rng: np.random.Generator) -> Architecture:
    size = rng.random()
    ordered = [sorted(gene.choices) for gene in space.genes]
    return space.decode([choices[rng.binomial(len(choices) - 1, size)] for choices in ordered])
