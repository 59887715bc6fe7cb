"""The command line: help, exit codes, and the quick start at a small size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits

from proard_nas import ProARDEstimator
from proard_nas import quickstart as quickstart_module
from proard_nas.cli import main
from proard_nas.quickstart import QuickstartSettings, run
from proard_nas.training import Trainer


def test_help_names_the_commands_and_examples(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "quickstart" in text and "models" in text and "examples:" in text


def test_no_command_prints_help_and_fails(capsys):
    assert main([]) == 2
    assert "quickstart" in capsys.readouterr().out


def test_a_wrong_command_fails_with_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["quikstart"])
    assert end.value.code == 2


def test_models_lists_every_supernet_with_its_published_size(capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert "proard_dyn_mobilenetv3" in text and "2.18e+19" in text and "46,077,482" in text


def test_a_wrong_value_is_one_line_and_exit_code_1(capsys, tmp_path):
    assert main(["quickstart", "--epochs", "1", "--folder", str(tmp_path / "out")]) == 1
    assert "epochs=1 is less than one for each of the 4 stages" in capsys.readouterr().err


def test_python_m_is_the_same_command():
    result = subprocess.run(
        [sys.executable, "-m", "proard_nas", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("proard-nas ")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    settings = QuickstartSettings(
        epochs=4, n_labels=16, natural_epochs=1, budgets=(0.5, 1.5), n_generations=5, progress=False
    )
    (x, y), test = quickstart_module.digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart_module, "digits", lambda seed: ((x[:500], y[:500]), test.head(200)))
        return folder, run(folder, settings)


def test_the_quick_start_prints_a_table_with_units_and_the_same_in_python(quickstart):
    _, text = quickstart
    assert "MMACs" in text and "PGD-20 %" in text and "RMSE" in text and "Kendall's tau" in text
    assert "est.search(max_flops=0.5).extract()" in text
    assert text.count("ProARD ") >= 2 and text.count("natural ") >= 2


def test_the_quick_start_leaves_students_picture_and_results(quickstart):
    folder, _ = quickstart
    record = json.loads((folder / "results.json").read_text())
    assert [row["training"] for row in record["rows"]] == ["ProARD", "ProARD", "natural", "natural"]
    for row in record["rows"][:2]:
        assert row["macs"] <= row["budget_mmacs"] * 1e6
        student = timm.create_model(f"local-dir:{folder}/student_{row['budget_mmacs']}_mmacs", pretrained=True).eval()
        assert sum(p.numel() for p in student.parameters()) == row["params"]
        assert torch.isfinite(student(torch.rand(1, 1, 8, 8))).all()
    assert (folder / "front.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_five_lines_of_the_quick_start_run_as_printed(quickstart, capsys):
    _, text = quickstart
    lines = text.split("The same in Python:\n\n")[1]
    assert len(lines.splitlines()) == 5
    exec(lines, {})
    assert 0 <= float(capsys.readouterr().out) <= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_start_gives_students_far_more_robust_than_natural_training(tmp_path):
    run(tmp_path, QuickstartSettings(progress=False))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    robust, natural = rows[:3], rows[3:]
    for ours, theirs in zip(robust, natural, strict=True):
        assert ours["architecture"] == theirs["architecture"]
        assert ours["test"]["natural"]["accuracy"] > 0.85
        assert ours["test"]["pgd"]["accuracy"] > theirs["test"]["pgd"]["accuracy"] + 0.2


@pytest.fixture
def archive(tmp_path):
    x, y = load_digits(return_X_y=True)
    pixels = (x / 16 * 255).astype("uint8").reshape(-1, 8, 8)
    np.savez(tmp_path / "digits.npz", x_train=pixels[:300], y_train=y[:300], x_test=pixels[300:], y_test=y[300:])
    return tmp_path / "digits.npz"


FIT = "--model proard_dyn_resnet_tiny --epochs 4 --attack-steps 1 --eval-steps 1 --n-labels 12 --n-watch 32 --lr 0.1"


def test_fit_trains_from_an_archive_and_saves_an_estimator(archive, tmp_path, capsys):
    out, run_folder = tmp_path / "est", tmp_path / "run"
    flags = [*FIT.split(), "--random-state", "0", "--checkpoint-dir", str(run_folder), "--no-progress"]
    assert main(["fit", "--data", str(archive), "--out", str(out), *flags]) == 0
    assert "labelling" in capsys.readouterr().out
    assert ProARDEstimator.load(out).n_train_ == 270
    assert main(["fit", "--data", str(archive), "--out", str(out), *flags, "--eps", "0.5"]) == 1
    assert "parameters.eps" in capsys.readouterr().err


def test_a_stopped_fit_goes_on_from_a_folder_beside_its_target(archive, tmp_path, monkeypatch, caplog):
    out = tmp_path / "est"
    argv = ["fit", "--data", str(archive), "--out", f"{out}/", *FIT.split(), "--no-progress"]  # of no seed
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_report", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert main(argv) == 130
    assert (tmp_path / "est.run" / "settings.json").is_file() and not out.exists()
    assert main(argv) == 0
    assert "going on from stage" in caplog.text
    assert len(ProARDEstimator.load(out).history_) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.npz", "est"]


def test_fit_explains_a_missing_archive(tmp_path, capsys):
    assert main(["fit", "--data", str(tmp_path / "none.npz"), "--out", str(tmp_path / "out")]) == 1
    assert "there is no file" in capsys.readouterr().err
