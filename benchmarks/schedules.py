"""Which schedule makes the better students of the same teacher for the same number of student-steps.

For each seed one teacher is trained; from its weights, and distilling from it, a supernet is trained by each schedule:
``paper`` against ``random``, ``sandwich`` and ``attentive``. A step with three students counts as three. The same fifty
students (the ends of the space, half of the others drawn uniformly and half evenly over cost) are then calibrated on
training images and measured on the test split: naturally, under PGD-20 and, on fewer images, under AutoAttack. In the
same way the paper's steps are trained with each choice of batch norm statistics in the inner attack.

Every (seed, schedule) leaves a record in the ``--work`` folder when it is done and checkpoints before that: stop the
script whenever you like and start it again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _images
import _record
import _robustness
import numpy as np
import safetensors.torch
import timm
import torch
from tabulate import tabulate
from torch import Tensor, nn

from proard_nas import Architecture, Supernet, quickstart
from proard_nas.attacks import EPS, STEP_SIZE, seeded
from proard_nas.data import ArraySource, load_npz
from proard_nas.evaluation import AttackSettings
from proard_nas.training import (
    SAMPLERS,
    AttackBudget,
    CheckpointStore,
    Precision,
    Stage,
    Trainer,
    TrainSettings,
    Validation,
    make_schedule,
    plan_training,
    raise_for,
)

BASELINE, TEACHER = "paper", "teacher"
SCHEDULES = (BASELINE, "random", "sandwich", "attentive")
BATCH_NORM = {f"{BASELINE}, {choice}": choice for choice in ("clean", "running")}  # 'batch' is the paper itself
EPOCH_FACTOR = 3  # stages of the paper's schedule, and students in a step of the sandwich's
WORK = _record.RESULTS / ".work"


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is done.

    Parameters
    ----------
    n_train, n_val : int
        Training images, and those split off to choose each stage's best weights.
    teacher_epochs : int
    step_epochs : int
        Passes over the data of one student in each step: a multiple of 3.
    n_calibration : int
    n_students : int
    n_test : int
        Test images, for natural accuracy and PGD-20.
    n_auto : int
        Of them, for AutoAttack.
    auto_students : int
        Students that AutoAttack is run on, evenly over cost.
    bn_seeds : int
        The comparison of batch norm statistics takes the first so many seeds.
    square_queries : int, default=5000
    """

    n_train: int
    n_val: int
    teacher_epochs: int
    step_epochs: int
    n_calibration: int
    n_students: int
    n_test: int
    n_auto: int
    auto_students: int
    bn_seeds: int
    square_queries: int = _robustness.STANDARD_QUERIES

    def __post_init__(self) -> None:
        if self.step_epochs % EPOCH_FACTOR:
            raise ValueError(f"step_epochs must be a multiple of {EPOCH_FACTOR}, got {self.step_epochs}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a data set is trained on."""

    model: str
    eps: float
    step_size: float
    attack: str
    attack_steps: int
    batch_size: int
    teacher_lr: float
    lr: float
    weight_decay: float = 2e-4
    ema_decay: float = 0.0
    augment: str = "none"
    precision: str = "auto"
    teacher_loss: str = "trades"
    loss: str = "rslad"

    def settings(self, seed: int, precision: Precision, checkpoint_seconds: float) -> TrainSettings:
        return TrainSettings(
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            budget=AttackBudget(self.eps, self.step_size, self.attack_steps),
            precision=precision,
            seed=seed,
            progress=False,
            ema_decay=self.ema_decay,
            augment=self.augment,
            checkpoint_seconds=checkpoint_seconds,
        )


STAND_IN = "synthetic"
RECIPES = {
    "digits": Recipe("proard_dyn_resnet_tiny", 0.1, 0.025, "pgd", 5, 64, 0.1, 0.1, precision="float32"),
    "cifar10": Recipe(
        "proard_dyn_resnet_small", EPS, STEP_SIZE, "n-fgsm", 10, 64, 0.1, 0.05, 5e-4, ema_decay=0.995,
        augment="crop-flip",
    ),
}  # fmt: skip
RECIPES[STAND_IN] = dataclasses.replace(RECIPES["cifar10"], batch_size=32, ema_decay=0.9, augment="none")
BUDGETS = {
    "smoke": {
        "digits": Budget(192, 32, 3, 3, 64, 3, 24, 3, 1, bn_seeds=1, square_queries=10),
        "cifar10": Budget(96, 32, 3, 3, 64, 3, 24, 3, 1, bn_seeds=1, square_queries=10),
    },
    "laptop": {
        "digits": Budget(1145, 202, 24, 24, 512, 50, 300, 48, 10, bn_seeds=3),
        "cifar10": Budget(13_000, 300, 9, 6, 1000, 50, 300, 80, 4, bn_seeds=1),
    },
    "long": {
        "digits": Budget(1145, 202, 120, 180, 512, 50, 450, 450, 50, bn_seeds=3),
        "cifar10": Budget(45_000, 1000, 20, 21, 4000, 50, 2000, 400, 8, bn_seeds=3),
    },
}
SEEDS = {"smoke": (0, 1), "laptop": (0, 1, 2), "long": (0, 1, 2)}


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is trained in one go: a seed's teacher, or the steps of one schedule from it."""

    seed: int
    name: str

    @property
    def slug(self) -> str:
        return f"seed{self.seed}-{self.name.replace(', ', '-')}"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One data set, its budget, and the folder that everything is left in."""

    data: str
    file: str | None
    budget: Budget
    folder: Path
    precision: Precision = dataclasses.field(default_factory=Precision)
    checkpoint_seconds: float = 60.0
    threads: int = 1

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.data]

    @property
    def test(self) -> _robustness.Test:
        b = self.budget
        return _robustness.Test(self.recipe.eps, self.recipe.step_size, b.n_auto, b.square_queries)

    def settings(self) -> dict[str, Any]:
        """Return what must not change between two runs with the same folder."""
        budget = dataclasses.asdict(self.budget)
        del budget["bn_seeds"]  # more seeds may be added
        return {"data": self.data, "budget": budget, "recipe": dataclasses.asdict(self.recipe)}

    def record(self, unit: Unit) -> Path:
        return self.folder / f"{unit.slug}.json"

    def network(self, seed: int) -> Supernet:
        with seeded(seed):
            return timm.create_model(self.recipe.model, num_classes=10)


# -- data ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Data:
    """A seed's images; nothing but the final figures sees the test images."""

    train: ArraySource
    validation: ArraySource
    test: ArraySource


@functools.lru_cache(1)
def load(experiment: Experiment, seed: int) -> Data:
    """Draw a seed's training, validation and test images."""
    train, test = {"digits": _digits, STAND_IN: _synthetic}.get(experiment.data, _npz)(experiment, seed)
    b = experiment.budget
    if len(train) < b.n_train + b.n_val or len(test) < b.n_test:
        raise ValueError(f"{experiment.data} has {len(train)} training and {len(test)} test images, "
                         f"too few for {b}")  # fmt: skip
    drawn = train.head(b.n_train + b.n_val, seed=seed)
    return Data(drawn.take(range(b.n_train)), drawn.take(range(b.n_train, len(drawn))), test.head(b.n_test, seed=seed))


def _digits(experiment: Experiment, seed: int) -> tuple[ArraySource, ArraySource]:
    (x, y), test = quickstart.digits(seed)
    return ArraySource(torch.from_numpy(x), torch.from_numpy(y)), test


def _npz(experiment: Experiment, seed: int) -> tuple[ArraySource, ArraySource]:
    arrays = load_npz(str(experiment.file))
    if arrays.x_test is None:
        raise ValueError(f"{experiment.file} holds no x_test and y_test, which the final figures are taken on")
    return _images.source_of(arrays.x_train, arrays.y_train), _images.source_of(arrays.x_test, arrays.y_test)


def _synthetic(experiment: Experiment, seed: int) -> tuple[ArraySource, ArraySource]:
    """Return colour images of ten blurred patterns under noise, to try the script out without CIFAR-10."""
    generator = torch.Generator().manual_seed(seed)
    patterns = nn.functional.interpolate(torch.rand(10, 3, 4, 4, generator=generator), size=32, mode="bilinear")

    def draw(n: int) -> ArraySource:
        y = torch.arange(n) % 10
        return ArraySource((patterns[y] + 0.1 * torch.randn(n, 3, 32, 32, generator=generator)).clamp(0, 1), y)

    b = experiment.budget
    return draw(b.n_train + b.n_val), draw(b.n_test)


# -- stages -------------------------------------------------------------------------------------


def teacher_stages(recipe: Recipe, budget: Budget, network: Supernet) -> list[Stage]:
    stage = make_schedule(BASELINE, network.space, teacher_loss=recipe.teacher_loss, lr=recipe.teacher_lr)[0]
    return [dataclasses.replace(stage, epochs=budget.teacher_epochs, attack=recipe.attack)]


def step_stages(recipe: Recipe, budget: Budget, network: Supernet, name: str) -> list[Stage]:
    """Return a schedule's stages after the teacher's, as long as the budget says.

    One factor scales the epochs of every schedule, so that the library's own balance between them, as many
    student-steps for each, is kept.
    """
    schedule, batch_norm = (BASELINE, BATCH_NORM[name]) if name in BATCH_NORM else (name, "batch")

    def steps(schedule: str) -> list[Stage]:
        return make_schedule(schedule, network.space, loss=recipe.loss, lr=recipe.lr)[1:]

    whole = sum(stage.epochs for stage in steps(BASELINE))
    stages = []
    for stage in steps(schedule):
        epochs, rest = divmod(stage.epochs * budget.step_epochs, whole)
        if rest:
            raise ValueError(f"{budget.step_epochs} epochs cannot be shared as {schedule!r} shares its {whole}")
        stages.append(dataclasses.replace(stage, epochs=epochs, attack=recipe.attack, batch_norm=batch_norm))
    return stages


def student_images(history: Sequence[dict[str, Any]]) -> int:
    """Count images times the students trained on them."""
    return sum(epoch["images"] * epoch["students"] for epoch in history)


def population(network: Supernet, n: int) -> tuple[list[Architecture], list[str]]:
    """Return the students that are measured, the largest first, and how each was drawn: the same ones every time."""
    space, rng = network.space, np.random.default_rng(0)
    archs = [space.largest, space.smallest]
    archs += space.sample_distinct((n - 2) // 2, rng, exclude=archs)
    drawn = ["end", "end"] + ["uniform"] * (len(archs) - 2)
    while len(archs) < n:
        (arch,) = SAMPLERS["attentive"](space, 1, rng, lambda arch: network.cost(arch).macs)
        if arch not in archs:
            archs.append(arch)
            drawn.append("evenly over cost")
    return archs, drawn


def over_cost(network: Supernet, archs: Sequence[Architecture], n: int) -> list[int]:
    """Return the places of ``n`` architectures, evenly from the cheapest to the dearest."""
    order = sorted(range(len(archs)), key=lambda place: network.cost(archs[place]).macs)
    return [order[int(i)] for i in np.linspace(0, len(order) - 1, min(n, len(order))).round()]


# -- one unit -----------------------------------------------------------------------------------


def run_unit(experiment: Experiment, unit: Unit) -> None:
    """Train and measure, and leave a record; go on from where an earlier run was stopped."""
    torch.set_num_threads(experiment.threads)
    budget, data, network = experiment.budget, load(experiment, unit.seed), experiment.network(unit.seed)
    experiment.precision.prepare(network)
    weights = experiment.folder / f"{Unit(unit.seed, TEACHER).slug}.safetensors"
    teacher, stages = None, teacher_stages(experiment.recipe, budget, network)
    if unit.name != TEACHER:
        network.load_state_dict(safetensors.torch.load_file(weights))
        teacher = network.extract(network.space.largest)  # calibrated, since the trainer left it so
        stages = step_stages(experiment.recipe, budget, network, unit.name)
    trainer = train(experiment, unit, network, data, stages, teacher)
    archs, _ = population(network, budget.n_students)
    auto = over_cost(network, archs, budget.auto_students)
    if unit.name == TEACHER:
        archs, auto = archs[:1], [0]
        save_tensors(weights, network)
    rows = _robustness.measure_students(
        network, archs, auto, data.test, data.train.x[: budget.n_calibration], experiment.test,
        experiment.folder / f"{unit.slug}.students.jsonl",
    )  # fmt: skip
    spent = trainer.ledger.total
    images = student_images(trainer.history)
    write(experiment.record(unit), {
        "unit": dataclasses.asdict(unit),
        "stages": [stage.to_dict() for stage in stages],
        "student_images": images,
        "student_steps": sum(stage.epochs * stage.students_per_step for stage in stages)
        * data.train.n_batches(experiment.recipe.batch_size),
        "training_seconds": spent.seconds,
        "macs": spent.macs,
        "events": trainer.events,
        "history": trainer.history,
        "students": rows,
    })  # fmt: skip
    shutil.rmtree(experiment.folder / unit.slug)


def train(
    experiment: Experiment, unit: Unit, network: Supernet, data: Data, stages: list[Stage], teacher: nn.Module | None
) -> Trainer:
    """Train a supernet over stages, from a checkpoint where there is one."""
    recipe, budget = experiment.recipe, experiment.budget
    trainer = Trainer(
        network,
        data.train,
        data.train.x[: budget.n_calibration],
        recipe.settings(unit.seed, experiment.precision, experiment.checkpoint_seconds),
        validation=Validation(data.validation, AttackSettings("pgd", recipe.eps, recipe.step_size, 10), n_students=3),
        teacher=copy.deepcopy(teacher),
        store=CheckpointStore(experiment.folder / unit.slug, {**experiment.settings(), "unit": unit.slug}),
    )
    trainer.restore(stages)
    trainer.run(stages)
    if trainer.interrupted is not None:
        raise_for(trainer.interrupted)
    expected = budget.n_train * sum(stage.epochs * stage.students_per_step for stage in stages)
    assert student_images(trainer.history) == expected, f"{unit}: {student_images(trainer.history)} not {expected}"
    return trainer


def save_tensors(path: Path, network: nn.Module) -> None:
    """Write a network's tensors, whole or not at all."""
    tensors: dict[str, Tensor] = {name: t.detach().contiguous() for name, t in network.state_dict().items()}
    part = path.with_suffix(".part")
    safetensors.torch.save_file(tensors, part)
    part.replace(path)


def write(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, allow_nan=False))
    part.replace(path)


# -- all units ----------------------------------------------------------------------------------


def open_folder(experiment: Experiment) -> Experiment:
    """Make the folder this experiment's, or go on with what it holds; the precision is decided once."""
    folder = experiment.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / ".gitignore").write_text("*\n")
    path, settings = folder / "settings.json", json.loads(json.dumps(experiment.settings()))
    if not path.exists():
        precision = decide_precision(experiment)
        write(path, {**settings, "precision": dataclasses.asdict(precision)})
    stored = json.loads(path.read_text())
    precision = Precision(**stored.pop("precision"))
    if stored != settings:
        raise ValueError(f"{folder} holds records of other settings: {stored}, not {settings}; give another --work")
    return dataclasses.replace(experiment, precision=precision)


