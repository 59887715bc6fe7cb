"""A validation part drawn from the training data, class by class where there are enough images."""

from __future__ import annotations

import logging
import numbers

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


def check_fraction(fraction: object) -> None:
    """Raise ValueError unless the share that is split off is a number above 0 and below 1."""
    if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real) or not 0 < float(fraction) < 1:
        raise ValueError(f"val_fraction is {fraction!r}; allowed: above 0 and below 1")


def split_indices(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the validation part, stratified by class.

    A class of two images or more has at least one in each part, however rare it is; a class of one image stays in
    the training part, so it is trained on and never judged. Where there are too few images to give each class its
    share, the draw is not stratified, but still leaves at least one image of each class for training where that is
    possible.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        int64 labels of the data to split; n is at least 2.
    fraction : float
        Share of the data that goes to the validation part, above 0 and below 1; at least one image goes there.
    seed : int
        Decides the draw.

    Returns
    -------
    train, val : ndarray of int64
        Indices in ascending order; together they are 0..n-1, each once.

    Raises
    ------
    ValueError
        If ``fraction`` is out of range or there are fewer than 2 images.
    """
    from sklearn.model_selection import train_test_split

    check_fraction(fraction)
    n = len(labels)
    if n < 2:
        raise ValueError(f"{n} sample(s) cannot be split into a training and a validation part; allowed: at least 2")
    n_val = min(max(1, round(fraction * n)), n - 1)
    pool = np.flatnonzero(np.bincount(labels)[labels] > 1)
    stratify: NDArray[np.int64] | None = labels[pool]
    n_classes = len(np.unique(labels[pool]))
    if n_val < n_classes or len(pool) - n_val < n_classes:
        logger.warning("too few images to stratify: %d for validation, %d classes of two or more", n_val, n_classes)
        pool, stratify = _spare(labels, n_val, seed), None
    if len(pool) == n_val:
        val = pool
    else:
        train, val = train_test_split(pool, test_size=n_val, random_state=seed % 2**32, stratify=stratify)
        if stratify is not None:
            val, train = _with_every_class(np.sort(val), np.sort(train), labels)
            _, val = _with_every_class(train, val, labels)
    return np.setdiff1d(np.arange(n), val), np.sort(val)


def _with_every_class(
    part: NDArray[np.int64], other: NDArray[np.int64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Swap images of the part's largest class for one of each class that only ``other`` has; no size changes."""
    for label in np.setdiff1d(labels[other], labels[part]):
        given = other[labels[other] == label][0]
        largest = np.bincount(labels[part]).argmax()
        taken = part[labels[part] == largest][0]
        part = np.append(part[part != taken], given)
        other = np.append(other[other != given], taken)
    return part, other


def _spare(labels: NDArray[np.int64], n_val: int, seed: int) -> NDArray[np.int64]:
    """Return all indices but one drawn for each class, or all where that leaves fewer than ``n_val``."""
    order = np.random.default_rng(seed % 2**32).permutation(len(labels))
    kept = order[np.unique(labels[order], return_index=True)[1]]
    spare = np.setdiff1d(np.arange(len(labels)), kept)
    return spare if len(spare) >= n_val else np.arange(len(labels))
