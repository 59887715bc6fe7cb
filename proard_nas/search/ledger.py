"""The candidates a search has looked at, each predicted and costed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from proard_nas.supernets.architecture import Architecture

from .candidate import ACCURACIES, Candidate, CostFunction, LatencyFunction, PredictFunction


class Ledger:
    """Turns architectures into candidates and remembers them, so that a duplicate costs nothing.

    Parameters
    ----------
    predict : callable
        Takes a list of n architectures, returns their natural and robust accuracy in [0, 1], shape (n, 2).
    cost : callable
        Takes an architecture, returns an object with ``macs`` and ``params``.
    latency : callable or None, default=None
        Takes an architecture, returns milliseconds.
    """

    def __init__(self, predict: PredictFunction, cost: CostFunction, latency: LatencyFunction | None = None) -> None:
        self._predict = predict
        self._cost = cost
        self._latency = latency
        self._known: dict[Architecture, Candidate] = {}
        self._set_aside: dict[Architecture, Candidate] = {}

    def __len__(self) -> int:
        return len(self._known)

    @property
    def candidates(self) -> list[Candidate]:
        """All distinct candidates, in the order in which they came."""
        return list(self._known.values())

    @property
    def architectures(self) -> Iterable[Architecture]:
        """All distinct architectures, in the order in which they came."""
        return self._known.keys()

    def __contains__(self, architecture: object) -> bool:
        return architecture in self._known

    def restore(self, candidates: Iterable[Candidate]) -> None:
        """Take over candidates of an earlier search."""
        for candidate in candidates:
            self._known[candidate.architecture] = candidate

    def set_aside(self, candidates: Iterable[Candidate]) -> None:
        """Keep candidates that have not been looked at yet, so that they need not be predicted then."""
        for candidate in candidates:
            self._set_aside[candidate.architecture] = candidate

    def evaluate(self, architectures: Sequence[Architecture]) -> list[Candidate]:
        """Return one candidate for each architecture, calling the predictor once for all new ones."""
        new = list(dict.fromkeys(a for a in architectures if a not in self._known))
        self.set_aside(self.evaluate_afresh([a for a in new if a not in self._set_aside]))
        self.restore(self._set_aside.pop(a) for a in new)
        return [self._known[a] for a in architectures]

    def evaluate_afresh(self, architectures: Sequence[Architecture]) -> list[Candidate]:
        """Return candidates without looking at, or adding to, what is remembered."""
        if not architectures:
            return []
        predicted = check_predictions(self._predict(architectures), len(architectures))
        return [self._candidate(arch, row) for arch, row in zip(architectures, predicted, strict=True)]

    def _candidate(self, arch: Architecture, accuracies: NDArray[np.float64]) -> Candidate:
        cost = self._cost(arch)
        latency = self._latency(arch) if self._latency else None
        return Candidate(arch, cost.macs, cost.params, float(accuracies[0]), float(accuracies[1]), latency)


def check_predictions(given: object, n: int) -> NDArray[np.float64]:
    """Return a predictor's answer as an array of shape (n, 2).

    Raises
    ------
    ValueError
        If the shape is another, a value is NaN or infinite, or an accuracy is outside [0, 1].
    """
    values = np.asarray(given, dtype=np.float64)
    if values.shape != (n, 2):
        raise ValueError(f"predict must return shape ({n}, 2), natural and robust accuracy, got {values.shape}")
    for column, name in enumerate(ACCURACIES):
        wrong = ~((values[:, column] >= 0) & (values[:, column] <= 1))
        if wrong.any():
            first = int(wrong.argmax())
            raise ValueError(
                f"predict must return accuracies in [0, 1], got {name}={values[first, column]} for architecture "
                f"{first} of {n} ({int(wrong.sum())} such values)"
            )
    return values
