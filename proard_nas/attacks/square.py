"""The Square attack: random search that sees logits and no gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchattacks
from torch import Tensor, nn

from .budget import EPS
from .modes import seeded

QUERIES = 5000


class Square(torchattacks.Square):  # type: ignore[misc]
    """torchattacks' Square, l-infinity, that leaves the global generator alone.

    Andriushchenko et al., "Square Attack", ECCV 2020; on the margin, one restart, p = 0.8, its schedule
    scaled to the number of queries.

    Parameters
    ----------
    model : nn.Module
    eps : float, default=8/255
    n_queries : int, default=5000
        As within AutoAttack.
    seed : int, default=0
    """

    def __init__(self, model: nn.Module, eps: float = EPS, n_queries: int = QUERIES, seed: int = 0) -> None:
        super().__init__(model, norm="Linf", eps=eps, n_queries=n_queries, seed=seed)
        self.supported_mode = ["default"]
        self._total = 0
        self._rows: Tensor | None = None

    def forward(self, images: Tensor, labels: Tensor, among: Tensor | None = None) -> Tensor:
        """Return adversarial images, and the images themselves where they are wrong already; see `run_attack`."""
        with seeded(self.seed), torch.no_grad():
            self._rows = None
            if among is not None:
                self._total, self._rows = len(among), self._drawn_for(images, labels, among)
            found: Tensor = super().forward(images, labels)
        return found

    def _drawn_for(self, images: Tensor, labels: Tensor, among: Tensor) -> Tensor:
        """Return which of the whole batch get a draw: torchattacks attacks no image that is wrong already."""
        right = self.get_logits(images.to(self.device)).max(1)[1] == labels.to(self.device)
        return among.nonzero()[:, 0].to(right.device)[right]

    def random_choice(self, shape: Sequence[int]) -> Tensor:
        """Draw signs; the starting stripes are the only draw for each image, and made for the whole batch."""
        if len(shape) != 4 or self._rows is None:
            return super().random_choice(shape)  # type: ignore[no-any-return]
        drawn: Tensor = super().random_choice([self._total, *shape[1:]])
        return drawn[self._rows.to(drawn.device)]
