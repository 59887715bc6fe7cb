"""What an attack must leave untouched: modes, batch norm statistics and the global generators."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proard_nas._errors import check_name
from proard_nas.supernets.supernet import Supernet, statistics_of

from .budget import BATCH_NORM


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of the CPU and of one GPU inside, and put them back as they were.

    Parameters
    ----------
    seed : int or None
        None does nothing.
    device : torch.device, default=None
        The GPU; None is the one in use, if one is. Others get no context of this process, and CUDA that is not in use
        yet is left alone.
    """
    if seed is None:
        yield
        return
    devices = []
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        given = device.index if device is not None and device.type == "cuda" else None
        devices = [torch.cuda.current_device() if given is None else given]
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@contextlib.contextmanager
def attack_mode(model: nn.Module, batch_norm: str = "running", images: Tensor | None = None) -> Iterator[None]:
    """Put a network in eval mode inside; after, every module is as it was, also after an error.

    Parameters
    ----------
    model : nn.Module
    batch_norm : {'running', 'batch', 'clean'}, default='running'
        What batch norms normalise with: their own running statistics; those of each batch they
        are given; or those of ``images``, from one forward pass, fixed for as long as the mode
        lasts. None of them is recorded.
    images : Tensor of shape (N, C, H, W), default=None
        Clean images, for ``'clean'``.

    Raises
    ------
    ValueError
        For an unknown name, or ``'clean'`` without images.
    """
    check_name("batch norm mode", batch_norm, BATCH_NORM)
    if batch_norm == "clean" and images is None:
        raise ValueError("batch_norm='clean' needs the clean images whose statistics are used")
    supernet = model if batch_norm == "clean" and isinstance(model, Supernet) else None
    live, active = (None, {}) if supernet is None else (supernet._net(), supernet._active_statistics)
    modes = [(module, module.training) for module in model.modules()]
    norms: list[Any] = [module for module, _ in modes if isinstance(module, _BatchNorm)]
    saved = [(norm, norm.track_running_stats, norm.momentum, norm._buffers.copy()) for norm in norms]
    try:
        for module, _ in modes:
            module.training = False
        if batch_norm == "batch":
            for norm in norms:
                norm.training, norm.track_running_stats = True, False
        elif batch_norm == "clean" and images is not None and supernet and live:  # the student that a supernet runs
            _use_statistics_of(images, live.eval(), [m for m in live.modules() if isinstance(m, _BatchNorm)])
            supernet._active_statistics = statistics_of(live)
        elif batch_norm == "clean" and images is not None:
            _use_statistics_of(images, model, norms)
        yield
    finally:
        if supernet is not None:
            supernet._active_statistics = active
        for module, mode in modes:
            module.training = mode
        for norm, tracked, momentum, buffers in saved:
            norm.track_running_stats, norm.momentum = tracked, momentum
            norm._buffers.update(buffers)


def _use_statistics_of(images: Tensor, model: nn.Module, norms: Sequence[Any]) -> None:
    """Give batch norms statistics of their own for a while: those of one batch."""
    counts: dict[Any, int] = {}
    for norm in norms:
        like = images if norm.running_mean is None else norm.running_mean
        norm.running_mean = torch.zeros(norm.num_features, dtype=like.dtype, device=like.device)
        norm.running_var = torch.ones_like(norm.running_mean)
        norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=like.device)
        norm.training, norm.track_running_stats, norm.momentum = True, True, 1.0
    hooks = [norm.register_forward_pre_hook(functools.partial(_count, counts)) for norm in norms]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    ran = list(counts)
    for norm, count in zip(ran, _joined([counts[norm] for norm in ran], ran, images.device), strict=True):
        norm.running_var *= (count - 1) / count  # what is recorded is unbiased, what a batch is normalised with is not
    for norm in norms:
        norm.training = False


def _count(counts: dict[Any, int], norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Note over how many numbers a batch norm takes each channel's statistics."""
    counts[norm] = inputs[0].numel() // inputs[0].shape[1]


def _joined(counts: Sequence[int], norms: Sequence[Any], device: torch.device) -> list[float]:
    """Return counts over the images of all processes where the batch norms' statistics are over those."""
    if not any(hasattr(norm, "process_group") for norm in norms) or not distributed.is_initialized():
        return [float(count) for count in counts]
    total = torch.tensor(counts, dtype=torch.float32, device=device)
    distributed.all_reduce(total)
    return total.tolist()
