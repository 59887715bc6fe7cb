"""Promises of costs: the analytic count is what a running network does, for any architecture and image size."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from proard_nas.supernets import SUPERNETS

# The fine supernet is Dyn-ResNet50 with more ratios to choose from.
NETS = [pytest.param(name, marks=[pytest.mark.slow] * name.endswith("_fine")) for name in SUPERNETS]
# On these 200 runs take long: without data, and few by default.
LARGE = ("proard_dyn_mobilenetv3_224", "proard_dyn_proxyless", "proard_dyn_resnet50_224", "proard_dyn_wide_resnet")


@pytest.fixture(scope="module", params=NETS)
def shape(request):
    with torch.device("meta"):
        return timm.create_model(request.param)


def on_meta(net, arch):
    return net.student_type(net.cfg, arch, num_classes=net.num_classes, in_chans=net.in_chans, device="meta").eval()


def image(student, size):
    return torch.zeros(1, student.in_chans, *size, device=next(student.parameters()).device)


def hook_count(student, size):
    """Count multiply-accumulates while the network runs."""
    total = 0

    def add(module, _inputs, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    counted = [m for m in student.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    hooks = [m.register_forward_hook(add) for m in counted]
    with torch.no_grad():
        student(image(student, size))
    for hook in hooks:
        hook.remove()
    return total


def assert_costs_are_those_of_running_networks(shape, n, device):
    rng = np.random.default_rng(0)
    for arch in [shape.space.largest, shape.space.smallest, *(shape.space.sample(rng) for _ in range(n))]:
        student, cost = on_meta(shape, arch).to_empty(device=device), shape.cost(arch)
        assert cost.macs == hook_count(student, shape.cfg.img_size), arch
        assert cost.params == sum(p.numel() for p in student.parameters()), arch
        assert student.cost() == cost


def test_costs_of_random_architectures_are_those_of_the_running_networks(shape):
    if shape.default_cfg["architecture"] in LARGE:
        assert_costs_are_those_of_running_networks(shape, 3, "meta")
    else:
        assert_costs_are_those_of_running_networks(shape, 20, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPERNETS)
def test_costs_of_many_random_architectures_are_those_of_the_running_networks(name):
    with torch.device("meta"):
        shape = timm.create_model(name)
    assert_costs_are_those_of_running_networks(shape, *((100, "meta") if name in LARGE else (200, "cpu")))


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (224, 192)])
def test_costs_at_other_image_sizes_are_those_of_the_running_networks(shape, size):
    for seed in range(2):
        arch = shape.space.sample(seed)
        student = on_meta(shape, arch)
        assert shape.cost(arch, img_size=size).macs == hook_count(student, size)
        assert student.feature_size(size) == tuple(student.forward_features(image(student, size)).shape[2:])


@pytest.mark.parametrize("name", ["proard_dyn_mobilenetv3", "proard_dyn_resnet_tiny", "proard_dyn_wide_resnet"])
def test_what_is_no_architecture_of_the_family_has_no_cost(name):
    with torch.device("meta"):
        net, other = timm.create_model("proard_dyn_resnet50"), timm.create_model(name)
    for network, arch in ((net, other.space.smallest), (other, net.space.smallest)):
        with pytest.raises(ValueError, match="outside the search space"):
            network.cost(arch)
    with pytest.raises(ValueError, match="expected an Architecture, got dict"):
        net.cost(net.arch.to_dict())


def test_one_number_is_a_square_image(shape):
    arch = shape.space.sample(0)
    assert shape.cost(arch, img_size=48) == shape.cost(arch, img_size=(48, 48)) != shape.cost(arch)


def test_torchs_own_counter_sees_two_operations_for_each_multiply_accumulate(shape):
    for seed in range(3):
        arch = shape.space.sample(seed)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            on_meta(shape, arch)(image(shape, shape.cfg.img_size))
        assert counter.get_total_flops() == 2 * shape.cost(arch).macs


def test_costs_follow_image_channels_and_classes(shape):
    with torch.device("meta"):
        other = timm.create_model(shape.default_cfg["architecture"], num_classes=7, in_chans=5)
    arch = other.space.sample(1)
    student = on_meta(other, arch)
    cost = other.cost(arch)
    assert cost.params == sum(p.numel() for p in student.parameters())
    assert cost.macs == hook_count(student, other.cfg.img_size)


def test_costs_follow_the_classifier_that_is_there(shape):
    arch = shape.space.sample(2)
    with torch.device("meta"):
        student = timm.create_model(shape.cfg.student, arch=arch, num_classes=0)
        reset = timm.create_model(shape.cfg.student, arch=arch)
        reset.reset_classifier(0)
    for net in (student, reset):
        assert net.cost().params == sum(p.numel() for p in net.parameters())
