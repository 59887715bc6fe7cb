"""How an estimator searches: its predictor's search with its own seed, and the best candidates measured."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from . import search as room
from ._errors import unknown_name
from ._labelling import check_validation, known_or_measured
from ._numbers import whole_number
from ._random import derive_seed
from .evaluation import Label
from .evaluation.population import checksum
from .search.candidate import ACCURACIES
from .search.objectives import front_of
from .supernets import Architecture

if TYPE_CHECKING:
    from .estimator import ProARDEstimator

LIMITS = ("max_flops", "min_flops", "max_params", "min_natural_accuracy", "min_robust_accuracy")
WARM_SHARE = 5  # one of so many in the first generation is a labelled student; more took from the variety


def search(
    estimator: ProARDEstimator, max_flops: float | None, verify: int, constraints: dict[str, Any]
) -> room.SearchResult:
    """Search with a fitted estimator; see `ProARDEstimator.search`."""
    allowed = set(inspect.signature(room.search).parameters) - {"space", "predict", "cost"}
    for name in constraints:
        if name not in allowed:
            raise TypeError(str(unknown_name("search argument", name, allowed | {"verify"})))
    if whole_number("verify", verify, 0):
        check_validation(estimator)
    _check_table(estimator, constraints.get("latency"))
    constraints = {"seed": derive_seed(estimator.seed_, "search"), "progress": estimator.progress, **constraints}
    labelled = [_labelled(estimator, label) for label in estimator.labels_.students]
    if "warm_start" not in constraints:
        size = constraints.get("population_size", 100)
        whole = isinstance(size, (int, np.integer))  # the search says what else is wrong with it
        n = max(1, int(size) // WARM_SHARE) if whole else 1
        constraints["warm_start"] = _best_labelled(labelled, {"max_flops": max_flops, **constraints}, n)
    result = room.search(
        estimator.supernet_.space,
        estimator.predictor_.predict,
        estimator._cost,
        max_flops=max_flops,
        **constraints,
    )
    population = [(student.natural_accuracy, student.robust_accuracy, student.mmacs) for student in labelled]
    weights = checksum(estimator.supernet_)
    result = dataclasses.replace(result, extractor=estimator.extract, population=population, weights=weights)
    return verified(estimator, result, verify) if verify else result


def _check_table(estimator: ProARDEstimator, latency: object) -> None:
    """Raise ValueError if a latency table is of another network, of images of another size, or of several at once."""
    if latency is None:
        return
    from .deploy import LatencyTable

    if not isinstance(latency, LatencyTable):
        return
    latency.check(estimator.supernet_)
    setting = latency.setting
    if tuple(setting.img_size) != tuple(estimator.image_size_):
        raise ValueError(
            f"the latency table is of images of {setting.img_size} pixels; the estimator's have {estimator.image_size_}"
        )
    if setting.batch_size != 1:
        raise ValueError(
            f"the latency table is of batches of {setting.batch_size} images, and a search's milliseconds are those of "
            "one; build it with batch_size=1, or give a function such as lambda arch: table(arch)"
        )


def _best_labelled(labelled: list[room.Candidate], limits: dict[str, Any], n: int) -> list[Architecture]:
    """Return the best labelled students that keep the limits: the front, then the front of the rest, and so on."""
    kept = room.Constraints(**{name: limits.get(name) for name in LIMITS})
    left = [candidate for candidate in labelled if kept.are_kept_by(candidate)]
    best: list[room.Candidate] = []
    while left and len(best) < n:
        best += front_of(left, ACCURACIES)
        left = [candidate for candidate in left if candidate not in best]
    return [candidate.architecture for candidate in best[:n]]


def _labelled(estimator: ProARDEstimator, label: Label) -> room.Candidate:
    cost = estimator._cost(label.architecture)
    return room.Candidate(label.architecture, cost.macs, cost.params, label.natural_accuracy, label.robust_accuracy)


def verified(
    estimator: ProARDEstimator, result: room.SearchResult, k: int, X: Any = None, y: Any = None
) -> room.SearchResult:
    """Return the result with figures of its k best students on `fit`'s validation images, or on those given."""
    labels = known_or_measured(estimator, [c.architecture for c in result.most_accurate(k)], X, y)
    settings = {
        "attack": estimator._attack("pgd").title,
        "eps": labels.settings["eps"],
        "n_images": labels.settings["n_images"],
    }
    return result.with_measured(
        {
            label.architecture: {
                "natural_accuracy": label.natural_accuracy,
                "robust_accuracy": label.robust_accuracy,
                **settings,
            }
            for label in labels.students
        }
    )
