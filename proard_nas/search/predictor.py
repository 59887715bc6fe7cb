"""The accuracy-robustness predictor: natural and robust accuracy of a student from its architecture."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proard_nas._numbers import fraction as check_fraction
from proard_nas._numbers import whole_number
from proard_nas.supernets.architecture import Architecture
from proard_nas.supernets.space import SearchSpace, Seed

from .candidate import ACCURACIES, CostFunction
from .features import FeatureEncoder
from .leverage import Leverage
from .perceptron import Perceptron, fit_perceptron
from .scores import check_labels, score

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

logger = logging.getLogger(__name__)

Matrix = NDArray[np.float64]
Report = dict[str, dict[str, float]]

FORMAT = "proard_nas.accuracy_predictor"
VERSION = 1
MIN_LABELS = 10


class AccuracyPredictor:
    """A small ensemble of fully connected networks (sections 4.5 and 5.2 of the paper).

    Each network is trained on all labels but those of its own fold. The folds left out tell how far
    the predictions are off; the networks' disagreement, and the distance from the labels, tell how
    much is known about an architecture. Together they make the uncertainty.

    Parameters
    ----------
    space : SearchSpace
    cost : callable
        Takes an architecture, returns an object with ``macs`` and ``params``.
    hidden_layer_sizes : sequence of int, default=(64, 64)
        Units of each hidden layer.
    n_members : int, default=5
        Networks, and folds; at least 2.
    random_state : int, numpy.random.Generator or None, default=None
        The source of folds and initial weights; the same int and labels give the same predictor.

    Attributes
    ----------
    n_labels_ : int
        How many labels the fitted predictor has seen.

    Raises
    ------
    ValueError
        If a size or the number of members is no whole number, or too small.
    """

    def __init__(
        self,
        space: SearchSpace,
        cost: CostFunction,
        *,
        hidden_layer_sizes: Sequence[int] = (64, 64),
        n_members: int = 5,
        random_state: Seed = None,
    ) -> None:
        self.space = space
        self.cost = cost
        self.hidden_layer_sizes = tuple(whole_number("hidden_layer_sizes", n, 1) for n in hidden_layer_sizes)
        self.n_members = whole_number("n_members", n_members, 2)
        self.random_state = random_state
        self._encode = FeatureEncoder(space, cost)
        self._members: list[Perceptron] = []
        self._noise = np.zeros(len(ACCURACIES))

    # -- fitting ------------------------------------------------------------------------------

    def fit(self, architectures: Sequence[Architecture], labels: ArrayLike) -> AccuracyPredictor:
        """Fit the ensemble.

        Parameters
        ----------
        architectures : sequence of Architecture, length n
            At least 10, and as many as there are members.
        labels : array-like of shape (n, 2)
            Natural and robust accuracy in [0, 1].

        Returns
        -------
        AccuracyPredictor
            Itself.

        Raises
        ------
        ValueError
            If there are too few labels, lengths differ, a label is NaN or outside [0, 1], or an
            architecture is outside the space.
        """
        y = check_labels(architectures, labels)
        least = max(MIN_LABELS, self.n_members)
        if len(y) < least:
            raise ValueError(f"the predictor needs at least {least} labelled architectures, got {len(y)}")
        X = self._encode(architectures)
        rng = np.random.default_rng(self.random_state)
        fold = rng.permutation(len(y)) % self.n_members
        self._members, left_out = [], np.empty_like(y)
        for k in range(self.n_members):
            seed = int(rng.integers(2**31))
            member = fit_perceptron(X[fold != k], y[fold != k], self.hidden_layer_sizes, seed)
            left_out[fold == k] = member.predict(X[fold == k]) - y[fold == k]
            self._members.append(member)
        self._set_uncertainty(X, y, left_out)
        self.n_labels_ = len(y)
        logger.info("fitted %d networks to %d labels, rmse of left-out folds %s", self.n_members, len(y),
                    np.sqrt((left_out**2).mean(axis=0)).round(4))  # fmt: skip
        return self

    def _set_uncertainty(self, X: Matrix, y: Matrix, left_out: Matrix) -> None:
        squares = (left_out**2).mean(axis=0)
        variance = _jackknife_variance(self._outputs(X)).mean(axis=0)
        self._noise = np.sqrt(np.maximum(squares - variance, 0.0))
        signal = y.var(axis=0)
        varying = signal > 0  # labels of one kind may all be equal
        noise_to_signal = float(np.mean(squares[varying] / signal[varying])) if varying.any() else 1.0
        self._leverage = Leverage.of(X, noise_to_signal, len(self.space.genes))

    def holdout(
        self, architectures: Sequence[Architecture], labels: ArrayLike, fraction: float = 0.15, seed: Seed = 0
    ) -> Report:
        """Measure the predictor on labels it has not seen, then fit it to all of them.

        Parameters
        ----------
        architectures, labels
            As in `fit`.
        fraction : float, default=0.15
            Part to hold out: 300 of 2,000 as in the paper. At least two labels are.
        seed : int, numpy.random.Generator or None, default=0
            For the split.

        Returns
        -------
        dict
            The `evaluate` report of the labels held out.

        Raises
        ------
        ValueError
            As `fit`, or if the fraction leaves too few labels to fit.
        """
        y = check_labels(architectures, labels)
        if not 0 < check_fraction("fraction", fraction) < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
        order = np.random.default_rng(seed).permutation(len(y))
        n_held = max(2, round(fraction * len(y)))
        held, rest = order[:n_held], order[n_held:]
        self.fit([architectures[i] for i in rest], y[rest])
        report = self.evaluate([architectures[i] for i in held], y[held])
        self.fit(architectures, y)
        return report

    # -- predicting ---------------------------------------------------------------------------

    def predict(self, architectures: Sequence[Architecture]) -> Matrix:
        """Return natural and robust accuracy in [0, 1].

        Parameters
        ----------
        architectures : sequence of Architecture, length n

        Returns
        -------
        ndarray of shape (n, 2)

        Raises
        ------
        ValueError
            If an architecture is outside the space.
        sklearn.exceptions.NotFittedError
            If `fit` has not been called.
        """
        self._check_fitted()
        return _mean(self._outputs(self._encode(architectures)))

    def predict_with_std(self, architectures: Sequence[Architecture]) -> tuple[Matrix, Matrix]:
        """Return `predict`'s accuracies and their standard deviations, both of shape (n, 2).

        The deviation is that of a measured label from the prediction. It has two parts, whose squares
        add: the error on left-out folds, and what grows away from the labels, which is the networks'
        disagreement or the architecture's leverage, whichever is larger.
        """
        self._check_fitted()
        X = self._encode(architectures)
        outputs = self._outputs(X)
        noise = self._noise**2
        std = np.sqrt(np.maximum(_jackknife_variance(outputs), noise * self._leverage(X)[:, None]) + noise)
        return _mean(outputs), std

    def evaluate(self, architectures: Sequence[Architecture], labels: ArrayLike) -> Report:
        """Compare predictions with labels.

        Parameters
        ----------
        architectures, labels
            As in `fit`; at least two.

        Returns
        -------
        dict
            For ``'natural_accuracy'`` and ``'robust_accuracy'`` a dict with ``rmse`` (on the 0..1 scale),
            ``kendall_tau`` (tau-b; 0 where labels or predictions are all equal), ``r2`` (0 where labels
            are all equal), ``within_1_std`` and ``within_2_std`` (fractions of the errors; 0.68 and 0.95
            if the uncertainty is right) and ``n_labels``.
        """
        y = check_labels(architectures, labels)
        if len(y) < 2:
            raise ValueError(f"an evaluation needs at least 2 labels, got {len(y)}")
        predicted, std = self.predict_with_std(architectures)
        return {name: score(predicted[:, i], std[:, i], y[:, i]) for i, name in enumerate(ACCURACIES)}

    def _outputs(self, X: Matrix) -> Matrix:
        return np.stack([member.predict(X) for member in self._members])

    def _check_fitted(self) -> None:
        if not self._members:
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("this AccuracyPredictor is not fitted; call fit or holdout with labels first")

    # -- keeping it ---------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted predictor as a JSON-able dict; it predicts the same bits when read again."""
        self._check_fitted()
        return {
            "format": FORMAT,
            "version": VERSION,
            "space": self.space.to_dict(),
            "hidden_layer_sizes": list(self.hidden_layer_sizes),
            "n_labels": self.n_labels_,
            "noise": self._noise.tolist(),
            "leverage": self._leverage.to_dict(),
            "members": [member.to_dict() for member in self._members],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], space: SearchSpace, cost: CostFunction) -> AccuracyPredictor:
        """Build the fitted predictor from `to_dict`'s form.

        Raises
        ------
        ValueError
            If it is no predictor, of another version or made for another space.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ValueError(f"this is no predictor: it must say 'format': {FORMAT!r}")
        if data.get("version") != VERSION:
            raise ValueError(f"predictor of version {data.get('version')!r}; this library reads version {VERSION}")
        if SearchSpace.from_dict(data["space"]) != space:
            raise ValueError(f"the predictor was made for another space: {data['space']}, not {space.to_dict()}")
        members = [Perceptron.from_dict(member) for member in data["members"]]
        made = cls(space, cost, hidden_layer_sizes=data["hidden_layer_sizes"], n_members=len(members))
        made._members = members
        made._noise = np.array(data["noise"], dtype=np.float64)
        made._leverage = Leverage.from_dict(data["leverage"])
        made.n_labels_ = int(data["n_labels"])
        return made


def _mean(outputs: Matrix) -> Matrix:
    mean: Matrix = np.clip(outputs.mean(axis=0), 0.0, 1.0)
    return mean


def _jackknife_variance(outputs: Matrix) -> Matrix:
    """Return the variance, over axis 0, of an average whose members each lack one fold of the labels.

    The members share most of their labels, so their plain variance is too small; the delete-a-group
    jackknife (Efron 1982, "The jackknife, the bootstrap and other resampling plans") makes up for it.
    """
    variance: Matrix = (len(outputs) - 1) * outputs.var(axis=0)
    return variance
