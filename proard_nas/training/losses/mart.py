"""MART: images that are misclassified without an attack count more (Wang et al. 2020)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proard_nas.attacks import inner_attack

from .base import AttackBudget, Batch, Noise, Passes, check_weights, kl_each, needed


@dataclasses.dataclass(frozen=True)
class MART:
    """BCE(S(x_adv), y) + beta KL(S(x) || S(x_adv)) (1 - S_y(x)), the attack maximising the cross-entropy.

    BCE(p, y) = -log p_y - log(1 - max_{k != y} p_k). The attack starts from Gaussian noise with
    a standard deviation of 0.001, as in the authors' code. The second logarithm is computed from
    the logits, so it needs none of that code's small constants and has no upper end.

    Parameters
    ----------
    beta : float, default=5.0
        Weight of the divergence (the paper's lambda).

    References
    ----------
    Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified Examples",
    ICLR 2020.
    """

    beta: float = 5.0
    needs_teacher: ClassVar[bool] = False
    passes: ClassVar[Passes] = Passes(student=2)

    def __post_init__(self) -> None:
        check_weights(beta=self.beta)

    def adversarial(self, net: nn.Module, batch: Batch, budget: AttackBudget, noise: Noise) -> Tensor:
        """Attack the labels."""
        return inner_attack(net, batch.x, batch.y, budget, noise, start="gaussian")

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor | None) -> Tensor:
        """Return the batch's mean loss; gradients flow through both outputs and the weight."""
        logits, adversarial = net(batch.x).float(), net(needed(x_adv, "adversarial images")).float()
        wrong = -torch.expm1(-F.cross_entropy(logits, batch.y, reduction="none"))
        return boosted_cross_entropy(adversarial, batch.y) + self.beta * (kl_each(logits, adversarial) * wrong).mean()


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the mean of -log p_y - log(1 - max_{k != y} p_k).

    Parameters
    ----------
    logits : Tensor of shape (N, K)
    y : Tensor of shape (N,)
    """
    others = logits.detach().scatter(1, y[:, None], float("-inf"))
    rest = logits.scatter(1, others.argmax(1, keepdim=True), float("-inf"))
    margin = logits.logsumexp(1) - rest.logsumexp(1)
    return F.cross_entropy(logits, y) + margin.mean()
