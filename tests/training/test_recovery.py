"""Training that fails: back to the last good state, and not for ever."""

from __future__ import annotations

import json
import logging
import math
import os
import signal

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

from proard_nas._random import derive_seed
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings
from proard_nas.training import (
    AttackBudget,
    CheckpointStore,
    Passes,
    Stage,
    Trainer,
    TrainingFailedError,
    TrainSettings,
    Validation,
    monitor,
    plan_training,
)

BATCHES = 3
SETTINGS = {"batch_size": 10, "budget": AttackBudget(0.05, 0.02, 2), "progress": False}
PGD = AttackSettings("pgd", 0.08, 0.03, 2)


def supernet(seed=0):
    torch.manual_seed(seed)
    return timm.create_model("proard_dyn_resnet_tiny", num_classes=3)


@pytest.fixture
def source():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(30) % 3
    return ArraySource(torch.rand(30, 1, 8, 8, generator=generator) * 0.4 + y.reshape(-1, 1, 1, 1) * 0.3, y)


@pytest.fixture
def _quick_disk(monkeypatch):
    """Do not wait for the disk: what a power cut leaves is another test's matter."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Failing:
    """The natural loss, on which something is done at the calls of the given numbers."""

    needs_teacher, passes = False, Passes(student=1, attacked=False)

    def __init__(self, calls, harm):
        self.at, self.harm, self.calls = set(calls), harm, 0

    def adversarial(self, net, batch, budget, noise):
        return None

    def loss(self, net, batch, x_adv):
        self.calls += 1
        if self.calls not in self.at:
            return F.cross_entropy(net(batch.x), batch.y)
        return self.harm(net, batch)


def not_a_number(net, batch):
    return F.cross_entropy(net(batch.x), batch.y) * math.nan


def infinite(net, batch):
    return F.cross_entropy(net(batch.x), batch.y) + math.inf


def gradient_is_not_a_number(net, batch):
    value = F.cross_entropy(net(batch.x), batch.y)
    return value + (value * 0).sqrt()


def dies(net, batch):
    """Let the network give the same answer to all images from now on."""
    with torch.no_grad():
        net.head.fc.bias[0] = 1e3
    return F.cross_entropy(net(batch.x), batch.y) * 0


def by_hand(source, epochs, scale_of_epoch, lr=0.05):
    """SGD with momentum on the largest network along a cosine, each epoch's learning rate times a factor."""
    net = supernet().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=2e-4)
    for epoch in range(epochs):
        order = torch.randperm(30, generator=torch.Generator().manual_seed(derive_seed(0, "train", 0, epoch)))
        for step in range(BATCHES):
            rate = lr * (1 + np.cos(np.pi * (epoch * BATCHES + step) / (epochs * BATCHES))) / 2
            optimizer.param_groups[0]["lr"] = rate * scale_of_epoch(epoch)
            optimizer.zero_grad()
            batch = order[10 * step : 10 * (step + 1)]
            F.cross_entropy(net(source.x[batch]), source.y[batch]).backward()
            optimizer.step()
    return net


def train(source, loss, epochs=3, stage=None, **options):
    net = supernet()
    trainer = Trainer(net, source, source.x, TrainSettings(**SETTINGS), **options)
    trainer.run([Stage("natural", epochs, loss, lr=0.05, **(stage or {}))])
    return net, trainer


def same_parameters(a, b):
    for (name, ours), theirs in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


# -- what is not finite -----------------------------------------------------------------------


