"""The picture of a search: which points are where, apart from how they are drawn."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .candidate import ACCURACIES, Candidate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .result import GenerationRecord, SearchResult

Points = NDArray[np.float64]

_LABELS = {
    "natural_accuracy": "natural accuracy (%)",
    "robust_accuracy": "robust accuracy (%)",
    "macs": "MMACs",
    "params": "parameters (millions)",
    "latency": "latency (ms)",
}


@dataclasses.dataclass(frozen=True)
class PlotData:
    """The points of the picture, each an array of shape (n, 2), accuracies in percent.

    Parameters
    ----------
    axes : tuple of str
        The two objectives drawn, x first; MACs and the objective where there is only one.
    front : ndarray
        Predicted figures of the front, by rising x.
    verified : ndarray
        Measured figures of those that have been verified.
    first, last : ndarray
        Predicted figures of the first generation and of the last one's survivors, as far as they keep
        all limits; empty where an axis was not recorded for them.
    population : ndarray
        The labelled students.
    best : ndarray of shape (1, 2)
        The predicted figures of the best student.
    """

    axes: tuple[str, str]
    front: Points
    verified: Points
    first: Points
    last: Points
    population: Points
    best: Points

    @property
    def labels(self) -> tuple[str, str]:
        """The axes' labels, with units."""
        return _LABELS[self.axes[0]], _LABELS[self.axes[1]]


def plot_data(result: SearchResult, population: ArrayLike | None = None) -> PlotData:
    """Collect the points of a result's picture.

    Parameters
    ----------
    result : SearchResult
    population : array-like of shape (n, 2) or (n, 3), default=None
        Natural and robust accuracy of labelled students in [0, 1], and as a third column their MMACs. None is the
        result's own, where it has what the axes need.

    Raises
    ------
    ValueError
        If the population's shape is another, it holds NaN, or it lacks a column that is an axis.
    """
    x, y = result.objectives[:2] if len(result.objectives) > 1 else ("macs", result.objectives[0])
    if population is None and {x, y} <= {*ACCURACIES, "macs"}:
        population = result.population
    front = _points([_predicted(candidate, x, y) for candidate in result.front])
    records = result.generations
    return PlotData(
        axes=(x, y),
        front=front[np.lexsort((front[:, 1], front[:, 0]))],
        verified=_points([_measured(candidate, x, y) for candidate in result.front if candidate.is_verified]),
        first=_recorded(records[0], x, y) if records else _points([]),
        last=_recorded(records[-1], x, y) if records else _points([]),
        population=_labelled(population, x, y),
        best=_points([_predicted(result.best, x, y)]),
    )


def draw(data: PlotData, ax: Axes | None = None) -> Axes:
    """Draw the points; see `SearchResult.plot`."""
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError('plot needs matplotlib: pip install "proard-nas[report]"') from error
        ax = plt.subplots()[1]
    layers = (
        (data.population, "labelled students", "o", "0.75", 12.0),
        (data.first, "first generation", "o", "tab:orange", 12.0),
        (data.last, "last generation", "o", "tab:blue", 12.0),
    )
    for points, label, marker, colour, size in layers:
        if len(points):
            ax.scatter(points[:, 0], points[:, 1], s=size, c=colour, marker=marker, label=label, alpha=0.6)
    ax.plot(data.front[:, 0], data.front[:, 1], "-o", color="tab:red", markersize=4, label="front (predicted)")
    if len(data.verified):
        ax.plot(data.verified[:, 0], data.verified[:, 1], "k*", markersize=10, label="verified (measured)")
    ax.plot(data.best[:, 0], data.best[:, 1], "o", color="tab:red", fillstyle="none", markersize=12, label="best")
    ax.set_xlabel(data.labels[0])
    ax.set_ylabel(data.labels[1])
    ax.legend()
    return ax


def _scaled(name: str, value: float) -> float:
    if name in ACCURACIES:
        return 100 * value
    return value if name == "latency" else value / 1e6


def _predicted(candidate: Candidate, x: str, y: str) -> tuple[float, float]:
    figures = vars(candidate) | {"latency": candidate.latency_ms}
    return _scaled(x, figures[x]), _scaled(y, figures[y])


def _measured(candidate: Candidate, x: str, y: str) -> tuple[float, float]:
    measured = candidate.measured or {}
    figures = vars(candidate) | {"latency": measured.get("latency_ms", candidate.latency_ms)}
    figures |= {name: float(measured[name]) for name in ACCURACIES if name in measured}
    return _scaled(x, figures[x]), _scaled(y, figures[y])


def _recorded(record: GenerationRecord, x: str, y: str) -> Points:
    figures = vars(record)
    if x not in figures or y not in figures:
        return _points([])
    members = zip(figures[x], figures[y], record.feasible, strict=True)
    return _points([(_scaled(x, a), _scaled(y, b)) for a, b, feasible in members if feasible])


def _labelled(population: ArrayLike | None, x: str, y: str) -> Points:
    if population is None:
        return _points([])
    values = np.asarray(population, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] not in (2, 3) or not np.isfinite(values).all():
        raise ValueError(
            "population must be finite numbers of shape (n, 2), natural and robust accuracy, or (n, 3) with MMACs, "
            f"got shape {values.shape}"
        )
    columns = {"natural_accuracy": 100 * values[:, 0], "robust_accuracy": 100 * values[:, 1]}
    if values.shape[1] == 3:
        columns["macs"] = values[:, 2]
    for name in (x, y):
        if name not in columns:
            hint = "; add the MMACs as a third column" if name == "macs" else ""
            raise ValueError(f"the population has no {name}, which is an axis of this result's plot{hint}")
    return np.column_stack([columns[x], columns[y]])


def _points(rows: list[tuple[float, float]]) -> Points:
    return np.array(rows, dtype=np.float64).reshape(-1, 2)
