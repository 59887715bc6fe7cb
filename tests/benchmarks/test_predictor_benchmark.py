"""The predictor's benchmark: its parts count what they say, nothing held out is learned from, a run goes on."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from proard_nas.evaluation import Label, Labels
from proard_nas.supernets.space import SearchSpace

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the project's benchmarks folder")
HELPERS = ("_record", "_robustness")
SPACE = SearchSpace(depths=(0, 1, 2), base_depths=(1, 2), expand_ratios=(0.2, 0.25, 0.35))


@pytest.fixture(scope="module")
def benchmark_module() -> Iterator[ModuleType]:
    """Give the script, imported by its path; what it imports is forgotten again."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_predictor", FOLDER / "predictor.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before
    for name in (spec.name, *HELPERS):
        sys.modules.pop(name, None)


def labels_of(n: int, seed: int) -> Labels:
    architectures = SPACE.sample_distinct(n, seed)
    return Labels(tuple(Label(arch, 0.9, 0.5, 0.1) for arch in architectures), {"n_images": 100})


def test_what_is_held_out_is_not_learned_from_and_differs_by_seed(benchmark_module: ModuleType) -> None:
    uniform = labels_of(40, 0)
    splits = [benchmark_module.Split.of(uniform, 10, seed) for seed in (0, 1)]
    for split in splits:
        held, rest = split.held.architectures, split.rest.architectures
        assert (len(held), len(rest)) == (10, 30)
        assert set(held) | set(rest) == set(uniform.architectures)
    assert splits[0].held.architectures != splits[1].held.architectures


def test_mixed_labels_begin_as_the_others_and_draw_half_from_each(benchmark_module: ModuleType) -> None:
    everything = labels_of(60, 0)
    uniform, spread = benchmark_module.take(everything, range(40)), benchmark_module.take(everything, range(40, 60))
    mixed = benchmark_module.mixed_labels(uniform, spread, 10, 30, seed=0).architectures
    assert mixed[:20] == uniform.architectures[:20]
    assert len(set(mixed)) == 30 and len(set(mixed) & set(spread.architectures)) == 10
    more = benchmark_module.mixed_labels(uniform, spread, 10, 58, seed=0).architectures
    assert len(set(more)) == 58 and set(spread.architectures) <= set(more)


def test_rows_are_averaged_over_seeds_and_compared_seed_by_seed(benchmark_module: ModuleType) -> None:
    errors = {"uniform": [0.02, 0.04], "mixed": [0.02, 0.04], "active": [0.01, 0.02]}
    rows = [
        {"seed": seed, "arm": arm, "n_labels": 30, "test": test, "output": output, "rmse": by_seed[seed]}
        for arm, by_seed in errors.items()
        for seed in (0, 1)
        for test in ("held", "ends", "front")
        for output in benchmark_module.OUTPUTS
    ]
    compared = benchmark_module.choice(rows, [30])
    assert len(compared) == 6
    for row in compared:
        assert row["uniform"]["mean"] == pytest.approx(0.03)
        assert row["active - uniform"]["mean"] == pytest.approx(-0.015)
        assert "active wins † (RMSE" in benchmark_module.verdict(row)
        assert "no difference shown" in benchmark_module.verdict(row, "mixed")
    errors = [benchmark_module._robustness.spread([error, error]) for error in (0.0072, 0.0073, 0.5)]
    places = zip((30, 30, 20), errors, (*benchmark_module.OUTPUTS, "natural_accuracy"), strict=True)
    told = benchmark_module.bars([{"n_labels": n, "output": output, "rmse": error} for n, error, output in places])
    assert told == [
        "natural_accuracy, 30 labels: RMSE 0.0072, within 0.0073",
        "robust_accuracy, 30 labels: RMSE 0.0073, above 0.0072",
    ]


def test_a_population_is_described_with_the_chance_in_its_labels(benchmark_module: ModuleType) -> None:
    class Measurer:
        def cost(self, arch: Any) -> Any:
            return type("Cost", (), {"macs": 10**6 * sum(arch.depth)})

    found = benchmark_module.described(Measurer(), labels_of(30, 0))
    assert found["robust_accuracy"] == {"mean": 0.5, "std": 0, "binomial_std": pytest.approx(0.05)}
    assert found["natural_accuracy"]["binomial_std"] == pytest.approx(0.03)
    assert found["mmacs"] == [0, 4]


@pytest.mark.parametrize("sizes", [(5, 30), (30, 20), (20, 2000)])
def test_numbers_of_labels_that_cannot_be_are_refused(benchmark_module: ModuleType, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="curve must rise from at least 10 to at most n_uniform - n_held"):
        benchmark_module.dataclasses.replace(benchmark_module.BUDGETS["laptop"]["digits"], curve=sizes)


@pytest.mark.slow
def test_the_smallest_run_from_end_to_end_goes_on_to_the_same_figures(
    benchmark_module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--budget", "smoke", "--jobs", "1", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    found = benchmark_module.main(options)["digits"]
    budget = benchmark_module.BUDGETS["smoke"]["digits"]
    sizes = {name: row["n"] for name, row in found["populations"].items()}
    assert sizes == {"uniform": 60, "spread": 30, "ends": 8, "front": sizes["front"]} and 1 <= sizes["front"] <= 5
    record = (tmp_path / "work" / "predictor-digits-smoke" / "labels.jsonl").read_text().splitlines()
    assert len(record) == 1 + sum(sizes.values())  # none is in two populations
    assert [row["n_labels"] for row in found["curve"]] == [15, 15, 45, 45]
    first = [row for row in found["choice"] if row["n_labels"] == budget.rounds[0]]
    assert first and all(row["uniform"] == row["active"] == row["mixed"] for row in first)
    assert all(0 <= row[figure] <= 1 for row in found["rows"] for figure in ("rmse", "within_1_std", "within_2_std"))
    assert any(
        row["active"]["mean"] != row["uniform"]["mean"]
        for row in found["choice"]
        if row["n_labels"] == budget.rounds[-1]
    )
    assert json.loads((tmp_path / "out").read_text())["results"]["data"]["digits"] == found

    monkeypatch.setattr("proard_nas.training.Trainer.step", None)
    monkeypatch.setattr("proard_nas.evaluation.population.label_student", None)
    again = benchmark_module.main(options)["digits"]
    assert [without_times(row) for row in again["rows"]] == [without_times(row) for row in found["rows"]]
    assert np.isfinite([row["rmse"] for row in again["rows"]]).all()


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "fit_seconds"}
