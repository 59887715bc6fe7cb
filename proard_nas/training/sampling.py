"""Which students a training step sees."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable

import numpy as np

from proard_nas.supernets import Architecture, SearchSpace

CostOf = Callable[[Architecture], float]
Sampler = Callable[[SearchSpace, int, np.random.Generator, CostOf], list[Architecture]]


def uniform(space: SearchSpace, n: int, rng: np.random.Generator, cost: CostOf) -> list[Architecture]:
    """Draw ``n`` students, each choice uniform; their costs crowd around the middle.

    Of 20,000 students of Dyn-ResNet50 (285 to 2358 MMACs) drawn so, 90 % lie between 599 and
    1253 MMACs and none above 1705.
    """
    return [space.sample(rng) for _ in range(n)]


def sandwich(space: SearchSpace, n: int, rng: np.random.Generator, cost: CostOf) -> list[Architecture]:
    """Take the largest and the smallest student and draw the rest (Yu and Huang 2019, section 3).

    One student is the largest, two are the largest and the smallest.
    """
    return [space.largest, space.smallest, *uniform(space, n - 2, rng, cost)][:n]


def attentive(space: SearchSpace, n: int, rng: np.random.Generator, cost: CostOf) -> list[Architecture]:
    """Draw ``n`` students evenly over cost, from the cheapest to the dearest of the space.

    For each student a target is drawn, uniform between the costs of the smallest and the
    largest, and a random way from the smallest to the largest that raises one choice at a time.
    The student on the way that is nearest the target is taken. So the costs are uniform up to
    the size of one such rise, and students of one cost differ as their ways do: each choice is
    about uniform in the middle of a way. The smallest and the largest themselves come whenever
    the target is nearest them, once or a few times in a hundred.

    That the training should aim at costs, drawn evenly, is from AttentiveNAS (Wang et al. 2021,
    section 3.2), which looks them up in a table of sampled students; the ways are our own.

    Parameters
    ----------
    space : SearchSpace
    n : int
        Number of students.
    rng : numpy.random.Generator
        The same state gives the same students.
    cost : callable
        From an architecture to its cost, in any unit; raising a choice must not lower it. It is
        called about eight times for each student.

    Returns
    -------
    list of Architecture

    Examples
    --------
    >>> space = SearchSpace(depths=(1, 2, 3, 4), base_depths=(0, 0, 0, 0, 0))
    >>> def blocks(arch):
    ...     return sum(arch.depth)
    >>> for sampler in (uniform, attentive):
    ...     students = sampler(space, 1000, np.random.default_rng(0), blocks)
    ...     sum(blocks(arch) > 17 for arch in students)
    22
    143
    """
    low, high = cost(space.smallest), cost(space.largest)
    return [_nearest(space, _rises(space, rng), float(rng.uniform(low, high)), cost) for _ in range(n)]


def _nearest(space: SearchSpace, order: np.ndarray, target: float, cost: CostOf) -> Architecture:
    """Return the student on a way whose cost is nearest the target."""
    at = functools.partial(_after, space, order)
    above = bisect.bisect_left(range(len(order)), target, key=lambda place: cost(at(place)))
    return min((at(max(0, above - 1)), at(above)), key=lambda arch: abs(cost(arch) - target))


def _rises(space: SearchSpace, rng: np.random.Generator) -> np.ndarray:
    """Return the order in which a random way raises the genes: one gene's index for each rise.

    Each gene has one logistic draw, and rises from its i-th value of k to the next when a clock
    passes this draw plus logit(i / k): an ordered logit model. When the clock is at zero all of
    a gene's values are equally likely; before it the small ones are likelier, after it the large.
    """
    counts = [len(gene.choices) for gene in space.genes]
    gene = np.repeat(np.arange(len(counts)), [k - 1 for k in counts])
    share = np.concatenate([np.arange(1, k) / k for k in counts])
    clock = rng.logistic(size=len(counts))[gene] + np.log(share / (1 - share))
    return gene[np.argsort(clock)]


def _after(space: SearchSpace, order: np.ndarray, place: int) -> Architecture:
    """Return the student after so many rises of a way."""
    ranks = np.bincount(order[:place], minlength=len(space.genes))
    return space.decode([sorted(gene.choices)[rank] for gene, rank in zip(space.genes, ranks, strict=True)])


SAMPLERS: dict[str, Sampler] = {"attentive": attentive, "sandwich": sandwich, "uniform": uniform}
