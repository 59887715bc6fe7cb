"""Evaluation attacks against torchattacks' own, brute force, and the promises made about generators."""

from __future__ import annotations

import pytest
import torch
import torchattacks
from torch import nn

from proard_nas.attacks import WorstCasePGD, make_attack, run_attack, seeded


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(8 * 36, 4),
    )
    layers(torch.rand(64, 1, 6, 6))  # statistics of some batch
    return layers.eval()


@pytest.fixture
def batch(network):
    torch.manual_seed(1)
    x = torch.rand(48, 1, 6, 6)
    return x, network(x).argmax(1)


@pytest.mark.parametrize("images", ["random", "zeros", "ones"])
def test_worst_case_pgd_stays_in_the_ball_and_in_the_unit_interval_exactly(network, batch, images):
    x, y = batch
    x = {"random": x, "zeros": torch.zeros_like(x), "ones": torch.ones_like(x)}[images]
    eps = 8 / 255
    adversarial = WorstCasePGD(network, eps=eps, alpha=2 / 255, steps=10)(x, y)
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert (adversarial >= x - eps).all() and (adversarial <= x + eps).all()
    assert not torch.equal(adversarial, x)


def test_dropping_fooled_images_changes_no_image(network, batch):
    x, y = batch
    results = [
        run_attack(WorstCasePGD(network, eps=0.08, alpha=0.02, steps=12, drop_fooled=drop), x, y, seed=5)
        for drop in (True, False)
    ]
    assert 0 < (network(results[0]).argmax(1) == y).sum() < len(y)
    assert torch.equal(results[0], results[1])


def test_worst_case_pgd_equals_the_worst_of_all_torchattacks_iterates(network, batch):
    x, y = batch
    eps, alpha, steps = 0.08, 0.02, 12
    survived = torch.ones(len(y), dtype=torch.bool)
    for k in range(steps + 1):  # torchattacks' PGD of k steps from the same start is the k-th iterate
        iterate = run_attack(torchattacks.PGD(network, eps=eps, alpha=alpha, steps=k), x, y, seed=5)
        survived &= network(iterate).argmax(1) == y
    ours = run_attack(WorstCasePGD(network, eps=eps, alpha=alpha, steps=steps), x, y, seed=5)
    assert 0 < survived.sum() < len(y)
    assert torch.equal(network(ours).argmax(1) == y, survived)


def test_an_attack_leaves_the_generator_as_it_was_and_works_under_no_grad(network, batch):
    x, y = batch
    state = torch.get_rng_state()
    with torch.no_grad():
        adversarial = run_attack(make_attack("pgd", network, steps=2), x, y, seed=0)
    assert not torch.equal(adversarial, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_gives_the_same_attack(network, batch):
    x, y = batch
    first, second, other = (
        run_attack(WorstCasePGD(network, eps=0.02, alpha=0.01, steps=2), x, y, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_fgsm_is_one_full_step_along_the_sign_of_the_gradient(network, batch):
    x, y = batch
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(network(leaf), y).backward()
    expected = (x + 0.03 * leaf.grad.sign()).clamp(0, 1)
    torch.testing.assert_close(run_attack(make_attack("fgsm", network, eps=0.03), x, y), expected)


def test_an_unknown_attack_suggests_the_nearest(network):
    with pytest.raises(ValueError, match="unknown attack 'pdg'.*Did you mean 'pgd'"):
        make_attack("pdg", network)


def test_seeded_puts_the_generator_back_after_an_error():
    state = torch.get_rng_state()

    def draws_and_fails():
        with seeded(3):
            torch.rand(2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        draws_and_fails()
    assert torch.equal(torch.get_rng_state(), state)
