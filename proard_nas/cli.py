"""The ``proard-nas`` command: each sub-command is a thin call of the Python API."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import cast

from . import __version__

EXAMPLES = """examples:
  proard-nas quickstart                      the whole path on handwritten digits, in minutes
  proard-nas quickstart --folder out         the same, into a folder of your choice
  proard-nas models                          the supernets there are, with their sizes
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code (0: done, 1: failed, 2: wrong arguments)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("proard_nas.training.planning").setLevel(logging.INFO)  # the cost, before it is spent
    commands = {"quickstart": _quickstart, "models": _models}
    try:
        return commands[arguments.command](arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.stderr.write(f"proard-nas: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="proard-nas",
        description="Train one robust supernet once, then hand out robust students of any size.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"proard-nas {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands")
    quickstart = commands.add_parser("quickstart", help="the whole path on handwritten digits, in minutes")
    quickstart.add_argument("--folder", default="proard-quickstart", help="where students and results go (%(default)s)")
    quickstart.add_argument("--epochs", type=int, help="total epochs of training")
    quickstart.add_argument("--labels", type=int, dest="n_labels", help="students measured for the predictor")
    quickstart.add_argument("--seed", type=int, help="the same seed gives the same result on one machine")
    models = commands.add_parser("models", help="the supernets there are, with their sizes")
    for command in (quickstart, models):
        command.add_argument("-v", "--verbose", action="store_true", help="also log each epoch")
    return parser


def _quickstart(arguments: argparse.Namespace) -> int:
    from .quickstart import QuickstartSettings, run

    given = {name: getattr(arguments, name) for name in ("epochs", "n_labels", "seed")}
    settings = QuickstartSettings(**{name: value for name, value in given.items() if value is not None})
    sys.stdout.write(run(arguments.folder, settings) + "\n")
    return 0


def _models(arguments: argparse.Namespace) -> int:
    import timm
    import torch
    from tabulate import tabulate

    from .supernets import SUPERNETS, Supernet

    rows = []
    for name in SUPERNETS:
        with torch.device("meta"):
            net = cast(Supernet, timm.create_model(name))
        small, large = net.cost(net.space.smallest), net.cost(net.space.largest)
        height, width = net.cfg.img_size
        rows.append(
            (name, f"{net.space.size:.3g}", f"{height}x{width}", small.mmacs, large.mmacs, small.params, large.params)
        )
    headers = ["supernet", "students", "images", "MMACs\nfrom", "MMACs\nto", "parameters\nfrom", "parameters\nto"]
    sys.stdout.write(tabulate(rows, headers=headers, floatfmt=".4g", intfmt=",") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
