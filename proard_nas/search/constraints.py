"""What a student must keep to: the limits of a search, checked before it and for each candidate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from proard_nas._numbers import fraction, positive_number

from .candidate import Candidate, CostFigures

_UNITS = {
    "max_flops": "MMACs (millions of multiply-accumulates)",
    "min_flops": "MMACs (millions of multiply-accumulates)",
    "max_params": "parameters",
    "max_latency_ms": "ms",
}


@dataclasses.dataclass(frozen=True)
class Constraints:
    """The limits of a search; None leaves a figure free.

    Parameters
    ----------
    max_flops, min_flops : float or None, default=None
        In MMACs, millions of multiply-accumulates for one image: the unit of the paper's "FLOPs".
    max_params : float or None, default=None
        Number of learned parameters.
    max_latency_ms : float or None, default=None
        Milliseconds for one image.
    min_natural_accuracy, min_robust_accuracy : float or None, default=None
        Least predicted accuracy, in [0, 1].

    Raises
    ------
    ValueError
        If a limit is no finite number, is not positive, contradicts another, or an accuracy is
        outside [0, 1].
    """

    max_flops: float | None = None
    min_flops: float | None = None
    max_params: float | None = None
    max_latency_ms: float | None = None
    min_natural_accuracy: float | None = None
    min_robust_accuracy: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.to_dict().items():
            checked = positive_number(name, limit, _UNITS[name]) if name in _UNITS else fraction(name, limit)
            object.__setattr__(self, name, checked)
        if self.min_flops is not None and self.max_flops is not None and self.min_flops > self.max_flops:
            raise ValueError(
                f"min_flops={self.min_flops:.15g} is above max_flops={self.max_flops:.15g} (both in MMACs)"
            )

    def to_dict(self) -> dict[str, float]:
        """Return the limits that are set."""
        return {name: limit for name, limit in vars(self).items() if limit is not None}

    def check_reachable(self, smallest: CostFigures, largest: CostFigures) -> None:
        """Raise ValueError if even the smallest, or the largest, student breaks a limit on cost."""
        if self.max_flops is not None and smallest.macs / 1e6 > self.max_flops:
            raise ValueError(
                f"max_flops={self.max_flops:.15g} MMACs is below the smallest student's {_mmacs(smallest.macs)} MMACs"
            )
        if self.min_flops is not None and largest.macs / 1e6 < self.min_flops:
            raise ValueError(
                f"min_flops={self.min_flops:.15g} MMACs is above the largest student's {_mmacs(largest.macs)} MMACs"
            )
        if self.max_params is not None and smallest.params > self.max_params:
            raise ValueError(
                f"max_params={self.max_params:.15g} is below the smallest student's {smallest.params:,} parameters "
                f"({_mmacs(smallest.macs)} MMACs)"
            )

    def violations(self, candidate: Candidate) -> dict[str, float]:
        """Return, for each limit that is set, by how much it is broken: at most 0 where it is kept.

        Costs count relative to their limit and accuracies as they are, so that one limit's violation
        weighs about as much as another's. MMACs are compared as ``macs / 1e6 <= max_flops``, which is
        exact for every limit written with up to six decimals.
        """
        upper = {
            "max_flops": candidate.mmacs,
            "max_params": candidate.params,
            "max_latency_ms": candidate.latency_ms,
        }
        found = {name: _excess(value, getattr(self, name)) for name, value in upper.items()}
        if self.min_flops is not None:
            found["min_flops"] = (self.min_flops - candidate.mmacs) / self.min_flops
        for name in ("natural_accuracy", "robust_accuracy"):
            floor = getattr(self, f"min_{name}")
            if floor is not None:
                found[f"min_{name}"] = floor - getattr(candidate, name)
        return {name: value for name, value in found.items() if value is not None}

    def are_kept_by(self, candidate: Candidate) -> bool:
        """Whether the candidate breaks no limit."""
        return all(value <= 0 for value in self.violations(candidate).values())

    def nearest(self, candidates: Sequence[Candidate]) -> str:
        """Describe the candidate that comes nearest to keeping the limits, for an error message."""

        def broken(candidate: Candidate) -> dict[str, float]:
            return {name: value for name, value in self.violations(candidate).items() if value > 0}

        near = min(candidates, key=lambda c: (sum(broken(c).values()), c.macs))
        values = {
            "max_flops": f"{_mmacs(near.macs)} MMACs",
            "min_flops": f"{_mmacs(near.macs)} MMACs",
            "max_params": f"{near.params:,} parameters",
            "max_latency_ms": f"{near.latency_ms} ms",
            "min_natural_accuracy": f"a natural accuracy of {near.natural_accuracy:.6g}",
            "min_robust_accuracy": f"a robust accuracy of {near.robust_accuracy:.6g}",
        }
        parts = [f"{name}={getattr(self, name):.15g} (it has {values[name]})" for name in broken(near)]
        return f"the nearest, of {_mmacs(near.macs)} MMACs and {near.params:,} parameters, breaks " + ", ".join(parts)


def _excess(value: float | None, limit: float | None) -> float | None:
    if limit is None:
        return None
    if value is None:
        raise ValueError("a limit on the latency needs candidates with a latency_ms")
    return (value - limit) / limit


def _mmacs(macs: int) -> str:
    return f"{macs / 1e6:.6f}".rstrip("0").rstrip(".")
