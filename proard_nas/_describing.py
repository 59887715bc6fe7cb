"""Settings as JSON that tells two of them apart, also those that are objects of the user's own."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .training import Stage


def described(value: Any) -> Any:
    """Return JSON that is the same for the same setting in another process, and another for another setting."""
    if isinstance(value, (str, int, float, type(None))):
        return value
    if isinstance(value, dict):
        return {str(k): described(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(v) for v in value]
    if isinstance(value, Stage):
        return {f.name: described(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return _described_object(value)


def _described_object(value: Any) -> Any:
    code = getattr(value, "__code__", None)
    if code is not None:  # of two functions of one name, such as lambdas
        constants = [constant for constant in code.co_consts if not hasattr(constant, "co_code")]
        return f"{_name(value)} {hashlib.sha256(code.co_code + repr(constants).encode()).hexdigest()[:16]}"
    if isinstance(value, type):
        return _name(value)
    if isinstance(value, functools.partial):
        return described([value.func, value.args, value.keywords])
    if isinstance(value, nn.Module):
        return digest(value)
    if isinstance(value, (Tensor, np.ndarray)):
        return hashlib.sha256(repr(value.tolist()).encode()).hexdigest()
    own = getattr(value, "__dict__", None)
    return repr(value) if own is None else {"class": _name(type(value)), **described(own)}


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def digest(network: nn.Module) -> str:
    """Return a checksum of a network's class and tensors."""
    found = hashlib.sha256(type(network).__qualname__.encode())
    for tensor in network.state_dict().values():
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
