"""What lies one or two choices from the front is looked at, within the limits and the budget."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest

from proard_nas.search import Constraints, search
from proard_nas.search.candidate import Candidate
from proard_nas.search.ledger import Ledger
from proard_nas.search.refinement import Surroundings, refine, spread
from proard_nas.supernets.space import SearchSpace

SPACE = SearchSpace(
    depths=(0, 1), base_depths=(1, 1), expand_ratios=(0.2, 0.25, 0.35), width_mults=(0.5, 0.75, 1), n_widths=2
)
OBJECTIVES = ("natural_accuracy", "robust_accuracy")


class Cost(NamedTuple):
    macs: int
    params: int


def value(arch):
    """One number in which two choices can make up for each other, and the first width for none."""
    blocks = [r for row in arch.expand_ratio for r in row]
    return sum(blocks) + 0.3 * arch.width_mult[1]


def cost(arch):
    return Cost(int(1e6 * (value(arch) + arch.width_mult[0])), 1000)


def predict(archs):
    """A trade-off by width alone: a front in which a student is better than another by the other choices."""
    return np.array([(0.2 + 0.1 * value(a) + 0.2 * a.width_mult[0], 0.7 - 0.2 * a.width_mult[0]) for a in archs])


def one_apart(space, arch):
    """By comparing the genes of all architectures, those of absent blocks being free."""

    def distance(other):
        fields = [*zip(arch.width_mult, other.width_mult, strict=True), *zip(arch.depth, other.depth, strict=True)]
        rows = itertools.chain.from_iterable(
            zip(a, b, strict=False) for a, b in zip(arch.expand_ratio, other.expand_ratio, strict=True)
        )
        return sum(a != b for a, b in [*fields, *rows])

    return {other for other in space if distance(other) == 1}


@pytest.fixture
def ledger():
    return Ledger(predict, cost)


def best_of_all(constraints):
    """The best natural accuracy for each robust accuracy, of the whole space."""
    best = {}
    for arch in SPACE:
        candidate = Candidate(arch, *cost(arch), *predict([arch])[0].tolist())
        if constraints.are_kept_by(candidate):
            robust = round(candidate.robust_accuracy, 9)
            best[robust] = max(best.get(robust, 0), candidate.natural_accuracy)
    return best


@pytest.mark.parametrize("seed", range(5))
def test_singles_are_all_architectures_one_choice_away(seed):
    arch = SPACE.sample(seed)
    found = set(Surroundings(SPACE, OBJECTIVES, Constraints()).singles(arch)) - {arch}
    assert found <= one_apart(SPACE, arch)
    # A block that comes with a depth has its largest choice; its others are two changes away.
    missing = one_apart(SPACE, arch) - found
    assert all(sum(other.depth) > sum(arch.depth) for other in missing)


@pytest.mark.parametrize("limit", [1.3, 1.7, 2.05])
def test_a_few_students_lead_to_the_true_front(ledger, limit):
    constraints = Constraints(max_flops=limit)
    ledger.evaluate([SPACE.smallest, *SPACE.sample_distinct(20, seed=0)])
    front = refine(ledger, SPACE, OBJECTIVES, constraints, budget=10_000)
    found = {round(c.robust_accuracy, 9): c.natural_accuracy for c in front}
    assert found == pytest.approx(best_of_all(constraints))
    assert all(c.mmacs <= limit for c in front)
    assert len(ledger) < SPACE.size


def test_pairs_reach_what_single_changes_cannot(ledger):
    """Under a limit, a better student is often two changes away, one that costs and one that saves."""
    small = SPACE.restrict(depths=(0,), width_mults=(0.5,))

    def fine(archs):
        blocks = [(a.expand_ratio[0][0], a.expand_ratio[1][0]) for a in archs]
        return np.array([(0.5 + 0.1 * first + 0.08 * second, 0.5) for first, second in blocks])

    ledger = Ledger(fine, lambda a: Cost(int(1e8 * (a.expand_ratio[0][0] + a.expand_ratio[1][0])), 1))
    start = small.decode([0.5, 0.5, 0, 0, 0.2, 0.35])
    best = small.decode([0.5, 0.5, 0, 0, 0.35, 0.2])
    constraints = Constraints(max_flops=55.5, min_flops=54.5)  # the sum of the two stays as it is
    ledger.evaluate([start])
    assert [c.architecture for c in refine(ledger, small, OBJECTIVES, constraints, budget=1000)] == [best]


@pytest.mark.parametrize("budget", [0, 1, 40, 100, 500])
def test_the_budget_is_kept(ledger, budget):
    ledger.evaluate(SPACE.sample_distinct(20, seed=0))
    refine(ledger, SPACE, OBJECTIVES, Constraints(), budget)
    assert len(ledger) <= 20 + budget
    if budget >= 100:
        assert len(ledger) > 20


def test_without_a_feasible_student_nothing_is_looked_at(ledger):
    ledger.evaluate([SPACE.largest])
    assert refine(ledger, SPACE, OBJECTIVES, Constraints(max_flops=1.2), budget=1000) == []
    assert len(ledger) == 1


def test_a_space_of_one_architecture_is_searched():
    space = SearchSpace(depths=(1,), base_depths=(1,), expand_ratios=(0.5,))
    found = search(space, lambda archs: np.full((len(archs), 2), 0.5), lambda arch: Cost(1, 1), progress=False)
    assert [candidate.architecture for candidate in found.front] == [space.largest]


def test_an_estimate_that_is_right_ranks_as_the_truth():
    """Where effects add, the pairs come in the order of how far they are beyond the front."""
    around = Surroundings(SPACE, ("natural_accuracy",), Constraints())
    ledger = Ledger(predict, cost)
    (student,) = ledger.evaluate([SPACE.smallest])
    pairs = list(around.promising_pairs([student], [ledger.evaluate(around.singles(SPACE.smallest))], [student]))
    assert len(pairs) > 40
    # Blocks that are absent take their largest choice in the single change, so only pairs without a depth add up.
    plain = [a for a in pairs if a.depth == SPACE.smallest.depth]
    accuracies = predict(plain)[:, 0]
    assert (np.diff(accuracies) <= 1e-12).all()
    assert accuracies[0] == max(accuracies)


def test_the_nearest_are_those_least_behind_the_front_that_break_no_limit_by_much(ledger):
    around = Surroundings(SPACE, OBJECTIVES, Constraints(max_flops=1.7))
    candidates = ledger.evaluate(list(SPACE))
    front = refine(ledger, SPACE, OBJECTIVES, Constraints(max_flops=1.7), budget=0)
    rest = [c for c in candidates if c not in front]
    naturals, robusts = [c.natural_accuracy for c in front], [c.robust_accuracy for c in front]
    extents = max(naturals) - min(naturals), max(robusts) - min(robusts)

    def gap(c):
        """The least by which the front would have to fall, in its extent, for the candidate to be level with it."""
        pairs = zip(naturals, robusts, strict=True)
        return max(min((n - c.natural_accuracy) / extents[0], (r - c.robust_accuracy) / extents[1]) for n, r in pairs)

    found = around.nearest(rest, front, 40)
    allowed = [c for c in rest if c.mmacs <= 1.7 * 1.02]
    assert len(set(found)) == 40 and set(found) <= set(allowed)
    gaps = [gap(c) for c in found]
    assert gaps == pytest.approx(sorted(map(gap, allowed))[:40])
    assert any(c.mmacs > 1.7 for c in found)


def test_what_is_left_of_the_budget_leads_on_from_behind_the_front():
    """Two blocks that help only together with a third: no member of the front is within two changes."""
    space = SearchSpace(depths=(0,), base_depths=(4,), expand_ratios=(0.2, 0.35))

    def wide(arch):
        return sum(r > 0.3 for r in arch.expand_ratio[0])

    def trap(archs):
        natural = [{0: 0.6, 1: 0.58, 2: 0.56, 3: 0.54, 4: 0.9}[wide(a)] for a in archs]
        return np.column_stack([natural, np.full(len(archs), 0.5)])

    def found(budget):
        ledger = Ledger(trap, lambda arch: Cost(1 + wide(arch), 1))
        ledger.evaluate([space.smallest])
        return [c.architecture for c in refine(ledger, space, OBJECTIVES, Constraints(), budget)]

    assert found(8) == [space.smallest]
    assert found(40) == [space.largest]


def test_spread_takes_both_ends_and_no_more_than_asked_for():
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread(range(3), 0) == []


class TestInSearch:
    SETTINGS = {"max_flops": 1.7, "population_size": 10, "n_generations": 6, "seed": 0, "progress": False}  # noqa: RUF012

    def test_never_makes_a_front_worse_and_is_in_the_study(self):
        plain = search(SPACE, predict, cost, refine=False, **self.SETTINGS)
        result = search(SPACE, predict, cost, **self.SETTINGS)
        for c in plain.front:
            assert any(
                d.natural_accuracy >= c.natural_accuracy and d.robust_accuracy >= c.robust_accuracy
                for d in result.front
            )
        assert plain.n_evaluated < result.n_evaluated <= plain.n_evaluated + 60
        shown = {tuple(t.values) for t in result.study.best_trials}
        assert shown == {(c.natural_accuracy, c.robust_accuracy) for c in result.front}
        assert [t.params for t in result.study.trials[:60]] == [t.params for t in plain.study.trials]

    def test_a_continued_study_keeps_what_its_parts_have_found(self, tmp_path):
        stored = {"storage": tmp_path / "s.log", "study_name": "s"}
        first = search(SPACE, predict, cost, **stored, **self.SETTINGS)
        second = search(SPACE, predict, cost, **stored, **self.SETTINGS)
        whole = search(SPACE, predict, cost, **(self.SETTINGS | {"n_generations": 12}), refine=False)
        for c in [*first.front, *whole.front]:
            assert any(
                d.natural_accuracy >= c.natural_accuracy and d.robust_accuracy >= c.robust_accuracy
                for d in second.front
            )
        # Refinement draws nothing: the generations are those of a search without it.
        assert second.generations == whole.generations
        genes = [tuple(t.params.values()) for t in second.study.trials if "proard_nas:refined_after" in t.system_attrs]
        assert len(genes) == len(set(genes))
