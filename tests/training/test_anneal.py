"""One cosine over several stages, and the part of it that each runs through."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from proard_nas.training import Stage, TrainSettings, make_schedule
from proard_nas.training.optimizing import make_optimizer

SPACE = timm.create_model("proard_dyn_resnet_tiny").space


def rates(stage: Stage, n_steps: int = 7) -> list[float]:
    """Return the learning rate of every step of a stage."""
    optimizer, set_lr = make_optimizer(nn.Linear(2, 2), stage, TrainSettings(), n_steps, 1.0)
    found = []
    for update in range(stage.epochs * n_steps):
        set_lr(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_a_stage_of_its_own_falls_along_half_a_cosine() -> None:
    n = 4 * 7
    expected = [0.3 * (1 + math.cos(math.pi * i / n)) / 2 for i in range(n)]
    assert rates(Stage("teacher", 4, "trades", lr=0.3)) == pytest.approx(expected)


def test_stages_that_share_a_cosine_run_through_it_once() -> None:
    stages = make_schedule("paper", SPACE, epochs=13, lr=0.3, anneal="whole")
    assert len(stages) == 4 and stages[0].anneal[0] == 0 and stages[-1].anneal[1] == 1
    n = 13 * 7
    expected = [0.3 * (1 + math.cos(math.pi * i / n)) / 2 for i in range(n)]
    assert [rate for stage in stages for rate in rates(stage)] == pytest.approx(expected)


def test_the_first_peak_and_the_first_warm_up_are_those_of_all() -> None:
    stages = make_schedule("released", SPACE, anneal="whole")
    assert {stage.lr for stage in stages} == {0.1}
    assert [stage.warmup > 0 for stage in stages] == [True] + [False] * (len(stages) - 1)
    assert rates(stages[0])[0] < rates(stages[0])[5 * 7]


def test_a_part_survives_json() -> None:
    stage = Stage("depth", 2, "rslad", anneal=[0.25, 0.5])
    assert stage.anneal == (0.25, 0.5)
    assert Stage.from_dict(stage.to_dict()) == stage


@pytest.mark.parametrize("part", [(0.5, 0.5), (-0.1, 1.0), (0.2, 1.1), (0.5,)])
def test_a_part_that_is_none_is_refused(part: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="needs anneal"):
        Stage("depth", 2, "rslad", anneal=part)


def test_a_stage_within_a_cosine_has_no_warm_up() -> None:
    with pytest.raises(ValueError, match="no warm-up"):
        Stage("depth", 2, "rslad", anneal=(0.5, 1.0), warmup=1.0)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown anneal 'all'; allowed: 'stage', 'whole'"):
        make_schedule("paper", SPACE, anneal="all")


def test_a_step_is_that_of_nesterovs_momentum_with_the_stages_own_weight_decay() -> None:
    gradients = torch.tensor([[1.0, -2.0], [0.5, 4.0], [-3.0, 0.25]])
    stage = Stage("teacher", 1, "trades", lr=0.1, nesterov=True, weight_decay=1e-3)
    net = nn.Linear(2, 1, bias=False)
    optimizer, set_lr = make_optimizer(net, stage, TrainSettings(momentum=0.7, weight_decay=0.5), 3, 1.0)
    p, b = net.weight.detach().clone()[0], torch.zeros(2)
    for update, gradient in enumerate(gradients):
        net.weight.grad = gradient[None].clone()
        set_lr(update)
        optimizer.step()
        lr = 0.1 * (1 + math.cos(math.pi * update / 3)) / 2
        g = gradient + 1e-3 * p
        b = 0.7 * b + g
        p = p - lr * (g + 0.7 * b)
        torch.testing.assert_close(net.weight.detach()[0], p)
