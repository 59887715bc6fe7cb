"""A training that was killed, and goes on: to the same bits as one that was not."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from proard_nas.data import ArraySource, DatasetSource
from proard_nas.evaluation import AttackSettings, calibrate
from proard_nas.training import (
    AttackBudget,
    CheckpointStore,
    Passes,
    Precision,
    Stage,
    Trainer,
    TrainSettings,
    Validation,
    make_schedule,
    monitor,
)
from proard_nas.training.state import State

SETTINGS = TrainSettings(
    batch_size=12,
    budget=AttackBudget(0.05, 0.03, 1),
    progress=False,
    ema_decay=0.6,
    augment="crop-flip",
    clip_grad=5.0,
    checkpoint_seconds=0,
)
ELASTIC = ("depth", "expand_ratio")
STAGES = [
    Stage("teacher", 2, "trades", lr=0.05, drop_rate=0.3),
    Stage("students", 2, "rslad", ELASTIC, lr=0.03, sort_channels=("expand_ratio",), drop_rate=0.2),
]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Do not wait for the disk: what a power cut leaves is another test's matter."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


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


class Counting(Trainer):
    """Counts the steps it takes."""

    steps = 0

    def step(self, *args):
        self.steps += 1
        return super().step(*args)


def supernet(seed=0):
    torch.manual_seed(seed)
    return timm.create_model("proard_dyn_resnet_tiny", num_classes=3)


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return ArraySource(torch.rand(n, 1, 8, 8, generator=generator) * 0.4 + y.reshape(-1, 1, 1, 1) * 0.3, y)


def make_trainer(folder, last=None, settings=SETTINGS, seed=0, **options):
    """Return a trainer that is killed in place of its n-th checkpoint; another seed is another fresh network."""
    store = Mortal(folder, {"run": 1})
    store.last = last
    validation = Validation(images(9, seed=1), AttackSettings("pgd", 0.08, 0.03, 1), n_students=2, every=1)
    options = {"validation": validation, **options}
    return Counting(supernet(seed), images(21), images(21).x, settings, store=store, **options)


def run(folder, stages, last=None, **options):
    trainer = make_trainer(folder, last, **options)
    trainer.restore(stages)
    trainer.run(stages)
    return trainer


def compare(trainer, expected):
    """Compare everything a training leaves: weights, statistics, records, and what was counted as spent."""
    theirs = expected.network.state_dict()
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    histories = [[{**record, "seconds": 0} for record in t.history] for t in (trainer, expected)]
    assert histories[0] == histories[1]
    assert trainer.events == expected.events
    spent = [
        {name: (entry.macs, entry.images, entry.steps) for name, entry in t.ledger.entries.items()}
        for t in (trainer, expected)
    ]
    assert spent[0] == spent[1]
    for role in ("teacher", "helper"):
        ours, other = (getattr(t.runner, role) for t in (trainer, expected))
        if role == "teacher" and trainer.keeper.own_teacher:
            continue
        assert (ours is None) == (other is None)
        if ours is not None:
            assert not ours.training and not any(p.requires_grad for p in ours.parameters())
            pairs = zip(ours.state_dict().values(), other.state_dict().values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def kill_and_resume(folder, stages, points, **options):
    """Kill a run at each of the points and go on; return how many checkpoints the whole run has."""
    expected = run(folder / "whole", stages, **options)
    assert expected.steps > 0
    n = expected.keeper.store.saves
    for last in points(n):
        assert 1 <= last <= n
        with pytest.raises(Killed):
            run(folder / str(last), stages, last, **options)
        # Without any checkpoint, what starts anew needs the network it started from.
        resumed = run(folder / str(last), stages, seed=0 if last == 1 else last, **options)
        compare(resumed, expected)
        assert resumed.steps < expected.steps or last <= 3
    return n


# -- killed -----------------------------------------------------------------------------------


def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path):
    """Averages, dropout, augmentation, momentum, sorting and the best state, in both stages."""
    n = kill_and_resume(tmp_path, STAGES, lambda n: range(2, n + 1, 5))
    assert n > 12


@pytest.mark.parametrize("last", [6, 8, 9])
def test_the_best_state_survives_a_kill(tmp_path, monkeypatch, last):
    """The first epoch of each stage is the best one by far; the kill comes in a later one, or in the stage after."""
    trainers = []

    def measure(network, *args):
        robust = [0.9, 0.2, 0.1][trainers[-1].keeper.state.epoch] / (1 + trainers[-1].keeper.state.phase)
        return {"natural": robust, "robust": robust, "largest_natural": 0.9, "largest_robust": robust}

    def run_watched(folder, last=None, seed=0):
        after = []
        trainers.append(make_trainer(folder, last, seed=seed, on_epoch=lambda record: after.append(best_of(trainer))))
        trainer = trainers[-1]
        trainer.restore(stages)
        trainer.run(stages)
        return trainer, after

    def best_of(trainer):
        return trainer.keeper.kept["best"]["head.fc.weight"].clone()

    monkeypatch.setattr(monitor, "measure", measure)
    stages = [Stage("teacher", 3, "natural", lr=0.05), Stage("students", 2, "natural", ELASTIC, lr=0.03)]
    expected, best = run_watched(tmp_path / "whole")
    assert torch.equal(expected.network.head.fc.weight, best[3]) and not torch.equal(best[3], best[0])
    with pytest.raises(Killed):
        run_watched(tmp_path / "killed", last)
    compare(run_watched(tmp_path / "killed", seed=5)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("average", [0.0, 0.6])
def test_a_run_can_be_killed_anywhere(tmp_path, average):
    settings = dataclasses.replace(SETTINGS, ema_decay=average)
    kill_and_resume(tmp_path, STAGES, lambda n: range(1, n + 1), settings=settings)


@pytest.mark.slow
def test_a_run_that_was_killed_twice_ends_with_the_same_bits(tmp_path):
    expected = run(tmp_path / "whole", STAGES)
    for first, second in ((2, 2), (5, 3), (3, 9), (9, 4)):
        folder = tmp_path / f"{first}-{second}"
        for last, seed in ((first, 0), (second, 1)):
            with pytest.raises(Killed):
                run(folder, STAGES, last, seed=seed)
        compare(run(folder, STAGES, seed=7), expected)


def several_stages(space):
    """The phases of the released code, in which the students of an epoch are the same, and larger sub-spaces open."""
    return make_schedule("released", space, epochs=8, lr=0.05)


def test_the_released_schedule_resumes(tmp_path):
    stages = several_stages(supernet().space)
    assert any(stage.draw == "epoch" for stage in stages) and any(stage.choices for stage in stages)
    stages = [dataclasses.replace(stage, drop_rate=0.2) for stage in stages]
    settings = dataclasses.replace(SETTINGS, ema_decay=0.0, augment="none")
    kill_and_resume(tmp_path, stages, lambda n: (n // 3, 2 * n // 3, n - 1), settings=settings, validation=None)


def test_students_drawn_for_an_epoch_stay_the_same_after_a_kill_within_it(tmp_path):
    stage = Stage("students", 2, "natural", ELASTIC, lr=0.05, draw="epoch", sampler="sandwich", students_per_step=3)
    kill_and_resume(tmp_path, [stage], lambda n: range(2, n, 2), validation=None)


def test_hats_helper_and_the_network_before_it_survive_a_kill(tmp_path):
    stages = [Stage("hat", 2, "hat", lr=0.05)]
    kill_and_resume(tmp_path, stages, lambda n: (3, 5, 6, 8), validation=None)


def test_a_teacher_of_ones_own_is_given_again_and_never_saved(tmp_path):
    teacher = calibrate(supernet(5).extract(supernet(5).space.smallest), images(21).x).eval()
    stages = [Stage("students", 2, "rslad", ELASTIC, lr=0.05)]
    kill_and_resume(tmp_path, stages, lambda n: (2, 4), validation=None, teacher=teacher)
    tensors, _ = CheckpointStore(tmp_path / "4", {"run": 1}).load()
    assert not any(name.startswith("teacher") for name in tensors)


def test_a_live_teacher_and_perturbed_weights_resume(tmp_path):
    stages = [Stage("both", 2, "rslad", ELASTIC, lr=0.05, teacher="live", sampler="sandwich", students_per_step=2)]
    settings = dataclasses.replace(SETTINGS, awp=0.01)
    kill_and_resume(tmp_path, stages, lambda n: (3, 4), settings=settings, validation=None)


def test_running_statistics_resume(tmp_path):
    """They are the supernet's own there, and part of what the attack sees."""
    stages = [Stage("running", 2, "trades", ELASTIC, lr=0.05, batch_norm="running")]
    kill_and_resume(tmp_path, stages, lambda n: (3, 4), validation=None)


