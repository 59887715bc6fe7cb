"""A tiny estimator, fitted once by the command line from a folder of photographs with two classes of unequal size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from proard_nas.cli import main

# Sub-folders in alphabetical order are not in the order of the digits.
NAMES = {0: "nought", 4: "four"}
FIT = [
    *("--model", "proard_dyn_resnet_tiny", "--epochs", "4", "--lr", "0.1", "--attack-steps", "1", "--eval-steps", "2"),
    *("--n-labels", "12", "--n-watch", "0", "--n-calibration", "64", "--random-state", "0", "--no-progress"),
    *("--precision", "float32", "--device", "cpu"),
]


def write_photos(root: Path) -> None:
    """Write digits as 9x9 PNG files: 90 noughts and 40 fours to train on, 40 and 30 to test on."""
    x, y = load_digits(return_X_y=True)
    for digit, n_train, n_test in ((0, 90, 40), (4, 40, 30)):
        for index, pixels in enumerate(x[y == digit][: n_train + n_test]):
            folder = root / ("train" if index < n_train else "test") / NAMES[digit]
            folder.mkdir(parents=True, exist_ok=True)
            image = np.pad((pixels.reshape(8, 8) / 16 * 255).astype(np.uint8), (0, 1))
            Image.fromarray(image).save(folder / f"{index:03}.png")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    write_photos(root)
    return root


@pytest.fixture(scope="session")
def fitted(photos, tmp_path_factory):
    """Give the folder of an estimator that the command line has fitted."""
    folder = tmp_path_factory.mktemp("fitted") / "est"
    assert main(["fit", "--data", str(photos), "--image-size", "9", "--out", str(folder), *FIT]) == 0
    return folder


@pytest.fixture
def call(capsys):
    """Give a function that runs a command with ``--json`` and returns what it wrote."""

    def run(*argv):
        assert main([*map(str, argv), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def fails(capsys):
    """Give a function that runs a command that fails and returns its message; nothing is on standard output."""

    def run(*argv):
        capsys.readouterr()
        assert main(list(map(str, argv))) == 1
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return run
