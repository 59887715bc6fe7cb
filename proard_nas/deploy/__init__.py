"""From student to device: saving."""

from .saving import save_student

__all__ = ["save_student"]
