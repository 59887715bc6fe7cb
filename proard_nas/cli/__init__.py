"""The ``proard-nas`` command: each sub-command is a thin call of the Python API, in a file of its own."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from proard_nas import __version__

from . import evaluate, export, extract, fit, label, latency_table, models, quickstart, search
from ._config import as_flags, read_config
from ._report import output_to_stderr

COMMANDS = {
    "quickstart": quickstart,
    "models": models,
    "fit": fit,
    "label": label,
    "search": search,
    "extract": extract,
    "evaluate": evaluate,
    "export": export,
    "latency-table": latency_table,
}

EXAMPLES = """examples:
  proard-nas quickstart                                     the whole path on handwritten digits, in minutes
  proard-nas models                                         the supernets there are, with their sizes
  proard-nas fit --data photos.npz --out robust --checkpoint-dir run --model proard_dyn_resnet_small --epochs 40
  proard-nas search --estimator robust --max-flops 20 --out front.json --extract student
  proard-nas evaluate student --data photos.npz --attack natural pgd autoattack
  proard-nas COMMAND --help                                 all flags of a command, with examples

exit codes: 0 done, 1 failed, 2 wrong arguments, 130 interrupted
"""

FAILURES = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError, LookupError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code (0: done, 1: failed, 2: wrong arguments, 130: interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    asked = next((word for word in argv if not word.startswith("-")), None)
    parser, commands = _parser()
    if asked in commands:
        _complete(commands[asked], asked)
        argv = _with_config(commands[asked], asked, argv)
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("proard_nas.training.planning").setLevel(logging.INFO)  # the cost, before it is spent
    try:
        with output_to_stderr():
            report = COMMANDS[arguments.command].run(arguments)
    except KeyboardInterrupt:
        return 130  # as a shell reports it
    except FAILURES as error:
        sys.stderr.write(f"proard-nas: {error}\n")
        return 1
    if report is not None:
        report.write(arguments.json)
    return 0


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and those of the commands still without flags: only the one asked for needs them."""
    parser = argparse.ArgumentParser(
        prog="proard-nas",
        description="Train one robust supernet once, then hand out robust students of any size.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"proard-nas {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands")
    return parser, {
        name: commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for name, module in COMMANDS.items()
    }


def _complete(command: argparse.ArgumentParser, name: str) -> None:
    """Add a command's own flags and those that all have."""
    COMMANDS[name].add_arguments(command)
    command.add_argument("--config", metavar="FILE", help="a .toml or .json file with flags' names and values")
    command.add_argument("--json", action="store_true", help="write one JSON document and nothing else to stdout")
    command.add_argument("-v", "--verbose", action="store_true", help="also log each epoch")


def _with_config(command: argparse.ArgumentParser, name: str, argv: list[str]) -> list[str]:
    """Return the arguments with those of a configuration file before them, so that flags win."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return argv
    try:
        flags = as_flags(command, read_config(path, name, COMMANDS), path)
    except ValueError as error:
        command.error(str(error))
    place = argv.index(name) + 1
    return [*argv[:place], *flags, *argv[place:]]


if __name__ == "__main__":
    sys.exit(main())
