"""Which students to measure next: those that will tell the predictor most about all the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from proard_nas._numbers import whole_number
from proard_nas.supernets.architecture import Architecture
from proard_nas.supernets.space import SearchSpace

from .drawing import first_generation
from .predictor import AccuracyPredictor

Matrix = NDArray[np.float64]

N_CANDIDATES = 2000
"""So many architectures, and four for each one asked for, are looked at."""
N_REFERENCES = 1000
"""So many stand for all that the predictor will be asked about."""
TINY = 1e-12
"""A variance to divide by where all labels are equal."""


def choose_architectures(
    predictor: AccuracyPredictor,
    n: int,
    labelled: Sequence[Architecture] = (),
    *,
    seed: int,
    candidates: Sequence[Architecture] | None = None,
) -> list[Architecture]:
    """Choose architectures to label next.

    The predictor's uncertainty is a covariance between architectures: measuring one lowers the variance at all that
    resemble it. One after the other, the candidate is taken that lowers the mean variance most over a reference
    population, and the covariance is updated, so that the next one is sought elsewhere (sequential V-optimal design,
    as in Cohn 1996, "Neural network exploration using optimal experiment design"). Candidates and reference
    population are drawn as a search's first generation is: half of them uniform, half from the smallest sizes to the
    largest, where uniform draws alone never come.

    Parameters
    ----------
    predictor : AccuracyPredictor
        Fitted on the labels so far.
    n : int
        How many to choose, at least 1.
    labelled : sequence of Architecture, default=()
        Never chosen.
    seed : int
        The same predictor, labels and seed give the same choice.
    candidates : sequence of Architecture, default=None
        To choose from these only; the labelled among them, and copies, do not count.

    Returns
    -------
    list of Architecture
        Distinct, the most telling first.

    Raises
    ------
    ValueError
        If fewer than ``n`` others are there.
    sklearn.exceptions.NotFittedError
        If the predictor has seen no labels.
    """
    n = whole_number("n", n, 1)
    rng = np.random.default_rng(seed)
    found = _drawn(predictor.space, n, labelled, rng) if candidates is None else _others(candidates, labelled)
    if len(found) < n:
        raise ValueError(f"there are {len(found)} candidates that are not labelled, {n} were asked for")
    references = first_generation(predictor.space, N_REFERENCES, rng)
    factors = covariance_factors(predictor, [*found, *references])
    chosen = most_telling(factors[: len(found)], factors[len(found) :], n)
    return [found[i] for i in chosen]


def covariance_factors(predictor: AccuracyPredictor, architectures: Sequence[Architecture]) -> Matrix:
    """Return rows whose scalar products are the covariances of the predictor's errors, the noise's variance being 1.

    They have the two parts that `AccuracyPredictor.predict_with_std` knows: the leverage, and the networks'
    disagreement, averaged over natural and robust accuracy.

    Parameters
    ----------
    predictor : AccuracyPredictor
        Fitted.
    architectures : sequence of Architecture, length n

    Returns
    -------
    ndarray of shape (n, k)
    """
    predictor._check_fitted()
    X, leverage = predictor._encode(architectures), predictor._leverage
    outputs = predictor._outputs(X)
    apart = outputs - outputs.mean(axis=0)
    shares = (len(outputs) - 1) / len(outputs)  # of the jackknife's variance, each network's
    noise = np.maximum(predictor._noise**2 + (len(outputs) - 1) * outputs.var(axis=0).mean(axis=0), TINY)
    scaled = apart * np.sqrt(shares / noise / outputs.shape[2])
    disagreement = np.moveaxis(scaled, 0, 1).reshape(len(X), -1)
    near = (X - leverage.x_mean) / leverage.x_scale @ np.linalg.cholesky(leverage.inverse)
    return np.hstack([near, disagreement])


def most_telling(candidates: Matrix, references: Matrix, n: int) -> list[int]:
    """Choose rows one after the other, each lowering the mean variance over the references most.

    Parameters
    ----------
    candidates : ndarray of shape (n_candidates, k)
    references : ndarray of shape (n_references, k)
        The covariance of two rows is their scalar product; the variance of a measurement is 1.
    n : int
        At most ``n_candidates``.

    Returns
    -------
    list of int
        Places of ``n`` different candidates.
    """
    moments = references.T @ references / len(references)
    posterior = candidates.copy()  # the candidates' factors times the covariance of the weights, given what is chosen
    free = np.ones(len(candidates), dtype=bool)
    chosen: list[int] = []
    for _ in range(n):
        told = ((posterior @ moments) * posterior).sum(axis=1)
        gain = told / ((posterior * candidates).sum(axis=1) + 1)
        best = int(np.argmax(np.where(free, gain, -np.inf)))
        direction = posterior[best]
        scale = direction @ candidates[best] + 1
        posterior -= np.outer(candidates @ direction, direction) / scale
        free[best] = False
        chosen.append(best)
    return chosen


def _drawn(
    space: SearchSpace, n: int, labelled: Sequence[Architecture], rng: np.random.Generator
) -> list[Architecture]:
    wanted = max(N_CANDIDATES, 4 * n)
    if space.size <= wanted + len(labelled):
        return _others(space, labelled)
    found = _others(first_generation(space, wanted, rng), labelled)
    return found + space.sample_distinct(max(0, n - len(found)), rng, exclude=[*labelled, *found])


def _others(architectures: Iterable[Architecture], labelled: Sequence[Architecture]) -> list[Architecture]:
    known = set(labelled)
    return [arch for arch in dict.fromkeys(architectures) if arch not in known]
