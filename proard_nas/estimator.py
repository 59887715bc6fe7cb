"""ProARDEstimator: the whole path behind a scikit-learn estimator; it composes the rooms and holds no algorithm."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted

from . import supernets
from ._errors import check_name
from ._numbers import finite_number
from .attacks import ATTACKS, EPS, ITERATED, STEP_SIZE, warn_if_short
from .data import Source
from .evaluation import AttackSettings, Evaluation, Label, calibrate, evaluate
from .evaluation.accuracy import all_logits
from .evaluation.population import checksum
from .supernets import Architecture, StudentNet
from .training import AttackBudget, Stage

if TYPE_CHECKING:
    from .search import SearchResult


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
        ``'paper'``, ``'released'``, ``'random'``, ``'sandwich'``, ``'attentive'``, or stages of
        one's own.
    epochs : int, default=None
        Total epochs of a named schedule, shared between its stages in proportion; None keeps
        its own, 660 for the paper's.
    loss : str or Objective, default='rslad'
        Of students: ``'rslad'``, ``'ard'``, ``'iad'``, ``'adaad'``, or an object or function of
        one's own (see `proard_nas.training.losses`).
    teacher_loss : str or Objective, default='trades'
        Of the largest student, the teacher: ``'trades'``, ``'sat'``, ``'mart'``, ``'hat'``,
        ``'natural'``, or one's own.
    teacher : nn.Module or str, default=None
        A teacher of one's own, from images in [0, 1] to logits, or the name of a timm model
        (such as ``'local-dir:FOLDER'``), taken with its pretrained weights. All stages distil
        from it. None is the largest student, trained first.
    batch_size : int, default=128
        For arrays and datasets, over all processes; a loader keeps its own.
    lr : float, default=None
        Peak learning rate of every stage of a named schedule (SGD, cosine to zero); None keeps
        the schedule's own, 0.01 for the paper's.
    anneal : {'stage', 'whole'}, default='stage'
        Whether each stage of a named schedule has a cosine of its own, or all share one.
    momentum : float, default=0.9
    weight_decay : float, default=2e-4
    eps : float, default=8/255
        Largest change of a pixel under every attack, l-infinity, images in [0, 1]; three times that in
        training with ``'n-fgsm'``.
    step_size : float, default=2/255
        Of PGD, for ``eps``; under another ``eps`` of `robust_score` or `evaluate` it is scaled with it.
    attack : {'pgd', 'ffgsm', 'n-fgsm'}, default='pgd'
        The inner attack in training. The last two take a single step, with which a training step
        costs a third; training is then watched for catastrophic overfitting.
    attack_steps : int, default=10
        Of PGD in training.
    eval_steps : int, default=20
        Of PGD in labels and in `robust_score`.
    ema_decay : float, default=0.0
        Decay of a moving average of the weights, which each stage then ends with; 0 is none.
    clip_grad : float, default=None
        Largest norm of the gradient.
    awp : float, default=0.0
        Adversarial weight perturbation relative to each weight's norm (0.005 is usual).
    augment : {'none', 'crop', 'crop-flip'}, default='none'
        Random crops and flips on the device. A loader or dataset that does its own needs none.
    compile_teacher : bool, default=False
        ``torch.compile`` for the teacher.
    sync_batch_norm : bool, default=False
        Under torchrun, batch statistics over all processes.
    keep_best : bool, default=True
        Each stage ends with its best weights by the mean accuracies of a few fixed students on
        validation images: of those within one standard error of the highest robust accuracy, the
        ones with the highest natural accuracy.
    n_watch : int, default=500
        Validation images that training is watched on; 0 does not watch.
    n_labels : int, default=2000
        Students measured for the predictor, at least 12.
    label_choice : {'uniform', 'active'}, default='uniform'
        How they are chosen: all at random, or in rounds, those next that tell the predictor most
        (see `proard_nas.search.choose_architectures`); the first round is random. ``predictor_score_``
        is on students chosen in the same way.
    label_rounds : int, default=4
        Rounds of the active choice.
    n_jobs : int, default=None
        Processes that measure students, of one thread each. None is this one alone, on all of
        torch's threads, and -1 is one for each core.
    n_calibration : int, default=4000
        Training images for batch norm statistics, augmented as in training.
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
    warm_start : bool, default=False
        Whether `fit` goes on from the weights of the last `fit`, of `load` or of `from_pretrained`,
        over the whole schedule again, on images of the same classes and channels. ``history_``,
        ``events_`` and ``spent_`` go on, too. With ``random_state=None`` the earlier seed is kept, so
        that the same data is split as it was; with another, images that were trained on can become
        validation images.
    progress : bool, default=True
        Progress bars where the output is a terminal.
    log_dir : path, default=None
        Folder for TensorBoard; needs the extra ``tensorboard``.
    checkpoint_seconds : float, default=300
        Longest time between two checkpoints of `fit` with ``checkpoint_dir``.

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
        One record for each epoch: stage, loss, learning rate, seconds, validation.
    events_ : list of dict
        Returns to an earlier state after a failure in training, with the reason.
    cost_ : TrainingCost
        What training and labelling were estimated to cost.
    spent_ : Ledger
        What they did cost: multiply-accumulates, seconds and, where the machine reports it,
        energy, for each stage; ``spent_.for_devices(n)`` is the cost for n devices. Labelling's
        multiply-accumulates are an upper bound, as if no image were fooled before the last step.
        Its seconds hold those of labels that a record gave back, shared between the processes
        there are now; the energy of these is unknown.
    training_ : dict
        What the weights were trained as and against: supernet, loss, attack and eps.
    precision_ : Precision
    image_size_ : (int, int)
    in_chans_ : int
    n_features_in_ : int
        Columns of a table, or pixels of an image over all channels.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of a data frame's columns, where all are strings.

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
        teacher: Any = None,
        batch_size: int = 128,
        lr: float | None = None,
        anneal: str = "stage",
        momentum: float = 0.9,
        weight_decay: float = 2e-4,
        eps: float = EPS,
        step_size: float = STEP_SIZE,
        attack: str = "pgd",
        attack_steps: int = 10,
        eval_steps: int = 20,
        ema_decay: float = 0.0,
        clip_grad: float | None = None,
        awp: float = 0.0,
        augment: str = "none",
        compile_teacher: bool = False,
        sync_batch_norm: bool = False,
        keep_best: bool = True,
        n_watch: int = 500,
        n_labels: int = 2000,
        label_choice: str = "uniform",
        label_rounds: int = 4,
        n_jobs: int | None = None,
        n_calibration: int = 4000,
        num_classes: int | None = None,
        val_fraction: float = 0.1,
        device: str = "auto",
        precision: str = "auto",
        random_state: Any = None,
        warm_start: bool = False,
        progress: bool = True,
        log_dir: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 300.0,
    ) -> None:
        self.model = model
        self.model_args = model_args
        self.schedule = schedule
        self.epochs = epochs
        self.loss = loss
        self.teacher_loss = teacher_loss
        self.teacher = teacher
        self.batch_size = batch_size
        self.lr = lr
        self.anneal = anneal
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.eps = eps
        self.step_size = step_size
        self.attack = attack
        self.attack_steps = attack_steps
        self.eval_steps = eval_steps
        self.ema_decay = ema_decay
        self.clip_grad = clip_grad
        self.awp = awp
        self.augment = augment
        self.compile_teacher = compile_teacher
        self.sync_batch_norm = sync_batch_norm
        self.keep_best = keep_best
        self.n_watch = n_watch
        self.n_labels = n_labels
        self.label_choice = label_choice
        self.label_rounds = label_rounds
        self.n_jobs = n_jobs
        self.n_calibration = n_calibration
        self.num_classes = num_classes
        self.val_fraction = val_fraction
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.warm_start = warm_start
        self.progress = progress
        self.log_dir = log_dir
        self.checkpoint_seconds = checkpoint_seconds

    # -- fitting ------------------------------------------------------------------------------

    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(
        self,
        X: Any,
        y: Any = None,
        val_loader: Any = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
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
        checkpoint_dir : path, default=None
            A folder for checkpoints and labels. If it holds those of a run with the same settings
            and data, `fit` goes on from there and says from where.

        Returns
        -------
        ProARDEstimator
            Itself, fitted.

        Raises
        ------
        ValueError
            If a parameter or the data is not usable, or ``checkpoint_dir`` holds a run of other
            settings (the message names the difference); before any training starts. What was
            fitted before stays as it was.
        TrainingFailedError
            If training fails again after three returns to the last good state.
        KeyboardInterrupt, SystemExit
            On Ctrl-C or SIGTERM: after a checkpoint, within one batch. The estimator then has
            ``supernet_`` as it is and no labels, of an earlier fit either: it can predict and
            extract, not search. `fit` with the same ``checkpoint_dir`` goes on.

        Notes
        -----
        Under ``torchrun --nproc-per-node N`` the processes train together; each ends with the same
        fitted estimator.
        """
        from ._fitting import fit

        fit(self, X, y, val_loader, checkpoint_dir)
        return self

    def label(
        self,
        n_labels: int,
        X: Any = None,
        y: Any = None,
        *,
        record: str | os.PathLike[str] | None = None,
        replace: bool = False,
    ) -> Self:
        """Measure more students, after `fit` or `load`, and fit the predictor to all.

        Parameters
        ----------
        n_labels : int
            How many there shall be in all. Where there are as many already, nothing is done.
        X, y
            The validation data of `fit`, as `score` takes it, where it is not at hand: after `load`.
            Never the test split: what is chosen by it can no longer be tested on it.
        record : path, default=None
            A file that gets a line for each student as it is measured; a call that was stopped goes on
            from it. `fit` leaves one in its ``checkpoint_dir``: ``labels.jsonl``.
        replace : bool, default=False
            Measure all anew, first those that have been: with other data or settings.

        Returns
        -------
        ProARDEstimator
            Itself, with another ``labels_``, ``predictor_`` and ``predictor_score_``.

        Raises
        ------
        ValueError
            If the labels at hand were measured on other images, weights or attacks (the message names
            the difference), or there are fewer students.
        RuntimeError
            If there is no validation data.
        NotFittedError
            Before `fit`.
        """
        from ._labelling import label_more

        check_is_fitted(self, "labels_")
        label_more(self, n_labels, X, y, record, replace)
        return self

    def _cost(self, arch: Architecture) -> supernets.Cost:
        cost: supernets.Cost = self.supernet_.cost(arch, self.image_size_)
        return cost

    def _budget(self) -> AttackBudget:
        return AttackBudget(self.eps, self.step_size, self.attack_steps, self.attack)

    def _attack(self, name: str, eps: float | None = None, steps: int | None = None) -> AttackSettings:
        steps = self.eval_steps if steps is None and name in ITERATED else steps
        eps = self.eps if eps is None else finite_number("eps", eps)
        return AttackSettings(name, eps, self.step_size * (eps / self.eps), steps)

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
            ``mutation_prob``, ``seed``, ``storage``, ``study_name``, ``refine``, ``warm_start``. By
            default the best labelled students that keep the limits join the first generation.

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
        from ._searching import search

        check_is_fitted(self, "predictor_")
        return search(self, max_flops, verify, constraints)

    def measure(self, arch: Architecture) -> Label:
        """Measure one student's natural and robust accuracy on the validation part of `fit`'s data.

        Raises
        ------
        RuntimeError
            If there is no such part: the estimator was loaded, or its training was stopped.
        """
        from ._labelling import measure

        check_is_fitted(self, "supernet_")
        return measure(self, arch)

    def extract(self, arch: Architecture | dict[str, Any] | None = None) -> StudentNet:
        """Return a student as a plain timm model in eval mode, calibrated on training images.

        Parameters
        ----------
        arch : Architecture or dict, default=None
            None is the largest student.
        """
        check_is_fitted(self, "supernet_")
        arch = Architecture.from_dict(arch) if isinstance(arch, dict) else arch
        student: StudentNet = self.supernet_.extract(arch or self.supernet_.space.largest)
        height, width = self.image_size_
        student.pretrained_cfg |= {
            "input_size": (self.in_chans_, height, width),
            "pool_size": student.feature_size(self.image_size_),
            "num_classes": len(self.classes_),
            "label_names": [str(c) for c in self.classes_],
        }
        training = {**self.training_, "n_images": self.n_train_}
        student.metadata = {"seed": self.seed_, "training": training, "supernet_weights": checksum(self.supernet_)}
        return calibrate(student.to(memory_format=torch.contiguous_format), self.calibration_images_).eval()

    # -- prediction with the largest student --------------------------------------------------

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class probabilities of the largest student, shape (n, n_classes).

        Parameters
        ----------
        X : array-like, Dataset or loader
            As in `fit`; labels are ignored.
        """
        images = self._images(X)
        return all_logits(self.supernet_, images).double().softmax(1).cpu().numpy()

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
            With arrays only.

        Raises
        ------
        ValueError
            If weights or labels are given with a Dataset or loader.
        """
        check_is_fitted(self, "supernet_")
        if y is not None:
            from .data.inputs import is_loader_or_dataset
            from .data.labels import are_places, encode_known_labels

            if is_loader_or_dataset(X):
                raise ValueError(f"y was given with a {type(X).__name__}, which yields labels itself; allowed: y=None")
            y = np.asarray(y.detach().cpu() if isinstance(y, torch.Tensor) else y)
            if y.ndim == 1 and are_places(y.tolist(), self.classes_.tolist()):
                y = self.classes_[encode_known_labels(y, self.classes_)]
            return float(accuracy_score(y, self.predict(X), sample_weight=sample_weight))
        if sample_weight is not None:
            raise ValueError("sample_weight goes with arrays and y; a Dataset or loader is scored without weights")
        return self.evaluate(X, attack="natural").accuracy

    def robust_score(
        self, X: Any, y: Any = None, attack: str = "pgd", eps: float | None = None, steps: int | None = None
    ) -> float:
        """Return the largest student's accuracy under an attack, in [0, 1].

        Parameters
        ----------
        X, y
            As for `score`.
        attack : {'pgd', 'cw', 'fgsm', 'square', 'autoattack', 'autoattack-reference'}, default='pgd'
            The last needs the extra ``autoattack``; a result says which AutoAttack was run.
        eps : float, default=None
            None is the estimator's ``eps``. Steps of PGD and CW are ``step_size * eps / self.eps`` long.
        steps : int, default=None
            Of PGD and CW, None being the estimator's ``eval_steps``; queries of Square, None being 5,000.
        """
        return self.evaluate(X, y, attack=attack, eps=eps, steps=steps).accuracy

    def evaluate(
        self,
        X: Any,
        y: Any = None,
        *,
        student: torch.nn.Module | Architecture | dict[str, Any] | None = None,
        attack: str = "pgd",
        eps: float | None = None,
        steps: int | None = None,
        check_masking: bool = False,
    ) -> Evaluation:
        """Measure a student (by default the largest) on data; see `robust_score` for the parameters.

        ``student`` is a network, or an architecture of the supernet's, of which the student is extracted.

        With ``check_masking`` the result's ``masking`` says whether the figure may be too high because
        gradients are masked; see `proard_nas.evaluation.check_gradient_masking`.
        """
        check_is_fitted(self, "supernet_")
        check_name("attack", attack, ("natural", *ATTACKS))
        settings = self._attack(attack, eps, steps)
        if settings.name in ITERATED and settings.steps is not None:
            warn_if_short(settings.title, settings.eps, settings.step_size, settings.steps)
        source = self.encoder_source(X, y)
        if isinstance(student, (Architecture, dict)):
            student = self.extract(student)
        if not isinstance(student, (torch.nn.Module, type(None))):
            raise TypeError(f"student must be a network or an Architecture, got {student!r}")
        network = self.supernet_ if student is None else student
        return evaluate(network, source, settings, seed=self.seed_, check_masking=check_masking)

    def encoder_source(self, X: Any, y: Any = None) -> Source:
        """Return data in the library's form, checked against what the estimator was fitted on."""
        from .data import check_columns, labelled_source

        check_columns(self, X)
        return labelled_source(X, y, self.encoder_, self.classes_, self.batch_size)

    def _images(self, X: Any) -> Iterator[torch.Tensor]:
        from .data import check_columns, image_batches

        check_is_fitted(self, "supernet_")
        check_columns(self, X)
        return image_batches(X, self.encoder_, 256)

    # -- saving -------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], *, dtype: str | None = None) -> None:
        """Save supernet, labels, predictor and settings to a folder; nothing is pickled.

        Losses of one's own are saved by their names alone: to use the estimator needs none of them, another
        `fit` has to be given them again.

        Parameters
        ----------
        folder : path
            Made, or replaced if it holds a saved estimator and nothing else.
        dtype : {'float32', 'float16', 'bfloat16'}, default=None
            Number format of the supernet's stored weights; None is their own, and nothing is lost.
            With any, the predictor's numbers keep six digits.
        """
        from ._estimator_io import save_estimator

        check_is_fitted(self, "predictor_")
        save_estimator(self, folder, dtype)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | None = None) -> Self:
        """Load what `save` wrote, for another ``device`` where one is given; nothing is unpickled."""
        from ._estimator_io import load_estimator

        return load_estimator(cls, folder, device)

    @classmethod
    def from_pretrained(cls, model: str = "proard_dyn_resnet_small", device: str | None = None) -> Self:
        """Return the trained estimator that comes with the library for a supernet; needs no network.

        Parameters
        ----------
        model : str, default='proard_dyn_resnet_small'
            ``proard_nas.PRETRAINED`` lists the supernets that there is one for.
        device : str, default=None
            None is ``'auto'``.

        Raises
        ------
        ValueError
            If there is none; names those there are.

        Examples
        --------
        >>> from proard_nas import ProARDEstimator
        >>> est = ProARDEstimator.from_pretrained('proard_dyn_resnet_small')   # doctest: +SKIP
        >>> student = est.search(max_flops=10).extract()                       # doctest: +SKIP
        """
        from . import _shipped

        estimator = cls.load(_shipped.folder(model), device)
        estimator.supernet_.metadata.pop("load", None)  # what is saved of it is loaded from its own folder
        return estimator

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        tags.input_tags.sparse = False
        tags.non_deterministic = False
        return tags
