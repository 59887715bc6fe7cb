"""Which network a command works on: a saved student, or one of an estimator's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from proard_nas import Architecture, ProARDEstimator
    from proard_nas.data import Source
    from proard_nas.search import Candidate
    from proard_nas.supernets import StudentNet


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the flags that pick one of an estimator's students."""
    group = parser.add_argument_group("which student")
    group.add_argument("--result", metavar="FILE", help="what search --out wrote; its best student, or that of -i")
    group.add_argument("-i", "--index", type=int, metavar="I", help="place on the result's front, from 0")
    group.add_argument("--arch", metavar="JSON|FILE", help="an architecture in JSON (default: the largest student)")


def chosen(
    arguments: argparse.Namespace, estimator: ProARDEstimator | None = None
) -> tuple[Architecture | None, Candidate | None]:
    """Return the architecture that the flags pick (None: the largest), and its candidate where it comes from a result.

    With an estimator, the candidate's figures must be of its weights.

    Raises
    ------
    ValueError
        If flags contradict each other.
    RuntimeError
        If the result is of other weights.
    IndexError
        If the front has no such place.
    """
    from proard_nas import Architecture, SearchResult
    from proard_nas.evaluation.population import checksum

    if arguments.result is not None and arguments.arch is not None:
        raise ValueError("--result and --arch were both given; allowed: one of them")
    if arguments.index is not None and arguments.result is None:
        raise ValueError("-i was given without --result, whose front it counts")
    if arguments.result is not None:
        result = SearchResult.load(arguments.result)
        if estimator is not None:
            result.check_weights(checksum(estimator.supernet_))
        if arguments.index is None:
            return result.best.architecture, result.best
        if not -len(result) <= arguments.index < len(result):
            raise IndexError(f"the front has {len(result)} students, numbered from 0; got {arguments.index}")
        candidate = result.front[arguments.index]
        return candidate.architecture, candidate
    if arguments.arch is None:
        return None, None
    text = arguments.arch if arguments.arch.lstrip().startswith("{") else Path(arguments.arch).read_text()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--arch {arguments.arch} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--arch {arguments.arch} holds a {type(found).__name__}; allowed: an architecture in JSON")
    return Architecture.from_dict(found.get("architecture", found)), None  # a student's proard.json holds it, too


def load_student_folder(folder: str, device: str = "auto") -> StudentNet:
    """Return the student saved in a folder, in eval mode."""
    import torch

    from proard_nas._devices import check_device
    from proard_nas.deploy import load_student

    check_device(device)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return load_student(folder).to(name).eval()


def class_names(student: StudentNet) -> list[str]:
    """Return the names of a student's classes; their numbers where it has none."""
    return student.pretrained_cfg.get("label_names") or [str(c) for c in range(student.num_classes)]


def image_shape(student: StudentNet) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images that a student was trained on."""
    channels, height, width = student.pretrained_cfg["input_size"]
    return channels, height, width


def student_source(student: StudentNet, X: Any, y: Any) -> Source:
    """Return data as a source for a saved student: channels as it takes them, labels as its classes are named."""
    from proard_nas.data import ArrayEncoder, labelled_source

    shape, names = image_shape(student), class_names(student)
    numbered = y is None and names == [str(number) for number in range(len(names))]  # what a dataset's labels are
    classes = np.arange(len(names)) if numbered else np.array(names)
    if y is not None and np.ndim(X) == 2:
        raise ValueError(
            "the data is a table, which only the estimator can turn into images; give --estimator FOLDER and --arch "
            "FOLDER/proard.json in place of the student's folder"
        )
    encoder = ArrayEncoder.for_images(shape, "the student", shape[0])
    return labelled_source(X, None if y is None else _named(y, names), encoder, classes, 256)


def _named(y: Any, names: list[str]) -> Any:
    """Return labels as a student's classes are named: numbers too, where these are names; others as they are."""
    text = np.asarray(y).astype(str)
    return text if set(text.ravel().tolist()) <= set(names) else y


def estimator_source(estimator: ProARDEstimator, X: Any, y: Any) -> Source:
    """Return data as a source for an estimator's students; images are converted to the channels they take."""
    from proard_nas.data import ArrayEncoder, labelled_source

    if estimator.encoder_.n_features is not None:
        return estimator.encoder_source(X, y)
    shape = (estimator.in_chans_, *estimator.image_size_)
    encoder = ArrayEncoder.for_images(shape, "the estimator", estimator.in_chans_)
    return labelled_source(X, y, encoder, estimator.classes_, 256)


def add_estimator(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the flags that name an estimator: a folder, or one that comes with the library."""
    either = parser.add_mutually_exclusive_group(required=required)
    either.add_argument("--estimator", metavar="FOLDER", help="a fitted estimator")
    either.add_argument("--model", metavar="NAME", help="with --pretrained: the trained one of this supernet")
    add_pretrained(parser)


def add_pretrained(parser: argparse.ArgumentParser) -> None:
    """Add the flag that turns --model into the trained estimator that comes with the library."""
    parser.add_argument(
        "--pretrained", action="store_true", help="with --model: take the estimator that comes with the library"
    )


def open_estimator(arguments: argparse.Namespace, device: str | None = None) -> ProARDEstimator:
    """Return the estimator that the flags name, on its own device or on another.

    Raises
    ------
    ValueError
        If they name one that is not trained.
    """
    from proard_nas import ProARDEstimator

    if arguments.estimator is not None:
        if arguments.pretrained:
            raise ValueError("--pretrained goes with --model NAME, not with --estimator FOLDER")
        return ProARDEstimator.load(arguments.estimator, device)
    if arguments.model is None:
        raise ValueError("--pretrained goes with --model NAME")
    if not arguments.pretrained:
        raise ValueError(f"--model {arguments.model} is not trained; allowed: with --pretrained, or --estimator FOLDER")
    return ProARDEstimator.from_pretrained(arguments.model, device)
