"""TRADES: clean cross-entropy plus the divergence of adversarial from clean outputs (Zhang et al. 2019)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from proard_nas.attacks import divergence, inner_attack

from .base import AttackBudget, Batch, Noise, Passes, check_weights, kl_divergence, needed


@dataclasses.dataclass(frozen=True)
class TRADES:
    """CE(S(x), y) + beta KL(S(x) || S(x_adv)), the attack maximising the divergence.

    The attack starts from Gaussian noise with a standard deviation of 0.001: at the images
    themselves the divergence has no gradient.

    Parameters
    ----------
    beta : float, default=6.0
        Weight of the divergence (the paper's 1/lambda).

    References
    ----------
    Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019,
    equation 5 and algorithm 1.
    """

    beta: float = 6.0
    needs_teacher: ClassVar[bool] = False
    passes: ClassVar[Passes] = Passes(student=2, setup=1)

    def __post_init__(self) -> None:
        check_weights(beta=self.beta)

    def adversarial(self, net: nn.Module, batch: Batch, budget: AttackBudget, noise: Noise) -> Tensor:
        """Attack the network's own clean output."""
        return inner_attack(net, batch.x, None, budget, noise, objective=divergence, start="gaussian")

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor | None) -> Tensor:
        """Return the batch's mean loss; gradients flow through both outputs."""
        logits, adversarial = net(batch.x), net(needed(x_adv, "adversarial images"))
        return F.cross_entropy(logits.float(), batch.y) + self.beta * kl_divergence(logits, adversarial)
