"""How far predicted latencies are from measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proard_nas.supernets import Architecture


def compare(
    architectures: Sequence[Architecture], predicted: NDArray[np.float64], times: NDArray[np.float64]
) -> dict[str, Any]:
    """Compare predictions of shape (n,) with times of shape (rounds, n); see `LatencyTable.evaluate`."""
    measured = np.median(times, axis=0)
    halves = np.median(times[::2], axis=0), np.median(times[1::2], axis=0)
    error = predicted / measured - 1
    rows = zip(architectures, measured.tolist(), predicted.tolist(), strict=True)
    return {
        "n": len(architectures),
        "mape": float(np.abs(error).mean()),
        "max_error": float(np.abs(error).max()),
        "bias": float(error.mean()),
        "kendall_tau": _tau(predicted, measured),
        "repeatability_mape": float(np.abs(halves[0] / halves[1] - 1).mean()),
        "repeatability_tau": _tau(*halves),
        "rounds": len(times),
        "students": [{"architecture": a.to_dict(), "measured_ms": m, "predicted_ms": p} for a, m, p in rows],
    }


def _tau(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Kendall's tau, 0 where one side does not vary."""
    from scipy.stats import kendalltau

    return float(kendalltau(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0
