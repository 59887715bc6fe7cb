"""The history of a training, written for TensorBoard while it grows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

PLACES = ("stage", "epoch", "global_epoch")


class TensorBoardWriter:
    """Writes each record of the training history as scalars for TensorBoard.

    A number named ``loss`` of the stage 'teacher' is shown as ``teacher/loss`` and, over all
    stages, as ``train/loss``; both at the epoch counted over the whole training. A run that
    goes on in the same folder replaces what the earlier one wrote about the epochs it repeats.

    Parameters
    ----------
    log_dir : str or Path
        Made if it does not exist.

    Raises
    ------
    ImportError
        If TensorBoard is not installed.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError('TensorBoardWriter needs tensorboard: pip install "proard-nas[tensorboard]"') from error
        self.log_dir = os.fspath(log_dir)
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of a record; what is neither a number nor a dict of them is left out.

        Parameters
        ----------
        record : dict
            With ``stage`` and ``global_epoch``, and numbers such as ``loss``, ``lr`` or, one
            level deeper, ``validation: {'natural_accuracy': 0.9}``.

        Raises
        ------
        ValueError
            If the record does not say its stage and its global epoch.
        """
        missing = [key for key in ("stage", "global_epoch") if key not in record]
        if missing:
            raise ValueError(f"a record needs 'stage' and 'global_epoch'; {missing[0]!r} is not in {sorted(record)}")
        epoch = int(record["global_epoch"])
        if self._writer is None:
            self._writer = self._make(self.log_dir, purge_step=epoch)
        for key, value in _numbers(record):
            for group in dict.fromkeys((str(record["stage"]), "train")):
                self._writer.add_scalar(f"{group}/{key}", value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file; a later record opens a new one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping) and not prefix:
            yield from _numbers(value, f"{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and (prefix or key not in PLACES):
            yield f"{prefix}{key}", float(value)
