"""What a batch must look like, and errors that say what was given and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from proard_nas.data.channels import to_channels

CHANNEL_COUNTS = (1, 3, 4)
MOST_CLASSES = 1_000_000
ROUNDING = 1e-5  # resizing and blurring in float32 overshoot [0, 1] by this much at most


def checked(
    batches: Iterable[object], what: str = "the data", in_chans: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Check the form of each batch, cheaply, and yield it as float32 images and int64 labels.

    Parameters
    ----------
    batches : iterable
        Of (images, labels).
    what : str, default='the data'
        Names the data in the errors.
    in_chans : int, optional
        Channels that images are converted to; see `to_channels`.

    Yields
    ------
    tuple of Tensor
        Images of shape (batch, channels, height, width) and labels of shape (batch,). What rounding put outside [0, 1]
        is moved to its ends; values are not checked.

    Raises
    ------
    ValueError
        If a batch has another form, its images another shape than the first batch's, or there is no batch.
    """
    first: tuple[int, ...] | None = None
    for index, batch in enumerate(batches):
        where = f"batch {index} of {what}"
        images, labels = unpack_batch(batch, where)
        check_image_shape(tuple(images.shape), where)
        check_image_dtype(images.dtype, images.is_floating_point(), where)
        check_label_form(labels, len(images), where)
        first = first or tuple(images.shape[1:])
        if tuple(images.shape[1:]) != first:
            raise ValueError(
                f"{where} has images of shape {tuple(images.shape[1:])}, but batch 0 has {first}; allowed: one shape"
            )
        yield to_channels(without_overshoot(images.to(torch.float32)), in_chans, where), labels.to(torch.int64)
    if first is None:
        raise ValueError(
            "the loader is empty: a pass over it yields no batch; allowed: a loader that yields batches on every pass"
        )


def unpack_batch(batch: object, where: str) -> tuple[Tensor, Tensor]:
    """Split what a loader yields into images and labels.

    Parameters
    ----------
    batch : object
        A tuple or list of two: images and labels, each a tensor or an array.
    where : str
        Names the batch in the errors, such as ``'batch 3 of the training data'``.

    Returns
    -------
    tuple of Tensor
        Images and labels as tensors, otherwise unchanged.

    Raises
    ------
    ValueError
        If there are no labels, or anything else than these two.
    """
    allowed = "allowed: a loader that yields pairs (images, labels)"
    if isinstance(batch, (Tensor, np.ndarray)):
        raise ValueError(f"{where} is a single array of shape {tuple(batch.shape)} with no labels; {allowed}")
    if isinstance(batch, Mapping):
        raise ValueError(f"{where} is a dict with the keys {sorted(map(str, batch))}; {allowed}")
    if not isinstance(batch, Sequence) or isinstance(batch, (str, bytes)):
        raise ValueError(f"{where} is a {type(batch).__name__}; {allowed}")
    if len(batch) == 1:
        raise ValueError(f"{where} has images but no labels; {allowed}")
    if len(batch) != 2:
        raise ValueError(f"{where} has {len(batch)} elements; {allowed}")
    return _as_tensor(batch[0], f"the images of {where}"), _as_tensor(batch[1], f"the labels of {where}")


