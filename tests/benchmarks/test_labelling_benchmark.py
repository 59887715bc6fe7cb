"""The benchmark of labelling: its plain attack is PGD, its figures are those of the library, and it runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torchattacks
from torch import nn

from proard_nas.attacks import run_attack
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, calibrate, label_students

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "labelling.py"
ATTACK = AttackSettings("pgd", 0.08, 0.02, 6)

pytestmark = pytest.mark.skipif(not BENCHMARK.is_file(), reason="needs the project's benchmarks folder")


@pytest.fixture
def labelling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("benchmark_labelling", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setting(labelling: ModuleType) -> Any:
    """A supernet whose students differ, and labels that the largest one mostly agrees with."""
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=4)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x, calibration = torch.rand(60, 1, 8, 8), torch.rand(32, 1, 8, 8)
    with torch.no_grad():
        y = calibrate(net.extract(net.space.largest), calibration).eval()(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    data = labelling.Data(ArraySource(x, y), ArraySource(x, y), calibration)
    return labelling.Setting(net, data, ATTACK, 7)


def test_the_plain_attack_is_the_worst_of_torchattacks_iterates(labelling: ModuleType) -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    x = torch.rand(48, 1, 6, 6)
    y = network(x).argmax(1)
    alive = torch.ones(48, dtype=torch.bool)
    image_steps = 0
    for k in range(ATTACK.steps + 1):  # torchattacks' PGD of k steps from the same start is the k-th iterate
        image_steps += int(alive.sum()) if k < ATTACK.steps else 0
        iterate = run_attack(torchattacks.PGD(network, ATTACK.eps, ATTACK.step_size, k), x, y, seed=5)
        alive &= network(iterate).argmax(1) == y
    right = torch.ones(48, dtype=torch.bool)
    survives, left = labelling.attack_plainly(network, x, y, right, ATTACK, 5)
    assert 0 < alive.sum() < 48
    assert torch.equal(survives, alive) and left == image_steps


def test_images_that_are_wrong_before_the_attack_do_not_survive(labelling: ModuleType) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval()
    x = torch.rand(20, 1, 6, 6)
    right = torch.arange(20) % 2 == 0
    gentle = AttackSettings("pgd", 1e-6, 1e-6, 2)
    survives, left = labelling.attack_plainly(network, x, network(x).argmax(1), right, gentle, 0)
    assert torch.equal(survives, right) and left == 2 * 10


def test_dropping_changes_no_label(labelling: ModuleType, setting: Any) -> None:
    archs = setting.supernet.space.sample_distinct(3, 0)
    found = labelling.dropping(setting, archs, 2)
    expected = label_students(
        setting.supernet, archs, setting.data.labelled, setting.data.calibration, attack=ATTACK, seed=7
    )
    for row, label in zip(found["students"], expected.students, strict=True):
        assert row["robust"] == row["plain_robust"] == label.robust_accuracy
        assert row["natural"] == row["plain_natural"] == label.natural_accuracy
        assert row["equal"] and row["robust"] <= row["image_steps_left"] <= row["natural"]
        assert len(row["seconds"]) == len(row["plain_seconds"]) == 2
    assert found["all_equal"] and len({row["robust"] for row in found["students"]}) > 1
    totals = [[sum(row[name][turn] for row in found["students"]) for turn in range(2)]
              for name in ("plain_seconds", "seconds")]  # fmt: skip
    assert found["ratio"]["turns"] == [plain / ours for plain, ours in zip(*totals, strict=True)]


def test_another_label_is_noticed(labelling: ModuleType, setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "label_plainly", lambda *_: (0.5, 0.25, 0.1))
    assert not labelling.dropping(setting, setting.supernet.space.sample_distinct(1, 0), 1)["all_equal"]


def test_a_proxy_as_large_as_the_full_measurement_ranks_alike(labelling: ModuleType, setting: Any) -> None:
    budget = labelling.Budget(1, 4, 60, 32, 1, 4, 1, ((60, ATTACK.steps), (15, 1)), 2)
    archs = setting.supernet.space.sample_distinct(4, 0)
    found = labelling.proxies(setting, archs, budget)
    same, small = found["proxies"]
    assert same["tau_robust"] == pytest.approx(1) and same["rmse_robust"] == 0
    assert (small["n_images"], small["steps"], len(small["ratio"]["turns"])) == (15, 1, 2)
    assert small["rmse_robust"] > 0
    json.dumps(found, allow_nan=False)


def test_figures_that_are_not_defined_are_left_out(labelling: ModuleType) -> None:
    assert labelling.finite(float("nan")) is None and labelling.finite(0.5) == 0.5
    assert labelling.spread([3.0, 1.0, 2.0]) == {"median": 2, "least": 1, "most": 3, "turns": [3, 1, 2]}


def test_a_supernet_of_other_settings_or_too_few_images_are_refused(labelling: ModuleType, tmp_path: Path) -> None:
    budget = labelling.BUDGETS["smoke"]["digits"]
    experiment = labelling.Experiment("digits", None, budget, tmp_path / "work", 0)
    experiment.folder.mkdir()
    (experiment.folder / "settings.json").write_text(json.dumps({**experiment.settings(), "seed": 1}))
    with pytest.raises(ValueError, match="give another --work"):
        labelling.trained(experiment, labelling.load(experiment))
    large = dataclasses.replace(experiment, budget=dataclasses.replace(budget, n_images=5000))
    with pytest.raises(ValueError, match="1347 training images; allowed: at least 5320"):
        labelling.load(large)
    with pytest.raises(SystemExit, match="cifar10=FILE.npz"):
        labelling.main(["--data", "cifar10"])


@pytest.mark.slow
def test_the_smallest_run_from_end_to_end(labelling: ModuleType, tmp_path: Path) -> None:
    options = ["--budget", "smoke", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    found = labelling.main(options)["digits"]
    assert json.loads((tmp_path / "out.json").read_text())["results"]["data"]["digits"] == found
    assert found["dropping"]["all_equal"] and all(found["scaling"]["equal"].values())
    assert set(found["scaling"]["ratio"]) == {"n_jobs", "torchrun"}
    assert (tmp_path / "work" / "labelling-digits-smoke" / "supernet.safetensors").exists()
