"""TRADES: clean cross-entropy plus the divergence of adversarial from clean outputs (Zhang et al. 2019)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from proard_nas.attacks import DistillationPGD, run_attack

from .base import AttackBudget, clean_logits, kl_divergence


@dataclasses.dataclass(frozen=True)
class TRADES:
    """CE(S(x), y) + beta KL(S(x) || S(x_adv)), the attack maximising the divergence.

    Parameters
    ----------
    beta : float, default=6.0
        Weight of the divergence (the paper's 1/lambda).

    References
    ----------
    Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019,
    equation 5.
    """

    beta: float = 6.0
    needs_teacher: ClassVar[bool] = False

    def adversarial(
        self, net: nn.Module, x: Tensor, y: Tensor, teacher_logits: Tensor | None, budget: AttackBudget, seed: int
    ) -> Tensor:
        """Attack the network's own clean output from a Gaussian start."""
        attack = DistillationPGD(net, budget.eps, budget.step_size, budget.steps)
        return run_attack(attack, x, clean_logits(net, x), batch_norm="batch", seed=seed)

    def loss(self, net: nn.Module, x: Tensor, x_adv: Tensor | None, y: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """Return the batch's mean loss; gradients flow through both outputs."""
        assert x_adv is not None
        logits, adversarial = net(x), net(x_adv)
        return F.cross_entropy(logits.float(), y) + self.beta * kl_divergence(logits, adversarial)
