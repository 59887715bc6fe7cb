"""What a training loss is: an inner attack and an outer loss."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proard_nas.attacks import EPS, STEP_SIZE, attack_mode, check_budget


@dataclasses.dataclass(frozen=True)
class AttackBudget:
    """The inner attack's budget, l-infinity, images in [0, 1].

    Parameters
    ----------
    eps : float, default=8/255
    step_size : float, default=2/255
    steps : int, default=10

    Raises
    ------
    ValueError
        If one of them is not positive, or eps is above 1.
    """

    eps: float = EPS
    step_size: float = STEP_SIZE
    steps: int = 10

    def __post_init__(self) -> None:
        check_budget(self.eps, self.step_size, self.steps)


class Objective(Protocol):
    """A training loss with its inner attack; new ones need these three members."""

    needs_teacher: ClassVar[bool]

    def adversarial(
        self, net: nn.Module, x: Tensor, y: Tensor, teacher_logits: Tensor | None, budget: AttackBudget, seed: int
    ) -> Tensor | None:
        """Return adversarial images for the batch, or None where the loss uses none."""

    def loss(self, net: nn.Module, x: Tensor, x_adv: Tensor | None, y: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """Return the batch's mean loss; gradients flow into the network only."""


def kl_divergence(target_logits: Tensor, logits: Tensor) -> Tensor:
    """Return KL(softmax(target) || softmax(logits)): summed over classes, averaged over the batch.

    Parameters
    ----------
    target_logits, logits : Tensor of shape (N, K)

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> float(kl_divergence(logits, logits))
    0.0
    """
    target = target_logits.float().log_softmax(1)
    return F.kl_div(logits.float().log_softmax(1), target, reduction="batchmean", log_target=True)


def clean_logits(net: nn.Module, x: Tensor) -> Tensor:
    """Return logits under batch statistics, as the inner attack sees them: no gradients, nothing recorded."""
    with torch.no_grad(), attack_mode(net, "batch"):
        return net(x)  # type: ignore[no-any-return]
