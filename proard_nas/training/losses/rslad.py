"""RSLAD: robust soft labels in place of the true ones (Zi et al. 2021; ProARD, equation 2)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn

from proard_nas.attacks import divergence, inner_attack

from .base import AttackBudget, Batch, Noise, Passes, check_weights, kl_divergence, needed


@dataclasses.dataclass(frozen=True)
class RSLAD:
    """alpha KL(T(x) || S(x_adv)) + (1 - alpha) KL(T(x) || S(x)), the attack maximising KL(T(x) || S(x_adv)).

    Both divergences are summed over classes and averaged over the batch, so the scale does not
    depend on the number of classes; the authors' code averages over classes, too. The attack
    starts from Gaussian noise with a standard deviation of 0.001, as in the authors' code.

    Parameters
    ----------
    alpha : float, default=5/6
        Weight of the adversarial term, in [0, 1].

    References
    ----------
    Zi et al., "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student
    Better", ICCV 2021, equations 4 and 5.
    """

    alpha: float = 5 / 6
    needs_teacher: ClassVar[bool] = True
    passes: ClassVar[Passes] = Passes(student=2, teacher=1)

    def __post_init__(self) -> None:
        check_weights(1, alpha=self.alpha)

    def adversarial(self, net: nn.Module, batch: Batch, budget: AttackBudget, noise: Noise) -> Tensor:
        """Attack the student away from the teacher's clean output."""
        target = needed(batch.teacher_logits, "the teacher's logits")
        return inner_attack(net, batch.x, target, budget, noise, objective=divergence, start="gaussian")

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor | None) -> Tensor:
        """Return the batch's mean loss."""
        target = needed(batch.teacher_logits, "the teacher's logits")
        adversarial = kl_divergence(target, net(needed(x_adv, "adversarial images")))
        return self.alpha * adversarial + (1 - self.alpha) * kl_divergence(target, net(batch.x))
