"""Settings as JSON that tells two of them apart, also those that are objects of the user's own."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .training import Stage

Within = tuple[int, ...]


def described(value: Any, within: Within = ()) -> Any:
    """Return JSON that is the same for the same setting in another process, and another for another setting.

    Parameters
    ----------
    value : object
        Functions are told apart by their code, defaults and closures, objects by their class and attributes.
    within : tuple of int, default=()
        The objects that are being described, which may hold themselves.
    """
    if isinstance(value, (str, int, float, type(None))):
        return value
    if id(value) in within:
        return "itself"
    within = (*within, id(value))
    if isinstance(value, dict):
        return {str(k): described(v, within) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(v, within) for v in value]
    if isinstance(value, Stage):
        return {f.name: described(getattr(value, f.name), within) for f in dataclasses.fields(value)}
    return _described_object(value, within)


def _described_object(value: Any, within: Within) -> Any:
    if isinstance(value, type):
        return _name(value)
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
    own = getattr(value, "__dict__", None)
    return repr(value) if own is None else {"class": _name(type(value)), **described(own, within)}


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _code(code: CodeType) -> str:
    """Return a checksum of what a function does, functions within it included."""
    constants = [_code(constant) if isinstance(constant, CodeType) else repr(constant) for constant in code.co_consts]
    return hashlib.sha256(code.co_code + repr([code.co_names, constants]).encode()).hexdigest()[:16]


def digest(network: nn.Module) -> str:
    """Return a checksum of a network's class and tensors."""
    return _checksum(network.state_dict().values(), type(network).__qualname__)


def _checksum(tensors: Iterable[Tensor], text: str = "") -> str:
    found = hashlib.sha256(text.encode())
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