def test_a_dataset_that_loads_resumes(tmp_path):
    def load_and_run(folder, last=None, seed=0):
        x, y = images(21).x, images(21).y
        source = DatasetSource(torch.utils.data.TensorDataset(x, y))
        store = Mortal(folder, {})
        store.last = last
        trainer = Trainer(supernet(seed), source, x, SETTINGS, store=store)
        trainer.restore(stages)
        trainer.run(stages)
        return trainer

    stages = [Stage("natural", 2, "natural", ELASTIC, lr=0.05)]
    expected = load_and_run(tmp_path / "whole")
    with pytest.raises(Killed):
        load_and_run(tmp_path / "killed", 4)
    compare(load_and_run(tmp_path / "killed", seed=3), expected)


def test_the_precision_that_was_chosen_is_kept(tmp_path):
    settings = dataclasses.replace(SETTINGS, precision=Precision("float32", channels_last=True))
    stages = [Stage("natural", 2, "natural", ELASTIC, lr=0.05)]
    expected = run(tmp_path / "whole", stages, settings=settings)
    with pytest.raises(Killed):
        run(tmp_path / "killed", stages, 4, settings=settings)
    trainer = make_trainer(tmp_path / "killed", seed=2)  # with another precision
    assert trainer.restore(stages)
    assert trainer.settings.precision == trainer.runner.precision == settings.precision
    trainer.run(stages)
    compare(trainer, expected)


