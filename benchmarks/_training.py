"""How benchmarks train on a data set: recipes, images, stages, and folders from which a stopped run goes on."""

from __future__ import annotations

import copy
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import _record
import safetensors.torch
import timm
import torch
from _images import STAND_IN, Data
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from proard_nas import Supernet
from proard_nas.attacks import EPS, STEP_SIZE, seeded
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings
from proard_nas.supernets import StudentNet
from proard_nas.supernets.saving import rounded
from proard_nas.training import (
    AttackBudget,
    CheckpointStore,
    Precision,
    Stage,
    Trainer,
    TrainSettings,
    Validation,
    calibration_images,
    make_schedule,
    plan_training,
    raise_for,
)

PROGRESSIVE = "paper"
PART_SIZE = "15MB"
Task = TypeVar("Task")


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
    one_cosine: bool = False
    warmup: float = 0.0

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

    def network(self, n_classes: int, seed: int) -> Supernet:
        with seeded(seed):
            return timm.create_model(self.model, num_classes=n_classes)


CIFAR = Recipe(
    "proard_dyn_resnet_small", EPS, STEP_SIZE, "n-fgsm", 10, 64, 0.1, 0.05, 5e-4, ema_decay=0.995, augment="crop-flip"
)
RECIPES = {
    "digits": Recipe("proard_dyn_resnet_tiny", 0.1, 0.025, "pgd", 5, 64, 0.1, 0.1, precision="float32"),
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    STAND_IN: dataclasses.replace(CIFAR, batch_size=32, ema_decay=0.9, augment="none"),
}


# -- stages -------------------------------------------------------------------------------------


def teacher_stage(recipe: Recipe, epochs: int, network: Supernet) -> Stage:
    """Return the stage that trains the largest student alone."""
    stage = make_schedule(PROGRESSIVE, network.space, teacher_loss=recipe.teacher_loss, lr=recipe.teacher_lr)[0]
    return dataclasses.replace(stage, epochs=epochs, attack=recipe.attack, warmup=recipe.warmup)


def step_stages(
    recipe: Recipe, epochs: int, network: Supernet, schedule: str, batch_norm: str = "batch"
) -> list[Stage]:
    """Return a schedule's stages after the teacher's, as long as so many passes of one student.

    One factor scales the epochs of every schedule, so that the library's own balance between them, as many
    student-steps for each, is kept.

    Raises
    ------
    ValueError
        If the epochs cannot be shared so.
    """

    def steps(schedule: str) -> list[Stage]:
        return make_schedule(schedule, network.space, loss=recipe.loss, lr=recipe.lr)[1:]

    whole = sum(stage.epochs for stage in steps(PROGRESSIVE))
    stages = []
    for stage in steps(schedule):
        own, rest = divmod(stage.epochs * epochs, whole)
        if rest:
            raise ValueError(f"{epochs} epochs cannot be shared as {schedule!r} shares its {whole}")
        stages.append(dataclasses.replace(stage, epochs=own, attack=recipe.attack, batch_norm=batch_norm))
    return stages


def student_images(history: Sequence[dict[str, Any]]) -> int:
    """Count images times the students trained on them."""
    return sum(epoch["images"] * epoch["students"] for epoch in history)


# -- training -----------------------------------------------------------------------------------


def train(
    network: StudentNet,
    data: Data,
    stages: list[Stage],
    settings: TrainSettings,
    *,
    n_calibration: int,
    store: CheckpointStore,
    teacher: nn.Module | None = None,
) -> Trainer:
    """Train over stages, from a checkpoint where there is one; validation images choose the best weights."""
    budget = settings.budget
    trainer = Trainer(
        network,
        data.train,
        calibration_images(data.train, n_calibration, settings.augment),
        settings,
        validation=Validation(data.validation, AttackSettings("pgd", budget.eps, budget.step_size, 10), n_students=3),
        teacher=copy.deepcopy(teacher),
        store=store,
    )
    trainer.restore(stages)
    trainer.run(stages)
    if trainer.interrupted is not None:
        raise_for(trainer.interrupted)
    return trainer


