"""What a training costs: multiply-accumulates by arithmetic, seconds from a measured step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from torch import nn

from proard_nas.supernets import Architecture, StudentNet, Supernet

from .losses import AttackBudget, Objective, Passes, make_loss
from .sampling import SAMPLERS
from .stage import Stage

FORWARD, TO_IMAGES, TO_WEIGHTS = 1, 1, 2
SAMPLES = 50


@dataclasses.dataclass(frozen=True)
class TrainingCost:
    """The cost of a schedule on a data set.

    Attributes
    ----------
    stages : tuple of (str, float)
        Multiply-accumulates of each stage.
    seconds : float or None
        Estimate from a measured step.
    """

    stages: tuple[tuple[str, float], ...]
    seconds: float | None = None

    @property
    def macs(self) -> float:
        """Multiply-accumulates of all stages."""
        return sum(macs for _, macs in self.stages)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {macs:.2g}" for name, macs in self.stages)
        time = "" if self.seconds is None else f", about {duration(self.seconds)} on this device"
        return f"{self.macs:.2g} multiply-accumulates ({parts}){time}"


def training_cost(
    supernet: Supernet,
    stages: Sequence[Stage],
    n_images: int,
    budget: AttackBudget,
    img_size: tuple[int, int],
    awp: bool = False,
    teacher: nn.Module | None = None,
) -> TrainingCost:
    """Count the multiply-accumulates of a schedule.

    The size of sampled students is the mean over 50 draws.

    Parameters
    ----------
    supernet : Supernet
    stages : list of Stage
    n_images : int
        Images in one epoch.
    budget : AttackBudget
        Of the training's settings; a stage's own attack stands in its place.
    img_size : (int, int)
        Height and width in pixels.
    awp : bool, default=False
        Whether each step is taken twice, the second time at perturbed weights, on the same adversarial images.
    teacher : nn.Module, default=None
        A frozen teacher of one's own; see `frozen_macs`.
    """
    return TrainingCost(
        tuple(
            (stage.name, stage.epochs * n_images * stage_macs(supernet, stage, budget, img_size, awp, teacher))
            for stage in stages
        )
    )


def stage_macs(
    supernet: Supernet,
    stage: Stage,
    budget: AttackBudget,
    img_size: tuple[int, int],
    awp: bool = False,
    teacher: nn.Module | None = None,
) -> float:
    """Return the mean multiply-accumulates that one image costs in one step of a stage."""

    def cost(arch: Architecture) -> float:
        return supernet.cost(arch, img_size).macs

    space, largest = stage.space(supernet.space), supernet.space.largest
    loss, teacher_loss = make_loss(stage.loss), make_loss(stage.teacher_loss)
    own = cost(largest)
    taught = own if stage.teacher == "live" else frozen_macs(teacher, own, img_size)
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(1 if space.size == 1 else SAMPLES):
        students = SAMPLERS[stage.sampler](space, stage.students_per_step, rng, cost)
        losses = [teacher_loss if stage.teacher == "live" and arch == largest else loss for arch in students]
        macs = [cost(arch) for arch in students]
        steps.append(step_macs(losses, macs, taught, stage.budget(budget), stage.share_attack, own, awp))
    return sum(steps) / len(steps)


def frozen_macs(teacher: nn.Module | None, largest: float, img_size: tuple[int, int]) -> float:
    """Return the multiply-accumulates of a frozen teacher's pass over one image.

    None, and a network that is none of the library's, counts as the largest student, whose own are given.
    """
    return teacher.cost(img_size=img_size).macs if isinstance(teacher, StudentNet) else largest


def step_macs(
    loss: Objective | Sequence[Objective],
    students_macs: Sequence[float],
    teacher_macs: float,
    budget: AttackBudget,
    share_attack: bool,
    helper_macs: float | None = None,
    awp: bool = False,
) -> float:
    """Return the multiply-accumulates that one image costs in one optimizer step.

    A backward pass to the images costs as much as a forward pass, one to the weights twice as
    much. The forward passes of each kind are those that the loss declares in its ``passes``.

    Parameters
    ----------
    loss : Objective or sequence of Objective
        One for all students, or one for each.
    students_macs : sequence of float
        Multiply-accumulates of one forward pass of each student of the step, for one image.
    teacher_macs : float
        The same for the teacher.
    budget : AttackBudget
        Of this step: the stage's own.
    share_attack : bool
        Whether all students get the images made for the first of them.
    helper_macs : float, default=None
        The same as ``teacher_macs`` for the helper; None is the teacher's.
    awp : bool, default=False
        Whether the outer loss is computed once more, at perturbed weights.

    Examples
    --------
    Clean logits for the attack, 10 times forward and backward to the images, then clean and
    adversarial images forward and backward to the weights:

    >>> step_macs(make_loss('trades'), [1.0], 1.0, AttackBudget(steps=10), False)
    27.0
    """
    losses = list(loss) if isinstance(loss, Sequence) else [loss] * len(students_macs)
    helper_macs = teacher_macs if helper_macs is None else helper_macs
    students = [(each.passes, macs) for each, macs in zip(losses, students_macs, strict=True)]
    attacked = students[:1] if share_attack else students
    teacher_on_clean_images = any(passes.teacher for passes, _ in students)
    return (
        sum(_attack_macs(passes, macs, teacher_macs, budget) for passes, macs in attacked)
        + (1 + awp) * sum(_outer_macs(passes, macs, teacher_macs, helper_macs) for passes, macs in students)
        + FORWARD * teacher_on_clean_images * teacher_macs
    )


def _outer_macs(passes: Passes, student: float, teacher: float, helper: float) -> float:
    """Count one student's outer loss, but for the teacher on the clean images, which all students share."""
    others = max(0, passes.teacher - 1) * teacher + passes.helper * helper
    return passes.student * (FORWARD + TO_WEIGHTS) * student + FORWARD * others


def _attack_macs(passes: Passes, student: float, teacher: float, budget: AttackBudget) -> float:
    """Count the inner attack on one student."""
    if not passes.attacked:
        return 0.0
    before = passes.setup + (budget.batch_norm == "clean")  # whose statistics take a pass of their own
    networks = student + (teacher if passes.teacher_in_attack else 0.0)
    return FORWARD * before * student + (FORWARD + TO_IMAGES) * budget.n_steps * networks


def duration(seconds: float) -> str:
    """Return a duration in the unit a person would use.

    Examples
    --------
    >>> duration(42), duration(3600 * 5), duration(86400 * 20)
    ('42 s', '5.0 hours', '20 days')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    for unit, size, limit in (("minutes", 60, 120), ("hours", 3600, 72)):
        if seconds / size < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.0f} days"
