"""AdaAD: the teacher is asked at every point the attack visits (Huang et al. 2023)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from proard_nas.attacks import inner_attack, kl_each

from .base import AttackBudget, Batch, Noise, Passes, check_weights, kl_divergence, needed


@dataclasses.dataclass(frozen=True)
class AdaAD:
    """alpha KL(T(x_adv) || S(x_adv)) + (1 - alpha) KL(T(x) || S(x)), the attack maximising KL(T(x_adv) || S(x_adv)).

    The attack's gradient flows through student and teacher. It starts from Gaussian noise with a
    standard deviation of 0.001. Direction, start and default are those of the authors' code,
    which averages over classes where this sums.

    Parameters
    ----------
    alpha : float, default=1.0
        Weight of the adversarial term, in [0, 1]; at 1 the clean images are not run.

    References
    ----------
    Huang et al., "Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial
    Distillation", CVPR 2023.
    """

    alpha: float = 1.0
    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_weights(1, alpha=self.alpha)

    @property
    def passes(self) -> Passes:
        """What one step costs."""
        return Passes(student=1 + (self.alpha < 1), teacher=2, teacher_in_attack=True)

    def adversarial(self, net: nn.Module, batch: Batch, budget: AttackBudget, noise: Noise) -> Tensor:
        """Attack the agreement of student and teacher."""
        teacher = needed(batch.teacher, "a teacher")

        def disagreement(adversarial: Tensor, logits: Tensor, target: Tensor) -> Tensor:
            return kl_each(teacher(adversarial), logits).sum()

        return inner_attack(net, batch.x, batch.y, budget, noise, objective=disagreement, start="gaussian")

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor | None) -> Tensor:
        """Return the batch's mean loss; no gradients flow into the teacher."""
        x_adv = needed(x_adv, "adversarial images")
        with torch.no_grad():
            target = needed(batch.teacher, "a teacher")(x_adv)
        value = self.alpha * kl_divergence(target, net(x_adv))
        if self.alpha < 1:
            clean = needed(batch.teacher_logits, "the teacher's logits")
            value = value + (1 - self.alpha) * kl_divergence(clean, net(batch.x))
        return value
