"""Evaluation attacks against torchattacks' own, brute force, and the promises made about generators."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
import torchattacks
from torch import nn

from proard_nas.attacks import (
    ATTACKS,
    AutoAttack,
    ReferenceAutoAttack,
    Square,
    WorstCasePGD,
    attack_title,
    make_attack,
    margin,
    run_attack,
    seeded,
)

needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("pyautoattack") is None, reason="pyautoattack is optional"
)
REFERENCE = pytest.param(ReferenceAutoAttack, marks=needs_reference)


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


def linear(n_classes, seed=0):
    """Logits that are equal at grey images, so that no class wins everywhere."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, n_classes)).eval()
    network[1].bias.data = -0.5 * network[1].weight.data.sum(1)
    return network


def robust_by_closed_form(network, x, y, eps):
    """Where each wrong class stays behind: (w_y - w_j) x + b_y - b_j > eps |w_y - w_j|_1, no pixel at 0 or 1."""
    weight, logits = network[1].weight, network(x)
    gaps = logits.gather(1, y[:, None]) - logits
    norms = (weight[y][:, None] - weight[None]).abs().sum(2)
    worst = gaps - eps * norms
    return worst.scatter(1, y[:, None], torch.inf).amin(1) > 0


@pytest.mark.parametrize("name", ["fgsm", "pgd", "cw", "autoattack"])
def test_white_box_attacks_reach_a_linear_networks_closed_form_and_square_does_not_beat_it(name):
    network, eps = linear(2), 0.03
    x = 0.3 + 0.4 * torch.rand(64, 1, 6, 6)
    y = network(x).argmax(1)
    expected = robust_by_closed_form(network, x, y, eps)
    assert 0 < expected.sum() < len(y)
    attack = AutoAttack(network, eps, queries=100) if name == "autoattack" else make_attack(name, network, eps=eps)
    assert torch.equal(network(run_attack(attack, x, y, seed=0)).argmax(1) == y, expected)
    square = network(run_attack(make_attack("square", network, eps=eps, steps=300), x, y, seed=0)).argmax(1) == y
    assert (square | ~expected).all()


@pytest.mark.parametrize("attack", [AutoAttack, REFERENCE])
@pytest.mark.parametrize("n_classes", [2, 3, 5, 12])
def test_both_autoattacks_reach_the_closed_form_with_any_number_of_classes(attack, n_classes):
    network, eps = linear(n_classes), 0.02
    x = 0.3 + 0.4 * torch.rand(40, 1, 6, 6)
    y = network(x).argmax(1)
    expected = robust_by_closed_form(network, x, y, eps)
    assert 0 < expected.sum() < len(y)
    found = network(run_attack(attack(network, eps, queries=100), x, y, seed=0)).argmax(1) == y
    assert (found | ~expected).all()  # nobody beats the closed form
    assert (found != expected).sum() <= 1  # a point on the boundary may be missed by a rounding error


def test_the_margin_is_the_largest_wrong_logit_minus_the_right_one():
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, -1.0, 4.0]])
    assert margin(torch.empty(0), logits, torch.tensor([0, 1])).item() == (2.5 - 3.0) + (4.0 + 1.0)


def test_cw_is_sign_ascent_on_a_margin_written_by_hand(network, batch):
    x, y = batch
    eps, alpha, steps = 0.08, 0.02, 6
    with seeded(5):
        current = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    survived = torch.ones(len(y), dtype=torch.bool)
    for _ in range(steps):
        current.requires_grad_()
        total = 0
        for logits, label in zip(network(current), y, strict=True):
            wrong = torch.stack([logits[j] for j in range(4) if j != label])
            total = total + wrong.max() - logits[label]
        (gradient,) = torch.autograd.grad(total, current)
        current = (current.detach() + alpha * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
        survived &= network(current).argmax(1) == y
    found = run_attack(make_attack("cw", network, eps=eps, step_size=alpha, steps=steps), x, y, seed=5)
    assert 0 < survived.sum() < len(y)
    assert torch.equal(network(found).argmax(1) == y, survived)


def test_square_and_autoattack_are_torchattacks_own_on_the_same_seed(network, batch):
    x, y = batch
    with seeded(0):
        square = torchattacks.Square(network, eps=0.05, n_queries=200, seed=3)(x, y)
        whole = torchattacks.AutoAttack(network, eps=0.05, n_classes=4, seed=3)
        whole._autoattack.attacks[-1].n_queries = 200
        auto = whole(x, y)
    assert torch.equal(run_attack(Square(network, 0.05, 200, 3), x, y), square)
    torch.testing.assert_close(run_attack(AutoAttack(network, 0.05, 3, 200), x, y), auto, atol=1e-6, rtol=0)


@pytest.mark.parametrize("attack", [AutoAttack, REFERENCE])
def test_autoattack_fools_at_least_what_pgd_fools(attack, network, batch):
    x, y = batch
    pgd = network(run_attack(make_attack("pgd", network, eps=0.05, step_size=0.0125), x, y, seed=0)).argmax(1) == y
    auto = network(run_attack(attack(network, 0.05, queries=200), x, y)).argmax(1) == y
    assert 0 < auto.sum() <= pgd.sum() < len(y)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "autoattack-reference"])
