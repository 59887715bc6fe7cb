"""The inner attack against closed forms and torchattacks: bounds, optimum, precision, layout."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torchattacks
from torch import nn

from proard_nas.attacks import AttackBudget, InnerAttack, Noise, divergence, inner_attack

EPS = 8 / 255


@pytest.fixture
def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 64, 5)
    )
    net(torch.rand(64, 3, 8, 8))
    return net.train()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return {"random": torch.rand(32, 3, 8, 8), "zeros": torch.zeros(32, 3, 8, 8), "ones": torch.ones(32, 3, 8, 8)}


class Linear(nn.Module):
    """Two classes whose logits are linear in the pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.direction = nn.Parameter(torch.randn(3, 8, 8))

    def forward(self, x):
        score = (x * self.direction).sum((1, 2, 3))
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize("kind", ["random", "zeros", "ones"])
@pytest.mark.parametrize("method", ["pgd", "ffgsm"])
@pytest.mark.parametrize("batch_norm", ["batch", "clean", "running"])
def test_results_lie_between_the_bounds_exactly(network, images, kind, method, batch_norm):
    x, y = images[kind], torch.randint(0, 5, (32,))
    budget = AttackBudget(method=method, batch_norm=batch_norm)
    for start in ("uniform", "gaussian"):
        adversarial = inner_attack(network, x, y, budget, Noise(0), start=start)
        assert (adversarial >= (x - EPS).clamp(min=0)).all() and (adversarial <= (x + EPS).clamp(max=1)).all()
        assert (adversarial - x).abs().max() > 0.99 * EPS
        assert not adversarial.requires_grad


@pytest.mark.parametrize("kind", ["random", "zeros", "ones"])
def test_n_fgsm_leaves_the_ball_but_not_three_times_it_nor_the_unit_interval(network, images, kind):
    x, y = images[kind], torch.randint(0, 5, (32,))
    adversarial = inner_attack(network, x, y, AttackBudget(method="n-fgsm"), Noise(0))
    change = (adversarial - x).abs()
    assert 2.9 * EPS < change.max() <= 3 * EPS + 1e-7
    assert (change > EPS).double().mean() > 0.2
    assert adversarial.min() >= 0 and adversarial.max() <= 1


@pytest.mark.parametrize("method", ["pgd", "ffgsm"])
def test_for_a_linear_model_the_closed_form_optimum_is_reached(images, method):
    model, x, y = Linear(), images["random"], torch.arange(32) % 2
    budget = AttackBudget(eps=EPS, step_size=EPS / 4, steps=10, method=method)
    ascent = torch.where(y == 0, -1.0, 1.0).view(-1, 1, 1, 1) * model.direction.detach().sign()
    optimum = (x + EPS * ascent).clamp(0, 1)
    adversarial = inner_attack(model, x, y, budget, Noise(0))
    if method == "pgd":
        torch.testing.assert_close(adversarial, optimum, rtol=0, atol=1e-7)
    else:  # the start lies up to eps on the other side, the step is 1.25 eps
        start = (EPS * Noise(0).uniform(x) + x).clamp(0, 1)
        expected = torch.minimum(torch.maximum(start + 1.25 * EPS * ascent, x - EPS), x + EPS).clamp(0, 1)
        torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-7)


def test_n_fgsm_is_noise_plus_one_step(images):
    model, x, y = Linear(), images["random"], torch.arange(32) % 2
    ascent = torch.where(y == 0, -1.0, 1.0).view(-1, 1, 1, 1) * model.direction.detach().sign()
    noisy = (x + 2 * EPS * Noise(4).uniform(x)).clamp(0, 1)
    adversarial = inner_attack(model, x, y, AttackBudget(method="n-fgsm"), Noise(4))
    torch.testing.assert_close(adversarial, (noisy + EPS * ascent).clamp(0, 1), rtol=0, atol=1e-7)


