"""Labels of architectures, and how far predictions are from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from proard_nas.supernets.architecture import Architecture

from .candidate import ACCURACIES

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Matrix = NDArray[np.float64]


def check_labels(architectures: Sequence[Architecture], labels: ArrayLike) -> Matrix:
    """Return the labels as an array of shape (n, 2).

    Raises
    ------
    ValueError
        If the shape is another, the number is not that of the architectures, or a label is NaN or
        outside [0, 1].
    """
    y = np.asarray(labels, dtype=np.float64)
    if y.ndim != 2 or y.shape[1] != len(ACCURACIES):
        raise ValueError(f"labels must have shape (n, 2), natural and robust accuracy, got {y.shape}")
    if len(y) != len(architectures):
        raise ValueError(f"there are {len(architectures)} architectures and {len(y)} labels")
    wrong = ~((y >= 0) & (y <= 1))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(f"labels must be in [0, 1], got {ACCURACIES[column]}={y[row, column]} for architecture {row}")
    return y


def score(predicted: Matrix, std: Matrix, y: Matrix) -> dict[str, float]:
    """Return one output's figures, as `AccuracyPredictor.evaluate` documents them.

    Parameters
    ----------
    predicted, std, y : ndarray of shape (n,)
        Predictions, their standard deviations and the labels.
    """
    from scipy.stats import kendalltau

    errors = predicted - y
    varies = np.ptp(y) > 0
    ranked = varies and np.ptp(predicted) > 0
    return {
        "rmse": float(np.sqrt((errors**2).mean())),
        "kendall_tau": float(kendalltau(predicted, y).statistic) if ranked else 0.0,
        "r2": float(1 - (errors**2).sum() / ((y - y.mean()) ** 2).sum()) if varies else 0.0,
        "within_1_std": float((np.abs(errors) <= std).mean()),
        "within_2_std": float((np.abs(errors) <= 2 * std).mean()),
        "n_labels": float(len(y)),
    }
