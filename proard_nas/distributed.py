"""Several processes as one: torch.distributed behind functions that do nothing in a single process."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_groups = itertools.count()

Value = TypeVar("Value")


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def is_on() -> bool:
    """Return whether this is one of several processes that work together."""
    return _has_group() and dist.get_world_size() > 1


def rank() -> int:
    """Return this process's number, 0 where it is alone."""
    return dist.get_rank() if is_on() else 0


def world_size() -> int:
    """Return how many processes work together, 1 where this one is alone."""
    return dist.get_world_size() if is_on() else 1


def is_main() -> bool:
    """Return whether this process writes files and shows progress; under torchrun, also before and after a group."""
    return (dist.get_rank() if _has_group() else int(os.environ.get("RANK", "0"))) == 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, for as long as the block lasts; alone, do nothing.

    The backend is nccl on CUDA, else gloo. A group that exists already is used and left as it is.

    Parameters
    ----------
    device : torch.device
        What this process computes on; see `local_device`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _has_group():
        yield
        return
    from torch.distributed.rendezvous import rendezvous  # which not every build of torch has

    if device.type == "cuda":
        torch.cuda.set_device(device)
    # A group that is gone leaves its addresses in torchrun's store, where the next would read them.
    store, number, size = next(rendezvous("env://"))
    store = dist.PrefixStore(f"proard_nas/{next(_groups)}", store)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=number, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """Return this process's own device: under torchrun, each process of a machine has its own GPU."""
    local_rank = os.environ.get("LOCAL_RANK")
    return torch.device(f"cuda:{local_rank}") if str(device) == "cuda" and local_rank else device


def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over the processes, in one collective call.

    Parameters
    ----------
    tensors : sequence of Tensor
        Floating point, on one device; of the same shapes in every process.
    """
    if not is_on():
        return
    joined = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(joined)
    parts = torch.split(joined, [tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def gather(value: Value) -> list[Value]:
    """Return every process's value, in the order of their ranks."""
    if not is_on():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: Value) -> Value:
    """Return the main process's value in every process."""
    values = [value]
    if is_on():
        dist.broadcast_object_list(values)
    return values[0]


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let the main process run the block before the others, which find what it has downloaded or written."""
    if not is_main():
        wait_for_all()
    try:
        yield
    finally:
        if is_main():
            wait_for_all()


def wait_for_all() -> None:
    """Wait until every process is here."""
    if is_on():
        dist.barrier()
