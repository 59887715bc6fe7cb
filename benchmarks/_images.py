"""The images that benchmarks train, label and choose on: of the training part, which `load_npz` keeps apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from proard_nas import quickstart
from proard_nas.data import ArraySource, load_npz


def source_of(x: Any, y: Any) -> ArraySource:
    """Return arrays as a source of images and labels."""
    return ArraySource(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(np.asarray(y), dtype=torch.int64))


def training_parts(
    data: str, file: str | None, n_first: int, n_second: int, seed: int
) -> tuple[ArraySource, ArraySource]:
    """Draw two disjoint parts of the training images of the digits (of a seed's split), or of a file.

    Raises
    ------
    ValueError
        If there are too few.
    """
    if data == "digits":
        (x, y), _ = quickstart.digits(seed)
    else:
        arrays = load_npz(str(file))
        x, y = arrays.x_train, arrays.y_train
    source, wanted = source_of(x, y), n_first + n_second
    if len(source) < wanted:
        raise ValueError(f"{data} has {len(source)} training images; allowed: at least {wanted}, which were asked for")
    drawn = source.head(wanted, seed=seed)
    return drawn.take(range(n_first)), drawn.take(range(n_first, wanted))
