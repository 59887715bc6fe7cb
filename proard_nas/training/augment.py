"""Random crops and flips of a batch on its device, each image its own."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from proard_nas._errors import check_name
from proard_nas._random import derive_seed
from proard_nas.data import Source, check_source


@torch.no_grad()
def augment(
    x: Tensor,
    generator: torch.Generator,
    padding: int | None = None,
    flip: bool = True,
    total: int | None = None,
    rank: int = 0,
    size: int = 1,
) -> Tensor:
    """Crop each image at random from its zero-padded self, and mirror every second one.

    Values are only moved, never mixed. Where a batch is shared by several processes, each draws
    the numbers of the joined batch and uses its own, so that together they do what one would.

    Parameters
    ----------
    x : Tensor of shape (N, C, H, W)
        On any device; of a joined batch, the images ``rank::size``.
    generator : torch.Generator
        On the CPU it gives the same numbers whatever the device of the images.
    padding : int, default=None
        Pixels added on each side. None means an eighth of the shorter side: 4 for 32 pixels,
        the usual choice, and 1 for 8. With 0 nothing is cropped.
    flip : bool, default=True
        Whether half of the images, by chance, are mirrored left to right.
    total : int, default=None
        Images in the joined batch; needed if ``size`` is above 1.
    rank, size : int, default=0 and 1
        Which of how many processes this is.

    Returns
    -------
    Tensor of shape (N, C, H, W)
        In the memory format of ``x``; without a gradient.

    Raises
    ------
    ValueError
        If the padding is negative or N is not this process's share of ``total``.
    """
    if padding is None:
        padding = round(min(x.shape[-2:]) / 8)
    if padding < 0:
        raise ValueError(f"padding must not be negative, got {padding}")
    share = _share(len(x), total, rank, size)
    joined = len(x) if total is None else total
    if padding:
        top, left = _draw(2 * padding + 1, (2, joined), generator)[:, share].to(x.device)
        x = _crop(x, padding, top, left)
    if flip:
        mirrored = _draw(2, (joined,), generator)[share].to(x.device, torch.bool)
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    return x


def _share(n: int, total: int | None, rank: int, size: int) -> slice:
    if not 0 <= rank < size or (total is None and size > 1):
        raise ValueError(f"rank must be below size, and total given where size is above 1; got {rank}, {size}, {total}")
    own = n if total is None else len(range(rank, total, size))
    if n != own:
        raise ValueError(f"process {rank} of {size} has {own} images of a batch of {total}; got {n}")
    return slice(rank, None, size)


def _draw(high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=generator.device)


def _crop(x: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    windows = F.pad(x, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view: all crops of each image
    cropped = windows[torch.arange(len(x), device=x.device), :, top, left]
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return cropped.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to the images of a training batch; callable.

    Parameters
    ----------
    padding : int or None, default=None
        See `augment`.
    flip : bool, default=True

    Examples
    --------
    >>> x = torch.rand(4, 3, 8, 8)
    >>> Augmentation.from_name("crop-flip")(x, torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 8, 8])
    """

    padding: int | None = None
    flip: bool = True

    @classmethod
    def from_name(cls, name: str) -> Augmentation:
        """Return one of `AUGMENTATIONS`: 'none', 'crop' or 'crop-flip'.

        Raises
        ------
        ValueError
            If there is none of this name; lists those that there are.
        """
        return AUGMENTATIONS[check_name("augmentation", name, AUGMENTATIONS)]

    def __call__(
        self, x: Tensor, generator: torch.Generator, total: int | None = None, rank: int = 0, size: int = 1
    ) -> Tensor:
        """Return the augmented batch; the parameters are those of `augment`."""
        return augment(x, generator, self.padding, self.flip, total, rank, size)


def calibration_images(source: Source, n: int, name: str = "none", seed: int | None = None) -> Tensor:
    """Return training images, augmented as in training, from which students' batch norm statistics are taken.

    Cropped images have other statistics than whole ones: zeros at their edges. Weights that were trained on the
    statistics of cropped batches want those.

    Parameters
    ----------
    source : Source
        Training images. A loader that augments them itself gives them so.
    n : int
        How many, or all if there are fewer.
    name : str, default='none'
        One of `AUGMENTATIONS`: the one that training uses.
    seed : int, default=None
        Draws the images and their crops; None takes the first images, and crops of seed 0.

    Returns
    -------
    Tensor of shape (N, C, H, W)

    Raises
    ------
    TypeError
        If the source is none.
    ValueError
        For an unknown name.
    """
    augmentation = Augmentation.from_name(name)
    check_source(source)
    x = source.head(n, seed=seed).x
    return augmentation(x, torch.Generator(x.device).manual_seed(derive_seed(seed or 0, "augment")))


AUGMENTATIONS = {
    "none": Augmentation(padding=0, flip=False),
    "crop": Augmentation(flip=False),
    "crop-flip": Augmentation(),
}
