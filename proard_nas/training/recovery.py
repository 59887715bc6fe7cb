"""The return to the last good state after a failure, with what is to prevent the next one."""

from __future__ import annotations

import logging

from . import monitor
from .keeper import Keeper
from .stage import Stage

logger = logging.getLogger(__name__)

MOST_ROLLBACKS = 3


class TrainingFailedError(FloatingPointError):
    """Training failed again after every return to an earlier state that is allowed."""


def roll_back(keeper: Keeper, stage: Stage, attack_steps: int, reason: str) -> None:
    """Return to the last good state: at half the learning rate, or with more attack steps.

    Parameters
    ----------
    keeper : Keeper
        Its state is replaced by the good one, noted among the events and saved.
    stage : Stage
        The one that failed.
    attack_steps : int
        Of the inner attack so far; they are doubled where it was overfitted to.
    reason : str
        What failed.

    Raises
    ------
    TrainingFailedError
        If that was done three times already, other than for overfitting.
    """
    failed = keeper.state
    more_steps = reason == monitor.OVERFITTED
    if not more_steps and failed.rollbacks == MOST_ROLLBACKS:
        raise TrainingFailedError(
            f"{reason} in stage {stage.name!r}, again after {MOST_ROLLBACKS} returns to the last good state, the "
            f"last at a peak learning rate of {stage.lr * failed.lr_scale:.2g}; a lower lr, a warm-up or clip_grad "
            "may help"
        )
    keeper.return_to_good()
    state = keeper.state
    state.lr_scale, state.rollbacks, state.attack_steps = failed.lr_scale, failed.rollbacks, failed.attack_steps
    if more_steps:
        state.attack_steps = 2 * attack_steps
        action = f"the attack now takes {state.attack_steps} steps"
    else:
        state.rollbacks, state.lr_scale = failed.rollbacks + 1, failed.lr_scale / 2
        action = f"the learning rate is halved, to a peak of {stage.lr * state.lr_scale:.2g}"
    event = {"stage": stage.name, "epoch": failed.epoch, "step": failed.step, "reason": reason, "action": action}
    state.events = [*failed.events, {**event, "back_to_epoch": state.epoch}]
    logger.warning(
        "%s in stage %r, epoch %d: back to the start of its epoch %d; %s",
        reason, stage.name, failed.epoch + 1, state.epoch + 1, action,
    )  # fmt: skip
    keeper.remember()
    keeper.save()
