"""The last step of a search: students one or two choices away from those of the front are looked at, too.

Crossover and mutation find the region of the front fast and its last members slowly: under a tight limit two front
members often differ by two choices that make up for each other, which chance seldom changes together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proard_nas.supernets.architecture import Architecture, Choice
from proard_nas.supernets.space import SearchSpace

from .candidate import Candidate
from .constraints import Constraints
from .ledger import Ledger
from .objectives import front_of, losses

Matrix = NDArray[np.float64]

SLACK = 0.02
"""So far may the estimate of a pair break a limit, since it is no more than an estimate."""
N_ROUNDS = 5
"""Over about so many rounds is a budget spread that is left when the front's own neighbours are known."""
MAX_COMPARED = 500
"""So many points of a front at most are estimates compared with."""


class Change(NamedTuple):
    """One gene set to one choice."""

    gene: int
    choice: Choice


def refine(
    ledger: Ledger, space: SearchSpace, objectives: Sequence[str], constraints: Constraints, budget: int
) -> list[Candidate]:
    """Look at the neighbours of the front, and then at those of the students nearest behind it.

    All neighbours that differ by one gene are predicted, and as many of those that differ by two. The
    latter are chosen by an estimate: the sum of what the two changes do alone. Once the front's own
    neighbours are known, those of the students nearest behind it follow, as long as the budget lasts.

    Parameters
    ----------
    ledger : Ledger
        With what has been looked at; gets what is looked at here.
    space : SearchSpace
    objectives : sequence of str
    constraints : Constraints
    budget : int
        So many predictions at most.

    Returns
    -------
    list of Candidate
        The front of all feasible candidates; empty if there are none.
    """
    front = front_of([c for c in ledger.candidates if constraints.are_kept_by(c)], objectives)
    if space.size == 1:
        return front
    around = Surroundings(space, objectives, constraints)
    visited: set[Architecture] = set()
    end = len(ledger) + budget
    while front:
        # Students whose neighbours are all known cost no predictions, but time.
        still = budget // around.n_changes - len(visited)
        affordable = max(0, min(still, (end - len(ledger)) // (2 * around.n_changes)))
        students = spread([c for c in front if c.architecture not in visited], affordable)
        if not students:
            rest = [c for c in ledger.candidates if c.architecture not in visited]
            students = around.nearest(rest, front, min(affordable, 1 + budget // (2 * around.n_changes * N_ROUNDS)))
        if not students:
            break
        visited.update(c.architecture for c in students)
        found = _look(ledger, around, students, front)
        front = front_of(list({c.architecture: c for c in [*front, *found]}.values()), objectives)
    return front


def _look(
    ledger: Ledger, around: Surroundings, students: Sequence[Candidate], front: Sequence[Candidate]
) -> list[Candidate]:
    """Return the feasible neighbours of some students: all single ones, and as many pairs."""
    single = [around.singles(student.architecture) for student in students]
    neighbours = ledger.evaluate([arch for archs in single for arch in archs])
    rows = np.array_split(np.arange(len(neighbours)), np.cumsum([len(archs) for archs in single])[:-1])
    pairs = around.promising_pairs(students, [[neighbours[i] for i in row] for row in rows], front)
    chosen = dict.fromkeys(itertools.islice((arch for arch in pairs if arch not in ledger), len(neighbours)))
    found = [*neighbours, *ledger.evaluate(list(chosen))]
    return [c for c in found if around.constraints.are_kept_by(c)]


class Surroundings:
    """What lies one and two choices away from an architecture.

    Parameters
    ----------
    space : SearchSpace
    objectives : sequence of str
    constraints : Constraints
    """

    def __init__(self, space: SearchSpace, objectives: Sequence[str], constraints: Constraints) -> None:
        self.space = space
        self.objectives = objectives
        self.constraints = constraints
        self.n_changes = max(1, sum(len(gene.choices) - 1 for gene in space.genes))

    def changes(self, architecture: Architecture) -> list[Change]:
        """Return every choice of every gene but those that the architecture has."""
        genes = self.space.to_genes(architecture)
        return [Change(i, v) for i, g in enumerate(self.space.genes) for v in g.choices if v != genes[i]]

    def changed(self, architecture: Architecture, *changes: Change) -> Architecture:
        """Return the architecture with some genes changed; those of absent blocks count once a block is there."""
        genes = self.space.to_genes(architecture)
        for change in changes:
            genes[change.gene] = change.choice
        return self.space.decode(genes)

    def singles(self, architecture: Architecture) -> list[Architecture]:
        """Return one architecture for each of `changes`; that of an absent block's gene is the same again."""
        return [self.changed(architecture, change) for change in self.changes(architecture)]

    def nearest(self, candidates: Sequence[Candidate], front: Sequence[Candidate], n: int) -> list[Candidate]:
        """Return the ``n`` candidates that are least behind the front and break no limit by much."""
        near = [c for c in candidates if all(v <= SLACK for v in self.constraints.violations(c).values())]
        order = np.argsort(self._gaps(losses(near, self.objectives), self._compared(front)), kind="stable")
        return [near[i] for i in order[:n]]

    def promising_pairs(
        self, students: Sequence[Candidate], singles: Sequence[Sequence[Candidate]], front: Sequence[Candidate]
    ) -> Iterator[Architecture]:
        """Yield architectures two changes away, those first that the estimate puts farthest beyond the front.

        Parameters
        ----------
        students : sequence of Candidate
        singles : sequence of sequence of Candidate
            For each student, the candidates of `singles`.
        front : sequence of Candidate
        """
        changes = [self.changes(student.architecture) for student in students]
        rows: list[Matrix] = []
        points = self._compared(front)
        for place, (student, ones) in enumerate(zip(students, singles, strict=True)):
            first, second, gap = self._pairs(student, ones, changes[place], points)
            rows.append(np.column_stack([gap, np.full(len(gap), place), first, second]))
        table = np.concatenate(rows)
        for place, first, second in table[np.argsort(table[:, 0], kind="stable"), 1:].astype(int):
            pair = changes[place][first], changes[place][second]
            yield self.changed(students[place].architecture, *pair)

    def _pairs(
        self,
        student: Candidate,
        ones: Sequence[Candidate],
        changes: Sequence[Change],
        points: Matrix,
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], Matrix]:
        """Return the two changes of each pair, and how far the estimate is behind the front: below 0 it is not."""
        gene = np.array([change.gene for change in changes])
        # Alone, a change in an absent block does nothing; together with a depth it may.
        idle = np.array([one.architecture == student.architecture for one in ones])
        depth = np.array([self.space.genes[i].name.startswith("depth.") for i in gene])
        first, second = np.triu_indices(len(gene), 1)
        distinct = (gene[first] != gene[second]) & (~idle[first] | depth[second]) & (~idle[second] | depth[first])
        first, second = first[distinct], second[distinct]
        values, broken = self._estimated(student, ones, first, second)
        kept = (broken <= SLACK).all(axis=1)
        first, second, values = first[kept], second[kept], values[kept]
        return first, second, self._gaps(values, points)

    def _compared(self, front: Sequence[Candidate]) -> Matrix:
        """Return the points of the front that others are compared with."""
        return losses(spread(front, MAX_COMPARED), self.objectives)

    @staticmethod
    def _gaps(values: Matrix, points: Matrix) -> Matrix:
        """Return how far each row is behind the front, in its extent: by how much some point beats it at the least."""
        extent = np.ptp(points, axis=0)
        extent[extent == 0] = 1.0
        ahead = [(values[:, k, None] - points[:, k]) / extent[k] for k in range(points.shape[1])]
        gaps: Matrix = np.minimum.reduce(ahead).max(axis=1)
        return gaps

    def _estimated(
        self, student: Candidate, ones: Sequence[Candidate], first: NDArray[np.intp], second: NDArray[np.intp]
    ) -> tuple[Matrix, Matrix]:
        """Return the objectives (to be minimised) and violations of pairs as if their effects added."""
        estimates = []
        for figures in (lambda some: losses(some, self.objectives), self._violations):
            own, changed = figures([student]), figures(ones)
            estimates.append(changed[first] + changed[second] - own)
        return estimates[0], estimates[1]

    def _violations(self, candidates: Sequence[Candidate]) -> Matrix:
        rows = [list(self.constraints.violations(candidate).values()) for candidate in candidates]
        return np.array(rows, dtype=np.float64).reshape(len(candidates), -1)


def spread(candidates: Sequence[Candidate], n: int) -> list[Candidate]:
    """Return at most ``n`` of the candidates, evenly spread over their order."""
    if len(candidates) <= n:
        return list(candidates)
    return [candidates[i] for i in np.linspace(0, len(candidates) - 1, n).round().astype(int)]
