"""Losses by name, as objects and as plain functions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import proard_nas.training.losses as losses
from proard_nas.training.losses import (
    LOSSES,
    TRADES,
    AttackBudget,
    Batch,
    Natural,
    Noise,
    Passes,
    make_loss,
    register_loss,
)


@pytest.fixture
def setting():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand(8, 1, 4, 4)
    return net, Batch(x, torch.arange(8) % 3, torch.randn(8, 3), nn.Identity(), nn.Identity())


def plain(net, batch, x_adv):
    return F.cross_entropy(net(x_adv), batch.y)


def test_names_give_losses_and_objects_are_taken_as_they_are():
    own = Natural()
    assert make_loss(own) is own
    assert make_loss("trades") == TRADES(beta=6.0)
    for name in LOSSES:
        assert make_loss(make_loss(name)) == make_loss(name)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown loss 'rslda'.*Did you mean 'rslad'"):
        make_loss("rslda")


def test_a_class_and_an_object_without_the_members_are_refused():
    with pytest.raises(ValueError, match=r"an object, not a class; did you mean TRADES\(\)"):
        make_loss(TRADES)

    class Half:
        def loss(self, net, batch, x_adv):
            return None

    for wrong in (Half(), 3, None):
        with pytest.raises(ValueError, match="has no needs_teacher"):
            make_loss(wrong)


def test_a_function_trains_and_attacks_the_labels(setting):
    net, batch = setting
    loss = make_loss(plain)
    assert loss == make_loss(plain) and not loss.needs_teacher and not loss.needs_helper
    assert loss.passes == Passes(student=2)
    x_adv = loss.adversarial(net, batch, AttackBudget(), Noise(0))
    assert torch.equal(x_adv, make_loss("sat").adversarial(net, batch, AttackBudget(), Noise(0)))
    assert torch.equal(loss.loss(net, batch, x_adv), plain(net, batch, x_adv))


def test_a_function_with_a_teacher_attacks_its_output(setting):
    net, batch = setting

    def distil(net, batch, x_adv):
        return (net(x_adv) - batch.teacher_logits).square().mean()

    distil.needs_teacher = True
    loss = make_loss(distil)
    assert loss.needs_teacher and loss.passes == Passes(student=2, teacher=1)
    x_adv = loss.adversarial(net, batch, AttackBudget(), Noise(0))
    assert torch.equal(x_adv, make_loss("rslad").adversarial(net, batch, AttackBudget(), Noise(0)))


def test_a_function_says_what_it_costs_and_can_do_without_an_attack(setting):
    def clean(net, batch, x_adv):
        return F.cross_entropy(net(batch.x), batch.y)

    clean.passes, clean.needs_helper = Passes(student=1, attacked=False, helper=1), True
    loss = make_loss(clean)
    assert loss.passes is clean.passes and loss.needs_helper
    assert loss.adversarial(*setting, AttackBudget(), Noise(0)) is None


def test_a_callable_object_is_a_function():
    class Smooth:
        def __call__(self, net, batch, x_adv):
            return net(batch.x).sum()

    assert make_loss(Smooth()).passes == Passes(student=2)


def test_registered_losses_are_found_by_name_and_names_are_not_taken_twice(monkeypatch):
    monkeypatch.setattr("proard_nas.training.losses.registry.LOSSES", names := dict(LOSSES))
    assert register_loss("plain")(plain) is plain

    @register_loss("mine")
    class Mine(Natural):
        pass

    assert make_loss("plain") == make_loss(plain) and type(make_loss("mine")) is Mine
    assert set(names) - set(LOSSES) == {"plain", "mine"}
    for taken in ("plain", "trades"):
        with pytest.raises(ValueError, match=f"there is a loss '{taken}' already"):
            register_loss(taken)(plain)
    with pytest.raises(ValueError, match="registered by a name"):
        register_loss(plain)


def test_all_public_names_exist():
    assert all(hasattr(losses, name) for name in losses.__all__)
    promised = "LOSSES make_loss register_loss AttackBudget Batch Noise Objective Passes kl_divergence"
    assert set(promised.split()) <= set(losses.__all__)
