"""Arrays turned into images in [0, 1], the same way at fit and at predict time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proard_nas.data.channels import CONVERTIBLE, check_channels, to_channels
from proard_nas.data.checks import check_image_dtype, check_image_shape, check_pixels, without_overshoot

SMALLEST_SIDE = 4


class ArrayEncoder:
    """Turns arrays into images: image arrays are checked, tables are scaled and folded into squares.

    A table of shape (n, features) is scaled to [0, 1] feature by feature, over the range seen in `fit` and clipped to
    it, padded with zeros to the next square number and folded to (n, 1, side, side) with a side of at least 4. Images
    of shape (n, channels, height, width), or (n, height, width) for one channel, must be floating point in [0, 1].

    Parameters
    ----------
    estimator_name : str, default='ProARDEstimator'
        Named in the errors, as scikit-learn does.
    in_chans : int, optional
        Channels of what `transform` returns: images are converted between grey (1) and RGB (3). None keeps those
        that the training data has.

    Attributes
    ----------
    image_shape : tuple of int or None
        (channels, height, width) of what `transform` returns; None before `fit`.
    n_features : int or None
        Columns of the table; None for images.

    Examples
    --------
    >>> encoder = ArrayEncoder().fit([[0.0, 10.0], [4.0, 20.0]])
    >>> encoder.transform([[1.0, 30.0]])[0, 0, 0].tolist()
    [0.25, 1.0, 0.0, 0.0]
    """

    def __init__(self, estimator_name: str = "ProARDEstimator", in_chans: int | None = None) -> None:
        self.estimator_name = estimator_name
        self.in_chans = in_chans
        self.image_shape: tuple[int, int, int] | None = None
        self.n_features: int | None = None
        self._scaler: Any = None

    @classmethod
    def for_images(
        cls, image_shape: tuple[int, int, int], estimator_name: str = "ProARDEstimator", in_chans: int | None = None
    ) -> ArrayEncoder:
        """Return a fitted encoder for images of the given (channels, height, width), after conversion."""
        encoder = cls(estimator_name, in_chans)
        channels, height, width = image_shape
        encoder.image_shape = (int(channels), int(height), int(width))
        return encoder

    def fit(self, X: object) -> ArrayEncoder:
        """Learn the shape, and for a table the range of each feature, from the training data.

        Parameters
        ----------
        X : array-like
            A table of shape (n, features), or images of shape (n, height, width) or (n, channels, height, width).

        Returns
        -------
        ArrayEncoder
            Itself.

        Raises
        ------
        ValueError
            If X has another number of dimensions, holds NaN or infinity, or images of an integer type.
        TypeError
            If X is sparse.
        """
        x = self.validate(X)
        if x.ndim == 2:
            self.n_features = x.shape[1]
            self._scaler = _fitted_scaler(x)
            side = max(SMALLEST_SIDE, math.isqrt(x.shape[1] - 1) + 1)
            self.image_shape = (self._channels(1), side, side)
        else:
            self.n_features, self._scaler = None, None
            channels, height, width = _with_channels(x).shape[1:]
            self.image_shape = (self._channels(channels), height, width)
        return self

    def transform(self, X: object) -> Tensor:
        """Return X as float32 images in [0, 1].

        Parameters
        ----------
        X : array-like
            Of the kind and shape given to `fit`, with any number of rows.

        Returns
        -------
        Tensor of shape (n, channels, height, width)
            On the CPU. Shares memory with X where X has this form already. What rounding put outside [0, 1] is moved
            to its ends.

        Raises
        ------
        ValueError
            As in `fit`, if the features or the image shape differ from it, or pixels lie outside [0, 1].
        sklearn.exceptions.NotFittedError
            Before `fit`.
        """
        x = self.validate(X)
        if self.image_shape is None:
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("this ArrayEncoder is not fitted yet: call fit with the training data first")
        self._check_like_fit(x)
        if self.n_features is None:
            return to_channels(_image_tensor(_with_channels(x)), self.in_chans, "X")
        table = self._scaler.transform(x.astype(np.float64, copy=False)).astype(np.float32)
        height, width = self.image_shape[1:]
        images = np.zeros((len(x), height * width), dtype=np.float32)
        images[:, : self.n_features] = table
        return to_channels(torch.from_numpy(images.reshape(len(x), 1, height, width)), self.in_chans, "X")

    def validate(self, X: object) -> NDArray[Any]:
        """Return X as a numeric array of two to four dimensions, free of NaN and infinity, or raise as `fit` does."""
        from sklearn.utils import check_array

        if isinstance(X, Tensor):
            X = X.detach().cpu()
            X = (X.float() if X.dtype in (torch.float16, torch.bfloat16) else X).numpy()
        x: NDArray[Any] = check_array(X, allow_nd=True, input_name="X", estimator=self.estimator_name)
        if x.ndim > 4:
            raise ValueError(
                f"X has {x.ndim} dimensions, shape {x.shape}; allowed: (n, features), (n, height, width) or "
                "(n, channels, height, width)"
            )
        if x.ndim > 2:
            check_image_shape(_with_channels(x).shape, "X")
            check_image_dtype(x.dtype, x.dtype.kind == "f", "X")
        return x

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted encoder as plain values that JSON can carry."""
        scaler = self._scaler
        return {
            "estimator_name": self.estimator_name,
            "in_chans": self.in_chans,
            "image_shape": None if self.image_shape is None else list(self.image_shape),
            "data_min": None if scaler is None else scaler.data_min_.tolist(),
            "data_max": None if scaler is None else scaler.data_max_.tolist(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ArrayEncoder:
        """Return the encoder that `to_dict` wrote, equal bit for bit in what it does."""
        name, in_chans = state["estimator_name"], state.get("in_chans")  # absent before there was a conversion
        encoder = cls(name, in_chans)
        if state["data_min"] is not None:
            return encoder.fit(np.array([state["data_min"], state["data_max"]], dtype=np.float64))
        shape = state["image_shape"]
        return encoder if shape is None else cls.for_images((shape[0], shape[1], shape[2]), name, in_chans)

    def _check_like_fit(self, x: NDArray[Any]) -> None:
        if self.n_features is not None:
            if x.ndim != 2:
                raise ValueError(
                    f"X has the shape {x.shape}, but {self.estimator_name} is expecting {self.n_features} features as "
                    f"input: a table of shape (n, {self.n_features})"
                )
            if x.shape[1] != self.n_features:
                raise ValueError(
                    f"X has {x.shape[1]} features, but {self.estimator_name} is expecting {self.n_features} features "
                    "as input"
                )
        elif x.ndim == 2 or not self._takes(_with_channels(x).shape[1:]):
            shape = self.image_shape or ()
            raise ValueError(
                f"X has the shape {x.shape}, but {self.estimator_name} is expecting images of shape "
                f"(n, {', '.join(map(str, shape))}) as input: channels, height and width"
                + "; of a single image give x[None]"
                * (x.ndim == len(shape))
            )

    def _channels(self, given: int) -> int:
        check_channels(given, self.in_chans, "X")
        return given if self.in_chans is None else self.in_chans

    def _takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether images of that shape are those of `fit`, or become so by conversion."""
        assert self.image_shape is not None
        converted = self.in_chans in CONVERTIBLE and shape[0] in CONVERTIBLE
        return shape[1:] == self.image_shape[1:] and (converted or shape[0] == self.image_shape[0])


def _fitted_scaler(x: NDArray[Any]) -> Any:
    from sklearn.preprocessing import MinMaxScaler

    return MinMaxScaler(clip=True).fit(x.astype(np.float64, copy=False))


def _with_channels(x: NDArray[Any]) -> NDArray[Any]:
    return x[:, None] if x.ndim == 3 else x


def _image_tensor(x: NDArray[Any]) -> Tensor:
    images = torch.from_numpy(np.require(x, dtype=np.float32, requirements=["C", "W"]))
    check_pixels(images, "X")
    return without_overshoot(images)
