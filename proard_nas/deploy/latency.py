"""How long a student takes for a batch of images on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.layers import SpaceToDepth
from torch import nn

from proard_nas._numbers import whole_number
from proard_nas.supernets import StudentNet, Supernet

from ._machine import machine, versions
from ._runs import check_setting, eval_mode, make_file_run, make_run, torch_threads
from ._timing import check_budget, time_in_turn

PRECISION = 0.01  # standard error of the median over the median, at which an open number of runs is enough
FEWEST_RUNS, MOST_RUNS = 20, 10_000


@dataclasses.dataclass(frozen=True)
class Latency:
    """The measured latency of one network.

    Attributes
    ----------
    median_ms, q25_ms, q75_ms, min_ms : float
        Median, quartiles and least of the runs, in milliseconds for one batch.
    runs : int
        How many runs were timed.
    runtime : str
    batch_size, threads : int
    clock : str
    img_size : (int, int)
        Height and width in pixels.
    machine, versions : dict
        What it was measured on and with.
    """

    median_ms: float
    q25_ms: float
    q75_ms: float
    min_ms: float
    runs: int
    runtime: str
    batch_size: int
    threads: int
    clock: str
    img_size: tuple[int, int]
    machine: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {**dataclasses.asdict(self), "img_size": list(self.img_size)}

    def __str__(self) -> str:
        return (
            f"{self.median_ms:.4g} ms (quartiles {self.q25_ms:.4g} to {self.q75_ms:.4g}, {self.runs} runs; "
            f"{self.runtime}, batch {self.batch_size}, {self.threads} thread{'s' * (self.threads > 1)})"
        )


def measure_latency(
    student: nn.Module | str | os.PathLike[str],
    *,
    runtime: str = "onnxruntime",
    batch_size: int = 1,
    threads: int | None = None,
    repeats: int | None = None,
    warmup: int = 5,
    img_size: int | tuple[int, int] | None = None,
    clock: str = "wall",
    budget_s: float = 5.0,
) -> Latency:
    """Measure how long a student takes for one batch.

    Parameters
    ----------
    student : nn.Module or path
        An extracted student, or any timm model; it is run in eval mode and left in its own modes.
        Or an ONNX file, with ONNX Runtime.
    runtime : {'onnxruntime', 'torch'}, default='onnxruntime'
        ONNX Runtime on the CPU, for which the student is exported (needs the extra ``onnx``), or
        torch as it is, on the student's device.
    batch_size : int, default=1
    threads : int, default=None
        Threads that one run may use; None is torch's present number. Torch's number is the same
        as before afterwards.
    repeats : int, default=None
        Runs to time. None goes on until the median is known to 1 % (its standard error).
    warmup : int, default=5
        Runs before those that are timed.
    img_size : int or (int, int), default=None
        Height and width in pixels; None is the network's own.
    clock : {'wall', 'cpu'}, default='wall'
        ``'cpu'`` is the time that the processor spent in the thread. With one thread on an idle
        machine both agree; on a loaded one it leaves out the time in which others had the
        processor (not what they did to its caches). Needs ``threads=1``.
    budget_s : float, default=5.0
        No run begins after so many seconds, as soon as five have been timed.

    Returns
    -------
    Latency

    Raises
    ------
    ValueError
        If a setting is unknown, not positive or not what a file takes, a supernet was given, which would be
        timed with its slicing, or ONNX Runtime has no layers in the student's number format.
    ImportError
        If ONNX Runtime is not installed.

    Examples
    --------
    >>> import timm, proard_nas
    >>> net = timm.create_model('proard_dyn_resnet_tiny')
    >>> latency = measure_latency(net.extract(net.space.smallest), runtime='torch', repeats=20)
    >>> latency.runs, 0 < latency.min_ms <= latency.median_ms
    (20, True)
    """
    if isinstance(student, Supernet):
        raise ValueError("a supernet cuts its student out in each forward pass; measure supernet.extract(arch)")
    if not isinstance(student, nn.Module) and runtime != "onnxruntime":
        raise ValueError(f"a file is run by ONNX Runtime: give runtime='onnxruntime', not {runtime!r}")
    threads = check_setting(runtime, clock, threads, batch_size)
    rounds = MOST_RUNS if repeats is None else whole_number("repeats", repeats, 1)
    whole_number("warmup", warmup, 0)
    check_budget(budget_s)
    with torch_threads(threads), contextlib.ExitStack() as stack:
        if isinstance(student, nn.Module):
            shape: Sequence[int] = (batch_size, *input_shape(student, img_size))
            stack.enter_context(eval_mode(student))
            run = make_run(student, shape, runtime, threads)
        else:
            run, shape = make_file_run(os.fspath(student), batch_size, threads, _both(img_size))
        done = _is_precise if repeats is None else None
        times = time_in_turn([run], clock, rounds=rounds, warmup=warmup, budget_s=budget_s, done=done)[:, 0]
    q25, median, q75 = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
    return Latency(
        median, q25, q75, float(times.min()), len(times), runtime, batch_size, threads, clock, (shape[2], shape[3]),
        machine(), versions(),
    )  # fmt: skip


def input_shape(network: nn.Module, img_size: int | tuple[int, int] | None = None) -> tuple[int, int, int]:
    """Return channels, height and width of a network's images.

    Raises
    ------
    ValueError
        If a size is not positive, or none was given for a network that does not say its own.
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    own: tuple[int, ...] = tuple(config.get("input_size") or ())
    if isinstance(network, StudentNet):
        own = (network.in_chans, *(own[1:] or network.cfg.img_size))
    elif own:
        own = (_channels(network, config.get("first_conv"), own[0]), *own[1:])
    if not own:
        raise ValueError(f"{type(network).__name__} has no pretrained_cfg with an input_size; measure a timm model")
    height, width = _both(img_size) or own[1:]
    return own[0], height, width


def _channels(network: nn.Module, first: str | Sequence[str] | None, said: int) -> int:
    """Return the channels of a timm model's images: its configuration says 3 whatever ``in_chans`` it was made with."""
    name = first if isinstance(first, str) else next(iter(first or ()), None)
    layer = dict(network.named_modules()).get(name) if name else None
    if not isinstance(layer, nn.Conv2d):
        return said
    folds = any(isinstance(module, SpaceToDepth) for module in network.modules())  # 4x4 pixels into channels, first
    return layer.in_channels // (16 if folds else 1)


def _both(img_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return height and width as given in either form."""
    if img_size is None:
        return None
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(size) != 2:
        raise ValueError(f"img_size must be one number of pixels or (height, width), got {img_size!r}")
    return whole_number("img_size", size[0], 1), whole_number("img_size", size[1], 1)


def _is_precise(times: NDArray[np.float64]) -> bool:
    """Whether the median is known: its standard error, from the median absolute deviation, against `PRECISION`."""
    n = len(times)
    if n < FEWEST_RUNS:
        return False
    median = float(np.median(times))
    deviation = 1.4826 * float(np.median(np.abs(times - median)))
    return 1.2533 * deviation / math.sqrt(n) <= PRECISION * median
