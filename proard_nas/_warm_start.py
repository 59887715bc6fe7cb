"""What a fit with ``warm_start`` goes on from: the supernet's weights, and the records of how it came to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._describing import digest
from .data import DataSummary
from .supernets import Supernet
from .training import Ledger

if TYPE_CHECKING:
    from .estimator import ProARDEstimator


@dataclasses.dataclass(frozen=True)
class Before:
    """What an earlier fit left, beside the supernet itself."""

    weights: str
    history: list[dict[str, Any]]
    events: list[dict[str, Any]]
    spent: Ledger


def before(estimator: ProARDEstimator, folder: Path | None) -> Before | None:
    """Return what a fit goes on from, if it is to; one that was stopped, and has its folder, has not begun anew."""
    if not estimator.warm_start or not hasattr(estimator, "supernet_"):
        return None
    unfinished: tuple[Path | None, Before | None] = vars(estimator).get("_unfinished", (None, None))
    if folder is not None and folder.resolve() == unfinished[0] and (folder / "settings.json").is_file():
        return unfinished[1]
    return Before(digest(estimator.supernet_), estimator.history_, estimator.events_, estimator.spent_)


def check_same(estimator: ProARDEstimator, wanted: Supernet, summary: DataSummary) -> None:
    """Raise ValueError if an estimator's supernet is not the one wanted now, or is of other data."""
    network = estimator.supernet_
    if type(wanted) is not type(network) or wanted.space != network.space:
        raise ValueError(
            f"warm_start goes on from another supernet than model={estimator.model!r} with "
            f"model_args={estimator.model_args!r}; allowed: those of the earlier fit, or warm_start=False"
        )
    for name, now, earlier in (
        ("classes", summary.classes.tolist(), estimator.classes_.tolist()),
        ("channels", summary.in_chans, estimator.in_chans_),
    ):
        if now != earlier:
            raise ValueError(f"warm_start goes on from a supernet of {name} {earlier}; the data has {now}")


def put_before(estimator: ProARDEstimator, earlier: Before) -> None:
    """Put the records of an earlier fit before those of this one."""
    done = len(earlier.history)
    later = [{**record, "global_epoch": record["global_epoch"] + done} for record in estimator.history_]
    estimator.history_, estimator.events_ = earlier.history + later, earlier.events + estimator.events_
    estimator.spent_ = earlier.spent.plus(estimator.spent_)
