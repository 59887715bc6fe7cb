"""A training killed at any moment ends with the weights of one that never was; and the benchmark would notice."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "resume.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that use torch")


@pytest.fixture
def benchmark_module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))
    spec = importlib.util.spec_from_file_location("benchmark_resume", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 4), (2, 2)])
def test_killed_trainings_end_with_the_same_bits(tmp_path, processes, kills):
    out = tmp_path / "resume.json"
    command = [sys.executable, BENCHMARK, "--kills", kills, "--processes", processes, "--epochs", 4, "--out", out]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = json.loads(out.read_text())["results"]["trials"]
    assert trial["n_kills"] == kills
    assert trial["n_lives"] == kills + trial["n_trainings"]
    assert trial["all_equal"] and len(trial["tensors_sha256"]) > 50
    assert trial["went_backwards"] == trial["damaged_warnings"] == 0
    assert {finished["sha256"] for finished in trial["trainings"]} == {trial["reference_sha256"]}
    assert sum(life["killed"] for life in trial["lives"]) == kills


def test_going_backwards_is_counted(benchmark_module, tmp_path):
    trial = benchmark_module.Trial(1, lambda *_: None, tmp_path, seed=0)

    def live(training, restored, saved, started_s=0.1):
        life = benchmark_module.Life(training, None, 0.0, started_s=started_s, restored=restored, saved=saved)
        trial.lives.append(life)

    live(0, None, (0, 1, 2, 0))
    live(0, None, None, started_s=None)  # killed before it had restored
    live(0, (0, 1, 2, 0), (1, 0, 0, 0))
    live(0, (1, 0, 0, 0), (1, 1, 0, 0))
    live(1, None, (0, 1, 0, 0))  # another training starts from the beginning
    assert trial._went_backwards() == 0
    live(1, None, (0, 1, 1, 0))
    assert trial._went_backwards() == 1
    live(1, (0, 1, 0, 3), None)
    assert trial._went_backwards() == 2


def test_a_process_that_fails_is_an_error(benchmark_module, tmp_path):
    with pytest.raises(RuntimeError, match="on purpose"):
        benchmark_module.Trial(1, _fail, tmp_path, seed=0).run(0)


def test_other_weights_are_noticed(benchmark_module, tmp_path):
    def training(journal_path, folder, every):
        if folder is not None:
            folder.mkdir()
        journal = benchmark_module.Journal(journal_path)
        journal.write("started", None)
        journal.write("finished", {"weight": "a" if folder is None else "b"})

    trial = benchmark_module.Trial(1, training, tmp_path, seed=0).run(0)
    assert not trial["all_equal"]
    assert trial["trainings"][0]["different"] == ["weight"]


def _fail(*_):
    raise ValueError("on purpose")
