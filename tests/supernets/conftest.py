"""Supernets with every tensor random, so that no equality between students holds by accident of the initial values."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
from torch import nn

import proard_nas  # noqa: F401  (registers the networks)
from proard_nas.supernets import SUPERNETS, Supernet


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor random values: residual branches start at zero, statistics at 0 and 1, kernels at identity."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, scale):
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * scale

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(1 + normal(module.weight, 0.2))
                module.bias.copy_(normal(module.bias, 0.2))
                module.running_mean.copy_(normal(module.running_mean, 0.2))
                module.running_var.copy_(1 + 0.5 * torch.rand(module.running_var.shape, generator=generator))
                module.num_batches_tracked.fill_(3)
            elif getattr(module, "bias", None) is not None:
                module.bias.copy_(normal(module.bias, 0.1))
        for name, parameter in net.named_parameters():
            if "transform" in name:
                parameter.add_(normal(parameter, 0.1))
    return net


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Run these small batches on one thread: threads that wait for each other cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def _original(name: str) -> Supernet:
    return randomise(timm.create_model(name))


@pytest.fixture
def supernet() -> Callable[[str], Supernet]:
    """Give a function that returns a randomised supernet of the given name, the caller's own."""
    return lambda name: copy.deepcopy(_original(name))


# The fine supernet is Dyn-ResNet50 with more ratios to choose from: what it adds is in its space, tested by default.
NETS = [pytest.param(name, marks=[pytest.mark.slow] * name.endswith("_fine")) for name in SUPERNETS]


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> Supernet:
    """Give each registered supernet, randomised, the test's own, in eval mode."""
    return copy.deepcopy(_original(request.param)).eval()


@pytest.fixture
def images() -> Callable[..., torch.Tensor]:
    """Give a function that makes images in [0, 1] for a network."""

    def make(net: nn.Module, n: int = 2, seed: int = 0) -> torch.Tensor:
        height, width = net.cfg.img_size
        return torch.rand(n, net.in_chans, height, width, generator=torch.Generator().manual_seed(seed))

    return make
