"""Natural and robust accuracy of any network, with what is needed to repeat the figure."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from typing import Any

import torch
from torch import Tensor, nn

from proard_nas._errors import check_name
from proard_nas._random import derive_seed
from proard_nas.attacks import ATTACKS, EPS, STEP_SIZE, check_budget, make_attack, run_attack
from proard_nas.data import Source
from proard_nas.supernets import StudentNet

from .calibration import require_calibrated

NATURAL = "natural"


@dataclasses.dataclass(frozen=True)
class AttackSettings:
    """An evaluation attack, l-infinity, images in [0, 1].

    Parameters
    ----------
    name : {'natural', 'fgsm', 'pgd'}, default='pgd'
        ``'natural'`` attacks nothing. ``'pgd'`` counts an image as fooled if any iterate fools it.
    eps : float, default=8/255
    step_size : float, default=2/255
    steps : int, default=20
    """

    name: str = "pgd"
    eps: float = EPS
    step_size: float = STEP_SIZE
    steps: int = 20

    def __post_init__(self) -> None:
        check_name("attack", self.name, (NATURAL, *ATTACKS))
        check_budget(self.eps, self.step_size, self.steps)

    @property
    def title(self) -> str:
        """The attack's usual name, such as ``'PGD-20'``."""
        return f"PGD-{self.steps}" if self.name == "pgd" else {"fgsm": "FGSM", NATURAL: "natural"}[self.name]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One accuracy and how it was measured.

    Attributes
    ----------
    accuracy : float
        Share of images classified rightly (under the attack), in [0, 1].
    n_images : int
    attack : str
        The attack's title; ``eps``, ``step_size`` and ``steps`` are None where it has none.
    seed : int
    seconds : float
    versions : dict of str to str
    """

    accuracy: float
    n_images: int
    attack: str
    eps: float | None
    step_size: float | None
    steps: int | None
    seed: int
    seconds: float
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return dataclasses.asdict(self)


def evaluate(
    network: nn.Module,
    source: Source,
    attack: AttackSettings | str = "pgd",
    *,
    batch_size: int = 256,
    seed: int = 0,
) -> Evaluation:
    """Measure a network's accuracy, natural or under an attack.

    Parameters
    ----------
    network : nn.Module
        Any network from images (N, C, H, W) in [0, 1] to logits; it is left as it was.
    source : Source
        Images and labels.
    attack : AttackSettings or str, default='pgd'
        A name stands for the default settings: ``'natural'``, ``'fgsm'`` or ``'pgd'`` (PGD-20).
    batch_size : int, default=256
    seed : int, default=0
        Of the attack's random start; the same for every network.

    Raises
    ------
    UncalibratedError
        If the network is a student without batch norm statistics of its own.
    """
    settings = AttackSettings(attack) if isinstance(attack, str) else attack
    if isinstance(network, StudentNet):
        require_calibrated(network)
    start, right, total = time.perf_counter(), 0, 0
    for index, (x, y) in enumerate(source.batches(batch_size)):
        right += int(correct(network, x, y, settings, derive_seed(seed, "evaluate", index)).sum())
        total += len(x)
    has = settings.name != NATURAL
    iterates = settings.name == "pgd"
    return Evaluation(
        accuracy=right / total,
        n_images=total,
        attack=settings.title,
        eps=settings.eps if has else None,
        step_size=settings.step_size if iterates else None,
        steps=settings.steps if iterates else None,
        seed=seed,
        seconds=time.perf_counter() - start,
        versions=versions(),
    )


def correct(network: nn.Module, x: Tensor, y: Tensor, settings: AttackSettings, seed: int) -> Tensor:
    """Return, for each image, whether it is classified rightly, naturally and under the attack.

    Images that are wrong without any attack are not attacked.
    """
    device = next(network.parameters()).device
    x, y = x.to(device), y.to(device)
    right = predict_logits(network, x).argmax(1) == y
    if settings.name == NATURAL or not right.any():
        return right
    attack = make_attack(settings.name, network, eps=settings.eps, step_size=settings.step_size, steps=settings.steps)
    adversarial = run_attack(attack, x[right], y[right], seed=seed)
    right = right.clone()
    right[right.clone()] = predict_logits(network, adversarial).argmax(1) == y[right]
    return right


def predict_logits(network: nn.Module, x: Tensor) -> Tensor:
    """Return logits in eval mode, without gradients; the network's modes are left as they were."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            return network.eval()(x)  # type: ignore[no-any-return]
    finally:
        for module, mode in modes:
            module.training = mode


def versions() -> dict[str, str]:
    """Return the versions of the packages that a figure depends on."""
    names = ("proard-nas", "torch", "timm", "torchattacks", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
