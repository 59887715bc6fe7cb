"""The check of masked gradients: silent on an honest network, loud on networks that mask them on purpose."""

from __future__ import annotations

import dataclasses
import json

import pytest
import timm
import torch
from torch import nn

from proard_nas._random import derive_seed
from proard_nas.attacks import WorstCasePGD, run_attack
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, UncalibratedError, check_gradient_masking, evaluate
from proard_nas.evaluation.accuracy import predict_logits
from proard_nas.evaluation.masking import find_warnings

SETTINGS = AttackSettings("pgd", 0.1, 0.025)


class Scaled(nn.Module):
    """Logits so large that softmax saturates and the cross-entropy has no gradient."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return 1e4 * self.network(x)


class Quantised(nn.Module):
    """Images rounded to 32 levels: the rounding has a gradient of zero everywhere."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((x * 31).round() / 31)


class Misleading(nn.Module):
    """The same logits, and gradients that point the other way."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(2 * x.detach() - x)


@pytest.fixture(scope="module")
def source():
    """Four classes: which quarter of the image is brighter."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (160,), generator=generator)
    x = 0.35 + 0.2 * torch.rand(160, 1, 8, 8, generator=generator)
    for image, label in zip(x, y, strict=True):
        row, column = divmod(int(label), 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.25 * torch.rand(1, generator=generator)
    return ArraySource(x, y)


@pytest.fixture(scope="module")
def network(source):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 4))
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(source.x), source.y).backward()
            optimizer.step()
    return net


def check(network, source, **options):
    return check_gradient_masking(network, source, SETTINGS, queries=300, **options)


def test_an_honest_network_gets_no_warning(network, source):
    report = check(network, source)
    assert report.natural > 0.8 and 0 < report.by_eps[0.1] < report.natural
    assert report.ok and report.warnings == []


def test_saturated_logits_are_found_by_their_gradients_and_by_the_margin(network, source):
    report = check(Scaled(network), source)
    honest = check(network, source)
    assert report.zero_gradients > 0.3
    assert report.cw == pytest.approx(honest.cw, abs=0.02)  # the margin is not fooled
    words = " ".join(report.warnings)
    assert not report.ok and "no gradient at all" in words and "CW" in words


def test_quantised_images_are_found_by_square(network, source):
    report = check(Quantised(network), source)
    assert report.zero_gradients == 1
    assert report.square < report.by_eps[0.1] - 0.02
    words = " ".join(report.warnings)
    assert not report.ok and "Square" in words and "no gradient at all" in words and "does not rise" in words


def test_gradients_that_mislead_are_found_by_square_noise_and_loss(network, source):
    words = " ".join(check(Misleading(network), source).warnings)
    assert "Square" in words and "does not rise" in words


def test_a_transfer_attack_from_an_honest_network_finds_a_masking_one(network, source):
    report = check(Quantised(network), source, surrogate=network)
    assert report.transfer is not None and report.transfer < report.by_eps[0.1]
    assert any("another network" in warning for warning in report.warnings)


def test_figures_are_those_of_plain_loops(network, source):
    report = check(network, source, n_images=60, batch_size=60)
    drawn = source.head(60, seed=derive_seed(0, "masking"))
    x, y = drawn.x, drawn.y
    right = predict_logits(network, x).argmax(1) == y
    assert report.natural == pytest.approx(float(right.float().mean()))
    x, y = x[right], y[right]
    starts = []  # the start is the only thing left of the attack when its steps are of no size

    def hold(adversarial, logits, target):
        starts.append(adversarial.detach())
        return logits.sum()

    run_attack(WorstCasePGD(network, 0.1, 0.025, 1, objective=hold), x, y, seed=derive_seed(0, "masking", 0))
    current = starts[0]
    for step in range(51):
        current.requires_grad_()
        loss = nn.functional.cross_entropy(network(current), y)
        assert report.losses[step] == pytest.approx(loss.item(), rel=1e-4)
        if step in report.by_steps:
            survive = (network(current).argmax(1) == y).sum().item()
            assert report.by_steps[step] == pytest.approx(survive / 60)
        (gradient,) = torch.autograd.grad(loss, current)
        current = (current.detach() + 0.025 * gradient.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)


def test_warnings_say_what_is_suspicious(network, source):
    honest, others = check(network, source), {"square": 0.9, "cw": 0.9, "noise": 0.9}
    for change, said in [
        ({"by_steps": {10: 0.3, 20: 0.4, 50: 0.3}}, "rises from 30.0% at steps 10 to 40.0% at steps 20"),
        ({"by_eps": {0.1: 0.2, 0.2: 0.5, 1.0: 0.0}, **others}, "rises from 20.0% at eps 0.1 to 50.0% at eps 0.2"),
        ({"by_eps": {0.1: 0.7, 0.2: 0.5, 1.0: 0.2}, **others}, "20.0% survive"),
        ({"by_eps": {0.1: 0.3, 0.2: 0.1, 1.0: 0.0}, **others, "noise": 0.0}, "random noise leaves 0.0%"),
        ({"losses": [1.0, 3.0, 2.0]}, "falls along PGD, from 3 to 2"),
        ({"losses": [1.0, float("nan")]}, "not finite"),
        ({"natural": 0.0}, "nothing could be checked"),
    ]:
        warnings = find_warnings(dataclasses.replace(honest, **change), 0.02)
        assert len(warnings) == 1 and said in warnings[0]
    robust = dataclasses.replace(honest, by_eps={0.1: 0.3, 0.2: 0.1, 1.0: 0.0}, square=0.27)
    assert find_warnings(dataclasses.replace(robust, cw=0.26), 0.02) == []
    (margin,) = find_warnings(dataclasses.replace(robust, cw=0.2), 0.02)
    assert "CW" in margin and "20.0%" in margin
    within = dataclasses.replace(honest, square=honest.by_eps[0.1] - 0.019)
    assert find_warnings(within, 0.02) == [] and len(find_warnings(within, 0.01)) == 1


def test_a_check_leaves_network_and_generator_alone_and_repeats_itself(network, source):
    masked = nn.Sequential(network, nn.Dropout(0.5)).train()
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in masked.state_dict().items()}
    first, second = (check(masked, source, n_images=40) for _ in range(2))
    assert first == second and masked.training and masked[1].training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in masked.state_dict().items())


def test_an_evaluation_carries_the_report_as_json(network, source):
    few = source.head(30)
    found = evaluate(Quantised(network), few, SETTINGS, check_masking=True).to_dict()
    again = json.loads(json.dumps(found))
    assert again["masking"]["ok"] is False and again["masking"]["by_eps"].keys() == {"0.1", "0.2", "0.4", "1"}
    assert evaluate(network, few, SETTINGS).masking is None


def test_what_cannot_be_checked_is_refused(network, source):
    with pytest.raises(ValueError, match="needs an attack"):
        evaluate(network, source, "natural", check_masking=True)
    with pytest.raises(ValueError, match="must be positive"):
        check_gradient_masking(network, source, n_images=0)


def test_a_surrogate_without_statistics_is_refused(network, source):
    surrogate = timm.create_model("proard_dyn_resnet_tiny", num_classes=4)
    with pytest.raises(UncalibratedError, match="calibrate it"):
        check(network, source, surrogate=surrogate.extract(surrogate.space.smallest))


def test_a_network_that_is_never_right_cannot_be_checked(network, source):
    wrong = ArraySource(source.x[:20], (network(source.x[:20]).argmax(1) + 1) % 4)
    assert check(network, wrong).warnings == [
        "no image is classified rightly without an attack, so nothing could be checked"
    ]
