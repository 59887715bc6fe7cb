"""What a search optimises, and which points no other point beats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from proard_nas._errors import unknown_name

from .candidate import Candidate

DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {
    "natural_accuracy": "maximize",
    "robust_accuracy": "maximize",
    "macs": "minimize",
    "params": "minimize",
    "latency": "minimize",
}


def check_objectives(given: Sequence[str], has_latency: bool) -> tuple[str, ...]:
    """Return the objectives as a tuple.

    Raises
    ------
    ValueError
        If there are none, one is unknown or named twice, or ``'latency'`` is among them and the
        search was given no latency.
    """
    if isinstance(given, str) or not isinstance(given, Iterable) or not list(given):
        raise ValueError(f"objectives must be a list of names from {list(DIRECTIONS)}, got {given!r}")
    for name in given:
        if name not in DIRECTIONS:
            raise unknown_name("objective", name, DIRECTIONS)
    if len(set(given)) != len(given):
        raise ValueError(f"objectives must not name one twice, got {list(given)}")
    if "latency" in given and not has_latency:
        raise ValueError("the objective 'latency' needs latency=, a function from an architecture to milliseconds")
    return tuple(given)


def objective_value(candidate: Candidate, name: str) -> float:
    """Return the candidate's value of one objective, in the objective's own direction."""
    return float(getattr(candidate, "latency_ms" if name == "latency" else name))


def losses(candidates: Sequence[Candidate], objectives: Sequence[str]) -> NDArray[np.float64]:
    """Return the objectives as values to be minimised, of shape (n_candidates, n_objectives)."""
    signs = [-1.0 if DIRECTIONS[name] == "maximize" else 1.0 for name in objectives]
    rows = [[sign * objective_value(c, name) for sign, name in zip(signs, objectives, strict=True)] for c in candidates]
    return np.array(rows, dtype=np.float64).reshape(len(candidates), len(objectives))


def non_dominated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell which rows no other row dominates.

    A row dominates another if it is nowhere larger and somewhere smaller; equal rows do not dominate
    each other, so they stand or fall together.

    Parameters
    ----------
    values : ndarray of shape (n_points, n_objectives)
        Values to be minimised; infinities are allowed.

    Returns
    -------
    ndarray of shape (n_points,), bool

    Raises
    ------
    ValueError
        If a value is NaN: nothing can be said about such a point.
    """
    if np.isnan(values).any():
        raise ValueError(f"row {int(np.isnan(values).any(axis=1).argmax())} of the objectives holds NaN")
    points, places = np.unique(values, axis=0, return_inverse=True)
    keep = np.zeros(len(points), dtype=np.bool_)
    rest = np.arange(len(points))
    while len(rest):
        # The points are in lexicographic order: none of the rest can dominate the first of them.
        keep[rest[0]] = True
        rest = rest[(points[rest] < points[rest[0]]).any(axis=1)]
    mask: NDArray[np.bool_] = keep[places.reshape(-1)]
    return mask


def front_of(candidates: Sequence[Candidate], objectives: Sequence[str]) -> list[Candidate]:
    """Return the candidates that no other dominates, in `sort_key`'s order."""
    if not candidates:
        return []
    mask = non_dominated(losses(candidates, objectives))
    return sorted((c for c, keep in zip(candidates, mask, strict=True) if keep), key=sort_key)


def sort_key(candidate: Candidate) -> tuple[int, int, float, float, str]:
    """Order by MACs, then parameters, then the better robust and natural accuracy."""
    text = str(candidate.architecture)
    return candidate.macs, candidate.params, -candidate.robust_accuracy, -candidate.natural_accuracy, text