def test_a_run_that_has_only_its_first_checkpoint_takes_all_steps_again_from_the_weights_in_it(tmp_path):
    stages = [Stage("natural", 2, "natural", ELASTIC, lr=0.05)]
    expected = run(tmp_path / "whole", stages)
    with pytest.raises(Killed):
        run(tmp_path / "killed", stages, 2)
    resumed = run(tmp_path / "killed", stages, seed=4)
    compare(resumed, expected)
    assert resumed.steps == expected.steps == 4


# -- stopped ----------------------------------------------------------------------------------


class Signalling:
    """The natural loss, which sends its own process a signal where it is called for the n-th time."""

    needs_teacher, passes = False, Passes(student=1, attacked=False)

    def __init__(self, call=0, number=signal.SIGTERM):
        self.calls, self.call, self.number = 0, call, number

    def adversarial(self, net, batch, budget, noise):
        return None

    def loss(self, net, batch, x_adv):
        self.calls += 1
        if self.calls == self.call:
            os.kill(os.getpid(), self.number)
        return F.cross_entropy(net(batch.x), batch.y)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at SIGTERM")
@pytest.mark.parametrize(("call", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT), (4, signal.SIGTERM)])
def test_a_signal_ends_training_after_the_step_and_a_checkpoint(tmp_path, call, number):
    """The checkpoint is written however long ago the last one was."""
    settings = dataclasses.replace(SETTINGS, checkpoint_seconds=1e9)

    def stages(loss):
        return [Stage("natural", 2, loss, ELASTIC, lr=0.05)]

    expected = run(tmp_path / "whole", stages(Signalling()), settings=settings, validation=None)
    assert expected.interrupted is None
    loss = Signalling(call, number)
    stopped = run(tmp_path / "stopped", stages(loss), settings=settings, validation=None)
    assert stopped.interrupted is number and loss.calls == stopped.steps == call
    assert not stopped.network.training
    resumed = run(tmp_path / "stopped", stages(Signalling()), seed=3, settings=settings, validation=None)
    assert resumed.steps == 4 - call and resumed.interrupted is None
    compare(resumed, expected)


