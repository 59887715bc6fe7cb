"""How benchmarks train on a data set: recipes, images, stages, and folders from which a stopped run goes on."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import _images
import safetensors.torch
import timm
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from proard_nas import Supernet, quickstart
from proard_nas.attacks import EPS, STEP_SIZE, seeded
from proard_nas.data import ArraySource, load_npz
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
STAND_IN = "synthetic"
PART_SIZE = "15MB"
N_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, STAND_IN: 10}
DATA_HELP = f"digits, cifar10=FILE.npz, cifar100=FILE.npz, {STAND_IN}"
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


# -- data ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Data:
    """A seed's images; nothing but the final figures sees the test images."""

    train: ArraySource
    validation: ArraySource
    test: ArraySource

    def to(self, device: str) -> Data:
        return Data(self.train.to(device), self.validation.to(device), self.test.to(device))


def named_data(given: str) -> tuple[str, str | None]:
    """Return the data set and file of a ``--data`` argument.

    Raises
    ------
    SystemExit
        If it is none that is allowed.
    """
    data, _, file = given.partition("=")
    if data not in N_CLASSES or data.startswith("cifar") != bool(file):
        raise SystemExit(f"--data {given}: allowed are {DATA_HELP}")
    return data, file or None


@functools.lru_cache(1)
def load(data: str, file: str | None, n_train: int, n_val: int, n_test: int, seed: int) -> Data:
    """Draw a seed's training, validation and test images.

    Raises
    ------
    ValueError
        If there are too few.
    """
    if data == "digits":
        (x, y), test = quickstart.digits(seed)
        train = ArraySource(torch.from_numpy(x), torch.from_numpy(y))
    elif data == STAND_IN:
        train, test = _synthetic(n_train + n_val, n_test, seed)
    else:
        train, test = _npz(str(file))
    if len(train) < n_train + n_val or len(test) < n_test:
        raise ValueError(f"{data} has {len(train)} training and {len(test)} test images; allowed: at least "
                         f"{n_train + n_val} and {n_test}, which were asked for")  # fmt: skip
    drawn = train.head(n_train + n_val, seed=seed)
    return Data(drawn.take(range(n_train)), drawn.take(range(n_train, len(drawn))), test.head(n_test, seed=seed))


def _npz(file: str) -> tuple[ArraySource, ArraySource]:
    arrays = load_npz(file)
    if arrays.x_test is None:
        raise ValueError(f"{file} holds no x_test and y_test, which the final figures are taken on")
    return _images.source_of(arrays.x_train, arrays.y_train), _images.source_of(arrays.x_test, arrays.y_test)


def _synthetic(n_train: int, n_test: int, seed: int) -> tuple[ArraySource, ArraySource]:
    """Return colour images of ten blurred patterns under noise, to try a script out without real photographs."""
    generator = torch.Generator().manual_seed(seed)
    patterns = nn.functional.interpolate(torch.rand(10, 3, 4, 4, generator=generator), size=32, mode="bilinear")

    def draw(n: int) -> ArraySource:
        y = torch.arange(n) % 10
        return ArraySource((patterns[y] + 0.1 * torch.randn(n, 3, 32, 32, generator=generator)).clamp(0, 1), y)

    return draw(n_train), draw(n_test)


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
    n_students: int = 3,
    teacher: nn.Module | None = None,
) -> Trainer:
    """Train over stages, from a checkpoint where there is one; validation images choose the best weights."""
    budget = settings.budget
    trainer = Trainer(
        network,
        data.train,
        calibration_images(data.train, n_calibration, settings.augment),
        settings,
        validation=Validation(
            data.validation, AttackSettings("pgd", budget.eps, budget.step_size, 10), n_students=n_students
        ),
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
    (folder.parent / ".gitignore").write_text("*\n")
    path, settings = folder / "settings.json", json.loads(json.dumps(settings))
    if not path.exists():
        write(path, {**settings, "precision": dataclasses.asdict(decide())})
    stored = json.loads(path.read_text())
    precision = Precision(**stored.pop("precision"))
    if stored != settings:
        raise ValueError(f"{folder} holds records of other settings: {stored}, not {settings}; give another --work")
    return precision


def run_side_by_side(
    waiting: Sequence[Task], is_ready: Callable[[Task], bool], run: Callable[[Task], None], jobs: int, title: str
) -> None:
    """Run tasks in their order, each once it is ready, several at once in processes of their own.

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
