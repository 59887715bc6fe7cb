"""Networks that the shipped supernet's students are compared with: trained alone, or tuned, for a part of its time."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import operator
import shutil
import time
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import _images
import _robustness
import _study
import _training
import torch
from _shipped import Job, Recipe, chosen, earlier, training_seconds
from torch import nn

from proard_nas import Architecture, ProARDEstimator
from proard_nas.evaluation.population import checksum
from proard_nas.supernets import StudentNet
from proard_nas.training import CheckpointStore, Ledger, Precision, Spent, Stage, Trainer, TrainSettings, training_cost

DEVICES = 50
ROUNDS = 13  # of the steps that two networks are timed by: of 4, on a noisy machine, the share came out a fifth apart
RUNS = 3  # for the whole time, as the supernet had several: each with a cosine of its own (Loshchilov and Hutter 2017)


def alone(job: Job) -> list[dict[str, Any]]:
    """Train the largest and the found students for the supernet's time or a fiftieth of it, and measure them."""
    estimator = ProARDEstimator.load(job.packed)
    height, width = estimator.calibration_images_.shape[2:]
    settings, stages = job.first_recipe.settings(0, Precision(), 0.0), [alone_stage(job.first_recipe, 1)]
    epoch = training_cost(estimator.supernet_, stages, job.budget.n_train, settings.budget, (height, width))
    epochs = largest_epochs(estimator.spent_, epoch.macs)
    cores = earlier(job).get("pack", {}).get("cores", _training.threads(1))
    archs = chosen(estimator, job.budget.limits)
    weights = checksum(estimator.supernet_)
    tasks = [
        Task(name, archs[name], part, epochs, cores, weights if tuned else None)
        for name, part, tuned in trained_alone(archs)
    ]
    job.records.mkdir(parents=True, exist_ok=True)
    missing = [task for task in tasks if not alone_record(job, task).exists()]
    waiting = sorted(missing, key=operator.attrgetter("in_runs"))[: job.n_alone]
    _training.run_side_by_side(
        waiting,
        lambda task: task.before is None or alone_record(job, task.before).exists(),
        functools.partial(train_alone, job),
        job.jobs,
        "alone",
    )
    records = [(task, json.loads(path.read_text())) for task in tasks if (path := alone_record(job, task)).exists()]
    return [
        {"student": task.name, "mmacs": estimator.supernet_.cost(task.arch).mmacs}
        | {name: value for name, value in record.items() if name != "history"}  # long, and in the record for good
        for task, record in records
    ]


def trained_alone(students: Iterable[str]) -> list[tuple[str, Fraction, bool]]:
    """Return which students are trained, too, for which part of the supernet's time, and whether only tuned.

    The whole time is the last of some runs, each of which goes on where the one before ended.
    """
    names = [name for name in students if name != "smallest"]
    found = [name for name in names if name != "largest"]
    runs = [(name, Fraction(run, RUNS), False) for name in names for run in range(1, RUNS + 1)]
    return runs + [(name, Fraction(1, DEVICES), tuned) for tuned in (False, True) for name in found]


def how_trained(row: dict[str, Any]) -> str:
    """Say how a record's network was trained, and for which part of the supernet's time."""
    return f"{'tuned' if row['tuned'] else 'alone'} for {part_of_time(row['part'])}"


def part_of_time(part: float) -> str:
    return "the whole time" if part == 1 else f"{Fraction(part).limit_denominator(1000)} of the time"


def largest_epochs(spent: Ledger, epoch_macs: float) -> float:
    """Return how long a supernet was trained, in epochs of the largest student alone, of so many multiply-accumulates.

    The teacher is the largest student: its seconds, on whatever machines and with whatever losses it was trained, say
    how fast the largest student's are done.
    """
    teacher = spent.entries["teacher"]
    return training_seconds(spent) / teacher.seconds * teacher.macs / epoch_macs


@dataclasses.dataclass(frozen=True)
class Task:
    """A network to train alone for a part of the supernet's time, on so many cores.

    ``whole`` is that time in epochs of the largest student. ``start`` has the checksum of the supernet's weights that
    it starts from; None starts from none.
    """

    name: str
    arch: Architecture
    part: Fraction
    whole: float
    cores: int
    start: str | None = None

    @property
    def largest_epochs(self) -> float:
        return self.whole * float(self.part)

    @property
    def in_runs(self) -> bool:
        return self.part * RUNS >= 1

    @property
    def runs_before(self) -> int:
        return max(0, int(self.part * RUNS) - 1)

    @property
    def before(self) -> Task | None:
        """The run that this one goes on from."""
        return dataclasses.replace(self, part=Fraction(self.runs_before, RUNS)) if self.runs_before else None

    def epochs(self, share: float) -> int:
        """Return its epochs, those of the runs before among them, if one takes such a share of the largest's time."""
        return max(1, round(self.largest_epochs / share))

    def __str__(self) -> str:
        tuned = "" if self.start is None else " tuned for"
        return f"{self.name},{tuned} the time of {self.largest_epochs:.2f} epochs of the largest"


def alone_record(job: Job, task: Task) -> Path:
    kind = "alone" if task.start is None else f"tuned-{task.start}"
    return job.records / f"{kind}-{_study.short_name(task.arch)}-{task.largest_epochs:.2f}.json"


def left_weights(job: Job, task: Task) -> Path:
    """Return the folder of the weights from which the next run goes on."""
    return alone_record(job, task).with_suffix(".weights")


