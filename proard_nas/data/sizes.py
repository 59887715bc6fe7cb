"""Which image sizes a network can take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proard_nas.supernets import StudentNet

LARGEST = 1024  # pixels; no network needs more than this to make a feature


def smallest_size(network: StudentNet) -> tuple[int, int]:
    """Return the smallest (height, width), in pixels, that every layer of a network makes at least one pixel of."""
    height = next(n for n in range(1, LARGEST) if _fits(network, (n, LARGEST)))
    width = next(n for n in range(1, LARGEST) if _fits(network, (LARGEST, n)))
    return height, width


def check_image_size(network: StudentNet, image_size: tuple[int, int]) -> None:
    """Raise ValueError if images are too small for a network's strides and patches.

    Parameters
    ----------
    network : StudentNet
        Of it only the plan is looked at; nothing is run.
    image_size : tuple of int
        (height, width) in pixels.
    """
    if _fits(network, image_size):
        return
    height, width = smallest_size(network)
    raise ValueError(
        f"images of {image_size[0]}x{image_size[1]} pixels are too small for {type(network).__name__}; allowed: "
        f"{height}x{width} and larger"
    )


def _fits(network: StudentNet, image_size: tuple[int, int]) -> bool:
    layers = network.plan(img_size=image_size).layers()
    return all(min(getattr(layer, "out_size", (1, 1))) >= 1 for _, layer in layers)
