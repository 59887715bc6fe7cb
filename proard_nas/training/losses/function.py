"""A plain function as a training loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor, nn

from proard_nas.attacks import divergence, inner_attack

from .base import AttackBudget, Batch, Noise, Passes, needed

LossFunction = Callable[[nn.Module, Batch, Tensor | None], Tensor]


@dataclasses.dataclass(frozen=True)
class FunctionLoss:
    """Trains with ``fn(net, batch, x_adv)``, and attacks the teacher's clean output or else the labels.

    Parameters
    ----------
    fn : callable
        Returns the batch's mean loss. Its attributes, where it has them, say what it needs:
        ``needs_teacher`` (then the attack is RSLAD's, otherwise `SAT`'s), ``needs_helper``, and
        ``passes``, by default ``Passes(student=2)`` and the teacher once where there is one;
        ``Passes(..., attacked=False)`` leaves the attack out.
    """

    fn: LossFunction

    @property
    def needs_teacher(self) -> bool:
        """Whether the function asks for a teacher."""
        return bool(getattr(self.fn, "needs_teacher", False))

    @property
    def needs_helper(self) -> bool:
        """Whether the function asks for a helper."""
        return bool(getattr(self.fn, "needs_helper", False))

    @property
    def passes(self) -> Passes:
        """What one step costs, as the function states it."""
        passes = getattr(self.fn, "passes", None)
        return passes if isinstance(passes, Passes) else Passes(student=2, teacher=int(self.needs_teacher))

    def adversarial(self, net: nn.Module, batch: Batch, budget: AttackBudget, noise: Noise) -> Tensor | None:
        """Attack the teacher's clean output, or the labels where there is no teacher."""
        if not self.passes.attacked:
            return None
        if not self.needs_teacher:
            return inner_attack(net, batch.x, batch.y, budget, noise)
        target = needed(batch.teacher_logits, "the teacher's logits")
        return inner_attack(net, batch.x, target, budget, noise, objective=divergence, start="gaussian")

    def loss(self, net: nn.Module, batch: Batch, x_adv: Tensor | None) -> Tensor:
        """Return what the function returns."""
        return self.fn(net, batch, x_adv)
