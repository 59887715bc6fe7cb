"""The training loop: one loop over a schedule's stages, which leaves records and resumes (ProARD, section 4.4)."""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from tqdm import tqdm

from proard_nas import distributed
from proard_nas._random import derive_seed
from proard_nas.data import ArraySource, Source, check_label_range, check_source, sharded
from proard_nas.evaluation.calibration import calibrate, check_images, require_calibrated_students
from proard_nas.supernets import StudentNet, Supernet

from . import monitor
from .accounting import Ledger
from .checkpoint import CheckpointStore
from .jobs import Job, draw_students, job_macs
from .keeper import Keeper, dropout, frozen
from .losses import AttackBudget, make_loss
from .phases import Phase, make_phases, warn_of_skipped
from .precision import Precision
from .progress import log_epoch, progress_bar
from .recovery import roll_back
from .settings import TrainSettings
from .signals import SignalWatch
from .stage import Stage
from .state import copied
from .step import StepRunner
from .updating import Updater

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

FEW_STEPS = 5  # an inner attack of fewer steps is watched for catastrophic overfitting


class Trainer:
    """Trains a supernet, or one network alone, over the stages of a schedule.

    Every random choice of a step (students, attack starts, augmentation, dropout, data order) is a pure function of the
    seed and of the step's place in the schedule, so a training that goes on from a checkpoint takes the same steps.

    Parameters
    ----------
    network : Supernet or StudentNet
        Changed in place; on the device it is to be trained on. A network that is no supernet is
        its own largest and only student.
    source : Source
        Training images.
    calibration : Tensor of shape (N, C, H, W)
        Training images from which batch norm statistics are taken.
    settings : TrainSettings
    on_epoch : callable, default=None
        Called with the record of each epoch. Where it returns True, training ends for good: the stage as ever, with its
        best weights, and those after it are left out, also by a training that goes on from the checkpoint.
    validation : Validation, default=None
        None watches and keeps no best state.
    teacher : nn.Module, default=None
        A teacher of one's own, from images in [0, 1] to logits; None is the largest student.
    store : CheckpointStore, default=None
    trained : bool, default=False
        Whether the largest student has been trained before, so that a stage may distil from it without one that trains
        it.

    Raises
    ------
    TypeError
        If the network, the source or the calibration images are of another type.
    ValueError
        If the source has fewer than two images or, where it is an `ArraySource`, labels that the network has no logit
        for; or a supernet runs another student than its largest.
    UncalibratedError
        If the teacher is, or wraps, a student without batch norm statistics of its own.

    Attributes
    ----------
    history : list of dict
        One JSON-able record for each epoch: stage, epoch, loss, lr, seconds, images, students, and validation where
        there was one.
    events : list of dict
        Returns to an earlier state, with the reason.
    ledger : Ledger
        What was spent on each stage.
    interrupted : signal.Signals or None
        The signal that ended the training early.
    """

    def __init__(
        self,
        network: StudentNet,
        source: Source,
        calibration: Tensor,
        settings: TrainSettings,
        on_epoch: Callable[[dict[str, Any]], object] | None = None,
        *,
        validation: monitor.Validation | None = None,
        teacher: nn.Module | None = None,
        store: CheckpointStore | None = None,
        trained: bool = False,
    ) -> None:
        _check(network, source, calibration)
        self.trained = trained
        self.network, self.source, self.calibration, self.settings = network, source, calibration, settings
        self.on_epoch, self.validation = on_epoch, validation
        self.device = next(network.parameters()).device
        self.runner = StepRunner(network, settings.precision, settings.compile_teacher)
        if teacher is not None:
            require_calibrated_students(teacher, "the teacher")
        self.runner.teacher = None if teacher is None else teacher.to(self.device).eval().requires_grad_(False)
        self.keeper = Keeper(network, self.runner, settings.ema_decay, store, settings.checkpoint_seconds)
        self.updater = Updater(self.runner, self.keeper, settings)
        self.interrupted: signal.Signals | None = None
        self._stop = self._ran = False
        self._signals = SignalWatch()
        self._bar: tqdm[Any]

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record for each epoch."""
        return self.keeper.state.history

    @property
    def events(self) -> list[dict[str, Any]]:
        """Returns to an earlier state."""
        return self.keeper.state.events

    @property
    def ledger(self) -> Ledger:
        """What was spent on each stage."""
        return self.keeper.ledger

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher of the stages that distil."""
        return self.runner.teacher

    def use(self, precision: Precision) -> None:
        """Train with another precision from now on."""
        self.settings = dataclasses.replace(self.settings, precision=precision)
        self.runner.precision = precision

    # -- the loop -----------------------------------------------------------------------------

    def run(self, stages: Sequence[Stage]) -> list[dict[str, Any]]:
        """Train over all stages and return the history; the largest student ends calibrated.

        SIGTERM and Ctrl-C end it within one batch, after a checkpoint where there is a store; ``interrupted`` then
        holds the signal.

        Raises
        ------
        ValueError
            If a stage distils before any stage has trained the largest network, lists choices that the space does not
            offer or asks for Nesterov's momentum where there is none; or if every batch is too small for batch norm.
        RuntimeError
            At a second call, unless `restore` has found a checkpoint since: a trainer trains once.
        TrainingFailedError
            If the loss is not finite, or accuracy falls back to chance, again after three returns to the last good
            state, each at half the learning rate.
        """
        phases, keeper = self._phases(stages), self.keeper
        if self._ran:
            raise RuntimeError("this Trainer has trained already; make a new one, of the same network, to train on")
        self._ran = True
        self.settings.precision.prepare(self.network)
        keeper.state.precision = dataclasses.asdict(self.settings.precision)
        n_steps = self.source.n_batches(self.settings.batch_size)
        with (
            progress_bar(phases, keeper.state, n_steps, self.settings.progress) as self._bar,
            SignalWatch() as self._signals,
        ):
            while keeper.state.phase < len(phases) and not self._stop and not self._is_ended():
                self._run_phase(phases[keeper.state.phase], n_steps)
            keeper.save()
            if keeper.state.phase < len(phases) and keeper.ema is not None:
                self.network.load_state_dict(keeper.averaged.state_dict())
            calibrate(self.network, self.calibration, reduce=True)
            self._notice_late_signal()
        self.network.eval().zero_grad(set_to_none=True)  # as large as the weights, and of no more use
        if self._is_ended() and distributed.is_main():
            warn_of_skipped(phases[keeper.state.phase :])
        return self.history

    def restore(self, stages: Sequence[Stage]) -> bool:
        """Go on from the store's checkpoint, if it has one; return whether it does.

        Raises
        ------
        CheckpointError
            If there are checkpoints and none is whole.
        """
        if not self.keeper.restore():
            return False
        self._stop, self._ran, self.interrupted = False, False, None
        state, phases = self.keeper.state, self._phases(stages)
        self.use(Precision(**(state.precision or {})))
        where = "the end of training"
        if state.phase < len(phases) and not state.stopped:
            stage = phases[state.phase].stage
            where = f"stage {stage.name!r}, epoch {state.epoch + 1} of {stage.epochs}, step {state.step + 1}"
        assert self.keeper.store is not None
        logger.warning("%s holds a checkpoint: going on from %s", self.keeper.store.folder, where)
        return True

    def planned(self, stages: Sequence[Stage]) -> list[Stage]:
        """Return all stages that are trained for a schedule's, that of HAT's helper included."""
        return [phase.stage for phase in self._phases(stages)]

    def _phases(self, stages: Sequence[Stage]) -> list[Phase]:
        phases = make_phases(stages, trained=self.trained or self.keeper.own_teacher)
        for stage in stages:
            if stage.nesterov and not self.settings.momentum:
                raise ValueError(f"stage {stage.name!r} has nesterov=True, which needs a momentum; got momentum=0")
            if isinstance(self.network, Supernet):
                stage.space(self.network.space)
        return phases

    def _is_told_to_stop(self) -> bool:
        """Heed a signal between two steps, where no other process would have to stop at the same place."""
        if self._signals.received is None or distributed.is_on():
            return False
        self._stop, self.interrupted = True, self._signals.received
        return True

    def _notice_late_signal(self) -> None:
        """Take note of a signal that came after the last step, to whichever process."""
        received = [found for found in distributed.gather(self._signals.received) if found is not None]
        if received and self.interrupted is None:
            self.interrupted = received[0]

    def _run_phase(self, phase: Phase, n_steps: int) -> None:
        keeper, stage = self.keeper, phase.stage
        if not keeper.state.entered:
            self._enter(phase)
        with dropout(self.network, stage.drop_rate):
            self.updater.start(stage, n_steps)
            while keeper.state.epoch < stage.epochs and not self._stop and not keeper.state.stopped:
                reason = self._run_epoch(phase, n_steps)
                if reason is not None:
                    self._roll_back(phase, reason)
                    self.updater.start(stage, n_steps)
        if keeper.state.epoch == stage.epochs or keeper.state.stopped:
            self._leave(phase)

    def _is_ended(self) -> bool:
        """Return whether a callback has ended training and the stage under way then has been left."""
        return self.keeper.state.stopped and not self.keeper.state.entered

    def _enter(self, phase: Phase) -> None:
        """Prepare a stage: its teacher, the order of channels, the first state to return to."""
        stage, network, keeper = phase.stage, self.network, self.keeper
        if phase.helper:
            keeper.kept["initial"] = copied(dict(network.state_dict()))
        if make_loss(stage.loss).needs_teacher and stage.teacher == "frozen" and self.runner.teacher is None:
            calibrate(network, self.calibration, reduce=True)
            self.runner.teacher = frozen(network)
        if stage.sort_channels and isinstance(network, Supernet):
            network.sort_channels(stage.sort_channels)
        keeper.start_average()
        state = keeper.state
        state.entered, state.attack_steps, state.best, state.watch = True, None, None, {}
        state.lr_scale, state.rollbacks = 1.0, 0
        keeper.remember()
        keeper.save_if_due()

    def _leave(self, phase: Phase) -> None:
        """End a stage with its best weights, or the averaged ones, or as they are."""
        self.keeper.end_stage()
        if phase.helper:
            calibrate(self.network, self.calibration, reduce=True)
            self.runner.helper = frozen(self.network)
            self.network.load_state_dict(self.keeper.kept.pop("initial"))
        state = self.keeper.state
        state.phase, state.epoch, state.step, state.entered = state.phase + 1, 0, 0, False
        self.keeper.remember()
        self.keeper.save_if_due()

    def _run_epoch(self, phase: Phase, n_steps: int) -> str | None:
        """Train to the end of an epoch; return what failed, if something did."""
        stage, state, settings = phase.stage, self.keeper.state, self.settings
        place = ("train", state.phase, state.epoch)
        seed = derive_seed(settings.seed, *place)
        start, first = time.perf_counter(), state.step
        budget = self._budget(stage)
        self.network.train()
        self._bar.set_description(f"{stage.name} {state.epoch + 1}/{stage.epochs}")
        size = distributed.world_size()
        batches = sharded(self.source, settings.batch_size, seed, distributed.rank(), size)
        with self.ledger.measure(stage.name, self.device) as spent:
            for step, ((x, y), total) in enumerate(self._until_stopped(batches)):
                if step < first:
                    if self._is_told_to_stop():
                        return None
                    continue
                self._bar.update()
                state.step = step + 1
                if total < self.updater.fewest_images:
                    continue
                step_seed = derive_seed(settings.seed, *place, step)
                students = draw_students(self.network, stage, seed if stage.draw == "epoch" else step_seed)
                job = Job.of(stage, budget, students, step_seed, total, settings.awp)
                loss = self.step(job, x, y, state.epoch * n_steps + step)
                if not math.isfinite(loss):
                    return f"the loss became {loss}"
                state.losses.append(loss)
                state.images += total
                macs = job_macs(self.network, job, (int(x.shape[2]), int(x.shape[3])), self.teacher)
                spent.add(macs=macs * total, images=total, steps=1)
                if self._stop:
                    return None
                self.keeper.save_if_due()
        if self._stop:
            return None
        return self._end_epoch(phase, time.perf_counter() - start)

    def _until_stopped(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Pass batches on, up to where a signal to the whole group has ended a loader's workers, too."""
        try:
            yield from batches
        except RuntimeError:
            if not self._is_told_to_stop():
                raise

    def step(self, job: Job, x: Tensor, y: Tensor, update: int = 0) -> float:
        """Take one optimizer step on the mean loss of the given students; return it, or what is not finite.

        Parameters
        ----------
        job : Job
        x, y : Tensor
            This process's images (N, C, H, W) in [0, 1] and labels (N,).
        update : int, default=0
            The step's number in the stage, which decides its learning rate.
        """
        loss, stop = self.updater.update(job, x, y, update, lambda: self._signals.received is not None)
        if stop:
            self._stop, self.interrupted = True, self._signals.received or signal.SIGTERM
        return loss

    def _end_epoch(self, phase: Phase, seconds: float) -> str | None:
        """Measure, judge and record an epoch; return what failed, if something did."""
        stage, state = phase.stage, self.keeper.state
        if not state.losses:
            raise ValueError(
                f"no batch of stage {stage.name!r} has the {self.updater.fewest_images} images, over all processes, "
                "that batch norm needs for a step; allowed: a larger batch_size, or a loader of larger batches"
            )
        if not all(bool(p.isfinite().all()) for p in self.network.parameters()):
            return "the weights are no longer finite"  # of which the last step's loss could not tell
        with self.ledger.measure(stage.name, self.device):
            found = self._validate(phase)
        if found is not None and self.validation is not None:
            watch = monitor.Watch(**state.watch)
            verdict = watch.judge(found, self.validation.chance)
            if verdict is not None:
                return verdict
            state.watch = dataclasses.asdict(watch)
            if self.settings.keep_best:
                figure = "robust" if make_loss(stage.loss).passes.attacked else "natural"
                n_images = len(self.validation.source)
                self.keeper.keep_best(found[figure], found["natural"], n_images, epoch=state.epoch)
        record = {
            "stage": stage.name,
            "epoch": state.epoch,
            "global_epoch": len(state.history),
            "loss": sum(state.losses) / len(state.losses),
            "lr": state.lr,
            "images": state.images,
            "students": stage.students_per_step,
            "seconds": seconds,
            **({} if found is None else {"validation": found}),
        }
        state.history.append(record)
        state.epoch, state.step, state.losses, state.images = state.epoch + 1, 0, [], 0
        if found is not None or self.validation is None or phase.helper:
            self.keeper.remember()
        self._report(record, stage)
        self.keeper.save_if_due()
        return None

    # -- validation, failures -----------------------------------------------------------------

    def _validate(self, phase: Phase) -> dict[str, Any] | None:
        stage, state, validation = phase.stage, self.keeper.state, self.validation
        single = self._budget(stage).n_steps < FEW_STEPS and make_loss(stage.loss).passes.attacked
        if validation is None or phase.helper or not validation.due(state.epoch, stage.epochs, single):
            return None
        seed = derive_seed(self.settings.seed, "validation", state.phase)
        students = [self.network.arch]
        if isinstance(self.network, Supernet):
            students = monitor.fixed_students(stage.space(self.network.space), validation.n_students, seed)
        network = cast(StudentNet, self.keeper.averaged)
        return monitor.measure(network, students, validation, self.calibration, seed, single)

    def _roll_back(self, phase: Phase, reason: str) -> None:
        roll_back(self.keeper, phase.stage, self._budget(phase.stage).n_steps, reason)

    def _budget(self, stage: Stage) -> AttackBudget:
        budget = stage.budget(self.settings.budget)
        steps = self.keeper.state.attack_steps
        if steps is None:
            return budget
        return dataclasses.replace(budget, method="pgd", steps=steps, step_size=2.5 * budget.eps / steps / 2)

    def _report(self, record: dict[str, Any], stage: Stage) -> None:
        log_epoch(record, stage.epochs)
        if self.on_epoch is not None and any(distributed.gather(bool(self.on_epoch(record)))):
            self.keeper.state.stopped = True


def _check(network: StudentNet, source: Source, calibration: Tensor) -> None:
    """Raise an error for what cannot be trained, or not be trained on."""
    if not isinstance(network, StudentNet):
        raise TypeError(f"a {type(network).__name__} cannot be trained here; allowed: a supernet or a student")
    if isinstance(network, Supernet) and network.active != network.space.largest:
        raise ValueError("the supernet runs another student than its largest, whose training this is; allowed: after "
                         "set_active(None)")  # fmt: skip
    check_source(source)
    check_images(calibration)
    if len(source) < 2:
        raise ValueError(f"training needs at least two images, got {len(source)}")
    if isinstance(source, ArraySource):
        check_label_range(source.y, network.num_classes, "the training data")
