"""Is a robust accuracy high because gradients are masked? Signs of it, in figures and in words."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn
from torch.nn import functional as F

from proard_nas._random import derive_seed
from proard_nas.attacks import ITERATED, Square, WorstCasePGD, margin, run_attack
from proard_nas.attacks.objectives import is_right
from proard_nas.data import Source, check_source

from .accuracy import NO_IMAGE, AttackSettings, attack_or_default, labelled_logits, predict_logits
from .calibration import require_calibrated_students

logger = logging.getLogger(__name__)

STEPS = (10, 20, 50)
WIDER = (2, 4)
WHOLE = 1.0
ANY_STEP, NOISES = 1 / 4, 20
MARGIN_GAIN = 0.05  # what PGD on the margin may fool more than on the cross-entropy without a sign of masking


@dataclasses.dataclass(frozen=True)
class MaskingReport:
    """What was looked at, and what is suspicious about it.

    Accuracies are shares of all ``n_images``, in [0, 1]; images that are wrong without an attack are wrong everywhere.

    Attributes
    ----------
    warnings : list of str
        Empty if nothing speaks for masked gradients, which is no proof that none are.
    natural : float
    by_steps : dict of int to float
        Under PGD's last iterate after 10, 20 and 50 steps.
    by_eps : dict of float to float
        Under PGD's worst of 50 iterates at eps, twice, four times eps, and 1, where any image may become any other.
    cw, square, noise : float
        Under the worst of 50 iterates on the margin, under black-box Square, and under 20 random draws of +-eps.
    transfer : float or None
        Under the images that PGD makes for another network, where one is given.
    losses : list of float
        The mean cross-entropy at PGD's start and after each step.
    zero_gradients : float
        Share of the attacked images at which the loss has no gradient at all, at PGD's start.
    n_images : int
    settings : dict
        eps, step size, queries, tolerance, seed.
    """

    warnings: list[str]
    natural: float
    by_steps: dict[int, float]
    by_eps: dict[float, float]
    cw: float
    square: float
    noise: float
    transfer: float | None
    losses: list[float]
    zero_gradients: float
    n_images: int
    settings: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether there is no warning."""
        return not self.warnings

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict, ``ok`` included; the keys of ``by_steps`` and ``by_eps`` as text."""
        found = {"ok": self.ok, **dataclasses.asdict(self)}
        for name in ("by_steps", "by_eps"):
            found[name] = {f"{key:g}": value for key, value in found[name].items()}
        return found


def check_gradient_masking(
    network: nn.Module,
    source: Source,
    settings: AttackSettings | str | None = None,
    *,
    n_images: int = 256,
    queries: int = 1000,
    tolerance: float = 0.02,
    surrogate: nn.Module | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> MaskingReport:
    """Look for the signs of masked gradients of Athalye et al. ("Obfuscated Gradients", ICML 2018, section 3.1).

    Where gradients lead an attack astray, an accuracy under it says little. Suspicious are: more steps or a larger
    eps that raise the accuracy; images that survive although any image may become any other; black-box Square,
    random noise or images made for another network that fool more than PGD does on the better of cross-entropy and
    margin (by more than the tolerance and one standard error); the margin as loss that fools 5 points more than the
    cross-entropy; a loss that does not rise along the attack; gradients that are zero.

    Parameters
    ----------
    network : nn.Module
        As for `evaluate`; it is left as it was.
    source : Source
        So many of its images are used, drawn by the seed.
    settings : AttackSettings or str, default=None
        Where the figure in question comes from; of it eps, and the step size of PGD and CW (else eps / 4). None is
        eps 8/255, step 2/255.
    n_images : int, default=256
    queries : int, default=1000
        Of Square.
    tolerance : float, default=0.02
        Differences of accuracy, and shares of images, that are let pass; also the relative fall of the mean loss.
    surrogate : nn.Module, default=None
        Another network for the same images, such as one trained normally: the source of a transfer attack.
    batch_size : int, default=256
    seed : int, default=0

    Raises
    ------
    UncalibratedError
        If the network or the surrogate is, or wraps, a student without batch norm statistics of its own.
    TypeError
        If the source is none.
    ValueError
        If ``n_images`` or ``queries`` is not positive, the tolerance not in [0, 1), the attack unknown, there is no
        image, pixels lie outside [0, 1], or a label is one that the network has no logit for.
    """
    if n_images < 1 or queries < 1 or not 0 <= tolerance < 1:
        raise ValueError(
            f"n_images and queries must be positive and tolerance in [0, 1); got {n_images}, {queries}, {tolerance}"
        )
    require_calibrated_students(network)
    if surrogate is not None:
        require_calibrated_students(surrogate, "the surrogate")
    check_source(source)
    if len(source) == 0:
        raise ValueError(NO_IMAGE)
    given = {"queries": int(queries), "tolerance": float(tolerance), "seed": int(seed)}
    settings = attack_or_default(settings)
    step_size = settings.step_size if settings.name in ITERATED else settings.eps / 4
    held = source.head(n_images, seed=derive_seed(seed, "masking"))
    sums = _Sums(settings.eps, step_size, queries, seed)
    for index, (x, y) in enumerate(held.batches(batch_size)):
        sums.add(network, surrogate, x, y, derive_seed(seed, "masking", index))
    found = sums.means(len(held))
    report = MaskingReport(
        warnings=[],
        n_images=len(held),
        settings={"eps": settings.eps, "step_size": step_size, **given},
        **found,
    )
    report = dataclasses.replace(report, warnings=find_warnings(report, tolerance))
    for warning in report.warnings:
        logger.warning("robust accuracy may be too high: %s", warning)
    return report


def find_warnings(report: MaskingReport, tolerance: float) -> list[str]:
    """Say in words what is suspicious about a report's figures."""
    if report.natural == 0:
        return ["no image is classified rightly without an attack, so nothing could be checked"]
    eps = report.settings["eps"]
    return [
        *_rises("steps", report.by_steps, tolerance),
        *_rises("eps", report.by_eps, tolerance),
        *_reaches_zero(report.by_eps[WHOLE], tolerance),
        *_stronger("black-box Square", report.square, report, tolerance),
        *_stronger("random noise", report.noise, report, tolerance),
        *_stronger("a transfer attack from another network", report.transfer, report, tolerance),
        *_margin_stronger(report.cw, report.by_eps[eps], tolerance),
        *_loss_rises(report.losses, tolerance),
        *_zero(report.zero_gradients, tolerance),
    ]


