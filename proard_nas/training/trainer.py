"""The training loop: one loop over a schedule's stages (ProARD, section 4.4)."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from tqdm import tqdm

from proard_nas._random import derive_seed
from proard_nas.attacks import seeded
from proard_nas.data import Source
from proard_nas.evaluation.calibration import calibrate
from proard_nas.supernets import Architecture, StudentNet, Supernet

from .losses import AttackBudget, Objective, make_loss
from .precision import Precision
from .sampling import SAMPLERS
from .schedule import Stage

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """What stays the same over all stages; the defaults are the paper's (section 5.0.1).

    Parameters
    ----------
    batch_size : int, default=128
    momentum : float, default=0.9
    weight_decay : float, default=2e-4
    budget : AttackBudget
        Of the inner attack.
    precision : Precision
    seed : int, default=0
    progress : bool, default=True
        Progress bars where the output is a terminal.
    """

    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 2e-4
    budget: AttackBudget = dataclasses.field(default_factory=AttackBudget)
    precision: Precision = dataclasses.field(default_factory=Precision)
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 (batch norm needs it), got {self.batch_size}")
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError(
                f"momentum must be in [0, 1) and weight_decay not negative; got {self.momentum}, {self.weight_decay}"
            )


class Trainer:
    """Trains a supernet, or one network alone, over the stages of a schedule.

    Every random choice of a step (students, attack starts, dropout, data order) is a pure
    function of the seed and of the step's place in the schedule.

    Parameters
    ----------
    network : Supernet or StudentNet
        Changed in place; on the device it is to be trained on. A network that is no supernet is
        its own largest and only student.
    source : Source
        Training images.
    calibration : Tensor of shape (N, C, H, W)
        Training images from which the teacher's batch norm statistics are taken.
    settings : TrainSettings
    on_epoch : callable, default=None
        Called with the record of each epoch; training ends where it returns True.

    Attributes
    ----------
    history : list of dict
        One JSON-able record for each epoch: stage, epoch, loss, lr, seconds, images, students.
    """

    def __init__(
        self,
        network: StudentNet,
        source: Source,
        calibration: Tensor,
        settings: TrainSettings,
        on_epoch: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        self.network, self.source, self.calibration, self.settings = network, source, calibration, settings
        self.on_epoch = on_epoch
        self.history: list[dict[str, Any]] = []
        self.teacher: nn.Module | None = None
        self.device = next(network.parameters()).device
        self._stop = False
        self._bar: tqdm[Any]

    def use(self, precision: Precision) -> None:
        """Train with another precision from now on."""
        self.settings = dataclasses.replace(self.settings, precision=precision)

    def run(self, stages: Sequence[Stage]) -> list[dict[str, Any]]:
        """Train over all stages and return the history; the largest student ends calibrated.

        Raises
        ------
        ValueError
            If a stage distils before any stage has trained the largest network.
        FloatingPointError
            If a loss is not finite.
        """
        trained = False
        for stage in stages:
            if make_loss(stage.loss).needs_teacher and not trained:
                raise ValueError(f"stage {stage.name!r} distils from a teacher, but no stage before it trains one")
            trained = trained or not stage.elastic
        self.settings.precision.prepare(self.network)
        with self._progress_bar(stages) as self._bar:
            for index, stage in enumerate(stages):
                if not self._stop:
                    self._run_stage(index, stage)
        calibrate(self.network, self.calibration)
        self.network.eval()
        return self.history

    def _run_stage(self, index: int, stage: Stage) -> None:
        loss = make_loss(stage.loss)
        if loss.needs_teacher and self.teacher is None:
            self.teacher = self._freeze_teacher()
        if stage.sort_channels and isinstance(self.network, Supernet):
            self.network.sort_channels(stage.sort_channels)
        drop_before, self.network.head.drop.p = self.network.head.drop.p, stage.drop_rate
        settings = self.settings
        optimizer = create_optimizer_v2(
            self.network,
            opt="momentum",
            lr=stage.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            filter_bias_and_bn=False,
        )
        scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=stage.epochs, min_lr=0.0)
        for epoch in range(stage.epochs):
            scheduler.step(epoch)
            self._run_epoch(index, stage, loss, epoch, optimizer)
            if self._stop:
                break
        self.network.head.drop.p = drop_before

    def _freeze_teacher(self) -> nn.Module:
        calibrate(self.network, self.calibration)
        if isinstance(self.network, Supernet):
            return self.network.extract(self.network.space.largest).eval().requires_grad_(False)
        return copy.deepcopy(self.network).eval().requires_grad_(False)

    def _run_epoch(self, index: int, stage: Stage, loss: Objective, epoch: int, optimizer: Any) -> None:
        start, losses, images = time.perf_counter(), [], 0
        place = ("train", index, epoch)
        seed = derive_seed(self.settings.seed, *place)
        batches = self.source.batches(self.settings.batch_size, seed=seed)
        self.network.train()
        self._bar.set_description(f"{stage.name} {epoch + 1}/{stage.epochs}")
        for step, (x, y) in enumerate(batches):
            self._bar.update()
            if len(x) < 2:  # batch norm has no statistics of one image
                continue
            step_seed = derive_seed(self.settings.seed, *place, step)
            losses.append(self.step(loss, x, y, self._draw(stage, step_seed), optimizer, step_seed))
            images += len(x)
        mean = float(torch.stack(losses).mean())
        self._record(stage, epoch, mean, optimizer, images, time.perf_counter() - start)

    def step(
        self, loss: Objective, x: Tensor, y: Tensor, archs: Sequence[Architecture], optimizer: Any, seed: int
    ) -> Tensor:
        """Take one optimizer step on the mean loss of the given students; return it, detached."""
        optimizer.zero_grad(set_to_none=True)
        total = self.gradients(loss, x, y, archs, seed)
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss became {float(total)}; a lower learning rate than {optimizer.param_groups[0]['lr']} may help"
            )
        optimizer.step()
        return total

    def gradients(
        self, loss: Objective, x: Tensor, y: Tensor, archs: Sequence[Architecture], seed: int, precision: Any = None
    ) -> Tensor:
        """Add the gradients of the students' mean loss to the network; return it, detached."""
        precision = precision or self.settings.precision
        x, y = precision.images(x.to(self.device)), y.to(self.device)
        total = torch.zeros((), device=self.device)
        with seeded(derive_seed(seed, "global")):
            teacher_logits = None
            if loss.needs_teacher and self.teacher is not None:
                with torch.no_grad(), precision.autocast(self.device):
                    teacher_logits = self.teacher(x)
            for i, arch in enumerate(archs):
                net = self._student(arch)
                with precision.autocast(self.device):
                    x_adv = loss.adversarial(net, x, y, teacher_logits, self.settings.budget, derive_seed(seed, i))
                    value = loss.loss(net, x, x_adv, y, teacher_logits) / len(archs)
                value.backward()  # type: ignore[no-untyped-call]
                total += value.detach()
        return total

    def _draw(self, stage: Stage, seed: int) -> list[Architecture]:
        """Return the students of a step."""
        if not isinstance(self.network, Supernet):
            return [self.network.arch]
        space = self.network.space.with_elastic(stage.elastic)
        return SAMPLERS[stage.sampler](space, stage.students_per_step, np.random.default_rng(seed))

    def _student(self, arch: Architecture) -> StudentNet:
        """Return what runs an architecture: the network itself where it is the largest."""
        if not isinstance(self.network, Supernet) or arch == self.network.space.largest:
            return self.network
        return self.network.student(arch)

    def _progress_bar(self, stages: Sequence[Stage]) -> tqdm[Any]:
        """Return one bar over the steps of all stages, silent where the output is no terminal."""
        total = sum(stage.epochs for stage in stages) * self.source.n_batches(self.settings.batch_size)
        return tqdm(total=total, unit="step", disable=None if self.settings.progress else True, delay=2, leave=False)

    def _record(self, stage: Stage, epoch: int, mean: float, optimizer: Any, images: int, seconds: float) -> None:
        record = {
            "stage": stage.name,
            "epoch": epoch,
            "loss": mean,
            "lr": optimizer.param_groups[0]["lr"],
            "images": images,
            "students": stage.students_per_step,
            "seconds": seconds,
        }
        self.history.append(record)
        logger.info("%s %d/%d: loss %.4f, %.1f s", stage.name, epoch + 1, stage.epochs, mean, seconds)
        if self.on_epoch is not None:
            self._stop = bool(self.on_epoch(record))
