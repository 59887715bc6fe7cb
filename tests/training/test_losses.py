"""Losses against a second computation in float64, and their inner attacks against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from proard_nas.training.losses import LOSSES, RSLAD, TRADES, AttackBudget, Natural, kl_divergence, make_loss


class Table(nn.Module):
    """Looks logits up by the first pixel, so that a test decides every output."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[x[:, 0, 0, 0].long()]


def softmax64(logits):
    exp = torch.exp(logits.double() - logits.double().max(1, keepdim=True).values)
    return exp / exp.sum(1, keepdim=True)


def kl64(p, q):
    return (p * (p / q).log()).sum() / len(p)


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(12, 7) * 3


@pytest.fixture
def halves():
    index = torch.arange(12.0).reshape(-1, 1, 1, 1)
    return index[:6], index[6:]


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_kl_is_summed_over_classes_and_averaged_over_the_batch(classes):
    torch.manual_seed(1)
    p, q = torch.randn(5, classes), torch.randn(5, classes)
    expected = kl64(softmax64(p), softmax64(q))
    assert math.isclose(float(kl_divergence(p, q)), float(expected), rel_tol=1e-5)
    assert float(kl_divergence(p, p)) == pytest.approx(0, abs=1e-6)


def test_kl_of_certain_against_even_is_log_of_the_number_of_classes():
    certain, even = torch.tensor([[1e4, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)
    assert float(kl_divergence(certain, even)) == pytest.approx(math.log(4), abs=1e-6)


def reference(name, table, y, teacher):
    clean, adversarial = softmax64(table[:6]), softmax64(table[6:])
    cross_entropy = -clean[torch.arange(6), y].log().mean()
    if name == "natural":
        return cross_entropy
    if name == "trades":
        return cross_entropy + 6 * kl64(clean, adversarial)
    target = softmax64(teacher)
    return 5 / 6 * kl64(target, adversarial) + 1 / 6 * kl64(target, clean)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_and_their_gradients_equal_float64(name, logits, halves):
    x, x_adv = halves
    y, teacher = torch.tensor([0, 1, 2, 3, 4, 5]), torch.randn(6, 7)
    network = Table(logits.clone())
    loss = make_loss(name).loss(network, x, x_adv, y, teacher)
    loss.backward()
    table = logits.double().requires_grad_()
    expected = reference(name, table, y, teacher)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network.logits.grad.double(), table.grad, rtol=1e-4, atol=1e-6)


def test_rslad_does_not_train_the_teacher(logits, halves):
    teacher = torch.randn(6, 7, requires_grad=True)
    RSLAD().loss(Table(logits), *halves, torch.zeros(6, dtype=torch.long), teacher.detach()).backward()
    assert teacher.grad is None


@pytest.fixture
def image_network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5))
    return net.train()


@pytest.mark.parametrize("loss", [TRADES(), RSLAD()], ids=["trades", "rslad"])
@pytest.mark.parametrize("value", [None, 0.0, 1.0])
def test_inner_attacks_stay_in_the_ball_and_raise_the_divergence(image_network, loss, value):
    torch.manual_seed(3)
    x = torch.rand(32, 1, 6, 6) if value is None else torch.full((32, 1, 6, 6), value)
    y, teacher, budget = torch.randint(0, 5, (32,)), torch.randn(32, 5), AttackBudget(0.1, 0.025, 10)
    before = {name: tensor.clone() for name, tensor in image_network.state_dict().items()}
    x_adv = loss.adversarial(image_network, x, y, teacher, budget, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in image_network.state_dict().items())
    assert ((x_adv >= x - 0.1) & (x_adv <= x + 0.1) & (x_adv >= 0) & (x_adv <= 1)).all()
    with torch.no_grad():
        target = teacher if isinstance(loss, RSLAD) else image_network(x)
        divergence = [float(kl_divergence(target, image_network(images))) for images in (x, x_adv)]
    assert divergence[1] > divergence[0]


def test_natural_training_has_no_attack(image_network):
    assert Natural().adversarial(image_network, torch.rand(2, 1, 6, 6), None, None, AttackBudget(), 0) is None


def test_a_loss_of_ones_own_is_taken_and_an_unknown_name_refused():
    own = Natural()
    assert make_loss(own) is own
    with pytest.raises(ValueError, match="unknown loss 'rslda'.*Did you mean 'rslad'"):
        make_loss("rslda")


def test_attack_budget_refuses_eps_of_zero():
    with pytest.raises(ValueError, match="eps"):
        AttackBudget(eps=0)
