"""Random starts that depend on nothing but a seed, also where several processes share a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from proard_nas._random import derive_seed


class Noise:
    """Draws random starts; each is a pure function of the seed and of how many were drawn before.

    Draws are made for the joined batch of all processes, of which each keeps its own rows: N
    processes, each with the images ``rank::size`` of the joined batch, see what one process
    with the joined batch sees. The global generators are neither used nor changed.

    Parameters
    ----------
    seed : int
    total : int, default=None
        Images in the joined batch; None means ``size`` times as many as are here.
    rank : int, default=0
        This process.
    size : int, default=1
        Processes that share the batch.

    Raises
    ------
    ValueError
        If rank is not in [0, size), or, on drawing, if the images are not the joined batch's
        rows ``rank::size``.

    Examples
    --------
    >>> images = torch.zeros(5, 3, 8, 8)
    >>> joined = Noise(seed=0).uniform(images)
    >>> torch.equal(Noise(seed=0, total=5, rank=1, size=2).uniform(images[1::2]), joined[1::2])
    True
    """

    def __init__(self, seed: int, total: int | None = None, rank: int = 0, size: int = 1) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank must be in [0, size); got rank={rank}, size={size}")
        self.seed, self.total, self.rank, self.size = seed, total, rank, size
        self._draws = 0

    def uniform(self, x: Tensor) -> Tensor:
        """Return uniform numbers in [-1, 1], float32, in the shape, layout and on the device of ``x``."""
        joined, generator = self._prepare(x)
        return self._own(x, joined.uniform_(-1, 1, generator=generator))

    def normal(self, x: Tensor) -> Tensor:
        """Return standard normal numbers, float32, in the shape, layout and on the device of ``x``."""
        joined, generator = self._prepare(x)
        return self._own(x, joined.normal_(generator=generator))

    def _prepare(self, x: Tensor) -> tuple[Tensor, torch.Generator]:
        total = len(x) * self.size if self.total is None else self.total
        own = len(range(self.rank, total, self.size))
        if own != len(x):
            raise ValueError(
                f"process {self.rank} of {self.size} holds {own} images of a joined batch of {total}, got {len(x)}"
            )
        generator = torch.Generator(device=x.device).manual_seed(derive_seed(self.seed, self._draws))
        self._draws += 1
        return torch.empty((total, *x.shape[1:]), device=x.device), generator

    def _own(self, x: Tensor, joined: Tensor) -> Tensor:
        return torch.empty_like(x, dtype=torch.float32, requires_grad=False).copy_(joined[self.rank :: self.size])
