"""Batch norm modes: which statistics are used, and that none is recorded."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from proard_nas.attacks import WorstCasePGD, attack_mode, run_attack, seeded
from proard_nas.evaluation import calibrate


class OwnNorm(nn.BatchNorm2d):
    """A subclass, as networks have them."""


NORMS = {
    "torch": lambda c: nn.BatchNorm2d(c),
    "subclass": lambda c: OwnNorm(c),
    "timm": lambda c: BatchNormAct2d(c),
    "cumulative": lambda c: nn.BatchNorm2d(c, momentum=None),
    "without statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "without weights": lambda c: nn.BatchNorm2d(c, affine=False),
    "none": lambda c: nn.Identity(),
}


def build(norm):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), NORMS[norm](6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 4, 3), NORMS[norm](4), nn.Flatten()
    )
    net(torch.rand(32, 2, 7, 7))
    return net


def record(net):
    return {
        name: (m.training, getattr(m, "track_running_stats", None), getattr(m, "momentum", None), list(m._buffers))
        for name, m in net.named_modules()
    }


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", ["running", "batch", "clean"])
@pytest.mark.parametrize("norm", NORMS)
def test_modes_flags_and_buffers_come_back_bit_for_bit(norm, mode, fails):
    net = build(norm)
    net[1].eval()
    state, modules, buffers = copy.deepcopy(net.state_dict()), record(net), dict(net.named_buffers())
    x = torch.rand(8, 2, 7, 7)

    def use():
        with attack_mode(net, mode, x):
            net(x * 0.5)
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            use()
    else:
        use()
    assert record(net) == modules
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(value is buffers[name] for name, value in net.named_buffers())
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_a_failing_pass_over_the_clean_images_changes_nothing():
    net = build("torch")
    state, modules = copy.deepcopy(net.state_dict()), record(net)
    with pytest.raises(RuntimeError), attack_mode(net, "clean", torch.rand(4, 3, 7, 7)):
        pass
    assert record(net) == modules and not any(m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def normalised(net, x, mean, var):
    """Recompute the first layers by hand."""
    conv = net[0](x)
    return net[1].weight.view(-1, 1, 1) * (conv - mean) / (var + net[1].eps).sqrt() + net[1].bias.view(-1, 1, 1)


def test_each_mode_uses_the_statistics_it_names():
    net, x = build("torch"), torch.rand(16, 2, 7, 7)
    shifted = x * 0.1 + 0.7  # far from the statistics that the network has
    seen = []
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    moments = {
        name: (net[0](images).mean((0, 2, 3), keepdim=True), net[0](images).var((0, 2, 3), False, keepdim=True))
        for name, images in (("batch", shifted), ("clean", x))
    }
    moments["running"] = (net[1].running_mean.view(-1, 1, 1), net[1].running_var.view(-1, 1, 1))
    for mode, (mean, var) in moments.items():
        with attack_mode(net, mode, x):
            net(shifted)
        torch.testing.assert_close(seen[-1], normalised(net, shifted, mean, var), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_on_the_clean_images_clean_statistics_are_the_batchs(norm):
    net, x = build(norm), torch.rand(3, 2, 7, 7)  # few images: the biased and the unbiased variance differ
    outputs = []
    for mode in ("batch", "clean"):
        with attack_mode(net, mode, x):
            outputs.append(net(x))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_clean_statistics_stay_fixed_whatever_runs():
    net, x = build("timm"), torch.rand(8, 2, 7, 7)
    with attack_mode(net, "clean", x):
        before = net(x[:1])
        net(torch.rand(8, 2, 7, 7) * 9)
        assert torch.equal(net(x[:1]), before)


def test_dropout_is_off_in_every_mode():
    net, x = build("torch").train(), torch.rand(4, 2, 7, 7)
    for mode in ("running", "batch", "clean"):
        with attack_mode(net, mode, x):
            assert torch.equal(net(x), net(x))


def test_clean_without_images_and_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="needs the clean images"), attack_mode(nn.Identity(), "clean"):
        pass
    with pytest.raises(ValueError, match="unknown batch norm mode 'evl'"), attack_mode(nn.Identity(), "evl"):
        pass


def test_clean_statistics_are_those_of_the_student_that_a_supernet_runs():
    torch.manual_seed(0)
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=4)
    net.set_active(net.space.smallest)
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 4
    calibrate(net, torch.rand(32, 1, 8, 8) ** 2)
    before = {name: value.clone() for name, value in net.active_statistics.items()}
    live = net.student(net.space.smallest, before)
    attacks = [WorstCasePGD(one, 0.1, 0.05, 3) for one in (net, live)]
    found, expected = (run_attack(attack, x, y, batch_norm="clean", seed=0) for attack in attacks)
    assert torch.equal(found, expected)
    assert all(torch.equal(value, before[name]) for name, value in net.active_statistics.items())


def test_seeding_leaves_the_generators_as_they_were_and_cuda_unseeded(monkeypatch):
    queued = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", queued.append)
    torch.manual_seed(1)
    queued.clear()
    before = torch.get_rng_state()
    with seeded(5):
        drawn = torch.rand(3)
    assert queued == [] and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(5)))
