"""Whatever a user gives as data, turned into a checked training and validation part and a summary."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from proard_nas._numbers import whole_number
from proard_nas.data.checks import check_label_range, check_pixels, check_several_classes
from proard_nas.data.encoding import ArrayEncoder
from proard_nas.data.inputs import class_names, is_array_like, is_loader_or_dataset, is_pair_of_arrays, source_of
from proard_nas.data.labels import check_codes, encode_known_labels, encode_labels
from proard_nas.data.loaders import DatasetSource, LoaderSource
from proard_nas.data.scanning import Scan, scan
from proard_nas.data.sources import ArraySource, Source
from proard_nas.data.splitting import check_fraction, split_indices

logger = logging.getLogger(__name__)

Kind = Literal["table", "images", "dataset", "loader"]


@dataclasses.dataclass(frozen=True, eq=False)
class DataSummary:
    """What the data is.

    Parameters
    ----------
    n_train, n_val : int
        Number of images of the two parts.
    in_chans : int
        Channels of an image.
    image_size : tuple of int
        (height, width) in pixels.
    num_classes : int
        Number of classes C.
    classes : ndarray of shape (C,)
        What the labels 0..C-1 stand for: the labels given with arrays, the names of a dataset with ``classes``, or
        0..C-1.
    mean, std : tuple of float
        Of each channel over the training part; the standard deviation is at least 0.01.
    kind : {'table', 'images', 'dataset', 'loader'}
        What was given: 2-D arrays, image arrays, a dataset (or a loader of one), or a loader used as it is.
    labels : str
        Checksum of the labels of both parts, in order; of a loader used as it is, which may shuffle, of the number of
        images in each class.
    """

    n_train: int
    n_val: int
    in_chans: int
    image_size: tuple[int, int]
    num_classes: int
    classes: NDArray[Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: Kind
    labels: str


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedData:
    """Data ready for training.

    Parameters
    ----------
    train, val : Source
        The two parts, which share no image unless they were given so.
    summary : DataSummary
        What they are.
    scaler : ArrayEncoder
        Turns arrays given at predict time into images like these.
    """

    train: Source
    val: Source
    summary: DataSummary
    scaler: ArrayEncoder


def prepare(
    data: Any,
    y: Any = None,
    *,
    val_data: Any = None,
    val_fraction: float = 0.1,
    num_classes: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    estimator_name: str = "ProARDEstimator",
    in_chans: int | None = None,
) -> PreparedData:
    """Check all data in one pass and split a validation part off where none is given.

    Parameters
    ----------
    data : array-like, Dataset or iterable
        Arrays X, with ``y``: float images (n, channels, height, width) or (n, height, width) in [0, 1], or a table
        (n, features). Or a map-style dataset of (image, label) pairs. Or any object that yields (images, labels) on
        every pass, such as a DataLoader, timm's PrefetchLoader or a list of batches.
    y : array-like of shape (n,), optional
        Labels of any discrete type; with arrays only.
    val_data : optional
        Validation data, used as it is: a tuple (X, y) of arrays, a dataset or a loader.
    val_fraction : float, default=0.1
        Share of the training data that becomes the validation part where ``val_data`` is None. It is drawn by class.
        A dataset's random transforms act on that part, too; pass ``val_data`` to avoid it.
    num_classes : int, optional
        Number of classes; None takes it from the data.
    batch_size : int, default=128
        Images in each batch of the pass, where a loader has no size of its own.
    seed : int, default=0
        Decides the split.
    estimator_name : str, default='ProARDEstimator'
        Named in the errors, as scikit-learn does.
    in_chans : int, optional
        Channels that the network takes: images are converted between grey (1) and RGB (3), see `to_channels`. None
        keeps those that the data has.

    Returns
    -------
    PreparedData
        The training and validation parts, the summary and the encoder for later arrays.

    Raises
    ------
    ValueError
        If anything could not be trained on; says what was given and what is allowed.
    TypeError
        If ``data`` is sparse, or of a type that holds no data.
    """
    if num_classes is not None:
        whole_number("num_classes", num_classes, 2)
    if val_data is None:
        check_fraction(val_fraction)
    elif is_array_like(val_data):
        raise ValueError("val_data is an array without labels; allowed: a tuple (X, y), a Dataset or a loader")
    request = _Request(val_data, val_fraction, num_classes, batch_size, seed, estimator_name, in_chans)
    if y is None and is_pair_of_arrays(data):
        data, y = data
    if y is not None and is_loader_or_dataset(data):
        raise ValueError(
            f"y was given together with a {type(data).__name__}, which yields labels itself; allowed: y=None"
        )
    if y is not None or is_array_like(data):
        return _prepare_arrays(data, y, request)
    return _prepare_loaded(data, request)


@dataclasses.dataclass(frozen=True)
class _Request:
    val_data: Any
    val_fraction: float
    num_classes: int | None
    batch_size: int
    seed: int
    estimator_name: str
    in_chans: int | None


def _prepare_arrays(x: Any, y: Any, request: _Request) -> PreparedData:
    from sklearn.utils import check_consistent_length

    encoder = ArrayEncoder(request.estimator_name, request.in_chans)
    x = encoder.validate(x)
    codes, classes = encode_labels(y, request.num_classes, request.estimator_name)
    check_consistent_length(x, codes)
    if request.val_data is None:
        train_rows, val_rows = split_indices(codes, request.val_fraction, request.seed)
        x_train, codes_train = x[train_rows], codes[train_rows]
    else:
        x_train, codes_train = x, codes
    encoder.fit(x_train)
    train = ArraySource(encoder.transform(x_train), torch.from_numpy(codes_train))
    if request.val_data is None:
        val: Source = ArraySource(encoder.transform(x[val_rows]), torch.from_numpy(codes[val_rows]))
    else:
        val = _given_validation(encoder, classes, request)
    found = scan(train, batch_size=request.batch_size, num_classes=len(classes))
    kind: Kind = "images" if encoder.n_features is None else "table"
    return _finish(train, val, found, None, codes, classes, encoder, kind, request)


def _prepare_loaded(data: Any, request: _Request) -> PreparedData:
    source = source_of(data, request.batch_size, request.in_chans)
    if request.val_data is None and isinstance(source, LoaderSource):
        _refuse_to_split(source, data)
    found = scan(source, batch_size=request.batch_size, num_classes=request.num_classes)
    check_several_classes(np.unique(found.labels).tolist())
    classes = _classes_of(data, found, request.num_classes)
    encoder = ArrayEncoder.for_images(found.image_shape, request.estimator_name, request.in_chans)
    kind: Kind = "dataset" if isinstance(source, DatasetSource) else "loader"
    if request.val_data is not None or isinstance(source, LoaderSource):
        val = _given_validation(encoder, classes, request)
        return _finish(source, val, found, None, found.labels, classes, encoder, kind, request)
    if len(found) != len(source):
        raise ValueError(
            f"the loader yields {len(found)} images from a dataset of {len(source)}, so it cannot be split; "
            "pass val_loader with the data to validate on"
        )
    train_rows, val_rows = split_indices(found.labels, request.val_fraction, request.seed)
    train, val = source.take(train_rows), source.take(val_rows)
    return _finish(train, val, found, train_rows, found.labels, classes, encoder, kind, request)


def _finish(
    train: Source,
    val: Source,
    found: Scan,
    train_rows: NDArray[np.int64] | None,
    labels: NDArray[np.int64],
    classes: NDArray[Any],
    encoder: ArrayEncoder,
    kind: Kind,
    request: _Request,
) -> PreparedData:
    n_train = len(found) if train_rows is None else len(train_rows)
    channels, height, width = shape = found.image_shape
    labelled = [(train, labels)]
    if request.val_data is not None:
        seen = scan(val, batch_size=request.batch_size, num_classes=len(classes), image_shape=shape, name="validation")
        labelled.append((val, seen.labels))
    n_val = len(val)
    mean, std = found.channel_stats(train_rows)
    summary = DataSummary(
        n_train, n_val, channels, (height, width), len(classes), classes, mean, std, kind, _checksum(labelled)
    )
    logger.info("%d training and %d validation images of shape %s, %d classes", n_train, n_val, shape, len(classes))
    return PreparedData(train, val, summary, encoder)


def _checksum(labelled: Sequence[tuple[Source, NDArray[np.int64]]]) -> str:
    value = 0
    for source, labels in labelled:
        ordered = np.bincount(labels) if isinstance(source, LoaderSource) else labels
        value = zlib.crc32(ordered.astype("<i8").tobytes(), value)
    return f"{value:08x}"


def _given_validation(encoder: ArrayEncoder, classes: NDArray[Any], request: _Request) -> Source:
    if not is_pair_of_arrays(request.val_data):
        check_codes(classes, class_names(request.val_data))
        return source_of(request.val_data, request.batch_size, request.in_chans)
    from sklearn.utils import check_consistent_length

    x = encoder.transform(request.val_data[0])
    codes = encode_known_labels(request.val_data[1], classes, request.estimator_name)
    check_consistent_length(x, codes)
    return ArraySource(x, torch.from_numpy(codes))


def _refuse_to_split(source: LoaderSource, data: Any) -> NoReturn:
    """Raise the error that asks for validation data, or an earlier one if the first batch is already wrong."""
    images, labels = next(source.batches(1))
    check_pixels(images, "batch 0 of the training data")
    check_label_range(labels, None, "batch 0 of the training data")
    raise ValueError(
        f"no validation part can be split off a {type(data).__name__}, only off arrays, a map-style Dataset, or a "
        "DataLoader of one with torch's own sequential or random sampler; pass val_loader with data to validate on"
    )


def _classes_of(data: Any, found: Scan, num_classes: int | None) -> NDArray[Any]:
    names = class_names(data)
    n_found = int(found.labels.max()) + 1
    if names is not None and n_found <= len(names) and num_classes in (None, len(names)):
        return np.array(names)
    return np.arange(num_classes or n_found)
