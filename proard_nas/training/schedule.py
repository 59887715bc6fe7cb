"""Named schedules: the paper's, the released code's and their rivals, each a list of stages."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from proard_nas._errors import check_name, unknown_name
from proard_nas._numbers import whole_number
from proard_nas.supernets import SearchSpace

from .losses import Objective
from .stage import Stage

__all__ = ["SCHEDULES", "Schedule", "Stage", "attentive", "make_schedule", "paper", "random", "released", "sandwich"]

Schedule = Callable[[SearchSpace, str | Objective, str | Objective], list[Stage]]

STEPS = (("width_mult", "kernel_size"), ("depth",), ("expand_ratio",))
SORTABLE = ("width_mult", "expand_ratio")
LISTS = {"depth": "depths", "expand_ratio": "expand_ratios"}
SANDWICH_STUDENTS = 3
ANNEALS = ("stage", "whole")
RELEASED_PASSES = {"depth": 2, "expand_ratio": 4}


def paper(space: SearchSpace, loss: str | Objective, teacher_loss: str | Objective) -> list[Stage]:
    """The paper's schedule: teacher 300 epochs; width or kernel, then depth, then expansion, 120 each.

    Each dimension opens on top of those before it (ProARD, section 4.4, figure 4 and section
    5.0.1). Channels are sorted before the stage that makes them elastic (Once-for-All, section
    3.2), and dropout is 0.1 in the steps, as in the released code. A space without one of the
    dimensions skips its stage.
    """
    stages = [Stage("teacher", 300, teacher_loss)]
    for new, opened in _openings(space):
        sort = tuple(name for name in new if name in SORTABLE)
        stages.append(Stage(new[0], 120, loss, opened, sort_channels=sort, drop_rate=0.1))
    return stages


def released(space: SearchSpace, loss: str | Objective, teacher_loss: str | Objective) -> list[Stage]:
    """The schedule of the paper's released code: 125 epochs for the teacher, then 1,025 students.

    Each student is kept for one pass over the data. Width or kernel takes 125 passes. Depth
    takes 25 and then 125 epochs of two passes, expansion 25 and then 125 of four; the first
    phase opens the two largest choices, the second all. Nesterov's momentum, learning rates for
    batches of 64 on one device (128 for the teacher), 5 warm-up epochs where the code has them; only the channels of
    the expansion are sorted, once, where the code ranks the first block again for the second phase. The code moreover
    averages its losses over the classes too, so that its steps are as many times smaller as there are classes, spares
    biases and batch norms the weight decay, starts the warm-up at one device's learning rate, and attacks with eps
    0.031 in 10 steps of 0.0078.
    """
    teacher = Stage("teacher", 125, teacher_loss, lr=0.1, warmup=5, nesterov=True, weight_decay=2e-4)
    step = dataclasses.replace(teacher, loss=loss, lr=3e-2, draw="epoch", weight_decay=3e-5, drop_rate=0.1)
    stages = [teacher]
    for new, opened in _openings(space):
        name = new[0]
        step = dataclasses.replace(step, name=name, elastic=opened)
        stages += _phases(step, space, name) if name in RELEASED_PASSES else [step]
    return stages


def random(space: SearchSpace, loss: str | Objective, teacher_loss: str | Objective) -> list[Stage]:
    """The baseline: the same teacher, then all dimensions at once for as many epochs as `paper`'s steps."""
    return _at_once(paper(space, loss, teacher_loss), "random", "uniform")


def sandwich(space: SearchSpace, loss: str | Objective, teacher_loss: str | Objective) -> list[Stage]:
    """The sandwich rule: the same teacher, then the largest, the smallest and a random student in each step.

    All dimensions are open at once (Yu and Huang 2019, section 3). A third of the epochs of
    `paper`'s steps makes as many student-steps: three in each optimizer step. Their gradients
    are averaged, where the rule's authors sum them: at the same learning rate a student-step
    moves the weights a third as far as in the other schedules.
    """
    return _at_once(paper(space, loss, teacher_loss), "sandwich", "sandwich", SANDWICH_STUDENTS)


def attentive(space: SearchSpace, loss: str | Objective, teacher_loss: str | Objective) -> list[Stage]:
    """The baseline with students drawn evenly over cost (see `sampling.attentive`), not over choices."""
    return _at_once(paper(space, loss, teacher_loss), "attentive", "attentive")


SCHEDULES: dict[str, Schedule] = {
    "attentive": attentive,
    "paper": paper,
    "random": random,
    "released": released,
    "sandwich": sandwich,
}


