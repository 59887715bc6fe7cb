"""HAT: examples beyond the attack, labelled by a naturally trained network (Rade & Moosavi-Dezfooli 2021)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proard_nas.attacks import divergence, inner_attack

from .base import AttackBudget, Batch, Noise, Passes, check_weights, kl_divergence, needed


@dataclasses.dataclass(frozen=True)
class HAT:
    """CE(S(x), y) + beta KL(S(x) || S(x_adv)) + gamma CE(S(x + h (x_adv - x)), argmax H(x_adv)).

    H is the helper, a network trained without attacks. The attack is that of TRADES. Helper
    examples may leave [0, 1], as in the authors' code.

    Parameters
    ----------
    beta : float, default=2.5
        Weight of the divergence.
    gamma : float, default=0.5
        Weight of the helper examples.
    h : float, default=2.0
        How far helper examples lie beyond the clean images, in units of the perturbation.

    References
    ----------
    Rade & Moosavi-Dezfooli, "Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness
    Trade-off", ICLR 2022 (first at a workshop in 2021); defaults of its code for CIFAR-10.
    """

    beta: float = 2.5
    gamma: float = 0.5
    h: float = 2.0
    needs_teacher: ClassVar[bool] = False
    needs_helper: ClassVar[bool] = True
    passes: ClassVar[Passes] = Passes(student=3, setup=1, helper=1)

    def __post_init__(self) -> None:
        check_weights(beta=self.beta, gamma=self.gamma, h=self.h)

    def adversarial(self, net: nn.Module, batch: Batch, budget: AttackBudget, noise: Noise) -> Tensor:
        """Attack the network's own clean output, from a Gaussian start."""
        return inner_attack(net, batch.x, None, budget, noise, objective=divergence, start="gaussian")

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor | None) -> Tensor:
        """Return the batch's mean loss; no gradients flow into the helper."""
        x_adv = needed(x_adv, "adversarial images")
        with torch.no_grad():
            label = needed(batch.helper, "a helper, a naturally trained network")(x_adv).argmax(1)
        logits, adversarial = net(batch.x), net(x_adv)
        helped = net(batch.x + self.h * (x_adv - batch.x))
        value = F.cross_entropy(logits.float(), batch.y) + self.beta * kl_divergence(logits, adversarial)
        return value + self.gamma * F.cross_entropy(helped.float(), label)
