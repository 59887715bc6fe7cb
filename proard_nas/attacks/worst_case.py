"""PGD that counts the worst iterate, on the cross-entropy or on another objective."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchattacks import PGD

from .budget import EPS, STEP_SIZE
from .objectives import AttackObjective, cross_entropy, is_right


def margin(adversarial: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Return the largest wrong logit minus the right one, summed over the batch.

    Carlini and Wagner's f_6 without its bound ("Towards Evaluating the Robustness of Neural Networks", 2017,
    section V.A), as PGD maximises it in Madry et al. 2018. It has gradients where a softmax has saturated.
    """
    logits, target = logits.float(), target[:, None]
    right = logits.gather(1, target).squeeze(1)
    wrong = logits.scatter(1, target, -torch.inf).amax(1)
    return (wrong - right).sum()


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
    objective : callable, default=`cross_entropy`
        ``objective(adversarial, logits, labels)`` is maximised; a sum over the batch. With `margin`
        this is the l-infinity form of Carlini and Wagner's attack.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = EPS,
        alpha: float = STEP_SIZE,
        steps: int = 20,
        random_start: bool = True,
        drop_fooled: bool = True,
        objective: AttackObjective = cross_entropy,
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start)
        self.supported_mode = ["default"]
        self.drop_fooled, self.objective = drop_fooled, objective

    def forward(self, images: Tensor, labels: Tensor, among: Tensor | None = None) -> Tensor:
        """Return, for each image, the first iterate that fools the network, else the last; see `run_attack`."""
        images, labels = images.detach(), labels.detach()
        current = (images + self._start(images, among)).clamp(0, 1) if self.random_start else images
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

    def _start(self, images: Tensor, among: Tensor | None) -> Tensor:
        """Draw uniform starts, of the whole batch that the images are among."""
        if among is None:
            return torch.empty_like(images).uniform_(-self.eps, self.eps)
        last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        layout = torch.channels_last if last else torch.contiguous_format  # numbers are drawn in the order of memory
        shape = (len(among), *images.shape[1:])
        whole = torch.empty(shape, dtype=images.dtype, device=images.device, memory_format=layout)
        return whole.uniform_(-self.eps, self.eps)[among]

    def _step(self, current: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next iterate, and which images the present one fools."""
        current = current.detach().requires_grad_()
        logits = self.get_logits(current)
        (gradient,) = torch.autograd.grad(self.objective(current, logits, labels), current)
        step = current.detach().add(gradient.sign().nan_to_num_(0.0), alpha=self.alpha)  # no step where there is none
        delta = (step - images).clamp(-self.eps, self.eps)
        return (images + delta).clamp(0, 1), ~is_right(logits, labels)
