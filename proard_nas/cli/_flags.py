"""Flags made from a function's signature and docstring, so that a name has one home."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

Kind = Callable[[str], Any]


def number(text: str) -> float:
    """Return a number, or a fraction such as ``8/255``."""
    above, _, below = text.partition("/")
    if below and not float(below):
        raise ValueError(f"{text} divides by zero")
    return float(above) / float(below or 1)


def json_value(text: str) -> Any:
    """Return the value of a text in JSON."""
    return json.loads(text)


json_value.__name__ = "JSON value"  # as argparse names it


def size(text: str) -> tuple[int, int]:
    """Return (height, width) of ``32`` or ``32x48``."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


_METAVARS: dict[Kind, str] = {number: "X", int: "N", json_value: "JSON"}


def add_parameters(
    parser: argparse._ActionsContainer,
    function: Callable[..., Any],
    *,
    skip: Collection[str] = (),
    kinds: Mapping[str, Kind] | None = None,
    only_given: bool = False,
    instead: Mapping[str, str] | None = None,
) -> None:
    """Add a flag for each parameter of a function or class, with its default and its docstring's first sentence.

    Parameters
    ----------
    parser : parser or group
    function : callable
        Its docstring is numpy-style.
    skip : collection of str
        Parameters that get no flag.
    kinds : mapping of str to callable, optional
        What turns a flag's text into the parameter, where the annotation does not say.
    only_given : bool, default=False
        Whether flags that are not given leave nothing, not even the default.
    instead : mapping of str to str, optional
        Parameters whose default is another where their flag is not given, which then leaves nothing; and what that is.
    """
    texts, choices = parameter_texts(function), parameter_choices(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in skip:
            continue
        flag, default, own = "--" + name.replace("_", "-"), parameter.default, (instead or {}).get(name)
        notes = [*choices.get(name, ()), f"default: {own or _shown(default)}"]
        text = f"{texts.get(name, '')} ({'; '.join(notes)})".strip().replace("%", "%%")
        default = argparse.SUPPRESS if only_given or own else default
        annotation = str(parameter.annotation)
        if "bool" in annotation:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        elif annotation.startswith("Sequence[str]"):
            words = default if only_given else list(default)
            parser.add_argument(flag, nargs="+", default=words, metavar="NAME", help=text)
        else:
            kind = (kinds or {}).get(name) or _kind(annotation)
            parser.add_argument(flag, type=kind, default=default, metavar=_METAVARS.get(kind, "TEXT"), help=text)


def given(arguments: argparse.Namespace, function: Callable[..., Any], skip: Collection[str] = ()) -> dict[str, Any]:
    """Return the values of the flags that `add_parameters` made, as keyword arguments."""
    names = inspect.signature(function).parameters
    return {name: getattr(arguments, name) for name in names if name not in skip and name in arguments}


def parameter_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Return the first sentence that a numpy-style docstring has on each parameter."""
    lines = (inspect.getdoc(function) or "").splitlines()
    if "Parameters" not in lines:
        return {}
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in lines[lines.index("Parameters") + 2 :]:
        if line.startswith("---"):  # below the next section's title, which looked like a name
            del found[names[0]]
            break
        if re.match(r"\w+(, \w+)*( : |$)", line):
            names = line.partition(" : ")[0].split(", ")
            found.update({name: [] for name in names})
        elif line.strip():
            for name in names:
                found[name].append(line.strip())
    return {name: _first_sentence(" ".join(text)) for name, text in found.items()}


def parameter_choices(function: Callable[..., Any]) -> dict[str, list[str]]:
    """Return, in a list of one, the values that a numpy-style docstring allows for a parameter: ``{'a', 'b'}``."""
    found = re.findall(r"^(\w+) : \{(.*)\}", inspect.getdoc(function) or "", re.MULTILINE)
    return {name: [values.replace("'", "")] for name, values in found}


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.;])\s", text.replace("`", ""), maxsplit=1)[0].rstrip(".;")


def _shown(default: Any) -> str:
    if isinstance(default, float):
        return f"{default:.6g}"
    if isinstance(default, (list, tuple)):
        return " ".join(map(str, default)) or "none"
    return "none" if default is None else str(default)


def _kind(annotation: str) -> Kind:
    names = re.findall(r"\w+", annotation)
    return next((kind for name, kind in (("float", number), ("int", int)) if name in names), str)
