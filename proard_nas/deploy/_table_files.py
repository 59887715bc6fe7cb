"""A latency table as JSON: its parts checked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proard_nas._numbers import finite_number

from ._correcting import Correction
from ._parts import Part


def read_correction(row: Mapping[str, Any]) -> Correction:
    """Return the correction that a file holds."""
    weights = {place: tuple(finite_number("a weight", w) for w in values) for place, values in row["weights"].items()}
    constant, penalty, mape = (finite_number(name, row[name]) for name in ("constant_ms", "penalty", "loo_mape"))
    return Correction(constant, weights, penalty, mape)


def read_part(row: Mapping[str, Any]) -> Part:
    """Return the part that a file holds."""
    return Part(str(row["place"]), str(row["key"]), tuple(int(n) for n in row["sizes"]))


def read_ms(value: Any) -> float:
    """Return milliseconds, or raise ValueError if they are negative or no finite number."""
    if finite_number("ms", value) < 0:
        raise ValueError(f"ms must not be negative, got {value!r}")
    return float(value)
