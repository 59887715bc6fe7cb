"""The search finds the true front of small spaces, keeps every limit, and is an ordinary Optuna study."""

from __future__ import annotations

import itertools
import logging
import math
from typing import NamedTuple

import numpy as np
import optuna
import pytest

from proard_nas.search import AccuracyPredictor, Constraints, search
from proard_nas.search.candidate import Candidate
from proard_nas.search.objectives import non_dominated
from proard_nas.supernets.space import SearchSpace

SMALL = SearchSpace(depths=(0, 1), base_depths=(1, 1), expand_ratios=(0.25, 0.5))
MEDIUM = SearchSpace(
    depths=(0, 1), base_depths=(1, 1), expand_ratios=(0.2, 0.25, 0.35), width_mults=(0.5, 1), n_widths=2
)
LARGE = SearchSpace(
    depths=(0, 1, 2),
    base_depths=(2, 2, 4, 2),
    width_mults=(0.65, 0.8, 1.0),
    n_widths=6,
    expand_ratios=(0.2, 0.25, 0.35),
    stem_residuals=(False, True),
)
MIDDLE = LARGE.decode([sorted(gene.choices)[len(gene.choices) // 2] for gene in LARGE.genes])
QUICK = {"population_size": 20, "n_generations": 10, "progress": False}


class Cost(NamedTuple):
    macs: int
    params: int


def cost(arch):
    """Grows with every choice; odd numbers, so that MMACs are no round figures."""
    blocks = sum(1_000_003 + int(3_333_333 * r) for row in arch.expand_ratio for r in row)
    return Cost(blocks * int(10 * sum(arch.width_mult or (0.1,))) + 7 * arch.stem_residual, blocks // 10)


def predict(architectures):
    """Natural accuracy wants wide blocks early, robust accuracy depth and wide blocks late."""
    rows = []
    for arch in architectures:
        first, last = sum(arch.expand_ratio[0]), sum(arch.expand_ratio[-1])
        width = sum(arch.width_mult) / max(1, len(arch.width_mult))
        natural = 0.3 + 0.2 * first - 0.1 * last + 0.05 * width
        robust = 0.2 + 0.15 * last - 0.05 * first + 0.03 * sum(arch.depth) - 0.02 * width
        rows.append((natural, robust))
    return np.array(rows)


def everything(space):
    archs = list(space)
    return [Candidate(a, *cost(a), *row) for a, row in zip(archs, predict(archs).tolist(), strict=True)]


def true_front(space, constraints=None):
    """By comparing all pairs."""
    all_ = [c for c in everything(space) if constraints is None or constraints.are_kept_by(c)]

    def beats(a, b):
        pairs = [(a.natural_accuracy, b.natural_accuracy), (a.robust_accuracy, b.robust_accuracy)]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    return {c.architecture for c in all_ if not any(beats(other, c) for other in all_)}


def architectures_of(result):
    return [candidate.architecture for candidate in result.front]


class TestNonDominated:
    @pytest.mark.parametrize("n_objectives", [1, 2, 3])
    def test_agrees_with_comparing_all_pairs(self, n_objectives):
        rng = np.random.default_rng(n_objectives)
        for _ in range(50):
            values = rng.integers(0, 4, size=(rng.integers(1, 30), n_objectives)).astype(float)
            expected = [not any((v <= w).all() and (v < w).any() for v in values) for w in values]
            assert non_dominated(values).tolist() == expected

    def test_equal_points_stand_together(self):
        values = np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 2.0]])
        assert non_dominated(values).tolist() == [True, True, True, False]

    def test_infinities_are_ordinary_values(self):
        assert non_dominated(np.array([[-math.inf, 0.0], [0.0, math.inf], [-math.inf, 1.0]])).tolist() == [
            True,
            False,
            False,
        ]

    def test_nan_is_refused_and_does_not_erase_the_rest(self):
        with pytest.raises(ValueError, match="row 1 .* NaN"):
            non_dominated(np.array([[0.0, 1.0], [math.nan, 0.0]]))


class TestFront:
    @pytest.mark.parametrize("space", [SMALL, MEDIUM])
    def test_is_the_true_front_of_a_space_small_enough_to_enumerate(self, space):
        result = search(space, predict, cost, population_size=40, n_generations=40, seed=0)
        assert set(architectures_of(result)) == true_front(space)

    @pytest.mark.parametrize("quantile", [0.02, 0.3, 0.7])
    def test_is_the_true_front_under_a_limit(self, quantile):
        limit = float(np.quantile([cost(a).macs for a in MEDIUM], quantile)) / 1e6
        result = search(MEDIUM, predict, cost, max_flops=limit, population_size=40, n_generations=40, seed=0)
        assert set(architectures_of(result)) == true_front(MEDIUM, Constraints(max_flops=limit))

    def test_covers_every_generation_and_not_only_the_last(self):
        seen = []

        def watch(architectures):
            seen.extend(architectures)
            return predict(architectures)

        result = search(LARGE, watch, cost, seed=0, **QUICK)
        values = -predict(seen)
        expected = {a for a, keep in zip(seen, non_dominated(values), strict=True) if keep}
        assert set(architectures_of(result)) == expected
        assert result.n_evaluated == len(seen) == len(set(seen))

    def test_holds_equal_points_once_for_each_architecture(self):
        result = search(SMALL, lambda archs: np.full((len(archs), 2), 0.5), cost, seed=0, n_generations=40)
        assert len(result.front) == len(set(architectures_of(result))) == SMALL.size

    def test_one_objective_gives_all_its_best(self):
        result = search(SMALL, predict, cost, objectives=["macs"], seed=0, **QUICK)
        assert architectures_of(result) == [SMALL.smallest]

    def test_cost_and_latency_can_be_objectives(self):
        result = search(
            SMALL, predict, cost, latency=lambda a: 1.0 + sum(a.depth), seed=0, n_generations=30,
            objectives=("robust_accuracy", "latency"),
        )  # fmt: skip
        best = {
            d: max(c.robust_accuracy for c in everything(SMALL) if sum(c.architecture.depth) == d) for d in range(3)
        }
        expected = {(1.0 + d, best[d]) for d in best if all(best[d] > best[e] for e in range(d))}
        assert {(c.latency_ms, c.robust_accuracy) for c in result.front} == expected

    def test_records_first_and_last_generation(self):
        result = search(LARGE, predict, cost, seed=0, **QUICK)
        first, last = result.generations
        assert (first.number, last.number) == (0, 10)
        assert len(first.natural_accuracy) == len(last.robust_accuracy) == len(last.macs) == 20
        assert np.mean(last.natural_accuracy) + np.mean(last.robust_accuracy) > np.mean(
            first.natural_accuracy
        ) + np.mean(first.robust_accuracy)

    def test_records_which_members_keep_the_limits(self):
        for record in search(LARGE, predict, cost, max_flops=1000, seed=0, **QUICK).generations:
            assert record.feasible == tuple(macs <= 1000e6 for macs in record.macs)

    def test_beats_random_search_of_equal_size(self):
        result = search(LARGE, predict, cost, seed=0, population_size=40, n_generations=25)
        drawn = predict(LARGE.sample_distinct(1000, seed=0))
        for weight in (0, 0.25, 0.5, 0.75, 1):
            found = max(weight * c.natural_accuracy + (1 - weight) * c.robust_accuracy for c in result.front)
            assert found > (drawn @ [weight, 1 - weight]).max()


class TestSpeed:
    def test_one_prediction_a_generation(self):
        calls = []

        def count(architectures):
            calls.append(len(architectures))
            return predict(architectures)

        search(LARGE, count, cost, seed=0, refine=False, **QUICK)
        assert len(calls) == 10
        assert max(calls) <= 20


class TestLimits:
    @pytest.mark.parametrize("seed", range(4))
    def test_no_candidate_of_a_front_ever_breaks_one(self, seed):
        rng = np.random.default_rng(seed)
        candidates = everything(MEDIUM)
        for _ in range(15):
            # Limits that one student keeps for certain.
            anchor = candidates[rng.integers(len(candidates))]
            slack = 1 + rng.random() * 0.5
            limits = {
                "max_flops": anchor.mmacs * slack,
                "min_flops": anchor.mmacs / slack,
                "max_params": int(anchor.params * slack) + 1,
                "max_latency_ms": 3.0 + anchor.architecture.depth[0],
                "min_natural_accuracy": max(0.0, anchor.natural_accuracy - 0.05),
                "min_robust_accuracy": max(0.0, anchor.robust_accuracy - 0.02),
            }
            chosen = {name: limit for name, limit in limits.items() if rng.random() < 0.4}
            found = search(MEDIUM, predict, cost, latency=lambda a: 3.0 + a.depth[0], seed=seed, **chosen, **QUICK)
            for c in found.front:
                assert c.mmacs <= chosen.get("max_flops", math.inf)
                assert c.mmacs >= chosen.get("min_flops", 0)
                assert c.params <= chosen.get("max_params", math.inf)
                assert c.latency_ms <= chosen.get("max_latency_ms", math.inf)
                assert c.natural_accuracy >= chosen.get("min_natural_accuracy", 0)
                assert c.robust_accuracy >= chosen.get("min_robust_accuracy", 0)

    @pytest.mark.parametrize("space", [SMALL, MEDIUM, LARGE])
    def test_exactly_the_smallest_student_s_macs_gives_the_smallest_student(self, space):
        limit = cost(space.smallest).macs / 1e6
        result = search(space, predict, cost, max_flops=limit, seed=0, **QUICK)
        assert architectures_of(result) == [space.smallest]
        decimal = float(f"{cost(space.smallest).macs}e-6")
        assert architectures_of(search(space, predict, cost, max_flops=decimal, seed=0, **QUICK)) == [space.smallest]

    @pytest.mark.parametrize("space", [SMALL, LARGE])
    def test_exactly_the_largest_student_s_macs_gives_the_largest_student(self, space):
        result = search(space, predict, cost, min_flops=cost(space.largest).macs / 1e6, seed=0, **QUICK)
        assert architectures_of(result) == [space.largest]

    def test_one_mac_decides(self):
        for arch in itertools.islice(MEDIUM, 200):
            macs = cost(arch).macs
            candidate = Candidate(arch, macs, 1, 0.5, 0.5)
            for limit, kept in ((macs, True), (macs - 1, False), (macs + 1, True)):
                assert Constraints(max_flops=limit / 1e6).are_kept_by(candidate) is kept
                assert Constraints(max_flops=float(f"{limit}e-6")).are_kept_by(candidate) is kept
                assert Constraints(min_flops=limit / 1e6).are_kept_by(candidate) is (limit <= macs)

    def test_violations_are_relative_to_the_limit(self):
        candidate = Candidate(SMALL.smallest, 3_000_000, 500, 0.6, 0.25, latency_ms=5)
        assert Constraints(min_flops=4).violations(candidate) == {"min_flops": 0.25}
        limits = Constraints(max_flops=2, max_params=1000, max_latency_ms=4, min_robust_accuracy=0.5)
        assert limits.violations(candidate) == {
            "max_flops": 0.5, "max_params": -0.5, "max_latency_ms": 0.25, "min_robust_accuracy": 0.25,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            ({"max_flops": 0}, "max_flops must be above 0 MMACs"),
            ({"max_flops": -5}, "max_flops must be above 0 MMACs"),
            ({"max_flops": math.nan}, "max_flops must be finite"),
            ({"max_flops": math.inf}, "max_flops must be finite"),
            ({"max_flops": "600"}, "max_flops must be a number, got '600'"),
            ({"max_flops": True}, "max_flops must be a number"),
            ({"max_params": 0}, "max_params must be above 0"),
            ({"max_latency_ms": -1}, "max_latency_ms must be above 0"),
            ({"max_flops": 3, "min_flops": 4}, "min_flops=4 is above max_flops=3"),
            ({"min_natural_accuracy": 80}, r"in \[0, 1\], got 80; for 80 % write 0.8"),
            ({"min_robust_accuracy": -0.1}, r"min_robust_accuracy must be in \[0, 1\]"),
            ({"max_flops": 1}, r"below the smallest student's 3.666672 MMACs"),
            ({"min_flops": 100}, "above the largest student's 10.666676 MMACs"),
            ({"max_params": 10}, "max_params=10 is below the smallest student's 366,667 parameters"),
            ({"max_latency_ms": 5}, "needs latency="),
            ({"objectives": ["robust_acuracy"]}, "Did you mean 'robust_accuracy'"),
            ({"objectives": []}, "objectives must be a list"),
            ({"objectives": "macs"}, "objectives must be a list"),
            ({"objectives": ["macs", "macs"]}, "twice"),
            ({"objectives": ["latency"]}, "needs latency="),
            ({"population_size": 1}, "population_size must be a whole number of at least 2, got 1"),
            ({"n_generations": 0}, "n_generations"),
            ({"mutation_prob": 1.5}, "mutation_prob"),
            ({"seed": -1}, "seed"),
            ({"warm_start": [LARGE.largest]}, "outside the search space"),
            ({"seed": 2**32}, r"seed must be below 2\*\*32, got 4294967296"),
        ],
    )
    def test_impossible_arguments_are_refused_before_anything_is_predicted(self, limits, message):
        def never(architectures):
            raise AssertionError("predicted")

        with pytest.raises(ValueError, match=message):
            search(SMALL, never, cost, **limits)

    def test_an_unreachable_accuracy_names_the_nearest_found(self):
        best = max(c.robust_accuracy for c in everything(SMALL))
        with pytest.raises(ValueError, match="min_robust_accuracy=0.99") as caught:
            search(SMALL, predict, cost, min_robust_accuracy=0.99, n_generations=30, seed=0)
        assert f"robust accuracy of {best:.6g}" in str(caught.value)

    def test_limits_that_exclude_each_other_name_the_nearest_found(self):
        params = cost(SMALL.smallest).params
        with pytest.raises(ValueError, match="none of .* keeps all limits"):
            search(SMALL, predict, cost, min_flops=cost(SMALL.largest).macs / 1e6, max_params=params, **QUICK)


