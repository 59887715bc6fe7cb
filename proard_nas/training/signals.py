"""SIGTERM and Ctrl-C: while training noticed at the end of a step, and elsewhere both an exception at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn, Self

logger = logging.getLogger(__name__)

WATCHED = (signal.SIGINT, signal.SIGTERM)


class SignalWatch:
    """Inside the block the first SIGTERM or Ctrl-C only sets ``received``; a second one acts as ever.

    Handlers can be set in the main thread only; elsewhere signals act as ever. A signal that the process ignores, as
    scripts' background jobs do Ctrl-C, stays ignored.

    Attributes
    ----------
    received : signal.Signals or None
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in WATCHED if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._notice) for number in heeded}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()
        logger.warning("%s: training stops after this batch; once more stops it at once", self.received.name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python
        self._before = {}


@contextlib.contextmanager
def exit_at_sigterm() -> Iterator[None]:
    """Raise SystemExit where SIGTERM comes inside the block, as Python raises KeyboardInterrupt at Ctrl-C.

    Only in the main thread, and not where the process ignores SIGTERM.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: raise_for(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: not set by Python


def raise_for(received: signal.Signals) -> NoReturn:
    """Raise what a signal means to Python: KeyboardInterrupt for Ctrl-C, else SystemExit with the shell's status."""
    if received is signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + received)
