"""Natural and robust accuracy of any network, with what is needed to repeat the figure."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from proard_nas._errors import check_name
from proard_nas._random import derive_seed
from proard_nas.attacks import (
    ATTACKS,
    BUILT_IN,
    EPS,
    ITERATED,
    STEP_SIZE,
    attack_steps,
    attack_title,
    check_budget,
    make_attack,
    run_attack,
)
from proard_nas.attacks.objectives import is_right
from proard_nas.data import Source, check_label_range, check_source
from proard_nas.data.checks import check_pixels

from .calibration import require_calibrated_students

Number = TypeVar("Number", int, float)

NATURAL = "natural"
COUNTED = (*ITERATED, "square")
REFERENCE = "autoattack-reference"
NO_IMAGE = "there is no image to measure on; allowed: at least one"


@dataclasses.dataclass(frozen=True)
class AttackSettings:
    """An evaluation attack, l-infinity, images in [0, 1].

    Parameters
    ----------
    name : str, default='pgd'
        ``'natural'`` attacks nothing. ``'fgsm'``: one step. ``'pgd'`` and ``'cw'`` (PGD on Carlini and
        Wagner's margin) count an image as fooled if any iterate fools it. ``'square'`` is black-box.
        ``'autoattack'`` is torchattacks' version, ``'autoattack-reference'`` the authors' own code; the
        second is the stronger one, and needs ``pip install "proard-nas[autoattack]"``.
    eps : float, default=8/255
    step_size : float, default=2/255
        Of ``'pgd'`` and ``'cw'``.
    steps : int, default=None
        Of ``'pgd'`` and ``'cw'``; None is 20. Of ``'square'`` the queries, at least 100; None is 5000.
        The number itself once constructed, never None.

    Examples
    --------
    >>> AttackSettings("cw").title, AttackSettings("square").title
    ('CW-inf-20', 'Square-5000')
    """

    name: str = "pgd"
    eps: float = EPS
    step_size: float = STEP_SIZE
    steps: int | None = None

    def __post_init__(self) -> None:
        check_name("attack", self.name, (NATURAL, *ATTACKS))
        numbers = check_budget(self.eps, self.step_size, attack_steps(self.name, self.steps))
        for name, value in numbers.items():
            object.__setattr__(self, name, value)

    @property
    def title(self) -> str:
        """The attack's usual name, such as ``'PGD-20'``; an AutoAttack's says which code it is."""
        return attack_title(self.name, self.steps)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One accuracy and how it was measured.

    Attributes
    ----------
    accuracy : float
        Share of images classified rightly (under the attack), in [0, 1].
    n_images : int
    attack : str
        The attack's title; ``eps``, ``step_size`` and ``steps`` (for Square, queries) are None where it has none,
        and where several attacks together differ in them.
    seed : int
    seconds : float
    versions : dict of str to str
    masking : dict, default=None
        A `MaskingReport` as a dict, where it was asked for.
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
    masking: dict[str, Any] | None = None

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
    check_masking: bool = False,
) -> Evaluation:
    """Measure a network's accuracy, natural or under an attack.

    Parameters
    ----------
    network : nn.Module
        Any network from images (N, C, H, W) in [0, 1] to logits; it is left as it was.
    source : Source
        Images and labels.
    attack : AttackSettings or str, default='pgd'
        A name stands for the default settings, as ``'natural'`` or ``'pgd'`` (PGD-20); `AttackSettings` lists them.
    batch_size : int, default=256
    seed : int, default=0
        Of the attack's random numbers, which are drawn for the images that the network classifies rightly.
    check_masking : bool, default=False
        Also look for signs that the figure is too high because gradients are masked; see `check_gradient_masking`.

    Raises
    ------
    UncalibratedError
        If the network is, or wraps, a student without batch norm statistics of its own.
    TypeError
        If the source is none.
    ValueError
        For an unknown attack, pixels outside [0, 1], labels that the network has no logits for, or a check of masking
        without an attack.
    """
    settings = attack_settings(attack)
    if check_masking and settings.name == NATURAL:
        raise ValueError("check_masking needs an attack; 'natural' has no gradients to mask")
    (found,) = evaluate_all(network, source, [settings], batch_size=batch_size, seed=seed)
    if not check_masking:
        return found
    from .masking import check_gradient_masking  # which needs this module

    report = check_gradient_masking(network, source, settings, batch_size=batch_size, seed=seed)
    return dataclasses.replace(found, masking=report.to_dict())


def evaluate_all(
    network: nn.Module,
    source: Source,
    attacks: Sequence[AttackSettings | str],
    *,
    worst_case: bool = False,
    batch_size: int = 256,
    seed: int = 0,
) -> list[Evaluation]:
    """Measure a network under several attacks in one pass over the images.

    Parameters
    ----------
    network, source, batch_size, seed
        As for `evaluate`.
    attacks : sequence of AttackSettings or str
        Cheap ones first saves time in the worst case.
    worst_case : bool, default=False
        An image counts as right only if it survives this attack and all before it; those already fooled are not
        attacked again. The last figure is the accuracy under all attacks together. For FGSM, PGD, CW and Square it is
        exactly the one without dropping. Both AutoAttacks draw for the images that they are given, so after another
        attack their random numbers are other ones.

    Returns
    -------
    list of Evaluation
        One for each attack, in order; without ``worst_case`` each equals `evaluate`'s. ``seconds`` hold the natural
        pass and the attacks that the figure is under.

    Raises
    ------
    ImportError
        If the reference AutoAttack is asked for and not installed.
    TypeError
        If ``attacks`` is a single one; otherwise as `evaluate`.
    """
    check_source(source)
    if isinstance(attacks, (str, AttackSettings)):
        raise TypeError(f"attacks is {attacks!r}, a single one; allowed: a list of them, [{attacks!r}]")
    wanted = [attack_settings(attack) for attack in attacks]
    for settings in wanted:
        attack_title(settings.name)  # what is not installed is named before the work
    require_calibrated_students(network)
    survived, seconds, total, natural_seconds, n_classes = [0] * len(wanted), [0.0] * len(wanted), 0, 0.0, 0
    for index, (x, y) in enumerate(source.batches(batch_size)):
        start = time.perf_counter()
        x, y, logits = labelled_logits(network, x, y)
        right, n_classes, total = is_right(logits, y), logits.shape[1], total + len(x)
        natural_seconds += time.perf_counter() - start
        alive = right
        for place, settings in enumerate(wanted):
            start = time.perf_counter()
            kept = survives(network, x, y, right, alive, settings, derive_seed(seed, "evaluate", index))
            survived[place] += int(kept.sum())
            alive = kept if worst_case else right
            seconds[place] += time.perf_counter() - start
    if total == 0:
        raise ValueError(NO_IMAGE)
    groups = [wanted[: place + 1] if worst_case else [wanted[place]] for place in range(len(wanted))]
    spent = [sum(seconds[: place + 1]) if worst_case else seconds[place] for place in range(len(wanted))]
    return [
        Evaluation(
            accuracy=count / total,
            n_images=total,
            attack=" + ".join(attack_title(one.name, one.steps, n_classes) for one in group),
            eps=_shared([one.eps for one in group if one.name != NATURAL]),
            step_size=_shared([one.step_size if one.name in ITERATED or is_own(one) else None for one in group]),
            steps=_shared([one.steps if one.name in COUNTED or is_own(one) else None for one in group]),
            seed=int(seed),
            seconds=natural_seconds + duration,
            versions=versions(*(["pyautoattack"] if any(one.name == REFERENCE for one in group) else [])),
        )
        for group, count, duration in zip(groups, survived, spent, strict=True)
    ]


def is_own(settings: AttackSettings) -> bool:
    """Return whether an attack is the user's own, which is given a step size and steps whatever it does with them."""
    return settings.name not in (NATURAL, *BUILT_IN)


def correct(network: nn.Module, x: Tensor, y: Tensor, settings: AttackSettings, seed: int) -> Tensor:
    """Return, for each image, whether it is classified rightly, naturally and under the attack.

    Images that are wrong without any attack are not attacked.
    """
    x, y, logits = labelled_logits(network, x, y)
    right = is_right(logits, y)
    return survives(network, x, y, right, right, settings, seed)


def survives(
    network: nn.Module, x: Tensor, y: Tensor, right: Tensor, alive: Tensor, settings: AttackSettings, seed: int
) -> Tensor:
    """Return which images are alive and stay so under one more attack.

    Parameters
    ----------
    right : Tensor of shape (N,), bool
        Images that are classified rightly without an attack: random numbers are drawn for these.
    alive : Tensor of shape (N,), bool
        Those of them that no attack has fooled: only these are attacked.
    """
    if settings.name == NATURAL or not alive.any():
        return alive
    attack = make_attack(
        settings.name, network, eps=settings.eps, step_size=settings.step_size, steps=settings.steps, seed=seed
    )
    adversarial = run_attack(attack, x[alive], y[alive], seed=seed, among=alive[right])
    kept = alive.clone()
    kept[alive] = is_right(predict_logits(network, adversarial), y[alive])
    return kept


def predict_logits(network: nn.Module, x: Tensor) -> Tensor:
    """Return logits in eval mode, without gradients; the network's modes are left as they were."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            return network.eval()(x)  # type: ignore[no-any-return]
    finally:
        for module, mode in modes:
            module.training = mode


def all_logits(network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Return `predict_logits` of all batches, in order; raise `UncalibratedError` as `evaluate` does."""
    require_calibrated_students(network)
    return torch.cat([predict_logits(network, x.to(device_of(network, x))) for x in batches])


def device_of(network: nn.Module, x: Tensor) -> torch.device:
    """Return the device of a network's parameters, of the images where it has none."""
    return next((parameter.device for parameter in network.parameters()), x.device)


def versions(*more: str) -> dict[str, str]:
    """Return the versions of the packages that a figure depends on."""
    names = ("proard-nas", "torch", "timm", "torchattacks", "numpy", *more)
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def attack_settings(attack: AttackSettings | str) -> AttackSettings:
    """Return the settings that a name stands for; settings stay as they are."""
    return attack if isinstance(attack, AttackSettings) else AttackSettings(attack)


def attack_or_default(attack: AttackSettings | str | None) -> AttackSettings:
    """Return the settings that a name stands for; None is PGD-20, step 2/255, eps 8/255."""
    return AttackSettings() if attack is None else attack_settings(attack)


def labelled_logits(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return images and labels on the network's device, and its logits; pixels are in [0, 1], each label has one."""
    device = device_of(network, x)
    x, y = x.to(device), y.to(device)
    check_pixels(x, "a batch")
    logits = predict_logits(network, x)
    check_label_range(y, logits.shape[1], "a batch")
    return x, y, logits


def _shared(values: Sequence[Number | None]) -> Number | None:
    """Return the value that all have, else None."""
    return values[0] if len(set(values)) == 1 else None
