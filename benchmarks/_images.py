"""The images that benchmarks train, label and choose on, and those kept apart for the final figures."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import nn

from proard_nas import quickstart
from proard_nas.data import ArraySource, Part, load_npz

STAND_IN = "synthetic"
N_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, STAND_IN: 10}
DATA_HELP = f"digits, cifar10=FILE.npz, cifar100=FILE.npz, {STAND_IN}"


@dataclasses.dataclass(frozen=True)
class Data:
    """A seed's images; nothing but the final figures sees the test images."""

    train: ArraySource
    validation: ArraySource
    test: ArraySource

    def to(self, device: str) -> Data:
        return Data(self.train.to(device), self.validation.to(device), self.test.to(device))


def named_data(given: str) -> tuple[str, str | None]:
    """Return the data set and file of a ``--data`` argument.

    Raises
    ------
    SystemExit
        If it is none that is allowed.
    """
    data, _, file = given.partition("=")
    if data not in N_CLASSES or data.startswith("cifar") != bool(file):
        raise SystemExit(f"--data {given}: allowed are {DATA_HELP}")
    return data, file or None


@functools.lru_cache(1)
def load(data: str, file: str | None, n_train: int, n_val: int, n_test: int, seed: int) -> Data:
    """Draw a seed's training, validation and test images.

    Raises
    ------
    ValueError
        If there are too few.
    """
    return Data(*training_parts(data, file, n_train, n_val, seed), _drawn(data, file, "test", n_test, seed))


def training_parts(
    data: str, file: str | None, n_first: int, n_second: int, seed: int
) -> tuple[ArraySource, ArraySource]:
    """Draw two disjoint parts of the training images; test images are not read.

    Raises
    ------
    ValueError
        If there are too few.
    """
    drawn = _drawn(data, file, "train", n_first + n_second, seed)
    return drawn.take(range(n_first)), drawn.take(range(n_first, len(drawn)))


def _drawn(data: str, file: str | None, part: Part, n: int, seed: int) -> ArraySource:
    """Draw images of a part: of a file, of the digits as this seed splits them, or of the stand-in."""
    if data == "digits":
        (x, y), test = quickstart.digits(seed)
        source = test if part == "test" else _source(x, y)
    elif data == STAND_IN:
        source = _synthetic(n, part, seed)
    else:
        source = _source(*load_npz(str(file), part))
    kind = "training" if part == "train" else "test"
    if len(source) < n:
        raise ValueError(f"{data} has {len(source)} {kind} images; allowed: at least {n}, which were asked for")
    return source.head(n, seed=seed)


def _source(x: object, y: object) -> ArraySource:
    return ArraySource(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.int64))


def _synthetic(n: int, part: Part, seed: int) -> ArraySource:
    """Return colour images of ten blurred patterns under noise, to try a script out without real photographs."""
    generator = torch.Generator().manual_seed(seed)
    patterns = nn.functional.interpolate(torch.rand(10, 3, 4, 4, generator=generator), size=32, mode="bilinear")
    if part == "test":
        generator.manual_seed(seed + 1_000_000)
    y = torch.arange(n) % 10
    return ArraySource((patterns[y] + 0.1 * torch.randn(n, 3, 32, 32, generator=generator)).clamp(0, 1), y)
