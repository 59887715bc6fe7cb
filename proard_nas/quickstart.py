"""The whole path on real images in minutes: handwritten digits, from a loader to three robust students."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any, cast

import timm
import torch
from tabulate import tabulate

from .attacks import seeded
from .data import ArraySource
from .deploy import save_student
from .estimator import ProARDEstimator
from .evaluation import AttackSettings, calibrate, evaluate
from .supernets import Architecture, StudentNet
from .training import Stage, Trainer, TrainSettings

logger = logging.getLogger(__name__)

FIVE_LINES = """\
from proard_nas import ProARDEstimator; from sklearn.datasets import load_digits
x, y = load_digits(return_X_y=True); images = (x / 16).reshape(-1, 8, 8)  # floats in [0, 1]
est = ProARDEstimator({arguments}).fit(images[:1347], y[:1347])
student = est.search(max_flops={flops}).extract()  # a plain timm model of at most {flops} MMACs
print(est.evaluate(images[1347:], y[1347:], student=student, attack="pgd").accuracy)"""


@dataclasses.dataclass(frozen=True)
class QuickstartSettings:
    """The size of the quick start; the defaults take two CPU cores about three minutes.

    Parameters
    ----------
    epochs : int, default=24
        Total epochs of the paper's schedule.
    n_labels : int, default=60
    natural_epochs : int, default=12
        Of each network trained without adversarial examples.
    eps : float, default=0.1
        Digits are black on white: the paper's 8/255 would hardly be an attack.
    budgets : tuple of float, default=(0.4, 0.8, 1.6)
        In MMACs.
    n_generations : int, default=100
        Of each search.
    seed : int, default=0
    progress : bool, default=True
    """

    epochs: int = 24
    n_labels: int = 60
    natural_epochs: int = 12
    eps: float = 0.1
    budgets: tuple[float, ...] = (0.4, 0.8, 1.6)
    n_generations: int = 100
    seed: int = 0
    progress: bool = True

    @property
    def estimator(self) -> dict[str, Any]:
        """The estimator's arguments."""
        return {
            "model": "proard_dyn_resnet_tiny",
            "epochs": self.epochs,
            "batch_size": 64,
            "lr": 0.1,
            "eps": self.eps,
            "step_size": self.eps / 4,
            "attack_steps": 5,
            "n_labels": self.n_labels,
            "n_calibration": 512,
            "val_fraction": 0.15,
            "random_state": self.seed,
            "progress": self.progress,
        }


