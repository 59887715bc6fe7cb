"""What is labelled next: what tells most, spread out, never twice, and the same for the same seed and labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from proard_nas.search import AccuracyPredictor, active, choose_architectures
from proard_nas.search.active import covariance_factors, most_telling
from proard_nas.search.drawing import first_generation
from proard_nas.supernets.space import SearchSpace

SPACE = SearchSpace(
    depths=(0, 1, 2),
    base_depths=(1, 2, 1),
    width_mults=(0.65, 0.8, 1.0),
    n_widths=4,
    expand_ratios=(0.2, 0.25, 0.35),
    stem_residuals=(False, True),
)
SMALL = SearchSpace(depths=(0, 1), base_depths=(1,), expand_ratios=(1.0, 2.0, 3.0))  # 12 students


class Cost(NamedTuple):
    macs: int
    params: int


def cost(arch):
    work = sum(sum(row) for row in arch.expand_ratio) * sum(arch.width_mult or (1.0,))
    return Cost(int(1e7 * work) + 10**6 * arch.stem_residual, int(1e5 * work))


def surface(architectures):
    """A smooth function of capacity: more helps ever less, and robustness prefers depth."""
    capacity = np.array([np.log(cost(a).macs / 1e7) for a in architectures])
    depth = np.array([sum(a.depth) for a in architectures])
    return np.column_stack([0.9 - 0.2 * np.exp(-0.5 * capacity), 0.5 - 0.1 * np.exp(-0.7 * capacity) + 0.01 * depth])


def fit(architectures, space=SPACE, seed=0):
    noise = np.random.default_rng(seed).normal(scale=0.001, size=(len(architectures), 2))
    return AccuracyPredictor(space, cost, random_state=seed).fit(architectures, surface(architectures) + noise)


@pytest.fixture(autouse=True)
def few_candidates(monkeypatch):
    """Look at few candidates, to save time."""
    monkeypatch.setattr(active, "N_CANDIDATES", 400)
    monkeypatch.setattr(active, "N_REFERENCES", 200)


@pytest.fixture(scope="module")
def labelled():
    return SPACE.sample_distinct(40, seed=0)


@pytest.fixture(scope="module")
def predictor(labelled):
    return fit(labelled)


# -- the design -------------------------------------------------------------------------------


def mean_variance(chosen, candidates, references):
    """The references' mean variance given measurements at the chosen rows, by the formula for Gaussian processes."""
    known = candidates[chosen]
    between, within = references @ known.T, known @ known.T + np.eye(len(known))
    explained = np.einsum("ij,ji->i", between, np.linalg.solve(within, between.T))
    return ((references**2).sum(axis=1) - explained).mean()


def test_each_row_lowers_the_references_variance_most_given_those_before(rng):
    candidates, references = rng.normal(size=(30, 4)), rng.normal(size=(50, 4)) * [1, 1, 3, 0.1]
    chosen = most_telling(candidates, references, 12)
    for i, row in enumerate(chosen):
        free = [j for j in range(30) if j not in chosen[:i]]
        variances = {j: mean_variance([*chosen[:i], j], candidates, references) for j in free}
        assert row == min(variances, key=variances.get)


