"""Batch norm over the joined batch of several processes, so that N of them compute what one would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from proard_nas import distributed


class JoinedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose batch statistics are those of all processes' images; on any device.

    torch's own ``SyncBatchNorm`` runs on GPUs only; there it is used in place of this one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the statistics of the joined batch in training mode, else by the running ones."""
        if not self.training or not distributed.is_on():
            return super().forward(x)
        values = x.float()
        count = _joined(x.new_full((1,), x.numel() / x.shape[1], dtype=torch.float32))
        mean = _joined(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        var = _joined(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            self._record(mean.detach(), (var * count / (count - 1)).detach())
        result = centred * (var[:, None, None] + self.eps).rsqrt()
        if self.weight is not None:
            result = result * self.weight[:, None, None] + self.bias[:, None, None]
        return result.to(x.dtype)

    def _record(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(var, weight)


class _Joined(torch.autograd.Function):
    """Sum over the processes, of which each has a part of the loss: their gradients are summed alike."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _joined(tensor: Tensor) -> Tensor:
    return cast(Tensor, _Joined.apply(tensor))


@contextlib.contextmanager
def synced_batch_norm(network: nn.Module) -> Iterator[None]:
    """Make a network's batch norms, and those of its live students, use joined statistics inside the block."""
    norms = [m for m in network.modules() if type(m) is nn.BatchNorm2d]
    kind = nn.SyncBatchNorm if next(network.parameters()).device.type == "cuda" else JoinedBatchNorm2d
    try:
        for norm in norms:
            norm.__class__ = kind  # type: ignore[assignment]
            norm.process_group = None  # type: ignore[assignment]
        yield
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d
            del norm.process_group
