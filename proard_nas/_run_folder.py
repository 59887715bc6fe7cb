"""A run's folder: its seed, the settings that a run must share with the one that it goes on from, its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import check_random_state
from torch import nn

from . import distributed
from ._describing import described, digest
from ._folders import read_json
from ._warm_start import Before
from .data import PreparedData
from .training import CheckpointStore

if TYPE_CHECKING:
    from .estimator import ProARDEstimator

# Between a run and its resume.
FREE_TO_CHANGE = ("device", "progress", "log_dir", "checkpoint_seconds", "random_state", "n_jobs")


def open_run(
    estimator: ProARDEstimator,
    folder: Path,
    data: PreparedData,
    teacher: nn.Module | None,
    seed: int,
    earlier: Before | None,
) -> CheckpointStore:
    """Open a run's folder, in the main process first: only one may start it.

    Raises
    ------
    ValueError
        If it holds a run of other settings, or something else.
    """
    settings = _settings(estimator, data, teacher, seed, earlier)
    unknown = {name: settings["data"][name] for name in ("labels", "batches")}  # to an older folder: taken as given
    defaults = {"parameters": _parameters(type(estimator)()), "data": unknown}
    if distributed.is_main():
        CheckpointStore(folder, settings, defaults)
    distributed.wait_for_all()
    return CheckpointStore(folder, settings, defaults)


def run_seed(estimator: ProARDEstimator, folder: Path | None) -> int:
    """Return the run's seed; where no number is asked for, an earlier run's in the folder."""
    asked = isinstance(estimator.random_state, (int, np.integer))  # a generator has moved on since that run
    if not asked and folder is not None and (folder / "settings.json").is_file():
        return _seed_of(folder / "settings.json")
    if estimator.random_state is None and estimator.warm_start and hasattr(estimator, "seed_"):
        return int(estimator.seed_)
    return int(check_random_state(estimator.random_state).randint(2**31))


def _seed_of(path: Path) -> int:
    try:
        return int(read_json(path)["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not of a run of fit: it names no seed; give a new or an empty folder") from error


def _settings(
    estimator: ProARDEstimator, data: PreparedData, teacher: nn.Module | None, seed: int, earlier: Before | None
) -> dict[str, Any]:
    """Return what must be the same for a run to go on from another's checkpoint."""
    parameters = _parameters(estimator)
    parameters["teacher"] = None if teacher is None else digest(teacher)
    summary = data.summary
    facts = {
        "train": summary.n_train,
        "validation": summary.n_val,
        "image": [summary.in_chans, *summary.image_size],
        "classes": [str(c) for c in summary.classes],
        "labels": summary.labels,
        "batches": data.train.n_batches(estimator.batch_size),
        "mean": list(summary.mean),
        "std": list(summary.std),
        "processes": distributed.world_size(),
    }
    start = {} if earlier is None else {"start": earlier.weights}
    return {"seed": seed, "parameters": parameters, "data": facts, **start}


def _parameters(estimator: ProARDEstimator) -> dict[str, Any]:
    """Return the parameters that must stay the same, as JSON; the teacher as it is."""
    parameters = {k: v for k, v in estimator.get_params(deep=False).items() if k not in FREE_TO_CHANGE}
    return parameters | {
        name: described(parameters[name]) for name in ("schedule", "loss", "teacher_loss", "model_args")
    }