def train_alone(job: Job, task: Task) -> None:
    """Train one network alone for its time, measure it, and leave a record."""
    path, threads = alone_record(job, task), _training.threads(job.jobs)
    before = {} if task.before is None else json.loads(alone_record(job, task.before).read_text())
    store, plan = job.folder / path.stem, job.folder / f"{path.stem}.plan"
    recipe, images = job.first_recipe, job.images()
    if not plan.exists():
        torch.set_num_threads(task.cores)
        _training.write(plan, planned_alone(job, task, images))
    torch.set_num_threads(threads)
    planned = json.loads(plan.read_text())
    network, precision = first_weights(job, task), Precision(**planned["precision"])
    precision.prepare(network)
    stage = alone_stage(recipe, planned["epochs"] - before.get("epochs", 0), tuned=task.start is not None)
    trainer = _training.train(
        network,
        dataclasses.replace(images, validation=images.validation.head(job.budget.n_watch)),
        [stage],
        recipe.settings(task.runs_before, precision, 120.0),
        n_calibration=job.budget.n_calibration,
        store=CheckpointStore(store, {"arch": task.arch.to_dict(), "epochs": stage.epochs}),
    )
    measured = _robustness.measure_network(network, images.test, job.test, auto=True)
    given = {
        "arch": task.arch.to_dict(),
        "part": float(task.part),
        "tuned": task.start is not None,
        "largest_epochs": task.largest_epochs,
        "cores": task.cores,
    }
    found = _training.report(trainer, [stage], recipe.batch_size)
    found = together(before, found) if before else found
    if task.in_runs and task.part < 1:
        _training.save_parts(left_weights(job, task), network)
    _training.write(path, {**given, **planned, "threads": threads, **measured, **found})
    shutil.rmtree(store)
    if task.before is not None:
        shutil.rmtree(left_weights(job, task.before))


def together(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return what the runs of a training took together, and by what the last was made: each has a record of its own.

    A record from before devices were noted lacks two figures.
    """
    spent = Spent(energy_joules=before.get("energy_joules"), device=before.get("device", ""))
    spent.add(energy_joules=found["energy_joules"], device=found["device"])
    noted = {"energy_joules": spent.energy_joules, "device": spent.device, "made": found["made"]}
    return {name: before[name] + value for name, value in found.items() if name not in noted} | noted


def planned_alone(job: Job, task: Task, images: _images.Data) -> dict[str, Any]:
    """Return the epochs that a network gets, and the fastest precision here.

    The epochs follow from a few steps of it beside as many of the largest student, both timed in one run, once for all
    of its trainings: it may then be trained on any machine and any number of cores.
    """
    recipe, supernet = job.first_recipe, ProARDEstimator.load(job.packed).supernet_
    to_come = task.epochs(1.0) - (task.before.epochs(1.0) if task.before else 0)  # of the largest, which take as long
    stages = [alone_stage(recipe, to_come)]
    precision = _training.measured_precision(
        supernet, images.train, stages, recipe.settings(0, Precision(), 60.0), recipe.precision, str(task)
    )
    known = sorted(job.records.glob(f"*-{_study.short_name(task.arch)}-*.json"))
    if known:
        share = json.loads(known[0].read_text())["share_of_largest_time"]
    elif task.arch == supernet.space.largest:
        share = 1.0
    else:
        networks = [untrained(job, arch) for arch in (task.arch, supernet.space.largest)]
        own, largest = step_seconds(networks, images, recipe, recipe.settings(0, precision, 60.0))
        share = own / largest
    return {
        "share_of_largest_time": share,
        "epochs": task.epochs(share),
        "precision": dataclasses.asdict(precision),
    }


def untrained(job: Job, arch: Architecture) -> StudentNet:
    """Return an untrained network of one architecture."""
    return _study.Study(job.data, job.file, "", _study.SMOKE, job.first_recipe, job.work).alone(arch, 0)


def first_weights(job: Job, task: Task) -> StudentNet:
    """Return a network as it starts: untrained, as the run before left it, or as it is in the supernet."""
    if task.start is not None:
        return ProARDEstimator.load(job.packed).extract(task.arch)
    network = untrained(job, task.arch)
    if task.before is not None:
        folder = left_weights(job, task.before)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} has not the weights of {task.before}; without its record it is done again"
            )
        network.load_state_dict(_training.load_parts(folder))
    return network


def alone_stage(recipe: Recipe, epochs: int, tuned: bool = False) -> Stage:
    """Return the teacher's stage for a network alone, with a warm-up that a few epochs leave room for.

    One that is tuned has the steps' learning rate, which spoils less of its weights.
    """
    lr = recipe.lr if tuned else recipe.teacher_lr
    shorter = dataclasses.replace(recipe, warmup=min(recipe.warmup, epochs / 10), teacher_lr=lr)
    return dataclasses.replace(_training.teacher_stage(shorter, epochs, recipe.network(10, 0)), name="alone")


def step_seconds(
    networks: Sequence[nn.Module], images: _images.Data, recipe: Recipe, settings: TrainSettings
) -> list[float]:
    """Time a few training steps of a copy of each network, in turn, and return each one's seconds in its best round."""
    few = images.train.head(6 * recipe.batch_size)
    stage, rounds = dataclasses.replace(alone_stage(recipe, 1), warmup=0.0), []
    for network in networks:
        settings.precision.prepare(network)
    for _ in range(ROUNDS):
        rounds.append([])
        for network in networks:
            trainer = Trainer(copy.deepcopy(network), few, few.x[:64], settings)
            start = time.perf_counter()
            trainer.run([stage])
            rounds[-1].append(time.perf_counter() - start)
    return [min(seconds) for seconds in zip(*rounds[1:], strict=True)]  # the first warms up
