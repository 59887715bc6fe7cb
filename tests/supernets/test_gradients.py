"""Promises of gradients: those of the extracted student arrive at the slices, nothing arrives elsewhere."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def leading(tensor, shape):
    return tensor[tuple(slice(n) for n in shape)]


def small_kernel(full, part):
    return full.dim() == 4 and part.shape[-1] < full.shape[-1]


def loss_of(student, x, seed=0):
    """Compute a loss to which every logit contributes in its own way."""
    logits = student(x)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=logits.dtype)
    return (logits * weights).sum() + F.cross_entropy(logits, torch.arange(len(x)) % logits.shape[1])


def archs(net):
    return [net.space.largest, net.space.smallest, net.space.sample(0), net.space.sample(1)]


def gradients(net):
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def test_gradients_of_a_live_student_are_the_extracted_ones_at_the_slices_and_zero_elsewhere(net, images):
    net.train()
    x = images(net, n=3)
    for arch in archs(net):
        net.zero_grad(set_to_none=True)
        live, extracted = net.student(arch), net.extract(arch)
        loss_of(live, x).backward()
        loss_of(extracted, x).backward()
        static = dict(extracted.named_parameters())
        reached = 0
        for name, full in net.named_parameters():
            part = static.get(name)
            if ".transform_" in name or (part is not None and small_kernel(full, part)):
                continue  # elastic kernels have their own tests
            if part is None:
                assert full.grad is None, f"{name} is in no student that ran"
                continue
            assert torch.equal(leading(full.grad, part.shape), part.grad), name
            outside = full.grad.clone()
            leading(outside, part.shape).zero_()
            assert not outside.any(), name
            reached += bool(part.grad.any())
        assert reached > 0.9 * len(static) - 40


def test_gradients_with_respect_to_the_images_are_the_extracted_ones(net, images):
    for arch in archs(net):
        live, extracted = net.student(arch), net.extract(arch)
        found = []
        for student in (live, extracted):
            x = images(net).requires_grad_()
            (gradient,) = torch.autograd.grad(loss_of(student, x), x)
            found.append(gradient)
        assert torch.equal(*found)
        assert found[0].any()
        assert all(p.grad is None for p in net.parameters())


def test_gradients_of_several_students_add_up(net, images):
    net.train()
    x = images(net, n=3)
    each = []
    for arch in archs(net):
        net.zero_grad(set_to_none=True)
        loss_of(net.student(arch), x).backward()
        each.append(gradients(net))
    net.zero_grad(set_to_none=True)
    students = [net.student(arch) for arch in archs(net)]
    sum(loss_of(student, x) for student in students).backward()
    for name, parameter in net.named_parameters():
        parts = [g[name] for g in each if g[name] is not None]
        if parts:
            torch.testing.assert_close(parameter.grad, sum(parts), rtol=1e-4, atol=1e-5 * float(sum(parts).abs().max()))
        else:
            assert parameter.grad is None


def test_two_backward_passes_through_one_live_student_add_up(net, images):
    """One set of slices serves all passes of a training step."""
    arch = net.space.sample(0)
    batches = [images(net, n=3, seed=seed) for seed in range(2)]
    each = []
    for seed, x in enumerate(batches):
        net.zero_grad(set_to_none=True)
        loss_of(net.student(arch), x, seed).backward()
        each.append(gradients(net))
    net.zero_grad(set_to_none=True)
    live = net.student(arch)
    for seed, x in enumerate(batches):
        torch.autograd.grad(loss_of(live, x.requires_grad_(), seed), x)  # as an attack would
        loss_of(live, x.detach(), seed).backward()
    for name, parameter in net.named_parameters():
        first, second = (g[name] for g in each)
        if first is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, first + second)


def test_a_step_along_the_gradient_lowers_the_students_loss(net, images):
    net.train()
    arch, x = net.space.sample(0), images(net, n=8)
    y = torch.arange(8) % net.num_classes

    def loss():
        return F.cross_entropy(net.student(arch)(x), y)

    first = loss()
    first.backward()
    before = first.item()
    norm = torch.stack([p.grad.square().sum() for p in net.parameters() if p.grad is not None]).sum()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.sub_(1e-3 * before / norm * parameter.grad)
    assert loss().item() < before
