"""What comes with the library beside its code: folders of trained estimators, one for each supernet that has one."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ._errors import unknown_name

ROOT = Path(__file__).parent / "pretrained"
WEIGHTS, FACTS = "supernet/model.safetensors", "supernet/proard.json"

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
    """Return the file of a supernet's trained weights; raises as `folder` does."""
    return str(folder(model) / WEIGHTS)


def tag(model: str) -> str:
    """Return what a supernet's weights were trained on, as timm tags its networks: ``cifar10``."""
    facts = json.loads((folder(model) / FACTS).read_bytes())
    return re.sub(r"[^a-z0-9]", "", str(facts["data"]).lower())
