"""Sources of batches that load: a map-style dataset, and a loader used as it is."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from proard_nas._numbers import whole_number
from proard_nas._random import process_seed
from proard_nas.data.checks import checked
from proard_nas.data.seeding import RandomStreams, seeded_pass
from proard_nas.data.sources import ArraySource, Batch, Indices, collect, count_batches, shuffled

LOADER_SETTINGS = (
    "batch_size",
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "in_order",
)


class DatasetSource:
    """A map-style dataset, loaded by a new `torch.utils.data.DataLoader` on each pass.

    Parameters
    ----------
    dataset : Dataset
        Has a length, and gives (image, label) pairs; random transforms draw from the seed of the pass.
    loader_settings : mapping, optional
        Arguments of `DataLoader`, of those in `LOADER_SETTINGS`. A ``batch_size`` there wins over that of `batches`.
    in_chans : int, optional
        Channels that images are converted to, between grey and RGB; None takes them as they are.

    Raises
    ------
    ValueError
        If a setting is none of these.
    """

    def __init__(
        self, dataset: Dataset[Any], loader_settings: Mapping[str, Any] | None = None, in_chans: int | None = None
    ) -> None:
        self.dataset = dataset
        self.in_chans = in_chans
        self.loader_settings = dict(loader_settings or {})
        unknown = sorted(set(self.loader_settings) - set(LOADER_SETTINGS))
        if unknown:
            raise ValueError(f"unknown loader settings {unknown}; allowed: {', '.join(LOADER_SETTINGS)}")

    @classmethod
    def from_loader(cls, loader: DataLoader[Any], in_chans: int | None = None) -> DatasetSource:
        """Take a plain loader's dataset and settings, but for ``drop_last``: whoever makes a pass decides that.

        Parameters
        ----------
        loader : DataLoader
            One that `is_plain_loader` accepts; its own sampler and generator are left alone.
        in_chans : int, optional
            As for the constructor.
        """
        return cls(loader.dataset, {name: getattr(loader, name) for name in LOADER_SETTINGS}, in_chans)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def take(self, indices: Indices) -> DatasetSource:
        """Return the part of the dataset at ``indices``, in that order."""
        rows = torch.as_tensor(indices, dtype=torch.int64).tolist()
        return DatasetSource(Subset(self.dataset, rows), self.loader_settings, self.in_chans)

    def head(self, n: int, *, seed: int | None = None) -> ArraySource:
        """Load the first ``n`` images, or ``n`` drawn by the seed, into memory."""
        whole_number("n", n, 1)
        rows = torch.arange(len(self)) if seed is None else shuffled(len(self), seed)
        return collect(self.take(rows[:n]).batches(min(n, 128)), n)

    def n_batches(self, batch_size: int, *, drop_last: bool = False) -> int:
        """Return how many batches `batches` yields with the same arguments."""
        return count_batches(len(self), self._batch_size(batch_size), drop_last)

    def batch_sizes(self, batch_size: int) -> list[int]:
        """Return the number of images in each batch of `batches` with the same argument."""
        size, n = self._batch_size(batch_size), len(self)
        return [min(size, n - start) for start in range(0, n, size)]

    def batches(
        self, batch_size: int, *, seed: int | None = None, drop_last: bool = False, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Pass over the data once.

        Parameters
        ----------
        batch_size : int
            Images in each batch, where the loader settings hold no size of their own.
        seed : int, optional
            Decides the order and the draws of random transforms; None keeps the order, with the transforms of seed 0.
        drop_last : bool, default=False
            Leave a shorter last batch out, unless it is the only one.
        shard : (int, int), default=(0, 1)
            This process's rank and the number of processes: of each batch only images rank, rank + size, ... are
            loaded.

        Yields
        ------
        tuple of Tensor
            Images of shape (batch, channels, height, width) and labels of shape (batch,), checked for their form.
        """
        size = self._batch_size(batch_size)
        settings = {**self.loader_settings, "batch_size": size, "drop_last": drop_last and len(self) >= size}
        if settings.get("num_workers"):
            settings["worker_init_fn"] = _LeaveSignals(settings.get("worker_init_fn"))
        generator = torch.Generator().manual_seed(seed or 0)
        draws = seed or 0  # of random transforms: each process has its own
        if shard[1] > 1:
            draws = process_seed(draws, shard[0])
            sampler = _ShardedBatches(self.dataset, generator, seed is not None, settings, shard)
            rest = {k: v for k, v in settings.items() if k not in ("batch_size", "drop_last")}
            workers = torch.Generator().manual_seed(draws)
            loader = DataLoader(self.dataset, batch_sampler=sampler, generator=workers, **rest)
        else:
            loader = DataLoader(self.dataset, shuffle=seed is not None, generator=generator, **settings)
        yield from checked(seeded_pass(_explain_collation(loader), draws), in_chans=self.in_chans)

    def _batch_size(self, batch_size: int) -> int:
        size = self.loader_settings.get("batch_size") or batch_size
        whole_number("batch_size", size, 1)
        return int(size)