def test_attacks_without_a_seed_leave_gradients_modes_and_output_alone(name, network, batch, capsys):
    x, y = batch[0][:8], batch[1][:8]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    network.train()
    network[1].eval()
    attack = make_attack(name, network, eps=0.05, steps=100)
    if hasattr(attack, "queries"):
        attack.queries = 100
    state = torch.get_rng_state()
    adversarial = run_attack(attack, x, y, seed=None if "a" in name else 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert adversarial.min() >= 0 and adversarial.max() <= 1 and (adversarial - x).abs().max() <= 0.05 + 1e-6
    assert [m.training for m in network] == [True, False, True, True, True, True]
    assert all(p.requires_grad and (p.grad == 1).all() for p in network.parameters())
    assert capsys.readouterr() == ("", "")


@needs_reference
def test_the_reference_autoattack_leaves_everything_alone(network, batch, capsys):
    x, y = batch[0][:8], batch[1][:8]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    network.train()
    state, trace = torch.get_rng_state(), sys.gettrace()
    adversarial = run_attack(ReferenceAutoAttack(network, 0.05, queries=100), x, y)
    assert torch.equal(torch.get_rng_state(), state) and sys.gettrace() is trace
    assert adversarial.min() >= 0 and adversarial.max() <= 1 and (adversarial - x).abs().max() <= 0.05 + 1e-6
    assert all(m.training for m in network)
    assert all(p.requires_grad and (p.grad == 1).all() for p in network.parameters())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["pgd", "cw", "square"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_attack_on_some_images_does_to_each_what_it_does_among_all(name, layout):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    x = torch.rand(30, 3, 6, 6).to(memory_format=layout)
    y = network(x).argmax(1)
    attack = make_attack(name, network, eps=0.04, step_size=0.01, steps=100, seed=2)
    some = torch.arange(30) % 3 != 1
    whole = run_attack(attack, x, y, seed=2)
    assert 0 < (network(whole).argmax(1) == y).sum() < len(y)
    part = run_attack(attack, x[some], y[some], seed=2, among=some)
    torch.testing.assert_close(part, whole[some], atol=1e-6, rtol=0)


def test_square_leaves_what_is_wrong_already_and_does_to_the_others_what_it_does_among_all(network, batch):
    x, y = batch
    attack = Square(network, 0.05, 150, 3)
    whole = run_attack(attack, x, y)
    others, wrong = torch.arange(len(x)) != 5, y.clone()
    wrong[5] = (y[5] + 1) % 4
    found = run_attack(attack, x, wrong, among=torch.ones(len(x), dtype=torch.bool))
    assert torch.equal(found[5], x[5])
    torch.testing.assert_close(found[others], whole[others], atol=1e-6, rtol=0)


def test_autoattack_takes_images_with_channels_last():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)).eval()
    x = torch.rand(8, 3, 6, 6)
    y = network(x).argmax(1)
    plain, last = (
        run_attack(AutoAttack(network, 0.001, queries=100), x.to(memory_format=layout), y)
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    assert (network(plain).argmax(1) == y).any()  # else FAB, which looks at an image's pixels in a row, sees none
    assert torch.equal(plain, last)


def test_titles_say_which_autoattack_and_what_it_leaves_out():
    assert attack_title("cw", 30) == "CW-inf-30" and attack_title("square") == "Square-5000"
    assert attack_title("autoattack", n_classes=10) == f"AutoAttack (torchattacks {torchattacks_version()}, standard)"
    assert "without APGD-T" in attack_title("autoattack", n_classes=3)


@needs_reference
def test_the_reference_names_itself():
    assert attack_title("autoattack-reference").startswith("AutoAttack (reference, pyautoattack ")


def test_a_missing_reference_says_how_to_install_it(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ImportError, match=r'pip install "proard-nas\[autoattack\]"'):
        make_attack("autoattack-reference", network)


def test_a_square_of_pgds_steps_is_refused(network):
    with pytest.raises(ValueError, match="'square' counts its queries in steps, and 20 are too few"):
        make_attack("square", network, steps=20)


def torchattacks_version():
    from importlib.metadata import version

    return version("torchattacks")
