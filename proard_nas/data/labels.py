"""Labels of any discrete type mapped to 0..C-1, and checked against the classes of the training data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proard_nas.data.checks import check_several_classes


def encode_labels(
    y: object, num_classes: int | None = None, estimator_name: str = "ProARDEstimator"
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Map labels of any type to 0..C-1.

    Parameters
    ----------
    y : array-like of shape (n,)
        Integers, strings or other discrete labels.
    num_classes : int, optional
        How many classes there are. Integer labels within 0..num_classes-1 then stand for themselves, so that a class
        may have no image here. None takes the distinct labels of y.
    estimator_name : str, default='ProARDEstimator'
        Named in the error for a missing y.

    Returns
    -------
    codes : ndarray of shape (n,)
        int64 labels 0..C-1.
    classes : ndarray of shape (C,)
        The label that each code stands for, in sorted order.

    Raises
    ------
    ValueError
        If y is missing, not one-dimensional, continuous, of one class only, or does not fit ``num_classes``.
    """
    labels = _label_column(y, estimator_name)
    distinct, codes = np.unique(labels, return_inverse=True)
    check_several_classes(distinct.tolist())
    if num_classes is not None and _are_codes(labels, num_classes):
        fits = num_classes - 1 <= np.iinfo(labels.dtype).max
        dtype = labels.dtype if fits else np.promote_types(labels.dtype, np.min_scalar_type(num_classes - 1))
        return labels.astype(np.int64), np.arange(num_classes, dtype=dtype)
    if num_classes in (None, len(distinct)):
        return codes.astype(np.int64), distinct
    raise ValueError(
        f"y holds the {len(distinct)} labels {_shown(distinct.tolist())}, out of range for "
        f"num_classes={num_classes}; allowed: {num_classes} distinct labels, or integers from 0 to {num_classes - 1}"
    )


def encode_known_labels(y: object, classes: NDArray[Any], estimator_name: str = "ProARDEstimator") -> NDArray[np.int64]:
    """Map labels to their places in ``classes``.

    Parameters
    ----------
    y : array-like of shape (n,)
        Labels, each one of ``classes``. Where these are names, the places 0..C-1 themselves may be given, as the
        labels of a dataset are; not where a name is the number of another place.
    classes : ndarray of shape (C,)
        The labels of the training data.
    estimator_name : str, default='ProARDEstimator'
        Named in the error for a missing y.

    Returns
    -------
    ndarray of shape (n,)
        int64 labels 0..C-1.

    Raises
    ------
    ValueError
        If a label is none of ``classes``.
    """
    known, labels = classes.tolist(), _label_column(y, estimator_name).tolist()
    places = {label: place for place, label in enumerate(known)}
    if are_places(labels, known):
        places = {place: place for place in range(len(known))}
    unknown = sorted({label for label in labels if label not in places}, key=str)
    if unknown:
        raise ValueError(f"y holds the labels {unknown[:10]}, unknown from training; allowed: {known}")
    return np.array([places[label] for label in labels], dtype=np.int64)


def check_codes(classes: NDArray[Any], names: list[str] | None) -> None:
    """Raise ValueError if labels that come with their images do not mean training's, or could mean two things.

    A dataset's or loader's labels are 0..C-1. Where training had other numbers as labels, it is not known whether
    theirs are those; where both have names of classes, these must be the same.

    Parameters
    ----------
    classes : ndarray of shape (C,)
        The labels of the training data.
    names : list of str or None
        The names of the dataset's or loader's classes; see `class_names`.
    """
    known = classes.tolist()
    if names is not None and all(isinstance(label, str) for label in known) and names != known:
        raise ValueError(
            f"the given data's classes are [{_shown(names)}], training's are [{_shown(known)}], so that a label means "
            "another class; allowed: training's classes, in their order: open_data(..., classes=est.classes_)"
        )
    if classes.dtype.kind in "iuf" and known != list(range(len(classes))):
        raise ValueError(
            f"the labels of training were [{_shown(known)}], and a dataset's or loader's are taken for 0 to "
            f"{len(classes) - 1}: it is not clear what its labels mean; allowed: arrays X and y with the labels of "
            "training"
        )


def _shown(labels: list[Any]) -> str:
    """Return the first ten labels as text."""
    return ", ".join(map(repr, labels[:10])) + (", ..." if len(labels) > 10 else "")


def _label_column(y: object, estimator_name: str) -> NDArray[Any]:
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import column_or_1d

    if y is None:
        raise ValueError(f"{estimator_name} requires y to be passed, but the target y is None")
    labels: NDArray[Any] = column_or_1d(y.detach().cpu().numpy() if isinstance(y, Tensor) else y, warn=True)
    missing = [i for i, label in enumerate(labels) if label is None] if labels.dtype == object else []
    if missing:
        raise ValueError(f"label {missing[0]} is None; allowed: a class for every image")
    check_classification_targets(labels)
    if labels.dtype.kind in "mM":
        raise ValueError(f"y holds labels of type {labels.dtype}; allowed: numbers and texts")
    return labels


def are_places(labels: list[Any], known: list[Any]) -> bool:
    """Return whether labels are classes' places: no texts, where classes are, none of them the place of another."""
    return not any(isinstance(label, str) for label in labels) and all(
        isinstance(label, str) and (not label.isdecimal() or int(label) == place) for place, label in enumerate(known)
    )


def _are_codes(labels: NDArray[Any], num_classes: int) -> bool:
    return labels.dtype.kind in "iu" and bool(labels.min() >= 0) and bool(labels.max() < num_classes)
