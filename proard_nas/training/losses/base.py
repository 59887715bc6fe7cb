"""What a training loss is: an inner attack, an outer loss, and how often both run a network."""

from __future__ import annotations

import dataclasses
from typing import Protocol, TypeVar

from torch import Tensor, nn

from proard_nas.attacks import AttackBudget, Noise, kl_each

__all__ = [
    "AttackBudget",
    "Batch",
    "Noise",
    "Objective",
    "Passes",
    "check_weights",
    "kl_divergence",
    "kl_each",
    "needed",
]


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a loss sees of one step.

    Parameters
    ----------
    x : Tensor of shape (N, C, H, W)
        Clean images in [0, 1].
    y : Tensor of shape (N,)
        Labels, class indices.
    teacher_logits : Tensor of shape (N, K), default=None
        The teacher's on ``x``, detached.
    teacher : nn.Module, default=None
        In eval mode and frozen, for losses that ask it about other images.
    helper : nn.Module, default=None
        A naturally trained network, in eval mode and frozen, for `HAT`.
    """

    x: Tensor
    y: Tensor
    teacher_logits: Tensor | None = None
    teacher: nn.Module | None = None
    helper: nn.Module | None = None


@dataclasses.dataclass(frozen=True)
class Passes:
    """How often networks are run in one step: what a loss costs.

    Parameters
    ----------
    student : int
        Forward passes of the student in the outer loss, each with a backward pass to the weights.
    attacked : bool, default=True
        Whether there is an inner attack: forward and backward to the images in each of its steps.
    setup : int, default=0
        Further forward passes of the student before the attack, such as TRADES' clean logits.
    teacher : int, default=0
        Forward passes of the teacher outside the attack, ``Batch.teacher_logits`` among them.
    teacher_in_attack : bool, default=False
        Whether each step of the attack also runs the teacher forward and backward to the images.
    helper : int, default=0
        Forward passes of the helper.
    """

    student: int
    attacked: bool = True
    setup: int = 0
    teacher: int = 0
    teacher_in_attack: bool = False
    helper: int = 0


class Objective(Protocol):
    """A training loss with its inner attack; new ones need these four members.

    A class attribute ``needs_helper = True`` asks for ``Batch.helper``.
    """

    @property
    def needs_teacher(self) -> bool:
        """Whether ``Batch.teacher_logits`` and ``Batch.teacher`` are needed; a class attribute will do."""

    @property
    def passes(self) -> Passes:
        """What one step costs; a class attribute will do."""

    def adversarial(self, net: nn.Module, batch: Batch, budget: AttackBudget, noise: Noise) -> Tensor | None:
        """Return adversarial images for the batch, or None where the loss uses none."""

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor | None) -> Tensor:
        """Return the batch's mean loss; gradients flow into the network only."""


def kl_divergence(target_logits: Tensor, logits: Tensor) -> Tensor:
    """Return KL(softmax(target) || softmax(logits)): summed over classes, averaged over the batch.

    Parameters
    ----------
    target_logits, logits : Tensor of shape (N, K)

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> float(kl_divergence(logits, logits))
    0.0
    """
    return kl_each(target_logits, logits).mean()


def needed(value: T | None, what: str) -> T:
    """Return what a loss cannot do without, or raise ValueError saying what is missing."""
    if value is None:
        raise ValueError(f"this loss needs {what}, and the batch has none")
    return value


def check_weights(largest: float = float("inf"), **weights: float) -> None:
    """Raise ValueError unless every weight, given by its name, is in [0, largest]."""
    for name, value in weights.items():
        if not 0 <= value <= largest or value == float("inf"):
            bounds = "not be negative" if largest == float("inf") else f"be in [0, {largest:g}]"
            raise ValueError(f"{name} must {bounds}, got {value}")
