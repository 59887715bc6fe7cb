"""The comparison of schedules: as many student-steps for each, figures that fit each other, a run that goes on."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the project's benchmarks folder")
HELPERS = ("_images", "_record", "_robustness", "_training")


@pytest.fixture(scope="module")
def schedules() -> Iterator[ModuleType]:
    """Give the script, imported by its path; what it imports is forgotten again."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_schedules", FOLDER / "schedules.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before
    for name in (spec.name, *HELPERS):
        sys.modules.pop(name, None)


@pytest.fixture
def network(schedules: ModuleType) -> Any:
    return schedules.Experiment("digits", None, schedules.BUDGETS["smoke"]["digits"], Path()).network(0)


@pytest.mark.parametrize("budget", ["smoke", "laptop", "long"])
@pytest.mark.parametrize("data", ["digits", "cifar10"])
def test_every_schedule_gets_as_many_student_steps(schedules: ModuleType, network: Any, budget: str, data: str) -> None:
    recipe, sizes = schedules.RECIPES[data], schedules.BUDGETS[budget][data]
    for name in (*schedules.SCHEDULES, *schedules.BATCH_NORM):
        stages = schedules.step_stages(recipe, sizes, network, name)
        assert sum(stage.epochs * stage.students_per_step for stage in stages) == sizes.step_epochs
        assert all(stage.loss == recipe.loss and stage.attack == recipe.attack for stage in stages)
        assert all(stage.batch_norm == schedules.BATCH_NORM.get(name, "batch") for stage in stages)


def test_the_population_is_the_same_every_time_and_spans_the_space(schedules: ModuleType, network: Any) -> None:
    archs, drawn = schedules.population(network, 50)
    assert schedules.population(network, 50) == (archs, drawn)
    assert len(set(archs)) == 50
    assert (drawn.count("end"), drawn.count("uniform"), drawn.count("evenly over cost")) == (2, 24, 24)
    costs = [network.cost(arch).macs for arch in archs]
    places = schedules.over_cost(network, archs, 8)
    assert [costs[place] for place in (places[0], places[-1])] == [min(costs), max(costs)]
    assert len(set(places)) == 8


def test_student_images_count_every_student_of_a_step(schedules: ModuleType) -> None:
    assert schedules.student_images([{"images": 100, "students": 3}, {"images": 50, "students": 1}]) == 350


@pytest.mark.parametrize(
    ("values", "baseline", "shown", "words"),
    [
        ([0.60, 0.62, 0.61], [0.50, 0.52, 0.51], True, "random wins over paper"),
        ([0.50, 0.52, 0.51], [0.60, 0.62, 0.61], True, "paper wins over random"),
        ([0.60, 0.50, 0.40], [0.50, 0.50, 0.50], False, "no difference shown"),
        ([0.50, 0.50, 0.50], [0.50, 0.50, 0.50], False, "no difference shown"),
        ([0.60], [0.50], None, "nothing can be concluded"),
    ],
)
def test_the_verdict_follows_the_rule(
    schedules: ModuleType, values: list[float], baseline: list[float], shown: bool | None, words: str
) -> None:
    robustness = schedules._robustness
    found = robustness.compare(values, baseline)
    assert found["shown"] is shown
    assert words in robustness.verdict("random", "paper", "pgd20", found)


def test_the_interval_is_that_of_students_t(schedules: ModuleType) -> None:
    found = schedules._robustness.compare([0.1, 0.2, 0.3], [0.0, 0.0, 0.0])
    error = 0.1 / 3**0.5
    assert found["standard_error"] == pytest.approx(error)
    assert found["t_interval"] == pytest.approx([0.2 - 4.3026527 * error, 0.2 + 4.3026527 * error])  # from a table


def test_equal_counts_in_all_seeds_are_no_certainty(schedules: ModuleType) -> None:
    # Three images of 320 more in each of three seeds: as if nothing were left to chance.
    compare, one = schedules._robustness.compare, 1 / 320
    equal = compare([3 * one] * 3, [0.0] * 3, one)
    assert equal["standard_error"] == pytest.approx(one)
    assert equal["shown"] and schedules._robustness.mark(equal) == " †"  # 4.3 images reach beyond zero
    assert not compare([1.9 * one] * 3, [0.0] * 3, one)["shown"]
    assert compare([0.1, 0.2, 0.3], [0.0] * 3, one)["standard_error"] == pytest.approx(0.1 / 3**0.5)


class Linear(nn.Module):
    """Tells two colours apart by one pixel's sign around 0.5, so that its distance to the boundary is known."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(10, 12)
        weight[0, 0], weight[1, 0] = 1.0, -1.0
        self.layer = nn.Linear(12, 10)
        with torch.no_grad():
            self.layer.weight.copy_(weight)
            self.layer.bias.copy_(torch.tensor([-0.5, 0.5] + [-5.0] * 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


def test_autoattack_fools_exactly_what_lies_within_eps(schedules: ModuleType) -> None:
    x = torch.full((4, 3, 2, 2), 0.5)
    x[:, 0, 0, 0] = torch.tensor([0.55, 0.65, 0.45, 0.2])
    y = torch.tensor([0, 0, 1, 1])
    test = schedules._robustness.Test(0.1, 0.025, n_auto=4, square_queries=5)
    network = Linear().train()
    state = torch.get_rng_state()
    survives = schedules._robustness.survives_autoattack(network, x, y, test)
    assert survives.tolist() == [False, True, False, True]
    assert network.training and torch.equal(torch.get_rng_state(), state)
    assert test.title.endswith("AutoAttack standard, Square cut to 5 queries")


def test_a_torn_line_is_measured_again(schedules: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "students.jsonl"
    path.write_text('{"natural": 1.0}\n{"natu')
    assert schedules._robustness.read_lines(path) == [{"natural": 1.0}]
    assert path.read_text() == '{"natural": 1.0}\n'


@pytest.mark.slow
def test_the_smallest_run_from_end_to_end(
    schedules: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--budget", "smoke", "--data", "synthetic", "--jobs", "1", "--seeds", "0"]
    paths = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    (found,) = schedules.main(options + paths).values()
    assert found["student_images"] == 3 * 96
    assert set(found["student_steps"].values()) == {3 * 3}
    for row in found["students"]:
        for name in schedules.SCHEDULES:
            assert all(p <= n for n, p in zip(row[name]["natural"], row[name]["pgd20"], strict=True))
    for path in (tmp_path / "work").rglob("*.students.jsonl"):
        for student in map(json.loads, path.read_text().splitlines()):
            assert student["pgd20_few"] <= student["natural_few"]
            assert student["autoattack"] is None or student["autoattack"] <= student["pgd20_few"]
    for name in schedules.SCHEDULES:
        mean = sum(row[name]["natural"][0] for row in found["students"]) / len(found["students"])
        assert found["schedules"][name]["natural"]["mean"] == pytest.approx(mean)
    assert json.loads((tmp_path / "out.json").read_text())["results"]["data"]["synthetic"] == found

    monkeypatch.setattr(schedules, "train", lambda *args: pytest.fail("a finished unit was trained again"))
    (again,) = schedules.main(options + paths).values()
    assert again == found
    with pytest.raises(ValueError, match="records of other settings"):
        schedules.main([*options, *paths, "--n-test", "20"])