@pytest.mark.parametrize(("harm", "loss"), [(not_a_number, "nan"), (infinite, "inf")])
@pytest.mark.parametrize("call", [4, 5, 6])
def test_a_loss_that_is_not_finite_goes_back_to_the_start_of_the_epoch_at_half_the_learning_rate(
    source, harm, loss, call
):
    """Weights and momentum are those of the first epoch's end: the rest equals training written out."""
    net, trainer = train(source, Failing([call], harm))
    same_parameters(net, by_hand(source, 3, lambda epoch: 1 if epoch == 0 else 0.5))
    assert trainer.events == [
        {
            "stage": "natural",
            "epoch": 1,
            "step": call - 3,
            "reason": f"the loss became {loss}",
            "action": "the learning rate is halved, to a peak of 0.025",
            "back_to_epoch": 1,
        }
    ]
    assert [record["epoch"] for record in trainer.history] == [0, 1, 2]
    assert [record["images"] for record in trainer.history] == [30, 30, 30]
    rates = [0.05, 0.5 * 0.05 * 0.75, 0.5 * 0.05 * 0.25]
    assert [record["lr"] for record in trainer.history] == pytest.approx(rates)
    assert trainer.ledger.total.steps == 9 + call - 4  # what was spent in vain stays spent


def test_weights_that_are_not_finite_after_the_last_step_of_an_epoch_are_no_state_to_go_back_to(source):
    net, trainer = train(source, Failing([3], gradient_is_not_a_number))
    same_parameters(net, by_hand(source, 3, lambda epoch: 0.5))
    assert [event["reason"] for event in trainer.events] == ["the weights are no longer finite"]
    assert math.isfinite(trainer.history[0]["loss"])


def test_a_failure_in_the_very_last_step_is_noticed_too(source):
    net, trainer = train(source, Failing([9], gradient_is_not_a_number))
    assert len(trainer.events) == 1
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_the_state_after_going_back_is_the_good_one_bit_for_bit(source, monkeypatch):
    states = []

    class Noting(Trainer):
        def _roll_back(self, phase, reason):
            super()._roll_back(phase, reason)
            states.append(self.everything())

        def everything(self):
            tensors = {name: value.clone() for name, value in self.network.state_dict().items()}
            average = self.keeper.averaged.state_dict()
            momentum = self.keeper.kept.get("momentum") or {
                name: self.keeper.optimizer.state[p]["momentum_buffer"] for name, p in self.network.named_parameters()
            }
            for prefix, more in (("average", average), ("momentum", momentum)):
                tensors |= {f"{prefix}.{name}": value.clone() for name, value in more.items()}
            return tensors

    net = supernet()
    trainer = Noting(
        net, source, source.x, TrainSettings(**SETTINGS, ema_decay=0.9), on_epoch=lambda record: good.append(None)
    )
    good = []
    trainer.on_epoch = lambda record: good.append(trainer.everything()) and False
    trainer.run([Stage("natural", 3, Failing([6, 11], not_a_number), lr=0.05)])
    assert len(states) == 2
    for found, expected in zip(states, [good[0], good[1]], strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len([name for name in good[0] if name.startswith("momentum.")]) == len(list(net.parameters()))


def test_it_goes_back_three_times_and_then_explains(source, caplog):
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(
            TrainingFailedError,
            match="the loss became nan in stage 'natural', again after 3 returns to the last good state, the last at "
            "a peak learning rate of 0.0063; a lower lr, a warm-up or clip_grad may help",
        ),
    ):
        train(source, Failing(range(5, 99), not_a_number))
    assert caplog.text.count("back to the start of its epoch 2") == 3
    for rate in ("0.025", "0.013", "0.0063"):
        assert f"the learning rate is halved, to a peak of {rate}" in caplog.text


def test_three_failures_are_survived_and_the_halved_rate_stays(source):
    net, trainer = train(source, Failing([2, 4, 7], not_a_number), epochs=2)
    assert [event["action"].split()[-1] for event in trainer.events] == ["0.025", "0.013", "0.0063"]
    same_parameters(net, by_hand(source, 2, lambda epoch: 1 / 8))


