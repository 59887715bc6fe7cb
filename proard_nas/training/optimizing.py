"""Optimizer and learning-rate schedule of a stage, from timm's factories."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from .settings import TrainSettings
from .stage import Stage


def make_optimizer(
    network: nn.Module, stage: Stage, settings: TrainSettings, n_steps: int, lr_scale: float
) -> tuple[torch.optim.Optimizer, Callable[[int], None]]:
    """Return SGD for a network and its schedule over the stage: a linear warm-up, then the stage's part of a cosine.

    Parameters
    ----------
    network : nn.Module
    stage : Stage
    settings : TrainSettings
    n_steps : int
        Optimizer steps in an epoch.
    lr_scale : float
        Factor of the learning rate over the whole stage.

    Returns
    -------
    (torch.optim.Optimizer, callable)
        The latter sets the learning rate of the stage's n-th step, counted from 0.
    """
    start, end = stage.anneal
    whole = stage.epochs / (end - start)
    optimizer = create_optimizer_v2(
        network,
        opt="sgd" if stage.nesterov else "momentum",
        lr=stage.lr,
        weight_decay=settings.weight_decay if stage.weight_decay is None else stage.weight_decay,
        momentum=settings.momentum,
        filter_bias_and_bn=False,
    )
    for group in optimizer.param_groups:
        group["lr_scale"] = lr_scale
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=whole,  # type: ignore[arg-type]
        warmup_epochs=stage.warmup,  # type: ignore[arg-type]
        warmup_lr=stage.lr / max(1.0, stage.warmup * n_steps),
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=n_steps,
    )

    def set_lr(update: int) -> None:
        assert scheduler is not None
        scheduler.step_update(round(start * whole * n_steps) + update)

    return optimizer, set_lr
