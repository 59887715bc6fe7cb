"""Supernets with every tensor random, so that no equality between students holds by accident of the initial values.

Large networks are tested in a small form: their own layers and rules, with smaller choices and on smaller images.
"""

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


# Choices in place of a large network's own. The paper's networks are small enough to be tested as they are.
SMALL = {
    "proard_dyn_mobilenetv3_224": {"depths": (1, 2), "expand_ratios": (1, 2), "kernel_sizes": (3, 5)},
    "proard_dyn_proxyless": {"depths": (1, 2), "expand_ratios": (1, 2), "kernel_sizes": (3, 5, 7)},
    "proard_dyn_resnet50_224": {"depths": (0, 1), "width_mults": (0.05, 0.1), "expand_ratios": (0.2, 0.35)},
    "proard_dyn_wide_resnet": {"depths": (1, 2), "width_mults": (0.1, 0.2)},
}
LARGEST_IMAGE = 64  # pixels


@functools.cache
def _created(spec: str) -> nn.Module:
    """Build a network as timm does: ``'<name>'``, ``'<supernet> small'`` or ``'<student> smallest'``."""
    return create(spec)


def create(spec: str, **kwargs: object) -> nn.Module:
    name, _, form = spec.partition(" ")
    supernet = name if name in SUPERNETS else name.replace("proard_", "proard_dyn_", 1)
    if form == "small":
        kwargs |= SMALL[name]
    if form == "smallest":
        with torch.device("meta"):
            kwargs["arch"] = timm.create_model(supernet, **SMALL.get(supernet, {})).space.smallest.to_dict()
    return timm.create_model(name, **kwargs)


@functools.cache
def _original(spec: str) -> Supernet:
    return randomise(create(spec))


@pytest.fixture
def supernet() -> Callable[[str], Supernet]:
    """Give a function that returns a randomised supernet of the given name, the caller's own."""
    return lambda name: copy.deepcopy(_original(name))


def slow_if(condition: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] * condition


# The fine supernet is Dyn-ResNet50 with more ratios to choose from, the 224-pixel ones are the same blocks behind
# another stem, Dyn-ProxylessNAS has those of Dyn-MobileNetV3: what they add is tested by default elsewhere.
NETS = [
    pytest.param(name + " small" * (name in SMALL), marks=slow_if(name.endswith(("_fine", "_224", "_proxyless"))))
    for name in SUPERNETS
]


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> Supernet:
    """Give each registered supernet, randomised, the test's own, in eval mode."""
    return copy.deepcopy(_original(request.param)).eval()


def image_size(net: nn.Module) -> tuple[int, int]:
    return min(net.cfg.img_size, (LARGEST_IMAGE, LARGEST_IMAGE))


@pytest.fixture
def images() -> Callable[..., torch.Tensor]:
    """Give a function that makes images in [0, 1] for a network."""

    def make(net: nn.Module, n: int = 2, seed: int = 0) -> torch.Tensor:
        return torch.rand(n, net.in_chans, *image_size(net), generator=torch.Generator().manual_seed(seed))

    return make


def _forms() -> Iterator[object]:
    """Yield every network that the package registers in timm, in the forms in which it is tested.

    Slow are those that are the same layers again: a default student is the largest, which the supernet is too.
    """
    for name in timm.list_models("proard*"):
        is_supernet = name in SUPERNETS
        large = (name if is_supernet else name.replace("proard_", "proard_dyn_", 1)) in SMALL
        yield pytest.param(name, marks=slow_if(large or name in ("proard_dyn_resnet50_fine", "proard_resnet50")))
        if is_supernet and large:
            yield f"{name} small"
        if not is_supernet:
            yield pytest.param(f"{name} smallest", marks=slow_if(name.endswith(("_224", "_proxyless"))))


@pytest.fixture(params=_forms())
def spec(request: pytest.FixtureRequest) -> str:
    """Give each form in which a registered network is tested; `build` makes it."""
    return request.param


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """Give a function that builds a network of a form, the caller's own."""
    return lambda spec, **kwargs: create(spec, **kwargs) if kwargs else copy.deepcopy(_created(spec))
