"""What the quick start says: predicted beside measured figures, their error, and five lines that run."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import timm
import torch

from proard_nas import ProARDEstimator, quickstart
from proard_nas.data import ArraySource
from proard_nas.evaluation import evaluate
from proard_nas.quickstart import QuickstartSettings
from proard_nas.search import Candidate
from proard_nas.supernets import Architecture


def student(
    budget: float, chosen: bool, predicted: tuple[float, float], validation: tuple[float, float]
) -> dict[str, Any]:
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=10)
    measured = {"natural_accuracy": validation[0], "robust_accuracy": validation[1]}
    candidate = Candidate(net.space.smallest, 400_000, 40_000, *predicted, measured=measured)
    test = {
        name: {"accuracy": a, "n_images": 450}
        for name, a in zip(("natural", "fgsm", "pgd"), (0.9, 0.7, 0.6), strict=True)
    }
    facts = {"training": "ProARD", "budget_mmacs": budget, "chosen": chosen, "macs": 400_000, "params": 40_000}
    return {**facts, **quickstart._figures(candidate), "test": test}


@pytest.fixture
def record() -> dict[str, Any]:
    students = [
        student(0.4, True, (0.95, 0.60), (0.90, 0.625)),
        student(0.4, False, (0.94, 0.61), (0.95, 0.60)),
        student(0.8, True, (0.97, 0.70), (0.96, 0.75)),
    ]
    baselines = [{**row, "training": "natural"} for row in students if row["chosen"]]
    score = {f"{name}_accuracy": {"rmse": 0.01, "kendall_tau": 0.5} for name in ("natural", "robust")}
    estimator = SimpleNamespace(
        predictor_score_=score, history_=[], precision_="float32", n_train_=1145, n_val_=202,
        cost_=SimpleNamespace(stages=(), seconds=1.0),
    )  # fmt: skip
    return quickstart._record(QuickstartSettings(), estimator, students, baselines, 180.0)


def test_the_error_is_predicted_minus_validation_and_its_mean_is_of_absolute_values(record: dict[str, Any]) -> None:
    errors = [row["error"] for row in record["students"]]
    assert [error["natural"] for error in errors] == pytest.approx([0.05, -0.01, 0.01])
    assert [error["pgd"] for error in errors] == pytest.approx([-0.025, 0.01, -0.05])
    assert record["mean_absolute_error"]["natural"] == pytest.approx(0.07 / 3)
    assert record["mean_absolute_error"]["pgd"] == pytest.approx(0.085 / 3)
    assert [row["training"] for row in record["rows"]] == ["ProARD", "ProARD", "natural", "natural"]
    assert len(record["students"]) == 3
    json.dumps(record, allow_nan=False)


def test_the_tables_show_both_side_by_side_within_120_columns(record: dict[str, Any]) -> None:
    text = quickstart._text(Path("folder"), QuickstartSettings(), record)
    tables = text.split("The same in Python:")[0]
    assert max(map(len, tables.splitlines())) <= 120
    rows = [line.split() for line in tables.splitlines()]
    assert ["0.4", "*", "0.40", "95.0", "90.0", "90.0", "+5.0", "60.0", "62.5", "60.0", "-2.5"] in rows
    assert ["0.4", "0.40", "94.0", "95.0", "90.0", "-1.0", "61.0", "60.0", "60.0", "+1.0"] in rows
    assert ["ProARD", "0.8", "0.40", "40000", "90.0", "70.0", "60.0"] in [
        [word.replace(",", "") for word in row] for row in rows
    ]
    assert "mean absolute error of these 3 students: natural 2.3, PGD-20 2.8 points" in text
    assert "validation: 202 images" in text and "450 test images" in text


def test_the_five_lines_name_what_the_quick_start_fits_and_searches(record: dict[str, Any]) -> None:
    settings = QuickstartSettings(seed=3)
    lines = quickstart._text(Path("folder"), settings, record).split("The same in Python:\n\n")[1]
    assert len(lines.splitlines()) == 5
    calls = [node for node in ast.walk(ast.parse(lines)) if isinstance(node, ast.Call)]
    (fitted,) = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "ProARDEstimator"]
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in fitted.keywords}
    assert ProARDEstimator(**arguments).get_params() == ProARDEstimator(**settings.estimator).get_params()
    (search,) = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "search"]
    assert {k.arg: ast.literal_eval(k.value) for k in search.keywords} == {"max_flops": settings.budgets[0]}


@pytest.mark.slow
def test_the_five_lines_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = QuickstartSettings(epochs=4, n_labels=12, n_watch=8, progress=False)
    arguments = ", ".join(f"{name}={value!r}" for name, value in settings.estimator.items())
    lines = quickstart.FIVE_LINES.format(arguments=arguments, flops=0.8)
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    few = np.r_[0:120, 1347:1367]  # the lines train on the first 1347: as many as here come before the rest
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda **_: (x[few], y[few]))
    exec(lines.replace("1347", "120"), {})
    assert 0 <= float(capsys.readouterr().out) <= 1


@pytest.mark.slow
def test_what_is_written_is_what_the_saved_students_do(tmp_path: Path) -> None:
    settings = QuickstartSettings(
        epochs=8, n_watch=30, n_labels=16, natural_epochs=1, budgets=(0.5, 1.5), n_generations=5, progress=False
    )
    text = quickstart.run(tmp_path, settings)
    record = json.loads((tmp_path / "results.json").read_text())
    _, test = quickstart.digits(settings.seed)
    for row in record["students"]:
        Architecture.from_dict(row["architecture"])
        for name in ("natural", "pgd"):
            assert row["error"][name] == row["predicted"][name] - row["validation"][name]
    for budget in settings.budgets:
        found = [row for row in record["students"] if row["budget_mmacs"] == budget]
        (chosen,) = [row for row in found if row["chosen"]]
        assert 1 <= len(found) <= settings.n_verified and all(row["macs"] <= budget * 1e6 for row in found)
        assert sum(chosen["validation"].values()) == max(sum(row["validation"].values()) for row in found)
        network = timm.create_model(f"local-dir:{tmp_path}/student_{budget}_mmacs", pretrained=True).eval()
        with torch.no_grad():
            right = (network(test.x).argmax(1) == test.y).float().mean()
        assert chosen["test"]["natural"]["accuracy"] == pytest.approx(float(right))
        assert isinstance(test, ArraySource)
        robust = evaluate(network, test, settings.attacks[2]).accuracy
        assert chosen["test"]["pgd"]["accuracy"] == pytest.approx(robust)
    assert f"mean absolute error of these {len(record['students'])} students" in text
