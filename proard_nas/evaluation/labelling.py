"""One function over many values, here, in worker processes or on a cluster; results come as they are done."""

from __future__ import annotations

import ctypes
import os
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import joblib  # type: ignore[import-untyped]
import numpy as np
import torch
from numpy.typing import NDArray

KEPT_MEMORY = 200_000_000
Value = TypeVar("Value")
Result = TypeVar("Result")


def run_each(
    function: Callable[[Value], Result], values: Sequence[Value], n_jobs: int | None = None
) -> Iterator[Result]:
    """Yield the function's result for each value, in the order in which they are done.

    Parameters
    ----------
    function : callable
        May hold much data (a supernet, images): each worker gets and unpacks it once, not with every value.
    values : sequence
    n_jobs : int, default=None
        Workers of one thread each, in joblib's sense: -1 is one for each core, and None is one, unless
        `joblib.parallel_config` says otherwise. One runs here, with torch's own number of threads.
    """
    if not values or joblib.effective_n_jobs(n_jobs) == 1:
        yield from map(function, values)
        return
    token = uuid.uuid4().hex
    # An array, because joblib maps a large one into every worker's memory, and its Dask backend sends one only once.
    parcel = np.frombuffer(pickle.dumps(joblib.wrap_non_picklable_objects(function)), dtype=np.uint8)
    calls = (joblib.delayed(_call)(token, parcel, value) for value in values)
    yield from joblib.Parallel(n_jobs=n_jobs, batch_size=1, return_as="generator_unordered")(calls)


_turn = threading.Lock()
_unpacked: dict[str, Callable[[Any], Any]] = {}  # a worker's last parcel, by a token that no other has


def _call(token: str, parcel: NDArray[np.uint8], value: Any) -> Any:
    """Call a parcel's function in a worker, on one thread.

    One call at a time: attacks draw from torch's global generator, which the threads of a process share.
    """
    with _turn:
        if token not in _unpacked:
            _unpacked.clear()
            _unpacked[token] = pickle.loads(parcel.data)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return _unpacked[token](value)
        finally:
            torch.set_num_threads(threads)
            _give_back_memory()


def _give_back_memory() -> None:
    """Return freed memory to the system once much has gathered; joblib ends a worker whose memory has grown by 300 MB.

    The allocator keeps what it frees. That the next call will want it again is known here and not to joblib.
    """
    try:
        used = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if used - _used_at_first.setdefault(os.getpid(), used) > KEPT_MEMORY:
            ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, ValueError):
        return  # another system or C library


_used_at_first: dict[int, int] = {}
