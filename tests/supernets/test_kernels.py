"""Promises of elastic kernels: the centre of the larger kernel, times a learned matrix that starts as the identity."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch
from torch import nn

from proard_nas.supernets.slicing import KernelConv2d, shrink_kernel


def with_kernels(net, size):
    """Return the largest architecture with all kernels of one size."""
    largest = net.space.largest
    return dataclasses.replace(largest, kernel_size=tuple(tuple(size for _ in row) for row in largest.kernel_size))


def reference(full, channels, size, matrices):
    """Transform kernels by an explicit sum over the entries of the matrix."""
    kernels, have = full[:channels, 0], full.shape[-1]
    while have > size:
        have -= 2
        centres = kernels[:, 1:-1, 1:-1].flatten(1)
        entries = [(row * centres).sum(1) for row in matrices[have]]
        kernels = torch.stack(entries, 1).unflatten(1, (have, have))
    return kernels[:, None]


@pytest.mark.parametrize("size", [3, 5, 7])
def test_at_the_start_smaller_kernels_are_the_centre_of_the_largest(size):
    net = timm.create_model("proard_dyn_mobilenetv3")
    student = net.extract(with_kernels(net, size))
    border = (7 - size) // 2
    convs = [n for n, m in net.named_modules() if isinstance(m, KernelConv2d)]
    assert len(convs) == 20
    for name in convs:
        full, small = net.get_submodule(name).weight, student.get_submodule(name).weight
        assert small.shape[-1] == size
        assert torch.equal(small, full[..., border : 7 - border, border : 7 - border])


def test_each_depthwise_layer_has_one_pair_of_matrices_shared_by_its_channels(supernet):
    net = supernet("proard_dyn_mobilenetv3")
    for module in net.modules():
        if isinstance(module, KernelConv2d):
            shapes = {k: tuple(p.shape) for k, p in module.named_parameters()}
            assert shapes == {"weight": module.weight.shape, "transform_5": (25, 25), "transform_3": (9, 9)}
            assert [len(module.chain(k)) for k in (7, 5, 3)] == [0, 1, 2]


def test_transformed_kernels_are_those_of_an_explicit_sum(supernet):
    net = supernet("proard_dyn_mobilenetv3")
    arch = net.space.sample(3)
    live = net.student(arch)
    sizes = set()
    for name, module in net.named_modules():
        if not isinstance(module, KernelConv2d) or name not in dict(live.named_modules()):
            continue
        small = live.get_submodule(name)
        sizes.add(small.kernel_size)
        assert small.padding == (small.kernel_size[0] // 2,) * 2
        matrices = {5: module.transform_5, 3: module.transform_3}
        expected = reference(module.weight, small.out_channels, small.kernel_size[0], matrices)
        torch.testing.assert_close(small.weight, expected, rtol=1e-5, atol=1e-6)
    assert sizes == {(3, 3), (5, 5), (7, 7)}


@pytest.mark.parametrize("size", [3, 5, 7])
def test_gradients_through_kernels_are_those_of_plain_autograd(supernet, images, size):
    net = supernet("proard_dyn_mobilenetv3").train()
    arch = dataclasses.replace(
        with_kernels(net, size), expand_ratio=net.space.restrict(depths=(4,)).smallest.expand_ratio
    )
    live, extracted = net.student(arch), net.extract(arch)
    for student in (live, extracted):
        student(images(net, n=3)).square().sum().backward()
    for name, module in net.named_modules():
        if not isinstance(module, KernelConv2d):
            continue
        small = extracted.get_submodule(name).weight
        leaves = [t.detach().clone().requires_grad_() for t in (module.weight, module.transform_5, module.transform_3)]
        rebuilt = reference(leaves[0], len(small), size, {5: leaves[1], 3: leaves[2]})
        expected = torch.autograd.grad(rebuilt, leaves, small.grad, allow_unused=True)
        found = [module.weight.grad, module.transform_5.grad, module.transform_3.grad]
        for have, want in zip(found, expected, strict=True):
            if want is None:
                assert have is None or not have.any()
            else:
                torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
                assert want.any()


def test_gradcheck_of_the_kernel_rule():
    weight = torch.randn(4, 1, 7, 7, dtype=torch.float64, requires_grad=True)
    matrices = [torch.randn(n, n, dtype=torch.float64, requires_grad=True) for n in (25, 9)]
    assert torch.autograd.gradcheck(lambda w, *m: shrink_kernel(3, w, *m), (weight, *matrices))


def test_a_live_student_made_before_the_kernels_changed_refuses_to_train_them(supernet, images):
    net = supernet("proard_dyn_mobilenetv3")
    live = net.student(with_kernels(net, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.9)
    with pytest.raises(RuntimeError, match="changed after this live student was made"):
        live(images(net)).sum().backward()


def test_extracted_students_have_plain_convolutions(supernet):
    net = supernet("proard_dyn_mobilenetv3")
    for arch in (net.space.largest, net.space.smallest, net.space.sample(0)):
        for student in (net.student(arch), net.extract(arch)):
            assert not any(isinstance(m, KernelConv2d) for m in student.modules())
            assert all(type(m) is nn.Conv2d for m in student.modules() if isinstance(m, nn.Conv2d))
            assert not any("transform" in name for name, _ in student.named_parameters())


def test_a_supernet_with_one_kernel_size_has_no_matrices():
    net = timm.create_model("proard_dyn_mobilenetv3", kernel_sizes=(5,))
    assert not any(isinstance(m, KernelConv2d) for m in net.modules())
    assert sum(p.numel() for p in net.parameters()) == net.cost().params


def test_only_kernels_of_stages_are_elastic():
    net = timm.create_model("proard_dyn_proxyless", kernel_sizes=(1, 3), depths=(1,), device="meta")
    elastic = [name for name, module in net.named_modules() if isinstance(module, KernelConv2d)]
    assert elastic == [f"stages.{s}.0.depthwise.conv" for s in range(5)]
    assert (net.neck.block.depthwise.conv.kernel_size, net.stem.depthwise.conv.kernel_size) == ((3, 3), (3, 3))


def test_two_kernel_sizes_far_apart_need_one_matrix(images):
    net = timm.create_model("proard_dyn_mobilenetv3", kernel_sizes=(3, 7)).eval()
    module = next(m for m in net.modules() if isinstance(m, KernelConv2d))
    assert {k for k, _ in module.named_parameters()} == {"weight", "transform_3"}
    student = net.extract(net.space.smallest)
    name = next(n for n, m in net.named_modules() if m is module)
    small = student.get_submodule(name).weight
    assert torch.equal(small, module.weight[: len(small), :, 2:5, 2:5])
    assert torch.equal(net.student(net.space.smallest)(images(net)), student(images(net)))
