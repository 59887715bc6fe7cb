"""A file of settings, read as flags that come before those of the command line."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from proard_nas._errors import check_name, unknown_name

NOT_SETTINGS = ("config", "help")


def read_config(path: str, command: str, commands: Collection[str]) -> dict[str, Any]:
    """Return a command's settings in a TOML or JSON file.

    Parameters
    ----------
    path : str
        Its keys are the names of flags, with ``-`` or ``_``. A table with a command's name holds that command's alone.
    command : str
    commands : collection of str
        All commands there are; the tables of the others are left out.

    Raises
    ------
    ValueError
        If the file is not there, no TOML or JSON, or no table.
    """
    file = Path(path)
    if file.suffix not in (".toml", ".json"):
        raise ValueError(f"the configuration {path!r} must be a file ending in .toml or .json")
    try:
        text = file.read_text(encoding="utf-8")
        settings = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ValueError(f"the configuration {path!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"the configuration {path!r} is no {file.suffix[1:].upper()}: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"the configuration {path!r} holds a {type(settings).__name__}; allowed: names and values")
    own = settings.get(command, {})
    if not isinstance(own, dict):
        raise ValueError(f"the configuration {path!r} gives {command!r} as {own!r}; allowed: a table of its settings")
    return {**{k: v for k, v in settings.items() if not (k in commands and isinstance(v, dict))}, **own}


def as_flags(parser: argparse.ArgumentParser, settings: Mapping[str, Any], path: str) -> list[str]:
    """Return settings as the flags of a command, so that they are checked as those are and later ones win.

    A positional argument, and a flag of several words (which would take in what follows), get theirs as the default.

    Raises
    ------
    ValueError
        For a name that is no flag of the command.
    """
    actions = _settings_of(parser)
    flags: list[str] = []
    for name, value in settings.items():
        action = actions.get(name.replace("_", "-"))
        if action is None:
            raise unknown_name(f"setting in {path!r}", name, actions)
        if value is None:
            continue
        if action.nargs == "+":
            action.default = _words(action, name, value)
        elif action.option_strings:
            flags += _flag(action, name, value, path)
        else:
            action.default = value
        action.required = False
    return flags


def _settings_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return a parser's actions by the long names of their flags, or by their own where they have none."""
    named = {}
    for action in parser._actions:
        names = [option[2:] for option in action.option_strings if option.startswith("--")] or [action.dest]
        named.update({name: action for name in names if not name.startswith("no-")})
    return {name: action for name, action in named.items() if name not in NOT_SETTINGS}


def _flag(action: argparse.Action, name: str, value: Any, path: str) -> list[str]:
    option = next(option for option in action.option_strings if option.startswith("--"))
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"{name} in {path!r} is {value!r}; allowed: true or false")
        if isinstance(action, argparse.BooleanOptionalAction):
            return [option if value else "--no-" + option.removeprefix("--")]
        return [option] * value
    return [f"{option}={_text(value)}"]


def _words(action: argparse.Action, name: str, value: Any) -> list[str]:
    words = [str(word) for word in (value if isinstance(value, list) else [value])]
    return [check_name(name, word, action.choices or words) for word in words]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
