"""Data given after fit: checked against the training data and brought to the same form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from proard_nas.data.checks import check_given
from proard_nas.data.encoding import ArrayEncoder
from proard_nas.data.inputs import class_names, is_array_like, is_loader_or_dataset, is_pair_of_arrays, source_of
from proard_nas.data.labels import check_codes, encode_known_labels
from proard_nas.data.scanning import scan
from proard_nas.data.sources import ArraySource, Source


def labelled_source(X: Any, y: Any, encoder: ArrayEncoder, classes: NDArray[Any], batch_size: int) -> Source:
    """Return labelled data as a source, checked against what was seen in training.

    Parameters
    ----------
    X : array-like, Dataset, loader or tuple (X, y)
    y : array-like of shape (n,) or None
        With arrays only.
    encoder : ArrayEncoder
        Fitted on the training data.
    classes : ndarray of shape (C,)
        Labels of the training data.
    batch_size : int
        For datasets.

    Raises
    ------
    ValueError
        If shapes, pixels, labels or names of classes do not fit, or labels are missing.
    """
    if y is None and is_pair_of_arrays(X):
        X, y = X
    if y is None and is_array_like(X):
        raise ValueError("an array was given without labels; pass y, or a Dataset or loader that yields labels")
    if y is None or is_loader_or_dataset(X):
        if y is not None:
            raise ValueError(f"y was given together with a {type(X).__name__}, which yields labels itself")
        check_codes(classes, class_names(X))
        source = source_of(X, batch_size, encoder.in_chans)
        scan(source, batch_size=batch_size, num_classes=len(classes), image_shape=encoder.image_shape, name="given")
        return source
    images, codes = encoder.transform(X), encode_known_labels(y, classes, encoder.estimator_name)
    return ArraySource(images, torch.from_numpy(codes))


def check_columns(estimator: Any, X: Any, *, reset: bool = False) -> None:
    """Check the names of a data frame's columns against those of `fit`, which notes them with ``reset``.

    Raises
    ------
    ValueError
        If they are others or in another order.
    TypeError
        If only some of them are strings.
    """
    from sklearn.utils.validation import _check_feature_names

    X = X[0] if is_pair_of_arrays(X) else X
    if reset or is_array_like(X):  # a dataset or loader has no names to miss
        _check_feature_names(estimator, X, reset=reset)


def image_batches(X: Any, encoder: ArrayEncoder, batch_size: int) -> Iterator[Tensor]:
    """Yield the images of arrays, a dataset or a loader in batches, in order; labels are left out."""
    if is_array_like(X) or (isinstance(X, list) and not is_loader_or_dataset(X)):
        images = encoder.transform(X)
        yield from (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    else:
        for index, (images, _) in enumerate(source_of(X, batch_size, encoder.in_chans).batches(batch_size)):
            check_given(images, encoder.image_shape, f"batch {index} of the given data")
            yield images