def _rises(what: str, accuracies: dict[Any, float], tolerance: float) -> list[str]:
    """Warn where the accuracy is higher under a stronger attack than under a weaker one."""
    found, (low, *rest) = [], sorted(accuracies)
    for key in rest:
        if accuracies[key] > accuracies[low] + tolerance:
            found.append(
                f"PGD's accuracy rises from {accuracies[low]:.1%} at {what} {low:.4g} to "
                f"{accuracies[key]:.1%} at {what} {key:.4g}; a stronger attack must not help less"
            )
        low = min(low, key, key=accuracies.__getitem__)
    return found


def _reaches_zero(accuracy: float, tolerance: float) -> list[str]:
    if accuracy <= tolerance:
        return []
    return [f"{accuracy:.1%} survive PGD at eps 1, where any image may become any other: PGD does not find its way"]


def _stronger(name: str, accuracy: float | None, report: MaskingReport, tolerance: float) -> list[str]:
    """Warn where an attack without gradients of its own fools more than PGD on the better of both losses."""
    best = min(report.by_eps[report.settings["eps"]], report.cw)
    if accuracy is None or accuracy >= best - _let_pass(best, accuracy, report.n_images, tolerance):
        return []
    return [f"{name} leaves {accuracy:.1%} and PGD {best:.1%}: PGD must be the stronger, so its gradients mislead it"]


def _let_pass(one: float, other: float, n_images: int, tolerance: float) -> float:
    """Return the tolerance, or what images fooled by one attack and not by the other differ by at random, if more."""
    return max(tolerance, math.sqrt(abs(one - other) / n_images))


def _margin_stronger(cw: float, pgd: float, tolerance: float) -> list[str]:
    """Warn where the margin finds much more than the cross-entropy; of robust networks it finds a little more."""
    if cw >= pgd - max(tolerance, MARGIN_GAIN):
        return []
    return [
        f"PGD on the margin (CW) leaves {cw:.1%} and on the cross-entropy {pgd:.1%}: the latter is misled, as by "
        "very large logits; state CW's or AutoAttack's figure"
    ]


def _loss_rises(losses: list[float], tolerance: float) -> list[str]:
    start, end, highest = losses[0], losses[-1], max(losses)
    if not all(map(math.isfinite, losses)):
        return ["the mean loss along PGD is not finite"]
    if end <= start:
        return [f"the mean loss does not rise along PGD: {start:.4g} at its start, {end:.4g} at its end"]
    if end < highest - tolerance * (highest - start):
        return [
            f"the mean loss falls along PGD, from {highest:.4g} to {end:.4g} at its end: a step size too large, "
            "or gradients that mislead"
        ]
    return []


