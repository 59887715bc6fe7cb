"""ARD: the student under attack learns the teacher's clean output (Goldblum et al. 2020)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from proard_nas.attacks import inner_attack

from .base import AttackBudget, Batch, Noise, Passes, check_weights, kl_divergence, needed


@dataclasses.dataclass(frozen=True)
class ARD:
    """alpha t^2 KL(T(x)^t || S(x_adv)^t) + (1 - alpha) CE(S(x), y), the attack maximising CE(S(x_adv), y).

    The exponent t is a softmax of logits divided by the temperature. The attack starts uniformly
    in the ball. The authors' code also averages the divergence over the classes, which makes it
    K times smaller.

    Parameters
    ----------
    alpha : float, default=1.0
        Weight of the distillation term, in [0, 1]; at 1 the clean images are not run.
    temperature : float, default=30.0

    References
    ----------
    Goldblum et al., "Adversarially Robust Distillation", AAAI 2020; defaults of its code.
    """

    alpha: float = 1.0
    temperature: float = 30.0
    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weights(1, alpha=self.alpha)
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    @property
    def passes(self) -> Passes:
        """What one step costs."""
        return Passes(student=1 + (self.alpha < 1), teacher=1)

    def adversarial(self, net: nn.Module, batch: Batch, budget: AttackBudget, noise: Noise) -> Tensor:
        """Attack the labels."""
        return inner_attack(net, batch.x, batch.y, budget, noise)

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor | None) -> Tensor:
        """Return the batch's mean loss."""
        t = self.temperature
        target = needed(batch.teacher_logits, "the teacher's logits").float() / t
        value = self.alpha * t**2 * kl_divergence(target, net(needed(x_adv, "adversarial images")).float() / t)
        if self.alpha < 1:
            value = value + (1 - self.alpha) * F.cross_entropy(net(batch.x).float(), batch.y)
        return value
