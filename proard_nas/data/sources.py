"""What a source of batches is, and the simplest one: images and labels held in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proard_nas._numbers import whole_number

Batch = tuple[Tensor, Tensor]
Indices = Sequence[int] | NDArray[np.int64] | Tensor


class Source(Protocol):
    """What every room may ask of data: float32 (n, channels, height, width) images and int64 labels, in batches."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def n_batches(self, batch_size: int, *, drop_last: bool = False) -> int:
        """Return how many batches one pass has."""
        ...

    def batches(self, batch_size: int, *, seed: int | None = None, drop_last: bool = False) -> Iterator[Batch]:
        """Pass over the data once: in order if ``seed`` is None, else in an order that the seed decides."""
        ...

    def head(self, n: int, *, seed: int | None = None) -> ArraySource:
        """Return ``n`` images (all, if there are fewer), held in memory: the first ones, or drawn by the seed."""
        ...


def check_source(given: object) -> None:
    """Raise TypeError unless batches can be asked for as a `Source`'s are."""
    if not callable(getattr(given, "batches", None)):
        raise TypeError(
            f"a {type(given).__name__} is no Source of images and labels; allowed: ArraySource(x, y) for tensors, or a "
            "part of prepare(...) for other data"
        )


class ArraySource:
    """Images and labels held in memory, on one device.

    Parameters
    ----------
    x : Tensor of shape (n, channels, height, width)
        float32 images in [0, 1]. Held, not copied.
    y : Tensor of shape (n,)
        int64 labels, on the same device.

    Raises
    ------
    ValueError
        If a type or a shape is another, or the lengths differ.

    Examples
    --------
    >>> source = ArraySource(torch.rand(5, 3, 8, 8), torch.tensor([0, 1, 0, 1, 1]))
    >>> [len(labels) for _, labels in source.batches(2)]
    [2, 2, 1]
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        if x.dtype != torch.float32 or x.ndim != 4:
            raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; allowed: float32 (n, channels, height, width)")
        if y.dtype != torch.int64 or tuple(y.shape) != (len(x),):
            raise ValueError(
                f"y is {y.dtype} of shape {tuple(y.shape)}; allowed: int64 ({len(x)},), one label an image"
            )
        if x.device != y.device:
            raise ValueError(f"x is on {x.device} and y on {y.device}; allowed: one device for both")
        self.x = x
        self.y = y

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> ArraySource:
        """Return the same data on ``device``."""
        return ArraySource(self.x.to(device), self.y.to(device))

    def take(self, indices: Indices) -> ArraySource:
        """Return the images at ``indices``, in that order, as a copy."""
        where = torch.as_tensor(indices, dtype=torch.int64, device=self.x.device)
        return ArraySource(self.x[where], self.y[where])

    def head(self, n: int, *, seed: int | None = None) -> ArraySource:
        """Return the first ``n`` images (a view), or ``n`` drawn without replacement by the seed.

        Parameters
        ----------
        n : int
            How many, at least 1; all images where there are fewer.
        seed : int, optional
            Draws the images; None takes the first ones.
        """
        whole_number("n", n, 1)
        if seed is None:
            return ArraySource(self.x[:n], self.y[:n])
        return self.take(shuffled(len(self), seed)[:n])

    def n_batches(self, batch_size: int, *, drop_last: bool = False) -> int:
        """Return how many batches `batches` yields with the same arguments."""
        return count_batches(len(self), batch_size, drop_last)

    def batches(self, batch_size: int, *, seed: int | None = None, drop_last: bool = False) -> Iterator[Batch]:
        """Pass over the data once.

        Parameters
        ----------
        batch_size : int
            Images in each batch; the last may be shorter.
        seed : int, optional
            Decides the order, alone and the same on every device; None keeps the order, and yields views.
        drop_last : bool, default=False
            Leave a shorter last batch out, unless it is the only one.

        Yields
        ------
        tuple of Tensor
            Images of shape (batch, channels, height, width) and labels of shape (batch,).
        """
        order = None if seed is None else shuffled(len(self), seed).to(self.x.device)
        for i in range(count_batches(len(self), batch_size, drop_last)):
            part = slice(i * batch_size, (i + 1) * batch_size)
            where = part if order is None else order[part]
            yield self.x[where], self.y[where]


def collect(batches: Iterator[Batch], n: int) -> ArraySource:
    """Join batches into an `ArraySource` of their first ``n`` images."""
    parts: list[Batch] = []
    n_found = 0
    for images, labels in batches:
        parts.append((images, labels))
        n_found += len(labels)
        if n_found >= n:
            break
    return ArraySource(torch.cat([x for x, _ in parts])[:n], torch.cat([y for _, y in parts])[:n])


def shuffled(n: int, seed: int) -> Tensor:
    """Return 0..n-1 in an order that the seed alone decides, as an int64 tensor of shape (n,) on the CPU."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def count_batches(n: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches in ``n`` images; a short last one is dropped only if it is not the only one."""
    whole_number("batch_size", batch_size, 1)
    return max(n // batch_size, min(n, 1)) if drop_last else -(-n // batch_size)