def decide_precision(experiment: Experiment) -> Precision:
    """Measure a few steps and say what the training of one seed's teacher and the paper's steps will take."""
    recipe, budget, network = experiment.recipe, experiment.budget, experiment.network(0)
    source = load(experiment, 0).train
    trainer = Trainer(network, source, source.x[:2], recipe.settings(0, Precision(), 60.0))
    stages = teacher_stages(recipe, budget, network) + step_stages(recipe, budget, network, BASELINE)
    precision, cost = plan_training(trainer, stages, recipe.precision)
    print(f"{experiment.data}: {precision}; one seed's teacher and the paper's steps will take {cost}", flush=True)
    return precision


def units(experiment: Experiment, seeds: Sequence[int]) -> list[Unit]:
    """Return all units, a seed's teacher before its schedules."""
    return [
        Unit(seed, name)
        for i, seed in enumerate(seeds)
        for name in (TEACHER, *SCHEDULES, *(BATCH_NORM if i < experiment.budget.bn_seeds else ()))
    ]


def run_all(experiment: Experiment, seeds: Sequence[int], jobs: int) -> None:
    """Run the units that have no record yet, several at once in processes of their own."""
    waiting = [unit for unit in units(experiment, seeds) if not experiment.record(unit).exists()]
    running: dict[int, tuple[Unit, Any]] = {}
    while waiting or running:
        ready = [u for u in waiting if u.name == TEACHER or experiment.record(Unit(u.seed, TEACHER)).exists()]
        if ready and len(running) < jobs:
            unit = ready[0]
            waiting.remove(unit)
            print(f"{experiment.data}: {unit.slug} starts, {len(waiting)} to come", flush=True)
            if jobs == 1:
                run_unit(experiment, unit)
                continue
            process = multiprocessing.get_context("spawn").Process(
                target=run_unit, args=(experiment, unit), daemon=True
            )
            process.start()
            running[process.sentinel] = (unit, process)
            continue
        for sentinel in multiprocessing.connection.wait(list(running)):
            unit, process = running.pop(int(sentinel))
            process.join()
            if process.exitcode:
                raise SystemExit(f"{experiment.data}: {unit.slug} ended with exit code {process.exitcode}")


