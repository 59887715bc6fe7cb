"""One full pass over the data before any training: every value checked, labels and channel statistics collected."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

from proard_nas.data.checks import check_given, check_label_range
from proard_nas.data.sources import Source

logger = logging.getLogger(__name__)

STD_FLOOR = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """What a pass over a source found.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        int64 labels, in the order of the pass.
    image_shape : tuple of int
        (channels, height, width).
    means, squares : ndarray of shape (n, channels)
        For each image and channel, the mean of the pixels and of their squares.
    """

    labels: NDArray[np.int64]
    image_shape: tuple[int, int, int]
    means: NDArray[np.float64]
    squares: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)

    def channel_stats(self, indices: NDArray[np.int64] | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel over the images at ``indices`` (default: all).

        The standard deviation is that of the population, and at least 0.01, since networks divide by it. The order of
        the images does not matter, to the last bit.
        """
        rows = slice(None) if indices is None else indices
        mean, square = _exact_mean(self.means[rows]), _exact_mean(self.squares[rows])
        variance = np.maximum(square - mean**2, 0.0)
        return tuple(mean.tolist()), tuple(np.maximum(np.sqrt(variance), STD_FLOOR).tolist())


def scan(
    source: Source,
    *,
    batch_size: int = 128,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    name: str = "training",
) -> Scan:
    """Pass over a source in order, and raise at the first value that training could not use.

    Parameters
    ----------
    source : Source
        What to check.
    batch_size : int, default=128
        Images in each batch, where the source has no size of its own.
    num_classes : int, optional
        Number of classes; None allows any label from 0.
    image_shape : tuple of int, optional
        (channels, height, width) that the images must have; None allows any.
    name : str, default='training'
        Names the data in the errors.

    Returns
    -------
    Scan
        Labels, image shape and statistics.

    Raises
    ------
    ValueError
        If the source is empty, pixels are not finite or outside [0, 1], labels are negative or out of range, or images
        or labels have another form or shape.
    """
    labels, means, squares = [], [], []
    batches = source.batches(batch_size)
    for index, (images, y) in enumerate(tqdm(batches, f"checking {name} data", delay=2, disable=None, leave=False)):
        where = f"batch {index} of the {name} data"
        check_given(images, image_shape, where)
        check_label_range(y, num_classes, where)
        mean, square = _moments(images)
        labels.append(y.cpu().numpy())
        means.append(mean)
        squares.append(square)
    channels, height, width = images.shape[1:]
    found = Scan(np.concatenate(labels), (channels, height, width), np.concatenate(means), np.concatenate(squares))
    _warn_of_oddities(found, name)
    return found


def _exact_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([math.fsum(column) for column in values.T]) / len(values)


def _moments(images: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # NumPy sums in float64 without a copy in float64, many times faster than torch on a busy processor.
    pixels = images.detach().cpu().flatten(2).numpy()
    square = np.einsum("ncp,ncp->nc", pixels, pixels, dtype=np.float64) / pixels.shape[2]
    return pixels.mean(axis=2, dtype=np.float64), square


def _warn_of_oddities(found: Scan, name: str) -> None:
    if np.all(found.squares.mean(axis=0) - found.means.mean(axis=0) ** 2 < 1e-12):
        logger.warning(
            "all pixels of the %s data are equal in each channel: is a conversion to integers at work?", name
        )
    missing = np.flatnonzero(np.bincount(found.labels) == 0)
    if len(missing):
        logger.warning("the %s data has no image with a label of %s", name, ", ".join(map(str, missing[:10])))