def _zero(share: float, tolerance: float) -> list[str]:
    if share <= tolerance:
        return []
    return [f"the loss has no gradient at all at {share:.1%} of the images: saturated, or an operation without one"]


class _Trace:
    """An objective that notes the loss, the survivors and the zero gradients of each iterate it is asked about."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.right: list[int] = []
        self.zero: list[int] = []

    def __call__(self, adversarial: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(logits.float(), target, reduction="sum")
        self.losses.append(float(loss.detach()))
        self.right.append(int(is_right(logits, target).sum()))
        adversarial.register_hook(self._note)  # type: ignore[no-untyped-call]
        return loss

    def _note(self, gradient: Tensor) -> None:
        self.zero.append(int(((gradient == 0) | gradient.isnan()).flatten(1).all(1).sum()))


class _Sums:
    """Counts over batches."""

    def __init__(self, eps: float, step_size: float, queries: int, seed: int) -> None:
        self.eps, self.step_size, self.queries, self.seed = eps, step_size, queries, seed
        self.natural = self.cw = self.square = self.noise = self.zero = 0
        self.transfer: int | None = None
        self.by_eps = dict.fromkeys((eps, *(k * eps for k in WIDER if k * eps < WHOLE), WHOLE), 0)
        self.losses, self.by_steps = [0.0] * (max(STEPS) + 1), dict.fromkeys(STEPS, 0)

    def add(self, network: nn.Module, surrogate: nn.Module | None, x: Tensor, y: Tensor, seed: int) -> None:
        """Attack the images of a batch that the network classifies rightly."""
        x, y, logits = labelled_logits(network, x, y)
        right = is_right(logits, y)
        self.natural += int(right.sum())
        if not right.any():
            return
        x, y = x[right], y[right]
        self._trace(network, x, y, seed)
        for eps in self.by_eps:
            self.by_eps[eps] += self._survivors(network, self._pgd(network, eps), x, y, seed)
        self.cw += self._survivors(network, self._pgd(network, self.eps, objective=margin), x, y, seed)
        self.square += self._survivors(network, Square(network, self.eps, self.queries, seed), x, y, seed)
        self.noise += self._survive_noise(network, x, y, seed)
        if surrogate is not None:
            attack = torchattacks.PGD(surrogate, eps=self.eps, alpha=self.step_size, steps=max(STEPS))
            self.transfer = (self.transfer or 0) + self._survivors(network, attack, x, y, seed)

    def _trace(self, network: nn.Module, x: Tensor, y: Tensor, seed: int) -> None:
        trace, steps = _Trace(), max(STEPS) + 1  # the last asks about the iterate before it
        attack = WorstCasePGD(network, self.eps, self.step_size, steps, drop_fooled=False, objective=trace)
        run_attack(attack, x, y, seed=seed)
        self.losses = [a + b for a, b in zip(self.losses, trace.losses, strict=True)]
        self.zero += trace.zero[0]
        for k in STEPS:
            self.by_steps[k] += trace.right[k]

    def _pgd(self, network: nn.Module, eps: float, **objective: Any) -> WorstCasePGD:
        step_size = self.step_size if eps == self.eps else max(self.step_size, eps * ANY_STEP)
        return WorstCasePGD(network, eps, step_size, max(STEPS), **objective)

    def _survivors(self, network: nn.Module, attack: Any, x: Tensor, y: Tensor, seed: int) -> int:
        adversarial = run_attack(attack, x, y, seed=seed)
        return int(is_right(predict_logits(network, adversarial.to(x.device)), y).sum())

    def _survive_noise(self, network: nn.Module, x: Tensor, y: Tensor, seed: int) -> int:
        generator = torch.Generator(device=x.device).manual_seed(seed)
        survive = torch.ones(len(y), dtype=torch.bool, device=y.device)
        for _ in range(NOISES):
            signs = torch.randint(0, 2, x.shape, generator=generator, device=x.device) * 2 - 1
            survive &= is_right(predict_logits(network, (x + self.eps * signs).clamp(0, 1)), y)
        return int(survive.sum())

    def means(self, n_images: int) -> dict[str, Any]:
        """Return the figures of a report: accuracies over all images, losses over those attacked."""
        attacked = max(self.natural, 1)
        return {
            "natural": self.natural / n_images,
            "by_steps": {k: count / n_images for k, count in self.by_steps.items()},
            "by_eps": {eps: count / n_images for eps, count in self.by_eps.items()},
            "cw": self.cw / n_images,
            "square": self.square / n_images,
            "noise": self.noise / n_images,
            "transfer": None if self.transfer is None else self.transfer / n_images,
            "losses": [loss / attacked for loss in self.losses],
            "zero_gradients": self.zero / attacked,
        }
