"""The trained supernet that comes with the package: made, packed, and measured beside networks trained alone.

Parts, each of which goes on from what it has left in the ``--work`` folder:

- ``train``: the teacher by single-step adversarial training, then the paper's three steps (RSLAD), with a moving
  average of the weights and the best ones by validation images. With ``--further`` all of it again, from the weights
  that are packed: the work folder of the first training is not needed. The largest student, which the first time lost
  in the steps what it had as the teacher, is then among the students of every step.
- ``pack``: weights rounded to float16; images for calibration that are no photographs, but have the statistics that the
  training images have in every student; labels on validation images; the predictor; the folder in the package.
- ``card``: five students (the ends and three that a search found) on the test images: natural, FGSM, PGD-20 and, on
  fewer images, AutoAttack. Nothing was chosen on these images.
- ``alone``: the largest and the found students trained alone, for as long as the supernet took, and the found ones for
  a fiftieth of that too: what fifty devices would leave to each. That time is counted in epochs of the largest student,
  so that a faster or slower machine than the supernet's does not change what a network is given. Each network that is
  finished leaves a small record; with ``--n-alone`` a run trains so many, the shorter ones first, and leaves the others
  to later runs.

Parts that a run leaves out keep their figures in ``--out``, as long as the packed weights are the same.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import _images
import _record
import _robustness
import _study
import _training
import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proard_nas import Architecture, ProARDEstimator, Supernet
from proard_nas.attacks import seeded
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, calibrate, evaluate
from proard_nas.evaluation.population import append_line, checksum
from proard_nas.supernets import StudentNet
from proard_nas.supernets.saving import rounded
from proard_nas.training import CheckpointStore, Ledger, Precision, Stage, Trainer, TrainSettings, training_cost

PARTS = ("train", "pack", "card", "alone")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PACKAGE = Path(__file__).resolve().parents[1] / "proard_nas" / "pretrained"
DEVICES = 50
DRAWN = 1000  # training images whose statistics a step in making calibration images is after


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is done.

    Parameters
    ----------
    n_train, n_val, n_test : int
        Images to train on; to choose weights by, label and search on; and for the card.
    n_watch : int
        Validation images that training is watched on.
    teacher_epochs, step_epochs : int
        The latter of each of the three steps.
    n_calibration : int
        Training images whose statistics the calibration images are to have.
    n_synthetic, synthetic_steps : int
        Calibration images, and the steps in which they are made.
    n_labels, n_label_images : int
        Students, and the validation images that they are measured on.
    n_auto, square_queries : int
        Of AutoAttack.
    limits : tuple of float
        MMACs under which students are searched, as shares of the largest one's.
    """

    n_train: int
    n_val: int
    n_test: int
    n_watch: int
    teacher_epochs: int
    step_epochs: int
    n_calibration: int
    n_synthetic: int
    synthetic_steps: int
    n_labels: int
    n_label_images: int
    n_auto: int
    square_queries: int = _robustness.STANDARD_QUERIES
    limits: tuple[float, ...] = (0.1, 0.2, 0.4)


@dataclasses.dataclass(frozen=True)
class Recipe(_training.Recipe):
    """How the supernet is trained; the teacher without, the students with distillation."""

    sampler: str = "attentive"
    students_per_step: int = 2
    last_step: bool = False  # the last step, in which everything varies, for as many epochs as all three

    def stages(self, budget: Budget) -> list[Stage]:
        """Return the teacher's stage and the paper's three."""
        network = self.network(10, 0)
        teacher = _training.teacher_stage(self, budget.teacher_epochs, network)
        steps = _training.step_stages(self, 3 * budget.step_epochs, network, _training.PROGRESSIVE)
        drawn = {"sampler": self.sampler, "students_per_step": self.students_per_step, "drop_rate": 0.0}
        if self.last_step:
            steps = [dataclasses.replace(steps[-1], epochs=3 * budget.step_epochs)]
        return [teacher, *(dataclasses.replace(stage, **drawn) for stage in steps)]


