"""What is told of each epoch of `fit`: to scikit-learn's callbacks and to TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import distributed
from .training import TensorBoardWriter

if TYPE_CHECKING:
    from .estimator import ProARDEstimator


class EpochReports:
    """Reports each epoch of training: to scikit-learn's callbacks, as a task of `fit`, and to TensorBoard.

    Epochs are counted on from the ``done`` ones of earlier fits.
    """

    def __init__(self, estimator: ProARDEstimator, done: int = 0) -> None:
        self.estimator, self.done = estimator, done
        self.context = estimator._init_callback_context(max_subtasks=None)  # epochs may be repeated, or be a helper's
        wanted = estimator.log_dir is not None and distributed.is_main()
        self.writer = TensorBoardWriter(estimator.log_dir) if wanted and estimator.log_dir is not None else None

    def __enter__(self) -> Callable[[dict[str, Any]], bool]:
        self.context.call_on_fit_task_begin(estimator=self.estimator)
        return self._epoch

    def _epoch(self, record: dict[str, Any]) -> bool:
        record = {**record, "global_epoch": record["global_epoch"] + self.done}
        if self.writer is not None:
            self.writer(record)
        task = self.context.subcontext(task_name="epoch")
        task.call_on_fit_task_begin(estimator=self.estimator)
        return bool(task.call_on_fit_task_end(estimator=self.estimator, metadata=record))

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()
        self.context.call_on_fit_task_end(estimator=self.estimator)
