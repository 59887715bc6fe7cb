"""From parts measured alone to whole students: a linear correction fitted to a few of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._parts import Part

Matrix = NDArray[np.float64]
PENALTIES = np.logspace(-4, 2, 13)
SHARED_PENALTY = 1e-6  # only keeps the equations solvable


@dataclasses.dataclass(frozen=True)
class Correction:
    """What a part takes in a student, given what it takes alone: linear for each place.

    A part alone pays for being called, which a whole student pays once, and finds its weights
    and inputs elsewhere in the caches than in a student, the more so the larger they are.

    Attributes
    ----------
    constant_ms : float
        Of every student: normalisation and the call.
    weights : mapping of str to tuple of float
        For each place (stem, each stage, ...) the factors of a part's milliseconds, of 1, and of
        each of its sizes.
    penalty : float, default=0.0
        The ridge penalty, chosen by leaving one student out at a time.
    loo_mape : float, default=0.0
        Mean relative error of the students left out.
    """

    constant_ms: float
    weights: Mapping[str, tuple[float, ...]]
    penalty: float = 0.0
    loo_mape: float = 0.0

    def __call__(self, part: Part, ms: float) -> float:
        """Return the milliseconds of a part in a student, from those that it takes alone."""
        return sum(w * x for w, x in zip(self.weights[part.place], (ms, 1, *part.sizes), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {**vars(self), "weights": {place: list(row) for place, row in self.weights.items()}}


Measured = Sequence[tuple[Part, float]]


def fit_correction(students: Sequence[Measured], latencies: Sequence[float]) -> Correction:
    """Fit the correction to whole students, by ridge regression of relative errors.

    A factor of the sum over all parts, one of their number and a constant are free; what a place
    has of its own is penalised, and how much so is chosen by leaving one student out at a time.

    Parameters
    ----------
    students : sequence of sequences of (Part, float)
        Each student's parts, with the milliseconds of each alone.
    latencies : sequence of float
        Milliseconds of each whole student.
    """
    places = list(dict.fromkeys(part.place for parts in students for part, _ in parts))
    own = np.array([[_totals(parts, place) for place in places] for parts in students])
    n, n_places, width = own.shape
    shared = np.column_stack([own.sum(axis=1)[:, :2], np.ones(n)])
    columns = np.concatenate([shared, own.reshape(n, -1)], axis=1)
    scale = np.abs(columns).mean(axis=0)
    scale[scale == 0] = 1
    weighted = columns / scale / np.asarray(latencies)[:, None]
    results = [(*_ridge(weighted, shared.shape[1], penalty), float(penalty)) for penalty in PENALTIES]
    loo_mape, solution, penalty = min(results, key=lambda result: result[0])
    solution = solution / scale
    rows = solution[3:].reshape(n_places, width)
    rows[:, :2] += solution[:2]
    weights = {place: tuple(row.tolist()) for place, row in zip(places, rows, strict=True)}
    return Correction(float(solution[2]), weights, penalty, loo_mape)


def _totals(parts: Measured, place: str) -> Matrix:
    rows = [(ms, 1, *part.sizes) for part, ms in parts if part.place == place]
    width = 2 + len(parts[0][0].sizes)
    totals: Matrix = np.array(rows, dtype=float).reshape(-1, width).sum(axis=0)
    return totals


def _ridge(columns: Matrix, n_shared: int, penalty: float) -> tuple[float, Matrix]:
    """Solve for a target of 1 in every row; return the mean error of rows left out, and the solution."""
    n, width = columns.shape
    penalties = np.full(width, penalty)
    penalties[:n_shared] = SHARED_PENALTY
    solver = np.linalg.solve(columns.T @ columns + np.diag(penalties), columns.T)
    solution = solver @ np.ones(n)
    leverage = np.einsum("ij,ji->i", columns, solver)
    left_out = (1 - columns @ solution) / np.maximum(1 - leverage, 1e-9)
    return float(np.abs(left_out).mean()), solution
