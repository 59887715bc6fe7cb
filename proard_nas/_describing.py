"""Settings as JSON that tells two of them apart, also those that are objects of the user's own."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable
from types import BuiltinFunctionType, CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._folders import plain
from .training import Stage

Within = tuple[int, ...]


def described(value: Any, within: Within = ()) -> Any:
    """Return JSON that is the same for the same setting in another process, and another for another setting.

    Parameters
    ----------
    value : object
        Functions are told apart by their code, defaults and closures, objects by their class and attributes, in
        slots too. What shows neither, such as a generator of random numbers, counts by its text without addresses.
    within : tuple of int, default=()
        The objects that are being described, which may hold themselves.
    """
    if isinstance(value, (str, int, float, type(None))):
        return value
    if isinstance(value, np.generic):
        return plain(value)
    if id(value) in within:
        return "itself"
    within = (*within, id(value))
    if isinstance(value, dict):
        return {str(k): described(v, within) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(v, within) for v in value]
    if isinstance(value, (set, frozenset)):
        return {"set": sorted((described(v, within) for v in value), key=json.dumps)}
    if isinstance(value, Stage):
        return {f.name: described(getattr(value, f.name), within) for f in dataclasses.fields(value)}
    return _described_object(value, within)


def _described_object(value: Any, within: Within) -> Any:
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, BuiltinFunctionType):
        return [_name(value), described(value.__self__, within)]
    if hasattr(value, "__code__"):  # of two functions of one name, such as lambdas
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        held = [getattr(value, "__self__", None), value.__defaults__, value.__kwdefaults__, cells]
        return [f"{_name(value)} {_code(value.__code__)}", described(held, within)]
    if isinstance(value, functools.partial):
        return described([value.func, value.args, value.keywords], within)
    if isinstance(value, Tensor):
        return _checksum([value])
    if isinstance(value, np.ndarray):
        return hashlib.sha256(repr(value.tolist()).encode()).hexdigest()
    state, own = object.__getstate__(value), getattr(value, "__dict__", None)
    slots = state[1] if isinstance(state, tuple) else {}
    if own is None and not slots:
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    return {"class": _name(type(value)), **described({**(own or {}), **slots}, within)}


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _code(code: CodeType) -> str:
    """Return a checksum of what a function does, functions within it included."""
    constants = [_constant(constant) for constant in code.co_consts]
    return hashlib.sha256(code.co_code + repr([code.co_names, constants]).encode()).hexdigest()[:16]


def _constant(constant: Any) -> str:
    """Return a constant's text, that of a set in an order that does not change from process to process."""
    if isinstance(constant, CodeType):
        return _code(constant)
    if isinstance(constant, frozenset):
        return f"frozenset({{{', '.join(sorted(map(_constant, constant)))}}})"
    if isinstance(constant, tuple):
        return f"({', '.join(map(_constant, constant))}{',' * (len(constant) == 1)})"
    return repr(constant)


def digest(network: nn.Module) -> str:
    """Return a checksum of a network's class and tensors."""
    return _checksum(network.state_dict().values(), type(network).__qualname__)


def _checksum(tensors: Iterable[Tensor], text: str = "") -> str:
    found = hashlib.sha256(text.encode())
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
