"""Attacks: torchattacks' own, and two subclasses of its `Attack` that distillation and evaluation need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchattacks import FGSM, PGD
from torchattacks.attack import Attack

from ._errors import check_name

EPS = 8 / 255
STEP_SIZE = 2 / 255


class DistillationPGD(Attack):  # type: ignore[misc]
    """PGD that drives a network's output away from given logits.

    Maximises KL(softmax(target) || softmax(model(x + delta))) in the l-infinity ball: the inner
    maximisation of RSLAD with the teacher's logits as target (ProARD, equation 2) and of TRADES
    with the network's own clean logits.

    Parameters
    ----------
    model : nn.Module
        Maps images (N, C, H, W) in [0, 1] to logits (N, K).
    eps : float, default=8/255
        Largest change of a pixel.
    alpha : float, default=2/255
        Step size.
    steps : int, default=10
    noise : float, default=0.001
        Standard deviation of the Gaussian start (RSLAD's and TRADES' own).
    generator : torch.Generator, default=None
        Source of the start; None is the global one, as in torchattacks.

    Shape:
        - images: (N, C, H, W) in [0, 1]; labels: target *logits* (N, K); output: (N, C, H, W).

    Examples
    --------
    >>> attack = DistillationPGD(student, eps=8/255, steps=10)  # doctest: +SKIP
    >>> adversarial = attack(images, teacher(images))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = EPS,
        alpha: float = STEP_SIZE,
        steps: int = 10,
        noise: float = 0.001,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__("DistillationPGD", model)
        self.eps, self.alpha, self.steps, self.noise = eps, alpha, steps, noise
        self._generator = generator
        self.supported_mode = ["default"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return adversarial images; ``labels`` are the target logits."""
        target = labels.detach().float().softmax(1)
        images = images.detach()
        start = torch.empty_like(images).normal_(0, self.noise, generator=self._generator)
        adversarial = (images + start).clamp(0, 1)
        low, high = (images - self.eps).clamp(min=0), (images + self.eps).clamp(max=1)
        for _ in range(self.steps):
            adversarial.requires_grad_()
            cost = F.cross_entropy(self.get_logits(adversarial).float(), target, reduction="sum")
            (gradient,) = torch.autograd.grad(cost, adversarial)
            step = adversarial.detach().add(gradient.sign(), alpha=self.alpha)
            adversarial = torch.minimum(torch.maximum(step, low), high)
        return adversarial.detach()


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


def check_budget(eps: float, step_size: float, steps: int) -> None:
    """Raise ValueError unless 0 < eps <= 1, step_size > 0 and steps is a positive whole number."""
    if not 0 < eps <= 1:
        raise ValueError(f"eps must be in (0, 1], in units of images in [0, 1]; got {eps} (the paper's is 8/255)")
    if not step_size > 0:
        raise ValueError(f"step_size must be positive, got {step_size}")
    if not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f"the number of attack steps must be a positive integer, got {steps!r}")


def run_attack(
    attack: Attack, images: Tensor, labels: Tensor, *, batch_norm: str = "running", seed: int | None = None
) -> Tensor:
    """Run an attack and leave every module's mode, every statistic and the global generator as they were.

    Parameters
    ----------
    attack : torchattacks.attack.Attack
    images : Tensor of shape (N, C, H, W) in [0, 1]
    labels : Tensor
        What the attack takes: class indices (N,), or logits (N, K) for `DistillationPGD`.
    batch_norm : {'running', 'batch'}, default='running'
        Whether batch norms use their own statistics (evaluation) or the batch's, which are then
        not recorded (training).
    seed : int, default=None
        Seeds torch's global generator for the attack, which torchattacks draws from.
    """
    with torch.enable_grad(), attack_mode(attack.model, batch_norm), seeded(seed):
        return attack.forward(images, labels)  # type: ignore[no-any-return]


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch's global generators inside, and put them back as they were; None does nothing."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def attack_mode(model: nn.Module, batch_norm: str = "running") -> Iterator[None]:
    """Put a network in eval mode inside, and every module back in its own mode after.

    ``batch_norm='batch'`` lets batch norms use the batch's statistics, without recording them.
    """
    check_name("batch norm mode", batch_norm, ("running", "batch"))
    saved: list[tuple[nn.Module, bool]] = [(module, module.training) for module in model.modules()]
    norms: list[Any] = [m for m, _ in saved if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    tracking = [norm.track_running_stats for norm in norms]
    try:
        for module, _ in saved:
            module.training = False
        if batch_norm == "batch":
            for norm in norms:
                norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for module, mode in saved:
            module.training = mode
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked
