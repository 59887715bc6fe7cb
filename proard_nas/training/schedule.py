"""Schedules as values: a list of stages, each with its elastic dimensions, loss and length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from proard_nas._errors import check_name, unknown_name
from proard_nas.supernets import SearchSpace

from .losses import Objective, make_loss
from .sampling import SAMPLERS

DIMENSIONS = ("width_mult", "kernel_size", "depth", "expand_ratio")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training.

    Parameters
    ----------
    name : str
    epochs : int
        Passes over the training data, at least 1.
    loss : str or Objective
        ``'trades'``, ``'rslad'``, ``'natural'`` or an object of the same form.
    elastic : tuple of str, default=()
        The dimensions that vary (``'width_mult'``, ``'kernel_size'``, ``'depth'``,
        ``'expand_ratio'``); none trains the largest network alone.
    lr : float, default=0.01
        Peak learning rate of the stage; it falls to zero along a cosine.
    sampler : {'uniform', 'sandwich'}, default='uniform'
        How the students of a step are drawn.
    students_per_step : int, default=1
    sort_channels : tuple of str, default=()
        Dimensions whose channels are sorted by importance before the stage.
    drop_rate : float, default=0.0
        Dropout before the classifier during the stage.

    Raises
    ------
    ValueError
        For unknown names, less than one epoch or student, or a learning rate that is not positive.
    """

    name: str
    epochs: int
    loss: str | Objective
    elastic: tuple[str, ...] = ()
    lr: float = 0.01
    sampler: str = "uniform"
    students_per_step: int = 1
    sort_channels: tuple[str, ...] = ()
    drop_rate: float = 0.0

    def __post_init__(self) -> None:
        make_loss(self.loss)
        check_name("sampler", self.sampler, SAMPLERS)
        for dimension in (*self.elastic, *self.sort_channels):
            check_name("dimension", dimension, DIMENSIONS)
        if self.epochs < 1 or self.students_per_step < 1:
            raise ValueError(
                f"stage {self.name!r} needs at least one epoch and one student in each step; "
                f"got epochs={self.epochs}, students_per_step={self.students_per_step}"
            )
        if not self.lr > 0 or not 0 <= self.drop_rate < 1:
            raise ValueError(
                f"stage {self.name!r} needs lr > 0 and 0 <= drop_rate < 1; got {self.lr}, {self.drop_rate}"
            )


def paper(space: SearchSpace, loss: str | Objective, teacher_loss: str | Objective) -> list[Stage]:
    """The paper's schedule: teacher 300 epochs; width or kernel, then depth, then expansion, 120 each.

    Each dimension opens on top of those before it (ProARD, section 4.4, figure 4 and section
    5.0.1). Channels are sorted before the stage that makes them elastic. A space without one of
    the dimensions skips its stage.
    """
    stages = [Stage("teacher", 300, teacher_loss)]
    opened: tuple[str, ...] = ()
    sortable = {"width_mult", "expand_ratio"}
    for group in (("width_mult", "kernel_size"), ("depth",), ("expand_ratio",)):
        new = tuple(name for name in group if name in space.dimensions)
        if new:
            opened = (*opened, *new)
            stages.append(
                Stage(new[0], 120, loss, opened, sort_channels=tuple(n for n in new if n in sortable), drop_rate=0.1)
            )
    return stages


def random(space: SearchSpace, loss: str | Objective, teacher_loss: str | Objective) -> list[Stage]:
    """The baseline: the same teacher, then all dimensions at once for as many epochs as `paper`'s steps."""
    teacher, *steps = paper(space, loss, teacher_loss)
    if not steps:
        return [teacher]
    epochs = sum(stage.epochs for stage in steps)
    sort = tuple(n for stage in steps for n in stage.sort_channels)
    return [teacher, Stage("random", epochs, loss, space.dimensions, sort_channels=sort, drop_rate=0.1)]


SCHEDULES: dict[str, Callable[[SearchSpace, str | Objective, str | Objective], list[Stage]]] = {
    "paper": paper,
    "random": random,
}


def make_schedule(
    schedule: str | Sequence[Stage],
    space: SearchSpace,
    *,
    loss: str | Objective = "rslad",
    teacher_loss: str | Objective = "trades",
    epochs: int | None = None,
    lr: float = 0.01,
) -> list[Stage]:
    """Return the stages of a schedule.

    Parameters
    ----------
    schedule : str or list of Stage
        ``'paper'``, ``'random'``, or stages of one's own, which are taken as they are.
    space : SearchSpace
        Stages that the space offers no choice for are left out of a named schedule.
    loss, teacher_loss : str or Objective, default='rslad', 'trades'
    epochs : int, default=None
        Total epochs of a named schedule, shared between its stages in proportion, at least one
        each; None keeps its own (660 for ``'paper'``).
    lr : float, default=0.01
        Peak learning rate of every stage of a named schedule.

    Raises
    ------
    ValueError
        For an unknown name, an empty list, or fewer epochs than stages.
    """
    if not isinstance(schedule, str):
        stages = list(schedule)
        if not stages or not all(isinstance(stage, Stage) for stage in stages):
            raise ValueError(f"a schedule must be a name or a non-empty list of Stage, got {schedule!r}")
        return stages
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    stages = [dataclasses.replace(stage, lr=lr) for stage in SCHEDULES[schedule](space, loss, teacher_loss)]
    return stages if epochs is None else _scale(stages, epochs)


def _scale(stages: list[Stage], epochs: int) -> list[Stage]:
    if epochs < len(stages):
        raise ValueError(f"epochs={epochs} is less than one for each of the {len(stages)} stages of the schedule")
    total = sum(stage.epochs for stage in stages)
    ends, done = [], 0
    for stage in stages:
        done += stage.epochs
        ends.append(round(epochs * done / total))
    lengths = [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    lengths[lengths.index(max(lengths))] -= sum(lengths) - epochs
    return [dataclasses.replace(stage, epochs=n) for stage, n in zip(stages, lengths, strict=True)]
