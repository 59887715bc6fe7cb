"""How fast students are labelled, and whether the shortcuts give the same labels, or at least the same ranks.

The students are those of a supernet that was trained shortly; the images are from the training part of the data, and
were not trained on. The test part is never read.

- ``dropping``: seconds for one student where fooled images are dropped (the library's way), against the same attack on
  every image for all its steps, written here by hand. The accuracies must be exactly the same.
- ``proxy``: seconds and ranks with fewer images and fewer steps, against the full measurement.
- ``scaling``: seconds for some students in one process and in two, by ``n_jobs`` and by torchrun (gloo), of one thread
  each. All must give the same labels.

Each part is measured several times, its variants in turn; ratios are taken within a turn. The trained supernet is kept
in the ``--work`` folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _images
import _record
import _training
import safetensors.torch
import timm
import torch
from tabulate import tabulate
from torch import Tensor, nn

from proard_nas import Architecture, Supernet, distributed
from proard_nas._random import derive_seed
from proard_nas.attacks import EPS, STEP_SIZE, seeded
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, Labels, calibrate, label_students
from proard_nas.evaluation.population import label_student
from proard_nas.evaluation.proxy import ProxyReport
from proard_nas.training import AttackBudget, CheckpointStore, Trainer, TrainSettings, make_schedule, raise_for

WORK = _record.RESULTS / ".work"
BATCH = 256
DEADLINE = 3600


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a data set's supernet is trained and attacked."""

    model: str
    eps: float
    step_size: float
    lr: float
    weight_decay: float = 2e-4

    @property
    def attack(self) -> AttackSettings:
        return AttackSettings("pgd", self.eps, self.step_size, 20)


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is done.

    Parameters
    ----------
    n_train, epochs : int
        Of the supernet's training, over all stages of the paper's schedule.
    n_images, n_calibration : int
        Images that students are labelled on, and calibrated on.
    n_dropping, n_ranked, n_shared : int
        Students of the three parts.
    proxies : tuple of (int, int)
        Images and attack steps.
    repeats : int
    """

    n_train: int
    epochs: int
    n_images: int
    n_calibration: int
    n_dropping: int
    n_ranked: int
    n_shared: int
    proxies: tuple[tuple[int, int], ...]
    repeats: int


RECIPES = {
    "digits": Recipe("proard_dyn_resnet_tiny", 0.1, 0.025, lr=0.1),
    "cifar10": Recipe("proard_dyn_resnet_small", EPS, STEP_SIZE, lr=0.05, weight_decay=5e-4),
}
BUDGETS = {
    "smoke": {
        "digits": Budget(320, 4, 64, 64, 2, 4, 2, ((32, 5),), 1),
        "cifar10": Budget(64, 4, 16, 16, 1, 2, 2, ((8, 2),), 1),
    },
    "laptop": {
        "digits": Budget(945, 16, 400, 512, 8, 30, 24, ((400, 5), (200, 20), (200, 5), (100, 5), (100, 3)), 3),
        "cifar10": Budget(6000, 12, 500, 1000, 4, 20, 8, ((500, 5), (250, 20), (250, 5), (125, 5)), 3),
    },
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One data set, its budget, and the folder of its supernet."""

    data: str
    file: str | None
    budget: Budget
    folder: Path
    seed: int

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.data]

    def settings(self) -> dict[str, Any]:
        return json.loads(json.dumps({"data": self.data, "seed": self.seed, "recipe": dataclasses.asdict(self.recipe),
                                      "budget": dataclasses.asdict(self.budget)}))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Data:
    """Images to train and calibrate on, and others to label on; all from the training part."""

    train: ArraySource
    labelled: ArraySource
    calibration: Tensor


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is labelled, and how."""

    supernet: Supernet
    data: Data
    attack: AttackSettings
    seed: int

    def label(self, archs: Sequence[Architecture], **changes: Any) -> Labels:
        options = {"attack": self.attack, "batch_size": BATCH, "seed": self.seed, "progress": False, **changes}
        return label_students(self.supernet, archs, self.data.labelled, self.data.calibration, **options)


# -- data and supernet --------------------------------------------------------------------------


def load(experiment: Experiment) -> Data:
    """Draw the images from the training part."""
    b = experiment.budget
    train, labelled = _images.training_parts(experiment.data, experiment.file, b.n_train, b.n_images, experiment.seed)
    return Data(train, labelled, train.x[: b.n_calibration])


def trained(experiment: Experiment, data: Data) -> Supernet:
    """Return the trained supernet, from the folder where there is one; a training that was stopped goes on."""
    folder, settings = experiment.folder, experiment.settings()
    described, weights, store = folder / "settings.json", folder / "supernet.safetensors", folder / "training"
    _training.ignored_by_git(folder.parent)
    folder.mkdir(exist_ok=True)
    if not described.exists():
        described.write_text(json.dumps(settings))
    stored = json.loads(described.read_text())
    if stored != settings:
        raise ValueError(f"{folder} holds a supernet of other settings: {stored}, not {settings}; give another --work")
    with seeded(experiment.seed):
        net: Supernet = timm.create_model(experiment.recipe.model, num_classes=10)
    if not weights.exists():
        train(experiment, data, net, CheckpointStore(store, settings))
        part = weights.with_suffix(".part")
        safetensors.torch.save_file({k: t.detach().contiguous() for k, t in net.state_dict().items()}, part)
        part.replace(weights)
    net.load_state_dict(safetensors.torch.load_file(weights))
    return net.eval()


def train(experiment: Experiment, data: Data, net: Supernet, store: CheckpointStore) -> None:
    """Train a supernet over the paper's stages with N-FGSM."""
    recipe = experiment.recipe
    settings = TrainSettings(
        batch_size=64,
        weight_decay=recipe.weight_decay,
        budget=AttackBudget(recipe.eps, recipe.step_size),
        seed=experiment.seed,
    )
    stages = [
        dataclasses.replace(stage, attack="n-fgsm")
        for stage in make_schedule("paper", net.space, epochs=experiment.budget.epochs, lr=recipe.lr)
    ]
    trainer = Trainer(net, data.train, data.calibration, settings, store=store)
    trainer.restore(stages)
    trainer.run(stages)
    if trainer.interrupted is not None:
        raise_for(trainer.interrupted)


