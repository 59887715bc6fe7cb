"""Telling apart what a user gave: arrays, a dataset, or a loader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from proard_nas.data.loaders import DatasetSource, LoaderSource, check_sample, is_plain_loader


def class_names(data: Any) -> list[str] | None:
    """Return the names of a dataset's (or a loader's dataset's) classes, or None where it has none.

    They are its ``classes``, as in torchvision, or its reader's ``class_to_idx``, as in timm.
    """
    dataset = data if isinstance(data, Dataset) else getattr(data, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    places = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if names is None and places and sorted(places.values()) == list(range(len(places))):
        names = sorted(places, key=places.__getitem__)
    return list(map(str, names)) if isinstance(names, (Sequence, np.ndarray)) and not isinstance(names, str) else None


def is_array_like(data: Any) -> bool:
    """Return whether this is one array: a tensor, an array, a data frame or a sparse matrix."""
    if isinstance(data, np.generic):  # a number
        return False
    return isinstance(data, Tensor) or any(hasattr(data, name) for name in ("__array__", "iloc", "toarray"))


def is_pair_of_arrays(data: Any) -> bool:
    """Return whether this is a tuple (X, y) of arrays or lists, rather than a tuple of two batches."""
    return isinstance(data, tuple) and len(data) == 2 and all(map(_is_array_like_or_rows, data))


def _is_array_like_or_rows(data: Any) -> bool:
    rows = isinstance(data, list) and len(data) > 0 and not isinstance(data[0], (Tensor, np.ndarray, tuple))
    return rows or is_array_like(data)


def is_loader_or_dataset(data: Any) -> bool:
    """Return whether this brings labels of its own: a dataset, a loader or a list of batches."""
    if isinstance(data, (Dataset, DataLoader)):
        return True
    if isinstance(data, (list, tuple)):
        return bool(data) and isinstance(data[0], (list, tuple)) and any(map(is_array_like, data[0]))
    return hasattr(data, "__iter__") and not is_array_like(data)


def source_of(data: Any, batch_size: int, in_chans: int | None = None) -> DatasetSource | LoaderSource:
    """Return the source for a dataset or a loader.

    Parameters
    ----------
    data : Dataset or iterable
    batch_size : int
        For an iterable dataset, which needs one now.
    in_chans : int, optional
        Channels that images are converted to, between grey and RGB; None takes them as they are.
    """
    if isinstance(data, IterableDataset):
        return LoaderSource(DataLoader(data, batch_size=batch_size), in_chans)
    if isinstance(data, Dataset):
        check_sample(data)
        return DatasetSource(data, in_chans=in_chans)
    if is_plain_loader(data):
        if data.collate_fn is default_collate:
            check_sample(data.dataset)
        return DatasetSource.from_loader(data, in_chans)
    return LoaderSource(data, in_chans)
