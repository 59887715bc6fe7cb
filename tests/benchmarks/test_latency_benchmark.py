"""The benchmark of latency tables: that it runs, and that its figures are those of the students it names."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm

from proard_nas import Architecture
from proard_nas.deploy import LatencyTable

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "latency.py"


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("benchmark_latency", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


class Proportional:
    """What a table is to the line in multiply-accumulates, each student's latency a line in them."""

    def __init__(self, net, archs):
        self.setting = type("Setting", (), {"img_size": (8, 8)})
        self.students = [(arch, 1e-6 * net.cost(arch).macs + 0.3) for arch in archs]


def test_a_line_in_macs_finds_a_line(benchmark_module):
    net = timm.create_model("proard_dyn_resnet_tiny")
    archs = net.space.sample_distinct(20, seed=0)
    measured = np.array([1e-6 * net.cost(arch).macs + 0.3 for arch in archs[10:]])
    found = benchmark_module.macs_line(net, Proportional(net, archs[:10]), archs[10:], measured)
    assert found["mape"] < 1e-9 and found["kendall_tau"] == pytest.approx(1)


def test_the_bars_decide_what_is_met(benchmark_module):
    def row(mape, tau):
        evaluation = {"mape": mape, "kendall_tau": tau, "repeatability_mape": 0.01, "repeatability_tau": 0.95}
        return {"model": "m", "runtime": "torch", "build_s": 1.0, "n_parts": 2, "n_students": 3,
                "measured_ms": [1, 2], "evaluation": evaluation, "macs": {"mape": 0.1, "kendall_tau": 0.5}}  # fmt: skip

    lines = benchmark_module.summary([row(0.09, 0.91), row(0.11, 0.91), row(0.09, 0.9)]).splitlines()[-3:]
    assert [" yes " in line for line in lines] == [True, False, False]


@pytest.mark.slow
def test_the_smoke_budget_measures_both_runtimes(tmp_path):
    out = tmp_path / "latency.json"
    command = [sys.executable, BENCHMARK, "--budget", "smoke", "--clock", "cpu", "--tables", tmp_path, "--out", out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert {"command", "versions", "machine", "seed"} <= record.keys()
    rows = record["results"]["rows"]
    assert [row["runtime"] for row in rows] == ["onnxruntime", "torch"]
    for row in rows:
        table = LatencyTable.load(tmp_path / f"{row['model']}_{row['runtime']}.json")
        students = row["evaluation"]["students"]
        fitted = {arch for arch, _ in table.students}
        assert len(students) == 30 and len(fitted) == row["n_students"] == 12 and row["n_parts"] == 40
        errors = []
        for student in students:
            arch = Architecture.from_dict(student["architecture"])
            assert arch not in fitted and table(arch) == pytest.approx(student["predicted_ms"])
            errors.append(abs(student["predicted_ms"] / student["measured_ms"] - 1))
        assert row["evaluation"]["mape"] == pytest.approx(np.mean(errors))
