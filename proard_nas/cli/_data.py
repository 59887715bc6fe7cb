"""Data on the command line: the flags that name it, and the part that a command may see."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._flags import size

if TYPE_CHECKING:
    from proard_nas import ProARDEstimator

Size = tuple[int, int] | None  # of images where the command line names none; archives keep theirs
DATA = "an .npz archive, a folder of images, or a data set of timm's such as torch/cifar10"


def add_data(
    parser: argparse.ArgumentParser, purpose: str, *, required: bool = False, validation: bool = False
) -> None:
    """Add ``--data`` and the flags that say how to read it.

    Parameters
    ----------
    parser : ArgumentParser
    purpose : str
        What the data is for, and which part of it is read.
    required, validation : bool, default=False
        Whether it must be given; whether there are flags for validation data of its own.
    """
    group = parser.add_argument_group("data")
    group.add_argument("--data", required=required, help=f"{purpose}: {DATA}")
    group.add_argument("--root", metavar="FOLDER", help="where a named data set is, or is downloaded to")
    group.add_argument("--download", action="store_true", help="download a named data set that is not there")
    group.add_argument("--split", metavar="NAME", help="the part of a named data set (default: train or test)")
    group.add_argument(
        "--image-size",
        type=size,
        metavar="SIDE|HxW",
        help="pixels that images of a folder or data set are resized to (default: what the network takes; a data set "
        "of torch/ keeps its own)",
    )
    if validation:
        group.add_argument("--val-data", metavar="DATA", help="validation data of its own; never the test data")
        group.add_argument("--val-split", metavar="NAME", help="the validation part of a named data set")


def check_no_data(arguments: argparse.Namespace, flag: str) -> None:
    """Raise ValueError if data are named, which only another flag, that was not given, would read."""
    names = [
        f"--{name.replace('_', '-')}" for name in ("data", "val_data", "val_split") if getattr(arguments, name, None)
    ]
    if names:
        raise ValueError(f"{' and '.join(names)}: data are for {flag}, which was not given")


def training_data(arguments: argparse.Namespace, image_size: Size = None) -> tuple[Any, Any]:
    """Open the training part of ``--data``."""
    return _open(arguments, arguments.data, "train", image_size, split=arguments.split)


def own_validation(arguments: argparse.Namespace, classes: Sequence[str] | None = None, image_size: Size = None) -> Any:
    """Open ``--val-data`` or ``--val-split`` where one is given, as `fit` takes it; else return None."""
    if arguments.val_data is None and arguments.val_split is None:
        return None
    data = arguments.val_data or arguments.data
    if data is None:
        raise ValueError(f"--val-split {arguments.val_split} names a part of --data or --val-data; give one of them")
    x, y = _open(arguments, data, "train", image_size, split=arguments.val_split, classes=classes)
    return x if y is None else (x, y)


def test_data(arguments: argparse.Namespace, classes: Sequence[str], image_size: tuple[int, int]) -> tuple[Any, Any]:
    """Open the test part of ``--data``; the training part is not read."""
    return _open(arguments, arguments.data, "test", image_size, split=arguments.split, classes=classes)


def validation_data(arguments: argparse.Namespace, estimator: ProARDEstimator) -> tuple[Any, Any]:
    """Return what a loaded estimator may be measured on: data of its own, or the part that `fit` held out.

    Raises
    ------
    ValueError
        If ``--data`` is not what the estimator was fitted on: other images, or the same ones in another order. With
        ``--replace``, as many training images are enough.
    """
    from proard_nas._labelling import check_same_images
    from proard_nas._random import derive_seed
    from proard_nas.data import validation_part

    size = estimator.image_size_
    own = own_validation(arguments, [str(name) for name in estimator.classes_], size)
    if own is not None:
        return own if isinstance(own, tuple) else (own, None)
    if arguments.data is None:
        raise ValueError("a loaded estimator has no validation data; give --data (that of fit) or --val-data")
    data = training_data(arguments, size)
    x, y = validation_part(
        *data,
        val_fraction=estimator.val_fraction,
        seed=derive_seed(estimator.seed_, "split"),
        num_classes=estimator.num_classes,
        batch_size=estimator.batch_size,
    )
    n_train = len(data[0]) - len(x)
    if n_train != estimator.n_train_:
        raise ValueError(
            f"--data {arguments.data} has {n_train} training images beside those held out, but the estimator's fit had "
            f"{estimator.n_train_}; allowed: the data of fit, or --val-data"
        )
    if not getattr(arguments, "replace", False):
        check_same_images(estimator, x, y)
    return x, y


def _open(arguments: argparse.Namespace, data: str, part: Any, image_size: Size, **more: Any) -> tuple[Any, Any]:
    from proard_nas.data import open_data

    size = arguments.image_size or (None if Path(data).is_file() else image_size)
    other = {arguments.data, getattr(arguments, "val_data", None)} - {data, None}
    if not Path(data).exists() or all(Path(name).exists() for name in other):  # else they are the other's flags
        more |= {"root": arguments.root, "download": arguments.download}
    return open_data(data, part, image_size=size, **more)
