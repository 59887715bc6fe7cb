"""The accuracy-robustness predictor and the search for the best students."""

from .active import choose_architectures
from .candidate import Candidate
from .constraints import Constraints
from .nsga2 import search
from .predictor import AccuracyPredictor
from .result import GenerationRecord, SearchResult

__all__ = [
    "AccuracyPredictor",
    "Candidate",
    "Constraints",
    "GenerationRecord",
    "SearchResult",
    "choose_architectures",
    "search",
]
