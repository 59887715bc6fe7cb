"""Training without adversarial examples: the baseline every robust figure is compared with."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from .base import AttackBudget


@dataclasses.dataclass(frozen=True)
class Natural:
    """Cross-entropy on clean images; no attack."""

    needs_teacher: ClassVar[bool] = False

    def adversarial(
        self, net: nn.Module, x: Tensor, y: Tensor, teacher_logits: Tensor | None, budget: AttackBudget, seed: int
    ) -> None:
        """Return nothing: there are no adversarial images."""

    def loss(self, net: nn.Module, x: Tensor, x_adv: Tensor | None, y: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(net(x).float(), y)
