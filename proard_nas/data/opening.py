"""Data by name: an archive, a folder of images, or a data set that timm finds or downloads."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proard_nas._errors import check_name
from proard_nas._numbers import whole_number
from proard_nas.data.files import PARTS, Part, image_folder, image_transform, load_npz

logger = logging.getLogger(__name__)

PACKAGES = {"torch": "torchvision", "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets",
            "wds": "webdataset"}  # fmt: skip
TORCH = ("cifar10", "cifar100", "fashion_mnist", "imagenet", "inat", "inaturalist", "kmnist", "mnist", "places365",
         "qmnist")  # fmt: skip
SIZE = 32
LIKE_PARTS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}


def open_data(
    data: str | Path,
    part: Part = "train",
    *,
    image_size: int | tuple[int, int] | None = None,
    root: str | Path | None = None,
    download: bool = False,
    split: str | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Any, Any]:
    """Open one part of some data, in the form that `ProARDEstimator.fit` and `evaluate` take.

    Parameters
    ----------
    data : str or Path
        An ``.npz`` archive (see `load_npz`); a folder with one sub-folder for each class, or with such folders
        ``train`` and ``test`` in it; or a name of timm's: ``'torch/cifar10'``, ``'hfds/user/name'``, ``'wds/...'``.
    part : {'train', 'test'}, default='train'
        The other part is not read.
    image_size : int or tuple of int, optional
        Side, or (height, width), in pixels, of a folder's or a named data set's images. None is 32, and for ``torch/``
        the size that images have. An archive's images keep theirs; another one is refused.
    root : str or Path, optional
        Where a named data set is, or is downloaded to; ``torch/`` and ``wds/`` need it.
    download : bool, default=False
        Download a named data set that is not there.
    split : str, optional
        The name of the part in a named data set, other than ``torch/``; None is the part's own name.
    classes : sequence of str, optional
        Classes of the training data, by which a folder's labels are given; see `image_folder`.

    Returns
    -------
    X, y
        Arrays, or a dataset and None; ``fit(*open_data(...))``.

    Raises
    ------
    FileNotFoundError
        If there is no such file, folder or name.
    ValueError
        If the part is not there, ``split``, ``root`` or ``download`` is given for a file or folder, ``image_size`` for
        an archive of other images, or training data is asked for from a split called test.
    ImportError
        If timm needs a package for it that is not installed.

    Examples
    --------
    >>> open_data("torch/cifer10", root=".")
    Traceback (most recent call last):
    ValueError: unknown data set of torch/ 'cifer10'; allowed: ... Did you mean 'cifar10'?
    """
    check_name("part", part, PARTS)
    for side in image_size if isinstance(image_size, tuple) else (image_size,):
        if side is not None:
            whole_number("a side of image_size", side, 1)
    path = Path(data)
    if path.exists():
        _refuse_options_of_named_data(data, split=split, root=root, download=download or None)
    prefix = str(data).partition("/")[0].lower()
    if prefix in PACKAGES and not path.exists():
        return _named(str(data), prefix, part, image_size, root, download, split), None
    if path.is_dir():
        return image_folder(_part_of_folder(path, part), image_size or SIZE, classes), None
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file or folder {str(data)!r}; allowed: an .npz archive, a folder of images, or a name that "
            f"begins with {', '.join(f'{name}/' for name in PACKAGES)}"
        )
    x, y = load_npz(path, part)
    _check_size_of_archive(path, x.shape, image_size)
    return x, y


def _check_size_of_archive(path: Path, shape: tuple[int, ...], image_size: int | tuple[int, int] | None) -> None:
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and (len(shape) != 4 or shape[2:] != tuple(size)):
        kept = f"images of {shape[2]}x{shape[3]} pixels" if len(shape) == 4 else f"an array of shape {shape}"
        raise ValueError(
            f"image_size is {size[0]}x{size[1]}, but {str(path)!r} holds {kept}, which are not resized; allowed: none "
            "or their own, or a folder of images"
        )


def _refuse_options_of_named_data(data: str | Path, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}={value!r} was given for {str(data)!r}, which is a file or folder; allowed for data by name "
                "only, such as 'torch/cifar10'. The parts of a folder are its sub-folders train and test"
            )


def _part_of_folder(path: Path, part: Part) -> Path:
    """Return the folder with a sub-folder for each class: the part's own, or the whole where there are no parts."""
    if _holds_classes(path / part):
        return path / part
    other = "test" if part == "train" else "train"
    if _holds_classes(path / other):
        raise ValueError(
            f"the folder {str(path)!r} has a part {other!r} but no part {part!r}; allowed: both, or a folder with one "
            "sub-folder for each class"
        )
    found = sorted(child.name for child in path.iterdir() if child.is_dir())
    if found and {name.lower() for name in found} <= LIKE_PARTS:
        raise ValueError(
            f"the folder {str(path)!r} has the sub-folders {found}, which look like parts and not like classes; "
            "allowed: parts named train and test, or one sub-folder for each class"
        )
    if part == "test":
        logger.warning(
            "the folder %r has no parts train and test: all of it is opened as test data. If a network was trained on "
            "it, its accuracy there says nothing", str(path)
        )  # fmt: skip
    return path


def _holds_classes(path: Path) -> bool:
    return path.is_dir() and any(child.is_dir() for child in path.iterdir())


def _named(
    name: str,
    prefix: str,
    part: Part,
    image_size: int | tuple[int, int] | None,
    root: str | Path | None,
    download: bool,
    split: str | None,
) -> Any:
    if prefix == "torch":
        check_name("data set of torch/", name.partition("/")[2].lower(), TORCH)
        if split is not None:
            raise ValueError(f"split={split!r} was given for {name!r}, whose parts are 'train' and 'test' only")
    if root is None and prefix in ("torch", "wds"):
        raise ValueError(f"root is None; allowed: the folder in which {name!r} is, or is to be downloaded to")
    joined = [] if split is None else split.lower().split("+")  # 'train+test[:10%]' holds test data, too
    if part == "train" and any(one.strip().startswith("test") for one in joined):
        raise ValueError(f"split={split!r} names test data, which is never trained, labelled or validated on")
    if importlib.util.find_spec(PACKAGES[prefix]) is None:
        package = PACKAGES[prefix].replace("_", "-")
        raise ImportError(f"{name!r} needs the package {package}: pip install {package}")
    from timm.data.dataset_factory import create_dataset

    size = SIZE if image_size is None and prefix != "torch" else image_size
    where = None if root is None else str(root)
    split = "validation" if prefix == "torch" and part == "test" else split or part  # timm's name for torch's test part
    return create_dataset(name, where, split, download=download, transform=image_transform(size))