class TestPredictions:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda n: np.full((n, 2), np.nan), "got natural_accuracy=nan"),
            (lambda n: np.tile([0.5, np.inf], (n, 1)), "got robust_accuracy=inf"),
            (lambda n: np.full((n, 2), 55.0), r"in \[0, 1\], got natural_accuracy=55"),
            (lambda n: np.full((n, 3), 0.5), "must return shape"),
            (lambda n: np.full((n + 1, 2), 0.5), "must return shape"),
            (lambda n: [0.5] * n, "must return shape"),
        ],
    )
    def test_a_bad_answer_is_refused(self, answer, message):
        with pytest.raises(ValueError, match=message):
            search(SMALL, lambda archs: answer(len(archs)), cost)

    def test_a_nan_among_good_values_is_refused(self):
        def holed(architectures):
            values = predict(architectures)
            values[-1, 1] = np.nan
            return values

        with pytest.raises(ValueError, match=r"robust_accuracy=nan for architecture \d+ of \d+ \(1 such values\)"):
            search(LARGE, holed, cost)


class TestSeed:
    def test_same_seed_same_front_other_seed_another_path(self):
        runs = [search(LARGE, predict, cost, max_flops=1000, seed=seed, **QUICK) for seed in (1, 1, 2)]
        assert runs[0].to_dict() == runs[1].to_dict()
        assert runs[0].generations != runs[2].generations

    def test_a_drawn_seed_is_told_and_repeats_the_search(self):
        result = search(LARGE, predict, cost, **QUICK)
        assert search(LARGE, predict, cost, seed=result.seed, **QUICK).to_dict() == result.to_dict()

    def test_the_global_generators_are_left_alone(self):
        np.random.seed(0)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        search(SMALL, predict, cost, seed=0, **QUICK)
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