BASE = dataclasses.asdict(_training.CIFAR) | {"teacher_loss": "sat", "ema_decay": 0.998}
RECIPES = {
    "smoke": Recipe(
        **BASE | {"batch_size": 32, "ema_decay": 0.9, "augment": "none", "precision": "float32", "warmup": 1.0}
    ),
    "laptop": Recipe(**BASE | {"batch_size": 128, "teacher_lr": 0.2, "lr": 0.04, "warmup": 2.0}),
}
BUDGETS = {
    "smoke": Budget(96, 48, 24, 32, 3, 1, 64, 16, 5, 14, 32, 3, square_queries=10, limits=(0.2,)),
    "laptop": Budget(47_500, 2500, 10_000, 500, 22, 3, 4000, 224, 600, 200, 500, 400, square_queries=1000),
}
# What is different when the packed weights are trained further: a few epochs of the teacher from a small learning rate,
# which spoils little of them, with a loss that prefers robustness; then the last step at once, where all that the steps
# opened varies, with the largest student, the smallest and one between (two thirds of the epochs for as many).
FURTHER_RECIPE = {
    "teacher_loss": "trades", "teacher_lr": 0.03, "warmup": 0.5,
    "sampler": "sandwich", "students_per_step": 3, "last_step": True,
}  # fmt: skip
FURTHER_BUDGET = {"smoke": {}, "laptop": {"n_watch": 1000, "teacher_epochs": 3, "step_epochs": 2}}


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained on which images, and where it is left."""

    data: str
    file: str | None
    name: str
    work: Path
    package: Path
    jobs: int
    out: Path
    kept: Path | None = None
    n_alone: int | None = None
    further: bool = False

    @property
    def budget(self) -> Budget:
        return dataclasses.replace(BUDGETS[self.name], **(FURTHER_BUDGET[self.name] if self.further else {}))

    @property
    def recipe(self) -> Recipe:
        return dataclasses.replace(RECIPES[self.name], **(FURTHER_RECIPE if self.further else {}))

    @property
    def folder(self) -> Path:
        return self.work / f"shipped-{self.data}-{self.name}{'-further' if self.further else ''}"

    @property
    def cores(self) -> int:
        """Cores that the training had, which has left them there."""
        return int((self.folder / "cores.json").read_text())

    @property
    def records(self) -> Path:
        """Where the records of networks trained alone are."""
        return self.kept or self.folder

    @property
    def packed(self) -> Path:
        return self.package / self.recipe.model

    @property
    def test(self) -> _robustness.Test:
        b = self.budget
        return _robustness.Test(self.recipe.eps, self.recipe.step_size, b.n_auto, b.square_queries)

    def images(self) -> _images.Data:
        b = self.budget
        return _images.load(self.data, self.file, b.n_train, b.n_val, b.n_test, 0)

    def named(self, source: ArraySource) -> tuple[np.ndarray, np.ndarray]:
        """Return images and the names of their classes."""
        names = CIFAR10 if self.data == "cifar10" else [str(i) for i in range(10)]
        return source.x.numpy(), np.array(names)[source.y.numpy()]


def earlier(job: Job) -> dict[str, Any]:
    """Return what an earlier run found of the weights that are packed now."""
    if not (job.out.exists() and job.packed.exists()):
        return {}
    results: dict[str, Any] = json.loads(job.out.read_text())["results"]
    parts = {part: results[part] for part in PARTS if part in results}
    return parts if results.get("weights") == packed_weights(job) else {}


def packed_weights(job: Job) -> str:
    """Return a checksum of the weights that are packed now: figures of others are not theirs."""
    return checksum(ProARDEstimator.load(job.packed).supernet_)


# -- train ----------------------------------------------------------------------------------------


def train(job: Job) -> ProARDEstimator:
    """Train the supernet, or go on from what the folder holds."""
    done = job.folder / "trained"
    if done.exists():
        return ProARDEstimator.load(done)
    recipe, budget, images = job.recipe, job.budget, job.images()
    estimator = ProARDEstimator.load(job.packed) if job.further else ProARDEstimator()
    estimator.set_params(
        model=recipe.model,
        warm_start=job.further,
        schedule=recipe.stages(budget),
        batch_size=recipe.batch_size,
        weight_decay=recipe.weight_decay,
        eps=recipe.eps,
        step_size=recipe.step_size,
        attack=recipe.attack,
        ema_decay=recipe.ema_decay,
        augment=recipe.augment,
        n_watch=budget.n_watch,
        n_labels=12,
        n_calibration=budget.n_calibration,
        precision=recipe.precision,
        random_state=0,
    )
    estimator.fit(*job.named(images.train), job.named(images.validation), job.folder / "training")
    estimator.save(done)
    _training.write(job.folder / "cores.json", _training.threads(1))
    return estimator


# -- pack -----------------------------------------------------------------------------------------


def pack(job: Job) -> dict[str, Any]:
    """Round the weights, make the calibration images, label, and write the folder in the package."""
    estimator, images, budget = train(job), job.images(), job.budget
    network = estimator.supernet_
    network.load_state_dict(rounded(network.state_dict(), "float16"))
    real = estimator.calibration_images_
    path = job.folder / "synthetic.npy"
    if not path.exists():
        made = synthetic_images(network, real, budget.n_synthetic, budget.synthetic_steps)
        np.save(path, (made * 255).round().to(torch.uint8).numpy())
    synthetic = torch.from_numpy(np.load(path)).float() / 255
    checked = check_images(job, network, real, synthetic, images.validation)
    estimator.calibration_images_ = synthetic
    calibrate(network, synthetic)
    x, y = job.named(images.validation.head(budget.n_label_images))
    estimator.n_jobs = job.jobs
    estimator.label(budget.n_labels, x, y, replace=True, record=job.folder / "labels.jsonl")
    estimator.n_jobs = None
    network.metadata.pop("students", None)  # of the weights before
    network.metadata |= {
        "data": {"cifar10": "CIFAR-10"}.get(job.data, job.data),
        "license": "apache-2.0",
        "load": f'ProARDEstimator.from_pretrained("{job.recipe.model}")',
        "calibration": f"Students are given their batch norm statistics from {len(synthetic)} images that come with "
        "it. They are no photographs: they were made from noise to have, in the layers of random students, the "
        "statistics that the training images have.",
        "description": description(job, estimator),
    }
    estimator.save(job.packed, dtype="float16")
    return {
        "calibration": checked,
        "predictor": estimator.predictor_score_,
        "n_labels": len(estimator.labels_),
        "training_seconds": training_seconds(estimator.spent_),
        "cores": job.cores,
        "trained_last": {"recipe": dataclasses.asdict(job.recipe), "budget": dataclasses.asdict(budget)},
        "macs": estimator.spent_.total.macs,
        "spent": estimator.spent_.to_dict(),
        "bytes": sum(file.stat().st_size for file in job.packed.rglob("*") if file.is_file()),
        "validation": [row["validation"] for row in estimator.history_ if "validation" in row][-1],
    }


def training_seconds(spent: Ledger) -> float:
    """Return the seconds of all stages, without labelling."""
    return float(sum(stage.seconds for name, stage in spent.entries.items() if name != "labelling"))


def description(job: Job, estimator: ProARDEstimator) -> str:
    machine = _record.machine()
    epochs = Counter(row["stage"] for row in estimator.history_)
    hours = training_seconds(estimator.spent_) / 3600
    file = "" if job.file is None else "=FILE.npz"
    return (
        f"Trained on {job.budget.n_train:,} images in {hours:.1f} hours on {job.cores} CPU core{'s' * (job.cores > 1)} "
        f"({machine['cpu']}): {', '.join(f'{name} {n}' for name, n in epochs.items())} epochs, inner attack "
        f"{job.recipe.attack}, eps {job.recipe.eps * 255:.0f}/255. To continue it, from a checkout, "
        f"with the same images held out: `python benchmarks/shipped.py --further --data {job.data}{file}`."
    )


def synthetic_images(network: Supernet, real: Tensor, n: int, steps: int) -> Tensor:
    """Make images whose statistics in the layers of random students are those of the real images.

    Starts from blurred noise. Each step draws a student, calibrates it on some real images, and moves the images
    against the gradient of what their batch statistics differ by: squared differences of means in standard deviations,
    and of the logarithms of the deviations, averaged over channels and layers.
    """
    with seeded(0):
        coarse = nn.functional.interpolate(torch.rand(n, real.shape[1], 4, 4), size=real.shape[2:], mode="bilinear")
        x = (coarse + 0.1 * torch.randn(n, *real.shape[1:])).clamp(0, 1).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        few = real[rng.permutation(len(real))[:DRAWN]]
        with torch.no_grad():
            student = calibrate(network.student(network.space.sample(rng)), few)
        loss = statistics_differ(student, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return x.detach()


def statistics_differ(student: nn.Module, x: Tensor) -> Tensor:
    """Return by how much the statistics of a batch differ from a student's own, averaged over channels and layers."""
    differences: list[Tensor] = []

    def compare(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        assert norm.running_mean is not None and norm.running_var is not None
        own = norm.running_var.clone() + norm.eps
        differences.append(((mean - norm.running_mean.clone()) ** 2 / own).mean())
        differences.append((0.5 * ((var + norm.eps) / own).log()).square().mean())

    norms = [module for module in student.modules() if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(compare) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the statistics stay as they are
    student.train()(x)
    for hook in hooks:
        hook.remove()
    return torch.stack(differences).mean()


def check_images(job: Job, network: Supernet, real: Tensor, synthetic: Tensor, source: ArraySource) -> dict[str, Any]:
    """Compare students calibrated on the synthetic images, on the real ones and on as few real ones."""
    path = job.folder / "calibration.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    rng, rows = np.random.default_rng(1), []
    space = network.space
    attack = AttackSettings("pgd", job.recipe.eps, job.recipe.step_size, 10)
    for arch in [space.largest, space.smallest, *(space.sample(rng) for _ in range(18))]:
        row = {}
        for name, images in (("real", real), ("few real", real[: len(synthetic)]), ("synthetic", synthetic)):
            student = calibrate(network.extract(arch), images).eval()
            few = source.head(500)
            row[name] = [evaluate(student, few, one).accuracy for one in ("natural", attack)]
        rows.append(row)
    found = {
        name: {
            output: float(np.mean([row[name][i] - row["real"][i] for row in rows]))
            for i, output in enumerate(("natural", "pgd10"))
        }
        for name in ("few real", "synthetic")
    } | {"n_students": len(rows), "n_real": len(real), "n_synthetic": len(synthetic)}
    _training.write(path, found)
    return found


# -- card -----------------------------------------------------------------------------------------


def chosen(estimator: ProARDEstimator, limits: Sequence[float]) -> dict[str, Architecture]:
    """Return five students: the ends, and the best that a search finds under each limit, by predicted figures."""
    network = estimator.supernet_
    largest = network.cost(network.space.largest).mmacs
    found = {"largest": network.space.largest}
    for share in limits:
        found[f"found under {share * largest:.3g} MMACs"] = estimator.search(
            max_flops=share * largest, seed=0, progress=False
        ).best.architecture
    return {**found, "smallest": network.space.smallest}


def card(job: Job) -> list[dict[str, Any]]:
    """Measure five students of the packed supernet on the test images, and write them on its cards."""
    estimator = ProARDEstimator.load(job.packed)
    torch.set_num_threads(_training.threads(1))
    weights = checksum(estimator.supernet_)
    record, rows = job.folder / f"card-{weights}.jsonl", []
    known = {row["student"]: row for row in _robustness.read_lines(record)}
    for name, arch in chosen(estimator, job.budget.limits).items():
        student = estimator.extract(arch)
        if name not in known or known[name]["arch"] != arch.to_dict():
            cost = estimator.supernet_.cost(arch)
            known[name] = {"student": name, "arch": arch.to_dict(), "mmacs": cost.mmacs, "params": cost.params}
            known[name] |= _robustness.measure_network(student, job.images().test, job.test, auto=True)
            append_line(record, known[name])
        rows.append(known[name])
    titles = {**_robustness.NAMES, "autoattack": f"AutoAttack ({job.budget.n_auto} images)"}
    estimator.supernet_.metadata["students"] = [
        {"student": row["student"], "MMACs": round(row["mmacs"], 2), "parameters": row["params"]}
        | {f"{titles[m]}, %": round(100 * row[m], 2) for m in _robustness.TABLE}
        for row in rows
    ]
    estimator.save(job.packed, dtype="float16")
    return rows


# -- alone ----------------------------------------------------------------------------------------


def alone(job: Job) -> list[dict[str, Any]]:
    """Train the largest and the found students alone, for the supernet's time and a fiftieth of it, and measure."""
    estimator = ProARDEstimator.load(job.packed)
    height, width = job.images().train.x.shape[2:]
    settings, stages = job.recipe.settings(0, Precision(), 0.0), [alone_stage(job.recipe, 1)]
    epoch = training_cost(estimator.supernet_, stages, job.budget.n_train, settings.budget, (height, width))
    epochs, cores = (
        largest_epochs(estimator.spent_, epoch.macs),
        earlier(job).get("pack", {}).get("cores", _training.threads(1)),
    )
    archs = chosen(estimator, job.budget.limits)
    tasks = [Task(name, archs[name], part, part * epochs, cores) for name, part in trained_alone(archs)]
    job.records.mkdir(parents=True, exist_ok=True)
    waiting = sorted((task for task in tasks if not alone_record(job, task).exists()), key=lambda task: task.part)
    _training.run_side_by_side(
        waiting[: job.n_alone], lambda task: True, functools.partial(train_alone, job), job.jobs, "alone"
    )
    records = {task: alone_record(job, task) for task in tasks}
    return [{"student": task.name, **json.loads(path.read_text())} for task, path in records.items() if path.exists()]


def trained_alone(students: Iterable[str]) -> list[tuple[str, float]]:
    """Return which students are trained alone, too, and for which part of the supernet's time."""
    names = [name for name in students if name != "smallest"]
    return [(name, part) for part in (1.0, 1 / DEVICES) for name in names if part == 1 or name != "largest"]


def largest_epochs(spent: Ledger, epoch_macs: float) -> float:
    """Return how long a supernet was trained, in epochs of the largest student alone, of so many multiply-accumulates.

    The teacher is the largest student: its seconds, on whatever machines and with whatever losses it was trained, say
    how fast the largest student's are done.
    """
    teacher = spent.entries["teacher"]
    return training_seconds(spent) / teacher.seconds * teacher.macs / epoch_macs


@dataclasses.dataclass(frozen=True)
class Task:
    """A network to train alone for the time of so many epochs of the largest student, on so many cores."""

    name: str
    arch: Architecture
    part: float
    largest_epochs: float
    cores: int

    def __str__(self) -> str:
        return f"{self.name}, the time of {self.largest_epochs:.2f} epochs of the largest"


def alone_record(job: Job, task: Task) -> Path:
    return job.records / f"alone-{_study.short_name(task.arch)}-{task.largest_epochs:.2f}.json"


def train_alone(job: Job, task: Task) -> None:
    """Train one network alone for its time, measure it, and leave a record."""
    path, threads = alone_record(job, task), _training.threads(job.jobs)
    store, plan = job.folder / path.stem, job.folder / f"{path.stem}.plan"
    recipe, images = job.recipe, job.images()
    if not plan.exists():
        torch.set_num_threads(task.cores)
        _training.write(plan, planned_alone(job, task, images))
    torch.set_num_threads(threads)
    planned = json.loads(plan.read_text())
    network, precision = untrained(job, task.arch), Precision(**planned["precision"])
    precision.prepare(network)
    stage = alone_stage(recipe, planned["epochs"])
    trainer = _training.train(
        network,
        dataclasses.replace(images, validation=images.validation.head(job.budget.n_watch)),
        [stage],
        recipe.settings(0, precision, 120.0),
        n_calibration=job.budget.n_calibration,
        store=CheckpointStore(store, {"arch": task.arch.to_dict(), "epochs": stage.epochs}),
    )
    measured = _robustness.measure_network(network, images.test, job.test, auto=True)
    given = {"arch": task.arch.to_dict(), "part": task.part, "largest_epochs": task.largest_epochs, "cores": task.cores}
    found = _training.report(trainer, [stage], recipe.batch_size)
    _training.write(path, {**given, **planned, "threads": threads, **measured, **found})
    shutil.rmtree(store)


def planned_alone(job: Job, task: Task, images: _images.Data) -> dict[str, Any]:
    """Return the epochs that a network gets, and the fastest precision here.

    The epochs follow from a few steps of it beside as many of the largest student, both timed here: it may then be
    trained on any machine and any number of cores.
    """
    recipe, supernet = job.recipe, ProARDEstimator.load(job.packed).supernet_
    stages = [alone_stage(recipe, max(1, round(task.largest_epochs)))]
    precision = _training.measured_precision(
        supernet, images.train, stages, recipe.settings(0, Precision(), 60.0), recipe.precision, str(task)
    )
    share = 1.0
    if task.arch != supernet.space.largest:
        networks = [untrained(job, arch) for arch in (task.arch, supernet.space.largest)]
        own, largest = step_seconds(networks, images, recipe, recipe.settings(0, precision, 60.0))
        share = own / largest
    return {
        "share_of_largest_time": share,
        "epochs": max(1, round(task.largest_epochs / share)),
        "precision": dataclasses.asdict(precision),
    }


def untrained(job: Job, arch: Architecture) -> StudentNet:
    """Return an untrained network of one architecture."""
    return _study.Study(job.data, job.file, "", _study.SMOKE, job.recipe, job.work).alone(arch, 0)


def alone_stage(recipe: Recipe, epochs: int) -> Stage:
    """Return the teacher's stage for a network alone, with a warm-up that a few epochs leave room for."""
    shorter = dataclasses.replace(recipe, warmup=min(recipe.warmup, epochs / 10))
    return dataclasses.replace(_training.teacher_stage(shorter, epochs, recipe.network(10, 0)), name="alone")


def step_seconds(
    networks: Sequence[nn.Module], images: _images.Data, recipe: Recipe, settings: TrainSettings
) -> list[float]:
    """Time a few training steps of a copy of each network, in turn, and return each one's seconds in its best round."""
    few = images.train.head(6 * recipe.batch_size)
    stage, rounds = dataclasses.replace(alone_stage(recipe, 1), warmup=0.0), []
    for network in networks:
        settings.precision.prepare(network)
    for _ in range(4):
        rounds.append([])
        for network in networks:
            trainer = Trainer(copy.deepcopy(network), few, few.x[:64], settings)
            start = time.perf_counter()
            trainer.run([stage])
            rounds[-1].append(time.perf_counter() - start)
    return [min(seconds) for seconds in zip(*rounds[1:], strict=True)]  # the first warms up


# -- command line -----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=_images.STAND_IN, help=_images.DATA_HELP)
    parser.add_argument("--budget", choices=BUDGETS, default="laptop")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--further", action="store_true", help="train the packed supernet further")
    parser.add_argument("--n-alone", type=int, help="networks that this run trains alone (default: all that are left)")
    parser.add_argument("--records", type=Path, help="folder for the records of networks alone (default: --work's)")
    parser.add_argument("--package", default=PACKAGE, help="folder in which the packed folder is made")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="labels, and networks alone, at once")
    parser.add_argument("--work", default=_study.WORK, help="folder for records and checkpoints")
    parser.add_argument("--out", default=_record.RESULTS / "shipped.json")
    args = parser.parse_args(argv)
    started = time.time()
    data, file = _images.named_data(args.data)
    work, package, out = (Path(path).resolve() for path in (args.work, args.package, args.out))
    job = Job(data, file, args.budget, work, package, args.jobs, out, args.records, args.n_alone, args.further)
    _training.ignored_by_git(job.work)
    job.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(_training.threads(1))
    made = {"train": train, "pack": pack, "card": card, "alone": alone}
    results: dict[str, Any] = {
        "data": data,
        "budget": dataclasses.asdict(job.budget),
        "recipe": dataclasses.asdict(job.recipe),
        "autoattack": job.test.title,
    }
    for part in PARTS:
        if part in args.parts:
            found = made[part](job)
            if part != "train":
                results |= earlier(job) | {part: found, "weights": packed_weights(job)}
                print("wrote", _record.save(out, results, 0, started))
            if part in ("card", "alone"):
                print(table(found))
    return results


def table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [row["student"], row.get("mmacs", ""), row.get("epochs", ""), *(100 * row[m] for m in _robustness.TABLE)]
        for row in rows
    ]
    return tabulate(cells, ["student", "MMACs", "epochs", *_robustness.NAMES.values()], floatfmt=".2f")


if __name__ == "__main__":
    _study.main(main)
