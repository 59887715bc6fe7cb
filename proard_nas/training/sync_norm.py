"""Batch norm over the joined batch of several processes, so that N of them compute what one would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proard_nas import distributed


class JoinedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose batch statistics are those of all processes' images; on any device.

    torch's own ``SyncBatchNorm`` runs on GPUs only; there it is used in place of this one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the statistics of the joined batch in training mode, else by the running ones."""
        return _normalised(self, x) if _is_joined(self) else super().forward(x)


class JoinedBatchNormAct2d(BatchNormAct2d):
    """timm's batch norm with activation, over the joined batch as `JoinedBatchNorm2d` is."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise as `JoinedBatchNorm2d` does, then activate."""
        if not _is_joined(self):
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        return cast(Tensor, self.act(self.drop(_normalised(self, x))))


ON_CPU: dict[type[_BatchNorm], type[_BatchNorm]] = {
    nn.BatchNorm2d: JoinedBatchNorm2d,
    BatchNormAct2d: JoinedBatchNormAct2d,
}
ON_GPU: dict[type[_BatchNorm], type[_BatchNorm]] = {
    nn.BatchNorm2d: nn.SyncBatchNorm,
    BatchNormAct2d: SyncBatchNormAct,
}


def _is_joined(norm: nn.BatchNorm2d) -> bool:
    return norm.training and distributed.is_on()


def _normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalise by the statistics of the joined batch, and record them where the batch norm does so."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    sums = _joined(torch.cat([values.sum((0, 2, 3)), values.new_full((1,), x.numel() / x.shape[1])]))
    mean, count = sums[:-1] / sums[-1], sums[-1]
    centred = values - mean[:, None, None]
    var = _joined(centred.square().sum((0, 2, 3))) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        _record(norm, mean.detach(), (var * count / (count - 1)).detach())
    result = centred * (var[:, None, None] + norm.eps).rsqrt()
    if norm.weight is not None:
        result = result * norm.weight[:, None, None] + norm.bias[:, None, None]
    return result.to(x.dtype)


def _record(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    weight = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, weight)
    norm.running_var.lerp_(var, weight)


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
    """Make a network's batch norms, and those of its live students, use joined statistics inside the block.

    Raises
    ------
    TypeError
        If the network has a batch norm of a kind that is neither torch's nor timm's.
    """
    joined = ON_GPU if next(network.parameters()).device.type == "cuda" else ON_CPU
    norms = [(m, type(m)) for m in network.modules() if isinstance(m, _BatchNorm)]
    unknown = sorted({kind.__name__ for _, kind in norms if kind not in joined})
    if unknown:
        raise TypeError(f"cannot synchronise {unknown}; allowed: {[kind.__name__ for kind in joined]}")
    try:
        for norm, kind in norms:
            norm.__class__ = joined[kind]
            norm.process_group = None  # type: ignore[assignment]
        yield
    finally:
        for norm, kind in norms:
            norm.__class__ = kind
            del norm.process_group