def test_with_own_logits_it_is_torchattacks_tpgd_and_with_labels_its_pgd(network, images):
    x, y = images["random"], torch.randint(0, 5, (32,))
    network.eval()
    torch.manual_seed(2)
    start = 0.001 * torch.randn_like(x)
    ours = InnerAttack(network, 0.05, 0.01, 7, divergence, start).forward(x, network(x).detach())
    torch.manual_seed(2)
    theirs = torchattacks.TPGD(network, 0.05, 0.01, 7)(x)
    assert ((ours - theirs).abs() < 1e-6).double().mean() > 0.99  # rounding decides signs of gradients near zero
    torch.manual_seed(3)
    start = torch.empty_like(x).uniform_(-0.05, 0.05)
    ours = InnerAttack(network, 0.05, 0.01, 7, start=start).forward(x, y)
    torch.manual_seed(3)
    theirs = torchattacks.PGD(network, 0.05, 0.01, 7)(x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_one_step_from_one_start_is_torchattacks_ffgsm(network, images):
    x, y = images["random"], torch.randint(0, 5, (32,))
    network.eval()
    torch.manual_seed(3)
    start = torch.randn_like(x).uniform_(-EPS, EPS)
    ours = InnerAttack(network, EPS, 1.25 * EPS, 1, start=start).forward(x, y)
    torch.manual_seed(3)
    theirs = torchattacks.FFGSM(network, EPS, 1.25 * EPS)(x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["pgd", "ffgsm", "n-fgsm"])
@pytest.mark.parametrize("batch_norm", ["batch", "clean", "running"])
def test_nothing_but_the_images_is_touched(network, images, method, batch_norm):
    x, y = images["random"].requires_grad_(), torch.randint(0, 5, (32,))
    network[1].eval()
    before, modes, state = (
        copy.deepcopy(network.state_dict()),
        [m.training for m in network.modules()],
        torch.get_rng_state(),
    )
    with torch.no_grad():
        inner_attack(network, x, y, AttackBudget(method=method, batch_norm=batch_norm), Noise(0))
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in network.parameters()) and x.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_that_are_there_already_stay(network, images):
    for p in network.parameters():
        p.grad = torch.full_like(p, 3.0)
    inner_attack(
        network, images["random"], None, AttackBudget(steps=2), Noise(0), objective=divergence, start="gaussian"
    )
    assert all((p.grad == 3).all() for p in network.parameters())


def test_modes_come_back_after_an_error(network, images):
    modes = [m.training for m in network.modules()]

    def fails(adversarial, logits, target):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        inner_attack(network, images["random"], None, AttackBudget(), Noise(0), objective=fails)
    assert [m.training for m in network.modules()] == modes


@pytest.mark.parametrize("method", ["pgd", "ffgsm", "n-fgsm"])
@pytest.mark.parametrize("batch_norm", ["batch", "clean"])
def test_under_bfloat16_autocast_bounds_and_layout_hold(network, images, method, batch_norm):
    x = images["random"].contiguous(memory_format=torch.channels_last)
    seen = []

    def objective(adversarial, logits, target):
        seen.append((adversarial.is_contiguous(memory_format=torch.channels_last), logits.dtype))
        value = divergence(adversarial, logits, target)
        assert value.dtype == torch.float32
        return value

    budget = AttackBudget(method=method, batch_norm=batch_norm, steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        adversarial = inner_attack(network, x, None, budget, Noise(0), objective=objective)
    assert set(seen) == {(True, torch.bfloat16)}
    assert adversarial.dtype == torch.float32 and adversarial.is_contiguous(memory_format=torch.channels_last)
    reach = EPS if method != "n-fgsm" else 3 * EPS + 1e-7
    assert (adversarial >= (x - reach).clamp(min=0)).all() and (adversarial <= (x + reach).clamp(max=1)).all()


@pytest.mark.parametrize("method", ["pgd", "ffgsm"])
def test_images_in_bfloat16_stay_so_and_within_the_bounds(network, images, method):
    x = images["random"].bfloat16()
    adversarial = inner_attack(network.bfloat16(), x, None, AttackBudget(method=method), Noise(0))
    assert adversarial.dtype == torch.bfloat16 and not torch.equal(adversarial, x)
    assert (adversarial >= (x - EPS).clamp(min=0)).all() and (adversarial <= (x + EPS).clamp(max=1)).all()


def test_processes_with_a_share_of_the_batch_find_what_one_finds(network, images):
    x, y = images["random"], torch.randint(0, 5, (32,))
    budget = AttackBudget(batch_norm="running", steps=3)
    joined = inner_attack(network, x, y, budget, Noise(0))
    for rank in range(3):
        own = inner_attack(network, x[rank::3], y[rank::3], budget, Noise(0, 32, rank, 3))
        torch.testing.assert_close(own, joined[rank::3], rtol=0, atol=1e-6)


def test_an_unknown_start_is_refused(network, images):
    with pytest.raises(ValueError, match="unknown start 'normal'"):
        inner_attack(network, images["random"], None, AttackBudget(), Noise(0), start="normal")


def test_an_attack_lets_its_network_go_without_the_garbage_collector():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    still_there = weakref.ref(network)
    gc.disable()
    try:
        InnerAttack(network, steps=1).forward(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
        del network
        assert still_there() is None
    finally:
        gc.enable()
