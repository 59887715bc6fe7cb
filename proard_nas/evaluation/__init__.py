"""Evaluation: calibration of batch norm, natural and robust accuracy and signs that it is too high, labels."""

from .accuracy import AttackSettings, Evaluation, evaluate, evaluate_all
from .calibration import UncalibratedError, calibrate
from .masking import MaskingReport, check_gradient_masking
from .population import Label, Labels, label_students
from .proxy import ProxyReport, proxy_correlation

__all__ = [
    "AttackSettings",
    "Evaluation",
    "Label",
    "Labels",
    "MaskingReport",
    "ProxyReport",
    "UncalibratedError",
    "calibrate",
    "check_gradient_masking",
    "evaluate",
    "evaluate_all",
    "label_students",
    "proxy_correlation",
]
