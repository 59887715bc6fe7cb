"""Batch norm statistics for one student from training images: no student is evaluated without its own."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from proard_nas import distributed
from proard_nas.supernets import Supernet, is_calibrated, statistics_of
from proard_nas.supernets.supernet import share_statistics

N_IMAGES = 4000
Network = TypeVar("Network", bound=nn.Module)


class UncalibratedError(RuntimeError):
    """A student's batch norm statistics have not been computed for it."""


def calibrate(network: Network, images: Tensor, batch_size: int = 256, *, reduce: bool = False) -> Network:
    """Compute a network's batch norm statistics in one pass over images.

    The statistics are replaced by the average over batches of equal weight. Everything else
    (weights, modes, other students) stays as it is.

    Parameters
    ----------
    network : nn.Module
        A live or extracted student, any network with batch norm, or a supernet, of which the
        active student is calibrated.
    images : Tensor of shape (N, C, H, W)
        *Training* images in [0, 1]; the library's default is 4,000.
    batch_size : int, default=256
    reduce : bool, default=False
        Share the batches between the processes of a distributed run, which must all make this call with the same
        images; the statistics are those of a single process.

    Returns
    -------
    nn.Module
        The same network, whose statistics changed in place.

    Raises
    ------
    ValueError
        If there is no image.
    """
    if len(images) == 0:
        raise ValueError("calibration needs at least one image, got none")
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if isinstance(network, Supernet) and network.active != network.space.largest:
        student = calibrate(network.student(network.active), images, batch_size, reduce=reduce)
        share_statistics_of_active(network, student)
        return network
    modes = [(module, module.training) for module in network.modules()]
    momenta = [norm.momentum for norm in norms]
    device = next(network.parameters()).device
    chunks = even_chunks(images, batch_size)
    if reduce:
        chunks = chunks[distributed.rank() :: distributed.world_size()]
    try:
        network.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None
        with torch.no_grad():
            for batch in chunks:
                network(batch.to(device))
            if reduce:
                _average(norms, len(chunks))
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return network


def _average(norms: list[nn.modules.batchnorm._BatchNorm], n_batches: int) -> None:
    """Average statistics over the processes, each weighted by its number of batches."""
    statistics = [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
    count = torch.full((), float(n_batches), device=statistics[0].device) if statistics else torch.zeros(())
    for tensor in statistics:
        tensor.mul_(n_batches)
    distributed.sum_in_place([*statistics, count])
    for tensor in statistics:
        tensor.div_(count)
    for norm in norms:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(int(count))


def share_statistics_of_active(supernet: Supernet, student: nn.Module) -> None:
    """Give a supernet's active student the statistics of its live copy."""
    supernet._active_statistics = {name: value.clone() for name, value in statistics_of(student).items()}
    share_statistics(student, supernet._active_statistics)


def even_chunks(images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Split images into batches of nearly equal size, none larger than ``batch_size``."""
    return images.tensor_split(-(-len(images) // batch_size))


def require_calibrated(network: nn.Module) -> None:
    """Raise `UncalibratedError` unless every batch norm of a network has statistics of its own."""
    if not is_calibrated(network):
        raise UncalibratedError(
            "this network's batch norm statistics have not been computed for it: calibrate it on training images "
            "first (proard_nas.evaluation.calibrate), as ProARDEstimator and SearchResult.extract do"
        )