class Slow(Dataset):
    """Images that are slow to load; while a file is there, one of them brings a signal to the group, as Ctrl-C does."""

    def __init__(self, armed, number):
        self.armed, self.number, self.images = armed, number, images(21)

    def __len__(self):
        return 21

    def __getitem__(self, index):
        if index == 11 and self.armed.exists():
            self.armed.unlink()
            os.killpg(0, self.number)
        time.sleep(0.05)
        return self.images.x[index], int(self.images.y[index])


ON_SIGNAL = """
import sys
from pathlib import Path
from test_resume_training import SETTINGS, Slow, images, supernet
from torch.utils.data import DataLoader
from proard_nas.data import DatasetSource, LoaderSource
from proard_nas.training import CheckpointStore, Stage, Trainer
folder, number, plain = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "plain"
loader = DataLoader(Slow(folder / "armed", number), batch_size=3, num_workers=1)
source = DatasetSource.from_loader(loader) if plain else LoaderSource(loader)
trainer = Trainer(supernet(), source, images(21).x, SETTINGS, store=CheckpointStore(folder / "run", {}))
assert source.n_batches(3) == 7  # for which a loader of one's own is passed over once
(folder / "armed").touch()
trainer.run([Stage("natural", 3, "natural", lr=0.05)])
print(trainer.interrupted == number, len(trainer.history), trainer.keeper.state.step < 7)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at SIGTERM")
@pytest.mark.parametrize(
    ("kind", "number"), [("plain", signal.SIGINT), ("plain", signal.SIGTERM), ("own", signal.SIGINT)]
)
def test_a_signal_to_the_group_with_a_loaders_workers_ends_training_in_order(tmp_path, kind, number):
    argv = [sys.executable, "-c", ON_SIGNAL, str(tmp_path), str(int(number)), kind]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    found = subprocess.run(argv, env=environment, start_new_session=True, capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["True", "0", "True"], found.stderr
    assert CheckpointStore(tmp_path / "run", {}).load() is not None


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at SIGTERM")
def test_a_signal_while_a_resumed_epoch_passes_over_what_is_done_ends_it_there(tmp_path):
    class Sends(ArraySource):
        def batches(self, *args, **options):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().batches(*args, **options)

    stages = [Stage("natural", 2, Signalling(2), ELASTIC, lr=0.05)]
    assert run(tmp_path, stages, validation=None).steps == 2  # all of the first epoch, but for its end
    trainer = make_trainer(tmp_path, validation=None)
    trainer.source = Sends(images(21).x, images(21).y)
    assert trainer.restore(stages)
    trainer.run(stages)
    state = trainer.keeper.state
    assert trainer.interrupted is signal.SIGTERM and trainer.steps == 0 and (state.epoch, state.step) == (0, 2)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at SIGTERM")
def test_a_signal_after_the_last_step_is_known(tmp_path):
    trainer = make_trainer(tmp_path, validation=None, on_epoch=lambda record: os.kill(os.getpid(), signal.SIGTERM))
    trainer.run([Stage("natural", 1, "natural")])
    assert trainer.interrupted is signal.SIGTERM and len(trainer.history) == 1


def test_a_stop_by_the_callback_ends_the_stage_with_its_best_weights_for_good(tmp_path, monkeypatch, caplog):
    """The first epoch of each stage is the best one by far, and the callback ends the second stage after its third."""
    after = []

    def measure(network, students, validation, calibration, *args):
        after.append(network.head.fc.weight.detach().clone())
        robust = 0.9 if len(after) in {1, 2} else 0.1
        return {"natural": robust, "robust": robust, "largest_natural": 0.9, "largest_robust": 0.9}

    monkeypatch.setattr(monitor, "measure", measure)
    stages = [STAGES[0], dataclasses.replace(STAGES[1], epochs=5), Stage("last", 1, "rslad", ELASTIC)]
    stages[0] = dataclasses.replace(stages[0], epochs=1)
    stop = {"on_epoch": lambda record: record["global_epoch"] == 3}
    stopped = run(tmp_path, stages, **stop)
    assert len(stopped.history) == 4 and stopped.interrupted is None and stopped.keeper.state.stopped
    assert torch.equal(stopped.network.head.fc.weight, after[1]) and not torch.equal(after[1], after[3])
    assert "before the stages last: their students are untrained" in caplog.text
    resumed = run(tmp_path, stages, seed=3)
    assert resumed.steps == 0
    compare(resumed, stopped)


def test_a_kill_after_the_callback_has_ended_training_changes_nothing(tmp_path):
    stages, stop = [Stage("teacher", 3, "natural", lr=0.05)], {"on_epoch": lambda record: record["epoch"] == 0}
    expected = run(tmp_path, stages, **stop)
    before, last = sorted(tmp_path.glob("checkpoint-*"))[-2:]
    state = json.loads((before / "state.json").read_text())["state"]
    assert state["stopped"] and state["entered"]
    shutil.rmtree(last)  # killed before the stage was left
    resumed = run(tmp_path, stages, seed=3)
    assert resumed.steps == 0
    compare(resumed, expected)


def test_a_state_too_old_to_know_of_stops_is_gone_on_with():
    old = State(epoch=3).to_dict()
    del old["stopped"]
    assert State.from_dict(old) == State(epoch=3)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at SIGTERM")
def test_a_network_that_was_stopped_is_the_averaged_one_and_training_goes_on_from_the_other(tmp_path):
    stages = [Stage("natural", 4, "natural", lr=0.05)]
    signalled = {"on_epoch": lambda record: record["epoch"] == 1 and os.kill(os.getpid(), signal.SIGTERM)}
    stopped = run(tmp_path, stages, validation=None, **signalled)
    tensors, _ = CheckpointStore(tmp_path, {"run": 1}).load()
    name = "head.fc.weight"
    assert torch.equal(stopped.network.head.fc.weight, tensors[f"ema.{name}"])
    assert not torch.equal(tensors[f"ema.{name}"], tensors[f"network.{name}"])


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at SIGTERM")
def test_a_trainer_trains_once_and_after_an_interruption_from_its_checkpoint(tmp_path):
    expected = run(tmp_path / "whole", STAGES)
    once = [os.getpid()]
    trainer = make_trainer(tmp_path / "own", on_epoch=lambda record: bool(once) and os.kill(once.pop(), signal.SIGTERM))
    trainer.run(STAGES)
    assert trainer.interrupted is signal.SIGTERM
    with pytest.raises(RuntimeError, match="trained already; make a new one"):
        trainer.run(STAGES)
    assert trainer.restore(STAGES)
    trainer.run(STAGES)
    assert trainer.interrupted is None
    compare(trainer, expected)


# -- what is said, and what there is not to do ------------------------------------------------


def test_a_finished_training_is_not_done_again(tmp_path, caplog):
    expected = run(tmp_path, STAGES)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.iterdir())
    with caplog.at_level(logging.WARNING):
        again = run(tmp_path, STAGES, seed=9)
    assert again.steps == 0 and again.keeper.store.saves == 0
    assert sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.iterdir()) == before
    assert f"{tmp_path} holds a checkpoint: going on from the end of training" in caplog.text
    compare(again, expected)


@pytest.mark.parametrize(
    ("last", "where"),
    [
        (2, "stage 'teacher', epoch 1 of 2, step 1"),
        (3, "stage 'teacher', epoch 1 of 2, step 2"),
        (5, "stage 'teacher', epoch 2 of 2, step 1"),
    ],
)
def test_it_says_where_it_goes_on(tmp_path, caplog, last, where):
    stages = [STAGES[0]]
    with pytest.raises(Killed):
        run(tmp_path, stages, last)
    with caplog.at_level(logging.WARNING):
        assert make_trainer(tmp_path).restore(stages)
    assert f"{tmp_path} holds a checkpoint: going on from {where}\n" in caplog.text + "\n"


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path, caplog):
    assert not make_trainer(tmp_path).restore(STAGES)
    assert not Trainer(supernet(), images(21), images(21).x, SETTINGS).restore(STAGES)
    assert caplog.text == ""
