"""Every loss's value and gradient against a second computation: closed forms in numpy, float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from proard_nas.training.losses import ARD, HAT, IAD, LOSSES, MART, RSLAD, SAT, TRADES, AdaAD, Batch, kl_divergence

N = 4
Y = np.array([0, 1, 1, 0])


class Table(nn.Module):
    """Looks logits up by the first pixel, so that a test decides every output."""

    def __init__(self, logits) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, x):
        return self.logits[x[:, 0, 0, 0].long()]


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def ce(z, y=Y):
    return -np.take_along_axis(log_softmax(z), np.broadcast_to(y, z.shape[:-1])[..., None], -1)[..., 0]


def kl(target, z):
    p, q = log_softmax(target), log_softmax(z)
    return (np.exp(p) * (p - q)).sum(-1)


def margin(z):
    p = np.exp(log_softmax(z))
    others = np.where(np.arange(z.shape[-1]) == Y[:, None], -1.0, p)
    return -np.log1p(-others.max(-1))


def trades(s, beta):
    return ce(s[0]) + beta * kl(s[0], s[1])


def iad(s, t, beta):
    trust = np.exp(-beta * ce(t[1]))
    return trust * kl(t[0], s[1]) + (1 - trust) * kl(s[0], s[1])


CASES = {
    # name: (loss, what each image contributes, from logits on x, x_adv, helper examples; the teacher's on x, x_adv)
    "natural": (LOSSES["natural"](), lambda s, t, label: ce(s[0])),
    "sat": (SAT(), lambda s, t, label: ce(s[1])),
    "trades": (TRADES(), lambda s, t, label: trades(s, 6)),
    "trades-1": (TRADES(beta=1), lambda s, t, label: trades(s, 1)),
    "mart": (MART(), lambda s, t, label: ce(s[1]) + margin(s[1]) + 5 * kl(s[0], s[1]) * (1 - np.exp(-ce(s[0])))),
    "hat": (HAT(), lambda s, t, label: trades(s, 2.5) + 0.5 * ce(s[2], label)),
    "rslad": (RSLAD(), lambda s, t, label: 5 / 6 * kl(t[0], s[1]) + 1 / 6 * kl(t[0], s[0])),
    "ard": (ARD(), lambda s, t, label: 900 * kl(t[0] / 30, s[1] / 30)),
    "ard-mixed": (ARD(0.7, 5.0), lambda s, t, label: 0.7 * 25 * kl(t[0] / 5, s[1] / 5) + 0.3 * ce(s[0])),
    "iad": (IAD(), lambda s, t, label: iad(s, t, 0.1)),
    "iad-2": (IAD(beta=2), lambda s, t, label: iad(s, t, 2)),
    "adaad": (AdaAD(), lambda s, t, label: kl(t[1], s[1])),
    "adaad-mixed": (AdaAD(0.6), lambda s, t, label: 0.6 * kl(t[1], s[1]) + 0.4 * kl(t[0], s[0])),
}


def table(classes, scale=3.0, seed=0):
    return np.random.default_rng(seed).normal(size=(3, N, classes)) * scale


def rows(*blocks):
    return [torch.arange(float(b * N), (b + 1) * N).reshape(-1, 1, 1, 1) for b in blocks]


def batch_of(teacher, helper):
    x, x_adv = rows(0, 1)  # HAT's helper examples x + 2 (x_adv - x) are then block 2
    nets = [Table(values.reshape(3 * N, -1)).eval().requires_grad_(False) for values in (teacher, helper)]
    return Batch(x, torch.as_tensor(Y), nets[0](x), *nets), x_adv


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_the_closed_form(name, classes):
    loss, reference = CASES[name]
    student, teacher, helper = (table(classes, seed=seed).astype(np.float32).astype(float) for seed in range(3))
    batch, x_adv = batch_of(teacher, helper)
    network = Table(student.reshape(3 * N, -1))
    value = loss.loss(network, batch, x_adv)
    value.backward()
    label = helper[1].argmax(-1)
    expected = reference(student, teacher, label).mean()
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)

    gradient = network.logits.grad.double().numpy().reshape(student.shape)
    chosen = np.random.default_rng(9).permutation(student.size)[:48]
    steps = {index: np.eye(1, student.size, index).reshape(student.shape) * 1e-5 for index in chosen}
    for index, step in steps.items():
        slope = (reference(student + step, teacher, label) - reference(student - step, teacher, label)).mean() / 2e-5
        assert gradient.flat[index] == pytest.approx(slope, rel=1e-3, abs=2e-6)
    direction = np.sign(gradient) * 1e-6  # and all coordinates at once
    rise = (reference(student + direction, teacher, label) - reference(student - direction, teacher, label)).mean()
    assert np.abs(gradient).sum() == pytest.approx(rise / 2e-6, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_closed_form_here(name):
    assert CASES[name][0] == LOSSES[name]()


@pytest.mark.parametrize("name", ["rslad", "ard", "iad", "adaad", "adaad-mixed"])
def test_distillation_is_zero_where_the_student_is_the_teacher(name):
    logits = table(10)
    logits[1] = logits[0]
    batch, x_adv = batch_of(logits, logits)
    network = Table(logits.reshape(3 * N, -1))
    value = CASES[name][0].loss(network, batch, x_adv)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-4 if name == "ard" else 1e-6)
    assert network.logits.grad.abs().max() < 1e-5


@pytest.mark.parametrize(("name", "other"), [("trades", "natural"), ("mart", "sat"), ("hat", "natural")])
def test_without_a_change_of_output_the_divergence_adds_nothing(name, other):
    logits = table(10)
    logits[1] = logits[0]
    loss = {"trades": TRADES(), "mart": MART(), "hat": HAT(gamma=0)}[name]
    batch, x_adv = batch_of(logits, logits)
    plain = CASES[other][0].loss(Table(logits.reshape(3 * N, -1)), batch, x_adv).item()
    added = margin(logits[1]).mean() if name == "mart" else 0
    assert loss.loss(Table(logits.reshape(3 * N, -1)), batch, x_adv).item() == pytest.approx(plain + added, rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0, 1e4, 1e30])
@pytest.mark.parametrize("name", CASES)
def test_losses_are_finite_and_not_negative_for_extreme_logits(name, scale):
    batch, x_adv = batch_of(table(10, scale, 1), table(10, scale, 2))
    network = Table(table(10, scale).reshape(3 * N, -1))
    value = CASES[name][0].loss(network, batch, x_adv)
    value.backward()
    assert math.isfinite(value.item()) and value.item() >= -1e-5
    assert network.logits.grad.isfinite().all()


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_kl_is_summed_over_classes_and_averaged_over_the_batch(classes):
    p, q = table(classes)[:2]
    expected = kl(p, q).mean()
    assert float(kl_divergence(torch.tensor(p), torch.tensor(q))) == pytest.approx(expected, rel=1e-5)
    assert float(kl_divergence(torch.tensor(p), torch.tensor(p))) == pytest.approx(0, abs=1e-6)


def test_kl_of_certain_against_even_is_log_of_the_number_of_classes():
    certain, even = torch.tensor([[1e4, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)
    assert float(kl_divergence(certain, even)) == pytest.approx(math.log(4), abs=1e-6)


def test_logits_in_bfloat16_are_compared_in_float32():
    logits = torch.randn(4, 10, dtype=torch.bfloat16)
    value = kl_divergence(logits, logits + 1)
    assert value.dtype == torch.float32 and float(value) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_neither_teacher_nor_helper_gets_gradients(name):
    batch, x_adv = batch_of(table(10, seed=1), table(10, seed=2))
    for net in (batch.teacher, batch.helper):
        net.requires_grad_(True)  # even where they are not frozen
    CASES[name][0].loss(Table(table(10).reshape(3 * N, -1)), batch, x_adv).backward()
    assert batch.teacher.logits.grad is None and batch.helper.logits.grad is None


@pytest.mark.parametrize("name", CASES)
def test_the_stated_passes_are_those_made(name):
    batch, x_adv = batch_of(table(10, seed=1), table(10, seed=2))
    calls = {"student": 0, "teacher": 0, "helper": 0}
    network = Table(table(10).reshape(3 * N, -1))
    for who, net in (("student", network), ("teacher", batch.teacher), ("helper", batch.helper)):
        net.register_forward_hook(lambda *_, who=who: calls.update({who: calls[who] + 1}))
    loss = CASES[name][0]
    loss.loss(network, batch, x_adv)
    assert calls["student"] == loss.passes.student and calls["helper"] == loss.passes.helper
    assert calls["teacher"] == max(0, loss.passes.teacher - 1)  # the first made Batch.teacher_logits
    assert loss.needs_teacher == (loss.passes.teacher > 0)
    assert getattr(loss, "needs_helper", False) == (loss.passes.helper > 0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (RSLAD(), "the teacher's logits"),
        (ARD(), "the teacher's logits"),
        (IAD(), "a teacher"),
        (AdaAD(), "a teacher"),
        (HAT(), "a helper, a naturally trained network"),
    ],
)
def test_what_is_missing_is_named(loss, message):
    x, x_adv = rows(0, 1)
    with pytest.raises(ValueError, match=f"this loss needs {message}"):
        loss.loss(Table(table(10).reshape(3 * N, -1)), Batch(x, torch.as_tensor(Y)), x_adv)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RSLAD(1.1), r"alpha must be in \[0, 1\], got 1.1"),
        (lambda: AdaAD(-0.1), r"alpha must be in \[0, 1\], got -0.1"),
        (lambda: TRADES(-1), "beta must not be negative, got -1"),
        (lambda: MART(float("nan")), "beta must not be negative, got nan"),
        (lambda: HAT(gamma=-2), "gamma must not be negative, got -2"),
        (lambda: IAD(float("inf")), "beta must not be negative, got inf"),
        (lambda: ARD(temperature=0), "temperature must be positive, got 0"),
    ],
)
def test_wrong_weights_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()
