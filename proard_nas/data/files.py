"""Images read from files: NumPy archives and folders with one sub-folder for each class."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from proard_nas._errors import check_name
from proard_nas.data.checks import CHANNEL_COUNTS

Part = Literal["train", "test"]
PARTS: tuple[Part, ...] = ("train", "test")
UNREADABLE = (AttributeError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)


def load_npz(path: str | Path, part: Part = "train") -> tuple[NDArray[Any], NDArray[Any]]:
    """Read ``x_train`` and ``y_train``, or ``x_test`` and ``y_test``, from a NumPy archive.

    Parameters
    ----------
    path : str or Path
        An ``.npz`` file. 8-bit images, (n, height, width) or (n, height, width, channels), are divided by 255 and put
        channels first; other arrays are returned as they are. Labels of shape (n, 1) become (n,).
    part : {'train', 'test'}, default='train'
        The other part is not read. Pickled objects never are.

    Returns
    -------
    X : ndarray
        float32 images of shape (n, channels, height, width) in [0, 1], or a table of shape (n, features).
    y : ndarray of shape (n,)
        Labels.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the part is not there, ``x_train`` or ``y_train`` is missing, only one of ``x_test`` and ``y_test`` is
        there, or the file is no such archive.
    """
    check_name("part", part, PARTS)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; allowed: an .npz archive with x_train and y_train")
    x, y = f"x_{part}", f"y_{part}"
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{str(path)!r} is no .npz archive, or a damaged one; allowed: what numpy.savez writes")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = list(archive.files)
            arrays = {key: archive[key] for key in (x, y) if key in found}
    except UNREADABLE as error:
        raise ValueError(f"{str(path)!r} is no .npz archive of plain arrays: {error}") from error
    tests = ("x_test", "y_test")
    needed = ("x_train", "y_train", *(tests if any(key in found for key in tests) else ()))
    missing = [key for key in needed if key not in found]
    if missing:
        raise ValueError(f"{str(path)!r} has the keys {found} but not {missing}; allowed: x_train, y_train and, both "
                         "or none, x_test, y_test")  # fmt: skip
    if not arrays:
        raise ValueError(f"{str(path)!r} has no test part; allowed: an archive with x_test and y_test")
    return _images(arrays[x], x), _labels(arrays[y])


def _images(x: NDArray[Any], key: str) -> NDArray[Any]:
    if x.dtype != np.uint8 or x.ndim == 2:
        return x
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in CHANNEL_COUNTS:
        raise ValueError(
            f"{key} has 8-bit images of shape {x.shape}; allowed: (n, height, width[, 1, 3 or 4 channels])"
        )
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def _labels(y: NDArray[Any]) -> NDArray[Any]:
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def image_transform(size: int | tuple[int, int] | None) -> Any:
    """Return what turns a PIL image into a float32 tensor of shape (channels, height, width) in [0, 1].

    Parameters
    ----------
    size : int or tuple of int or None
        Side, or (height, width), in pixels: images are resized to cover it and cropped around their centre. None keeps
        the size they have.
    """
    from torchvision.transforms import Compose, ConvertImageDtype, PILToTensor

    to_float = ConvertImageDtype(torch.float32)
    if size is None:
        return Compose([PILToTensor(), to_float])
    from timm.data.transforms_factory import create_transform

    height, width = (size, size) if isinstance(size, int) else size
    resize = create_transform((3, height, width), crop_pct=1.0, interpolation="bilinear", normalize=False)
    return Compose([resize, to_float])


def load_image(path: str) -> Any:
    """Read an image file as a colour picture of 8 bits; one of 16 bits is scaled, not cut off."""
    from PIL import Image

    with Image.open(path) as image:
        if not image.mode.startswith("I"):
            return image.convert("RGB")
        scaled = (np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8)  # PIL makes all above 255 white
        return Image.fromarray(scaled).convert("RGB")


def image_folder(
    path: str | Path, size: int | tuple[int, int] | None, classes: Sequence[str] | None = None
) -> Dataset[tuple[Tensor, int]]:
    """Return a folder of images, with one sub-folder for each class, as a dataset.

    Parameters
    ----------
    path : str or Path
        The folder; the names of its sub-folders, sorted, are the classes.
    size : int or tuple of int or None
        Side, or (height, width), in pixels. Images are resized to cover it and cropped around their centre. None keeps
        the size they have, which must be the same for all.
    classes : sequence of str, optional
        The classes of the training data: a label is then the place of the sub-folder's name among them, so that a
        test folder may lack some. None numbers the sub-folders.

    Returns
    -------
    Dataset
        A `torchvision.datasets.ImageFolder`: gives (float32 tensor of shape (3, height, width) in [0, 1], label), and
        has ``classes``, the names that the labels stand for.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or a class has no images.
    ValueError
        If a sub-folder is none of ``classes``.
    """
    from torchvision.datasets import ImageFolder

    if not Path(path).is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(path)!r}; allowed: a folder with one sub-folder for each class"
        )
    try:
        dataset = ImageFolder(str(path), transform=image_transform(size), loader=load_image)
    except FileNotFoundError as error:  # which does not say what is allowed
        raise FileNotFoundError(f"{error} Allowed: a folder with one sub-folder of images for each class.") from error
    if classes is not None:
        known = [str(name) for name in classes]
        for name in dataset.classes:
            check_name(f"class (a sub-folder of {str(path)!r})", name, known)
        dataset.target_transform = [known.index(name) for name in dataset.classes].__getitem__
        dataset.classes = known
    return dataset  # type: ignore[no-any-return]
