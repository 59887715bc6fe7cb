"""The test split is never used for training, labelling, calibration, search or a choice: only for final figures.

Every image carries its number in its first row, coarse enough to be read from an attacked image too. A spy reads the
number of each image that enters any network, and on whose behalf.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from proard_nas import ProARDEstimator, quickstart
from proard_nas.cli import main
from proard_nas.data import ArraySource
from proard_nas.evaluation import calibrate
from proard_nas.evaluation.accuracy import evaluate_all
from proard_nas.evaluation.population import label_student
from proard_nas.supernets.modules import Normalize
from proard_nas.training import monitor
from proard_nas.training.step import StepRunner

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
needs_benchmarks = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="needs the project's benchmarks folder")

N_TRAIN, N_TEST = 120, 30
LEVELS, DIGITS = 4, 5  # pixels of 1/8, 3/8, 5/8 and 7/8: five of them number 1024 images
EPS = 0.02
OTHER = -1


# -- images that say which they are ------------------------------------------------------------


def marked(numbers: Any) -> np.ndarray[Any, Any]:
    """Return grey noise of shape (n, 1, 8, 8) whose first row holds each image's number."""
    numbers = np.asarray(numbers)
    x = np.random.default_rng(0).random((len(numbers), 1, 8, 8)).astype(np.float32)
    digits = numbers[:, None] // LEVELS ** np.arange(DIGITS) % LEVELS
    x[:, 0, 0, :DIGITS] = (2 * digits + 1) / (2 * LEVELS)
    return x


def numbers_of(x: torch.Tensor) -> list[int]:
    """Return the images' numbers, `OTHER` for images that have none."""
    pixels = x[:, 0, 0, :DIGITS].detach().double() * LEVELS
    digits = pixels.floor()
    clear = ((pixels - digits - 0.5).abs() < 0.45).all(1)
    numbers = (digits * LEVELS ** torch.arange(DIGITS)).sum(1)
    return torch.where(clear, numbers, OTHER).long().tolist()


TRAIN, TEST = range(N_TRAIN), range(N_TRAIN, N_TRAIN + N_TEST)
PURPOSES = {
    calibrate.__code__: "calibrate",
    label_student.__code__: "label",
    monitor.measure.__code__: "watch",
    StepRunner.gradients.__code__: "train",
    evaluate_all.__code__: "evaluate",
}


class Spy:
    """Notes, in order, for what purpose which images entered a network, and what else it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, set[int]]] = []

    def note(self, event: str) -> None:
        self.seen.append((event, set()))

    def numbers(self, purpose: str) -> set[int]:
        return set().union(*(numbers for name, numbers in self.seen if name == purpose))

    def __call__(self, module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, Normalize):  # every network begins with one
            self.seen.append((self._purpose(sys._getframe()), set(numbers_of(arguments[0]))))

    @staticmethod
    def _purpose(frame: FrameType | None) -> str:
        while frame is not None:
            if frame.f_code in PURPOSES:
                return PURPOSES[frame.f_code]
            frame = frame.f_back
        return "unknown"


@contextlib.contextmanager
def spying() -> Any:
    spy = Spy()
    handle = torch.nn.modules.module.register_module_forward_pre_hook(spy)
    try:
        yield spy
    finally:
        handle.remove()


def labels(n: int) -> np.ndarray[Any, Any]:
    return np.arange(n) % 3


def test_numbers_are_read_from_attacked_images_and_others_have_none() -> None:
    x = torch.from_numpy(marked(range(1024)))
    assert numbers_of(x) == list(range(1024))
    assert numbers_of((x + 5 * EPS * torch.randn_like(x).sign()).clamp(0, 1)) == list(range(1024))
    assert numbers_of(torch.zeros(1, 1, 8, 8)) == [OTHER]


# -- fit, label and search ---------------------------------------------------------------------


class Archive:
    """What `np.load` returns, with a test part that cannot be read."""

    def __init__(self, archive: Any) -> None:
        self._archive, self.files = archive, archive.files

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: Any) -> None:
        self._archive.close()

    def __getitem__(self, key: str) -> Any:
        assert "test" not in key, f"{key} was read"
        return self._archive[key]


def fit(archive: Path, out: Path) -> None:
    flags = {
        "model": "proard_dyn_resnet_tiny", "epochs": 4, "attack-steps": 1, "eval-steps": 1, "n-labels": 12,
        "n-watch": 8, "lr": 0.1, "eps": EPS, "n-calibration": 32, "batch-size": 32, "random-state": 0,
        "precision": "float32",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert main(["fit", "--data", str(archive), "--out", str(out), *words, "--no-progress"]) == 0


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive whose test part is neither images nor labels, and may not be looked into."""
    path = tmp_path / "poisoned.npz"
    x_test, y_test = np.full((N_TEST, 1, 8, 8), np.nan, np.float32), np.full(N_TEST, 77)
    np.savez(path, x_train=marked(TRAIN), y_train=labels(N_TRAIN), x_test=x_test, y_test=y_test)
    load = np.load
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: Archive(load(*args, **kwargs)))
    return path


