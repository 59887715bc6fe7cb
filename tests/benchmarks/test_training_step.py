"""The benchmark of the training step: that it runs and writes what it says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from proard_nas._random import derive_seed
from proard_nas.training import Noise

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "training_step.py"


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("benchmark_training_step", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_both_sides_take_the_same_step(benchmark_module, monkeypatch):
    library = benchmark_module.Library("proard_dyn_resnet_tiny", 8, torch.device("cpu"), seed=0)
    plain = benchmark_module.Plain(benchmark_module.static(library, library.arch), library.teacher, library.x)
    job = library.job(library.stage)
    start = Noise(derive_seed(job.seed, 0), len(library.x)).normal(library.x)
    monkeypatch.setattr(torch, "randn_like", lambda x: start)
    assert plain.step() == pytest.approx(library.step(), rel=1e-3)
    assert all(norm.training and norm.track_running_stats for norm in plain.norms)


@pytest.mark.slow
def test_the_quick_form_measures_everything(tmp_path):
    out = tmp_path / "training_step.json"
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--quick", "--device", "cpu", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "over plain" in done.stdout
    record = json.loads(out.read_text())
    assert {"command", "versions", "machine", "seed"} <= record.keys()
    (found,) = record["results"]["supernets"].values()
    ratios = {name: [row["ratio"] for row in found[name]["ratios"]] for name in found if name != "batch"}
    assert {name: len(rows) for name, rows in ratios.items()} == {
        "step": 1,
        "attack": 1,
        "shared_attack": 1,
        "precision": 1,
        "single_step": 2,
        "memory": 4,
    }
    assert all(ratio > 0 for rows in ratios.values() for ratio in rows)
    assert min(ratios["precision"]) >= 1
    for case in found["memory"]["cases"].values():
        assert case["peak_mib"] > case["built_mib"] > 0
    assert len(found["precision"]["times"]) == 4
    assert found["step"]["times"].keys() == {"library", "plain"}
    assert all(len(times["seconds"]) == 2 for times in found["step"]["times"].values())
