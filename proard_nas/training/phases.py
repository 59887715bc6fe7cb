"""What is trained in which order: a schedule's stages, and before one the helper that its loss may ask for."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from .losses import make_loss
from .stage import Stage

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stage, or the natural training of HAT's helper before it."""

    stage: Stage
    helper: bool = False


def make_phases(stages: Sequence[Stage], trained: bool) -> list[Phase]:
    """Return what is trained for a schedule, in order; one helper serves all stages from its own on.

    Parameters
    ----------
    stages : list of Stage
    trained : bool
        Whether there is a teacher before the first of them.

    Raises
    ------
    ValueError
        If a stage distils before any stage has trained the largest network, or its loss asks a live teacher more than
        once.
    """
    phases: list[Phase] = []
    for stage in stages:
        loss = make_loss(stage.loss)
        if loss.needs_teacher and not trained and stage.teacher == "frozen":
            named = f" ({stage.loss!r})" * isinstance(stage.loss, str)
            raise ValueError(
                f"stage {stage.name!r} distils from a teacher{named}, but no stage before it trains one; allowed: a "
                "first stage that learns from labels, such as with 'trades', or a teacher of one's own"
            )
        if stage.teacher == "live" and (loss.passes.teacher > 1 or loss.passes.teacher_in_attack):
            raise ValueError(
                f"stage {stage.name!r}: {stage.loss!r} queries its teacher more than once; allowed: teacher='frozen'"
            )
        wanted = [loss, *([make_loss(stage.teacher_loss)] if stage.teacher == "live" else [])]
        if any(getattr(one, "needs_helper", False) for one in wanted) and not any(phase.helper for phase in phases):
            epochs = max(1, stage.epochs // 5)
            phases.append(Phase(Stage(f"{stage.name} (helper)", epochs, "natural", lr=stage.lr), helper=True))
        phases.append(Phase(stage))
        trained = trained or not stage.elastic
    return phases


def warn_of_skipped(phases: Sequence[Phase]) -> None:
    """Say of which stages the students stay untrained where a callback has ended training before them."""
    names = [phase.stage.name for phase in phases if phase.stage.elastic]
    if names:
        logger.warning("a callback ended training before the stages %s: their students are untrained", ", ".join(names))
