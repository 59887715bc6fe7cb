"""The generations of a search: bred, evaluated with one prediction each, and written to the study."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import optuna

from proard_nas.supernets.space import Architecture

from .candidate import ACCURACIES, Candidate
from .ledger import Ledger
from .sampler import GenerationSampler, Genotype, Individual, Newborn, first_generation
from .studies import Settings, new_trial, stored_generations

logger = logging.getLogger(__name__)

N_ATTEMPTS = 5
"""So many times at most is a child bred until it is one that has not been seen."""
N_PROBES = 50
"""So many stored candidates are predicted again when a study is continued."""


class Evolution:
    """NSGA-II over a study that may hold earlier generations.

    Each generation draws from a generator of its own, derived from the seed and the generation's
    number: a search in two parts is the same as one in a single part.

    Parameters
    ----------
    study : optuna.Study
    settings : Settings
    ledger : Ledger
    seed : int
    """

    def __init__(self, study: optuna.Study, settings: Settings, ledger: Ledger, seed: int) -> None:
        self.study = study
        self.settings = settings
        self.ledger = ledger
        self.first: list[Candidate] = []
        self.survivors: list[Individual] = []
        self._seed = seed
        self._genotype = Genotype(settings.space)
        stored, self._next_number = stored_generations(study, settings)
        self.generation = len(stored)
        if stored:
            self._continue(stored)

    def step(self, immigrants: Sequence[Architecture]) -> None:
        """Run one generation; the immigrants take the place of that many of its members."""
        rng = np.random.default_rng([self._seed, self.generation])
        sampler = self._sampler(self.generation)
        born = [self._genotype.of(arch) for arch in immigrants]
        n = self.settings.population_size - len(born)
        if self.survivors:
            born += self._new_ones(sampler.children(self.study, self.survivors, self._genotype, rng), n)
        else:
            born += [self._genotype.of(arch) for arch in first_generation(self.settings.space, n, rng)]
        population = self._evaluate(born)
        self.study.add_trials([member.trial for member in population])
        self.first = self.first or [member.candidate for member in population]
        self.survivors = sampler.survivors(self.study, [*population, *self.survivors])
        self.generation += 1

    def choose(self, architectures: Sequence[Architecture]) -> list[Architecture]:
        """Return the best of the architectures, as many as fit into one generation."""
        if len(architectures) <= self.settings.population_size:
            return list(architectures)
        population = self._evaluate([self._genotype.of(arch) for arch in architectures])
        kept = self._sampler(self.generation).survivors(self.study, population)
        return [member.candidate.architecture for member in kept]

    def _new_ones(self, children: Iterator[Newborn], n: int) -> list[Newborn]:
        """Take ``n`` children; one that has been seen is bred again, a few times at most."""
        born: list[Newborn] = []
        seen = set(self.ledger.architectures)
        for _ in range(n):
            attempts = itertools.islice(children, N_ATTEMPTS)
            child = next(attempts)
            while child.architecture in seen and (another := next(attempts, None)):
                child = another
            seen.add(child.architecture)
            born.append(child)
        return born

    def _sampler(self, generation: int) -> GenerationSampler:
        seed = int(np.random.SeedSequence([self._seed, generation]).generate_state(1)[0])
        return GenerationSampler(self.settings.population_size, self.settings.mutation_prob, seed)

    def _evaluate(self, born: Sequence[Newborn]) -> list[Individual]:
        candidates = self.ledger.evaluate([newborn.architecture for newborn in born])
        population: list[Individual] = []
        for newborn, candidate in zip(born, candidates, strict=True):
            number = self._next_number + len(population)
            trial = new_trial(self.settings, self._genotype, newborn.genes, candidate, self.generation, number)
            population.append(Individual(trial, candidate))
        self._next_number += len(population)
        return population

    def _continue(self, stored: Sequence[Sequence[Individual]]) -> None:
        candidates = [member.candidate for generation in stored for member in generation]
        self.ledger.restore(candidates)
        self._check_predictor()
        self.first = candidates[: self.settings.population_size]
        for number, generation in enumerate(stored):
            # Selection draws no random numbers, so this gives the survivors of that time.
            self.survivors = self._sampler(number).survivors(self.study, [*generation, *self.survivors])
        logger.info("study %r goes on after generation %d", self.study.study_name, self.generation - 1)

    def _check_predictor(self) -> None:
        known = self.ledger.candidates
        probes = known[:: max(1, len(known) // N_PROBES)]
        again = self.ledger.evaluate_afresh([probe.architecture for probe in probes])
        for was, now in zip(probes, again, strict=True):
            for name in ("macs", "params", *ACCURACIES):
                if abs(getattr(was, name) - getattr(now, name)) > 1e-6:
                    raise ValueError(
                        f"study {self.study.study_name!r} was made with another predictor or cost: {name} of "
                        f"{was.architecture} is stored as {getattr(was, name)} and now {getattr(now, name)}; "
                        "use another study_name"
                    )
