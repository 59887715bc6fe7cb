"""Attacks that evaluate: torchattacks' own, and PGD that counts the worst iterate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchattacks import FGSM, PGD
from torchattacks.attack import Attack

from proard_nas._errors import check_name

from .budget import EPS, STEP_SIZE, check_budget
from .modes import attack_mode, seeded


class WorstCasePGD(PGD):  # type: ignore[misc]
    """torchattacks' PGD that keeps, for each image, the first iterate that fools the network.

    An image counts as fooled if the start or any iterate fools it, which is the worst case over
    the attack and never gives a higher accuracy than the last iterate alone. A fooled image is
    left out of the iterations that follow; that changes no result as long as the network treats
    images one by one (eval mode).

    Parameters
    ----------
    model, eps, alpha, steps, random_start
        As in `torchattacks.PGD`.
    drop_fooled : bool, default=True
        False iterates over all images all the same: for checking, and slower.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = EPS,
        alpha: float = STEP_SIZE,
        steps: int = 20,
        random_start: bool = True,
        drop_fooled: bool = True,
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start)
        self.supported_mode = ["default"]
        self.drop_fooled = drop_fooled

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return, for each image, the first iterate that fools the network, else the last."""
        images, labels = images.detach(), labels.detach()
        current = images
        if self.random_start:
            current = (images + torch.empty_like(images).uniform_(-self.eps, self.eps)).clamp(0, 1)
        result, index = current.clone(), torch.arange(len(images), device=images.device)
        fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        for _ in range(self.steps):
            current, wrong = self._step(current, images[index], labels[index])
            new = wrong & ~fooled[index]
            result[index[~fooled[index] & ~new]] = current[~fooled[index] & ~new]
            fooled[index[new]] = True
            if self.drop_fooled:
                current, index = current[~wrong], index[~wrong]
            if len(index) == 0:
                break
        return result

    def _step(self, current: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next iterate, and which images the present one fools."""
        current = current.detach().requires_grad_()
        logits = self.get_logits(current)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), labels, reduction="sum"), current)
        step = current.detach().add(gradient.sign(), alpha=self.alpha)
        delta = (step - images).clamp(-self.eps, self.eps)
        return (images + delta).clamp(0, 1), logits.argmax(1) != labels


ATTACKS: dict[str, Callable[..., Attack]] = {
    "fgsm": lambda model, eps, step_size, steps: FGSM(model, eps=eps),
    "pgd": lambda model, eps, step_size, steps: WorstCasePGD(model, eps=eps, alpha=step_size, steps=steps),
}


def make_attack(
    name: str, model: nn.Module, *, eps: float = EPS, step_size: float = STEP_SIZE, steps: int = 20
) -> Attack:
    """Build an evaluation attack by name.

    Parameters
    ----------
    name : {'fgsm', 'pgd'}
        ``'pgd'`` is `WorstCasePGD`.
    model : nn.Module
    eps : float, default=8/255
        Largest change of a pixel, images in [0, 1].
    step_size : float, default=2/255
    steps : int, default=20

    Raises
    ------
    ValueError
        For an unknown name, or ``eps``, ``step_size`` or ``steps`` that are not positive.
    """
    check_name("attack", name, ATTACKS)
    check_budget(eps, step_size, steps)
    return ATTACKS[name](model, eps, step_size, steps)


def run_attack(
    attack: Attack, images: Tensor, labels: Tensor, *, batch_norm: str = "running", seed: int | None = None
) -> Tensor:
    """Run an attack and leave every module's mode, every statistic and the global generator as they were.

    Parameters
    ----------
    attack : torchattacks.attack.Attack
    images : Tensor of shape (N, C, H, W) in [0, 1]
    labels : Tensor
        What the attack takes: class indices (N,), or an `InnerAttack`'s target.
    batch_norm : {'running', 'batch', 'clean'}, default='running'
        See `attack_mode`; ``'clean'`` takes the statistics of ``images``.
    seed : int, default=None
        Seeds torch's global generator for the attack, which torchattacks draws from.
    """
    with torch.enable_grad(), attack_mode(attack.model, batch_norm, images), seeded(seed):
        return attack.forward(images, labels)  # type: ignore[no-any-return]