# -- results ------------------------------------------------------------------------------------


def summarise(experiment: Experiment, seeds: Sequence[int]) -> dict[str, Any]:
    """Return all figures of a data set.

    Raises
    ------
    AssertionError
        If the schedules did not train on as many images times students.
    """
    network = experiment.network(0)
    archs, drawn = population(network, experiment.budget.n_students)
    bn_seeds = seeds[: experiment.budget.bn_seeds]
    records = {
        name: [json.loads(experiment.record(Unit(seed, name)).read_text()) for seed in own]
        for names, own in ((SCHEDULES, seeds), (BATCH_NORM, bn_seeds))
        for name in names
    }
    counted = {record["student_images"] for rows in records.values() for record in rows}
    assert len(counted) == 1, f"the schedules trained on different numbers of student-images: {counted}"
    teachers = [json.loads(experiment.record(Unit(seed, TEACHER)).read_text()) for seed in seeds]
    norms = {f"{BASELINE}, batch": records[BASELINE][: len(bn_seeds)], **{name: records[name] for name in BATCH_NORM}}
    return {
        "settings": experiment.settings(),
        "precision": str(experiment.precision),
        "autoattack": {
            "attack": experiment.test.title,
            "note": "not the reference implementation: APGD takes 10 steps, not 100, and Square another schedule; an "
            "image counts as robust only if it survives PGD-20 as well",
            "n_images": experiment.budget.n_auto,
            "students": sorted(over_cost(network, archs, experiment.budget.auto_students)),
            "seconds_a_student": float(np.mean([r["autoattack_seconds"] for rows in records.values() for record in rows
                                          for r in record["students"] if r["autoattack_seconds"] is not None])),
        },
        "student_images": counted.pop(),
        "student_steps": {name: rows[0]["student_steps"] for name, rows in records.items()},
        "teacher": {
            **{metric: _robustness.spread([t["students"][0][metric] for t in teachers])
               for metric in _robustness.METRICS},
            "training_seconds": [t["training_seconds"] for t in teachers],
            "macs": teachers[0]["macs"],
        },
        "schedules": compared({name: records[name] for name in SCHEDULES}, seeds),
        "batch_norm": compared(norms, bn_seeds),
        "students": [
            {"arch": arch.to_dict(), "mmacs": network.cost(arch).mmacs, "drawn": how}
            | {name: {m: [record["students"][place][m] for record in rows] for m in _robustness.METRICS}
               for name, rows in records.items()}
            for place, (arch, how) in enumerate(zip(archs, drawn, strict=True))
        ],
    }  # fmt: skip


