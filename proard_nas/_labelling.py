"""How `fit`, and later `label`, choose and measure students, all at once or in rounds, and fit the predictor."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib  # type: ignore[import-untyped]
import numpy as np
import torch

from . import distributed
from ._errors import check_name
from ._numbers import whole_number
from ._random import derive_seed
from .data import ArraySource, Source
from .evaluation import Label, Labels, label_students
from .evaluation.labels import IMAGES, record_parts
from .evaluation.population import images_checksum, label_student
from .supernets import Architecture, Supernet
from .training import exit_at_sigterm, labelling_macs

if TYPE_CHECKING:
    from .estimator import ProARDEstimator
    from .search import AccuracyPredictor

logger = logging.getLogger(__name__)

CHOICES = ("uniform", "active")
LEAST_LABELS = 12  # ten to fit the predictor and two to judge it

File = str | os.PathLike[str] | None


# -- what fit and label do --------------------------------------------------------------------


@exit_at_sigterm()
def label_first(estimator: ProARDEstimator, val: Source, record: File) -> None:
    """Label the students that `ProARDEstimator.fit` asks for, and fit the predictor."""
    val = on_device(val, estimator.device_)
    labels = Labels((), _settings(estimator, val))
    _finish(estimator, _extended(estimator, labels, estimator.n_labels, val, record), val)


@exit_at_sigterm()
def label_more(estimator: ProARDEstimator, n_labels: int, X: Any, y: Any, record: File, replace: bool) -> None:
    """Bring the labelled students up to a number; see `ProARDEstimator.label`."""
    check_parameters(estimator)
    check_n_labels(n_labels, estimator.supernet_.space.size)
    with distributed.process_group(estimator.device_):
        val, known = _validation(estimator, X, y), estimator.labels_
        settings = _settings_now(estimator, val, X is None)
        if replace:
            known = _measured(estimator, Labels((), settings), known.architectures[:n_labels], val, record)
        else:
            _check_same(known.settings, settings)
        labels = _extended(estimator, known, n_labels, val, record)
    if labels is estimator.labels_:
        logger.info("%d students are labelled already, %d were asked for", len(labels), n_labels)
        estimator._val = val
    else:
        _finish(estimator, labels, val)


def known_or_measured(
    estimator: ProARDEstimator, architectures: Sequence[Architecture], X: Any = None, y: Any = None
) -> Labels:
    """Return students' labels on validation images: those at hand, if measured just so, and else new ones."""
    val, known = _validation(estimator, X, y), estimator.labels_
    settings = _settings_now(estimator, val, X is None)
    same = all(known.settings.get(name) == value for name, value in settings.items())
    found = {label.architecture: label for label in known.students} if same else {}
    new = _label_students(estimator, [arch for arch in architectures if arch not in found], val)
    found |= {label.architecture: label for label in new.students}
    return Labels(tuple(found[arch] for arch in architectures), settings)


def measure(estimator: ProARDEstimator, arch: Architecture) -> Label:
    """Measure one student on the validation images at hand; see `ProARDEstimator.measure`."""
    val, attack = _validation(estimator, None, None), estimator._attack("pgd")
    seed = derive_seed(estimator.seed_, "labels")
    return label_student(estimator.supernet_, arch, val, estimator.calibration_images_, attack, seed=seed)


def expected_macs(estimator: ProARDEstimator, supernet: Supernet, n_labels: int, n_images: int) -> float:
    """Return an upper bound of the multiply-accumulates that so many labels cost."""
    sample = [supernet.cost(supernet.space.sample(i), estimator.image_size_).macs for i in range(20)]
    n_calibration = len(estimator.calibration_images_)
    return labelling_macs(n_labels, n_images, n_calibration, estimator.eval_steps, float(np.mean(sample)))


def on_device(source: Source, device: torch.device) -> Source:
    """Return images held in memory on a device, and any other source as it is."""
    return source.to(device) if isinstance(source, ArraySource) else source


# -- checks -----------------------------------------------------------------------------------


