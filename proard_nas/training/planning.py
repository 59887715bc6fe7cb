"""Before training: which precision is fastest on this device, and what the whole thing will cost."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import torch

from proard_nas import distributed
from proard_nas.supernets import Supernet, load_statistics, statistics_of

from .budget import TrainingCost, duration, stage_macs, training_cost
from .jobs import Job
from .losses import make_loss
from .precision import CANDIDATES, Precision, fastest
from .stage import Stage
from .state import copied
from .step import StepRunner
from .trainer import Trainer

logger = logging.getLogger(__name__)

STEP_MACS = 5e11
LONG = 30 * 60


def plan_training(
    trainer: Trainer, stages: Sequence[Stage], precision: str | Precision, labelling_macs: float = 0.0
) -> tuple[Precision, TrainingCost]:
    """Time a few steps on this device; choose the precision and state the cost of the schedule.

    The measured step is a TRADES step (or a natural one, if the first stage is natural) on one
    random student, on a part of one batch, so that a large network is measured in seconds; on CUDA on the whole of
    it. The cost is logged, as a warning with the settings that make it smaller where it takes more than half an hour.
    A training that goes on from a checkpoint states what an earlier run has spent, and what is left.

    Parameters
    ----------
    trainer : Trainer
        Its supernet's weights and statistics stay as they are.
    stages : list of Stage
    precision : {'auto', 'float32', 'bfloat16'} or Precision
        ``'auto'`` takes the fastest number format and memory layout; the other names are
        channels_last, so that the same seed gives the same bits.
    labelling_macs : float, default=0.0
        Multiply-accumulates of labelling, added to the cost.

    Returns
    -------
    (Precision, TrainingCost)
    """
    budget, supernet = trainer.settings.budget, trainer.network
    assert isinstance(supernet, Supernet)
    x, y = next(iter(trainer.source.batches(trainer.settings.batch_size)))
    if len(x) < 2:
        raise ValueError(f"the data's first batch has {len(x)} image; allowed: batches of at least 2 (batch norm)")
    img_size = (int(x.shape[2]), int(x.shape[3]))
    arch = supernet.space.sample(0)
    loss = "trades" if make_loss(stages[0].loss).passes.attacked else "natural"
    stage = dataclasses.replace(stages[0], loss=loss, elastic=(), teacher="frozen", students_per_step=1)
    macs = stage_macs(supernet, stage, budget, img_size)
    macs *= supernet.cost(arch, img_size).macs / supernet.cost(supernet.space.largest, img_size).macs
    n = _timed_images(trainer.device, len(x), macs)
    job = Job.of(stage, stage.budget(budget), [arch], 0, n * distributed.world_size(), 0.0)
    runner = StepRunner(supernet, CANDIDATES[0])

    def step(candidate: Precision) -> None:
        candidate.prepare(supernet)
        runner.precision = candidate
        supernet.train()
        runner.gradients(job, x[:n], y[:n])
        supernet.zero_grad(set_to_none=True)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)

    if isinstance(precision, str):
        wanted = CANDIDATES if precision == "auto" else (Precision(precision, channels_last=True),)
    else:
        wanted = (precision,)
    before = copied(statistics_of(supernet))  # attacks with running statistics record them
    choice, seconds = fastest(step, wanted)
    load_statistics(supernet, before)
    all_stages, awp = trainer.planned(stages), trainer.settings.awp > 0
    cost = training_cost(supernet, all_stages, len(trainer.source), budget, img_size, awp, trainer.teacher)
    stages_and_labels = (*cost.stages, ("labelling", labelling_macs)) if labelling_macs else cost.stages
    cost = dataclasses.replace(cost, stages=stages_and_labels)
    at_once = macs * n * distributed.world_size()
    cost = dataclasses.replace(cost, seconds=cost.macs * seconds[str(choice)] / at_once)
    pgd = any(make_loss(one.loss).passes.attacked and not one.budget(budget).single_step for one in all_stages)
    _state(cost, choice, trainer.ledger.total.macs, pgd)
    return choice, cost


def _timed_images(device: torch.device, batch: int, macs: float) -> int:
    """Return on how many images of a batch this process times a step."""
    if device.type == "cuda":  # few would take as long as their kernels' launches, in any precision
        return max(2, batch // distributed.world_size())
    return max(2, min(batch, int(STEP_MACS / macs)))


def labelling_macs(n_students: int, n_images: int, n_calibration: int, steps: int, mean_macs: float) -> float:
    """Return an upper bound of labelling's multiply-accumulates: no image fooled before the last step."""
    return n_students * mean_macs * (n_calibration + n_images * (2 + 2 * steps))


def _state(cost: TrainingCost, precision: Precision, spent: float, pgd: bool) -> None:
    if spent and cost.seconds is not None:
        left = duration(max(0.0, 1 - spent / cost.macs) * cost.seconds)
        logger.info("an earlier run has spent %.2g of %s (%s): about %s are left, less where students are labelled",
                    spent, cost, precision, left)  # fmt: skip
    elif cost.seconds is not None and cost.seconds > LONG:
        logger.warning(
            "this will cost %s (%s). To make it smaller: fewer epochs (epochs=...), a smaller network (model=...), "
            "%sfewer labelled students (n_labels=...)",
            cost,
            precision,
            "one attack step in place of PGD's (attack='n-fgsm') or fewer (attack_steps=...), " if pgd else "",
        )
    else:
        logger.info("training and labelling will cost %s (%s)", cost, precision)
