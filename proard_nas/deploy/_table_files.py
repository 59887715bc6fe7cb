"""A latency table as JSON: its parts checked one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._correcting import Correction
from ._parts import Part


def read_strictly(path: Path) -> Any:
    """Read JSON, or raise ValueError if it is none or holds NaN or infinity."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}")


def read_correction(row: Mapping[str, Any]) -> Correction:
    """Return the correction that a file holds."""
    weights = {place: tuple(_finite("a weight", w) for w in values) for place, values in row["weights"].items()}
    constant, penalty, mape = (_finite(name, row[name]) for name in ("constant_ms", "penalty", "loo_mape"))
    return Correction(constant, weights, penalty, mape)


def read_part(row: Mapping[str, Any]) -> Part:
    """Return the part that a file holds."""
    return Part(str(row["place"]), str(row["key"]), tuple(int(n) for n in row["sizes"]))


def read_ms(value: Any) -> float:
    """Return milliseconds, or raise ValueError if they are negative or no finite number."""
    if _finite("ms", value) < 0:
        raise ValueError(f"ms must not be negative, got {value!r}")
    return float(value)


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)