def test_training_and_calibration_see_training_images_and_labels_validation_images(
    poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[ProARDEstimator] = []
    monkeypatch.setattr(ProARDEstimator, "save", lambda self, folder: fitted.append(self))
    with spying() as spy:
        fit(poisoned, tmp_path / "out")
        (estimator,) = fitted
        estimator.search(max_flops=1.5, verify=1, n_generations=2, population_size=10).extract()
        last = len(spy.seen)
        estimator.evaluate(marked(TEST), labels(N_TEST))
    trained, validated = spy.numbers("train"), spy.numbers("label")
    assert trained | validated == set(TRAIN) and not trained & validated
    assert (len(trained), len(validated)) == (estimator.n_train_, estimator.n_val_)
    assert spy.numbers("watch") and spy.numbers("watch") <= validated
    assert len(spy.numbers("calibrate")) == 32 and spy.numbers("calibrate") <= trained
    assert set(numbers_of(estimator.calibration_images_)) == spy.numbers("calibrate")
    assert {purpose for purpose, _ in spy.seen[:last]} == {"train", "calibrate", "label", "watch"}
    assert {purpose for purpose, _ in spy.seen[last:]} == {"evaluate"}
    assert spy.numbers("evaluate") == set(TEST)


def outcome(folder: Path) -> dict[str, Any]:
    """Return all that came of a fit but times, and the front of a search."""
    estimator = ProARDEstimator.load(folder)
    students = estimator.labels_.students
    return {
        "weights": {name: tensor.tolist() for name, tensor in estimator.supernet_.state_dict().items()},
        "labels": [(s.architecture.to_dict(), s.natural_accuracy, s.robust_accuracy) for s in students],
        "predictor": estimator.predictor_.to_dict(),
        "calibration": estimator.calibration_images_.tolist(),
        "front": estimator.search(max_flops=1.5, n_generations=3, population_size=10).to_dict(),
    }


@pytest.mark.slow
def test_fit_gives_the_same_bits_with_a_test_part_and_without(poisoned: Path, tmp_path: Path) -> None:
    fit(poisoned, tmp_path / "with")
    np.savez(tmp_path / "without.npz", x_train=marked(TRAIN), y_train=labels(N_TRAIN))
    fit(tmp_path / "without.npz", tmp_path / "without")
    assert outcome(tmp_path / "with") == outcome(tmp_path / "without")


# -- the quick start ---------------------------------------------------------------------------


class SpiedSource(ArraySource):
    """Notes each time that its images or labels are looked at."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, spy: Spy) -> None:
        super().__init__(x, y)
        self.spy = spy

    def __getattribute__(self, name: str) -> Any:
        if name in ("x", "y", "batches", "head", "take", "to") and "spy" in object.__getattribute__(self, "__dict__"):
            object.__getattribute__(self, "spy").note("read")
        return object.__getattribute__(self, name)


def run_quickstart(folder: Path, monkeypatch: pytest.MonkeyPatch, test: range) -> tuple[Spy, dict[str, Any]]:
    """Run the quick start on marked images; return what a spy saw and what was written."""
    with spying() as spy, monkeypatch.context() as patched:

        def digits(seed: int) -> tuple[tuple[Any, Any], ArraySource]:
            source = SpiedSource(torch.from_numpy(marked(test)), torch.from_numpy(labels(len(test))), spy)
            return (marked(TRAIN), labels(N_TRAIN)), source

        def noting(name: str) -> None:
            method = getattr(ProARDEstimator, name)

            def noted(*args: Any, **kwargs: Any) -> Any:
                found = method(*args, **kwargs)
                spy.note(name)
                return found

            patched.setattr(ProARDEstimator, name, noted)

        patched.setattr(quickstart, "digits", digits)
        for name in ("fit", "search", "extract"):
            noting(name)
        settings = quickstart.QuickstartSettings(
            epochs=4, n_watch=8, n_labels=12, natural_epochs=1, eps=EPS, budgets=(0.5, 1.5), n_generations=2,
            n_verified=2, progress=False,
        )  # fmt: skip
        quickstart.run(folder, settings)
    return spy, json.loads((folder / "results.json").read_text())


def without_tests_and_times(value: Any) -> Any:
    """Return a record without its test figures and whatever depends on the clock."""
    clock = ("test", "seconds", "cost")
    if isinstance(value, dict):
        return {key: without_tests_and_times(found) for key, found in value.items() if key not in clock}
    return [without_tests_and_times(found) for found in value] if isinstance(value, list) else value


def test_the_quick_start_looks_at_the_test_split_only_after_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy, _ = run_quickstart(tmp_path, monkeypatch, TEST)
    events = [event for event, _ in spy.seen]
    first = events.index("read")
    assert {"train", "calibrate", "label", "watch", "fit", "search", "extract"} <= set(events[:first])
    assert events[:first].count("search") == 2
    assert set(events[first:]) == {"read", "evaluate"}
    before = set().union(*(numbers for _, numbers in spy.seen[:first]))
    after = set().union(*(numbers for _, numbers in spy.seen[first:]))
    assert before == set(TRAIN) and after == set(TEST)


@pytest.mark.slow
def test_other_test_images_change_nothing_but_the_test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = run_quickstart(tmp_path / "one", monkeypatch, TEST)
    spy, other = run_quickstart(tmp_path / "two", monkeypatch, range(500, 520))
    assert spy.numbers("evaluate") == set(range(500, 520))
    assert [r["rows"][0]["test"]["natural"]["n_images"] for r in (found, other)] == [N_TEST, 20]
    assert without_tests_and_times(found) == without_tests_and_times(other)


# -- the benchmarks ----------------------------------------------------------------------------


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a benchmark by its path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    everything = marked(range(N_TRAIN + N_TEST))
    path = tmp_path / "marked.npz"
    np.savez(path, x_train=everything[:N_TRAIN], y_train=labels(N_TRAIN), x_test=everything[N_TRAIN:],
             y_test=labels(N_TEST))  # fmt: skip
    return path


def uncropped(training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recipe crop no image, or its number would be moved."""
    monkeypatch.setitem(training.RECIPES, "cifar10", dataclasses.replace(training.RECIPES["cifar10"], augment="none"))


@needs_benchmarks
def test_schedules_train_and_choose_on_the_training_part(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedules = script("schedules", monkeypatch)
    uncropped(schedules._training, monkeypatch)
    budget = schedules.Budget(80, 40, 3, 3, 16, 3, N_TEST, 3, 1, bn_seeds=1)
    experiment = schedules.Experiment("cifar10", str(archive), budget, tmp_path)
    data = experiment.images(0)
    trained, validated, tested = (set(numbers_of(part.x)) for part in (data.train, data.validation, data.test))
    assert trained | validated == set(TRAIN) and not trained & validated and tested == set(TEST)

    class Stop(Exception):  # noqa: N818
        pass

    given: dict[str, Any] = {}

    def trainer(network: Any, source: ArraySource, calibration: torch.Tensor, *_: Any, **options: Any) -> None:
        given.update(train=source.x, calibrate=calibration, watch=options["validation"].source.x)
        raise Stop

    monkeypatch.setattr(schedules._training, "Trainer", trainer)
    with pytest.raises(Stop):
        schedules.train(experiment, schedules.Unit(0, schedules.TEACHER), None, data, [], None)
    assert set(numbers_of(given["train"])) == trained and set(numbers_of(given["watch"])) == validated
    assert given["calibrate"].shape[0] == 16 and set(numbers_of(given["calibrate"])) <= trained


@needs_benchmarks
def test_studies_label_on_validation_images_and_keep_the_test_images_for_figures(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the predictor and the search learn from, and what the figures of the paper's tables are taken on."""
    module = script("_study", monkeypatch)
    budget = module.Budget(80, 40, N_TEST, 16, 3, 3, 14, 5, 5, N_TEST, 3)
    uncropped(module._training, monkeypatch)
    recipe = module._training.RECIPES["cifar10"]
    study = module.Study("cifar10", str(archive), "smoke", budget, recipe, tmp_path)
    data = study.images(0)
    trained, validated, tested = (set(numbers_of(part.x)) for part in (data.train, data.validation, data.test))
    assert trained | validated == set(TRAIN) and not trained & validated and tested == set(TEST)

    given: list[Any] = []
    monkeypatch.setattr(module.Study, "supernet", lambda self, seed, method: study.network(0))
    monkeypatch.setattr(
        module, "label_students", lambda net, archs, source, images, **_: given.append((source, images))
    )
    archs = study.drawn(3, seed=0)
    study.labelled(0, archs)
    study.population(0, archs, module.PROGRESSIVE)
    for (source, calibration), expected in zip(given, (validated, tested), strict=True):
        assert set(numbers_of(source.x)) == expected
        assert set(numbers_of(calibration)) <= trained


def loaded(name: str, module: Any, data: str, file: Path | None, folder: Path) -> tuple[ArraySource, ArraySource]:
    """Return the images that a benchmark trains on, and those that it labels on."""
    if name == "labelling":
        budget = module.Budget(80, 4, 40, 16, 1, 2, 2, (), 1)
        found = module.load(module.Experiment(data, str(file), budget, folder, 0))
        assert set(numbers_of(found.calibration)) <= set(numbers_of(found.train.x)) and len(found.calibration) == 16
        return found.train, found.labelled
    budget = dataclasses.replace(module.BUDGETS["smoke"]["digits"], n_train=80, n_val=40)
    train, labelled = module.load(data, str(file), budget)
    return train, labelled


@needs_benchmarks
@pytest.mark.parametrize("name", ["labelling", "predictor"])
def test_benchmarks_of_labels_take_them_from_the_training_part(
    name: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, spy, load = script(name, monkeypatch), Spy(), np.load
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: Archive(load(*args, **kwargs)))
    test = SpiedSource(torch.from_numpy(marked(TEST)), torch.from_numpy(labels(N_TEST)), spy)
    monkeypatch.setattr(quickstart, "digits", lambda seed: ((marked(TRAIN), labels(N_TRAIN)), test))
    for data, file in (("cifar10", archive), ("digits", None)):
        trained, labelled = (set(numbers_of(part.x)) for part in loaded(name, module, data, file, tmp_path))
        assert trained | labelled == set(TRAIN) and not trained & labelled
    assert spy.seen == []
