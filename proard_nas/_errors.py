"""Error messages that say what was given, what is allowed and what may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, given: object, allowed: Iterable[str]) -> ValueError:
    """Build the error for a name that is not among the allowed ones.

    Parameters
    ----------
    kind : str
        What the name stands for, such as ``'schedule'``.
    given : object
        What the caller passed.
    allowed : iterable of str
        The names that exist.

    Returns
    -------
    ValueError
        To be raised by the caller; suggests the nearest allowed name where there is one.
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(map(repr, names)) or "none here"
    return ValueError(f"unknown {kind} {given!r}; allowed: {listed}.{hint}")


def check_name(kind: str, given: object, allowed: Iterable[str]) -> str:
    """Return ``given`` if it is one of the allowed names, else raise `unknown_name`'s error."""
    names = list(allowed)
    if not isinstance(given, str) or given not in names:
        raise unknown_name(kind, given, names)
    return given
