"""Train one adversarially robust supernet once, then hand out robust students of any size.

Importing this package registers its networks in timm; everything else is imported when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import supernets
from ._shipped import PRETRAINED
from .supernets import Architecture, SearchSpace, Supernet

if TYPE_CHECKING:
    from .estimator import ProARDEstimator
    from .search import SearchResult

__version__ = "0.1.0"

_LAZY = {"ProARDEstimator": ".estimator", "SearchResult": ".search"}

__all__ = ["PRETRAINED", "Architecture", "ProARDEstimator", "SearchResult", "SearchSpace", "Supernet", "supernets"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