# -- dropping fooled images ---------------------------------------------------------------------


def label_plainly(setting: Setting, arch: Architecture) -> tuple[float, float, float]:
    """Measure one student without any shortcut.

    Returns
    -------
    natural, robust : float
        Robust are the images that are right naturally, at the start and in every iterate.
    left : float
        The share of the attack's image-steps on images that no earlier one has fooled: what dropping leaves to do.
    """
    with torch.no_grad():
        student = calibrate(setting.supernet.student(arch), setting.data.calibration, BATCH).eval()
    natural = robust = total = left = 0
    for index, (x, y) in enumerate(setting.data.labelled.batches(BATCH)):
        with torch.no_grad():
            right = student(x).argmax(1) == y
        survives, alive = attack_plainly(
            student, x, y, right, setting.attack, derive_seed(setting.seed, "evaluate", index)
        )
        natural += int(right.sum())
        robust += int(survives.sum())
        total += len(x)
        left += alive
    return natural / total, robust / total, left / (total * int(setting.attack.steps or 0))


def attack_plainly(
    student: nn.Module, x: Tensor, y: Tensor, right: Tensor, attack: AttackSettings, seed: int
) -> tuple[Tensor, int]:
    """Take all steps of PGD on all images; return which survive, and the image-steps on those that still did."""
    start = torch.zeros_like(x)
    with seeded(seed):  # the library draws starts for the images that are right without an attack
        start[right] = torch.empty_like(x[right]).uniform_(-attack.eps, attack.eps)
    current, survives, alive = (x + start).clamp(0, 1), right.clone(), 0
    for _ in range(int(attack.steps or 0)):
        alive += int(survives.sum())
        current = current.detach().requires_grad_()
        logits = student(current)
        survives &= logits.argmax(1) == y
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), current)
        moved = current.detach() + attack.step_size * gradient.sign()
        current = (x + (moved - x).clamp(-attack.eps, attack.eps)).clamp(0, 1)
    with torch.no_grad():
        survives &= student(current).argmax(1) == y
    return survives, alive


def dropping(setting: Setting, archs: Sequence[Architecture], repeats: int) -> dict[str, Any]:
    """Compare the library's measurement with the plain one, student by student."""
    rows: list[dict[str, Any]] = [
        {"arch": arch.to_dict(), "mmacs": setting.supernet.cost(arch).mmacs, "seconds": [], "plain_seconds": []}
        for arch in archs
    ]
    for _ in range(repeats):
        for arch, row in zip(archs, rows, strict=True):
            label = label_student(setting.supernet, arch, setting.data.labelled, setting.data.calibration,
                                  setting.attack, BATCH, setting.seed)  # fmt: skip
            start = time.perf_counter()
            natural, robust, left = label_plainly(setting, arch)
            row["plain_seconds"].append(time.perf_counter() - start)
            row["seconds"].append(label.seconds)
            row |= {
                "natural": label.natural_accuracy,
                "robust": label.robust_accuracy,
                "plain_natural": natural,
                "plain_robust": robust,
                "equal": (label.natural_accuracy, label.robust_accuracy) == (natural, robust),
                "image_steps_left": left,
            }
    turns = [
        sum(row["plain_seconds"][turn] for row in rows) / sum(row["seconds"][turn] for row in rows)
        for turn in range(repeats)
    ]
    return {"ratio": spread(turns), "all_equal": all(row["equal"] for row in rows), "students": rows}