def make_schedule(
    schedule: str | Sequence[Stage],
    space: SearchSpace,
    *,
    loss: str | Objective = "rslad",
    teacher_loss: str | Objective = "trades",
    epochs: int | None = None,
    lr: float | None = None,
    own_teacher: bool = False,
    anneal: str = "stage",
) -> list[Stage]:
    """Return the stages of a schedule.

    Parameters
    ----------
    schedule : str or list of Stage
        ``'paper'``, ``'released'``, ``'random'``, ``'sandwich'``, ``'attentive'``, or stages of
        one's own, which are taken as they are.
    space : SearchSpace
        Stages that the space offers no choice for are left out of a named schedule.
    loss, teacher_loss : str or Objective, default='rslad', 'trades'
    epochs : int, default=None
        Total passes over the data of a named schedule, shared between its stages in proportion,
        at least one each, their warm-ups too; None keeps its own (660 for ``'paper'``, 1150 for
        ``'released'``, 420 for ``'sandwich'``, of which 120 train three students in each step).
    lr : float, default=None
        Peak learning rate of every stage of a named schedule; None keeps the schedule's own
        (0.01 throughout, but from 0.1 down to 2.5e-3 for ``'released'``).
    own_teacher : bool, default=False
        Whether the caller brings a trained teacher: then the first stage of a named schedule,
        which trains the largest network, distils from it with ``loss`` as the others do.
    anneal : {'stage', 'whole'}, default='stage'
        Whether each stage of a named schedule has a cosine of its own, or all share one: from the first
        stage's peak learning rate down to zero at the end of the last.

    Raises
    ------
    ValueError
        For an unknown name, an empty list, fewer epochs than stages, ``epochs``, ``lr``, ``anneal`` or losses with a
        list, or a stage of one that opens what the space lacks.
    """
    check_name("anneal", anneal, ANNEALS)
    if epochs is not None:
        whole_number("epochs", epochs, 1)
    if not isinstance(schedule, str):
        stages = list(schedule) if isinstance(schedule, (list, tuple)) else []
        if not stages or not all(isinstance(stage, Stage) for stage in stages):
            raise ValueError(f"a schedule must be a name or a non-empty list of Stage, got {schedule!r}")
        of_names = {"epochs": (epochs, None), "lr": (lr, None), "anneal": (anneal, "stage"),
                    "loss": (loss, "rslad"), "teacher_loss": (teacher_loss, "trades")}  # fmt: skip
        for name, (given, default) in of_names.items():
            if given != default:
                raise ValueError(
                    f"{name}={given!r} is of a named schedule, but the schedule is a list of stages, which have their "
                    f"own; allowed: a name, one of {', '.join(map(repr, SCHEDULES))}, or {name}={default!r}"
                )
        for stage in stages:
            missing = [name for name in stage.elastic if name not in space.dimensions]
            if missing:
                raise ValueError(
                    f"stage {stage.name!r} opens {', '.join(missing)}, which the supernet has no choice of; allowed: "
                    f"{', '.join(space.dimensions) or 'nothing'}"
                )
        return stages
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    stages = SCHEDULES[schedule](space, loss, loss if own_teacher else teacher_loss)
    if lr is not None:
        stages = [dataclasses.replace(stage, lr=lr) for stage in stages]
    stages = stages if epochs is None else _scale(stages, epochs)
    return stages if anneal == "stage" else share_cosine(stages)


def share_cosine(stages: Sequence[Stage]) -> list[Stage]:
    """Return stages that run through one cosine together, from the first one's peak learning rate to zero.

    Warm-ups other than the first stage's are left out.
    """
    ends = list(itertools.accumulate(stage.epochs for stage in stages))
    return [
        dataclasses.replace(
            stage,
            lr=stages[0].lr,
            anneal=((end - stage.epochs) / ends[-1], end / ends[-1]),
            warmup=stage.warmup if stage is stages[0] else 0.0,
        )
        for stage, end in zip(stages, ends, strict=True)
    ]


def _openings(space: SearchSpace) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the steps the space has: the dimensions each opens, and all that are open then."""
    openings: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    opened: tuple[str, ...] = ()
    for group in STEPS:
        new = tuple(name for name in group if name in space.dimensions)
        if new:
            opened = (*opened, *new)
            openings.append((new, opened))
    return openings


def _phases(step: Stage, space: SearchSpace, dimension: str) -> list[Stage]:
    """Split a step of the released code in two: the dimension's two largest choices, then all."""
    passes, choices = RELEASED_PASSES[dimension], LISTS[dimension]
    first = dataclasses.replace(
        step,
        name=f"{dimension} 1",
        epochs=25 * passes,
        lr=2.5e-3,
        warmup=0,
        choices={choices: sorted(getattr(space, choices))[-2:]},
        sort_channels=(dimension,) if dimension in SORTABLE else (),
    )
    second = dataclasses.replace(
        step, name=f"{dimension} 2", epochs=125 * passes, lr=7.5e-3, warmup=step.warmup * passes
    )
    return [first, second]


def _at_once(stages: list[Stage], name: str, sampler: str, students: int = 1) -> list[Stage]:
    """Put one stage with all dimensions and as many student-steps in the place of a schedule's steps."""
    teacher, *steps = stages
    if not steps:
        return [teacher]
    merged = dataclasses.replace(
        steps[-1],
        name=name,
        epochs=sum(stage.epochs for stage in steps) // students,
        sampler=sampler,
        students_per_step=students,
        sort_channels=tuple(n for stage in steps for n in stage.sort_channels),
    )
    return [teacher, merged]


def _scale(stages: list[Stage], epochs: int) -> list[Stage]:
    if epochs < len(stages):
        raise ValueError(f"epochs={epochs} is less than one for each of the {len(stages)} stages of the schedule")
    total = sum(stage.epochs for stage in stages)
    ends, done = [], 0
    for stage in stages:
        done += stage.epochs
        ends.append(round(epochs * done / total))
    lengths = [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
    for _ in range(sum(lengths) - epochs):
        lengths[lengths.index(max(lengths))] -= 1
    return [
        dataclasses.replace(stage, epochs=n, warmup=stage.warmup * n / stage.epochs)
        for stage, n in zip(stages, lengths, strict=True)
    ]
