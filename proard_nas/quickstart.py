"""The whole path on real images in minutes: handwritten digits, from a loader to three robust students."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from tabulate import tabulate

from .attacks import seeded
from .data import ArraySource
from .deploy import save_student
from .estimator import ProARDEstimator
from .evaluation import AttackSettings, calibrate, evaluate
from .search import Candidate, SearchResult
from .supernets import Architecture, StudentNet
from .training import Stage, Trainer, TrainSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    n_watch : int, default=100
        Validation images on which the best weights of each stage are chosen.
    n_labels : int, default=60
    natural_epochs : int, default=12
        Of each network trained without adversarial examples.
    eps : float, default=0.1
        Digits are black on white: the paper's 8/255 would hardly be an attack.
    budgets : tuple of float, default=(0.4, 0.8, 1.6)
        In MMACs.
    n_generations : int, default=100
        Of each search.
    n_verified : int, default=3
        Students of each search that are measured; the best of them by the measured figures is taken.
    seed : int, default=0
    progress : bool, default=True
    """

    epochs: int = 24
    n_watch: int = 100
    n_labels: int = 60
    natural_epochs: int = 12
    eps: float = 0.1
    budgets: tuple[float, ...] = (0.4, 0.8, 1.6)
    n_generations: int = 100
    n_verified: int = 3
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
            "n_watch": self.n_watch,
            "n_labels": self.n_labels,
            "n_calibration": 512,
            "val_fraction": 0.15,
            "precision": "float32",  # the fastest may be another one the next time
            "random_state": self.seed,
            "progress": self.progress,
        }

    @property
    def attacks(self) -> list[AttackSettings]:
        """What the test images are measured under."""
        return [AttackSettings(name, self.eps, self.eps / 4, 20) for name in ("natural", "fgsm", "pgd")]


@dataclasses.dataclass(frozen=True, eq=False)
class _Trained:
    """A network that is ready to be measured, and what is known of it before the test images are seen."""

    network: torch.nn.Module
    facts: dict[str, Any]

    def measured(self, test: ArraySource, attacks: list[AttackSettings]) -> dict[str, Any]:
        """Return the facts with the test figures."""
        figures = {attack.name: evaluate(self.network, test, attack).to_dict() for attack in attacks}
        return {**self.facts, "test": figures}


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
    found, result = [], None
    for budget in settings.budgets:
        result = estimator.search(max_flops=budget, verify=settings.n_verified, n_generations=settings.n_generations)
        found += _verified(estimator, result, budget)
    assert result is not None
    natural = _natural_baseline(estimator, [s.facts for s in found if s.facts["chosen"]], (x_train, y_train), settings)
    _plot(result, folder / "front.png")
    students = [student.measured(test, settings.attacks) for student in found]  # the first look at the test images
    baselines = [network.measured(test, settings.attacks) for network in natural]
    for student, facts in zip(found, students, strict=True):
        if facts["chosen"]:
            _save(student.network, facts, folder)
    seconds = time.perf_counter() - start
    record = _record(settings, estimator, students, baselines, seconds)
    (folder / "results.json").write_text(json.dumps(record, indent=1))
    return _text(folder, settings, record)


