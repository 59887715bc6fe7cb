"""ProARDEstimator: the whole path behind a scikit-learn estimator; it composes the rooms and holds no algorithm."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.metrics import accuracy_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from . import supernets
from ._errors import check_name, unknown_name
from ._random import derive_seed
from .attacks import ATTACKS, EPS, STEP_SIZE, seeded
from .data import ArraySource, PreparedData, Source, prepare
from .evaluation import AttackSettings, Evaluation, Label, calibrate, evaluate, label_students
from .evaluation.accuracy import predict_logits
from .evaluation.population import label_student
from .supernets import Architecture, StudentNet, Supernet
from .training import (
    PRECISIONS,
    AttackBudget,
    Precision,
    Stage,
    Trainer,
    TrainSettings,
    labelling_macs,
    make_loss,
    make_schedule,
    plan_training,
)

if TYPE_CHECKING:
    from .search import SearchResult

logger = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")
LEAST_LABELS = 12  # ten to fit the predictor and two to judge it


class ProARDEstimator(CallbackSupportMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Train a robust supernet once, then search and extract robust students of any size.

    `fit` trains the teacher (the largest student) and the students, measures some of them on a
    validation part of the training data and fits a predictor of accuracy and robustness; after
    it a search takes seconds. The defaults are the paper's (section 5.0.1), sized for a GPU:
    `fit` states their cost before it starts.

    Parameters
    ----------
    model : str, default='proard_dyn_resnet50'
        A supernet's name: ``proard_nas.supernets.SUPERNETS`` lists them.
    model_args : dict, default=None
        Keyword arguments of the supernet, such as ``{'depths': (0, 1)}``.
    schedule : str or list of Stage, default='paper'
        ``'paper'``, ``'random'`` or stages of one's own.
    epochs : int, default=None
        Total epochs of a named schedule, shared between its stages in proportion; None keeps
        its own, 660 for the paper's.
    loss, teacher_loss : str or Objective, default='rslad', 'trades'
    batch_size : int, default=128
        For arrays and datasets; a loader keeps its own.
    lr : float, default=0.01
        Peak learning rate of every stage of a named schedule (SGD, cosine to zero).
    momentum : float, default=0.9
    weight_decay : float, default=2e-4
    eps : float, default=8/255
        Largest change of a pixel under every attack, l-infinity, images in [0, 1].
    step_size : float, default=2/255
    attack_steps : int, default=10
        Of the inner attack in training.
    eval_steps : int, default=20
        Of PGD in labels and in `robust_score`.
    n_labels : int, default=2000
        Students measured for the predictor, at least 12.
    n_calibration : int, default=4000
        Training images for batch norm statistics.
    num_classes : int, default=None
        None finds it out from the data.
    val_fraction : float, default=0.1
        Part of the training data held out for labels.
    device : str, default='auto'
        ``'auto'`` is CUDA where there is one.
    precision : {'auto', 'float32', 'bfloat16'}, default='auto'
        ``'auto'`` times a few steps and keeps the fastest number format and memory layout. The
        others use the channels_last layout.
    random_state : int, RandomState or None, default=None
        The same int gives the same result on one machine, on the CPU with
        ``precision='float32'`` bit for bit.
    progress : bool, default=True
        Progress bars where the output is a terminal.

    Attributes
    ----------
    supernet_ : Supernet
        Trained; its largest student is calibrated.
    classes_ : ndarray of shape (n_classes,)
    labels_ : Labels
        The measured students.
    predictor_ : AccuracyPredictor
    predictor_score_ : dict
        Held-out RMSE, Kendall's tau and R2 of natural and robust accuracy.
    history_ : list of dict
        One record for each epoch.
    cost_ : TrainingCost
        What training and labelling were estimated to cost.
    precision_ : Precision
    image_size_ : (int, int)
    in_chans_ : int
    n_features_in_ : int
        Columns of a table, or pixels of an image over all channels.

    Examples
    --------
    >>> from proard_nas import ProARDEstimator
    >>> est = ProARDEstimator('proard_dyn_resnet_tiny', epochs=8, n_labels=60)
    >>> est.fit(images, labels)                               # doctest: +SKIP
    >>> student = est.search(max_flops=1.5).extract()         # doctest: +SKIP
    """

    def __init__(
        self,
        model: str = "proard_dyn_resnet50",
        *,
        model_args: dict[str, Any] | None = None,
        schedule: str | Sequence[Stage] = "paper",
        epochs: int | None = None,
        loss: Any = "rslad",
        teacher_loss: Any = "trades",
        batch_size: int = 128,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 2e-4,
        eps: float = EPS,
        step_size: float = STEP_SIZE,
        attack_steps: int = 10,
        eval_steps: int = 20,
        n_labels: int = 2000,
        n_calibration: int = 4000,
        num_classes: int | None = None,
        val_fraction: float = 0.1,
        device: str = "auto",
        precision: str = "auto",
        random_state: Any = None,
        progress: bool = True,
    ) -> None:
        self.model = model
        self.model_args = model_args
        self.schedule = schedule
        self.epochs = epochs
        self.loss = loss
        self.teacher_loss = teacher_loss
        self.batch_size = batch_size
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.eps = eps
        self.step_size = step_size
        self.attack_steps = attack_steps
        self.eval_steps = eval_steps
        self.n_labels = n_labels
        self.n_calibration = n_calibration
        self.num_classes = num_classes
        self.val_fraction = val_fraction
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.progress = progress

    # -- fitting ------------------------------------------------------------------------------

    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(self, X: Any, y: Any = None, val_loader: Any = None) -> Self:
        """Train the supernet, label students and fit the predictor.

        Parameters
        ----------
        X : loader, Dataset or array-like
            Batches of (images, labels), a map-style dataset of such pairs, or images of shape
            (n, channels, height, width) or (n, height, width) in [0, 1] with ``y``. A 2-D array
            is a table: each feature is scaled to [0, 1] by its range in training.
        y : array-like of shape (n,), default=None
            Labels, with arrays only.
        val_loader : loader, Dataset or (X, y), default=None
            Validation data; None takes a part of the training data. Never give test data.

        Returns
        -------
        ProARDEstimator
            Itself, fitted.

        Raises
        ------
        ValueError
            If a parameter or the data is not usable; before any training starts.
        """
        self._check_parameters()
        seed = int(check_random_state(self.random_state).randint(2**31))
        data = prepare(
            X,
            y,
            val_data=val_loader,
            val_fraction=self.val_fraction,
            num_classes=self.num_classes,
            batch_size=self.batch_size,
            seed=derive_seed(seed, "split"),
        )
        supernet = self._build_supernet(data, seed)
        stages = self._stages(supernet)
        self._check_labels(supernet)
        self._describe(data, seed)
        self.calibration_images_ = data.train.head(self.n_calibration, seed=derive_seed(seed, "calibration")).x
        self._train(supernet, stages, data)
        self._label(supernet, data.val)
        return self

    def _check_parameters(self) -> None:
        check_name("model", self.model, supernets.SUPERNETS)
        check_name("precision", self.precision, PRECISIONS)
        if self.device.partition(":")[0] not in DEVICES:
            raise unknown_name("device", self.device, DEVICES)
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r} was asked for, but torch finds no CUDA device; allowed: 'cpu'")
        self._budget()
        self._attack("pgd")
        TrainSettings(self.batch_size, self.momentum, self.weight_decay)
        make_loss(self.loss)
        make_loss(self.teacher_loss)
        for name, lowest in (("n_labels", LEAST_LABELS), ("n_calibration", 1)):
            if not isinstance(getattr(self, name), (int, np.integer)) or getattr(self, name) < lowest:
                raise ValueError(f"{name} must be an integer of at least {lowest}, got {getattr(self, name)!r}")
        self._stages(self._make_model())

    def _make_model(self, **args: Any) -> Supernet:
        """Build the supernet; without arguments only its shape, to check parameters early."""
        with torch.device("meta" if not args else "cpu"):
            return cast(Supernet, timm.create_model(self.model, **{**args, **(self.model_args or {})}))

    def _build_supernet(self, data: PreparedData, seed: int) -> Supernet:
        summary = data.summary
        self.device_ = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        )
        with seeded(derive_seed(seed, "weights")):
            supernet = self._make_model(
                num_classes=summary.num_classes,
                in_chans=summary.in_chans,
                norm_mean=summary.mean,
                norm_std=summary.std,
            )
        return supernet.to(self.device_)

    def _stages(self, supernet: Supernet) -> list[Stage]:
        return make_schedule(
            self.schedule,
            supernet.space,
            loss=self.loss,
            teacher_loss=self.teacher_loss,
            epochs=self.epochs,
            lr=self.lr,
        )

    def _check_labels(self, supernet: Supernet) -> None:
        if self.n_labels > supernet.space.size:
            raise ValueError(f"n_labels={self.n_labels} is more than the {supernet.space.size} students there are")

    def _describe(self, data: PreparedData, seed: int) -> None:
        summary = data.summary
        self.seed_, self.encoder_, self.classes_ = seed, data.scaler, summary.classes
        self.in_chans_, self.image_size_ = summary.in_chans, summary.image_size
        self.n_features_in_ = data.scaler.n_features or summary.in_chans * int(np.prod(summary.image_size))
        self.n_train_, self.n_val_ = summary.n_train, summary.n_val

    def _train(self, supernet: Supernet, stages: list[Stage], data: PreparedData) -> None:
        train = self._on_device(data.train)
        settings = TrainSettings(
            self.batch_size,
            self.momentum,
            self.weight_decay,
            self._budget(),
            Precision(),
            derive_seed(self.seed_, "training"),
            self.progress,
        )
        epochs = sum(stage.epochs for stage in stages)
        with self._epoch_callback(epochs) as on_epoch:
            trainer = Trainer(supernet, train, self.calibration_images_, settings, on_epoch)
            mean = float(np.mean([self._macs(supernet, supernet.space.sample(i)) for i in range(20)]))
            labels = labelling_macs(self.n_labels, self.n_val_, len(self.calibration_images_), self.eval_steps, mean)
            self.precision_, self.cost_ = plan_training(trainer, stages, self.precision, labels)
            trainer.use(self.precision_)
            self.history_ = trainer.run(stages)
        self.supernet_ = supernet

    def _macs(self, supernet: Supernet, arch: Architecture) -> int:
        return supernet.cost(arch, self.image_size_).macs

    def _label(self, supernet: Supernet, val: Source) -> None:
        from .search import AccuracyPredictor

        seed = derive_seed(self.seed_, "labels")
        self._val = self._on_device(val)
        self.labels_ = label_students(
            supernet,
            supernet.space.sample_distinct(self.n_labels, seed),
            self._val,
            self.calibration_images_,
            attack=self._attack("pgd"),
            seed=seed,
            progress=self.progress,
        )
        self.predictor_ = AccuracyPredictor(supernet.space, self._cost, random_state=derive_seed(seed, "predictor"))
        self.predictor_score_ = self.predictor_.holdout(self.labels_.architectures, self.labels_.accuracies, seed=seed)

    def _cost(self, arch: Architecture) -> supernets.Cost:
        return self.supernet_.cost(arch, self.image_size_)

    def _epoch_callback(self, epochs: int) -> Any:
        """Tie scikit-learn's callbacks to the epochs of training."""
        return _EpochTasks(self, epochs)

    def _on_device(self, source: Source) -> Source:
        return source.to(self.device_) if isinstance(source, ArraySource) else source

    def _budget(self) -> AttackBudget:
        return AttackBudget(self.eps, self.step_size, self.attack_steps)

    def _attack(self, name: str, eps: float | None = None, steps: int | None = None) -> AttackSettings:
        return AttackSettings(name, eps or self.eps, self.step_size, steps or self.eval_steps)

    # -- students -----------------------------------------------------------------------------

    def search(self, *, max_flops: float | None = None, verify: int = 0, **constraints: Any) -> SearchResult:
        """Search the students that are most accurate and most robust under constraints on their cost.

        Parameters
        ----------
        max_flops : float, default=None
            In MMACs, millions of multiply-accumulates for one image (the paper's unit).
        verify : int, default=0
            How many of the best candidates to measure on the validation part.
        **constraints
            Passed to `proard_nas.search.search`: ``min_flops``, ``max_params``,
            ``max_latency_ms`` with ``latency``, ``min_natural_accuracy``,
            ``min_robust_accuracy``, ``objectives``, ``population_size``, ``n_generations``,
            ``mutation_prob``, ``seed``, ``storage``, ``study_name``, ``warm_start``.

        Returns
        -------
        SearchResult
            Its ``extract()`` returns the best student as a plain timm model, calibrated.

        Raises
        ------
        ValueError
            If no student meets the constraints; names the smallest cost there is.
        NotFittedError
            Before `fit`.
        """
        from .search import search

        check_is_fitted(self, "predictor_")
        allowed = set(inspect.signature(search).parameters) - {"space", "predict", "cost"}
        for name in constraints:
            if name not in allowed:
                raise TypeError(str(unknown_name("search argument", name, allowed | {"verify"})))
        constraints = {"seed": derive_seed(self.seed_, "search"), "progress": self.progress, **constraints}
        result = search(
            self.supernet_.space,
            self.predictor_.predict,
            self._cost,
            max_flops=max_flops,
            **constraints,
        ).with_extractor(self.extract)
        return self._verify(result, verify) if verify else result

    def _verify(self, result: SearchResult, k: int) -> SearchResult:
        ranked = sorted(result.front, key=lambda candidate: candidate.mean_accuracy, reverse=True)
        return result.with_measured({c.architecture: self._measured(c.architecture) for c in ranked[:k]})

    def _measured(self, arch: Architecture) -> dict[str, Any]:
        label = self.measure(arch)
        figures = {"natural_accuracy": label.natural_accuracy, "robust_accuracy": label.robust_accuracy}
        return {**figures, "attack": self._attack("pgd").title, "eps": self.eps, "n_images": self.n_val_}

    def measure(self, arch: Architecture) -> Label:
        """Measure one student's natural and robust accuracy on the validation part of `fit`'s data."""
        if not hasattr(self, "_val"):
            raise RuntimeError("an estimator loaded from a folder has no validation data; use evaluate on your own")
        seed = derive_seed(self.seed_, "labels")
        attack = self._attack("pgd")
        return label_student(self.supernet_, arch, self._val, self.calibration_images_, attack, seed=seed)

    def extract(self, arch: Architecture | dict[str, Any] | None = None) -> StudentNet:
        """Return a student as a plain timm model in eval mode, calibrated on training images.

        Parameters
        ----------
        arch : Architecture or dict, default=None
            None is the largest student.
        """
        check_is_fitted(self, "supernet_")
        arch = Architecture.from_dict(arch) if isinstance(arch, dict) else arch
        student = self.supernet_.extract(arch or self.supernet_.space.largest)
        height, width = self.image_size_
        student.pretrained_cfg |= {
            "input_size": (self.in_chans_, height, width),
            "pool_size": student.feature_size(self.image_size_),
            "num_classes": len(self.classes_),
            "label_names": [str(c) for c in self.classes_],
        }
        return calibrate(student.to(memory_format=torch.contiguous_format), self.calibration_images_).eval()

    # -- prediction with the largest student --------------------------------------------------

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class probabilities of the largest student, shape (n, n_classes).

        Parameters
        ----------
        X : array-like, Dataset or loader
            As in `fit`; labels are ignored.
        """
        logits = [predict_logits(self.supernet_, x.to(self.device_)) for x in self._images(X)]
        return torch.cat(logits).double().softmax(1).cpu().numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the largest student's classes, shape (n,); see `predict_proba`."""
        check_is_fitted(self, "supernet_")
        return self.classes_[self.predict_proba(X).argmax(1)]  # type: ignore[no-any-return]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the largest student's natural accuracy in [0, 1].

        Parameters
        ----------
        X, y
            Arrays and labels, or a Dataset or loader alone.
        sample_weight : array-like of shape (n,), default=None
        """
        check_is_fitted(self, "supernet_")
        if y is not None:
            return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))
        return self.evaluate(X, attack="natural").accuracy

    def robust_score(
        self, X: Any, y: Any = None, attack: str = "pgd", eps: float | None = None, steps: int | None = None
    ) -> float:
        """Return the largest student's accuracy under an attack, in [0, 1].

        Parameters
        ----------
        X, y
            As for `score`.
        attack : {'pgd', 'fgsm'}, default='pgd'
        eps : float, default=None
            None is the estimator's ``eps``.
        steps : int, default=None
            None is the estimator's ``eval_steps``.
        """
        return self.evaluate(X, y, attack=attack, eps=eps, steps=steps).accuracy

    def evaluate(
        self,
        X: Any,
        y: Any = None,
        *,
        student: torch.nn.Module | None = None,
        attack: str = "pgd",
        eps: float | None = None,
        steps: int | None = None,
    ) -> Evaluation:
        """Measure a student (by default the largest) on data; see `robust_score` for the parameters."""
        check_is_fitted(self, "supernet_")
        check_name("attack", attack, ("natural", *ATTACKS))
        settings = self._attack(attack, eps, steps)
        source = self.encoder_source(X, y)
        return evaluate(student if student is not None else self.supernet_, source, settings, seed=self.seed_)

    def encoder_source(self, X: Any, y: Any = None) -> Source:
        """Return data in the library's form, checked against what the estimator was fitted on."""
        from .data import labelled_source

        return labelled_source(X, y, self.encoder_, self.classes_, self.batch_size)

    def _images(self, X: Any) -> Iterator[torch.Tensor]:
        from .data import image_batches

        check_is_fitted(self, "supernet_")
        return image_batches(X, self.encoder_, 256)

    # -- saving -------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save supernet, labels, predictor and settings to a folder; nothing is pickled."""
        from ._estimator_io import save_estimator

        check_is_fitted(self, "predictor_")
        save_estimator(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Load what `save` wrote; nothing is unpickled."""
        from ._estimator_io import load_estimator

        return load_estimator(cls, folder)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        tags.input_tags.sparse = False
        tags.non_deterministic = False
        return tags


class _EpochTasks:
    """Reports each epoch of training to scikit-learn's callbacks as a task of `fit`."""

    def __init__(self, estimator: ProARDEstimator, epochs: int) -> None:
        self.estimator = estimator
        self.context = estimator._init_callback_context(max_subtasks=epochs)

    def __enter__(self) -> Callable[[dict[str, Any]], bool]:
        self.context.call_on_fit_task_begin(estimator=self.estimator)
        return self._epoch

    def _epoch(self, record: dict[str, Any]) -> bool:
        task = self.context.subcontext(task_name="epoch")
        task.call_on_fit_task_begin(estimator=self.estimator)
        return bool(task.call_on_fit_task_end(estimator=self.estimator, metadata=record))

    def __exit__(self, *error: object) -> None:
        self.context.call_on_fit_task_end(estimator=self.estimator)
