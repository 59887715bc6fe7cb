"""How far an architecture is from the labelled ones: the part of the uncertainty an ensemble cannot see."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Leverage:
    """The leverage of ridge regression: the variance of its prediction, in units of the noise's.

    Networks that have never seen a choice agree about it, having all learned nothing; the leverage of
    an architecture with that choice is large.

    Parameters
    ----------
    x_mean, x_scale : ndarray of shape (n_features,)
    inverse : ndarray of shape (n_features, n_features)
        Of the scaled features' second moments, with the ridge on the diagonal.
    """

    x_mean: Matrix
    x_scale: Matrix
    inverse: Matrix

    @classmethod
    def of(cls, X: Matrix, noise_to_signal: float, n_causes: int) -> Leverage:
        """Learn where the labels are.

        Parameters
        ----------
        X : ndarray of shape (n, n_features)
        noise_to_signal : float
            Variance of the noise over that of the labels.
        n_causes : int
            How many independent things the features tell. Before anything is known each is taken to
            explain an equal part of the labels' variance, which makes the ridge.
        """
        mean, scale = X.mean(axis=0), X.std(axis=0)
        scale[scale < 1e-12] = 1.0
        Z = (X - mean) / scale
        ridge = max(noise_to_signal, 1e-6) * n_causes
        return cls(mean, scale, np.linalg.inv(Z.T @ Z + ridge * np.eye(X.shape[1])))

    def __call__(self, X: Matrix) -> Matrix:
        """Return the leverages of shape (n,)."""
        Z = (X - self.x_mean) / self.x_scale
        # Never below 0 but for rounding.
        leverages: Matrix = np.maximum(((Z @ self.inverse) * Z).sum(axis=1), 0.0)
        return leverages

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; floats keep all their bits."""
        return {name: array.tolist() for name, array in vars(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Leverage:
        """Build from `to_dict`'s form."""
        return cls(**{name: np.array(values, dtype=np.float64) for name, values in data.items()})
