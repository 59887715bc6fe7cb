"""AutoAttack, in torchattacks' version and in the reference code of its authors (Croce and Hein, ICML 2020)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn
from torchattacks.attack import Attack

from .budget import EPS
from .modes import seeded

TARGETED_DLR_CLASSES = 4  # its formula has the fourth largest logit
REFERENCE_TARGETS = 9


class AutoAttack(Attack):  # type: ignore[misc]
    """torchattacks' AutoAttack, version 'standard', l-infinity: APGD-CE, APGD-T, FAB-T, Square, one after the other.

    It takes 10 steps in APGD where the reference takes 100, so it is the weaker of the two. All wrong classes
    are targets, as many as there are. With fewer than 4 classes APGD-T has no loss and is left out.

    Parameters
    ----------
    model : nn.Module
    eps : float, default=8/255
    seed : int, default=0
    queries : int, default=5000
        Of Square; fewer only to try something out.
    """

    def __init__(self, model: nn.Module, eps: float = EPS, seed: int = 0, queries: int = 5000) -> None:
        super().__init__("AutoAttack", model)
        self.eps, self.seed, self.queries = eps, seed, queries

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return adversarial images; the clean ones where no attack succeeds."""
        images = images.contiguous()  # FAB's views of an image's pixels are of this layout
        n_classes = count_classes(self.model, images)
        whole = torchattacks.AutoAttack(self.model, eps=self.eps, n_classes=n_classes, seed=self.seed)
        parts = whole._autoattack
        if n_classes < TARGETED_DLR_CLASSES:
            parts.attacks = [part for part in parts.attacks if not isinstance(part, torchattacks.APGDT)]
        for part in parts.attacks:
            if isinstance(part, torchattacks.Square):
                part.n_queries = self.queries
        with seeded(self.seed), frozen(self.model):
            return within(whole.forward(images, labels), images, self.eps)


class ReferenceAutoAttack(Attack):  # type: ignore[misc]
    """AutoAttack as its authors wrote it, version 'standard', l-infinity, from the package pyautoattack.

    Up to 9 wrong classes are targets, as in the original. With fewer than 4 classes APGD-T has no loss and
    is left out.

    Parameters
    ----------
    model : nn.Module
    eps : float, default=8/255
    seed : int, default=0
    queries : int, default=5000
        Of Square; fewer only to try something out.

    Raises
    ------
    ImportError
        If pyautoattack is not installed.
    """

    def __init__(self, model: nn.Module, eps: float = EPS, seed: int = 0, queries: int = 5000) -> None:
        reference_module()
        super().__init__("AutoAttack (reference)", model)
        self.eps, self.seed, self.queries = eps, seed, queries

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return adversarial images; the clean ones where no attack succeeds."""
        images = images.contiguous()
        n_classes = count_classes(self.model, images)
        attack = reference_module().AutoAttack(
            self.model, norm="Linf", eps=self.eps, seed=self.seed, device=images.device, version="standard"
        )
        targets = min(REFERENCE_TARGETS, n_classes - 1)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
        attack.square.n_queries = self.queries
        if n_classes < TARGETED_DLR_CLASSES:
            attack.attacks_to_run = [name for name in attack.attacks_to_run if name != "apgd-t"]
        with seeded(self.seed), frozen(self.model), trace_kept():
            adversarial, _ = attack.run_standard_evaluation(images.detach(), labels, batch_size=len(images))
        return within(adversarial, images, self.eps)


def reference_module() -> Any:
    """Import pyautoattack.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        return importlib.import_module("pyautoattack")
    except ImportError as error:
        raise ImportError(
            'the reference AutoAttack needs pyautoattack: pip install "proard-nas[autoattack]"'
        ) from error


def autoattack_title(n_classes: int | None = None) -> str:
    """Return what figures under torchattacks' AutoAttack say."""
    return f"AutoAttack (torchattacks {importlib.metadata.version('torchattacks')}, {_parts(n_classes)})"


def reference_title(n_classes: int | None = None) -> str:
    """Return what figures under the reference AutoAttack say."""
    version = reference_module().__version__
    return f"AutoAttack (reference, pyautoattack {version}, {_parts(n_classes)})"


def _parts(n_classes: int | None) -> str:
    few = n_classes is not None and n_classes < TARGETED_DLR_CLASSES
    return f"standard without APGD-T, which needs 4 classes; here are {n_classes}" if few else "standard"


def count_classes(model: nn.Module, images: Tensor) -> int:
    """Return the number of logits."""
    with torch.no_grad():
        return int(model(images[:1]).shape[1])


def within(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """Return adversarial images put back into the ball and [0, 1], should they have left it by a rounding error."""
    return adversarial.detach().clamp((images - eps).clamp(min=0), (images + eps).clamp(max=1))


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no gradient of a parameter be computed inside: FAB would add to them.

    A live student's slices are no leaves, whose flag could be changed: their detached form takes their place.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
    slices: list[tuple[Any, str, Tensor]] = [
        (module._parameters, name, value)
        for module in model.modules()
        for name, value in module._parameters.items()
        if value is not None and not value.is_leaf
    ]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        for own, name, value in slices:
            own[name] = value.detach()
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        for own, name, value in slices:
            own[name] = value


@contextlib.contextmanager
def trace_kept() -> Iterator[None]:
    """Put the interpreter's trace function back: the reference code's check for dynamic defenses unsets it."""
    trace = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(trace)
