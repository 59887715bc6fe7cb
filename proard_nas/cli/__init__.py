"""The ``proard-nas`` command: each sub-command is a thin call of the Python API, in a file of its own."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from proard_nas import __version__

from . import fit, models, quickstart

COMMANDS = {"quickstart": quickstart, "fit": fit, "models": models}

EXAMPLES = """examples:
  proard-nas quickstart                      the whole path on handwritten digits, in minutes
  proard-nas models                          the supernets there are, with their sizes
  proard-nas fit --data photos.npz --out robust --checkpoint-dir run --model proard_dyn_resnet_small --epochs 40
  torchrun --nproc-per-node 4 -m proard_nas fit --data photos.npz --out robust --checkpoint-dir run
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
    try:
        return int(COMMANDS[arguments.command].run(arguments))
    except KeyboardInterrupt:
        return 130  # as a shell reports it
    except (ValueError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
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
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.HELP, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.add_argument("-v", "--verbose", action="store_true", help="also log each epoch")
    return parser


if __name__ == "__main__":
    sys.exit(main())
