"""What a training costs: multiply-accumulates by arithmetic, seconds from a measured step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from proard_nas.supernets import Supernet

from .losses import AttackBudget, make_loss
from .sampling import SAMPLERS
from .schedule import Stage

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
    supernet: Supernet, stages: Sequence[Stage], n_images: int, budget: AttackBudget, img_size: tuple[int, int]
) -> TrainingCost:
    """Count the multiply-accumulates of a schedule.

    A backward pass to the images counts as one forward pass, one to the weights as two. The
    size of sampled students is the mean over 50 draws.

    Parameters
    ----------
    supernet : Supernet
    stages : list of Stage
    n_images : int
        Images in one epoch.
    budget : AttackBudget
    img_size : (int, int)
    """
    return TrainingCost(
        tuple((stage.name, stage.epochs * n_images * stage_macs(supernet, stage, budget, img_size)) for stage in stages)
    )


def stage_macs(supernet: Supernet, stage: Stage, budget: AttackBudget, img_size: tuple[int, int]) -> float:
    """Return the multiply-accumulates that one image costs in one step of a stage."""
    loss = make_loss(stage.loss)
    adversarial = not _is_natural(stage)
    passes = FORWARD + TO_WEIGHTS
    if adversarial:
        passes = 2 * passes + budget.steps * (FORWARD + TO_IMAGES) + (0 if loss.needs_teacher else FORWARD)
    rng = np.random.default_rng(0)
    space = supernet.space.with_elastic(stage.elastic)
    n = 1 if space.size == 1 else SAMPLES
    drawn = [a for _ in range(n) for a in SAMPLERS[stage.sampler](space, stage.students_per_step, rng)]
    students = sum(supernet.cost(arch, img_size).macs for arch in drawn) / n
    teacher = supernet.cost(supernet.space.largest, img_size).macs if loss.needs_teacher else 0
    return passes * students + FORWARD * teacher


def _is_natural(stage: Stage) -> bool:
    return stage.loss == "natural"


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
