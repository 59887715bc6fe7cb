"""RSLAD: robust soft labels in place of the true ones (Zi et al. 2021; ProARD, equation 2)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn

from proard_nas.attacks import DistillationPGD, run_attack

from .base import AttackBudget, kl_divergence


@dataclasses.dataclass(frozen=True)
class RSLAD:
    """alpha KL(T(x) || S(x_adv)) + (1 - alpha) KL(T(x) || S(x)), the attack maximising KL(T(x) || S(x_adv)).

    Both divergences are summed over classes and averaged over the batch, so the scale does not
    depend on the number of classes.

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

    def adversarial(
        self, net: nn.Module, x: Tensor, y: Tensor, teacher_logits: Tensor | None, budget: AttackBudget, seed: int
    ) -> Tensor:
        """Attack the student away from the teacher's clean output."""
        assert teacher_logits is not None
        attack = DistillationPGD(net, budget.eps, budget.step_size, budget.steps)
        return run_attack(attack, x, teacher_logits, batch_norm="batch", seed=seed)

    def loss(self, net: nn.Module, x: Tensor, x_adv: Tensor | None, y: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """Return the batch's mean loss."""
        assert x_adv is not None
        assert teacher_logits is not None
        adversarial = kl_divergence(teacher_logits, net(x_adv))
        return self.alpha * adversarial + (1 - self.alpha) * kl_divergence(teacher_logits, net(x))
