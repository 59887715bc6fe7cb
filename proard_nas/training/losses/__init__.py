"""Training losses with their inner attacks, one a file."""

from __future__ import annotations

from .adaad import AdaAD
from .ard import ARD
from .base import AttackBudget, Batch, Noise, Objective, Passes, kl_divergence
from .function import FunctionLoss
from .hat import HAT
from .iad import IAD
from .mart import MART
from .natural import Natural
from .registry import LOSSES, make_loss, register_loss
from .rslad import RSLAD
from .sat import SAT
from .trades import TRADES

__all__ = [
    "ARD",
    "HAT",
    "IAD",
    "LOSSES",
    "MART",
    "RSLAD",
    "SAT",
    "TRADES",
    "AdaAD",
    "AttackBudget",
    "Batch",
    "FunctionLoss",
    "Natural",
    "Noise",
    "Objective",
    "Passes",
    "kl_divergence",
    "make_loss",
    "register_loss",
]
