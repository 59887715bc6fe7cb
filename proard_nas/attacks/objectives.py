"""What an inner attack maximises: sums over the batch, in float32 whatever the network computes in."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

AttackObjective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From adversarial images (N, C, H, W), their logits (N, K) and the attack's target to one number."""


def cross_entropy(adversarial: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy with the labels ``target`` (N,), summed over the batch (Madry et al. 2018)."""
    return F.cross_entropy(logits.float(), target, reduction="sum")


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return, for each image, whether its largest logit (N, K) is its label's; one with a NaN among them never is."""
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)


def divergence(adversarial: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """Return KL(softmax(target) || softmax(logits)) for target logits (N, K), summed over the batch."""
    return kl_each(target, logits).sum()


def kl_each(target_logits: Tensor, logits: Tensor) -> Tensor:
    """Return KL(softmax(target) || softmax(logits)) of each image: summed over classes, in float32.

    Parameters
    ----------
    target_logits, logits : Tensor of shape (N, K)
        Gradients flow into both.

    Returns
    -------
    Tensor of shape (N,)
    """
    target = target_logits.float().log_softmax(1)
    return F.kl_div(logits.float().log_softmax(1), target, reduction="none", log_target=True).sum(1)
