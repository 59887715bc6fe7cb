"""One student of a search: its architecture, its cost, its predicted and its measured figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from proard_nas._numbers import finite_number, fraction, whole_number
from proard_nas.supernets.architecture import Architecture

ACCURACIES = ("natural_accuracy", "robust_accuracy")
ON_CARD = (*ACCURACIES, "attack", "eps", "n_images", "split")


class CostFigures(Protocol):
    """What a cost must tell: multiply-accumulates and parameters, both whole numbers."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""

    @property
    def params(self) -> int:
        """Number of learned parameters."""


CostFunction = Callable[[Architecture], CostFigures]
PredictFunction = Callable[[Sequence[Architecture]], NDArray[np.float64]]
LatencyFunction = Callable[[Architecture], float]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One student that a search has looked at.

    Parameters
    ----------
    architecture : Architecture
    macs : int
        Multiply-accumulates for one image.
    params : int
        Number of learned parameters.
    natural_accuracy, robust_accuracy : float
        As predicted, in [0, 1].
    latency_ms : float or None, default=None
        Milliseconds for one image, where the search was given a latency.
    measured : dict or None, default=None
        Figures measured on the student itself, such as ``{'natural_accuracy': 0.86}`` (in [0, 1]);
        text such as an attack's name may stand among them.

    Raises
    ------
    ValueError
        If a figure is NaN, infinite or out of its range.
    """

    architecture: Architecture
    macs: int
    params: int
    natural_accuracy: float
    robust_accuracy: float
    latency_ms: float | None = None
    measured: dict[str, float | int | str] | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.architecture, Architecture):
            raise ValueError(f"architecture must be an Architecture, got {self.architecture!r}")
        for name in ("macs", "params"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 0))
        for name in ACCURACIES:
            object.__setattr__(self, name, fraction(name, getattr(self, name)))
        if self.latency_ms is not None:
            latency = finite_number("latency_ms", self.latency_ms)
            if latency < 0:
                raise ValueError(f"latency_ms must not be negative, got {latency}")
            object.__setattr__(self, "latency_ms", latency)
        if self.measured is not None:
            object.__setattr__(self, "measured", _check_measured(self.measured))

    @property
    def mmacs(self) -> float:
        """Millions of multiply-accumulates (MMACs), the unit of ``max_flops``."""
        return self.macs / 1e6

    @property
    def is_verified(self) -> bool:
        """Whether natural and robust accuracy have both been measured."""
        return self.measured is not None and all(name in self.measured for name in ACCURACIES)

    @property
    def mean_accuracy(self) -> float:
        """Mean of natural and robust accuracy: the measured ones if verified, else the predicted ones."""
        figures = self.measured if self.is_verified and self.measured is not None else vars(self)
        return (float(figures["natural_accuracy"]) + float(figures["robust_accuracy"])) / 2

    @property
    def card_figures(self) -> dict[str, float | int | str]:
        """The measured figures as a student's ``metadata`` and its model card hold them.

        Empty unless both accuracies, the attack and its eps are known: without these a card cannot say what it shows.
        """
        measured: dict[str, float | int | str] = {"split": "validation", **(self.measured or {})}
        if not {*ACCURACIES, "attack", "eps"} <= set(measured):
            return {}
        return {name: measured[name] for name in ON_CARD if name in measured}

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {**vars(self), "architecture": self.architecture.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Candidate:
        """Build the value from `to_dict`'s form.

        Raises
        ------
        ValueError
            If a field is missing or unknown, or a figure is out of its range.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(data, Mapping) or sorted(data) != sorted(fields):
            given = sorted(data) if isinstance(data, Mapping) else data
            raise ValueError(f"a candidate must have the fields {sorted(fields)}, got {given}")
        return cls(**{**data, "architecture": Architecture.from_dict(data["architecture"])})


def _check_measured(given: Any) -> dict[str, float | int | str]:
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"measured must be a non-empty mapping of names to figures, got {given!r}")
    checked: dict[str, float | int | str] = {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise ValueError(f"measured must have text as names, got {name!r}")
        if name.endswith("_accuracy"):
            checked[name] = fraction(f"measured {name}", value)
        elif isinstance(value, (str, int)):
            checked[name] = value
        else:
            checked[name] = finite_number(f"measured {name}", value)
    return checked