# -- a proxy ------------------------------------------------------------------------------------


def proxies(setting: Setting, archs: Sequence[Architecture], budget: Budget) -> dict[str, Any]:
    """Compare fewer images and fewer steps with the full measurement."""
    turns = []
    for _ in range(budget.repeats):
        full = setting.label(archs)
        shorter = [
            setting.label(archs, n_images=n_images, attack=dataclasses.replace(setting.attack, steps=steps))
            for n_images, steps in budget.proxies
        ]
        turns.append([ProxyReport.of(full, proxy) for proxy in shorter])
    rows = []
    for (n_images, steps), reports in zip(budget.proxies, zip(*turns, strict=True), strict=True):
        found = reports[0].to_dict()
        figures = {name: finite(found[name]) for name in ("tau_natural", "tau_robust", "rmse_natural", "rmse_robust")}
        rows.append({"n_images": n_images, "steps": steps, "ratio": spread([r.time_ratio for r in reports]), **figures})
    accuracies = turns[0][0].full.accuracies
    return {
        "n_students": len(archs),
        "full": turns[0][0].full.settings,
        "seconds_a_student": spread([sum(s.seconds for s in t[0].full.students) / len(archs) for t in turns]),
        "natural_spread": [float(accuracies[:, 0].min()), float(accuracies[:, 0].max())],
        "robust_spread": [float(accuracies[:, 1].min()), float(accuracies[:, 1].max())],
        "proxies": rows,
    }


# -- several processes --------------------------------------------------------------------------


def scaling(setting: Setting, archs: Sequence[Architecture], experiment: Experiment, work: Path) -> dict[str, Any]:
    """Label the same students in one process and in two."""
    reference = figures(setting.label(archs[:2], n_jobs=1))  # whatever is only slow the first time
    seconds: dict[str, list[float]] = {}
    labels: dict[str, Any] = {}
    for turn in range(experiment.budget.repeats):
        for jobs in (1, 2):
            if jobs > 1:
                start = time.perf_counter()
                setting.label(archs[:jobs], n_jobs=jobs)  # workers start, and import torch
                seconds.setdefault("start of two workers, and two students", []).append(time.perf_counter() - start)
            time_labels(setting, archs, f"n_jobs={jobs}", seconds, labels, n_jobs=jobs)
        for size in (1, 2):
            found = run_torchrun(experiment, size, work, turn)
            seconds.setdefault(f"torchrun, {size}", []).append(found["seconds"])
            seconds.setdefault(f"torchrun, {size}, with its start", []).append(found["whole_seconds"])
            labels[f"torchrun, {size}"] = found["figures"]
    alone = labels["n_jobs=1"]
    assert reference == alone[:2], "the same students were given other labels"
    pairs = {"n_jobs": ("n_jobs=1", "n_jobs=2"), "torchrun": ("torchrun, 1", "torchrun, 2")}
    return {
        "n_students": len(archs),
        "ratio": {
            name: spread([a / b for a, b in zip(seconds[one], seconds[two], strict=True)])
            for name, (one, two) in pairs.items()
        },
        "seconds": seconds,
        "equal": {name: found == alone for name, found in labels.items()},
    }


def time_labels(
    setting: Setting,
    archs: Sequence[Architecture],
    name: str,
    seconds: dict[str, list[float]],
    labels: dict[str, Any],
    **options: Any,
) -> None:
    start = time.perf_counter()
    labels[name] = figures(setting.label(archs, **options))
    seconds.setdefault(name, []).append(time.perf_counter() - start)


