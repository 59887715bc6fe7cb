"""What the scripts on the paper's tables and figures share: networks trained, labelled and searched once for all.

A study is one data set, network and budget. Everything it takes long to make (a training, the labels, the students that
a search found) leaves a file in its folder, and checkpoints before that: any of the scripts goes on from what another
has left, and several short runs add up to a long one. What was measured is in small records (JSON), which may have a
folder of their own: whole seeds from one machine then count on another, which has not their weights.
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
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import _images
import _record
import _robustness
import _training
import numpy as np
import safetensors.torch
import timm
import torch
from _images import Data
from _training import PROGRESSIVE, Recipe

from proard_nas import Architecture, SearchResult, Supernet
from proard_nas.attacks import seeded
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, Labels, label_students
from proard_nas.search import AccuracyPredictor, search
from proard_nas.supernets import StudentNet
from proard_nas.training import CheckpointStore, Precision, Stage, calibration_images
from proard_nas.training.schedule import share_cosine

TEACHER, RANDOM = "teacher", "random"
ALONE = ("trades", "rslad", "natural")
TITLES = {
    TEACHER: "TRADES, largest, the teacher",
    PROGRESSIVE: "progressive (ProARD)",
    RANDOM: "random sampling",
    "trades": "TRADES, alone",
    "rslad": "RSLAD, alone",
    "natural": "natural, alone",
}
CANDIDATES = 3  # of a search, which are measured on validation images, and the best taken
WORK = _record.RESULTS / ".work"
LIMIT, LEAST = 0.2, 2.0  # the searched student's multiply-accumulates, in those of the largest and of the smallest


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is done.

    Parameters
    ----------
    n_train, n_val, n_test : int
        Images to train on; to choose weights, label and search on; and for the final figures alone.
    n_calibration : int
        Training images for each student's batch norm statistics.
    teacher_epochs, step_epochs : int
        Passes over the training images: of the teacher, and of one student in each step (a multiple of 3). A network
        alone gets the sum.
    n_labels : int
        Students that the predictor learns from, for each seed.
    n_held : int
        Students that it is compared with, for the first seed.
    n_population, population_images : int
        Students of a distribution, and the test images it is measured on.
    n_auto : int
        Test images for AutoAttack.
    square_queries : int, default=5000
        Of Square within AutoAttack.
    n_generations : int, default=100
        Of the search.
    seeds : tuple of int, default=(0, 1, 2)
    """

    n_train: int
    n_val: int
    n_test: int
    n_calibration: int
    teacher_epochs: int
    step_epochs: int
    n_labels: int
    n_held: int
    n_population: int
    population_images: int
    n_auto: int
    square_queries: int = _robustness.STANDARD_QUERIES
    n_generations: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)


