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
import dataclasses
import functools
import json
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
import _training
import numpy as np
import safetensors.torch
import torch
from _images import Data
from _training import RECIPES, Recipe, student_images
from tabulate import tabulate
from torch import nn

from proard_nas import Architecture, Supernet
from proard_nas.training import SAMPLERS, CheckpointStore, Precision, Stage, Trainer

BASELINE, TEACHER = _training.PROGRESSIVE, "teacher"
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

    def __str__(self) -> str:
        return self.slug


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
        return self.recipe.network(_images.N_CLASSES[self.data], seed)

    def images(self, seed: int) -> Data:
        b = self.budget
        return _images.load(self.data, self.file, b.n_train, b.n_val, b.n_test, seed)


# -- stages -------------------------------------------------------------------------------------


def step_stages(recipe: Recipe, budget: Budget, network: Supernet, name: str) -> list[Stage]:
    """Return the stages of a schedule, or of the paper's with another choice of batch norm, after the teacher's."""
    schedule, batch_norm = (BASELINE, BATCH_NORM[name]) if name in BATCH_NORM else (name, "batch")
    return _training.step_stages(recipe, budget.step_epochs, network, schedule, batch_norm)


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
    budget, data, network = experiment.budget, experiment.images(unit.seed), experiment.network(unit.seed)
    experiment.precision.prepare(network)
    weights = experiment.folder / f"{Unit(unit.seed, TEACHER).slug}.safetensors"
    teacher, stages = None, [_training.teacher_stage(experiment.recipe, budget.teacher_epochs, network)]
    if unit.name != TEACHER:
        network.load_state_dict(safetensors.torch.load_file(weights))
        teacher = network.extract(network.space.largest)  # calibrated, since the trainer left it so
        stages = step_stages(experiment.recipe, budget, network, unit.name)
    trainer = train(experiment, unit, network, data, stages, teacher)
    archs, _ = population(network, budget.n_students)
    auto = over_cost(network, archs, budget.auto_students)
    if unit.name == TEACHER:
        archs, auto = archs[:1], [0]
        _training.save_tensors(weights, network)
    rows = _robustness.measure_students(
        network, archs, auto, data.test, trainer.calibration, experiment.test,
        experiment.folder / f"{unit.slug}.students.jsonl",
    )  # fmt: skip
    found = _training.report(trainer, stages, experiment.recipe.batch_size)
    _training.write(experiment.record(unit), {"unit": dataclasses.asdict(unit), **found, "students": rows})
    shutil.rmtree(experiment.folder / unit.slug)


def train(
    experiment: Experiment, unit: Unit, network: Supernet, data: Data, stages: list[Stage], teacher: nn.Module | None
) -> Trainer:
    """Train a supernet over stages, from a checkpoint where there is one."""
    trainer = _training.train(
        network,
        data,
        stages,
        experiment.recipe.settings(unit.seed, experiment.precision, experiment.checkpoint_seconds),
        n_calibration=experiment.budget.n_calibration,
        store=CheckpointStore(experiment.folder / unit.slug, {**experiment.settings(), "unit": unit.slug}),
        teacher=teacher,
    )
    expected = len(data.train) * sum(stage.epochs * stage.students_per_step for stage in stages)
    assert student_images(trainer.history) == expected, f"{unit}: {student_images(trainer.history)} not {expected}"
    return trainer


# -- all units ----------------------------------------------------------------------------------


def open_folder(experiment: Experiment) -> Experiment:
    """Make the folder this experiment's, or go on with what it holds; the precision is decided once."""
    recipe, budget = experiment.recipe, experiment.budget

    def decide() -> Precision:
        network = experiment.network(0)
        stages = [_training.teacher_stage(recipe, budget.teacher_epochs, network)]
        stages += step_stages(recipe, budget, network, BASELINE)
        settings = recipe.settings(0, Precision(), 60.0)
        return _training.measured_precision(
            network, experiment.images(0).train, stages, settings, recipe.precision, experiment.data
        )

    _training.ignored_by_git(experiment.folder.parent)
    precision = _training.opened_folder(experiment.folder, experiment.settings(), decide)
    return dataclasses.replace(experiment, precision=precision)


def units(experiment: Experiment, seeds: Sequence[int]) -> list[Unit]:
    """Return all units, a seed's teacher before its schedules."""
    return [
        Unit(seed, name)
        for i, seed in enumerate(seeds)
        for name in (TEACHER, *SCHEDULES, *(BATCH_NORM if i < experiment.budget.bn_seeds else ()))
    ]


