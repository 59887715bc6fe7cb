"""Grey images made colour ones and back, where a network asks for other channels than the data has."""

from __future__ import annotations

from torch import Tensor

CONVERTIBLE = (1, 3)


def check_channels(channels: int, in_chans: int | None, where: str) -> None:
    """Raise ValueError unless images of ``channels`` channels can be given to a network of ``in_chans``.

    Parameters
    ----------
    channels : int
        Of the images.
    in_chans : int or None
        Of the network; None takes images as they are.
    where : str
        Names the images in the error.
    """
    if in_chans in (None, channels) or (channels in CONVERTIBLE and in_chans in CONVERTIBLE):
        return
    raise ValueError(
        f"{where} has images of {channels} channels, but in_chans={in_chans}; allowed: in_chans={channels}"
        + (", or 1 and 3, which are converted into each other" if channels in CONVERTIBLE else "")
    )


def to_channels(images: Tensor, in_chans: int | None, where: str = "the data") -> Tensor:
    """Convert images between grey and RGB.

    Parameters
    ----------
    images : Tensor of shape (n, channels, height, width)
        In [0, 1].
    in_chans : int or None
        Channels wanted; None and the channels there are return the images themselves.
    where : str, default='the data'
        Names the images in the error.

    Returns
    -------
    Tensor of shape (n, in_chans, height, width)
        Grey is the luma of ITU-R Recommendation BT.601, 0.2989 R + 0.587 G + 0.114 B, as in torchvision. RGB is the
        grey value three times.

    Raises
    ------
    ValueError
        If neither is asked for and the channels differ.
    """
    check_channels(images.shape[1], in_chans, where)
    if in_chans in (None, images.shape[1]):
        return images
    if in_chans == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    from torchvision.transforms.functional import rgb_to_grayscale

    grey: Tensor = rgb_to_grayscale(images)
    return grey
