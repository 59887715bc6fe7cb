"""What comes with the library beside its code: folders of trained estimators, one for each supernet that has one."""

from __future__ import annotations

from pathlib import Path

from ._errors import unknown_name

ROOT = Path(__file__).parent / "pretrained"
WEIGHTS = "supernet/model.safetensors"

PRETRAINED = tuple(sorted(path.name for path in ROOT.glob("*") if (path / WEIGHTS).is_file()))
"""The supernets that a trained estimator comes with."""


def folder(model: str) -> Path:
    """Return the folder of a supernet's trained estimator.

    Raises
    ------
    ValueError
        If none comes with the library; names those that do.
    """
    if model not in PRETRAINED:
        raise unknown_name("pretrained model", model, PRETRAINED)
    return ROOT / model


def weights(model: str) -> str:
    """Return the file of a supernet's trained weights, as timm's configuration names it; '' where there is none."""
    return str(ROOT / model / WEIGHTS) if model in PRETRAINED else ""
