"""Promises of plans: channel rounding, output sizes, and counts that agree with torch's own modules."""

from __future__ import annotations

import pytest
import torch
from timm.layers import make_divisible as timm_make_divisible
from torch import nn

from proard_nas.supernets.layers import Axis, Conv, Linear, MaxPool, Norm, Plan, make_divisible


def test_channel_rounding_is_the_rule_of_the_mobile_networks():
    for value in [1, 3, 4, 8, 11, 12, 18, 19, 20, 41.6, 51.2, 64 * 0.65, 100, 166.4, 358.0, 664.999, 2048 * 0.65]:
        assert make_divisible(value) == timm_make_divisible(value), value
        assert make_divisible(value) % 8 == 0
        assert make_divisible(value) >= 0.9 * value


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(1, 1, (8, 8)), (3, 2, (9, 7)), (5, 1, (4, 6)), (4, 4, (32, 18))]
)
def test_a_planned_convolution_has_the_size_and_parameters_of_torchs(kernel, stride, size, bias, depthwise):
    inp, out = Axis("a", 16), Axis("b", 16 if depthwise else 24)
    layer = Conv(inp, out, size, kernel, stride, depthwise=depthwise, bias=bias)
    module = nn.Conv2d(
        16, layer.out.channels, kernel, stride, padding=layer.padding, groups=16 if depthwise else 1, bias=bias
    )
    y = module(torch.zeros(1, 16, *size))
    assert layer.out_size == tuple(y.shape[2:])
    assert layer.params == sum(p.numel() for p in module.parameters())
    assert layer.macs == module.weight[0].numel() * y.numel()
    assert layer.shapes == {k: tuple(v.shape) for k, v in module.named_parameters()}
    assert {name: getattr(module, name) for name in layer.attributes} == layer.attributes


def test_norms_and_classifiers_count_as_torchs():
    assert Norm(Axis("a", 12)).params == sum(p.numel() for p in nn.BatchNorm2d(12).parameters())
    assert Norm(Axis("a", 12)).macs == 0
    for bias in (False, True):
        layer, module = Linear(Axis("a", 12), Axis("b", 5), bias), nn.Linear(12, 5, bias)
        assert layer.params == sum(p.numel() for p in module.parameters())
        assert layer.macs == 60
        assert layer.shapes == {k: tuple(v.shape) for k, v in module.named_parameters()}


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (1, 2)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 1), (5, 3)])
def test_a_planned_maximum_has_the_size_of_torchs_and_costs_nothing(kernel, stride, size):
    layer = MaxPool(Axis("a", 4), size, kernel, stride)
    y = nn.MaxPool2d(kernel, stride, kernel // 2)(torch.zeros(1, 4, *size))
    assert layer.out_size == tuple(y.shape[2:])
    assert layer.params == layer.macs == 0
    assert not layer.shapes and not layer.axes


def test_a_plan_sums_its_parts_and_names_its_layers():
    a, b = Axis("a", 3), Axis("b", 8)
    conv, norm, fc = Conv(a, b, (4, 4), 3), Norm(b), Linear(b, Axis("c", 2))
    plan = Plan({"body": Plan({"conv": conv, "bn": norm}), "fc": fc})
    assert dict(plan.layers()) == {"body.conv": conv, "body.bn": norm, "fc": fc}
    assert plan.params == 3 * 8 * 9 + 16 + 18
    assert plan.macs == 3 * 8 * 9 * 16 + 16
    with pytest.raises(TypeError, match="'fc' is a layer"):
        plan.part("fc")
    with pytest.raises(TypeError, match="'body' is a part"):
        plan.layer("body")