def digits(seed: int = 0) -> tuple[tuple[Any, Any], ArraySource]:
    """Return scikit-learn's handwritten digits: training arrays, and the test split as a source."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    images = (x / 16).astype("float32").reshape(-1, 1, 8, 8)
    x_train, x_test, y_train, y_test = train_test_split(images, y, test_size=0.25, stratify=y, random_state=seed)
    return (x_train, y_train), ArraySource(torch.from_numpy(x_test), torch.from_numpy(y_test))


def _verified(estimator: ProARDEstimator, result: SearchResult, budget: float) -> list[_Trained]:
    """Extract the students of a search that were measured on the validation part, the chosen one among them."""
    return [
        _Trained(
            estimator.extract(candidate.architecture),
            {
                "training": "ProARD",
                "budget_mmacs": budget,
                "chosen": candidate == result.best,
                "architecture": candidate.architecture.to_dict(),
                "macs": candidate.macs,
                "params": candidate.params,
                **_figures(candidate),
            },
        )
        for candidate in result.front
        if candidate.is_verified
    ]


def _figures(candidate: Candidate) -> dict[str, dict[str, float]]:
    """Return predicted and measured accuracies in [0, 1], and the first minus the second."""
    measured = candidate.measured or {}
    predicted = {"natural": candidate.natural_accuracy, "pgd": candidate.robust_accuracy}
    validation = {
        "natural": float(measured["natural_accuracy"]),
        "pgd": float(measured["robust_accuracy"]),
    }
    error = {name: predicted[name] - validation[name] for name in predicted}
    return {"predicted": predicted, "validation": validation, "error": error}


def _natural_baseline(
    estimator: ProARDEstimator,
    students: list[dict[str, Any]],
    train: tuple[Any, Any],
    settings: QuickstartSettings,
) -> list[_Trained]:
    """Train the same architectures without adversarial examples, for comparison."""
    source = ArraySource(torch.from_numpy(train[0]), torch.from_numpy(train[1]))
    calibration = estimator.calibration_images_
    trained = []
    for facts in students:
        args = estimator.supernet_.extract(Architecture.from_dict(facts["architecture"])).model_args()
        with seeded(settings.seed):
            network = cast(StudentNet, timm.create_model(estimator.supernet_.cfg.student, **args))
        trainer = Trainer(network, source, calibration, TrainSettings(batch_size=64, progress=settings.progress))
        trainer.run([Stage("natural training", settings.natural_epochs, "natural", lr=0.1)])
        same = {name: facts[name] for name in ("budget_mmacs", "architecture", "macs", "params")}
        trained.append(_Trained(calibrate(network, calibration).eval(), {"training": "natural", **same}))
    return trained


def _save(network: torch.nn.Module, facts: dict[str, Any], folder: Path) -> None:
    figures = {name: facts[name] for name in ("predicted", "validation", "test")}
    save_student(cast(StudentNet, network), folder / f"student_{facts['budget_mmacs']}_mmacs", figures)


def _plot(result: SearchResult, path: Path) -> None:
    try:
        axes = result.plot()
    except ImportError as error:
        logger.warning("no picture of the front: %s", error)
        return
    cast("Figure", axes.figure).savefig(path, dpi=120)


def _record(
    settings: QuickstartSettings,
    estimator: ProARDEstimator,
    students: list[dict[str, Any]],
    baselines: list[dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """Return what ``results.json`` holds."""
    return {
        "settings": dataclasses.asdict(settings),
        "estimator": settings.estimator,
        "seconds": seconds,
        "rows": [row for row in students if row["chosen"]] + baselines,
        "students": students,
        "mean_absolute_error": {
            name: sum(abs(row["error"][name]) for row in students) / len(students) for name in ("natural", "pgd")
        },
        "predictor": estimator.predictor_score_,
        "history": estimator.history_,
        "precision": str(estimator.precision_),
        "cost": {"stages": dict(estimator.cost_.stages), "estimated_seconds": estimator.cost_.seconds},
        "data": {"train": estimator.n_train_, "validation": estimator.n_val_},
    }


def _text(folder: Path, settings: QuickstartSettings, record: dict[str, Any]) -> str:
    score, error = record["predictor"], record["mean_absolute_error"]
    n_test = record["rows"][0]["test"]["pgd"]["n_images"]
    arguments = ", ".join(f"{k}={v!r}" for k, v in settings.estimator.items() if (k, v) != ("progress", True))
    return "\n".join(
        [
            _comparison(record["rows"]),
            f"{n_test} test images; l-infinity, eps {settings.eps} of [0, 1], step {settings.eps / 4}; "
            "MMACs are millions of multiply-accumulates.",
            "'natural' rows: the same architectures trained alone without adversarial examples.",
            "",
            _predictions(record["students"]),
            f"%; validation: {record['data']['validation']} images; error: predicted minus validation, in points; "
            "*: taken, by its validation figures.",
            f"mean absolute error of these {len(record['students'])} students: natural {100 * error['natural']:.1f}, "
            f"PGD-20 {100 * error['pgd']:.1f} points",
            "predictor on held-out students: "
            + "; ".join(
                f"{name} RMSE {score[f'{name}_accuracy']['rmse']:.4f}, Kendall's tau "
                f"{score[f'{name}_accuracy']['kendall_tau']:.2f}"
                for name in ("natural", "robust")
            ),
            f"{record['seconds']:.0f} s in all. In {folder}/: students (timm-loadable), front.png, results.json.",
            "",
            "The same in Python:",
            "",
            FIVE_LINES.format(arguments=arguments, flops=settings.budgets[0]),
        ]
    )


def _comparison(rows: list[dict[str, Any]]) -> str:
    """Return the table of test figures beside those of natural training."""
    table = [
        (
            row["training"],
            row["budget_mmacs"] if row["training"] == "ProARD" else "",
            row["macs"] / 1e6,
            row["params"],
            *(100 * row["test"][name]["accuracy"] for name in ("natural", "fgsm", "pgd")),
        )
        for row in rows
    ]
    headers = ["training", "budget\nMMACs", "MMACs", "parameters",
               "natural %\ntest", "FGSM %\ntest", "PGD-20 %\ntest"]  # fmt: skip
    return tabulate(table, headers=headers, floatfmt=("", "", ".2f", ",.0f", ".1f", ".1f", ".1f"))


def _predictions(students: list[dict[str, Any]]) -> str:
    """Return the table of predicted and measured figures, side by side."""
    table = [
        (
            f"{row['budget_mmacs']}{' *' if row['chosen'] else ''}",
            row["macs"] / 1e6,
            *(100 * figure for name in ("natural", "pgd") for figure in _side_by_side(row, name)),
        )
        for row in students
    ]
    columns = ("predicted", "validation", "test", "error")
    headers = ["budget\nMMACs", "MMACs", *(f"{name}\n{column}" for name in ("natural", "PGD-20") for column in columns)]
    formats = ("", ".2f", *(".1f", ".1f", ".1f", "+.1f") * 2)
    return tabulate(table, headers=headers, floatfmt=formats, disable_numparse=[0])


def _side_by_side(row: dict[str, Any], name: str) -> tuple[float, float, float, float]:
    return row["predicted"][name], row["validation"][name], row["test"][name]["accuracy"], row["error"][name]
