"""What a training shows while it runs: a progress bar over all stages, and a line for each epoch."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from proard_nas import distributed

from .phases import Phase
from .state import State

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def progress_bar(phases: Sequence[Phase], state: State, n_steps: int, shown: bool) -> Iterator[tqdm[Any]]:
    """Give one bar over the steps of all stages, silent in all but one process and where the output is no terminal.

    Parameters
    ----------
    phases : sequence of Phase
    state : State
        Where the training stands.
    n_steps : int
        Steps in an epoch.
    shown : bool
    """
    epochs = [phase.stage.epochs for phase in phases]
    done = (sum(epochs[: state.phase]) + state.epoch) * n_steps + state.step
    with tqdm(
        total=sum(epochs) * n_steps,
        initial=done,
        unit="step",
        disable=None if shown and distributed.is_main() else True,
        delay=2,
        leave=False,
    ) as bar:
        yield bar


def log_epoch(record: Mapping[str, Any], epochs: int) -> None:
    """Log an epoch's record, of so many epochs of its stage; at INFO in one of the processes."""
    found = record.get("validation")
    measured = "" if found is None else f", validation natural {found['natural']:.3f} robust {found['robust']:.3f}"
    level = logging.INFO if distributed.is_main() else logging.DEBUG
    logger.log(
        level, "%s %d/%d: loss %.4f, lr %.2g, %.1f s%s",
        record["stage"], record["epoch"] + 1, epochs, record["loss"] or math.nan, record["lr"],
        record["seconds"], measured,
    )  # fmt: skip