def test_the_next_stage_begins_with_its_own_learning_rate(source):
    trainer = Trainer(supernet(), source, source.x, TrainSettings(**SETTINGS))
    losses = Failing([2, 4, 7], not_a_number), Failing([1], not_a_number)
    trainer.run([Stage("a", 2, losses[0], lr=0.1), Stage("b", 1, losses[1], lr=0.02)])
    assert [(event["stage"], event["action"].split()[-1]) for event in trainer.events] == [
        ("a", "0.05"), ("a", "0.025"), ("a", "0.013"), ("b", "0.01"),
    ]  # fmt: skip
    assert trainer.history[-1]["lr"] == pytest.approx(0.01)


def test_a_learning_rate_that_is_too_high_is_halved_until_training_works(source):
    net = supernet()
    trainer = Trainer(net, source, source.x, TrainSettings(**SETTINGS))

    class TooHigh:
        needs_teacher, passes = False, Passes(student=1, attacked=False)
        adversarial = Failing.adversarial

        def loss(self, network, batch, x_adv):
            value = F.cross_entropy(network(batch.x), batch.y)
            return value * math.nan if trainer.keeper.optimizer.param_groups[0]["lr"] > 0.3 else value

    trainer.run([Stage("natural", 2, TooHigh(), lr=1.0)])
    assert len(trainer.events) == 2 and trainer.keeper.state.lr_scale == 0.25
    assert [record["lr"] for record in trainer.history] == pytest.approx([0.25, 0.125])


# -- accuracy that falls ----------------------------------------------------------------------


def test_a_network_that_dies_is_brought_back(source, caplog):
    validation = Validation(source, PGD, n_students=1)
    with caplog.at_level(logging.WARNING):
        net, trainer = train(source, Failing([24], dies), epochs=12, validation=validation)
    assert [(event["reason"], event["epoch"], event["back_to_epoch"]) for event in trainer.events] == [
        (monitor.COLLAPSED, 7, 7)
    ]
    natural = [record["validation"]["largest_natural"] for record in trainer.history]
    assert len(natural) == 12 and min(natural[6:]) > 2 / 3
    with torch.no_grad():
        assert (net(source.x).argmax(1) == source.y).float().mean() > 0.9
    assert "collapse to chance in stage 'natural', epoch 8: back to the start of its epoch 8" in caplog.text


@pytest.fixture
def figures(monkeypatch):
    """Let measurements give what a test lists: natural, robust and single-step accuracy."""
    rows, asked = [], []

    def measure(network, students, validation, calibration, seed, single):
        asked.append(single)
        natural, robust, fgsm = rows.pop(0)
        found = {"natural": natural, "robust": robust, "largest_natural": natural, "largest_robust": robust}
        return found | ({"single_step": fgsm} if single else {})

    monkeypatch.setattr(monitor, "measure", measure)
    return rows, asked


class Watched(Trainer):
    """Notes the attack of each step."""

    def step(self, job, *args):
        self.budgets = [*getattr(self, "budgets", []), job.budget]
        return super().step(job, *args)


def test_catastrophic_overfitting_goes_back_and_attacks_with_more_steps(source, figures, caplog):
    rows, asked = figures
    rows += [(0.7, 0.4, 0.5), (0.7, 0.1, 0.9), (0.7, 0.35, 0.5), (0.7, 0.0, 0.6), (0.7, 0.4, 0.5), (0.7, 0.4, 0.5)]
    net = supernet()
    trainer = Watched(net, source, source.x, TrainSettings(**SETTINGS), validation=Validation(source, PGD, 1, 1))
    stages = [Stage("fast", 3, "sat", lr=0.05, attack="ffgsm"), Stage("next", 1, "sat", lr=0.05, attack="ffgsm")]
    with caplog.at_level(logging.WARNING):
        trainer.run(stages)
    taken = [(budget.method, budget.n_steps) for budget in trainer.budgets[::BATCHES]]
    assert taken == [("ffgsm", 1), ("ffgsm", 1), ("pgd", 2), ("pgd", 2), ("pgd", 4), ("ffgsm", 1)]
    assert asked == [True] * 6
    for budget in trainer.budgets:
        assert budget.eps == 0.05 and (budget.method == "ffgsm" or budget.steps * budget.step_size == 1.25 * budget.eps)
    assert [(event["reason"], event["action"]) for event in trainer.events] == [
        (monitor.OVERFITTED, "the attack now takes 2 steps"),
        (monitor.OVERFITTED, "the attack now takes 4 steps"),
    ]
    assert "catastrophic overfitting in stage 'fast', epoch 2: back to the start of its epoch 2; the attack now" in (
        caplog.text
    )
    assert trainer.keeper.state.rollbacks == 0 and trainer.keeper.state.lr_scale == 1
    assert [record["epoch"] for record in trainer.history] == [0, 1, 2, 0]


