"""The shipped supernet's budgets, recipes and job, for the scripts that make and compare it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _images
import _robustness
import _training
import numpy as np

from proard_nas import Architecture, ProARDEstimator
from proard_nas.data import ArraySource
from proard_nas.evaluation.population import checksum
from proard_nas.training import Ledger, Stage

PARTS = ("train", "pack", "card", "attack", "alone")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PACKAGE = Path(__file__).resolve().parents[1] / "proard_nas" / "pretrained"


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
        The latter of each of the three steps, or of a third of the one that takes their place.
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
    in_place: bool = False  # one step, in which everything varies, in place of the teacher's stage and the three

    def stages(self, budget: Budget) -> list[Stage]:
        """Return the teacher's stage and the paper's three, or the one in which the largest student goes on too."""
        network = self.network(10, 0)
        steps = _training.step_stages(self, 3 * budget.step_epochs, network, _training.PROGRESSIVE)
        drawn = {"sampler": self.sampler, "students_per_step": self.students_per_step, "drop_rate": 0.0}
        if self.in_place:
            live = {"teacher": "live", "teacher_loss": self.teacher_loss, "epochs": 3 * budget.step_epochs}
            return [dataclasses.replace(steps[-1], **drawn, **live)]
        teacher = _training.teacher_stage(self, budget.teacher_epochs, network)
        return [teacher, *(dataclasses.replace(stage, **drawn) for stage in steps)]


BASE = dataclasses.asdict(_training.CIFAR) | {"teacher_loss": "sat", "ema_decay": 0.998}
RECIPES = {
    "smoke": Recipe(
        **BASE | {"batch_size": 32, "ema_decay": 0.9, "augment": "none", "precision": "float32", "warmup": 1.0}
    ),
    "laptop": Recipe(**BASE | {"batch_size": 128, "teacher_lr": 0.2, "lr": 0.04, "warmup": 2.0}),
}
BUDGETS = {
    "smoke": Budget(96, 48, 24, 32, 3, 1, 64, 16, 5, 14, 32, 12, square_queries=10, limits=(0.2,)),
    "laptop": Budget(47_500, 2500, 10_000, 500, 22, 3, 4000, 224, 600, 200, 500, 400, square_queries=1000),
}
# What is different when the packed weights are trained further: the last step at once, where all that the steps opened
# varies, with the largest student, the smallest and one between. The largest goes on learning from the labels, as in
# the teacher's stage, and teaches the others meanwhile: beside a teacher that no longer learned it lost 2 points. By
# then it has natural accuracy to spare: TRADES gives some of it for robustness.
FURTHER_RECIPE = {"sampler": "sandwich", "students_per_step": 3, "in_place": True, "teacher_loss": "trades"}
FURTHER_BUDGET = {"smoke": {}, "laptop": {"n_watch": 1000, "teacher_epochs": 0, "step_epochs": 2}}


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
    n_attacked: int | None = None
    further: bool = False

    @property
    def budget(self) -> Budget:
        return dataclasses.replace(BUDGETS[self.name], **(FURTHER_BUDGET[self.name] if self.further else {}))

    @property
    def first_recipe(self) -> Recipe:
        """Of the first training, and of the networks alone whatever came later."""
        return RECIPES[self.name]

    @property
    def recipe(self) -> Recipe:
        return dataclasses.replace(self.first_recipe, **(FURTHER_RECIPE if self.further else {}))

    @property
    def folder(self) -> Path:
        return self.work / f"shipped-{self.data}-{self.name}{'-further' if self.further else ''}"

    @property
    def cores(self) -> int:
        """Cores that the training had, which has left them there."""
        return int((self.folder / "cores.json").read_text())

    @property
    def records(self) -> Path:
        """Where the small records are that a run goes on from, wherever it is: of AutoAttack and of networks alone."""
        return self.kept or self.folder

    @property
    def packed(self) -> Path:
        return self.package / self.recipe.model

    @property
    def test(self) -> _robustness.Test:
        b = self.budget
        return _robustness.Test(self.recipe.eps, self.recipe.step_size, b.n_auto, b.square_queries)

    @property
    def measurement(self) -> str:
        """Say on which images and under which attacks students are measured."""
        return (
            f"Measured on {self.budget.n_test:,} test images; weights, students and searches were chosen on others. "
            f"FGSM; {self.test.pgd20}; on the images that it leaves, {self.test.title}, which is not the reference "
            "code: its APGD takes 10 steps, not 100."
        )

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


def measured_before(job: Job) -> list[dict[str, Any]]:
    """Return what the largest student of each earlier training, none of which is packed now, had on the test images."""
    if not job.out.exists():
        return []
    file = json.loads(job.out.read_text())
    results = file["results"]
    before: list[dict[str, Any]] = results.get("measured_before", [])
    if "card" not in results or results["weights"] == packed_weights(job):
        return before
    largest = next(row for row in results["card"] if row["student"] == "largest")
    figures = {metric: largest[metric] for metric in _robustness.TABLE}
    made = {"weights": results["weights"], "commit": file["commit"], "date": file["date"]}
    return [*before, made | figures | {"trained_last": results.get("pack", {}).get("trained_last")}]


def packed_weights(job: Job) -> str:
    """Return a checksum of the weights that are packed now: figures of others are not theirs."""
    return checksum(ProARDEstimator.load(job.packed).supernet_)


def training_seconds(spent: Ledger) -> float:
    """Return the seconds of all stages, without labelling."""
    return float(sum(stage.seconds for name, stage in spent.entries.items() if name != "labelling"))


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
