"""Every loss's inner attack: within its bounds, and uphill on what it says it maximises."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from proard_nas.attacks import attack_mode
from proard_nas.training.losses import LOSSES, AttackBudget, Batch, Noise, Passes, kl_divergence, make_loss

EPS = 0.1
ATTACKED = sorted(set(LOSSES) - {"natural"})


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(96, 5)
    )


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(3)
    y = torch.randint(0, 5, (64,))
    x = 0.25 + 0.5 * torch.rand(64, 1, 6, 6)
    x[torch.arange(64), 0, y] += 0.25  # the class is a bright row
    return x, y


@pytest.fixture(scope="module")
def trained(data):
    nets = [network(seed) for seed in range(3)]
    for net in nets:
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(net(data[0]), data[1]).backward()
            optimizer.step()
        net.zero_grad()
    return nets


@pytest.fixture
def setting(trained, data):
    student, teacher, helper = (copy.deepcopy(net) for net in trained)
    for net in (teacher, helper):
        net.eval().requires_grad_(False)
    with torch.no_grad():
        return student.train(), Batch(*data, teacher(data[0]), teacher, helper)


def maximised(name, student, batch, x):
    with torch.no_grad(), attack_mode(student, "batch"):
        logits, clean = student(x), student(batch.x)
        if name in {"trades", "hat"}:
            return float(kl_divergence(clean, logits))
        if name == "rslad":
            return float(kl_divergence(batch.teacher_logits, logits))
        if name == "adaad":
            return float(kl_divergence(batch.teacher(x), logits))
        return float(F.cross_entropy(logits, batch.y))


@pytest.mark.parametrize("name", ATTACKED)
def test_the_attack_raises_its_objective_far_over_clean_and_random_images(name, setting):
    student, batch = setting
    x_adv = make_loss(name).adversarial(student, batch, AttackBudget(EPS, EPS / 4, 10), Noise(0))
    noisy = (batch.x + EPS * Noise(1).uniform(batch.x)).clamp(0, 1)
    found = maximised(name, student, batch, x_adv)
    start = max(maximised(name, student, batch, images) for images in (batch.x, noisy))
    assert found > 1.5 * start + 0.05


def hand_written(name, student, batch, eps, step, steps):
    """Ascend the objective that the paper states, in float64; the probabilities are written out."""
    student, teacher = copy.deepcopy(student).double(), copy.deepcopy(batch.teacher).double()
    student.eval()
    student[1].train()
    x = batch.x.double()
    clean, guide = student(x).softmax(1).detach(), teacher(x).softmax(1)
    gaussian = name not in {"sat", "ard", "iad"}
    start = 0.001 * Noise(5).normal(x) if gaussian else eps * Noise(5).uniform(x)
    current = torch.minimum(torch.maximum(x + start, x - eps), x + eps).clamp(0, 1)
    for _ in range(steps):
        current.requires_grad_()
        q = student(current).softmax(1)
        if name in {"sat", "mart", "ard", "iad"}:
            value = -q[torch.arange(len(x)), batch.y].log().sum()
        else:
            p = {"trades": clean, "hat": clean, "rslad": guide}.get(name)
            p = teacher(current).softmax(1) if p is None else p
            value = (p * (p / q).log()).sum()
        (gradient,) = torch.autograd.grad(value, current)
        moved = current.detach() + step * gradient.sign()
        current = torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)
    return current


@pytest.mark.parametrize("name", ATTACKED)
def test_each_attack_is_ascent_on_the_objective_of_its_paper(name, setting):
    student, batch = setting
    x_adv = make_loss(name).adversarial(student, batch, AttackBudget(EPS, EPS / 4, 5), Noise(5))
    expected = hand_written(name, student, batch, EPS, EPS / 4, 5)
    assert ((x_adv - expected).abs() < 1e-6).double().mean() > 0.97  # rounding decides signs of gradients near zero


@pytest.mark.parametrize("batch_norm", ["batch", "clean", "running"])
@pytest.mark.parametrize("method", ["pgd", "ffgsm", "n-fgsm"])
@pytest.mark.parametrize("name", ATTACKED)
def test_bounds_hold_and_nothing_else_changes(name, setting, method, batch_norm):
    student, batch = setting
    budget = AttackBudget(EPS, EPS / 4, 3, method=method, batch_norm=batch_norm)
    before = copy.deepcopy([net.state_dict() for net in (student, batch.teacher, batch.helper)])
    state = torch.get_rng_state()
    for value in (None, 0.0, 1.0):
        x = batch.x if value is None else torch.full_like(batch.x, value)
        x_adv = make_loss(name).adversarial(student, dataclasses.replace(batch, x=x), budget, Noise(0))
        if method == "n-fgsm":
            assert (x_adv - x).abs().max() <= 3 * EPS + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
        else:
            assert ((x_adv >= (x - EPS).clamp(min=0)) & (x_adv <= (x + EPS).clamp(max=1))).all()
        assert not torch.equal(x_adv, x) and not x_adv.requires_grad
    after = [net.state_dict() for net in (student, batch.teacher, batch.helper)]
    assert all(torch.equal(a[key], b[key]) for a, b in zip(after, before, strict=True) for key in a)
    assert all(p.grad is None for net in (student, batch.teacher) for p in net.parameters())
    assert all(module.training for module in student.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ATTACKED)
def test_the_stated_passes_are_those_the_attack_makes(name, setting):
    student, batch = setting
    calls = {"student": 0, "teacher": 0}
    student.register_forward_hook(lambda *_: calls.update(student=calls["student"] + 1))
    batch.teacher.register_forward_hook(lambda *_: calls.update(teacher=calls["teacher"] + 1))
    loss = make_loss(name)
    loss.adversarial(student, batch, AttackBudget(steps=4), Noise(0))
    assert loss.passes.attacked
    assert calls == {"student": 4 + loss.passes.setup, "teacher": 4 * loss.passes.teacher_in_attack}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_step_under_bfloat16_autocast_gives_every_weight_a_finite_gradient(name, setting):
    student, batch = setting
    loss = make_loss(name)
    with torch.autocast("cpu", torch.bfloat16):
        x_adv = loss.adversarial(student, batch, AttackBudget(EPS, EPS / 4, 2), Noise(0))
        value = loss.loss(student, batch, x_adv)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


def test_natural_training_has_no_attack(setting):
    student, batch = setting
    loss = make_loss("natural")
    assert loss.adversarial(student, batch, AttackBudget(), Noise(0)) is None
    assert loss.passes == Passes(student=1, attacked=False)


def test_the_same_noise_gives_the_same_attack(setting):
    student, batch = setting
    for name in ATTACKED:
        first, second, other = (
            make_loss(name).adversarial(student, batch, AttackBudget(EPS, EPS / 8, 1), Noise(seed))
            for seed in (1, 1, 2)
        )
        assert torch.equal(first, second) and not torch.equal(first, other)