def run_torchrun(experiment: Experiment, size: int, work: Path, turn: int) -> dict[str, Any]:
    """Label under torchrun in processes of their own; return what they measured and how long all of it took."""
    out = work / f"torchrun-{size}-{turn}.json"
    given = work / f"torchrun-{size}-{turn}.experiment.json"
    given.write_text(json.dumps({**dataclasses.asdict(experiment), "folder": str(experiment.folder)}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size, __file__,
               "--share", given, out]  # fmt: skip
    start = time.perf_counter()
    subprocess.run([str(part) for part in command], check=True, timeout=DEADLINE, stderr=subprocess.DEVNULL)
    return {**json.loads(out.read_text()), "whole_seconds": time.perf_counter() - start}


def share(given: Path, out: Path) -> None:
    """Label as one of torchrun's processes."""
    torch.set_num_threads(1)
    fields = json.loads(given.read_text())
    budget = Budget(**{**fields["budget"], "proxies": tuple(map(tuple, fields["budget"]["proxies"]))})
    experiment = Experiment(**{**fields, "budget": budget, "folder": Path(fields["folder"])})
    setting = set_up(experiment)
    archs = shared_students(setting.supernet, experiment)
    with distributed.process_group(torch.device("cpu")):
        setting.label(archs[:1])  # whatever is only slow the first time
        distributed.wait_for_all()
        start = time.perf_counter()
        labels = setting.label(archs)
        seconds = time.perf_counter() - start
        if distributed.is_main():
            out.write_text(json.dumps({"seconds": seconds, "figures": figures(labels)}))


def shared_students(net: Supernet, experiment: Experiment) -> list[Architecture]:
    return net.space.sample_distinct(experiment.budget.n_shared, derive_seed(experiment.seed, "shared"))


def figures(labels: Labels) -> list[list[float]]:
    return [[s.natural_accuracy, s.robust_accuracy] for s in labels.students]


# -- all of it ----------------------------------------------------------------------------------


def set_up(experiment: Experiment) -> Setting:
    data = load(experiment)
    return Setting(trained(experiment, data), data, experiment.recipe.attack, experiment.seed)


def measure(experiment: Experiment) -> dict[str, Any]:
    """Return all figures of a data set."""
    setting, budget = set_up(experiment), experiment.budget
    space = setting.supernet.space
    mixed = [space.largest, space.smallest, *space.sample_distinct(budget.n_ranked, experiment.seed)]
    return {
        "settings": experiment.settings(),
        "attack": setting.attack.title,
        "dropping": dropping(setting, mixed[: budget.n_dropping], budget.repeats),
        "proxy": proxies(setting, list(dict.fromkeys(mixed))[: budget.n_ranked], budget),
        "scaling": scaling(setting, shared_students(setting.supernet, experiment), experiment, experiment.folder),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "turns": list(values)}


def finite(value: float) -> float | None:
    """Return a figure, or None for one that is not defined, such as the rank of equal students."""
    return value if math.isfinite(value) else None


def table(results: dict[str, Any]) -> str:
    rows, texts = list[list[Any]](), list[str]()
    for data, found in results.items():
        recipe, b = found["settings"]["recipe"], found["settings"]["budget"]
        texts.append(
            f"{data}: {recipe['model']}, {b['n_train']} training images, {b['epochs']} epochs; labels on "
            f"{b['n_images']} images under {found['attack']}, eps {recipe['eps']:.5f}, step {recipe['step_size']:.5f}"
        )
        drop, proxy, scale = found["dropping"], found["proxy"], found["scaling"]
        equal = sum(row["equal"] for row in drop["students"])
        rows.append([data, "dropping fooled images", *three(drop["ratio"]),
                     f"{equal} of {len(drop['students'])} students exactly equal"])  # fmt: skip
        for row in proxy["proxies"]:
            tau = [format(row[name], ".2f") if row[name] is not None else "-" for name in ("tau_natural", "tau_robust")]
            rows.append([data, f"proxy: {row['n_images']} images, {row['steps']} steps", *three(row["ratio"]),
                         f"tau natural {tau[0]}, robust {tau[1]}; RMSE robust {row['rmse_robust']:.4f}"])  # fmt: skip
        for name, ratio in scale["ratio"].items():
            rows.append([data, f"two against one: {name}", *three(ratio), ""])
    ratios = tabulate(rows, ["data", "what", "times faster\n(median)", "least", "most", ""], floatfmt=".2f")
    return "\n".join([*texts, ratios])


def three(found: dict[str, Any]) -> tuple[float, float, float]:
    return found["median"], found["least"], found["most"]


def experiments(args: argparse.Namespace) -> list[Experiment]:
    found = []
    for given in args.data:
        data, _, file = given.partition("=")
        if data not in RECIPES or (data == "cifar10") != bool(file):
            raise SystemExit(f"--data {given}: allowed are digits and cifar10=FILE.npz")
        folder = Path(args.work).resolve() / f"labelling-{data}-{args.budget}"
        found.append(Experiment(data, file or None, BUDGETS[args.budget][data], folder, args.seed))
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=("digits",), help="digits, cifar10=FILE.npz")
    parser.add_argument("--budget", choices=BUDGETS, default="laptop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default=WORK, help="folder for the trained supernets")
    parser.add_argument("--out", default=_record.RESULTS / "labelling.json")
    parser.add_argument("--share", nargs=2, type=Path, help=argparse.SUPPRESS)  # a process that `scaling` starts
    args = parser.parse_args(argv)
    if args.share:
        share(*args.share)
        return {}
    started = time.time()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for experiment in experiments(args):
        results[experiment.data] = measure(experiment)
        path = _record.save(args.out, {"budget": args.budget, "data": results}, args.seed, started)
    print(table(results))
    print("wrote", path)
    return results


if __name__ == "__main__":
    if "--share" not in sys.argv:
        _record.keep_memory()
    main()
