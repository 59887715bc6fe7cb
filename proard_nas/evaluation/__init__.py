"""Evaluation: calibration of batch norm, natural and robust accuracy, labels of many students."""

from .accuracy import AttackSettings, Evaluation, evaluate
from .calibration import UncalibratedError, calibrate
from .population import Label, Labels, label_students

__all__ = [
    "AttackSettings",
    "Evaluation",
    "Label",
    "Labels",
    "UncalibratedError",
    "calibrate",
    "evaluate",
    "label_students",
]