def check_parameters(estimator: ProARDEstimator) -> None:
    """Raise ValueError if a parameter that says how to choose or measure students is not usable."""
    check_name("label_choice", estimator.label_choice, CHOICES)
    whole_number("label_rounds", estimator.label_rounds, 1)
    jobs = estimator.n_jobs
    if jobs is not None and (not isinstance(jobs, (int, np.integer)) or isinstance(jobs, bool) or jobs == 0):
        raise ValueError(f"n_jobs must be None or an integer other than 0 (-1 is one for each core), got {jobs!r}")


def check_n_labels(n_labels: int, n_students: int) -> None:
    """Raise ValueError if a predictor cannot be fitted to so many labels, or there are not so many students."""
    whole_number("n_labels", n_labels, LEAST_LABELS)
    if n_labels > n_students:
        raise ValueError(f"n_labels={n_labels} is more than the {n_students} students there are")


def _validation(estimator: ProARDEstimator, X: Any, y: Any) -> Source:
    if X is not None:
        return on_device(estimator.encoder_source(X, y), estimator.device_)
    if y is not None:
        raise ValueError("y was given without X; give both, or neither for the validation images of fit")
    check_validation(estimator)
    val: Source = estimator._val
    return val


def check_validation(estimator: ProARDEstimator) -> None:
    """Raise RuntimeError if an estimator has no validation images: one that was loaded, or was stopped in training."""
    if not hasattr(estimator, "_val"):
        raise RuntimeError(
            "the estimator has no validation data, as after loading, or a fit that was stopped; give it to label as X "
            "and y, go on with fit, or use evaluate"
        )


def check_same_images(estimator: ProARDEstimator, X: Any, y: Any) -> None:
    """Raise ValueError if the labels are known to be of other images: then some of these may have been trained on."""
    known = estimator.labels_.settings.get(IMAGES)
    if known is not None and images_checksum(estimator.encoder_source(X, y)) != known:
        raise ValueError(
            f"these are not the images that the estimator's labels were measured on ({IMAGES}={known!r}), so they may "
            "be ones it was trained on; allowed: the data of fit with its images in the same order, or validation data "
            "of its own"
        )


def _check_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ValueError if labels were measured with other settings; those that an older file lacks do not count."""
    other = [name for name in wanted if name in found and found[name] != wanted[name]]
    if other:
        named = "; ".join(f"{name}={found[name]!r}, now {wanted[name]!r}" for name in other)
        hint = "Give the validation images of fit and its settings, or replace=True, which"
        if other == ["weights"]:
            hint = "The weights were rounded by save to its dtype, or changed; allowed: replace=True, which"
        raise ValueError(
            f"the labels at hand were measured with {named}: they cannot be mixed. {hint} measures all students anew"
        )


# -- measuring --------------------------------------------------------------------------------


def _measured(
    estimator: ProARDEstimator, labels: Labels, architectures: Sequence[Architecture], val: Source, record: File
) -> Labels:
    """Return the labels with those of further students; what an earlier run spent on these is counted, too."""
    supernet = estimator.supernet_
    before = distributed.from_main(_seconds_on_record(record, architectures))  # nobody adds to it before all know it
    counted = copy.deepcopy(estimator.spent_)
    try:
        with estimator.spent_.measure("labelling", estimator.device_) as spent:
            # Without work, only so that the energy's counter is read on the way: it wraps.
            new = _label_students(estimator, architectures, val, record, on_label=lambda label: spent.add())
            macs = expected_macs(estimator, supernet, len(new), len(val))
            spent.add(macs=macs, images=len(new) * len(val), steps=len(new))
    except BaseException:
        if record is not None:  # whose seconds the call that goes on from it counts
            estimator.spent_ = counted
        raise
    if before:
        workers = joblib.effective_n_jobs(estimator.n_jobs) * distributed.world_size()
        estimator.spent_.entries["labelling"].add(seconds=before / workers, energy_joules=None)
    return Labels(labels.students + new.students, labels.settings)


def _seconds_on_record(record: File, architectures: Sequence[Architecture]) -> float:
    """Return how long the students took that a record holds already, by one process after another."""
    if record is None:
        return 0.0
    labels = [label for part in record_parts(Path(record)) for label in Labels.load(part).students]
    seconds = {label.architecture: label.seconds for label in labels}
    return sum(seconds.get(arch, 0.0) for arch in architectures)


def _label_students(
    estimator: ProARDEstimator,
    architectures: Sequence[Architecture],
    val: Source,
    record: File = None,
    on_label: Callable[[Label], object] | None = None,
) -> Labels:
    return label_students(
        estimator.supernet_,
        architectures,
        val,
        estimator.calibration_images_,
        attack=estimator._attack("pgd"),
        seed=derive_seed(estimator.seed_, "labels"),
        n_jobs=estimator.n_jobs,
        record=record,
        progress=estimator.progress,
        on_label=on_label,
    )


def _settings(estimator: ProARDEstimator, val: Source) -> dict[str, Any]:
    """Return how labels on these images are measured: of no student, so that nothing is."""
    settings = _label_students(estimator, [], val).settings
    return {**settings, IMAGES: settings[IMAGES] or images_checksum(val)}


def _settings_now(estimator: ProARDEstimator, val: Source, own: bool) -> dict[str, Any]:
    """Return `_settings` of a fitted estimator, to be compared with its labels'; ``own`` are those very images."""
    settings = _settings(estimator, val)
    if own:  # a dataset's random transforms give them another checksum each time
        settings[IMAGES] = estimator.labels_.settings.get(IMAGES, settings[IMAGES])
    return settings


