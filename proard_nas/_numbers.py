"""Checks of single numbers, with errors that name the argument, what was given and what is allowed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def whole_number(name: str, given: Any, least: int) -> int:
    """Return ``given`` as an int.

    Raises
    ------
    ValueError
        If it is no whole number or lies under ``least``.
    """
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {given!r}")
    return int(given)


def finite_number(name: str, given: Any) -> float:
    """Return ``given`` as a float.

    Raises
    ------
    ValueError
        If it is no number, or is NaN or infinite.
    """
    if isinstance(given, bool) or not isinstance(given, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name} must be a number, got {given!r}")
    if not math.isfinite(given):
        raise ValueError(f"{name} must be finite, got {given!r}")
    return float(given)


def positive_number(name: str, given: Any, unit: str) -> float:
    """Return ``given`` as a float above 0; ``unit`` completes the error message."""
    value = finite_number(name, given)
    if value <= 0:
        raise ValueError(f"{name} must be above 0 {unit}, got {given!r}")
    return value


def fraction(name: str, given: Any) -> float:
    """Return ``given`` as a float in [0, 1]."""
    value = finite_number(name, given)
    if not 0 <= value <= 1:
        hint = f"; for {given} % write {value / 100:g}" if 1 < value <= 100 else ""
        raise ValueError(f"{name} must be in [0, 1], got {given!r}{hint}")
    return value
