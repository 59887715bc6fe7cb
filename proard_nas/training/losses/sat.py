"""Standard adversarial training: cross-entropy on the worst images found (Madry et al. 2018)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from proard_nas.attacks import inner_attack

from .base import AttackBudget, Batch, Noise, Passes, needed


@dataclasses.dataclass(frozen=True)
class SAT:
    """CE(S(x_adv), y), the attack maximising the same from a uniform start in the ball.

    References
    ----------
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
    equation 2.1.
    """

    needs_teacher: ClassVar[bool] = False
    passes: ClassVar[Passes] = Passes(student=1)

    def adversarial(self, net: nn.Module, batch: Batch, budget: AttackBudget, noise: Noise) -> Tensor:
        """Attack the labels."""
        return inner_attack(net, batch.x, batch.y, budget, noise)

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor | None) -> Tensor:
        """Return the mean cross-entropy on adversarial images."""
        return F.cross_entropy(net(needed(x_adv, "adversarial images")).float(), batch.y)
