"""Timing functions in turn, by a clock on the wall or by the time that the processor spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
Run = Callable[[], object]


def check_budget(budget_s: float) -> None:
    """Raise ValueError unless a budget is above 0 seconds."""
    if not budget_s > 0:
        raise ValueError(f"budget_s must be above 0 seconds, got {budget_s!r}")


def time_in_turn(
    runs: Sequence[Run],
    clock: str,
    *,
    rounds: int,
    warmup: int = 2,
    budget_s: float = float("inf"),
    least: int = 5,
    done: Callable[[NDArray[np.float64]], bool] | None = None,
) -> NDArray[np.float64]:
    """Time several runs in turn, so that what disturbs the machine for a while disturbs all of them.

    Parameters
    ----------
    runs : sequence of callable
    clock : {'wall', 'cpu'}
    rounds : int
        Rounds at most. In each of them everything has its turn, in a new random order. Where there are
        several, a turn begins with a run that is not timed, so that the one that is finds the caches as
        when a network runs again and again.
    warmup : int, default=2
        Rounds before those that count.
    budget_s : float
        No round begins after so many seconds of wall time, as soon as there are ``least``.
    least : int, default=5
    done : callable, default=None
        Given the times so far, says whether they are enough; asked each time when there are a tenth more.

    Returns
    -------
    numpy.ndarray of shape (rounds, n_runs)
        Milliseconds.
    """
    now, order = CLOCKS[clock], np.random.default_rng(0)
    rows: list[NDArray[np.float64]] = []
    ask_at = least
    for _ in range(warmup):
        for run in runs:
            run()
    end = time.monotonic() + budget_s
    while len(rows) < rounds and (len(rows) < least or time.monotonic() < end):
        row = np.empty(len(runs))
        for i in order.permutation(len(runs)):
            if len(runs) > 1:
                runs[i]()
            start = now()
            runs[i]()
            row[i] = 1e3 * (now() - start)
        rows.append(row)
        if done is not None and len(rows) == ask_at:
            if done(np.array(rows)):
                break
            ask_at += max(1, ask_at // 10)
    return np.array(rows)
