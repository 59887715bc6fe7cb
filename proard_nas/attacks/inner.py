"""The attack inside a training loss: one loop for every objective and every method."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchattacks import PGD

from proard_nas._errors import check_name

from .budget import EPS, STEP_SIZE, AttackBudget
from .modes import attack_mode
from .noise import Noise
from .objectives import AttackObjective, cross_entropy

GAUSSIAN = 0.001
FFGSM_STEP, N_FGSM_NOISE = 1.25, 2.0
STARTS = ("gaussian", "uniform")


class InnerAttack(PGD):  # type: ignore[misc]
    """Projected gradient ascent on any objective, l-infinity.

    Gradients are taken with respect to the images alone. Results lie between
    ``(images - eps).clamp(min=0)`` and ``(images + eps).clamp(max=1)`` exactly.

    Parameters
    ----------
    model : nn.Module
        Maps images (N, C, H, W) in [0, 1] to logits (N, K); used in the mode it is in.
    eps : float, default=8/255
        Largest change of a pixel.
    alpha : float, default=2/255
        Step size.
    steps : int, default=10
    objective : callable, default=`cross_entropy`
        ``objective(adversarial, logits, target)`` is maximised; a sum over the batch.
    start : Tensor of shape (N, C, H, W), default=None
        Added to the images before the first step; None starts at the images.
    project : bool, default=True
        False keeps the result in [0, 1] but not within eps.

    Shape:
        - images: (N, C, H, W) in [0, 1]; labels: the objective's target; output: (N, C, H, W).

    Examples
    --------
    >>> attack = InnerAttack(student, objective=divergence)  # doctest: +SKIP
    >>> adversarial = attack.forward(images, teacher(images))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = EPS,
        alpha: float = STEP_SIZE,
        steps: int = 10,
        objective: AttackObjective = cross_entropy,
        start: Tensor | None = None,
        project: bool = True,
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start=start is not None)
        self.supported_mode = ["default"]
        self.objective, self.start, self.project = objective, start, project

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute and nothing else.

        torchattacks looks for attacks inside the value, in a function that refers to itself: every attack then keeps
        its network until the garbage collector runs, and training makes one for each step.
        """
        object.__setattr__(self, name, value)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return adversarial images; ``labels`` is the objective's target."""
        images = images.detach()
        reach = self.eps if self.project else float("inf")
        low, high = (images - reach).clamp(min=0), (images + reach).clamp(max=1)
        adversarial = images if self.start is None else (images + self.start).to(images.dtype).clamp(low, high)
        for _ in range(self.steps):
            adversarial = adversarial.detach().requires_grad_()
            value = self.objective(adversarial, self.get_logits(adversarial), labels)
            (gradient,) = torch.autograd.grad(value, adversarial)
            adversarial = adversarial.detach().add(gradient.sign(), alpha=self.alpha).clamp_(low, high)
        return adversarial


def inner_attack(
    model: nn.Module,
    images: Tensor,
    target: Tensor | None,
    budget: AttackBudget,
    noise: Noise,
    *,
    objective: AttackObjective = cross_entropy,
    start: str = "uniform",
) -> Tensor:
    """Attack a network in training, and leave its modes, statistics and gradients as they were.

    Parameters
    ----------
    model : nn.Module
    images : Tensor of shape (N, C, H, W) in [0, 1]
    target : Tensor or None
        The objective's; None takes the model's own logits for the clean images.
    budget : AttackBudget
    noise : Noise
        One draw is taken from it.
    objective : callable, default=`cross_entropy`
        See `InnerAttack`.
    start : {'uniform', 'gaussian'}, default='uniform'
        Of PGD: uniform in the ball (Madry et al. 2018) or Gaussian with a standard deviation
        of 0.001 (Zhang et al. 2019). Single-step methods have their own; see `AttackBudget`.

    Returns
    -------
    Tensor of shape (N, C, H, W), detached
    """
    check_name("start", start, STARTS)
    eps, alpha = budget.eps, budget.step_size
    if budget.method == "n-fgsm":
        alpha, perturbation = eps, N_FGSM_NOISE * eps * noise.uniform(images)
    elif budget.method == "ffgsm":
        alpha, perturbation = FFGSM_STEP * eps, eps * noise.uniform(images)
    else:
        perturbation = GAUSSIAN * noise.normal(images) if start == "gaussian" else eps * noise.uniform(images)
    project = budget.method != "n-fgsm"
    attack = InnerAttack(model, eps, alpha, budget.n_steps, objective, perturbation, project)
    with torch.enable_grad(), attack_mode(model, budget.batch_norm, images):
        if target is None:
            with torch.no_grad():
                target = model(images)
        return attack.forward(images, target)
