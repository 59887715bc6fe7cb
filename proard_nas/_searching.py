"""How an estimator searches: its predictor's search with its own seed, and the best candidates measured."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from . import search as room
from ._errors import unknown_name
from ._random import derive_seed
from .supernets import Architecture

if TYPE_CHECKING:
    from .estimator import ProARDEstimator


def search(
    estimator: ProARDEstimator, max_flops: float | None, verify: int, constraints: dict[str, Any]
) -> room.SearchResult:
    """Search with a fitted estimator; see `ProARDEstimator.search`."""
    allowed = set(inspect.signature(room.search).parameters) - {"space", "predict", "cost"}
    for name in constraints:
        if name not in allowed:
            raise TypeError(str(unknown_name("search argument", name, allowed | {"verify"})))
    constraints = {"seed": derive_seed(estimator.seed_, "search"), "progress": estimator.progress, **constraints}
    result = room.search(
        estimator.supernet_.space,
        estimator.predictor_.predict,
        estimator._cost,
        max_flops=max_flops,
        **constraints,
    ).with_extractor(estimator.extract)
    return _verified(estimator, result, verify) if verify else result


def _verified(estimator: ProARDEstimator, result: room.SearchResult, k: int) -> room.SearchResult:
    ranked = sorted(result.front, key=lambda candidate: candidate.mean_accuracy, reverse=True)
    return result.with_measured({c.architecture: _measured(estimator, c.architecture) for c in ranked[:k]})


def _measured(estimator: ProARDEstimator, arch: Architecture) -> dict[str, Any]:
    label = estimator.measure(arch)
    figures = {"natural_accuracy": label.natural_accuracy, "robust_accuracy": label.robust_accuracy}
    attack = estimator._attack("pgd").title
    return {**figures, "attack": attack, "eps": estimator.eps, "n_images": estimator.n_val_}