class TestWarmStart:
    def test_joins_the_first_generation_and_its_parents(self):
        """Without mutation the middle choice can come from the given student alone."""
        middle = [sorted(gene.choices)[len(gene.choices) // 2] for gene in LARGE.genes]
        settings = {"population_size": 3, "mutation_prob": 0, "n_generations": 4, "warm_start": [LARGE.decode(middle)]}
        trials = search(LARGE, predict, cost, seed=0, refine=False, **settings).study.trials
        assert [t.params["width_mult.0"] for t in trials[:3]] == [0.65, 1.0, 0.8]
        inherited = [sum(t.params[gene.name] == m for gene, m in zip(LARGE.genes, middle, strict=True)) for t in trials]
        assert max(inherited[3:]) > len(middle) / 3

    def test_more_than_fit_are_narrowed_to_the_best(self):
        given = LARGE.sample_distinct(60, seed=0)
        settings = {"n_generations": 1, "population_size": 20, "refine": False}
        result = search(LARGE, predict, cost, warm_start=given, seed=0, **settings)
        assert len(result.study.trials) == 20
        everyone = [*given, LARGE.smallest, LARGE.largest]
        best = {a for a, keep in zip(everyone, non_dominated(-predict(everyone)), strict=True) if keep}
        assert set(architectures_of(result)) == best
        shown = {tuple(t.values) for t in result.study.trials}
        assert {tuple(row) for row in predict(list(best)).tolist()} <= shown

    def test_duplicates_count_once(self):
        settings = {"n_generations": 1, "population_size": 10, "refine": False}
        result = search(LARGE, predict, cost, warm_start=[LARGE.largest] * 50, seed=0, **settings)
        assert result.n_evaluated == 10


class TestStudy:
    def test_is_an_ordinary_study_with_constraints_and_figures(self):
        result = search(LARGE, predict, cost, max_flops=1000, seed=0, **QUICK)
        study = result.study
        generations = [t.system_attrs["NSGAIISampler:generation"] for t in study.trials[:200]]
        assert generations == [i for i in range(10) for _ in range(20)]
        assert [d.name for d in study.directions] == ["MAXIMIZE", "MAXIMIZE"]
        trial = study.trials[0]
        assert set(trial.params) == {gene.name for gene in LARGE.genes}
        arch = LARGE.decode([trial.params[gene.name] for gene in LARGE.genes])
        assert trial.values == pytest.approx(predict([arch])[0])
        assert trial.user_attrs["macs"] == cost(arch).macs
        assert (trial.constraints["max_flops"] <= 0) == (cost(arch).macs <= 1000e6)
        stock = {tuple(t.values) for t in study.best_trials}
        assert stock == {(c.natural_accuracy, c.robust_accuracy) for c in result.front}

    def test_optuna_carries_on_from_the_last_generation(self):
        study = search(LARGE, predict, cost, seed=0, **QUICK).study

        def objective(trial):
            genes = [trial.suggest_categorical(gene.name, gene.choices) for gene in LARGE.genes]
            return tuple(predict([LARGE.decode(genes)])[0])

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study.optimize(objective, n_trials=5)
        assert {t.system_attrs["NSGAIISampler:generation"] for t in study.trials[-5:]} == {10}
        late = np.mean([t.values for t in study.trials[-5:]], axis=0).sum()
        assert late > np.mean([t.values for t in study.trials[:20]], axis=0).sum()

    def test_optuna_s_log_level_is_left_alone(self):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        search(SMALL, predict, cost, **QUICK)
        assert optuna.logging.get_verbosity() == logging.ERROR


def stores(folder):
    return {
        "journal": folder / "search.log",
        "text": str(folder / "text.log"),
        "sqlite": f"sqlite:///{folder}/search.db",
        "object": optuna.storages.InMemoryStorage(),
    }


SETTINGS = {
    "max_flops": 1000.0, "population_size": 8, "seed": 0, "study_name": "s", "refine": False, "progress": False,
}  # fmt: skip


class TestContinuing:
    @pytest.mark.parametrize("kind", ["journal", "text", "sqlite", "object"])
    def test_two_parts_are_one_whole(self, tmp_path, kind):
        storage = stores(tmp_path)[kind]
        first = search(LARGE, predict, cost, storage=storage, n_generations=2, **SETTINGS)
        second = search(LARGE, predict, cost, storage=storage, n_generations=3, **SETTINGS)
        whole = search(LARGE, predict, cost, n_generations=5, **SETTINGS)
        assert len(first.study.trials) in (16, 40)  # a study object shows what its storage holds by now
        assert len(second.study.trials) == 40
        assert second.to_dict() == whole.to_dict()

    def test_what_was_stored_is_not_predicted_again_but_for_a_check(self, tmp_path):
        search(LARGE, predict, cost, storage=tmp_path / "s.log", n_generations=20, **SETTINGS)
        seen = []

        def watch(architectures):
            seen.append(len(architectures))
            return predict(architectures)

        search(LARGE, watch, cost, storage=tmp_path / "s.log", n_generations=1, **SETTINGS)
        assert len(seen) == 2
        assert seen[0] <= 100

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"max_flops": 1100}, "max_flops=1000.0, this search asks for max_flops=1100.0"),
            ({"population_size": 10}, "population_size=8"),
            ({"mutation_prob": 0.2}, "mutation_prob=0.1"),
            ({"min_robust_accuracy": 0.1}, "min_robust_accuracy=None"),
            ({"objectives": ("robust_accuracy", "natural_accuracy")}, "objectives="),
        ],
    )
    def test_other_settings_are_refused_by_name(self, tmp_path, change, message):
        search(LARGE, predict, cost, storage=tmp_path / "s.log", n_generations=1, **SETTINGS)
        with pytest.raises(ValueError, match=message):
            search(LARGE, predict, cost, storage=tmp_path / "s.log", n_generations=1, **(SETTINGS | change))

    def test_another_space_is_refused(self, tmp_path):
        search(SMALL, predict, cost, storage=tmp_path / "s.log", n_generations=1, **SETTINGS)
        with pytest.raises(ValueError, match="space="):
            search(MEDIUM, predict, cost, storage=tmp_path / "s.log", n_generations=1, **SETTINGS)

    def test_another_predictor_is_refused(self, tmp_path):
        search(LARGE, predict, cost, storage=tmp_path / "s.log", n_generations=1, **SETTINGS)
        with pytest.raises(ValueError, match="another predictor, cost or latency: natural_accuracy"):
            search(LARGE, lambda a: predict(a) * 0.9, cost, storage=tmp_path / "s.log", n_generations=1, **SETTINGS)

    def test_another_latency_is_refused_and_a_measured_ones_scatter_is_not(self, tmp_path):
        def latency(scale):
            return lambda arch: scale * cost(arch).macs / 1e8

        options = SETTINGS | {"max_latency_ms": 1e9, "storage": tmp_path / "s.log", "n_generations": 1}
        search(LARGE, predict, cost, latency=latency(1.0), **options)
        search(LARGE, predict, cost, latency=latency(1.1), **options)
        with pytest.raises(ValueError, match="another predictor, cost or latency: latency_ms"):
            search(LARGE, predict, cost, latency=latency(1000.0), **options)

    def test_a_study_of_another_program_is_refused(self, tmp_path):
        storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(storage=storage, study_name="s", directions=["maximize", "maximize"])
        study.add_trial(optuna.create_trial(values=[0.0, 0.0]))
        with pytest.raises(ValueError, match="another program"):
            search(LARGE, predict, cost, storage=storage, n_generations=1, **SETTINGS)

    def test_a_study_of_other_directions_is_refused_and_left_as_it_is(self):
        storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(storage=storage, study_name="s", directions=["minimize", "minimize"])
        with pytest.raises(ValueError, match=r"has the directions \['minimize', 'minimize'\]"):
            search(LARGE, predict, cost, storage=storage, n_generations=1, **SETTINGS)
        assert study.user_attrs == {}

    def test_what_a_refinement_has_found_counts_also_without_another(self):
        storage = optuna.storages.InMemoryStorage()
        search(MEDIUM, predict, cost, storage=storage, n_generations=6, **(SETTINGS | {"refine": True}))
        later = search(MEDIUM, predict, cost, storage=storage, n_generations=1, **SETTINGS)
        best = later.study.best_trials
        assert any("proard_nas:refined_after" in trial.system_attrs for trial in best)
        assert {(c.natural_accuracy, c.robust_accuracy) for c in later.front} == {tuple(t.values) for t in best}

    def test_a_search_that_was_cut_off_goes_on_after_its_last_whole_generation(self, tmp_path):
        calls = []

        def break_down(architectures):
            calls.append(architectures)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return predict(architectures)

        with pytest.raises(KeyboardInterrupt):
            search(LARGE, break_down, cost, storage=tmp_path / "s.log", n_generations=5, **SETTINGS)
        rest = search(LARGE, predict, cost, storage=tmp_path / "s.log", n_generations=2, **SETTINGS)
        whole = search(LARGE, predict, cost, n_generations=5, **SETTINGS)
        assert rest.to_dict() == whole.to_dict()

    @pytest.mark.parametrize("n_written", [1, 3, 7])
    def test_a_half_written_generation_is_completed_and_nothing_of_it_predicted_or_written_again(self, n_written):
        storage = optuna.storages.InMemoryStorage()
        whole = search(LARGE, predict, cost, n_generations=4, **SETTINGS)
        search(LARGE, predict, cost, storage=storage, n_generations=2, **SETTINGS)
        study = optuna.load_study(storage=storage, study_name="s")
        study.add_trials(whole.study.trials[16 : 16 + n_written])
        calls = []

        def watch(architectures):
            calls.append(len(architectures))
            return predict(architectures)

        again = search(LARGE, watch, cost, storage=storage, n_generations=2, **SETTINGS)
        assert again.to_dict() == whole.to_dict()
        assert calls[1] == len({tuple(t.params.items()) for t in whole.study.trials[16 + n_written : 24]})
        assert [t.params for t in study.trials] == [t.params for t in whole.study.trials]
        assert [t.number for t in study.trials] == list(range(32))

    @pytest.mark.parametrize("n_of_this_seed", [0, 4])
    @pytest.mark.parametrize("n_of_another", [3, 5])
    def test_a_generation_cut_off_under_another_seed_is_written_anew(self, n_of_another, n_of_this_seed):
        storage = optuna.storages.InMemoryStorage()
        expected = search(LARGE, predict, cost, n_generations=4, **SETTINGS)
        other = search(LARGE, predict, cost, n_generations=3, **(SETTINGS | {"seed": 1}))
        search(LARGE, predict, cost, storage=storage, n_generations=2, **SETTINGS)
        study = optuna.load_study(storage=storage, study_name="s")
        study.add_trials(other.study.trials[16 : 16 + n_of_another])
        study.add_trials(expected.study.trials[16 : 16 + n_of_this_seed])
        for n_generations in (1, 1):
            again = search(LARGE, predict, cost, storage=storage, n_generations=n_generations, **SETTINGS)
        assert again.to_dict() == expected.to_dict()
        assert len(study.trials) == 32 + n_of_another

    def test_a_study_without_the_members_indices_goes_on_as_it_did(self):
        storage = optuna.storages.InMemoryStorage()
        whole = search(LARGE, predict, cost, n_generations=4, **SETTINGS)
        older = whole.study.trials[:19]
        for trial in older:
            del trial.system_attrs["proard_nas:member"]
        study = optuna.create_study(storage=storage, study_name="s", directions=["maximize", "maximize"])
        study.set_user_attr("proard_nas:settings", whole.study.user_attrs["proard_nas:settings"])
        study.add_trials(older)
        again = search(LARGE, predict, cost, storage=storage, n_generations=2, **SETTINGS)
        assert again.to_dict() == whole.to_dict()
        assert len(study.trials) == 32

    def test_a_warm_start_joins_once(self):
        given = LARGE.sample_distinct(30, seed=3)
        whole = search(LARGE, predict, cost, n_generations=3, warm_start=given, **SETTINGS)
        storage = optuna.storages.InMemoryStorage()
        for n_generations in (1, 2):
            parts = search(
                LARGE, predict, cost, storage=storage, n_generations=n_generations, warm_start=given, **SETTINGS
            )
        assert parts.to_dict() == whole.to_dict()
        assert "warm_starts" in str(parts.study.user_attrs)
        later = search(LARGE, predict, cost, storage=storage, n_generations=1, warm_start=[MIDDLE], **SETTINGS)
        assert LARGE.to_genes(MIDDLE) in [list(t.params.values()) for t in later.study.trials[24:]]

    def test_a_warm_start_joins_without_those_that_have_joined_before(self):
        storage = optuna.storages.InMemoryStorage()
        first, second = LARGE.sample_distinct(2, seed=3)
        for given in ([first], [first, second]):
            found = search(LARGE, predict, cost, storage=storage, n_generations=1, warm_start=given, **SETTINGS)
        genes = [list(t.params.values()) for t in found.study.trials]
        assert genes.index(LARGE.to_genes(second)) == 8
        assert genes.count(LARGE.to_genes(first)) == 1


class TestWithPredictor:
    def test_a_fitted_predictor_leads_to_the_good_students(self):
        architectures = MEDIUM.sample_distinct(150, seed=0)
        predictor = AccuracyPredictor(MEDIUM, cost, random_state=0).fit(architectures, predict(architectures))
        result = search(MEDIUM, predictor.predict, cost, seed=0, population_size=40, n_generations=15)
        found = predict(architectures_of(result))
        best = np.array([[c.natural_accuracy, c.robust_accuracy] for c in everything(MEDIUM)]).max(axis=0)
        np.testing.assert_allclose(found.max(axis=0), best, atol=0.005)
