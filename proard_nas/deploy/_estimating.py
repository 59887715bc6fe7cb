"""The latency of a part that was not measured, from those that were."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._parts import Part

FEWEST = 5  # parts at a place from which others at that place are estimated; with fewer, from all parts


class PartEstimator:
    """A Gaussian process for each place: logarithm of the milliseconds against those of the sizes.

    Latency is about a product of powers of the sizes (the linear kernel in logarithms) with steps
    where a kernel library changes its algorithm (the squared exponential one).

    Parameters
    ----------
    measured : mapping of Part to float
        Milliseconds.
    """

    def __init__(self, measured: Mapping[Part, float]) -> None:
        self._measured = measured
        self._models: dict[str, Any] = {}

    def __call__(self, part: Part) -> float:
        """Return the estimated milliseconds of a part."""
        if part.place not in self._models:
            self._models[part.place] = self._fit(part.place)
        return float(np.exp(self._models[part.place].predict([_features(part)])[0]))

    def _fit(self, place: str) -> Any:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        near = {part: ms for part, ms in self._measured.items() if part.place == place}
        near = near if len(near) >= FEWEST else dict(self._measured)
        kernel = ConstantKernel() * DotProduct() + ConstantKernel() * RBF() + WhiteKernel(1e-2)
        model = make_pipeline(StandardScaler(), GaussianProcessRegressor(kernel, normalize_y=True))
        logs = np.log([max(ms, 1e-6) for ms in near.values()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit([_features(part) for part in near], logs)


def _features(part: Part) -> list[float]:
    return [math.log1p(n) for n in part.sizes]
