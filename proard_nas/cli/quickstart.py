"""Run the whole path on handwritten digits: train, search, extract, measure."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ._report import Report

HELP = "the whole path on handwritten digits, in minutes"
EXAMPLES = """\
  proard-nas quickstart
  proard-nas quickstart --folder demo --epochs 12 --labels 40 --seed 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--folder", default="proard-quickstart", help="where students and results go (%(default)s)")
    parser.add_argument("--epochs", type=int, help="total epochs of training")
    parser.add_argument("--labels", type=int, dest="n_labels", help="students measured for the predictor")
    parser.add_argument("--seed", type=int, help="the same seed gives the same result on one machine")


def run(arguments: argparse.Namespace) -> Report:
    """Run the command."""
    from proard_nas.quickstart import QuickstartSettings, run

    given = {name: getattr(arguments, name) for name in ("epochs", "n_labels", "seed")}
    settings = QuickstartSettings(**{name: value for name, value in given.items() if value is not None})
    text = run(arguments.folder, settings)
    return Report(json.loads((Path(arguments.folder) / "results.json").read_text()), text)
