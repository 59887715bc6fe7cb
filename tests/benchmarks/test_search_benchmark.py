"""The benchmark of the search: that its yardsticks are right, and that it measures what it says."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from proard_nas.search import Constraints
from proard_nas.search.candidate import Candidate

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "search.py"


@pytest.fixture(scope="module")
def benchmark_module():
    spec = importlib.util.spec_from_file_location("benchmark_search", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARK.parent))
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def problem(benchmark_module):
    smoke = benchmark_module.BUDGETS["smoke"]
    return benchmark_module.Problem.of(benchmark_module.SMALL_MODEL, smoke, 0, "strong", **smoke.small)


@pytest.fixture(scope="module")
def enumerated(benchmark_module, problem):
    return benchmark_module.Enumerated(problem)


def test_the_hypervolume_is_the_area_above_the_reference(benchmark_module):
    pytest.importorskip("pymoo")
    points = np.array([[0.9, 0.2], [0.5, 0.6], [0.4, 0.5], [0.05, 0.9]])  # the third is dominated, the last outside
    found = benchmark_module.hypervolume(points, np.array([0.1, 0.1]))
    assert found == pytest.approx(0.4 * 0.5 + 0.4 * 0.1)
    assert benchmark_module.hypervolume(points, np.array([1.0, 1.0])) == 0


def test_the_surface_is_seeded_smooth_and_trades_off(benchmark_module, problem):
    surface = benchmark_module.Surface(problem.space, 3, benchmark_module.TRADE_OFFS["strong"])
    archs = problem.space.sample_distinct(300, seed=0)
    values = surface(archs)
    again = benchmark_module.Surface(problem.space, 3, benchmark_module.TRADE_OFFS["strong"])(archs)
    np.testing.assert_array_equal(values, again)
    assert 0 < values.min() < values.max() < 1
    mild = benchmark_module.Surface(problem.space, 3, benchmark_module.TRADE_OFFS["mild"])(archs)
    assert np.corrcoef(values.T)[0, 1] < np.corrcoef(mild.T)[0, 1]
    near = [problem.space.mutate(arch, 0.05, seed=i) for i, arch in enumerate(archs)]
    steps = np.abs(surface(near) - values)
    assert np.mean(steps) < 0.5 * np.std(values, axis=0).mean()


def test_who_keeps_limits_is_known_without_the_library_and_agrees_with_it(benchmark_module, enumerated):
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(20):
        limits = benchmark_module.random_limits(enumerated, rng)
        kinds |= set(limits)
        kept = enumerated.keep(limits)
        constraints = Constraints(**limits)
        for i in rng.integers(len(enumerated.archs), size=30):
            figures = (int(enumerated.macs[i]), int(enumerated.params[i]), *enumerated.accuracies[i].tolist())
            candidate = Candidate(enumerated.archs[i], *figures, latency_ms=float(enumerated.latencies[i]))
            assert constraints.are_kept_by(candidate) == kept[i]
    assert len(kinds) == 6


def test_the_true_front_is_that_of_comparing_all_pairs(enumerated):
    limit = float(np.quantile(enumerated.macs, 0.05)) / 1e6
    kept = [i for i, macs in enumerate(enumerated.macs) if macs / 1e6 <= limit]
    values = enumerated.accuracies[kept]
    beaten = [((values >= v).all(1) & (values > v).any(1)).any() for v in values]
    expected = {enumerated.archs[i] for i, b in zip(kept, beaten, strict=True) if not b}
    assert enumerated.front(limit) == expected


def test_a_candidate_that_breaks_a_limit_would_be_counted(benchmark_module, monkeypatch):
    smoke = benchmark_module.BUDGETS["smoke"]
    monkeypatch.setattr(Constraints, "are_kept_by", lambda *_: True)
    found = benchmark_module.measure_limits(dataclasses.replace(smoke, n_limits=4), 0)
    assert found["infeasible"] > 0
    assert benchmark_module.failures({"limits": found})
    assert not benchmark_module.failures({"limits": found | {"infeasible": 0}})


def test_the_best_labelled_are_feasible_and_come_layer_by_layer(benchmark_module, problem):
    limit = problem.limit(0.5)
    chosen = benchmark_module.best_labelled(problem, limit, 8)
    assert len(chosen) == 8
    assert all(problem.cost(arch).macs / 1e6 <= limit for arch in chosen)
    places = [problem.archs.index(arch) for arch in chosen]
    rest = [i for i, a in enumerate(problem.archs) if problem.cost(a).macs / 1e6 <= limit and i not in places]
    for i in places:
        assert not any((problem.labels[j] > problem.labels[i]).all() for j in rest)


def test_the_other_searches_keep_the_limit_and_agree_with_the_predictor(benchmark_module, problem):
    pytest.importorskip("pymoo")
    smoke, limit = benchmark_module.BUDGETS["smoke"], problem.limit(0.5)
    possible = problem.predictor.predict([a for a in problem.space if problem.cost(a).macs / 1e6 <= limit])
    for run in (benchmark_module.pymoo_front, benchmark_module.stock_front):
        points = run(problem, smoke, 0, limit)
        assert len(points) > 0
        for point in points:
            assert np.abs(possible - point).max(axis=1).min() < 1e-9


def test_without_pymoo_the_extra_is_named(benchmark_module, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymoo", None)
    monkeypatch.setitem(sys.modules, "pymoo.indicators.hv", None)
    with pytest.raises(ImportError, match=r'pip install "proard-nas\[bench\]"'):
        benchmark_module.pymoo_module("indicators.hv")


@pytest.mark.slow
def test_the_smoke_budget_measures_everything(tmp_path):
    pytest.importorskip("pymoo")
    out = tmp_path / "search.json"
    command = [sys.executable, str(BENCHMARK), "--budget", "smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert {"command", "versions", "machine", "seed"} <= record.keys()
    results = record["results"]
    assert set(results) == {"budget", "load_average", "speed", "random", "recall", "limits", "warm_start"}
    runs = results["speed"]["models"]["proard_dyn_resnet_tiny"]["runs"]
    assert len(runs) == 4 and all(run["hypervolume"] > 0 for run in runs.values())
    assert results["limits"]["searches"] == 20 and results["limits"]["infeasible"] == 0
    for found in results["recall"].values():
        assert np.mean(found["refined"]["recall"]) >= np.mean(found["not refined"]["recall"])
