"""What one training step is to do: which students it draws, how they are attacked and taught, what that costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from torch import nn

from proard_nas.supernets import Architecture, StudentNet, Supernet

from .budget import frozen_macs, step_macs
from .losses import AttackBudget, Objective, make_loss
from .sampling import SAMPLERS
from .stage import Stage


@dataclasses.dataclass(frozen=True)
class Job:
    """What one step is to do.

    Parameters
    ----------
    loss : Objective
    budget : AttackBudget
    students : sequence of Architecture
    seed : int
        Of attack starts and dropout.
    total : int
        Images of the joined batch over all processes.
    share_attack, live_teacher : bool, default=False
        See `Stage`.
    teacher_loss : Objective, default=None
        Of the largest student where the teacher is live.
    awp : float, default=0.0
        Size of the adversarial weight perturbation relative to each weight's norm; 0 leaves it out.
    """

    loss: Objective
    budget: AttackBudget
    students: Sequence[Architecture]
    seed: int
    total: int
    share_attack: bool = False
    live_teacher: bool = False
    teacher_loss: Objective | None = None
    awp: float = 0.0

    @classmethod
    def of(
        cls, stage: Stage, budget: AttackBudget, students: Sequence[Architecture], seed: int, total: int, awp: float
    ) -> Job:
        """Return the job of one step of a stage."""
        live = stage.teacher == "live"
        taught = make_loss(stage.teacher_loss) if live else None
        return cls(make_loss(stage.loss), budget, students, seed, total, stage.share_attack, live, taught, awp)

    def loss_of(self, arch: Architecture, largest: Architecture) -> Objective:
        """Return what a student of the step is trained with: a live teacher has a loss of its own."""
        return self.teacher_loss if self.teacher_loss is not None and arch == largest else self.loss


def largest_of(network: StudentNet) -> Architecture:
    """Return the largest student of a supernet; a network that is none is its own."""
    return network.space.largest if isinstance(network, Supernet) else network.arch


def draw_students(network: StudentNet, stage: Stage, seed: int) -> list[Architecture]:
    """Return the students of a step of a stage; a network that is no supernet is its only one."""
    if not isinstance(network, Supernet):
        return [network.arch]

    def cost(arch: Architecture) -> float:
        return network.cost(arch).macs

    rng = np.random.default_rng(seed)
    return SAMPLERS[stage.sampler](stage.space(network.space), stage.students_per_step, rng, cost)


def job_macs(network: StudentNet, job: Job, img_size: tuple[int, int], teacher: nn.Module | None = None) -> float:
    """Return the multiply-accumulates that a step takes for each image of a height and width in pixels.

    Parameters
    ----------
    network : StudentNet
    job : Job
    img_size : (int, int)
    teacher : nn.Module, default=None
        Of a stage with a frozen one; see `frozen_macs`.
    """
    largest = largest_of(network)
    students = [network.cost(arch, img_size).macs for arch in job.students]
    losses = [job.loss_of(arch, largest) for arch in job.students]
    own = network.cost(largest, img_size).macs
    taught = own if job.live_teacher else frozen_macs(teacher, own, img_size)
    return step_macs(losses, students, taught, job.budget, job.share_attack, helper_macs=own, awp=job.awp > 0)
