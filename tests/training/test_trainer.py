"""The training loop: what changes, what does not, what repeats."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import timm
import torch

from proard_nas._random import derive_seed
from proard_nas.attacks import Noise
from proard_nas.data import ArraySource, LoaderSource
from proard_nas.evaluation import UncalibratedError
from proard_nas.supernets import is_calibrated
from proard_nas.training import (
    AttackBudget,
    Precision,
    Stage,
    Trainer,
    TrainSettings,
    fastest,
    make_loss,
    make_schedule,
    plan_training,
    training_cost,
)
from proard_nas.training.jobs import Job
from proard_nas.training.step import StepRunner

SETTINGS = TrainSettings(batch_size=16, budget=AttackBudget(0.05, 0.02, 2), progress=False)


def supernet(seed=0):
    torch.manual_seed(seed)
    return timm.create_model("proard_dyn_resnet_tiny", num_classes=3)


@pytest.fixture
def source():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(45) % 3
    x = torch.rand(45, 1, 8, 8, generator=generator) * 0.4 + y.reshape(-1, 1, 1, 1) * 0.3
    return ArraySource(x, y)


def train(source, stages=None, seed=0, **settings):
    net = supernet()
    trainer = Trainer(
        net, source, source.head(45).x, SETTINGS if not settings else TrainSettings(**settings, seed=seed)
    )
    trainer.run(stages or make_schedule("paper", net.space, epochs=4, lr=0.05))
    return net, trainer


def test_what_cannot_be_trained_is_named_before_training(source):
    net = supernet()
    with pytest.raises(TypeError, match="a Linear cannot be trained here"):
        Trainer(torch.nn.Linear(2, 2), source, source.x, SETTINGS)
    with pytest.raises(TypeError, match=r"a tuple is no Source.*ArraySource\(x, y\)"):
        Trainer(net, (source.x, source.y), source.x, SETTINGS)
    with pytest.raises(TypeError, match="calibration images must be a Tensor"):
        Trainer(net, source, source.x.numpy(), SETTINGS)
    with pytest.raises(ValueError, match="the training data has a label of 3, .*allowed: 0 to 2"):
        Trainer(net, ArraySource(source.x, source.y + 1), source.x, SETTINGS)
    with pytest.raises(ValueError, match="at least two images, got 1"):
        Trainer(net, source.head(1), source.x, SETTINGS)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage("s", 1, "natural", nesterov=True), "'s' has nesterov=True, which needs a momentum"),
        (Stage("s", 1, "natural", ("depth",), choices={"depths": (7,)}), r"depths=\[7\] must be a non-empty part"),
    ],
)
def test_a_later_stage_that_cannot_be_trained_is_named_before_the_first(source, stage, message):
    trainer = Trainer(supernet(), source, source.x, TrainSettings(16, momentum=0.0, progress=False))
    with pytest.raises(ValueError, match=message):
        trainer.run([Stage("first", 1, "natural"), stage])
    assert not trainer.history


def test_batches_too_small_for_batch_norm_end_training_that_would_do_nothing(source):
    loader = LoaderSource([(source.x[i : i + 1], source.y[i : i + 1]) for i in range(9)])
    with pytest.raises(ValueError, match="no batch of stage 'teacher' has the 2 images"):
        train(loader)


@pytest.mark.parametrize(("name", "value"), [("batch_size", 2.5), ("batch_size", "2"), ("seed", "a"), ("seed", -1)])
def test_settings_that_are_no_whole_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least"):
        TrainSettings(**{name: value})


def test_a_supernet_that_runs_another_student_is_not_trained(source):
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=3)
    net.set_active(net.space.smallest)
    with pytest.raises(ValueError, match=r"runs another student than its largest.*allowed: after set_active\(None\)"):
        Trainer(net, source, source.x, TrainSettings())


def test_a_teacher_without_statistics_is_not_learned_from(source):
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=3)
    with pytest.raises(UncalibratedError, match="calibrate it"):
        Trainer(net, source, source.x, TrainSettings(), teacher=net.extract(net.space.smallest))


def test_numbers_of_numpy_are_recorded_as_pythons_own():
    numbers = {"epochs": 2, "lr": 0.5, "students_per_step": 3, "attack_steps": 4}
    given = {name: np.float32(n) if name == "lr" else np.int64(n) for name, n in numbers.items()}
    given |= {"weight_decay": np.float32(0.5), "anneal": (np.float32(0), np.float64(1))}
    assert numbers.items() <= json.loads(json.dumps(Stage("s", loss="trades", **given).to_dict())).items()
    budget = AttackBudget(np.float32(0.5), np.float32(0.25), np.int64(2))
    assert json.loads(json.dumps(dataclasses.asdict(budget)))["steps"] == 2


def test_the_same_seed_gives_the_same_bits_whatever_the_global_generator(source):
    first, _ = train(source)
    torch.manual_seed(99)
    torch.rand(7)
    second, _ = train(source)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_another_seed_gives_other_weights(source):
    settings = {"batch_size": 16, "budget": AttackBudget(0.05, 0.02, 2), "progress": False}
    first, second = train(source, seed=0, **settings)[0], train(source, seed=1, **settings)[0]
    assert not torch.equal(first.head.fc.weight, second.head.fc.weight)


def test_training_leaves_the_global_generator_alone(source):
    net = supernet()
    state = torch.get_rng_state()
    Trainer(net, source, source.x, SETTINGS).run(make_schedule("paper", net.space, epochs=4))
    assert torch.equal(torch.get_rng_state(), state)


def test_history_has_one_record_for_each_epoch_and_falls_along_a_cosine(source):
    net = supernet()
    stages = [Stage("teacher", 4, "trades", lr=0.1), Stage("all", 2, "rslad", net.space.dimensions, lr=0.2)]
    history = Trainer(net, source, source.x, SETTINGS).run(stages)
    assert [(r["stage"], r["epoch"]) for r in history] == [("teacher", i) for i in range(4)] + [("all", 0), ("all", 1)]
    expected = [0.1 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)] + [0.2, 0.1]
    assert [r["lr"] for r in history] == pytest.approx(expected)
    assert all(r["images"] == 45 and math.isfinite(r["loss"]) for r in history)


def test_a_step_equals_the_same_step_written_out_for_a_plain_network(source):
    """TRADES, PGD-2 and SGD with momentum, once by the loop and once by hand."""
    x, y = source.x[:16], source.y[:16]
    net = supernet()
    net.train()
    by_hand = net.extract(net.space.largest).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    job = Job(make_loss("trades"), SETTINGS.budget, [net.space.largest], seed=3, total=16)
    StepRunner(net, Precision()).gradients(job, x, y)
    optimizer.step()
    start = 0.001 * Noise(derive_seed(3, 0)).normal(x)
    norms = [m for m in by_hand.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    target = by_hand(x).detach().softmax(1)
    adv = (x + start).clamp(0, 1)
    for _ in range(2):
        adv.requires_grad_()
        loss = -(target * by_hand(adv).log_softmax(1)).sum()
        (grad,) = torch.autograd.grad(loss, adv)
        adv = adv.detach() + 0.02 * grad.sign()
        adv = torch.max(torch.min(adv, x + 0.05), x - 0.05).clamp(0, 1)
    for norm in norms:
        norm.track_running_stats = True
    clean, robust = by_hand(x).log_softmax(1), by_hand(adv).log_softmax(1)
    loss = -clean[range(16), y].mean() + 6 * (clean.exp() * (clean - robust)).sum() / 16
    loss.backward()
    torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4).step()
    for (name, ours), theirs in zip(net.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_gradients_are_the_mean_over_the_students_of_a_step(source):
    net = supernet()
    net.train()
    runner = StepRunner(net, Precision())
    job = Job(make_loss("natural"), SETTINGS.budget, [net.space.sample(1), net.space.sample(2)], seed=0, total=16)
    x, y = source.x[:16], source.y[:16]
    runner.gradients(job, x, y)
    joint = net.head.fc.weight.grad.clone()
    net.zero_grad()
    for arch in job.students:
        runner.gradients(dataclasses.replace(job, students=[arch]), x, y)
    torch.testing.assert_close(joint, net.head.fc.weight.grad / 2)


def test_the_teacher_is_frozen_and_the_largest_student_ends_calibrated(source):
    net, trainer = train(source)
    assert not any(p.requires_grad for p in trainer.teacher.parameters())
    assert not trainer.teacher.training and is_calibrated(trainer.teacher)
    assert not torch.equal(trainer.teacher.head.fc.weight, net.head.fc.weight)
    assert is_calibrated(net) and not net.training


def middle_importances(net):
    """Return the L1 norms of what reads each of the two middle axes of every block."""
    blocks = [block for stage in net.stages for block in stage]
    weights = [module.conv.weight.detach() for block in blocks for module in (block.conv2, block.conv3)]
    return [weight.abs().sum((0, 2, 3)) for weight in weights]


def test_a_stage_sorts_channels_before_its_first_step_and_drops_features_in_its_students(source):
    net, seen = supernet(), []

    def record(student, batch, x_adv):
        seen.append((middle_importances(net), student.head.drop.p))
        return torch.nn.functional.cross_entropy(student(batch.x), batch.y)

    stages = [
        Stage("teacher", 1, record),
        Stage("students", 1, record, ("expand_ratio",), sort_channels=("expand_ratio",), drop_rate=0.3),
    ]
    Trainer(net, source, source.x, SETTINGS).run(stages)
    falls = [[bool((v[:-1] >= v[1:] - 1e-6 * v.max()).all()) for v in values] for values, _ in seen]
    assert len(seen) == 6 and not any(falls[2]) and all(falls[3])  # three steps an epoch
    assert [rate for _, rate in seen] == [0, 0, 0, 0.3, 0.3, 0.3]
    assert net.head.drop.p == 0


def test_a_network_that_is_no_supernet_trains_alone(source):
    net = supernet().extract(supernet().space.smallest)
    before = net.head.fc.weight.detach().clone()
    Trainer(net, source, source.x, SETTINGS).run([Stage("natural", 2, "natural", lr=0.05)])
    assert not torch.equal(net.head.fc.weight, before)


def test_natural_training_learns_an_easy_problem(source):
    net, _ = train(source, [Stage("natural", 12, "natural", lr=0.1)])
    with torch.no_grad():
        assert (net(source.x).argmax(1) == source.y).float().mean() > 0.9


def test_distilling_before_a_teacher_is_trained_is_refused(source):
    net = supernet()
    with pytest.raises(ValueError, match=r"'depth' distils from a teacher \('rslad'\), but no stage before it trains"):
        Trainer(net, source, source.x, SETTINGS).run([Stage("depth", 1, "rslad", ("depth",))])


def test_a_loss_that_is_not_finite_stops_with_advice(source):
    net = supernet()
    with pytest.raises(FloatingPointError, match="again after 3 returns to the last good state.*a lower lr"):
        Trainer(net, source, source.x, SETTINGS).run([Stage("natural", 30, "natural", lr=1e12)])


def test_training_ends_where_the_callback_says_so(source):
    net = supernet()
    trainer = Trainer(net, source, source.x, SETTINGS, on_epoch=lambda record: record["epoch"] == 1)
    assert len(trainer.run([Stage("natural", 9, "natural"), Stage("more", 9, "natural")])) == 2


def test_the_cost_of_the_paper_counts_every_pass():
    net = supernet()
    largest = net.cost(net.space.largest, 8).macs
    stages = [Stage("teacher", 3, "trades")]
    cost = training_cost(net, stages, 100, AttackBudget(steps=10), (8, 8))
    # clean logits for the attack, 10 x (forward, backward to the images), 2 x (forward, backward to the weights)
    assert cost.macs == 3 * 100 * largest * (1 + 10 * 2 + 2 * 3)
    natural = training_cost(net, [Stage("n", 1, "natural")], 100, AttackBudget(), (8, 8))
    assert natural.macs == 100 * largest * 3


def test_planning_changes_neither_weights_nor_statistics_nor_gradients(source):
    net = supernet()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trainer = Trainer(net, source, source.x, SETTINGS)
    precision, cost = plan_training(trainer, [Stage("teacher", 1, "trades")], "float32")
    assert precision == Precision("float32", channels_last=True)
    assert cost.seconds > 0 and "multiply-accumulates" in str(cost)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_the_stated_cost_is_of_all_that_is_trained_on_all_processes(source, monkeypatch):
    net, stages = supernet(), [Stage("teacher", 2, "hat")]
    settings = dataclasses.replace(SETTINGS, awp=0.01)
    trainer = Trainer(net, source, source.x, settings)
    monkeypatch.setattr("proard_nas.training.planning.fastest", one_second)
    _, alone = plan_training(trainer, stages, "float32")
    assert [name for name, _ in alone.stages] == ["teacher (helper)", "teacher"]
    trainer.run(stages)
    assert alone.macs == pytest.approx(trainer.ledger.total.macs)
    # the helper, twice for perturbed weights: forward and to the weights; two epochs of HAT: clean logits, PGD-2 and,
    # twice again, three such passes and the helper's one
    passes = 2 * 3 + 2 * (1 + 2 * 2 + 2 * (3 * 3 + 1))
    assert alone.macs == pytest.approx(45 * passes * net.cost(net.space.largest, 8).macs)
    # the second is one of a TRADES step with PGD-2 (1 + 2 x 2 + 2 x 3 passes) on 16 images and one random student
    assert alone.seconds == pytest.approx(alone.macs / (16 * 11 * net.cost(net.space.sample(0), 8).macs))
    monkeypatch.setattr("proard_nas.distributed.world_size", lambda: 2)
    _, together = plan_training(trainer, stages, "float32")
    assert together.macs == alone.macs and together.seconds == pytest.approx(alone.seconds / 2)


def one_second(step, wanted):
    """Take a second for a step, whatever it is."""
    return wanted[0], {str(wanted[0]): 1.0}


@pytest.mark.parametrize(("device", "n_images"), [("cpu", 2), ("cuda", 16)])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_gpu_is_timed_on_the_whole_batch_and_a_cpu_on_few_images(source, monkeypatch, device, n_images, processes):
    monkeypatch.setattr("proard_nas.training.planning.fastest", one_second)
    monkeypatch.setattr("proard_nas.training.planning.STEP_MACS", 0)
    trainer, stages = Trainer(supernet(), source, source.x, SETTINGS), [Stage("natural", 1, "natural")]
    monkeypatch.setattr("proard_nas.distributed.world_size", lambda: processes)
    trainer.device = torch.device(device)
    _, cost = plan_training(trainer, stages, "float32")
    timed = n_images * (processes if device == "cpu" else 1)  # a GPU trains, and is timed, on its share of a batch
    macs = 3 * trainer.network.cost(trainer.network.space.sample(0), 8).macs
    assert cost.seconds == pytest.approx(cost.macs / (timed * macs))


@pytest.mark.parametrize(
    ("attack", "stage", "pgd"),
    [
        ("pgd", Stage("t", 1, "trades"), True),
        ("n-fgsm", Stage("t", 1, "trades"), False),
        ("n-fgsm", Stage("t", 1, "trades", attack="pgd"), True),
        ("pgd", Stage("t", 1, "trades", attack="n-fgsm"), False),
        ("pgd", Stage("t", 1, "natural"), False),
    ],
)
def test_a_long_training_is_warned_of_with_what_makes_it_shorter(source, monkeypatch, caplog, attack, stage, pgd):
    monkeypatch.setattr("proard_nas.training.planning.fastest", one_second)
    monkeypatch.setattr("proard_nas.training.planning.LONG", 0)
    settings = dataclasses.replace(SETTINGS, budget=dataclasses.replace(SETTINGS.budget, method=attack))
    plan_training(Trainer(supernet(), source, source.x, settings), [stage], "float32")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "multiply-accumulates" in warning and re.search(r"\d s\b", warning)
    assert all(text in warning for text in ("(epochs=...)", "(model=...)", "(n_labels=...)"))
    assert [text in warning for text in ("(attack='n-fgsm')", "(attack_steps=...)")] == [pgd, pgd]


def test_the_cost_of_a_short_training_is_information(source, monkeypatch, caplog):
    monkeypatch.setattr("proard_nas.training.planning.fastest", one_second)
    with caplog.at_level("INFO", "proard_nas.training.planning"):
        plan_training(Trainer(supernet(), source, source.x, SETTINGS), [Stage("t", 1, "trades")], "float32")
    (record,) = [found for found in caplog.records if "will cost" in found.getMessage()]
    assert record.levelname == "INFO" and "multiply-accumulates" in record.getMessage()
    assert "epochs=" not in record.getMessage()


def test_auto_tries_both_number_formats_in_both_layouts(source, monkeypatch):
    tried = []

    def fastest(step, wanted):
        tried.extend(wanted)
        return wanted[2], dict.fromkeys(map(str, wanted), 1.0)

    monkeypatch.setattr("proard_nas.training.planning.fastest", fastest)
    trainer = Trainer(supernet(), source, source.x, SETTINGS)
    choice, _ = plan_training(trainer, [Stage("teacher", 1, "natural")], "auto")
    pairs = [("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)]
    assert tried == [Precision(*pair) for pair in pairs] and choice == tried[2]


def test_the_fastest_precision_is_kept_and_a_hopeless_one_tried_once(monkeypatch):
    calls = []

    def step(precision):
        calls.append(precision)

    def timed(step, precision):
        step(precision)
        return {False: 0.02, True: 0.005}[precision.channels_last] * (10 if precision.dtype == "bfloat16" else 1)

    monkeypatch.setattr("proard_nas.training.precision._time", timed)

    choice, seconds = fastest(step)
    assert choice == Precision("float32", channels_last=True)
    assert calls.count(Precision("bfloat16", False)) == 1
    assert len(seconds) == 4


@pytest.mark.parametrize("precision", [Precision("bfloat16"), Precision("float32", channels_last=True)])
def test_every_precision_trains(source, precision):
    net = supernet()
    settings = TrainSettings(16, budget=AttackBudget(0.05, 0.02, 1), precision=precision, progress=False)
    history = Trainer(net, source, source.x, settings).run(make_schedule("paper", net.space, epochs=4))
    assert all(math.isfinite(record["loss"]) for record in history)
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
