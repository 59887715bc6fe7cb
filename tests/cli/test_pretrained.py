"""The estimator that comes with the library, named by --model and --pretrained."""

from __future__ import annotations

import json

import pytest

from proard_nas import PRETRAINED, ProARDEstimator, _shipped, cli
from proard_nas._fitting import check_parameters
from proard_nas.cli import fit, main

NAME, OTHER = "proard_dyn_resnet_tiny", "proard_dyn_resnet50"
FEW = ("--population-size", "12", "--n-generations", "2", "--seed", "0", "--json")


@pytest.fixture
def shipped(fitted, tmp_path, monkeypatch):
    """Let the fitted estimator be the one that comes with the library."""
    (tmp_path / NAME).symlink_to(fitted)
    monkeypatch.setattr(_shipped, "ROOT", tmp_path)
    monkeypatch.setattr(_shipped, "PRETRAINED", (NAME,))
    return fitted


def test_it_is_searched_and_extracted_as_any_other(shipped, capsys, tmp_path):
    assert main(["search", "--model", NAME, "--pretrained", *FEW]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["search", "--estimator", str(shipped), *FEW]) == 0
    assert found["front"] == json.loads(capsys.readouterr().out)["front"]
    assert main(["extract", "--model", NAME, "--pretrained", "--out", str(tmp_path / "student")]) == 0
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_it_comes_from_python_by_its_name(shipped):
    est = ProARDEstimator.from_pretrained(NAME)
    assert est.model == NAME and len(est.labels_) == 12


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", NAME), f"--model {NAME} is not trained; allowed: with --pretrained"),
        (("--estimator", "here", "--pretrained"), "--pretrained goes with --model NAME"),
        (("--model", OTHER, "--pretrained"), f"unknown pretrained model {OTHER!r}; allowed: {NAME!r}"),
    ],
)
def test_an_estimator_that_there_is_not_is_refused(shipped, fails, flags, message):
    assert message in fails("search", *flags, *FEW)


@pytest.mark.parametrize("flags", [(), ("--estimator", "here", "--model", NAME)])
def test_none_or_two_are_wrong_arguments(capsys, flags):
    with pytest.raises(SystemExit) as end:
        main(["search", *flags])
    assert end.value.code == 2
    assert "--model" in capsys.readouterr().err


def test_it_is_never_overwritten(shipped, fails, photos):
    message = fails("label", "--model", NAME, "--pretrained", "--n-labels", "14", "--data", photos)
    assert "--pretrained needs --out FOLDER" in message


def test_training_goes_on_from_it_with_its_parameters(shipped, photos, tmp_path, call):
    flags = ("--data", photos, "--image-size", "9", "--epochs", "5")
    call("fit", "--model", NAME, "--pretrained", *flags, "--out", tmp_path / "one")
    call("fit", "--estimator", shipped, "--data", photos, "--epochs", "5", "--out", tmp_path / "other")  # of its size
    est, other = (ProARDEstimator.load(tmp_path / name) for name in ("one", "other"))
    assert len(est.history_) == 4 + 5 and est.lr == 0.1 and est.warm_start
    assert est.history_[:4] == ProARDEstimator.load(shipped).history_
    assert est.image_size_ == other.image_size_ == (9, 9)
    assert [e["loss"] for e in est.history_] == [e["loss"] for e in other.history_]


@pytest.mark.skipif(not PRETRAINED, reason="no trained supernet comes with this checkout")
def test_the_examples_of_training_it_further_have_parameters_that_it_takes():
    parser, commands = cli._parser()
    cli._complete(commands["fit"], "fit")
    examples = [line.split()[1:] for line in fit.EXAMPLES.splitlines() if "--pretrained" in line]
    assert examples
    for words in examples:
        check_parameters(fit._estimator(parser.parse_args(words)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--pretrained",), "--pretrained goes with --model NAME"),
        (("--estimator", "here", "--model", NAME), "give no --model beside it"),
        (("--estimator", "here", "--pretrained"), "--pretrained goes with --model NAME, not with --estimator"),
    ],
)
def test_what_training_cannot_go_on_from_is_refused(shipped, photos, tmp_path, fails, flags, message):
    assert message in fails("fit", *flags, "--data", photos, "--out", tmp_path / "out")
