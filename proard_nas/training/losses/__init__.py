"""Training losses with their inner attacks, one a file."""

from __future__ import annotations

from collections.abc import Callable

from proard_nas._errors import check_name

from .base import AttackBudget, Objective, kl_divergence
from .natural import Natural
from .rslad import RSLAD
from .trades import TRADES

LOSSES: dict[str, Callable[[], Objective]] = {"natural": Natural, "rslad": RSLAD, "trades": TRADES}


def make_loss(loss: str | Objective) -> Objective:
    """Return a loss by name (``'natural'``, ``'trades'``, ``'rslad'``), or the object itself.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    if not isinstance(loss, str) and hasattr(loss, "adversarial") and hasattr(loss, "loss"):
        return loss
    return LOSSES[check_name("loss", loss, LOSSES)]()


__all__ = ["LOSSES", "RSLAD", "TRADES", "AttackBudget", "Natural", "Objective", "kl_divergence", "make_loss"]
