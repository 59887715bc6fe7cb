"""The modules that networks are built of: normalisation, and timm's layers in the shapes that a plan gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, ConvNormAct
from timm.layers.adaptive_avgmax_pool import adaptive_pool_feat_mult
from torch import Tensor, nn

from proard_nas._errors import check_name

from .layers import Conv, Layer, Norm, Plan

Act = type[nn.Module] | str
POOLS = ("", "avg", "max", "avgmax", "fast", "fastavg", "fastmax", "fastavgmax")


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation for each channel; inputs are in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype  # whole numbers would make integers
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, device=device, dtype=dtype).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images of shape (N, C, H, W)."""
        return (x - self.mean) / self.std


def build_conv(conv: Layer | Plan, device: Any = None, dtype: Any = None) -> nn.Conv2d:
    """Build the convolution of a plan."""
    assert isinstance(conv, Conv)
    return nn.Conv2d(
        conv.inp.channels,
        conv.out.channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        groups=conv.groups,
        bias=conv.bias,
        device=device,
        dtype=dtype,
    )


def build_norm_act(norm: Layer | Plan, act: Act = nn.ReLU, device: Any = None, dtype: Any = None) -> BatchNormAct2d:
    """Build timm's batch norm with the activation after it."""
    assert isinstance(norm, Norm)
    return BatchNormAct2d(norm.axis.channels, act_layer=act, device=device, dtype=dtype)


def build_conv_norm(plan: Plan, act: Act | None = nn.ReLU, device: Any = None, dtype: Any = None) -> ConvNormAct:
    """Build timm's convolution, batch norm and activation from a plan's ``conv`` and ``bn``."""
    conv = plan.layer("conv")
    assert isinstance(conv, Conv)
    return ConvNormAct(
        conv.inp.channels,
        conv.out.channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        groups=conv.groups,
        bias=conv.bias,
        apply_act=act is not None,
        act_layer=act,
        device=device,
        dtype=dtype,
    )


def check_pool(global_pool: str | None) -> None:
    """Raise ValueError for an unknown pooling, and for one that concatenates, which gives more than the channels."""
    if global_pool and adaptive_pool_feat_mult(global_pool) != 1:  # type: ignore[no-untyped-call]
        raise ValueError(
            f"global_pool={global_pool!r} concatenates two poolings, whose classifier has no leading slices for "
            f"smaller students; allowed: {', '.join(map(repr, POOLS))}"
        )
    if global_pool is not None:
        check_name("global_pool", global_pool, POOLS)
