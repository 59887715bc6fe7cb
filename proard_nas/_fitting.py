"""What `ProARDEstimator.fit` does: check, prepare, train, label, predict, each from where an earlier run stopped."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import timm
import torch
from sklearn.utils import check_random_state
from torch import nn

from . import _labelling, _warm_start, distributed, supernets
from ._devices import check_device, device_of
from ._errors import check_name
from ._numbers import whole_number
from ._random import derive_seed
from ._reporting import EpochReports
from ._run_folder import open_run, run_seed
from ._teacher import check_teacher, own_teacher
from ._warm_start import Before
from .attacks import seeded, warn_if_short
from .data import PreparedData, check_columns, check_image_size, prepare
from .data.splitting import check_fraction
from .supernets import Supernet
from .training import (
    PRECISIONS,
    CheckpointStore,
    Precision,
    Stage,
    TensorBoardWriter,
    Trainer,
    TrainSettings,
    Validation,
    calibration_images,
    make_loss,
    make_schedule,
    plan_training,
    raise_for,
)
from .training.phases import make_phases

if TYPE_CHECKING:
    from .estimator import ProARDEstimator

logger = logging.getLogger(__name__)

NOT_MODEL_ARGS = {
    "num_classes": "follows from the data; allowed: the estimator's num_classes",
    "norm_mean": "follows from the data",
    "norm_std": "follows from the data",
    "drop_rate": "each stage of training sets; allowed: stages of one's own, with Stage(drop_rate=...)",
}

SWITCHES = ("compile_teacher", "keep_best", "progress", "sync_batch_norm", "warm_start")
CHOICES = "its choices are depths, width_mults, expand_ratios and kernel_sizes"

Folder = str | os.PathLike[str] | None


def fit(estimator: ProARDEstimator, X: Any, y: Any, val_loader: Any, checkpoint_dir: Folder) -> None:
    """Fit an estimator; see `ProARDEstimator.fit`."""
    check_parameters(estimator)
    with _kept_until_trained(estimator), distributed.process_group(device_of(estimator)):
        estimator.device_ = device_of(estimator)
        _fit(estimator, X, y, val_loader, None if checkpoint_dir is None else Path(checkpoint_dir))


def _fit(estimator: ProARDEstimator, X: Any, y: Any, val_loader: Any, folder: Path | None) -> None:
    earlier = _warm_start.before(estimator, folder)
    seed = distributed.from_main(run_seed(estimator, folder))
    check_columns(estimator, X, reset=True)
    check_columns(estimator, val_loader)
    data = prepare(
        X,
        y,
        val_data=val_loader,
        val_fraction=estimator.val_fraction,
        num_classes=estimator.num_classes,
        batch_size=estimator.batch_size,
        seed=derive_seed(seed, "split"),
        in_chans=(estimator.model_args or {}).get("in_chans"),
    )
    _check_same_data(data)
    data = data if earlier is None else _warm_start.named(estimator, data)
    supernet = _build_supernet(estimator, data, seed, earlier is not None)
    if earlier is not None and val_loader is None:
        _warm_start.warn_of_other_images(estimator, data.val)
    stages = stages_of(estimator, supernet)
    teacher = own_teacher(estimator, data)
    _describe(estimator, data, seed)
    store = None if folder is None else open_run(estimator, folder, data, teacher, seed, earlier)
    _warn_of_short_attacks(estimator, stages)
    if earlier is None and not any(stage.elastic for stage in stages) and distributed.is_main():
        logger.warning("no stage opens a dimension: students other than the largest are left untrained")
    estimator.calibration_images_ = calibration_images(
        data.train, estimator.n_calibration, estimator.augment, derive_seed(seed, "calibration")
    )
    estimator._unfinished = (None if folder is None else folder.resolve(), earlier)
    _train(estimator, supernet, stages, data, teacher, store, earlier)
    _labelling.label_first(estimator, data.val, None if folder is None else folder / "labels.jsonl")
    del estimator._unfinished


@contextlib.contextmanager
def _kept_until_trained(estimator: ProARDEstimator) -> Iterator[None]:
    """Put the fitted attributes back if the block fails before there is a new supernet: those of two fits never mix."""

    def fitted() -> dict[str, Any]:
        return {k: v for k, v in vars(estimator).items() if k.endswith("_") and not k.startswith("_")}

    before = fitted()
    try:
        yield
    except BaseException:
        if fitted().get("supernet_") is before.get("supernet_"):
            for name in fitted():
                delattr(estimator, name)
            estimator.__dict__.update(before)
        raise


# -- before training --------------------------------------------------------------------------


def check_parameters(estimator: ProARDEstimator) -> None:
    """Raise ValueError if a parameter of an estimator is not usable."""
    check_name("model", estimator.model, supernets.SUPERNETS)
    _check_model_args(estimator.model_args)
    check_name("precision", estimator.precision, PRECISIONS)
    check_device(estimator.device)
    _train_settings(estimator, 0)
    estimator._attack("pgd")
    make_loss(estimator.loss)
    make_loss(estimator.teacher_loss)
    check_teacher(estimator.teacher)
    for name in SWITCHES:
        if not isinstance(getattr(estimator, name), (bool, np.bool_)):
            raise ValueError(f"{name} must be True or False, got {getattr(estimator, name)!r}")
    for name, lowest in (("n_calibration", 1), ("n_watch", 0)):
        whole_number(name, getattr(estimator, name), lowest)
    _labelling.check_parameters(estimator)
    check_random_state(estimator.random_state)
    check_fraction(estimator.val_fraction)
    if estimator.num_classes is not None:
        whole_number("num_classes", estimator.num_classes, 2)
    supernet = _make_model(estimator)
    _labelling.check_n_labels(estimator.n_labels, supernet.space.size)
    stages_of(estimator, supernet)
    if estimator.log_dir is not None:
        TensorBoardWriter(estimator.log_dir)  # so that a missing package is noticed now


def _check_model_args(given: Any) -> None:
    if given is not None and not isinstance(given, dict):
        raise ValueError(f"model_args must be a dict of the supernet's keyword arguments or None, got {given!r}")
    for name, reason in NOT_MODEL_ARGS.items():
        if name in (given or {}):
            raise ValueError(f"model_args has {name!r}, which {reason}")


def stages_of(estimator: ProARDEstimator, supernet: Supernet) -> list[Stage]:
    """Return the stages of an estimator's schedule for a supernet.

    Raises
    ------
    ValueError
        If they cannot be made, one distils before there is a teacher, or there is one that none of them would ask.
    """
    schedule: Any = estimator.schedule
    if isinstance(schedule, (list, tuple)):  # a stage loaded without its loss is a dict; now the loss must be there
        schedule = [Stage.from_dict(stage) if isinstance(stage, dict) else stage for stage in schedule]
    stages = make_schedule(
        schedule,
        supernet.space,
        loss=estimator.loss,
        teacher_loss=estimator.teacher_loss,
        epochs=estimator.epochs,
        lr=estimator.lr,
        own_teacher=estimator.teacher is not None,
        anneal=estimator.anneal,
    )
    if estimator.teacher is not None and not any(make_loss(stage.loss).needs_teacher for stage in stages):
        named = ", ".join(dict.fromkeys(repr(loss_name(stage.loss)) for stage in stages))
        raise ValueError(
            f"a teacher was given, but no stage distils from one (their losses: {named}); allowed: a loss that does, "
            "such as 'rslad', or teacher=None"
        )
    make_phases(stages, trained=estimator.teacher is not None or estimator.warm_start)
    return stages


def training_facts(estimator: ProARDEstimator, stages: Sequence[Stage]) -> dict[str, Any]:
    """Return what an estimator's weights are trained as and against, by its stages or, without any, its parameters.

    The losses are those of stages that distil, where any does.
    """
    distilling = [stage for stage in stages if make_loss(stage.loss).needs_teacher]
    losses = [loss_name(stage.loss) for stage in distilling or stages] or [loss_name(estimator.loss)]
    attacked = [stage.budget(estimator._budget()).method for stage in stages if make_loss(stage.loss).passes.attacked]
    attacks = attacked or ["none" if stages else estimator.attack]
    joined = {"loss": ", ".join(dict.fromkeys(losses)), "attack": ", ".join(dict.fromkeys(attacks))}
    return {"supernet": estimator.model, **joined, "eps": estimator.eps}


def loss_name(loss: Any) -> str:
    """Return a loss's name, and of one's own what it is called."""
    return loss if isinstance(loss, str) else f"own: {getattr(loss, '__qualname__', type(loss).__qualname__)}"


def _train_settings(estimator: ProARDEstimator, seed: int) -> TrainSettings:
    return TrainSettings(
        estimator.batch_size,
        estimator.momentum,
        estimator.weight_decay,
        estimator._budget(),
        Precision(),
        seed,
        estimator.progress,
        estimator.ema_decay,
        estimator.clip_grad,
        estimator.awp,
        estimator.augment,
        estimator.compile_teacher,
        estimator.sync_batch_norm,
        estimator.keep_best,
        estimator.checkpoint_seconds,
    )


def _warn_of_short_attacks(estimator: ProARDEstimator, stages: list[Stage]) -> None:
    """Log a warning for each PGD, of training and of labels, that cannot use the whole of its ball."""
    trained = [stage.budget(estimator._budget()) for stage in stages if make_loss(stage.loss).passes.attacked]
    budgets = {("training", one.step_size, one.steps) for one in trained if not one.single_step}
    for part, step_size, steps in sorted(budgets | {("labels", estimator.step_size, estimator.eval_steps)}):
        if distributed.is_main():
            warn_if_short(f"PGD-{steps} of {part}", estimator.eps, step_size, steps)


def _make_model(estimator: ProARDEstimator, **args: Any) -> Supernet:
    """Build the supernet; without arguments only its shape, to check parameters early."""
    given = estimator.model_args or {}
    try:
        with torch.device("meta" if not args else "cpu"):
            return cast(Supernet, timm.create_model(estimator.model, **{**args, **given}))
    except TypeError as error:
        raise TypeError(f"{estimator.model!r} does not take model_args={given!r}: {error}; {CHOICES}") from error


def _check_same_data(data: PreparedData) -> None:
    """Raise ValueError if processes that train together were given different data."""
    summary = data.summary
    own = (summary.n_train, summary.n_val, summary.classes.tolist(), summary.in_chans, summary.image_size)
    values = [*summary.mean, *summary.std]
    for other, others in distributed.gather((own, values)):
        if other != own or not np.allclose(others, values, atol=1e-5):  # other processors round otherwise
            raise ValueError(
                "the processes were given different data (counts or sizes of images, classes, or means of pixels); "
                "allowed: the whole of it in each, without a DistributedSampler: every batch is shared out here"
            )


def _build_supernet(estimator: ProARDEstimator, data: PreparedData, seed: int, warm: bool) -> Supernet:
    """Return the supernet of images like the data's: new, or with a copy of the earlier weights."""
    summary = data.summary
    if warm:
        _warm_start.check_same(estimator, _make_model(estimator), summary)
        supernet: Supernet = copy.deepcopy(estimator.supernet_)
        supernet.set_active(None)
        supernet.metadata = {}  # it was about the earlier weights
    else:
        with seeded(derive_seed(seed, "weights")):
            supernet = _make_model(
                estimator,
                num_classes=summary.num_classes,
                in_chans=summary.in_chans,
                norm_mean=summary.mean,
                norm_std=summary.std,
            )
    check_image_size(supernet, summary.image_size)
    supernet.pretrained_cfg = supernet.default_cfg = {
        **supernet.pretrained_cfg,
        "input_size": (summary.in_chans, *summary.image_size),
        "pool_size": supernet.feature_size(summary.image_size),
    }
    return supernet.to(estimator.device_)


