"""Costs by arithmetic against closed forms."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import proard_nas  # noqa: F401
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, calibrate
from proard_nas.evaluation.population import label_student
from proard_nas.training import AttackBudget, Stage, make_loss, training_cost
from proard_nas.training.budget import stage_macs, step_macs
from proard_nas.training.losses import LOSSES, Batch, Noise, Passes
from proard_nas.training.planning import labelling_macs

TEN = AttackBudget(steps=10)
SIZE = (8, 8)


@pytest.fixture(scope="module")
def net():
    with torch.device("meta"):
        return timm.create_model("proard_dyn_resnet_tiny")


@pytest.fixture(scope="module")
def sizes(net):
    return [net.cost(arch, SIZE).macs for arch in (net.space.largest, net.space.smallest)]


class TorchCount(TorchDispatchMode):
    """Torch's own count of floating-point operations; its FlopCounterMode fails under autograd.grad."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def loss_with(**passes):
    return SimpleNamespace(passes=Passes(**passes))


@pytest.mark.parametrize(
    ("loss", "teacher", "macs"),
    [
        ("natural", 5, 3),
        # clean logits for the attack, 10 x (forward, to the images), 2 x (forward, to the weights)
        ("trades", 5, 1 + 20 + 6),
        ("rslad", 5, 20 + 6 + 5),
    ],
)
def test_one_student_costs_what_the_loss_passes_through_it(loss, teacher, macs):
    assert step_macs(make_loss(loss), [1.0], teacher, TEN, False) == macs
    assert step_macs(make_loss(loss), [7.0], 7 * teacher, TEN, False) == 7 * macs


@pytest.mark.parametrize("method", ["ffgsm", "n-fgsm"])
def test_a_single_step_attack_is_one_step_whatever_steps_says(method):
    budget = AttackBudget(steps=10, method=method)
    assert step_macs(make_loss("trades"), [1.0], 0.0, budget, False) == 1 + 2 + 6


def test_a_teacher_inside_the_attack_is_run_and_differentiated_in_every_step():
    loss = loss_with(student=2, teacher=2, teacher_in_attack=True)
    # the teacher: 10 x (forward, to the images), once on the clean and once on the attacked images
    assert step_macs(loss, [1.0], 100.0, TEN, False) == 20 + 6 + 100 * (20 + 1 + 1)


def test_the_teacher_sees_the_clean_images_once_and_each_students_own_apart():
    loss = loss_with(student=2, teacher=2)
    assert step_macs(loss, [1.0, 1.0, 1.0], 100.0, TEN, False) == 3 * (20 + 6) + 100 * (1 + 3)


def test_a_helper_is_run_once_for_each_student():
    loss = loss_with(student=1, helper=1)
    assert step_macs(loss, [1.0, 2.0], 50.0, TEN, False) == 3 * (20 + 3) + 2 * 50
    assert step_macs(loss, [1.0, 2.0], 50.0, TEN, False, helper_macs=9.0) == 3 * (20 + 3) + 2 * 9


def test_the_clean_batchs_statistics_take_a_pass_of_each_attacked_student():
    budget = AttackBudget(steps=10, batch_norm="clean")
    assert step_macs(make_loss("trades"), [1.0], 0.0, budget, False) == 28
    assert step_macs(make_loss("natural"), [1.0], 0.0, budget, False) == 3


def test_a_shared_attack_is_made_for_the_first_student_alone():
    loss = loss_with(student=2, setup=1)
    assert step_macs(loss, [5.0, 1.0, 2.0], 0.0, TEN, True) == 5 * (1 + 20) + (5 + 1 + 2) * 6


def test_a_loss_for_each_student():
    losses = [make_loss("trades"), make_loss("rslad")]
    assert step_macs(losses, [4.0, 1.0], 4.0, TEN, False) == 4 * 27 + 26 + 4
    with pytest.raises(ValueError, match="shorter|longer"):
        step_macs(losses, [4.0], 4.0, TEN, False)


def test_a_schedule_costs_epochs_times_images_times_steps(net, sizes):
    stages = [Stage("teacher", 3, "trades"), Stage("natural", 2, "natural")]
    cost = training_cost(net, stages, 100, TEN, SIZE)
    assert cost.stages == (("teacher", 3 * 100 * 27 * sizes[0]), ("natural", 2 * 100 * 3 * sizes[0]))
    assert cost.macs == sum(macs for _, macs in cost.stages)


