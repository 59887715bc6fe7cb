"""Evaluation attacks by name, and how they are run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchattacks import FGSM
from torchattacks.attack import Attack

from proard_nas._errors import check_name

from .autoattack import AutoAttack, ReferenceAutoAttack, autoattack_title, reference_title
from .budget import EPS, STEP_SIZE, check_budget
from .modes import attack_mode, seeded
from .square import QUERIES, Square
from .worst_case import WorstCasePGD, margin

STEPS = 20
MIN_QUERIES = 100

ATTACKS: dict[str, Callable[..., Attack]] = {
    "fgsm": lambda model, eps, step_size, steps, seed: FGSM(model, eps=eps),
    "pgd": lambda model, eps, step_size, steps, seed: WorstCasePGD(model, eps=eps, alpha=step_size, steps=steps),
    "cw": lambda model, eps, step_size, steps, seed: WorstCasePGD(
        model, eps=eps, alpha=step_size, steps=steps, objective=margin
    ),
    "square": lambda model, eps, step_size, steps, seed: Square(model, eps=eps, n_queries=steps, seed=seed),
    "autoattack": lambda model, eps, step_size, steps, seed: AutoAttack(model, eps=eps, seed=seed),
    "autoattack-reference": lambda model, eps, step_size, steps, seed: ReferenceAutoAttack(model, eps=eps, seed=seed),
}
BUILT_IN = frozenset(ATTACKS)
ITERATED = ("pgd", "cw")


def make_attack(
    name: str,
    model: nn.Module,
    *,
    eps: float = EPS,
    step_size: float = STEP_SIZE,
    steps: int | None = None,
    seed: int = 0,
) -> Attack:
    """Build an evaluation attack by name; all are l-infinity.

    Parameters
    ----------
    name : {'fgsm', 'pgd', 'cw', 'square', 'autoattack', 'autoattack-reference'}
        ``'pgd'`` is `WorstCasePGD`, ``'cw'`` the same on Carlini and Wagner's `margin`, ``'square'``
        the black-box Square attack. ``'autoattack'`` is torchattacks' AutoAttack, weaker than the
        authors' own; ``'autoattack-reference'`` is that one and needs
        ``pip install "proard-nas[autoattack]"``.
    model : nn.Module
    eps : float, default=8/255
        Largest change of a pixel, images in [0, 1].
    step_size : float, default=2/255
        Of ``'pgd'`` and ``'cw'``.
    steps : int, default=None
        Of ``'pgd'`` and ``'cw'``, and the queries of ``'square'``; see `attack_steps` for None. The
        others have their own.
    seed : int, default=0
        Of Square and both AutoAttacks, which seed themselves; PGD's start is seeded by `run_attack`.

    Raises
    ------
    ValueError
        For an unknown name, or ``eps``, ``step_size`` or ``steps`` that are not positive or too small.
    ImportError
        If the reference AutoAttack is asked for and not installed.
    """
    check_name("attack", name, ATTACKS)
    steps = attack_steps(name, steps)
    check_budget(eps, step_size, steps)
    return ATTACKS[name](model, eps, step_size, steps, seed)


def register_attacks(own: Mapping[str, Callable[..., Attack]]) -> None:
    """Add attacks of one's own to `ATTACKS`: a worker process has only those that come with the library."""
    ATTACKS.update(own)


def attack_steps(name: str, steps: int | None = None) -> int:
    """Return the steps of an attack: those given, else 20, and 5000 queries for ``'square'``.

    Raises
    ------
    ValueError
        For fewer than 100 queries of Square: a figure under so weak an attack says nothing.
    """
    if steps is None:
        return QUERIES if name == "square" else STEPS
    if name == "square" and steps < MIN_QUERIES:
        raise ValueError(
            f"'square' counts its queries in steps, and {steps} are too few to mean anything; "
            f"give {MIN_QUERIES} or more, or leave steps out for {QUERIES}"
        )
    return steps


def attack_title(name: str, steps: int | None = None, n_classes: int | None = None) -> str:
    """Return an attack's usual name, such as ``'PGD-20'``; of an AutoAttack, which code it is and what it leaves out.

    Raises
    ------
    ImportError
        If the reference AutoAttack is asked for and not installed.
    """
    steps = attack_steps(name, steps)
    titles: dict[str, Callable[[], str]] = {
        "fgsm": lambda: "FGSM",
        "pgd": lambda: f"PGD-{steps}",
        "cw": lambda: f"CW-inf-{steps}",
        "square": lambda: f"Square-{steps}",
        "autoattack": lambda: autoattack_title(n_classes),
        "autoattack-reference": lambda: reference_title(n_classes),
    }
    return titles[name]() if name in titles else name


def run_attack(
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    *,
    batch_norm: str = "running",
    seed: int | None = None,
    among: Tensor | None = None,
) -> Tensor:
    """Run an attack and leave every module's mode, every statistic and the global generator as they were.

    Pixels that become no number, where a gradient is none, stay as they were.

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
    among : Tensor of shape (M,), bool, default=None
        The images are those of a batch of M that are True here: `WorstCasePGD` and `Square` then do to each
        what they would have done with all M. Attacks that cannot do so go without it.
    """
    more = {"among": among} if among is not None and "among" in inspect.signature(attack.forward).parameters else {}
    with torch.enable_grad(), attack_mode(attack.model, batch_norm, images), seeded(seed, images.device):
        made: Tensor = attack.forward(images, labels, **more)
        return torch.where(made.isfinite(), made, images)
