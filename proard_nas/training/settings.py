"""What stays the same over all stages of a training."""

from __future__ import annotations

import dataclasses

from proard_nas._numbers import finite_number, positive_number, whole_number

from .augment import Augmentation
from .losses import AttackBudget
from .precision import Precision


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """What stays the same over all stages; the defaults are the paper's (section 5.0.1).

    Parameters
    ----------
    batch_size : int, default=128
        Over all processes.
    momentum : float, default=0.9
    weight_decay : float, default=2e-4
    budget : AttackBudget
        Of the inner attack.
    precision : Precision
    seed : int, default=0
    progress : bool, default=True
        Progress bars where the output is a terminal.
    ema_decay : float, default=0.0
        Decay of the moving average of the weights, in [0, 1), reached after a warm-up; each stage ends with the
        averaged weights. 0 leaves it out.
    clip_grad : float, default=None
        Largest norm of the gradient.
    awp : float, default=0.0
        Adversarial weight perturbation, relative to each weight's norm (Wu et al. 2020: 0.005); 0 leaves it out.
    augment : {'none', 'crop', 'crop-flip'}, default='none'
        Done on the device, for each image on its own.
    compile_teacher : bool, default=False
        ``torch.compile`` for the largest student and the frozen teacher. Slower to start; measure whether it pays.
    sync_batch_norm : bool, default=False
        Batch statistics over the joined batch of all processes, as one process has them.
    keep_best : bool, default=True
        Each stage ends with the weights of its best validation, where there is one; see `Keeper.keep_best`.
    checkpoint_seconds : float, default=300
        Longest time between two checkpoints.

    Raises
    ------
    ValueError
        For a value outside the ranges above.
    """

    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 2e-4
    budget: AttackBudget = dataclasses.field(default_factory=AttackBudget)
    precision: Precision = dataclasses.field(default_factory=Precision)
    seed: int = 0
    progress: bool = True
    ema_decay: float = 0.0
    clip_grad: float | None = None
    awp: float = 0.0
    augment: str = "none"
    compile_teacher: bool = False
    sync_batch_norm: bool = False
    keep_best: bool = True
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("momentum", "weight_decay", "ema_decay", "awp", "checkpoint_seconds"):
            finite_number(name, getattr(self, name))
        whole_number("batch_size", self.batch_size, 2)  # batch norm needs two images
        whole_number("seed", self.seed, 0)
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError(
                f"momentum must be in [0, 1) and weight_decay not negative; got {self.momentum}, {self.weight_decay}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.clip_grad is not None:
            positive_number("clip_grad", self.clip_grad, "or None")
        if self.awp < 0 or self.checkpoint_seconds < 0:
            raise ValueError(
                f"awp and checkpoint_seconds must not be negative; got {self.awp}, {self.checkpoint_seconds}"
            )
        Augmentation.from_name(self.augment)
