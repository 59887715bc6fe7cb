"""What a command has to say, as text for people and as data for scripts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a command.

    Parameters
    ----------
    data : dict or list
        JSON-able, numbers and arrays of NumPy included; shown with ``--json``.
    text : str
        Shown without it.
    """

    data: Any
    text: str

    def write(self, as_json: bool) -> None:
        """Write the result to standard output."""
        sys.stdout.write((json.dumps(self.data, indent=1, default=_plain) if as_json else self.text) + "\n")


@contextlib.contextmanager
def output_to_stderr() -> Iterator[None]:
    """Send to standard error what any library, native code included, writes to standard output meanwhile."""
    sys.stdout.flush()
    kept = os.dup(1) if _is_real(sys.stdout) else None
    try:
        if kept is not None:
            os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _is_real(stream: Any) -> bool:
    try:
        return bool(stream.fileno() == 1)
    except (OSError, ValueError, AttributeError):
        return False


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)