def run(folder: str | Path, settings: QuickstartSettings | None = None) -> str:
    """Train, label, search, extract and measure; return the text to show.

    The test split is used once, at the end, to measure the extracted students.

    Parameters
    ----------
    folder : path
        Gets ``student_*/`` (timm-loadable), ``front.png`` and ``results.json``.
    settings : QuickstartSettings, default=None
    """
    settings, start, folder = settings or QuickstartSettings(), time.perf_counter(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (x_train, y_train), test = digits(settings.seed)
    estimator = ProARDEstimator(**settings.estimator).fit(x_train, y_train)
    attacks = [AttackSettings(name, settings.eps, settings.eps / 4, 20) for name in ("natural", "fgsm", "pgd")]
    students, result = [], None
    for budget in settings.budgets:
        result = estimator.search(max_flops=budget, verify=1, n_generations=settings.n_generations)
        students.append(_student(estimator, result, budget, test, attacks, folder))
    rows = students + _natural_baseline(estimator, students, (x_train, y_train), test, attacks, settings)
    assert result is not None
    _plot(estimator, result, folder / "front.png")
    seconds = time.perf_counter() - start
    _write(folder, settings, estimator, rows, seconds)
    return _text(folder, settings, estimator, rows, seconds)


def digits(seed: int = 0) -> tuple[tuple[Any, Any], ArraySource]:
    """Return scikit-learn's handwritten digits: training arrays, and the test split as a source."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    images = (x / 16).astype("float32").reshape(-1, 1, 8, 8)
    x_train, x_test, y_train, y_test = train_test_split(images, y, test_size=0.25, stratify=y, random_state=seed)
    return (x_train, y_train), ArraySource(torch.from_numpy(x_test), torch.from_numpy(y_test))


def _student(
    estimator: ProARDEstimator, result: Any, budget: float, test: ArraySource, attacks: list[AttackSettings], to: Path
) -> dict[str, Any]:
    best, student = result.best, result.extract()
    figures = _measure(student, test, attacks)
    predicted = {"natural": best.natural_accuracy, "pgd": best.robust_accuracy}
    facts = {
        "training": "ProARD",
        "budget_mmacs": budget,
        "architecture": best.architecture.to_dict(),
        "macs": best.macs,
        "params": best.params,
        "predicted": predicted,
        "validation": {k: best.measured[f"{k}_accuracy"] for k in ("natural", "robust")} if best.measured else None,
        "test": figures,
    }
    save_student(student, to / f"student_{budget}_mmacs", {"predicted": predicted, "test": figures})
    return facts


def _measure(network: torch.nn.Module, test: ArraySource, attacks: list[AttackSettings]) -> dict[str, Any]:
    return {attack.name: evaluate(network, test, attack).to_dict() for attack in attacks}


def _natural_baseline(
    estimator: ProARDEstimator,
    students: list[dict[str, Any]],
    train: tuple[Any, Any],
    test: ArraySource,
    attacks: list[AttackSettings],
    settings: QuickstartSettings,
) -> list[dict[str, Any]]:
    """Train the same architectures without adversarial examples, for comparison."""
    source = ArraySource(torch.from_numpy(train[0]), torch.from_numpy(train[1]))
    calibration = estimator.calibration_images_
    rows = []
    for facts in students:
        args = estimator.supernet_.extract(Architecture.from_dict(facts["architecture"])).model_args()
        with seeded(settings.seed):
            network = cast(StudentNet, timm.create_model(estimator.supernet_.cfg.student, **args))
        trainer = Trainer(network, source, calibration, TrainSettings(batch_size=64, progress=settings.progress))
        trainer.run([Stage("natural training", settings.natural_epochs, "natural", lr=0.1)])
        calibrate(network, calibration).eval()
        rows.append({**facts, "training": "natural", "predicted": None, "test": _measure(network, test, attacks)})
    return rows


def _plot(estimator: ProARDEstimator, result: Any, path: Path) -> None:
    try:
        axes = result.plot(population=estimator.labels_.accuracies)
    except ImportError as error:
        logger.warning("no picture of the front: %s", error)
        return
    axes.figure.savefig(path, dpi=120)


def _write(
    folder: Path, settings: QuickstartSettings, estimator: ProARDEstimator, rows: list[dict[str, Any]], seconds: float
) -> None:
    record = {
        "settings": dataclasses.asdict(settings),
        "estimator": settings.estimator,
        "seconds": seconds,
        "rows": rows,
        "predictor": estimator.predictor_score_,
        "history": estimator.history_,
        "precision": str(estimator.precision_),
        "cost": {"stages": dict(estimator.cost_.stages), "estimated_seconds": estimator.cost_.seconds},
        "data": {"train": estimator.n_train_, "validation": estimator.n_val_},
    }
    (folder / "results.json").write_text(json.dumps(record, indent=1))


def _text(
    folder: Path, settings: QuickstartSettings, estimator: ProARDEstimator, rows: list[dict[str, Any]], seconds: float
) -> str:
    table = [
        (
            row["training"],
            row["budget_mmacs"] if row["training"] == "ProARD" else "",
            row["macs"] / 1e6,
            row["params"],
            *_pair(row, "natural"),
            *(100 * row["test"][name]["accuracy"] for name in ("natural", "fgsm", "pgd")),
        )
        for row in rows
    ]
    headers = [
        "training",
        "budget\nMMACs",
        "MMACs",
        "parameters",
        "PGD-20 %\npredicted",
        "PGD-20 %\nvalidation",
        "natural %\ntest",
        "FGSM %\ntest",
        "PGD-20 %\ntest",
    ]
    n_test = rows[0]["test"]["pgd"]["n_images"]
    score = estimator.predictor_score_
    arguments = ", ".join(f"{k}={v!r}" for k, v in settings.estimator.items() if (k, v) != ("progress", True))
    return "\n".join(
        [
            tabulate(table, headers=headers, floatfmt=("", "", ".2f", ",.0f", ".1f", ".1f", ".1f", ".1f", ".1f")),
            f"{n_test} test images; l-infinity, eps {settings.eps} of [0, 1], step {settings.eps / 4}; "
            "MMACs are millions of multiply-accumulates.",
            "'natural' rows: the same architectures trained alone without adversarial examples.",
            "predictor on held-out students: "
            + "; ".join(
                f"{name} RMSE {score[f'{name}_accuracy']['rmse']:.4f}, Kendall's tau "
                f"{score[f'{name}_accuracy']['kendall_tau']:.2f}"
                for name in ("natural", "robust")
            ),
            f"{seconds:.0f} s in all. In {folder}/: students (timm-loadable), front.png, results.json.",
            "",
            "The same in Python:",
            "",
            FIVE_LINES.format(arguments=arguments, flops=settings.budgets[0]),
        ]
    )


def _pair(row: dict[str, Any], _: str) -> tuple[float | None, float | None]:
    predicted = row["predicted"]["pgd"] * 100 if row["predicted"] else None
    validated = row["validation"]["robust"] * 100 if row["predicted"] and row["validation"] else None
    return predicted, validated
