"""The generations of a search: bred, evaluated with one prediction each, and written to the study."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
import optuna

from proard_nas.supernets.architecture import Architecture

from .candidate import ACCURACIES, Candidate
from .drawing import first_generation
from .ledger import Ledger
from .refinement import refine
from .sampler import GenerationSampler, Genotype, Individual, Newborn
from .studies import REFINED_KEY, Settings, join_once, new_trial, read_study

logger = logging.getLogger(__name__)

N_ATTEMPTS = 5
"""So many times at most is a child bred until it is one that has not been seen."""
N_PROBES = 50
"""So many stored candidates are predicted again when a study is continued."""
LATENCY_SCATTER = 0.2
"""Of measured latencies, between one search and the one that continues it."""


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
        stored = read_study(study, settings)
        self.generation = len(stored.generations)
        self._next_number = stored.n_trials
        self._interrupted = stored.interrupted
        self._refined = stored.refined
        if stored.generations or stored.interrupted:
            self._continue(stored.generations)

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
        written = self._written(born)
        population = self._evaluate(born, written)
        self.study.add_trials([member.trial for member in population[len(written) :]])
        self.first = self.first or [member.candidate for member in population]
        self.survivors = sampler.survivors(self.study, [*population, *self.survivors])
        self.generation += 1

    def immigrants(self, warm_start: Sequence[Architecture]) -> list[Architecture]:
        """Return who joins the next generation: the ends of the space in the first, and a warm start once."""
        space = self.settings.space
        ends = () if self.generation else (space.smallest, space.largest)
        joining = join_once(self.study, warm_start, self.generation)
        return self._best(list(dict.fromkeys([*ends, *joining])))

    def recall_refined(self, again: bool) -> None:
        """Let those that earlier refinements of this study have found take part; after the last generation.

        Before it, they would make its children others than those of a search in a single part. So it is with those of
        a refinement that was cut off and is made ``again``: it finds them anew, without predicting them twice.
        """
        for member in self._refined:
            same = again and member.trial.system_attrs[REFINED_KEY] == self.generation
            if member.candidate.architecture not in self.ledger:
                (self.ledger.set_aside if same else self.ledger.restore)([member.candidate])

    def refine(self, budget: int) -> None:
        """Look at the neighbours of the front; those that join it are written to the study."""
        written = {*self.ledger.architectures, *(member.candidate.architecture for member in self._refined)}
        s = self.settings
        front = refine(self.ledger, s.space, s.objectives, s.constraints, budget)
        joined = [candidate for candidate in front if candidate.architecture not in written]
        born = [self._genotype.of(candidate.architecture) for candidate in joined]
        members = self._individuals(born, joined, self.generation, None)
        self.study.add_trials([member.trial for member in members])
        self._next_number += len(members)
        self._refined += members

    def _best(self, architectures: Sequence[Architecture]) -> list[Architecture]:
        """Return the best of the architectures, as many as fit into one generation."""
        if len(architectures) <= self.settings.population_size:
            return list(architectures)
        candidates = self.ledger.evaluate_afresh(architectures)
        self.ledger.set_aside(candidates)
        born = [self._genotype.of(arch) for arch in architectures]
        population = self._individuals(born, candidates, self.generation)
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

    def _written(self, born: Sequence[Newborn]) -> list[Individual]:
        """Return the members that the study holds already: those of a generation that was cut off."""
        written, self._interrupted = self._interrupted, []
        names = list(self._genotype.distributions)
        stored = [[member.trial.params[name] for name in names] for member in written]
        # Another seed, or another warm start, breeds others.
        return written if stored == [newborn.genes for newborn in born[: len(written)]] else []

    def _evaluate(self, born: Sequence[Newborn], written: Sequence[Individual]) -> list[Individual]:
        candidates = self.ledger.evaluate([newborn.architecture for newborn in born])
        n = len(written)
        added = self._individuals(born[n:], candidates[n:], self.generation, n)
        self._next_number += len(added)
        return [*written, *added]

    def _individuals(
        self, born: Sequence[Newborn], candidates: Sequence[Candidate], generation: int, first: int | None = 0
    ) -> list[Individual]:
        """Return the next trials; ``first`` is the first one's index in its generation, None in a refinement."""
        found = []
        for i, (newborn, candidate) in enumerate(zip(born, candidates, strict=True)):
            index, number = None if first is None else first + i, self._next_number + i
            trial = new_trial(self.settings, self._genotype, newborn.genes, candidate, generation, index, number)
            found.append(Individual(trial, candidate))
        return found

    def _continue(self, stored: Sequence[Sequence[Individual]]) -> None:
        candidates = [member.candidate for generation in stored for member in generation]
        halfway = [member.candidate for member in self._interrupted]
        self._check_predictor([*candidates, *halfway])
        self.ledger.restore(candidates)
        self.ledger.set_aside(c for c in halfway if c.architecture not in self.ledger)
        self.first = candidates[: self.settings.population_size]
        for number, generation in enumerate(stored):
            # Selection draws no random numbers, so this gives the survivors of that time.
            self.survivors = self._sampler(number).survivors(self.study, [*generation, *self.survivors])
        logger.info(
            "study %r goes on after %d generations and %d students", self.study.study_name, len(stored), len(halfway)
        )

    def _check_predictor(self, known: Sequence[Candidate]) -> None:
        probes = known[:: max(1, len(known) // N_PROBES)]
        again = self.ledger.evaluate_afresh([probe.architecture for probe in probes])
        for was, now in zip(probes, again, strict=True):
            for name in ("macs", "params", *ACCURACIES, "latency_ms"):
                before, after = getattr(was, name), getattr(now, name)
                if before is None or after is None:  # no latency was asked for, at one time or at both
                    continue
                if abs(before - after) > (LATENCY_SCATTER * after if name == "latency_ms" else 1e-6):
                    raise ValueError(
                        f"study {self.study.study_name!r} was made with another predictor, cost or latency: {name} of "
                        f"{was.architecture} is stored as {before} and now {after}; use another study_name"
                    )
