"""How far, how often and in which way images may be changed."""

from __future__ import annotations

import dataclasses
import logging

from proard_nas._errors import check_name
from proard_nas._numbers import finite_number, positive_number, whole_number

logger = logging.getLogger(__name__)

EPS = 8 / 255
STEP_SIZE = 2 / 255
METHODS = ("pgd", "ffgsm", "n-fgsm")
BATCH_NORM = ("batch", "clean", "running")


@dataclasses.dataclass(frozen=True)
class AttackBudget:
    """The inner attack's budget, l-infinity, images in [0, 1].

    Parameters
    ----------
    eps : float, default=8/255
        Largest change of a pixel; of three times that with ``'n-fgsm'``.
    step_size : float, default=2/255
        Of PGD; single-step methods have their own.
    steps : int, default=10
        Of PGD; single-step methods take one.
    method : {'pgd', 'ffgsm', 'n-fgsm'}, default='pgd'
        ``'ffgsm'``: uniform start in the ball, one step of 1.25 eps, projected (Wong et al.,
        "Fast is better than free", ICLR 2020). ``'n-fgsm'``: uniform noise of 2 eps, one step of
        eps, not projected, so a pixel may change by 3 eps (de Jorge et al., "Make Some Noise",
        NeurIPS 2022).
    batch_norm : {'batch', 'clean', 'running'}, default='batch'
        Statistics during the attack; see `attack_mode`.

    Raises
    ------
    ValueError
        If eps, step_size or steps is not positive, eps is above 1, or a name is unknown.
    """

    eps: float = EPS
    step_size: float = STEP_SIZE
    steps: int = 10
    method: str = "pgd"
    batch_norm: str = "batch"

    def __post_init__(self) -> None:
        for name, value in check_budget(self.eps, self.step_size, self.steps).items():
            object.__setattr__(self, name, value)
        check_name("attack method", self.method, METHODS)
        check_name("batch norm mode", self.batch_norm, BATCH_NORM)

    @property
    def single_step(self) -> bool:
        """Whether the method takes one step, whatever ``steps`` says."""
        return self.method != "pgd"

    @property
    def n_steps(self) -> int:
        """Steps that the method takes: forward and backward passes to the images."""
        return 1 if self.single_step else self.steps


def check_budget(eps: float, step_size: float, steps: int) -> dict[str, float | int]:
    """Return the three by name, as Python's own numbers, since records in JSON take no other.

    Raises
    ------
    ValueError
        Unless 0 < eps <= 1, step_size > 0 and steps is a positive whole number.
    """
    if not 0 < finite_number("eps", eps) <= 1:
        raise ValueError(f"eps must be in (0, 1], in units of images in [0, 1]; got {eps} (the paper's is 8/255)")
    return {
        "eps": float(eps),
        "step_size": positive_number("step_size", step_size, "in units of images in [0, 1]"),
        "steps": whole_number("the number of attack steps", steps, 1),
    }


def warn_if_short(attack: str, eps: float, step_size: float, steps: int) -> None:
    """Log a warning if PGD's steps together are shorter than eps: then it cannot use the whole ball."""
    if step_size * steps < eps * (1 - 1e-6):
        logger.warning(
            "%s: %d steps of %.3g are together shorter than eps=%.3g, so that most of the ball's border is out of "
            "reach and accuracy under this attack is too high; give more steps or a larger step_size",
            attack, steps, step_size, eps,
        )  # fmt: skip