def run_all(experiment: Experiment, seeds: Sequence[int], jobs: int) -> None:
    """Run the units that have no record yet, several at once in processes of their own."""
    _training.run_side_by_side(
        [unit for unit in units(experiment, seeds) if not experiment.record(unit).exists()],
        lambda unit: unit.name == TEACHER or experiment.record(Unit(unit.seed, TEACHER)).exists(),
        functools.partial(run_unit, experiment),
        jobs,
        experiment.data,
    )


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
    b = experiment.budget
    one_image = outcome(len(archs), b.n_test, len(over_cost(network, archs, b.auto_students)), b.n_auto)
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
        "schedules": compared({name: records[name] for name in SCHEDULES}, seeds, one_image),
        "batch_norm": compared(norms, bn_seeds, one_image),
        "students": [
            {"arch": arch.to_dict(), "mmacs": network.cost(arch).mmacs, "drawn": how}
            | {name: {m: [record["students"][place][m] for record in rows] for m in _robustness.METRICS}
               for name, rows in records.items()}
            for place, (arch, how) in enumerate(zip(archs, drawn, strict=True))
        ],
    }  # fmt: skip


def outcome(n_students: int, n_test: int, auto_students: int, n_auto: int) -> dict[str, float]:
    """Return what each metric's mean over the students changes by with one image more in one of them."""
    return dict.fromkeys(_robustness.METRICS, 1 / (n_students * n_test)) | {"autoattack": 1 / (auto_students * n_auto)}


def compared(
    records: dict[str, list[dict[str, Any]]], seeds: Sequence[int], one_image: dict[str, float]
) -> dict[str, Any]:
    """Return the figures of each name and its differences from the first one, seed by seed."""
    baseline = next(iter(records))
    found: dict[str, Any] = {"seeds": list(seeds), "rule": _robustness.RULE, "baseline": baseline}
    for name, rows in records.items():
        found[name] = {
            **{metric: _robustness.spread(means(rows, metric)) for metric in _robustness.METRICS},
            "pgd20_of_autoattacked": _robustness.spread(means(rows, "pgd20_few", "autoattack")),
            "training_seconds": [record["training_seconds"] for record in rows],
            "macs": [record["macs"] for record in rows],
            "events": [record["events"] for record in rows],
        }
    return against_first(found, one_image)


def against_first(found: dict[str, Any], one_image: dict[str, float]) -> dict[str, Any]:
    """Add to the figures of each name its differences from those of the first, and what they say."""
    baseline, verdicts = found["baseline"], []
    for name in [name for name, row in found.items() if isinstance(row, dict) and name != baseline]:
        differences = {
            m: _robustness.compare(found[name][m]["seeds"], found[baseline][m]["seeds"], one_image[m])
            for m in _robustness.METRICS
        }
        found[name][f"against {baseline}"] = differences
        verdicts += [_robustness.verdict(name, baseline, _robustness.NAMES[m], d) for m, d in differences.items()]
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
                figures = [
                    cell
                    for m in _robustness.METRICS
                    for cell in (_robustness.with_std(row[m]), _robustness.with_std(against.get(m)))
                ]
                same = _robustness.with_std(row["pgd20_of_autoattacked"])
                rows.append([data, name, *figures, same, np.mean(row["macs"]) / 1e12, np.mean(row["training_seconds"])])
    header = ["data", "schedule", "natural, %", "difference", "PGD-20, %", "difference", "AutoAttack, %",
              "difference", "PGD-20 of\nthe same, %", "TMACs", "seconds"]  # fmt: skip
    return tabulate(rows, header, floatfmt=".1f")


# -- command line -------------------------------------------------------------------------------


def experiments(args: argparse.Namespace) -> list[Experiment]:
    found = []
    for given in args.data:
        data, file = _images.named_data(given)
        budget = BUDGETS[args.budget]["digits" if data == "digits" else "cifar10"]
        changes = {f.name: getattr(args, f.name) for f in dataclasses.fields(Budget)}
        budget = dataclasses.replace(budget, **{name: n for name, n in changes.items() if n is not None})
        folder = Path(args.work).resolve() / f"{data}-{args.budget}"
        found.append(Experiment(data, file, budget, folder, checkpoint_seconds=args.checkpoint_seconds))
    return found


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=("digits",), help=_images.DATA_HELP)
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
        path = _record.save(
            args.out, {"budget": args.budget, "jobs": args.jobs, "data": results}, args.seeds[0], started
        )
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
