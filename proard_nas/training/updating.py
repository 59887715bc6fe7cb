"""One optimizer step: images augmented, gradients of all processes joined and clipped, weights and average moved."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from proard_nas import distributed
from proard_nas._random import derive_seed

from .augment import Augmentation
from .jobs import Job
from .keeper import Keeper
from .optimizing import make_optimizer
from .settings import TrainSettings
from .stage import Stage
from .step import StepRunner, reduce_gradients
from .sync_norm import synced_batch_norm


class Updater:
    """Moves a network's weights, one step at a time.

    Parameters
    ----------
    runner : StepRunner
        Computes the gradients.
    keeper : Keeper
        Has the optimizer and the moving average.
    settings : TrainSettings
    """

    def __init__(self, runner: StepRunner, keeper: Keeper, settings: TrainSettings) -> None:
        self.runner, self.keeper, self.settings = runner, keeper, settings
        self._augmentation = Augmentation.from_name(settings.augment)
        self._set_lr: Callable[[int], None]

    def start(self, stage: Stage, n_steps: int) -> None:
        """Begin a stage of ``n_steps`` in an epoch, or go on in it: an optimizer, with the momentum that was kept."""
        scale = self.keeper.state.lr_scale
        optimizer, self._set_lr = make_optimizer(self.runner.network, stage, self.settings, n_steps, scale)
        self.keeper.attach(optimizer)

    def update(self, job: Job, x: Tensor, y: Tensor, number: int, wants_stop: Callable[[], bool]) -> tuple[float, bool]:
        """Take a step; a loss that is not finite moves nothing.

        Parameters
        ----------
        job : Job
        x, y : Tensor
            This process's images (N, C, H, W) in [0, 1] and labels (N,).
        number : int
            The step's number in the stage, which decides its learning rate.
        wants_stop : callable
            Tells, once the gradients are there, whether this process wants to stop after the step.

        Returns
        -------
        (float, bool)
            The mean loss of the students, and whether any process wants to stop.
        """
        optimizer, state, network = self.keeper.optimizer, self.keeper.state, self.runner.network
        assert optimizer is not None
        self._set_lr(number)
        if not state.losses:
            state.lr = float(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad(set_to_none=True)
        x = self._augmented(x.to(self.runner.device), job)
        with synced_batch_norm(network) if self._is_synced() else contextlib.nullcontext():
            share = self.runner.gradients(job, x, y)
        loss, (stop,) = reduce_gradients(network, share, wants_stop())
        if not math.isfinite(loss):
            return loss, stop
        if self.settings.clip_grad is not None:
            nn.utils.clip_grad_norm_(network.parameters(), self.settings.clip_grad)
        optimizer.step()
        if self.keeper.ema is not None:
            self.keeper.ema.update(network, step=number + 1)
        return loss, stop

    @property
    def fewest_images(self) -> int:
        """The smallest joined batch that can be trained on: batch norm has no statistics of one image."""
        size = distributed.world_size()
        return max(2, size) if self._is_synced() else 2 * size

    def _is_synced(self) -> bool:
        return self.settings.sync_batch_norm and distributed.is_on()

    def _augmented(self, x: Tensor, job: Job) -> Tensor:
        generator = torch.Generator(x.device).manual_seed(derive_seed(job.seed, "augment"))
        return self._augmentation(x, generator, total=job.total, rank=distributed.rank(), size=distributed.world_size())
