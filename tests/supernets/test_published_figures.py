"""Published figures: sizes of the spaces, parameters and multiply-accumulates of the networks."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

from proard_nas.supernets import Cost


def build(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def numel(net):
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(scope="module")
def resnet50():
    return build("proard_dyn_resnet50")


@pytest.fixture(scope="module")
def mobilenetv3():
    return build("proard_dyn_mobilenetv3")


def test_dyn_resnet50_has_2_46e12_architectures(resnet50):
    exact = 2 * 3**2 * 3**4 * (3**2 + 3**3 + 3**4) ** 3 * (3**4 + 3**5 + 3**6)
    assert resnet50.space.size == exact == 2_458_914_796_962


def test_dyn_mobilenetv3_has_2_18e19_architectures_the_papers_more_than_1e19(mobilenetv3):
    exact = (9**2 + 9**3 + 9**4) ** 5
    assert mobilenetv3.space.size == exact == 21_758_655_492_572_485_851
    assert exact > 10**19


def test_fine_dyn_resnet50_has_more_than_1e19_architectures():
    short, long = 16**2 + 16**3 + 16**4, 16**4 + 16**5 + 16**6
    size = build("proard_dyn_resnet50_fine").space.size
    assert size == 2 * 3**6 * short**3 * long
    assert size > 10**19


def test_fine_dyn_resnet50_ends_where_dyn_resnet50_ends(resnet50):
    fine = build("proard_dyn_resnet50_fine")
    for end in ("largest", "smallest"):
        arch = getattr(fine.space, end)
        assert fine.cost(arch) == resnet50.cost(arch)
        assert arch == getattr(resnet50.space, end)
    steps = np.diff(fine.space.expand_ratios)
    assert steps == pytest.approx(np.full(15, 0.01))


@pytest.mark.parametrize(
    ("end", "classes", "params", "mmacs"),
    [
        ("largest", 10, 46_077_482, 2358.0),
        ("largest", 100, 46_261_892, None),
        ("smallest", 10, 5_223_570, 285.2),
    ],
)
def test_dyn_resnet50_costs_what_is_published(end, classes, params, mmacs):
    net = build("proard_dyn_resnet50", num_classes=classes)
    arch = getattr(net.space, end)
    cost = net.cost(arch)
    assert cost.params == params == numel(build("proard_resnet50", arch=arch, num_classes=classes))
    assert mmacs is None or round(cost.mmacs, 1) == mmacs


@pytest.mark.parametrize(("end", "params", "mmacs"), [("largest", 6_396_570, 179.7), ("smallest", 2_142_602, 35.3)])
def test_dyn_mobilenetv3_costs_what_is_published(mobilenetv3, end, params, mmacs):
    arch = getattr(mobilenetv3.space, end)
    cost = mobilenetv3.cost(arch)
    assert cost.params == params == numel(build("proard_mobilenetv3", arch=arch))
    assert round(cost.mmacs, 1) == mmacs


def wide_resnet_params(depths, mult, classes=10):
    """Count the parameters of WRN with given blocks in each stage by its definition."""
    total, inp = 3 * 16 * 9, 16
    for depth, width in zip(depths, (160, 320, 640), strict=True):
        out = round(width * mult)
        first = 2 * inp + inp * out * 9 + 2 * out + out * out * 9 + inp * out
        total += first + (depth - 1) * (2 * (2 * out + out * out * 9))
        inp = out
    return total + 2 * inp + (inp + 1) * classes


def test_the_largest_wide_residual_network_is_wrn_34_10_and_the_smallest_wrn_16_2():
    net = build("proard_dyn_wide_resnet")
    assert net.cost().params == wide_resnet_params((5, 5, 5), 1.0) == 46_160_474  # RobustBench
    assert net.cost(net.space.smallest).params == wide_resnet_params((2, 2, 2), 0.2)
    assert net.space.size == 4**3 * 5**3


# Zagoruyko and Komodakis 2016, table 4 and figures of WRN-28-10 in RobustBench.
@pytest.mark.parametrize(
    ("blocks", "mult", "millions"),
    [(2, 0.8, 11.0), (2, 1.0, 17.1), (3, 0.8, 17.2), (3, 1.0, 26.8), (4, 1.0, 36.5), (2, 0.4, 2.7)],
)
def test_wide_residual_networks_have_the_published_numbers_of_parameters(blocks, mult, millions):
    net = build("proard_dyn_wide_resnet")
    arch = dataclasses.replace(net.space.largest, depth=(blocks,) * 3, width_mult=(mult,) * 3)
    params = net.cost(arch).params
    assert params == wide_resnet_params((blocks,) * 3, mult) == numel(build("proard_wide_resnet", arch=arch))
    assert round(params / 1e6, 1) == millions


def proxyless_params(depths, ratio, kernel, classes=10):
    """Count the parameters of inverted bottlenecks of one shape by their definition."""

    def block(inp, out, kernel, ratio):
        middle = inp * ratio
        return inp * middle + 2 * middle + middle * kernel**2 + 2 * middle + middle * out + 2 * out

    total, inp = 3 * 32 * 9 + 64 + 32 * 9 + 64 + 32 * 16 + 32, 16
    for out, depth in zip((24, 40, 80, 96, 192), depths, strict=True):
        total += block(inp, out, kernel, ratio) + (depth - 1) * block(out, out, kernel, ratio)
        inp = out
    return total + block(192, 320, 3, 6) + 320 * 1280 + 2 * 1280 + 1281 * classes


@pytest.mark.parametrize(("end", "depth", "ratio", "kernel"), [("largest", 4, 6, 7), ("smallest", 2, 3, 3)])
def test_dyn_proxyless_has_the_parameters_of_its_definition(end, depth, ratio, kernel):
    net = build("proard_dyn_proxyless")
    arch = getattr(net.space, end)
    assert net.cost(arch).params == proxyless_params((depth,) * 5, ratio, kernel)
    assert net.space.size == (9**2 + 9**3 + 9**4) ** 5


@pytest.mark.parametrize("name", ["proard_dyn_mobilenetv3", "proard_dyn_resnet50"])
def test_networks_for_large_photographs_have_the_students_of_the_small_ones(name):
    small, large = build(name), build(f"{name}_224")
    assert small.space == large.space
    for arch in (small.space.largest, small.space.smallest, small.space.sample(0)):
        width = build(small.cfg.student, arch=arch).head_hidden_size
        assert large.cost(arch).params - small.cost(arch).params == 990 * (width + 1)


def test_a_hundred_classes_add_their_rows_of_the_classifier_only(resnet50, mobilenetv3):
    for net, name in ((resnet50, "proard_dyn_resnet50"), (mobilenetv3, "proard_dyn_mobilenetv3")):
        more = build(name, num_classes=100)
        for arch in (net.space.largest, net.space.smallest, net.space.sample(0)):
            width = build(net.cfg.student, arch=arch).head_hidden_size
            few, many = net.cost(arch), more.cost(arch)
            assert many.params - few.params == 90 * (width + 1)
            assert many.macs - few.macs == 90 * width


def test_dyn_mobilenetv3_has_14_120_kernel_transform_parameters(mobilenetv3):
    transforms = [p for name, p in mobilenetv3.named_parameters() if "transform" in name]
    assert sum(p.numel() for p in transforms) == 14_120 == 20 * (25 * 25 + 9 * 9)
    assert numel(mobilenetv3) - mobilenetv3.cost().params == 14_120


def test_a_static_cifar_resnet50_of_the_same_blocks_costs_what_is_published():
    from proard_nas.supernets import ResNet, SearchSpace
    from proard_nas.supernets.dyn_resnet import ResNetFamily

    space = SearchSpace(depths=(0,), base_depths=(3, 4, 6, 3), width_mults=(1.0,), n_widths=5, expand_ratios=(0.25,))
    family = ResNetFamily("static", space, (256, 512, 1024, 2048), (1, 2, 2, 2), stem_width=64, patch=1)
    with torch.device("meta"):
        cost = ResNet(family).cost()
    assert cost.params == 23_520_842
    assert round(cost.mmacs, 1) == 1297.8


def test_uniform_sampling_of_dyn_resnet50_sees_the_published_middle_and_never_the_ends(resnet50):
    n, rng = 3000, np.random.default_rng(0)
    mmacs = np.array([resnet50.cost(resnet50.space.sample(rng)).mmacs for _ in range(n)])
    standard_error = mmacs.std() / np.sqrt(n)
    assert mmacs.mean() == pytest.approx(899, abs=4 * standard_error)
    # The error of a quantile is that of its probability over the density there (a normal's, about).
    error = np.sqrt(0.05 * 0.95 / n) / (0.103 / mmacs.std())
    assert np.quantile(mmacs, 0.05) == pytest.approx(599, abs=4 * error)
    assert np.quantile(mmacs, 0.95) == pytest.approx(1253, abs=4 * error)
    assert mmacs.max() < 1.05 * 1705
    assert mmacs.min() > 1.2 * 285.2


def test_the_small_supernet_stays_within_what_two_cores_can_train():
    net = build("proard_dyn_resnet_small")
    cost = net.cost()
    assert 45 <= cost.mmacs <= 50
    assert 1.1e6 <= cost.params <= 1.5e6


def test_the_tiny_supernet_has_under_half_a_million_parameters():
    assert 0.3e6 <= build("proard_dyn_resnet_tiny").cost().params < 0.5e6


def test_a_cost_says_its_units():
    cost = Cost(macs=2_358_000_000, params=46_077_482)
    assert cost.mmacs == 2358.0
    assert str(cost) == "2358 MMACs, 46,077,482 parameters"
    assert SimpleNamespace(**cost._asdict()).macs == 2_358_000_000