class _LeaveSignals:
    """Makes a loader's worker leave Ctrl-C, and the first SIGTERM, to the process that takes its batches.

    Both reach the whole group; a loader whose workers have ended raises an error in place of an orderly stop.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = then

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _ignore_once)
        if self._then is not None:
            self._then(worker)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


class _ShardedBatches:
    """The batches of a `DataLoader` with the same arguments, of each the part of one process."""

    def __init__(
        self,
        dataset: Dataset[Any],
        generator: torch.Generator,
        shuffle: bool,
        settings: Mapping[str, Any],
        shard: tuple[int, int],
    ) -> None:
        order = RandomSampler(dataset, generator=generator) if shuffle else SequentialSampler(dataset)  # type: ignore[arg-type]
        self._generator = generator
        self._batches = BatchSampler(order, settings["batch_size"], settings["drop_last"])
        self._rank, self._size = shard

    def __iter__(self) -> Iterator[list[int]]:
        torch.empty((), dtype=torch.int64).random_(generator=self._generator)  # what a DataLoader draws for its workers
        for batch in self._batches:
            part = batch[self._rank :: self._size]
            if part:
                yield part


class LoaderSource:
    """A loader used as it is: its own batch size, its own shuffling.

    Parameters
    ----------
    loader : iterable
        Yields (images, labels) on every pass, such as a DataLoader, timm's PrefetchLoader or a list of batches.
    in_chans : int, optional
        Channels that images are converted to, between grey and RGB; None takes them as they are.

    Raises
    ------
    ValueError
        If it is a one-shot iterator.
    TypeError
        If it does not iterate.
    """

    def __init__(self, loader: object, in_chans: int | None = None) -> None:
        if isinstance(loader, Iterator):
            raise ValueError(
                f"the loader is a {type(loader).__name__}, which can be iterated only once, and training passes over "
                "it many times; allowed: a DataLoader, a list of batches, or any object whose __iter__ starts anew"
            )
        if not isinstance(loader, Iterable) or isinstance(loader, (str, bytes, Mapping)):
            raise TypeError(
                f"a {type(loader).__name__} is no data; allowed: arrays X and y, a Dataset, or a loader that yields "
                "(images, labels)"
            )
        self.loader: Iterable[Any] = loader
        self.in_chans = in_chans
        self._sizes: list[int] | None = None

    def __len__(self) -> int:
        return sum(self._batch_sizes())

    def head(self, n: int, *, seed: int | None = None) -> ArraySource:
        """Load the first ``n`` images of a pass into memory, or ``n`` of a whole pass, drawn by the seed."""
        whole_number("n", n, 1)
        return collect(self.batches(1), n) if seed is None else self._drawn(n, seed)

    def _drawn(self, n: int, seed: int) -> ArraySource:
        """Load the images that the other sources draw by the same seed, in the order of the draw, in one pass."""
        drawn = shuffled(len(self), seed)[:n]
        wanted, first, parts = drawn.sort().values, 0, []
        for images, labels in self.batches(1):
            rows = wanted[(wanted >= first) & (wanted < first + len(labels))] - first
            parts.append((images[rows.to(images.device)], labels[rows.to(labels.device)]))
            first += len(labels)
        found = collect(iter(parts), n)
        places = drawn.argsort().argsort()
        return found.take(places[places < len(found)])  # a loader may yield fewer than last time

    def n_batches(self, batch_size: int, *, drop_last: bool = False) -> int:
        """Return how many batches the last whole pass had; makes one if there was none."""
        sizes = self._batch_sizes()
        return len(sizes) - int(drop_last and len(sizes) > 1 and sizes[-1] < sizes[0])

    def batches(self, batch_size: int, *, seed: int | None = None, drop_last: bool = False) -> Iterator[Batch]:
        """Pass over the loader once.

        Parameters
        ----------
        batch_size : int
            Not used: the loader has its own.
        seed : int, optional
            Where Python's, NumPy's and torch's CPU random streams start while the loader works, and, if its sampler
            has ``set_epoch``, the epoch: a loader that shuffles by a generator of its own is not reached. None means
            0: such a loader has no order of its own to keep.
        drop_last : bool, default=False
            Leave a last batch out that is shorter than the first.

        Yields
        ------
        tuple of Tensor
            Images of shape (batch, channels, height, width) and labels of shape (batch,), checked for their form.
        """
        set_epoch: Callable[[int], None] | None = getattr(getattr(self.loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(seed or 0)
        sizes: list[int] = []
        held: Batch | None = None
        for batch in checked(seeded_pass(_explain_collation(self.loader), seed or 0), in_chans=self.in_chans):
            if held is not None:
                yield held
                held = None
            sizes.append(len(batch[1]))
            if drop_last and sizes[-1] < sizes[0]:
                held = batch
            else:
                yield batch
        self._sizes = sizes

    def _batch_sizes(self) -> list[int]:
        if self._sizes is None:
            self._sizes = [len(labels) for _, labels in self.batches(1)]
        return self._sizes


def is_plain_loader(loader: object) -> bool:
    """Return whether a loader only shuffles or lists a map-style dataset, so that it can be split and rebuilt.

    Parameters
    ----------
    loader : object
        Any loader.
    """
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return False
    if type(loader.batch_sampler) is not BatchSampler or loader.batch_size is None:
        return False
    sampler = loader.sampler
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return type(sampler) is SequentialSampler and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]


def check_sample(dataset: Dataset[Any]) -> None:
    """Raise ValueError if a map-style dataset's first element is no (image tensor, label) pair.

    Parameters
    ----------
    dataset : Dataset
        Has at least one element; its random transforms do not move the global random streams.
    """
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("the dataset is empty; allowed: at least one image of each of 2 classes")
    with RandomStreams(0):
        sample = dataset[0]
    if not isinstance(sample, (tuple, list)) or len(sample) < 2:
        raise ValueError(
            f"the dataset's elements have no labels: the first is a {type(sample).__name__}; allowed: (image, label) "
            "pairs"
        )
    if not isinstance(sample[0], (Tensor, np.ndarray)):
        raise ValueError(
            f"the dataset's images are of type {type(sample[0]).__name__}; allowed: float tensors of shape "
            "(channels, height, width) in [0, 1]. Pass transform=torchvision.transforms.ToTensor() to the dataset."
        )


def _explain_collation(loader: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from loader
    except RuntimeError as error:
        if "equal size" not in str(error):
            raise
        raise ValueError(
            "the images of a batch differ in shape; allowed: one shape for all. Add Resize and CenterCrop to the "
            f"dataset's transforms. ({error})"
        ) from error
