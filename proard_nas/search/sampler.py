"""Optuna's NSGA-II, told who the parents are instead of scanning the study for them in every ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import NSGAIISampler
from optuna.samplers.nsgaii import UniformCrossover
from optuna.study import Study
from optuna.trial import FrozenTrial

from proard_nas.supernets.architecture import Architecture, Choice
from proard_nas.supernets.space import SearchSpace

from .candidate import Candidate

Genes = list[Choice]


class Individual(NamedTuple):
    """One member of a generation: what Optuna sees and what we see of it."""

    trial: FrozenTrial
    candidate: Candidate


class Newborn(NamedTuple):
    """An architecture and one set of genes for it, those of absent blocks included."""

    genes: Genes
    architecture: Architecture


class Genotype:
    """The space as Optuna sees it: one categorical parameter for each gene.

    Parameters
    ----------
    space : SearchSpace
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        kinds: dict[str, CategoricalDistribution] = {}
        # Genes of equal choices share an object, which makes Optuna's copies of a trial several times
        # cheaper. Text is the key, because (0, 1), (0.0, 1.0) and (False, True) are equal.
        self.distributions: dict[str, CategoricalDistribution] = {
            gene.name: kinds.setdefault(repr(gene.choices), CategoricalDistribution(gene.choices))
            for gene in space.genes
        }

    def born(self, genes: Genes) -> Newborn:
        """Decode the genes."""
        return Newborn(genes, self.space.decode(genes))

    def of(self, architecture: Architecture) -> Newborn:
        """Return the architecture with its genes."""
        return Newborn(self.space.to_genes(architecture), architecture)


class GenerationSampler(NSGAIISampler):
    """NSGA-II for one generation whose pool and parents are given.

    The stock sampler looks for them among all finished trials each time it is asked, which makes up
    most of the time of a long search. Selection, tournament, crossover and mutation are its own.

    Parameters
    ----------
    population_size : int
    mutation_prob : float
        Probability that a gene of a child is redrawn.
    seed : int
    """

    def __init__(self, population_size: int, mutation_prob: float, seed: int) -> None:
        super().__init__(
            population_size=population_size, mutation_prob=mutation_prob, crossover=UniformCrossover(), seed=seed
        )
        self._pool: list[FrozenTrial] = []
        self._parents: list[FrozenTrial] = []

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        """Return any generation after the first: the parents do not depend on it."""
        return 1

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Return the pool from which the parents are selected."""
        return self._pool

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Return the parents."""
        return self._parents

    def survivors(self, study: Study, pool: Sequence[Individual]) -> list[Individual]:
        """Select ``population_size`` of the pool by constrained non-domination and crowding distance.

        Of an architecture that is there several times one copy takes part, as long as two different
        ones are there: copies would crowd out other points of the front.
        """
        distinct = {member.candidate.architecture: member for member in reversed(pool)}
        members = list(distinct.values())[::-1] if len(distinct) > 1 else list(pool)
        by_number = {member.trial.number: member for member in members}
        self._pool, self._parents = [member.trial for member in members], []
        return [by_number[trial.number] for trial in self.select_parent(study, 1)]

    def children(
        self, study: Study, parents: Sequence[Individual], space: Genotype, rng: np.random.Generator
    ) -> Iterator[Newborn]:
        """Breed children without end by tournament, uniform crossover and mutation."""
        self._parents = [member.trial for member in parents]
        distributions: dict[str, BaseDistribution] = dict(space.distributions)
        while True:
            drawn = self.sample_relative(study, self._parents[0], distributions)
            yield space.born(_complete(drawn, space.distributions, rng))


def _complete(
    child: Mapping[str, Any], distributions: Mapping[str, CategoricalDistribution], rng: np.random.Generator
) -> Genes:
    """Draw the genes that the sampler left out, which is how it marks those to be mutated."""
    return [child[name] if name in child else _draw(kind.choices, rng) for name, kind in distributions.items()]


def _draw(choices: Sequence[Any], rng: np.random.Generator) -> Choice:
    choice: Choice = choices[int(rng.integers(len(choices)))]
    return choice
