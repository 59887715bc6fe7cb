"""IAD: the student trusts its teacher as far as the teacher is right, and itself for the rest (Zhu et al. 2022)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from proard_nas.attacks import inner_attack

from .base import AttackBudget, Batch, Noise, Passes, check_weights, kl_each, needed


@dataclasses.dataclass(frozen=True)
class IAD:
    """w KL(T(x) || S(x_adv)) + (1 - w) KL(S(x) || S(x_adv)), w = T_y(x_adv)^beta for each image.

    The attack maximises CE(S(x_adv), y) from a uniform start in the ball. The paper trains with
    w = 1 for the first 60 of 200 epochs, which is ``ARD(temperature=1)``: put it in a stage of its
    own before. The authors' code of IAD-I leaves the teacher's term without its weight.

    Parameters
    ----------
    beta : float, default=0.1
        How sharply trust falls with the teacher's probability of the true class; 0 trusts always.

    References
    ----------
    Zhu et al., "Reliable Adversarial Distillation with Unreliable Teachers", ICLR 2022 (arXiv
    2106.04928), with the student's own share 1 - w.
    """

    beta: float = 0.1
    needs_teacher: ClassVar[bool] = True
    passes: ClassVar[Passes] = Passes(student=2, teacher=2)

    def __post_init__(self) -> None:
        check_weights(beta=self.beta)

    def adversarial(self, net: nn.Module, batch: Batch, budget: AttackBudget, noise: Noise) -> Tensor:
        """Attack the labels."""
        return inner_attack(net, batch.x, batch.y, budget, noise)

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor | None) -> Tensor:
        """Return the batch's mean loss; gradients flow through both of the student's outputs."""
        x_adv = needed(x_adv, "adversarial images")
        with torch.no_grad():
            log_probability = needed(batch.teacher, "a teacher")(x_adv).float().log_softmax(1)
            trust: Tensor = (self.beta * log_probability.gather(1, batch.y[:, None])[:, 0]).exp()
        logits, adversarial = net(batch.x), net(x_adv)
        guided = kl_each(needed(batch.teacher_logits, "the teacher's logits"), adversarial)
        return (trust * guided + (1 - trust) * kl_each(logits, adversarial)).mean()