def _as_tensor(value: object, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{what} are a {type(value).__name__} that makes no tensor; allowed: tensors, arrays (of labels, the "
            "numbers 0 to C-1: names are in a dataset's classes, or go with arrays as y)"
        ) from error


def check_image_shape(shape: tuple[int, ...], where: str) -> None:
    """Raise ValueError unless ``shape`` is that of a non-empty batch of channels-first images.

    Parameters
    ----------
    shape : tuple of int
        Shape to check; (n, channels, height, width) is allowed.
    where : str
        Names what was given in the error.
    """
    if len(shape) != 4:
        hint = " (one image? a loader yields batches)" if len(shape) == 3 else ""
        raise ValueError(f"{where} has images of shape {shape}{hint}; allowed: (n, channels, height, width)")
    if 0 in shape:
        raise ValueError(f"{where} is empty: its images have the shape {shape}; allowed: sizes of 1 and above")
    if shape[1] not in CHANNEL_COUNTS and shape[3] in CHANNEL_COUNTS:
        raise ValueError(
            f"{where} has images of shape {shape}, which looks like channels last; allowed: channels first, "
            "(n, channels, height, width). Transpose them: X.transpose(0, 3, 1, 2), for a tensor X.permute(0, 3, 1, 2)."
        )


def check_image_dtype(dtype: object, is_float: bool, where: str) -> None:
    """Raise ValueError, with the way to convert, unless the images are floating point.

    Parameters
    ----------
    dtype : object
        The type of the pixels, for the error.
    is_float : bool
        Whether that is a floating-point type.
    where : str
        Names what was given in the error.
    """
    if not is_float:
        raise ValueError(
            f"{where} has images of type {dtype}; allowed: floating point in [0, 1]. Convert 8-bit images with "
            "X.astype('float32') / 255, for a tensor X.float() / 255, in a dataset transforms.ToTensor()."
        )


def check_pixels(images: Tensor, where: str) -> None:
    """Raise ValueError unless every pixel is finite and in [0, 1].

    Parameters
    ----------
    images : Tensor of shape (n, channels, height, width)
        Images of a floating-point type.
    where : str
        Names what was given in the error.
    """
    low, high = (bound.item() for bound in torch.aminmax(images))
    if math.isnan(low) or math.isnan(high):
        raise ValueError(f"{where} contains NaN pixels; allowed: finite values in [0, 1]")
    if math.isinf(low) or math.isinf(high):
        raise ValueError(f"{where} contains infinity (inf) as a pixel; allowed: finite values in [0, 1]")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"{where} has pixels from {low:.7g} to {high:.7g}; allowed: [0, 1]. Divide 8-bit images by 255, and remove "
            "Normalize from the transforms (for timm's create_loader: mean=(0, 0, 0), std=(1, 1, 1)): normalisation "
            "lives inside the network."
        )


def without_overshoot(images: Tensor) -> Tensor:
    """Return images with what rounding put outside [0, 1] moved to its ends.

    Parameters
    ----------
    images : Tensor of shape (n, channels, height, width)

    Returns
    -------
    Tensor of shape (n, channels, height, width)
        The images themselves where nothing is to be moved, or where pixels that `check_pixels` refuses are left to it.
    """
    low, high = (bound.item() for bound in torch.aminmax(images))
    near = low >= -ROUNDING and high <= 1 + ROUNDING
    return images.clamp(0, 1) if near and (low < 0 or high > 1) else images


def check_given(images: Tensor, image_shape: tuple[int, int, int] | None, where: str) -> None:
    """Raise ValueError unless images have training's shape, where one is asked for, and pixels in [0, 1].

    Parameters
    ----------
    images : Tensor of shape (n, channels, height, width)
    image_shape : tuple of int or None
        (channels, height, width) of training; None allows any.
    where : str
        Names what was given in the error.
    """
    check_pixels(images, where)
    if image_shape is not None and tuple(images.shape[1:]) != image_shape:
        raise ValueError(
            f"{where} has images of shape {tuple(images.shape[1:])}; allowed: {image_shape}, as for training"
        )


def check_label_form(labels: Tensor, n_images: int, where: str) -> None:
    """Raise ValueError unless there is one integer label for each image.

    Parameters
    ----------
    labels : Tensor
        What was given as labels; a shape of (n_images,) and an integer type are allowed.
    n_images : int
        Number of images of the batch.
    where : str
        Names the batch in the error.
    """
    if tuple(labels.shape) != (n_images,):
        raise ValueError(
            f"{where} has {n_images} images but labels of shape {tuple(labels.shape)}; allowed: ({n_images},), one "
            "integer for each image"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{where} has labels of type {labels.dtype}; allowed: integers from 0 to num_classes - 1")


def check_label_range(labels: Tensor, num_classes: int | None, where: str) -> None:
    """Raise ValueError unless the labels lie in 0..num_classes-1 (or are not negative, if it is None).

    Parameters
    ----------
    labels : Tensor of shape (n,)
        Integer labels; at least one.
    num_classes : int or None
        Number of classes, where it is known.
    where : str
        Names the batch in the error.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ValueError(f"{where} has a label of {low}, which is negative; allowed: integers from 0")
    if num_classes is None and high >= MOST_CLASSES:
        raise ValueError(f"{where} has a label of {high}; allowed: 0 to C-1 for C classes, at most {MOST_CLASSES:,}")
    if num_classes is not None and high >= num_classes:
        raise ValueError(
            f"{where} has a label of {high}, which is out of range; allowed: 0 to {num_classes - 1}, for "
            f"num_classes={num_classes}"
        )


def check_several_classes(labels: Sequence[object]) -> None:
    """Raise ValueError unless the distinct labels given are at least two.

    Parameters
    ----------
    labels : sequence
        The distinct labels found in the training data.
    """
    if len(labels) < 2:
        found = ", ".join(map(str, labels))
        raise ValueError(f"the labels hold only one class (1 class: {found}); allowed: samples of at least 2 classes")
