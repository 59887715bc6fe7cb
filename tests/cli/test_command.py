"""The command as a whole: help, exit codes, one JSON document, and what it costs to start."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch
from torchvision.datasets import FakeData

from proard_nas import cli
from proard_nas.cli import COMMANDS, main
from proard_nas.cli._students import student_source


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  proard-nas {name}" in text
    assert "--config FILE" in text and "--json" in text


def test_the_help_of_a_flag_is_of_its_own_parameter_and_names_its_values(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "--teacher-loss TEXT Of the largest student, the teacher: 'trades'" in words
    assert "(none, crop, crop-flip; default: none)" in words and "(pgd, ffgsm, n-fgsm; default: pgd)" in words


def test_the_help_of_all_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"    {name} " in text for name in COMMANDS)
    assert "exit codes: 0 done, 1 failed, 2 wrong arguments, 130 interrupted" in text


@pytest.mark.parametrize("argv", [["search"], ["fit", "--data", "x.npz"], ["models", "--epochs", "3"], ["searhc"],
                                  ["quickstart", "--epochs", "many"], ["evaluate", "--attack", "pdg"],
                                  ["fit", "--data", "x", "--out", "y", "--eps", "8/0"]])  # fmt: skip
def test_wrong_arguments_end_with_2_and_say_nothing_on_stdout(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage: proard-nas" in err


def raising(error):
    def run(arguments):
        raise error

    return run


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (ValueError("too small"), 1),
                                             (FileNotFoundError("too small"), 1), (IndexError("too small"), 1),
                                             (ImportError("too small"), 1)])  # fmt: skip
def test_failures_end_with_1_and_a_message_and_ctrl_c_with_130(error, code, monkeypatch, capsys):
    monkeypatch.setattr(cli.models, "run", raising(error))
    assert main(["models", "--json"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("proard-nas: too small\n" if code == 1 else "")


def test_a_defect_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli.models, "run", raising(AssertionError("a defect")))
    with pytest.raises(AssertionError, match="a defect"):
        main(["models"])


NOISY = """
import os, sys
from proard_nas import cli
quiet = cli.models.run
def noisy(arguments):
    print("from Python")
    os.write(1, b"from native code\\n")
    return quiet(arguments)
cli.models.run = noisy
code = cli.main(["models", "--json"])
heavy = {"proard_nas.estimator", "sklearn", "optuna", "torchattacks"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


def test_json_is_all_there_is_on_stdout_and_light_commands_start_without_the_estimator():
    result = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = {row["model"]: row for row in json.loads(result.stdout)}
    assert rows["proard_dyn_resnet50"]["params"] == [5_223_570, 46_077_482]
    assert rows["proard_dyn_mobilenetv3"]["macs"][1] / 1e6 == pytest.approx(179.7, abs=0.1)
    assert "from Python" in result.stderr and "from native code" in result.stderr


@pytest.mark.parametrize(
    ("notes", "run", "message"),
    [
        (True, "run", "holds something else ('notes.txt')"),
        (False, "out", "allowed: a folder outside of it"),
        (False, "out/run", "allowed: a folder outside of it"),
    ],
)
def test_fit_looks_at_its_folders_before_it_trains(tmp_path, capsys, monkeypatch, notes, run, message):
    monkeypatch.setattr("proard_nas.ProARDEstimator.fit", None)
    (tmp_path / "out").mkdir()
    if notes:
        (tmp_path / "out" / "notes.txt").write_text("mine")
    argv = ["fit", "--data", "none.npz", "--out", str(tmp_path / "out"), "--checkpoint-dir", str(tmp_path / run)]
    assert main(argv) == 1
    assert message in capsys.readouterr().err


def test_a_student_without_names_of_classes_takes_the_numbers_of_a_named_data_set():
    student = timm.create_model("proard_resnet_tiny", num_classes=2)
    data = FakeData(6, (1, 8, 8), 2, transform=lambda _: torch.rand(1, 8, 8))
    data.classes = ["cat", "dog"]
    assert len(student_source(student, data, None)) == 6
    student.pretrained_cfg["label_names"] = ["dog", "cat"]
    with pytest.raises(ValueError, match=r"classes are \['cat', 'dog'\], training's are \['dog', 'cat'\]"):
        student_source(student, data, None)