def _describe(estimator: ProARDEstimator, data: PreparedData, seed: int) -> None:
    summary = data.summary
    estimator.seed_, estimator.encoder_, estimator.classes_ = seed, data.scaler, summary.classes
    estimator.in_chans_, estimator.image_size_ = summary.in_chans, summary.image_size
    pixels = summary.in_chans * int(np.prod(summary.image_size))
    estimator.n_features_in_ = data.scaler.n_features or pixels
    estimator.n_train_, estimator.n_val_ = summary.n_train, summary.n_val


# -- training ---------------------------------------------------------------------------------


def _train(
    estimator: ProARDEstimator,
    supernet: Supernet,
    stages: list[Stage],
    data: PreparedData,
    teacher: nn.Module | None,
    store: CheckpointStore | None,
    earlier: Before | None,
) -> None:
    validation = None
    if estimator.n_watch:
        watched = data.val.head(estimator.n_watch, seed=derive_seed(estimator.seed_, "watch")).to(estimator.device_)
        validation = Validation(watched, estimator._attack("pgd"))
    done = () if earlier is None else (len(earlier.history),)  # not the same random choices once more
    with EpochReports(estimator, *done) as on_epoch:
        trainer = Trainer(
            supernet,
            _labelling.on_device(data.train, estimator.device_),
            estimator.calibration_images_,
            _train_settings(estimator, derive_seed(estimator.seed_, "training", *done)),
            on_epoch,
            validation=validation,
            teacher=teacher,
            store=store,
            trained=earlier is not None,
        )
        labels = _labelling.expected_macs(estimator, supernet, estimator.n_labels, estimator.n_val_)
        wanted = trainer.settings.precision if trainer.restore(stages) else estimator.precision
        precision, estimator.cost_ = plan_training(trainer, stages, wanted, labels)
        estimator.precision_ = distributed.from_main(precision)
        trainer.use(estimator.precision_)
        distributed.wait_for_all()  # nobody writes a checkpoint before all have read theirs
        trainer.run(stages)
    for name in ("labels_", "predictor_", "predictor_score_", "_val"):  # of the supernet before
        estimator.__dict__.pop(name, None)
    estimator.supernet_, estimator.events_, estimator.spent_ = supernet, trainer.events, trainer.ledger
    trained = {record["stage"] for record in trainer.history} | {stages[0].name}
    estimator.history_ = trainer.history
    estimator.training_ = training_facts(estimator, [stage for stage in stages if stage.name in trained])
    if earlier is not None:
        _warm_start.put_before(estimator, earlier)
    if trainer.interrupted is not None:
        where = "" if store is None else f"; fit with checkpoint_dir={str(store.folder)!r} goes on from there"
        logger.warning("training was interrupted; the estimator holds the network as it is%s", where)
        raise_for(trainer.interrupted)