# -- choosing ---------------------------------------------------------------------------------


def _extended(estimator: ProARDEstimator, labels: Labels, n_labels: int, val: Source, record: File) -> Labels:
    """Return ``n_labels`` labels, those given among them, after one round or several."""
    active = estimator.label_choice == "active"
    for total in rounds(len(labels), n_labels, estimator.label_rounds if active else 1):
        choose = _actively if active and len(labels) else _uniformly
        chosen = distributed.from_main(choose(estimator, labels, total - len(labels)))
        labels = _measured(estimator, labels, chosen, val, record)
    return labels


def rounds(n_known: int, n_labels: int, n_rounds: int) -> list[int]:
    """Return how many labels there are after each round; the first is large enough to fit a predictor.

    Examples
    --------
    >>> rounds(0, 2000, 4), rounds(0, 30, 4), rounds(500, 600, 2)
    ([500, 1000, 1500, 2000], [12, 15, 22, 30], [550, 600])
    """
    ends = {max(LEAST_LABELS, round(end)) for end in np.linspace(n_known, n_labels, n_rounds + 1)[1:]}
    return sorted(end for end in ends if end > n_known)


def _uniformly(estimator: ProARDEstimator, labels: Labels, n: int) -> list[Architecture]:
    """Go on with the students that one draw of all would have given."""
    known = set(labels.architectures)
    drawn = estimator.supernet_.space.sample_distinct(len(known) + n, derive_seed(estimator.seed_, "labels"))
    return [arch for arch in drawn if arch not in known][:n]


def _actively(estimator: ProARDEstimator, labels: Labels, n: int) -> list[Architecture]:
    from .search.active import choose_architectures

    predictor = _predictor(estimator).fit(labels.architectures, labels.accuracies)
    seed = derive_seed(estimator.seed_, "labels", "choice", len(labels))
    return choose_architectures(predictor, n, labels.architectures, seed=seed)


# -- the predictor ----------------------------------------------------------------------------


def _predictor(estimator: ProARDEstimator) -> AccuracyPredictor:
    from .search import AccuracyPredictor

    seed = derive_seed(derive_seed(estimator.seed_, "labels"), "predictor")
    return AccuracyPredictor(estimator.supernet_.space, estimator._cost, random_state=seed)


def _finish(estimator: ProARDEstimator, labels: Labels, val: Source) -> None:
    """Fit the predictor to all labels, and only now change the estimator."""
    predictor, seed = _predictor(estimator), derive_seed(estimator.seed_, "labels")
    score = predictor.holdout(labels.architectures, labels.accuracies, seed=seed)
    estimator.labels_, estimator.predictor_, estimator.predictor_score_ = labels, predictor, score
    estimator._val, estimator.n_val_ = val, len(val)