def test_eight_steps_need_no_watch(source, figures):
    rows, asked = figures
    rows += [(0.7, 0.4, 0.5), *[(0.7, 0.1, 0.9)] * 5]
    trainer = Watched(supernet(), source, source.x, TrainSettings(**SETTINGS), validation=Validation(source, PGD, 1, 1))
    trainer.run([Stage("fast", 3, "sat", lr=0.05, attack="n-fgsm")])
    assert [budget.n_steps for budget in trainer.budgets[::BATCHES]] == [1, 1, 2, 4, 8, 8]
    assert asked == [True] * 4 + [False] * 2


def test_without_an_attack_or_with_many_steps_nothing_is_watched_for_overfitting(source, figures):
    rows, asked = figures
    rows += [(0.7, 0.4, 0.5)] * 2
    trainer = Trainer(supernet(), source, source.x, TrainSettings(**SETTINGS), validation=Validation(source, PGD, 1))
    trainer.run([Stage("natural", 1, "natural"), Stage("many", 1, "sat", attack_steps=5)])
    assert asked == [False, False]


def test_the_epochs_since_the_last_measurement_are_taken_again(source, figures):
    """What was not measured may be what went wrong."""
    rows, _ = figures
    rows += [(0.9, 0.5, 0), (0.33, 0.3, 0), (0.9, 0.5, 0), (0.9, 0.5, 0)]
    losses = Failing([], not_a_number)
    _, trainer = train(source, losses, epochs=6, validation=Validation(source, PGD, 1, every=2))
    assert [(event["epoch"], event["back_to_epoch"]) for event in trainer.events] == [(3, 2)]
    assert [record["epoch"] for record in trainer.history] == list(range(6))
    assert losses.calls == BATCHES * 8
    assert [("validation" in record) for record in trainer.history] == [False, True] * 3


# -- going back, and being interrupted --------------------------------------------------------


class Unstable(Trainer):
    """Fails at given steps of the first stage while the learning rate has been halved so often."""

    def step(self, job, x, y, update=0):
        loss = super().step(job, x, y, update)
        state = self.keeper.state
        return math.nan if state.phase == 0 and (update, state.lr_scale) in {(1, 1.0), (4, 0.5)} else loss


class Killed(BaseException):
    """The process's end."""


class Mortal(CheckpointStore):
    """Ends the process in place of the n-th checkpoint."""

    saves, last = 0, None

    def save(self, *args, **options):
        self.saves += 1
        if self.saves == self.last:
            raise Killed
        return super().save(*args, **options)


def unstable(source, folder, last=None, net=None):
    store = Mortal(folder, {})
    store.last = last
    net = net or supernet()
    settings = TrainSettings(**SETTINGS, ema_decay=0.5, checkpoint_seconds=0)
    validation = Validation(source, PGD, 1, every=1, batch_size=30)
    trainer = Unstable(net, source, source.x, settings, validation=validation, store=store)
    stages = [Stage("teacher", 2, "natural", lr=0.05), Stage("students", 1, "natural", ("depth",), lr=0.05)]
    trainer.restore(stages)
    trainer.run(stages)
    return net, trainer