def report(trainer: Trainer, stages: Sequence[Stage], batch_size: int) -> dict[str, Any]:
    """Return what a training was and what it took."""
    spent = trainer.ledger.total
    return {
        "stages": [stage.to_dict() for stage in stages],
        "student_images": student_images(trainer.history),
        "student_steps": sum(stage.epochs * stage.students_per_step for stage in stages)
        * trainer.source.n_batches(batch_size),
        "training_seconds": spent.seconds,
        "macs": spent.macs,
        "device": spent.device,
        "made": _record.made(),
        "energy_joules": spent.energy_joules,
        "events": trainer.events,
        "history": trainer.history,
    }


def measured_precision(
    network: Supernet, source: ArraySource, stages: Sequence[Stage], settings: TrainSettings, wanted: str, title: str
) -> Precision:
    """Measure a few steps, say what the stages will take, and return the fastest precision."""
    trainer = Trainer(network, source, source.x[:2], settings)
    precision, cost = plan_training(trainer, stages, wanted)
    print(f"{title}: {precision}; one seed's stages will take {cost}", flush=True)
    return precision


def threads(jobs: int) -> int:
    """Return the threads of each of so many processes: all cores shared out, or what OMP_NUM_THREADS allows."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, (int(allowed) if allowed.isdecimal() else os.cpu_count() or 1) // jobs)


# -- folders ------------------------------------------------------------------------------------


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors as files take them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def save_tensors(path: Path, network: nn.Module) -> None:
    """Write a network's tensors, whole or not at all."""
    part = path.with_suffix(".part")
    safetensors.torch.save_file(tensors_of(network), part)
    part.replace(path)


def save_parts(folder: Path, network: nn.Module) -> None:
    """Write a network's tensors in half precision, in files small enough to be moved one by one."""
    folder.mkdir(exist_ok=True)
    save_torch_state_dict(rounded(tensors_of(network), "float16"), folder, max_shard_size=PART_SIZE)


def load_parts(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that `save_parts` wrote, as float32."""
    found = {
        k: v for path in sorted(folder.glob("*.safetensors")) for k, v in safetensors.torch.load_file(path).items()
    }
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in found.items()}


def write(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, allow_nan=False))
    part.replace(path)


def opened_folder(folder: Path, settings: dict[str, Any], decide: Callable[[], Precision]) -> Precision:
    """Make a folder for these settings, or go on with what it holds; the precision is decided once.

    Raises
    ------
    ValueError
        If it holds records of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, settings = folder / "settings.json", json.loads(json.dumps(settings))
    if not path.exists():
        write(path, {**settings, "precision": dataclasses.asdict(decide())})
    stored = json.loads(path.read_text())
    precision = Precision(**stored.pop("precision"))
    if stored != settings:
        raise ValueError(f"{folder} holds records of other settings: {stored}, not {settings}; give another --work")
    return precision


def ignored_by_git(work: Path) -> Path:
    """Make a folder whose files, weights among them, are not for version control."""
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n")
    return work


def run_side_by_side(
    waiting: Sequence[Task],
    is_ready: Callable[[Task], bool],
    run: Callable[[Task], None],
    jobs: int,
    title: str,
    ended: Callable[[Task], object] = lambda task: None,
) -> None:
    """Run tasks in their order, each once it is ready, several at once in processes of their own.

    What is to be done at the end of each is done here, while others go on.

    Raises
    ------
    SystemExit
        If one failed.
    """
    waiting, running = list(waiting), dict[int, tuple[Any, Any]]()
    while waiting or running:
        task = next(filter(is_ready, waiting), None)
        if task is not None and len(running) < jobs:
            waiting.remove(task)
            print(f"{title}: {task} starts, {len(waiting)} to come", flush=True)
            if jobs == 1:
                run(task)
                ended(task)
                continue
            process = multiprocessing.get_context("spawn").Process(target=run, args=(task,), daemon=True)
            process.start()
            running[process.sentinel] = (task, process)
            continue
        for sentinel in multiprocessing.connection.wait(list(running)):
            task, process = running.pop(int(sentinel))
            process.join()
            if process.exitcode:
                raise SystemExit(f"{title}: {task} ended with exit code {process.exitcode}")
            ended(task)