def compared(records: dict[str, list[dict[str, Any]]], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the figures of each name and its differences from the first one, seed by seed."""
    baseline, *others = records
    found: dict[str, Any] = {"seeds": list(seeds), "rule": _robustness.RULE, "baseline": baseline}
    for name, rows in records.items():
        found[name] = {
            **{metric: _robustness.spread(means(rows, metric)) for metric in _robustness.METRICS},
            "pgd20_of_autoattacked": _robustness.spread(means(rows, "pgd20_few", "autoattack")),
            "training_seconds": [record["training_seconds"] for record in rows],
            "macs": [record["macs"] for record in rows],
            "events": [record["events"] for record in rows],
        }
    verdicts = []
    for name in others:
        differences = {
            metric: _robustness.compare(found[name][metric]["seeds"], found[baseline][metric]["seeds"])
            for metric in _robustness.METRICS
        }
        found[name][f"against {baseline}"] = differences
        verdicts += [_robustness.verdict(name, baseline, metric, d) for metric, d in differences.items()]
    return found | {"verdict": "; ".join(verdicts)}


def means(records: Sequence[dict[str, Any]], metric: str, given: str | None = None) -> list[float]:
    """Return each seed's mean over the students for which a metric (or the one ``given``) was measured."""
    return [float(np.mean([s[metric] for s in r["students"] if s[given or metric] is not None])) for r in records]


def table(results: dict[str, Any]) -> str:
    rows = []
    for data, found in results.items():
        for part in ("schedules", "batch_norm"):
            names = [name for name, row in found[part].items() if isinstance(row, dict)]
            for name in names:
                row = found[part][name]
                against = row.get(f"against {found[part]['baseline']}", {})
                figures = [cell for m in _robustness.METRICS for cell in (with_std(row[m]), with_std(against.get(m)))]
                same = with_std(row["pgd20_of_autoattacked"])
                rows.append([data, name, *figures, same, np.mean(row["macs"]) / 1e12, np.mean(row["training_seconds"])])
    header = ["data", "schedule", "natural, %", "difference", "PGD-20, %", "difference", "AutoAttack, %",
              "difference", "PGD-20 of\nthe same, %", "TMACs", "seconds"]  # fmt: skip
    return tabulate(rows, header, floatfmt=".1f")


def with_std(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    std = found["std"]
    return f"{100 * found['mean']:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


# -- command line -------------------------------------------------------------------------------


def experiments(args: argparse.Namespace) -> list[Experiment]:
    found = []
    for given in args.data:
        data, _, file = given.partition("=")
        if data not in RECIPES or (data == "cifar10") != bool(file):
            raise SystemExit(f"--data {given}: allowed are digits, cifar10=FILE.npz and {STAND_IN}")
        budget = BUDGETS[args.budget]["digits" if data == "digits" else "cifar10"]
        changes = {f.name: getattr(args, f.name) for f in dataclasses.fields(Budget)}
        budget = dataclasses.replace(budget, **{name: n for name, n in changes.items() if n is not None})
        folder = Path(args.work).resolve() / f"{data}-{args.budget}"
        found.append(Experiment(data, file or None, budget, folder, checkpoint_seconds=args.checkpoint_seconds))
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=("digits",), help=f"digits, cifar10=FILE.npz, {STAND_IN}")
    parser.add_argument("--budget", choices=BUDGETS, default="laptop")
    for field in dataclasses.fields(Budget):
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=int, help="in place of the budget's, for every data set")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 1 2, or 0 1 with the budget smoke")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="units at once, of one thread each")
    parser.add_argument("--work", default=WORK, help="folder for records and checkpoints")
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0)
    parser.add_argument("--out", default=_record.RESULTS / "schedules.json")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or SEEDS[args.budget]
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    args = parse(argv)
    started = time.time()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for experiment in experiments(args):
        opened = open_folder(experiment)
        run_all(opened, args.seeds, args.jobs)
        results[opened.data] = summarise(opened, args.seeds)
        path = _record.save(args.out, {"budget": args.budget, "jobs": args.jobs, "data": results}, None, started)
    print(table(results))
    for data, found in results.items():
        for part in ("schedules", "batch_norm"):
            print(f"{data}, {part}:", found[part]["verdict"].replace("; ", "\n  "))
    print("wrote", path)
    return results


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the other processes, too
    _record.keep_memory()
    main()