def test_copies_are_not_taken_while_something_else_is_unknown():
    candidates = np.array([[3.0, 0.0]] * 20 + [[0.0, 2.0]] * 5 + [[0.1, 0.1]])
    chosen = most_telling(candidates, candidates, 2)
    assert sorted(place // 20 for place in chosen) == [0, 1]


def test_all_candidates_can_be_asked_for_and_come_once(rng):
    candidates = np.vstack([rng.normal(size=(5, 3)), np.zeros((2, 3))])
    assert sorted(most_telling(candidates, candidates, 7)) == list(range(7))


def test_factors_hold_the_leverage_and_the_networks_disagreement(predictor):
    architectures = SPACE.sample_distinct(50, seed=1)
    squares = (covariance_factors(predictor, architectures) ** 2).sum(axis=1)
    X = predictor._encode(architectures)
    outputs = np.stack([member.predict(X) for member in predictor._members])
    jackknife = (outputs.shape[0] - 1) * outputs.var(axis=0)
    noise = predictor._noise**2 + jackknife.mean(axis=0)
    np.testing.assert_allclose(squares, predictor._leverage(X) + (jackknife / noise).mean(axis=1), rtol=1e-6)


# -- the choice -------------------------------------------------------------------------------


def test_the_choice_is_distinct_inside_the_space_and_new(predictor, labelled):
    chosen = choose_architectures(predictor, 60, labelled, seed=0)
    assert len(chosen) == len(set(chosen)) == 60
    assert not set(chosen) & set(labelled)
    assert all(arch in SPACE for arch in chosen)


def test_candidates_that_are_labelled_already_are_left_out(predictor):
    known = choose_architectures(predictor, 30, seed=3)
    assert set(choose_architectures(predictor, 30, seed=3)) == set(known)
    assert not set(choose_architectures(predictor, 30, known, seed=3)) & set(known)


def test_the_choice_is_a_function_of_seed_and_labels(labelled, predictor):
    first = choose_architectures(predictor, 20, labelled, seed=5)
    assert choose_architectures(fit(labelled), 20, labelled, seed=5) == first
    assert choose_architectures(predictor, 20, labelled, seed=6) != first


def test_a_small_space_can_be_labelled_to_the_last_student_but_no_further():
    known = SMALL.sample_distinct(10, seed=0)
    predictor = fit(known, SMALL)
    assert set(choose_architectures(predictor, 2, known, seed=0)) | set(known) == set(SMALL)
    with pytest.raises(ValueError, match=r"there are 2 candidates that are not labelled, 3 were asked for"):
        choose_architectures(predictor, 3, known, seed=0)


def test_candidates_of_ones_own_are_chosen_from(predictor, labelled):
    own = SPACE.sample_distinct(30, seed=4)
    chosen = choose_architectures(predictor, 30, labelled, seed=0, candidates=[*labelled[:5], *own, *own])
    assert set(chosen) == set(own)
    with pytest.raises(ValueError, match="there are 30 candidates that are not labelled, 31 were asked for"):
        choose_architectures(predictor, 31, labelled, seed=0, candidates=own)


def test_what_no_label_has_shown_is_looked_for():
    known = SPACE.restrict(stem_residuals=(False,)).sample_distinct(40, seed=0)
    chosen = choose_architectures(fit(known), 20, known, seed=0)
    assert sum(arch.stem_residual for arch in chosen) > 12


def test_equal_labels_leave_a_choice(labelled):
    predictor = AccuracyPredictor(SPACE, cost, random_state=0).fit(labelled, np.full((40, 2), 0.5))
    assert len(set(choose_architectures(predictor, 10, labelled, seed=0))) == 10


def test_wrong_numbers_and_an_unfitted_predictor_are_refused(predictor):
    with pytest.raises(ValueError, match=r"n must be a whole number of at least 1, got 0"):
        choose_architectures(predictor, 0, seed=0)
    with pytest.raises(NotFittedError):
        choose_architectures(AccuracyPredictor(SPACE, cost), 3, seed=0)


@pytest.mark.slow
def test_at_equal_labels_the_ends_are_predicted_better_than_with_uniform_labels():
    """Students from the smallest sizes to the largest, where uniform draws do not come; a known surface."""
    spread = first_generation(SPACE, 400, np.random.default_rng(9))[0::2]

    def error(architectures, seed):
        return np.sqrt(((fit(architectures, seed=seed).predict(spread) - surface(spread)) ** 2).mean())

    uniform, chosen_well = [], []
    for seed in (0, 1):
        drawn = SPACE.sample_distinct(100, seed=seed)
        chosen = drawn[:40]
        for _ in range(2):
            chosen = chosen + choose_architectures(fit(chosen, seed=seed), 30, chosen, seed=seed)
        uniform.append(error(drawn, seed))
        chosen_well.append(error(chosen, seed))
    assert np.mean(chosen_well) < 0.6 * np.mean(uniform)
