"""A student is trained further by itself, as the guide shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from sklearn.datasets import load_digits

from proard_nas import ProARDEstimator
from proard_nas.data import ArraySource
from proard_nas.evaluation import calibrate, evaluate

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide.md"


@pytest.mark.skipif(not GUIDE.is_file(), reason="needs the project's docs folder")
def test_the_guides_code_trains_a_student_further() -> None:
    digits = load_digits()
    x, y = (digits.images / 16).astype("float32")[:, None], digits.target.astype("int64")
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=10, in_chans=1)
    student = calibrate(net.extract(net.space.smallest), torch.from_numpy(x[:256]))
    test = ArraySource(torch.from_numpy(x[1400:]), torch.from_numpy(y[1400:]))
    before = evaluate(student, test, attack="natural").accuracy
    est = ProARDEstimator(eps=8 / 255)
    names: dict[str, Any] = {"est": est, "student": student, "X_train": x[:1400], "y_train": y[:1400]}
    exec(_code(), names)
    assert not student.training and all(p.grad is None for p in student.parameters())  # nothing of training stays
    after = evaluate(student, test, attack="natural").accuracy  # raises if it were not calibrated
    assert before < 0.3 and after > before + 0.2
    assert evaluate(student, test, attack="pgd").accuracy <= after


def _code() -> str:
    section = GUIDE.read_text().split("### Training one student further\n", 1)[1]
    return section.split("```python\n", 1)[1].split("```", 1)[0]
