"""Number format and memory layout: measured on this machine, since the wrong choice costs up to twenty times."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from proard_nas._errors import check_name

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Precision:
    """How forward and backward passes are computed; weights stay float32.

    Parameters
    ----------
    dtype : {'float32', 'bfloat16'}, default='float32'
        ``'bfloat16'`` is autocast.
    channels_last : bool, default=False
        Memory layout of images, weights and activations.
    """

    dtype: str = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_name("dtype", self.dtype, DTYPES)

    @property
    def memory_format(self) -> torch.memory_format:
        """The torch memory format."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=DTYPES[self.dtype])

    def prepare(self, network: nn.Module) -> None:
        """Put a network's weights in the memory layout, in place."""
        network.to(memory_format=self.memory_format)

    def images(self, x: Tensor) -> Tensor:
        """Return images in the memory layout."""
        return x.contiguous(memory_format=self.memory_format)

    def __str__(self) -> str:
        return f"{self.dtype}, {'channels_last' if self.channels_last else 'contiguous'}"


CANDIDATES = tuple(Precision(dtype, last) for dtype in DTYPES for last in (False, True))
PRECISIONS = ("auto", *DTYPES)


def fastest(
    step: Callable[[Precision], None], candidates: tuple[Precision, ...] = CANDIDATES, repeats: int = 3
) -> tuple[Precision, dict[str, float]]:
    """Time a step under each candidate and return the fastest.

    Parameters
    ----------
    step : callable
        Runs one training step under a precision and waits for the device.
    candidates : tuple of Precision
    repeats : int, default=3
        Timed runs of each, after one that is not counted; a candidate whose first run takes
        over four times the best is not run again.

    Returns
    -------
    (Precision, dict of str to float)
        The fastest, and the seconds (the smallest of the runs) of each candidate.
    """
    seconds: dict[Precision, float] = {}
    for candidate in candidates:
        best = min(seconds.values(), default=float("inf"))
        first = _time(step, candidate)
        hopeless = first > 4 * best
        seconds[candidate] = first if hopeless else min(_time(step, candidate) for _ in range(repeats))
    choice = min(seconds, key=seconds.__getitem__)
    logger.info("precision: %s", ", ".join(f"{c}: {1e3 * s:.0f} ms" for c, s in seconds.items()))
    return choice, {str(candidate): s for candidate, s in seconds.items()}


def _time(step: Callable[[Precision], None], precision: Precision) -> float:
    start = time.perf_counter()
    step(precision)
    return time.perf_counter() - start