SMOKE = Budget(96, 32, 24, 64, 3, 3, 14, 6, 5, 16, 3, square_queries=10, n_generations=3, seeds=(0, 1))
SMALL = {
    "smoke": SMOKE,
    "laptop": Budget(13_000, 500, 1000, 1000, 9, 6, 300, 300, 1000, 200, 80, square_queries=1000),
    "gpu-30min": Budget(49_000, 1000, 10_000, 4000, 12, 12, 200, 100, 200, 1000, 500, seeds=(0,)),
    "paper": Budget(49_000, 1000, 10_000, 4000, 300, 360, 1700, 300, 1000, 10_000, 10_000, seeds=(0,)),
}
BUDGETS: dict[str, dict[str, Budget]] = {
    "digits": SMALL | {"laptop": Budget(1145, 202, 300, 512, 24, 24, 300, 300, 1000, 300, 48, 1000)},
    "cifar10": SMALL,
    "cifar100": SMALL,
    _images.STAND_IN: SMALL,
}
# A GPU takes large batches (learning rate in proportion) and one cosine over all stages; the paper's are section 5.0.1.
RECIPES: dict[str, dict[str, Any]] = {
    "smoke": {},
    "laptop": {},
    "gpu-30min": {
        "model": "proard_dyn_mobilenetv3", "batch_size": 1024, "teacher_lr": 0.4, "lr": 0.4, "precision": "bfloat16",
        "ema_decay": 0.99, "one_cosine": True, "warmup": 1.0,
    },
    "paper": {
        "model": "proard_dyn_resnet50", "attack": "pgd", "attack_steps": 10, "batch_size": 128, "teacher_lr": 0.01,
        "lr": 0.01, "weight_decay": 2e-4, "ema_decay": 0.0,
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is trained in one go: the teacher, a supernet from it, or a network alone."""

    seed: int
    method: str
    arch: Architecture | None = None

    @property
    def slug(self) -> str:
        name = f"seed{self.seed}-{self.method}"
        return name if self.arch is None else f"{name}-{short_name(self.arch)}"

    @property
    def needs(self) -> list[Unit]:
        """The units that this one is trained from."""
        distils = self.method in (PROGRESSIVE, RANDOM, "rslad")
        return [Unit(self.seed, TEACHER)] if distils else []

    def __str__(self) -> str:
        return self.slug


def short_name(arch: Architecture) -> str:
    """Return eight digits that tell an architecture from others."""
    return f"{zlib.crc32(json.dumps(arch.to_dict(), sort_keys=True).encode()):08x}"


@dataclasses.dataclass(frozen=True)
class Study:
    """One data set, network and budget, and the folder that everything is left in."""

    data: str
    file: str | None
    name: str
    budget: Budget
    recipe: Recipe
    work: Path
    device: str = "cpu"
    jobs: int = 1
    precision: Precision = dataclasses.field(default_factory=Precision)
    checkpoint_seconds: float = 60.0
    kept: Path | None = None

    @property
    def folder(self) -> Path:
        """Where weights and checkpoints are."""
        return self.work / self._name

    @property
    def records(self) -> Path:
        """Where everything else is."""
        return (self.kept or self.work) / self._name

    @property
    def _name(self) -> str:
        return f"study-{self.data}-{self.recipe.model}-{self.name}"

    @property
    def title(self) -> str:
        return f"{self.data}, {self.recipe.model}, {self.name}"

    @property
    def test(self) -> _robustness.Test:
        return _robustness.Test(self.recipe.eps, self.recipe.step_size, self.budget.n_auto, self.budget.square_queries)

    @property
    def attack(self) -> AttackSettings:
        """PGD-20."""
        return AttackSettings("pgd", self.recipe.eps, self.recipe.step_size, 20)

    def settings(self) -> dict[str, Any]:
        """Return what must not change between two runs with the same folder; more may be measured, not less trained."""
        budget = dataclasses.asdict(self.budget)
        for name in ("seeds", "n_labels", "n_held", "n_population"):
            del budget[name]
        return {"data": self.data, "budget": budget, "recipe": dataclasses.asdict(self.recipe)}

    def network(self, seed: int) -> Supernet:
        return self.recipe.network(_images.N_CLASSES[self.data], seed)

    def alone(self, arch: Architecture, seed: int) -> StudentNet:
        """Return an untrained network of one architecture."""
        name = self.network(seed).cfg.student
        with seeded(seed):
            return timm.create_model(name, arch=arch.to_dict(), num_classes=_images.N_CLASSES[self.data])

    def images(self, seed: int) -> Data:
        b = self.budget
        return _images.load(self.data, self.file, b.n_train, b.n_val, b.n_test, seed).to(self.device)

    def calibration(self, seed: int) -> torch.Tensor:
        return calibration_images(self.images(seed).train, self.budget.n_calibration, self.recipe.augment)

    # -- trainings ------------------------------------------------------------------------------

    def record(self, unit: Unit) -> dict[str, Any]:
        """Return what a trained unit was and took."""
        found: dict[str, Any] = json.loads(self._record(unit).read_text())
        return found

    def is_trained(self, unit: Unit) -> bool:
        return self._record(unit).exists()

    def trained(self, unit: Unit) -> StudentNet:
        """Return a unit's network: from its file or, where that was left behind, from the parts in half precision."""
        made = self.network(unit.seed) if unit.arch is None else self.alone(unit.arch, unit.seed)
        whole, parts = self._weights(unit)
        if not (whole.exists() or parts.exists()):
            raise FileNotFoundError(
                f"{self.folder} has not the weights of {unit}, which {self._record(unit)} says were trained; remove "
                "that record, and those of students measured in it, to train it again"
            )
        made.load_state_dict(safetensors.torch.load_file(whole) if whole.exists() else _training.load_parts(parts))
        return made.to(self.device).eval()

    def _weights(self, unit: Unit) -> tuple[Path, Path]:
        return self.folder / f"{unit.slug}.safetensors", self.folder / f"{unit.slug}-float16"

    def supernet(self, seed: int, method: str = PROGRESSIVE) -> Supernet:
        found = self.trained(Unit(seed, method))
        assert isinstance(found, Supernet)
        return found

    def ensure(self, units: Iterable[Unit], ended: Callable[[Unit], object] = lambda unit: None) -> None:
        """Train the units that are not yet, and what they are trained from; then do what is to be done with each."""
        wanted = list(dict.fromkeys(part for unit in units for part in (*unit.needs, unit)))
        _training.run_side_by_side(
            [unit for unit in wanted if not self.is_trained(unit)],
            lambda unit: all(self.is_trained(one) for one in unit.needs),
            functools.partial(train_unit, self),
            self.jobs,
            self.title,
            ended,
        )

    def trainings(self) -> list[Path]:
        """Return the records of all trainings that have ended."""
        return [path for path in self.records.glob("seed*.json") if not path.name.endswith("-found.json")]

    def _record(self, unit: Unit) -> Path:
        return self.records / f"{unit.slug}.json"

    # -- labels, predictor, search --------------------------------------------------------------

    def labelled(self, seed: int, archs: Sequence[Architecture], method: str = PROGRESSIVE) -> Labels:
        """Measure students of a supernet on validation images; each once."""
        return self._measured(seed, archs, method, self.images(seed).validation, "labels")

    def population(self, seed: int, archs: Sequence[Architecture], method: str) -> Labels:
        """Measure students on test images, for a figure that nothing is chosen by; each once."""
        images = self.images(seed).test.head(self.budget.population_images)
        return self._measured(seed, archs, method, images, "population")

    def _measured(
        self, seed: int, archs: Sequence[Architecture], method: str, images: ArraySource, name: str
    ) -> Labels:
        record = self.records / f"seed{seed}-{method}-{name}.jsonl"
        if not any(path.exists() for path in self._weights(Unit(seed, method))) and record.exists():
            labels = Labels.load(record)  # whose weights were left behind
            known = {label.architecture: label for label in labels.students}
            if known.keys() >= set(archs):
                return Labels(tuple(known[arch] for arch in dict.fromkeys(archs)), labels.settings)
        return label_students(
            self.supernet(seed, method), archs, images, self.calibration(seed), attack=self.attack, seed=seed,
            n_jobs=self.jobs if self.device == "cpu" and self.jobs > 1 else None,
            record=record,
        )  # fmt: skip

    def drawn(self, n: int, seed: int) -> list[Architecture]:
        """Return the largest, the smallest and uniformly drawn students: the same first ones for every ``n``."""
        space, rng = self.network(0).space, np.random.default_rng(seed)
        found = dict.fromkeys([space.largest, space.smallest])
        while len(found) < min(n, space.size):
            found[space.sample(rng)] = None
        return list(found)[:n]

    def predictor(self, seed: int, labels: Labels) -> AccuracyPredictor:
        network = self.network(0)
        made = AccuracyPredictor(network.space, network.cost, random_state=seed)
        return made.fit(labels.architectures, labels.accuracies)

    @property
    def limit(self) -> float:
        """MMACs of a searched student: a fifth of the largest one's, but twice the smallest one's at the least.

        Of Dyn-MobileNetV3 next to no students take less than a fifth.
        """
        network = self.network(0)
        largest, smallest = (network.cost(arch).mmacs for arch in (network.space.largest, network.space.smallest))
        return max(LIMIT * largest, LEAST * smallest)

    def search(self, seed: int, max_flops: float | None = None, known: AccuracyPredictor | None = None) -> SearchResult:
        """Search the progressive supernet's students; by default under `limit`.

        What is ``known`` of them is, by default, what the seed's labels teach.
        """
        network = self.network(0)
        if known is None:
            known = self.predictor(seed, self.labelled(seed, self.drawn(self.budget.n_labels, seed)))
        limit = self.limit if max_flops is None else max_flops
        return search(
            network.space, known.predict, network.cost, max_flops=limit, seed=seed,
            n_generations=self.budget.n_generations, progress=False,
        )  # fmt: skip

    def found(self, seed: int) -> Architecture:
        """Return the best, by validation images, of the few students that the search likes most; it is remembered."""
        path = self._found(seed)
        if not path.exists():
            candidates = [one.architecture for one in self.search(seed).most_accurate(CANDIDATES)]
            labels = self.labelled(seed, candidates)
            best = int(labels.accuracies.mean(axis=1).argmax())
            _training.write(path, candidates[best].to_dict())
        return Architecture.from_dict(json.loads(path.read_text()))

    def has_found(self, seed: int) -> bool:
        return self._found(seed).exists()

    def _found(self, seed: int) -> Path:
        return self.records / f"seed{seed}-found.json"

    # -- results --------------------------------------------------------------------------------

    def described(self) -> dict[str, Any]:
        """Return what a reader must know of the study."""
        return {
            **json.loads(json.dumps(self.settings())),
            "budget_name": self.name,
            "seeds": list(self.budget.seeds),
            "model": self.recipe.model,
            "device": self.device,
            "trained_on": sorted({json.loads(path.read_text()).get("device", "cpu") for path in self.trainings()}),
            "n_labels": self.budget.n_labels,
            "limit_mmacs": self.limit,
            "precision": str(self.precision),
            "attack": self.test.pgd20,
            "autoattack": self.test.title,
        }


def train_unit(study: Study, unit: Unit) -> None:
    """Train one unit and leave its weights and record; go on from where an earlier run was stopped."""
    if study.device == "cpu":
        torch.set_num_threads(_training.threads(study.jobs))
    images, teacher = study.images(unit.seed), None
    network: StudentNet = study.network(unit.seed)
    stages = stages_of(study, unit)
    if unit.method in (PROGRESSIVE, RANDOM):
        network = study.supernet(unit.seed, TEACHER)
    elif unit.arch is not None:
        network = study.alone(unit.arch, unit.seed)
    network = network.to(study.device)
    if unit.needs:
        own = study.supernet(unit.seed, TEACHER)
        teacher = own.extract(own.space.largest).eval()  # calibrated, since the trainer left it so
    study.precision.prepare(network)
    trainer = _training.train(
        network,
        images,
        stages,
        study.recipe.settings(unit.seed, study.precision, study.checkpoint_seconds),
        n_calibration=study.budget.n_calibration,
        store=CheckpointStore(study.folder / unit.slug, {**study.settings(), "unit": unit.slug}),
        teacher=teacher,
    )
    whole, parts = study._weights(unit)
    if (
        study.device != "cpu"
    ):  # a lent machine, from which the parts are carried home: all figures are of what they hold
        _training.save_parts(parts, network)
        network.load_state_dict(_training.load_parts(parts))
    _training.save_tensors(whole, network)
    found = _training.report(trainer, stages, study.recipe.batch_size)
    arch = None if unit.arch is None else unit.arch.to_dict()
    _training.write(study._record(unit), {"seed": unit.seed, "method": unit.method, "arch": arch, **found})
    shutil.rmtree(study.folder / unit.slug)


def stages_of(study: Study, unit: Unit) -> list[Stage]:
    """Return the stages of a unit; a network alone is trained as long as teacher and steps together."""
    recipe, budget, network = study.recipe, study.budget, study.network(0)
    teacher = _training.teacher_stage(recipe, budget.teacher_epochs, network)
    if unit.arch is not None:
        epochs = budget.teacher_epochs + budget.step_epochs
        attack = None if unit.method == "natural" else recipe.attack
        return [dataclasses.replace(teacher, name=unit.method, epochs=epochs, loss=unit.method, attack=attack)]
    schedule = PROGRESSIVE if unit.method == TEACHER else unit.method
    stages = [teacher, *_training.step_stages(recipe, budget.step_epochs, network, schedule)]
    stages = share_cosine(stages) if recipe.one_cosine else stages
    return stages[:1] if unit.method == TEACHER else stages[1:]


# -- command line -------------------------------------------------------------------------------


def parser(doc: str | None, out: str) -> argparse.ArgumentParser:
    """Return a parser with what all scripts take."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", default="digits", help=_images.DATA_HELP)
    made.add_argument("--model", help="a supernet's name, in place of the budget's")
    made.add_argument("--budget", choices=list(SMALL), default="laptop")
    for field in dataclasses.fields(Budget):
        if field.name != "seeds":
            made.add_argument("--" + field.name.replace("_", "-"), type=int, help="in place of the budget's")
    made.add_argument("--seeds", type=int, nargs="+", help="in place of the budget's")
    made.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings and labels at once, on CPUs")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--work", default=WORK, help="folder for records, weights and checkpoints")
    made.add_argument("--records", type=Path, help="folder for the records alone, in place of that of --work")
    made.add_argument("--checkpoint-seconds", type=float, default=60.0)
    made.add_argument(
        "--out", help=f"default: benchmarks/results/{out}_DATA_BUDGET.json, with the model's name where one is given"
    )
    return made


def opened(args: argparse.Namespace) -> Study:
    """Return the study that the arguments describe; the precision is decided once."""
    data, file = _images.named_data(args.data)
    budget = BUDGETS[data][args.budget]
    changes = {f.name: getattr(args, f.name) for f in dataclasses.fields(Budget)}
    budget = dataclasses.replace(budget, **{k: v for k, v in changes.items() if v is not None})
    budget = dataclasses.replace(budget, seeds=tuple(budget.seeds))
    recipe = dataclasses.replace(_training.RECIPES[data], **RECIPES[args.budget])
    recipe = recipe if args.model is None else dataclasses.replace(recipe, model=args.model)
    jobs = 1 if args.device != "cpu" else args.jobs
    study = Study(
        data, file, args.budget, budget, recipe, Path(args.work).resolve(), args.device, jobs,
        checkpoint_seconds=args.checkpoint_seconds, kept=args.records,
    )  # fmt: skip
    _training.ignored_by_git(study.work)

    def decide() -> Precision:
        network = study.network(0).to(study.device)
        stages = stages_of(study, Unit(0, TEACHER)) + stages_of(study, Unit(0, PROGRESSIVE))
        settings = recipe.settings(0, Precision(), 60.0)
        return _training.measured_precision(
            network, study.images(0).train, stages, settings, recipe.precision, study.title
        )

    if study.device == "cpu":
        torch.set_num_threads(_training.threads(study.jobs))
    precision = _training.opened_folder(study.records, study.settings(), decide)
    _training.opened_folder(study.folder, study.settings(), lambda: precision)
    return dataclasses.replace(study, precision=precision)


def run(out: str, args: argparse.Namespace, measure: Callable[[Study], dict[str, Any]]) -> dict[str, Any]:
    """Open the study, measure, and write the results down."""
    started = time.time()
    study = opened(args)
    measured = measure(study)
    found = {"study": study.described(), **measured}  # which says what all this was trained on
    name = "_".join([out, study.data, study.name, *([args.model] if args.model else [])])
    path = args.out or _record.RESULTS / f"{name}.json"
    print("wrote", _record.save(path, found, study.budget.seeds[0], started))
    return found


def main(function: Callable[[], Any]) -> None:
    """Run a script: a signal ends its other processes, too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    _record.keep_memory()
    function()
