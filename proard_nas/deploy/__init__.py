"""From student to device: saving and loading."""

from .saving import load_estimator, save_estimator, save_student

__all__ = ["load_estimator", "save_estimator", "save_student"]