def test_a_sandwich_of_two_is_the_largest_and_the_smallest(net, sizes):
    stage = Stage("both", 1, "rslad", net.space.dimensions, sampler="sandwich", students_per_step=2)
    assert stage_macs(net, stage, TEN, SIZE) == pytest.approx(26 * sum(sizes) + sizes[0])
    shared = dataclasses.replace(stage, share_attack=True)
    assert stage_macs(net, shared, TEN, SIZE) == pytest.approx(20 * sizes[0] + 6 * sum(sizes) + sizes[0])


def test_with_a_live_teacher_the_largest_student_pays_for_its_own_loss(net, sizes):
    stage = Stage("both", 1, "rslad", net.space.dimensions, sampler="sandwich", students_per_step=2, teacher="live")
    assert stage_macs(net, stage, TEN, SIZE) == pytest.approx(27 * sizes[0] + 26 * sizes[1] + sizes[0])


def test_a_stage_draws_from_its_own_choices(net, sizes):
    smallest = {"depths": (0,), "width_mults": (0.5,), "expand_ratios": (0.25,)}
    assert stage_macs(net, Stage("small", 1, "natural", choices=smallest), TEN, SIZE) == 3 * sizes[1]


def test_a_stages_attack_stands_in_place_of_the_settings(net, sizes):
    few = Stage("few", 1, "trades", attack_steps=2)
    fast = Stage("fast", 1, "trades", attack="n-fgsm")
    assert stage_macs(net, few, TEN, SIZE) == sizes[0] * (1 + 4 + 6)
    assert stage_macs(net, fast, TEN, SIZE) == sizes[0] * (1 + 2 + 6)


def test_the_mean_student_is_that_of_the_sampler(net, sizes):
    def mean(sampler):
        stage = Stage("all", 1, "natural", net.space.dimensions, sampler=sampler)
        return stage_macs(net, stage, TEN, SIZE) / 3

    enumerated = [net.cost(arch, SIZE).macs for arch in net.space.sample_distinct(2000, seed=1)]
    assert mean("uniform") == pytest.approx(sum(enumerated) / 2000, rel=0.15)
    assert mean("attentive") == pytest.approx(sum(sizes) / 2, rel=0.15)
    assert mean("sandwich") == sizes[0]


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("method", ["pgd", "n-fgsm"])
def test_the_count_is_what_torch_counts(name, method):
    net = timm.create_model("proard_dyn_resnet_tiny").train()
    teacher, helper = (net.extract(net.space.largest).eval().requires_grad_(False) for _ in range(2))
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    loss, budget = make_loss(name), AttackBudget(steps=3, method=method)
    students = [net.space.largest, net.space.smallest]
    with TorchCount() as counter:
        batch = Batch(x, y, teacher(x) if loss.needs_teacher else None, teacher, helper)
        for i, arch in enumerate(students):
            student = net.student(arch)
            loss.loss(student, batch, loss.adversarial(student, batch, budget, Noise(i))).backward()
    macs = [net.cost(arch, SIZE).macs for arch in students]
    # torch leaves out the gradient of the first layer's input where nobody asks for it
    assert counter.flops / 2 / len(x) == pytest.approx(step_macs(loss, macs, macs[0], budget, False), rel=0.005)


def test_labelling_costs_what_torch_counts_where_no_image_is_fooled():
    net = timm.create_model("proard_dyn_resnet_tiny")
    arch, calibration, x = net.space.sample(0), torch.rand(6, 1, 8, 8), torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        student = calibrate(net.student(arch), calibration).eval()
        source = ArraySource(x, student(x).argmax(1))
    with TorchCount() as counter:
        label = label_student(net, arch, source, calibration, AttackSettings("pgd", 1e-7, 1e-8, 5))
    assert (label.natural_accuracy, label.robust_accuracy) == (1, 1)
    macs = net.cost(arch, SIZE).macs
    assert counter.flops / 2 == pytest.approx(labelling_macs(1, 4, 6, 5, macs), rel=0.005)


def test_perturbed_weights_take_the_outer_loss_once_more(net, sizes):
    assert step_macs(make_loss("trades"), [1.0], 0.0, TEN, False, awp=True) == 1 + 20 + 2 * 6
    plain, perturbed = (
        training_cost(net, [Stage("t", 2, "trades")], 100, TEN, SIZE, awp).macs for awp in (False, True)
    )
    assert perturbed - plain == 2 * 100 * 6 * sizes[0]
