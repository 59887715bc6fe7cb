"""Losses by name, and how to add one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from proard_nas._errors import check_name

from .adaad import AdaAD
from .ard import ARD
from .base import Objective
from .function import FunctionLoss, LossFunction
from .hat import HAT
from .iad import IAD
from .mart import MART
from .natural import Natural
from .rslad import RSLAD
from .sat import SAT
from .trades import TRADES

LOSSES: dict[str, Callable[[], Objective]] = {
    "adaad": AdaAD,
    "ard": ARD,
    "hat": HAT,
    "iad": IAD,
    "mart": MART,
    "natural": Natural,
    "rslad": RSLAD,
    "sat": SAT,
    "trades": TRADES,
}
MEMBERS = ("needs_teacher", "passes", "adversarial", "loss")
L = TypeVar("L")


def make_loss(loss: str | Objective | LossFunction) -> Objective:
    """Return a loss by name, the object itself, or a plain function as a loss.

    Parameters
    ----------
    loss : str, Objective or callable
        A name in `LOSSES`; an object with the members of `Objective`; or a function
        ``fn(net, batch, x_adv)`` that returns the batch's mean loss, see `FunctionLoss`.

    Raises
    ------
    ValueError
        For an unknown name, or an object that is none of these.

    Examples
    --------
    >>> make_loss('trades')
    TRADES(beta=6.0)
    """
    if isinstance(loss, str):
        return LOSSES[check_name("loss", loss, LOSSES)]()
    if isinstance(loss, type):
        raise ValueError(f"a loss must be an object, not a class; did you mean {loss.__name__}()?")
    missing = [name for name in MEMBERS if not hasattr(loss, name)]
    if not missing:
        return cast(Objective, loss)
    if callable(loss) and not hasattr(loss, "loss"):
        return FunctionLoss(loss)
    raise ValueError(
        f"a loss must be a name ({', '.join(map(repr, sorted(LOSSES)))}), a function fn(net, batch, x_adv), or an "
        f"object with the members of Objective; {loss!r} has no {', '.join(missing)}"
    )


def register_loss(name: str) -> Callable[[L], L]:
    """Return a decorator that adds a class or a plain function to `LOSSES`.

    Parameters
    ----------
    name : str
        What `make_loss` and schedules find it by.

    Raises
    ------
    ValueError
        If the name is taken.

    Examples
    --------
    >>> @register_loss('my_loss')  # doctest: +SKIP
    ... def my_loss(net, batch, x_adv):
    ...     return F.cross_entropy(net(x_adv), batch.y)
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"a loss is registered by a name, @register_loss('my_loss'); got {name!r}")

    def add(loss: L) -> L:
        if name in LOSSES:
            raise ValueError(f"there is a loss {name!r} already")
        given: Any = loss
        LOSSES[name] = given if isinstance(loss, type) else lambda: make_loss(given)
        return loss

    return add
