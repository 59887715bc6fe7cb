"""What a fit with ``warm_start`` goes on from: the supernet's weights, and the records of how it came to them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import distributed
from ._describing import digest
from .data import ArraySource, DataSummary, PreparedData, Source
from .data.labels import are_places
from .evaluation.labels import IMAGES
from .evaluation.population import images_checksum
from .supernets import Supernet
from .training import Ledger

if TYPE_CHECKING:
    from .estimator import ProARDEstimator


logger = logging.getLogger(__name__)


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


def named(estimator: ProARDEstimator, data: PreparedData) -> PreparedData:
    """Return data with the earlier fit's names of classes, where its labels are their places, as `score` takes them."""
    now, known = data.summary.classes.tolist(), estimator.classes_
    if now == list(range(len(known))) and are_places(now, known.tolist()):
        return dataclasses.replace(data, summary=dataclasses.replace(data.summary, classes=known))
    return data


def check_same(estimator: ProARDEstimator, wanted: Supernet, summary: DataSummary) -> None:
    """Raise ValueError if an estimator's supernet is not the one wanted now, or is of other data."""
    network = estimator.supernet_
    networks = [(type(n), n.cfg, n.space, n.head.global_pool.pool_type) for n in (wanted, network)]
    if networks[0] != networks[1]:
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


def warn_of_other_images(estimator: ProARDEstimator, val: Source) -> None:
    """Warn where `fit` has split off other images than before: of the same data, some may have been trained on."""
    known = estimator.labels_.settings.get(IMAGES) if hasattr(estimator, "labels_") else None
    if known is not None and isinstance(val, ArraySource) and images_checksum(val) != known and distributed.is_main():
        logger.warning(
            "the images held out now are not those of the earlier fit: if the data are the same, some may have been "
            "trained on, and accuracies on them are too high; give the same val_fraction, or val_loader"
        )


def put_before(estimator: ProARDEstimator, earlier: Before) -> None:
    """Put the records of an earlier fit before those of this one."""
    done = len(earlier.history)
    later = [{**record, "global_epoch": record["global_epoch"] + done} for record in estimator.history_]
    estimator.history_, estimator.events_ = earlier.history + later, earlier.events + estimator.events_
    estimator.spent_ = earlier.spent.plus(estimator.spent_)