def compare(found, expected):
    (net, trainer), (reference, other) = found, expected
    theirs = reference.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in net.state_dict().items())
    histories = [[{**record, "seconds": 0} for record in t.history] for t in (trainer, other)]
    assert histories[0] == histories[1]
    assert trainer.events == other.events and len(other.events) == 2


@pytest.mark.usefixtures("_quick_disk")
def test_a_run_that_went_back_and_was_killed_ends_as_if_it_had_not_been_killed(source, tmp_path):
    expected = unstable(source, tmp_path / "whole")
    n = expected[1].keeper.store.saves
    assert n > 15
    for last in range(5, n + 1, 6):
        folder = tmp_path / str(last)
        with pytest.raises(Killed):
            unstable(source, folder, last)
        compare(unstable(source, folder, net=supernet(seed=1)), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("_quick_disk")
def test_a_run_that_went_back_can_be_killed_anywhere(source, tmp_path):
    expected = unstable(source, tmp_path / "whole")
    for last in range(1, expected[1].keeper.store.saves + 1):
        folder = tmp_path / str(last)
        with pytest.raises(Killed):
            unstable(source, folder, last)
        compare(unstable(source, folder, net=supernet(seed=1 if last > 1 else 0)), expected)


# -- what is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "figure"), [("natural", "natural"), ("sat", "robust")])
def test_the_best_weights_are_those_of_what_the_stage_trains(source, monkeypatch, loss, figure):
    pairs = [(0.9, 0.4), (0.8, 0.5)]
    rows = [{"natural": n, "robust": r, "largest_natural": n, "largest_robust": r} for n, r in pairs]
    kept, found = [], iter(rows)
    monkeypatch.setattr(Trainer, "_validate", lambda self, phase: next(found))
    monkeypatch.setattr("proard_nas.training.keeper.Keeper.keep_best", lambda self, value, *_, **__: kept.append(value))
    train(source, loss, epochs=2, validation=Validation(source, AttackSettings("pgd", 0.1, 0.05, 1)))
    assert kept == [row[figure] for row in rows]


def test_a_helper_is_trained_for_a_live_teacher_that_needs_one(source):
    stage = Stage("all", 2, "rslad", ("depth",), lr=0.05, teacher="live", teacher_loss="hat")
    trainer = Trainer(supernet(), source, source.x, TrainSettings(**SETTINGS))
    trainer.run([stage])
    assert [record["stage"] for record in trainer.history] == ["all (helper)", "all", "all"]


def test_timing_steps_leaves_statistics_as_they_were(source):
    net = supernet()
    trainer = Trainer(net, source, source.x, TrainSettings(**SETTINGS))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plan_training(trainer, [Stage("a", 1, "sat", lr=0.05, batch_norm="running")], "float32")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_damaged_good_checkpoint_does_not_keep_whole_newer_ones_from_going_on(source, tmp_path, caplog):
    stages = [Stage("natural", 4, "natural", lr=0.05)]
    validation = Validation(source, AttackSettings("pgd", 0.1, 0.05, 1), every=3)

    def trainer(last=None):
        def interrupt(record):
            if record["epoch"] == last:
                signal.raise_signal(signal.SIGTERM)

        options = {"on_epoch": interrupt, "store": CheckpointStore(tmp_path / "run", {})}
        settings = TrainSettings(**SETTINGS, checkpoint_seconds=0)
        return Trainer(supernet(), source, source.x, settings, validation=validation, **options)

    trainer(last=1).run(stages)
    good = [p for p in (tmp_path / "run").glob("checkpoint-*") if json.loads((p / "state.json").read_text())["good"]]
    newest = max((tmp_path / "run").glob("checkpoint-*"))
    assert good and newest not in good
    for path in good:
        (path / "tensors.safetensors").write_bytes(b"cut")
    again = trainer()
    assert again.restore(stages) and "goes to the newest checkpoint" in caplog.text
    again.run(stages)
    assert len(again.history) == 4
