"""The part of the training data that `fit` held out, found again from the data and the seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from proard_nas.data.inputs import is_array_like, is_pair_of_arrays, source_of
from proard_nas.data.labels import encode_labels
from proard_nas.data.loaders import DatasetSource
from proard_nas.data.scanning import scan
from proard_nas.data.splitting import split_indices


def validation_part(
    X: Any, y: Any = None, *, val_fraction: float, seed: int, num_classes: int | None = None, batch_size: int = 128
) -> tuple[Any, Any]:
    """Return the part of training data that `prepare` with the same arguments validates on, as it was given.

    Parameters
    ----------
    X, y
        The training data: arrays and labels, a map-style dataset, or a plain DataLoader of one.
    val_fraction, seed, num_classes, batch_size
        As for `prepare`.

    Returns
    -------
    X_val, y_val
        Arrays, or a dataset and None.

    Raises
    ------
    ValueError
        If no part can be split off.
    """
    if y is None and is_pair_of_arrays(X):
        X, y = X
    if y is not None or is_array_like(X):
        codes, _ = encode_labels(y, num_classes)
        rows = split_indices(codes, val_fraction, seed)[1]
        return np.asarray(X)[rows], np.asarray(y)[rows]
    source = source_of(X, batch_size)
    if not isinstance(source, DatasetSource):
        raise ValueError(f"no validation part can be split off a {type(X).__name__}; give validation data of its own")
    found = scan(source, batch_size=batch_size)
    return source.take(split_indices(found.labels, val_fraction, seed)[1]).dataset, None
