"""A front as a table: as text for a reader and as a data frame for a program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from .candidate import ACCURACIES, Candidate

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 20


def front_text(front: Sequence[Candidate], best: int) -> str:
    """Return the front as text, with units; a long one is shown by rows spread over it.

    Parameters
    ----------
    front : sequence of Candidate
    best : int
        The place of the best student, which is always shown and marked.
    """
    shown = range(len(front)) if len(front) <= MAX_ROWS else _spread(len(front), best)
    rows = [_text_row(i, front[i], is_best=i == best) for i in shown]
    more = f"\n{len(front) - len(rows)} more rows: to_frame() has them all" if len(rows) < len(front) else ""
    return f"{tabulate(rows, headers='keys', floatfmt='.2f', missingval='-')}{more}"


def front_frame(front: Sequence[Candidate]) -> pd.DataFrame:
    """Return the front as a data frame; see `SearchResult.to_frame`."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError('to_frame needs pandas: pip install "proard-nas[report]"') from error
    measured = dict.fromkeys(name for candidate in front for name in candidate.measured or {})
    return pd.DataFrame([_frame_row(candidate, list(measured)) for candidate in front])


def _spread(n: int, best: int) -> list[int]:
    """Return up to ``MAX_ROWS`` places spread over the front, the best among them."""
    places = {round(i * (n - 1) / (MAX_ROWS - 2)) for i in range(MAX_ROWS - 1)}
    return sorted(places | {best})


def _text_row(place: int, candidate: Candidate, *, is_best: bool) -> dict[str, Any]:
    measured = candidate.measured or {}
    row: dict[str, Any] = {
        "": f"{place}{' best' if is_best else ''}",
        "MMACs": candidate.mmacs,
        "params (M)": candidate.params / 1e6,
    }
    if candidate.latency_ms is not None:
        row["latency (ms)"] = candidate.latency_ms
    for name in ACCURACIES:
        row[f"predicted {name.split('_')[0]} (%)"] = 100 * getattr(candidate, name)
    for name in ACCURACIES:
        if name in measured:
            row[f"measured {name.split('_')[0]} (%)"] = 100 * float(measured[name])
    return row


def _frame_row(candidate: Candidate, measured: Sequence[str]) -> dict[str, Any]:
    figures = {name: getattr(candidate, name) for name in ("mmacs", "macs", "params", "latency_ms", *ACCURACIES)}
    known = candidate.measured or {}
    return {
        **figures,
        **{f"measured_{name}": known.get(name) for name in measured},
        "architecture": candidate.architecture,
    }
