"""Which device an estimator computes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import distributed
from ._errors import unknown_name

if TYPE_CHECKING:
    from .estimator import ProARDEstimator

DEVICES = ("auto", "cpu", "cuda")


def check_device(device: object) -> None:
    """Raise ValueError if there is no device of that name, or not in this machine."""
    kind, _, index = str(device).partition(":")
    if kind not in DEVICES or (index and (kind != "cuda" or not index.isdecimal())):
        raise unknown_name("device", str(device), (*DEVICES, "cuda:0"))
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} was asked for, but torch finds no CUDA device; allowed: 'cpu'")
    if index and int(index) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ValueError(
            f"device={device!r} was asked for; allowed: 'cuda:0' to 'cuda:{last}', the devices torch finds"
        )


def device_of(estimator: ProARDEstimator) -> torch.device:
    """Return the device that an estimator computes on in this process; another one where its own is not there."""
    name = "cuda" if estimator.device == "auto" else str(estimator.device)
    index = name.removeprefix("cuda:")
    if index.isdecimal() and int(index) >= torch.cuda.device_count():
        name = "cuda"  # it was fitted on a machine with more of them
    return distributed.local_device(torch.device(name if torch.cuda.is_available() else "cpu"))
