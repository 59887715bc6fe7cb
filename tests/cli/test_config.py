"""A configuration file is the same as flags: same names, same checks, and flags win."""

from __future__ import annotations

import json
import re

import pytest

from proard_nas import cli
from proard_nas.cli import main
from proard_nas.cli._flags import number, parameter_texts, size
from proard_nas.cli._report import Report


@pytest.fixture
def parsed(monkeypatch):
    """Give a function that returns the arguments with which a command would run."""
    seen = []
    for command in (cli.fit, cli.search, cli.evaluate, cli.quickstart):
        monkeypatch.setattr(command, "run", lambda arguments: seen.append(vars(arguments)) or Report({}, ""))

    def parse(*argv):
        assert main(list(map(str, argv))) == 0
        return seen.pop()

    return parse


TOML = """
data = "photos.npz"
out = "robust"
epochs = 40
eps = "4/255"
lr = 1e-3
"batch-size" = 64
keep_best = false
sync_batch_norm = true
download = true
verbose = false
model_args = {depths = [0, 1]}
image_size = "8x9"
[search]
max_flops = 3
"""


def test_toml_gives_what_flags_give(parsed, tmp_path):
    (tmp_path / "fit.toml").write_text(TOML)
    flags = ["--data", "photos.npz", "--out", "robust", "--epochs", "40", "--eps", "4/255", "--lr", "1e-3",
             "--batch-size", "64", "--no-keep-best", "--sync-batch-norm", "--download", "--image-size", "8x9",
             "--model-args", '{"depths": [0, 1]}']  # fmt: skip
    found, expected = parsed("fit", "--config", tmp_path / "fit.toml"), parsed("fit", *flags)
    assert {**found, "config": None} == expected
    assert expected["eps"] == 4 / 255 and expected["keep_best"] is False and expected["image_size"] == (8, 9)


def test_json_is_read_too_and_flags_win(parsed, tmp_path):
    settings = {"estimator": "robust", "max_flops": 20.5, "objectives": ["macs", "robust_accuracy"], "seed": None}
    (tmp_path / "a.json").write_text(json.dumps(settings))
    found = parsed("search", "--config", tmp_path / "a.json")
    assert (found["max_flops"], found["objectives"]) == (20.5, ["macs", "robust_accuracy"])
    assert "seed" not in found  # which is then the estimator's
    found = parsed("search", "--max-flops", "3", f"--config={tmp_path / 'a.json'}", "--objectives", "params")
    assert (found["estimator"], found["max_flops"], found["objectives"]) == ("robust", 3, ["params"])


def test_one_file_can_serve_several_commands(parsed, tmp_path):
    text = (
        '[fit]\nepochs = 3\n[evaluate]\nstudent = "folder"\ndata = "a.npz"\nattack = "cw"\n[quickstart]\nlabels = 20\n'
    )
    (tmp_path / "all.toml").write_text(text)
    found = parsed("evaluate", "--config", tmp_path / "all.toml")
    assert (found["student"], found["data"], found["attack"]) == ("folder", "a.npz", ["cw"])
    assert parsed("evaluate", "mine", "--config", tmp_path / "all.toml")["student"] == "mine"
    assert parsed("quickstart", "--config", tmp_path / "all.toml")["n_labels"] == 20


BAD = {
    "an unknown name": ("a.toml", "epoch = 3", "unknown setting in .*'epoch'; allowed: .*Did you mean 'epochs'"),
    "a wrong type": ("a.toml", 'epochs = "many"', "argument --epochs: invalid int value: 'many'"),
    "a word for a switch": ("a.toml", 'download = "yes"', "download in .* is 'yes'; allowed: true or false"),
    "a wrong choice": ("a.toml", 'attack = ["pdg"]', "unknown attack 'pdg'; allowed: .*Did you mean 'pgd'"),
    "no toml": ("a.toml", "epochs 3", "is no TOML"),
    "no json": ("a.json", "epochs: 3", "is no JSON"),
    "no table": ("a.json", "[3]", "holds a list; allowed: names and values"),
    "another ending": ("a.yaml", "epochs: 3", "must be a file ending in .toml or .json"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_wrong_arguments(case, tmp_path, capsys):
    name, text, message = BAD[case]
    (tmp_path / name).write_text(text)
    command = ["evaluate", "s", "--data", "d"] if "attack" in text else ["fit", "--data", "d", "--out", "o"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--config", str(tmp_path / name)])
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))


def test_a_file_that_is_not_there_is_a_wrong_argument(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["models", "--config", str(tmp_path / "none.toml")])
    assert end.value.code == 2
    assert "cannot be read: No such file" in capsys.readouterr().err


def test_numbers_may_be_fractions_and_sizes_sides():
    assert [number(text) for text in ("8/255", "0.5", "1e-3")] == [8 / 255, 0.5, 1e-3]
    with pytest.raises(ValueError, match="8/0 divides by zero"):
        number("8/0")
    assert [size(text) for text in ("32", "24x48")] == [(32, 32), (24, 48)]


def example(alpha, beta, gamma=3):
    """Do.

    Parameters
    ----------
    alpha, beta : int
        Both of these, each an ``int``. More on them.
    gamma : float, default=3
        In MMACs,
        over two lines; and more.

    Returns
    -------
    delta : int
        Not a parameter.
    """


def test_help_is_the_first_sentence_of_the_docstring():
    first = "Both of these, each an int"
    assert parameter_texts(example) == {"alpha": first, "beta": first, "gamma": "In MMACs, over two lines"}
