"""The benchmark of saving and exporting: that it runs, writes what it says, and sees a difference."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "export.py"


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("benchmark_export", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_students_have_logits_of_a_trained_networks_size(benchmark_module):
    net = benchmark_module.make_supernet("proard_dyn_resnet_tiny", seed=0)
    student = benchmark_module.make_student(net, net.space.sample(seed=1), seed=0)
    with torch.no_grad():
        logits = student(benchmark_module.images_for(student, 64, seed=2))
    assert 5 < logits.abs().max() < 20


@pytest.mark.slow
def test_a_supernet_is_trained_before_its_students_are_taken(benchmark_module):
    found = benchmark_module.measure("proard_dyn_resnet_small", 2, 0, "synthetic", 3)
    assert found["n_bit_equal"] == found["n_students"] == 2
    assert 0 < found["largest_onnx_difference"] <= 1e-4
    assert found["largest_logit"] == pytest.approx(10, rel=0.2)  # on other images than those it was scaled on
    (one, seen), (more, _) = (
        benchmark_module.train_supernet("proard_dyn_resnet_small", "synthetic", n, 0) for n in (1, 3)
    )
    assert seen.shape == (benchmark_module.BATCH_SIZE, 3, 32, 32)
    assert not torch.equal(one.head.fc.weight, more.head.fc.weight)
    with pytest.raises(ValueError, match=r"proard_dyn_resnet50_224 takes images of \(3, 224, 224\), and synthetic"):
        benchmark_module.train_supernet("proard_dyn_resnet50_224", "synthetic", 1, 0)


def test_one_changed_bit_and_each_missed_bar_are_seen(benchmark_module):
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    assert benchmark_module.same_bits(one, other)
    with torch.no_grad():
        other.weight[1, 2] = torch.nextafter(other.weight[1, 2], torch.tensor(9.0))
    assert not benchmark_module.same_bits(one, other)
    assert not benchmark_module.same_bits(one, other.half())
    good = {"n_students": 2, "n_bit_equal": 2, "largest_onnx_difference": 1e-5, "largest_onnx_over_weights": 1.01}
    changes = {
        "bits": {"n_bit_equal": 1},
        "difference": {"largest_onnx_difference": 2e-4},
        "nan": {"largest_onnx_difference": float("nan")},
        "size": {"largest_onnx_over_weights": 1.06},
    }
    assert benchmark_module.failed({"good": good} | {name: good | change for name, change in changes.items()}) == [
        *changes
    ]


@pytest.mark.slow
def test_the_smoke_form_keeps_every_bar(tmp_path):
    out = tmp_path / "export.json"
    done = subprocess.run(
        [sys.executable, BENCHMARK, "--budget", "smoke", "--out", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert {"command", "versions", "machine", "seed"} <= record.keys()
    supernets = record["results"]["supernets"]
    assert sorted(supernets) == ["proard_dyn_resnet_small", "proard_dyn_resnet_tiny"]
    for found in supernets.values():
        assert found["n_bit_equal"] == found["n_students"] == len(found["students"]) == 2
        assert 0 < found["largest_onnx_difference"] <= 1e-4 and found["largest_onnx_over_weights"] <= 1.05
    assert "ONNX differs by" in done.stdout
