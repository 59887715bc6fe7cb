"""Training without adversarial examples: the baseline every robust figure is compared with."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from .base import AttackBudget, Batch, Noise, Passes


@dataclasses.dataclass(frozen=True)
class Natural:
    """CE(S(x), y), the cross-entropy on clean images; no attack."""

    needs_teacher: ClassVar[bool] = False
    passes: ClassVar[Passes] = Passes(student=1, attacked=False)

    def adversarial(self, net: nn.Module, batch: Batch, budget: AttackBudget, noise: Noise) -> None:
        """Return nothing: there are no adversarial images."""

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor | None) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(net(batch.x).float(), batch.y)
