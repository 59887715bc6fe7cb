"""One stage of training as a value: what varies, how students are drawn, attacked and taught, for how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from proard_nas._errors import check_name, unknown_name
from proard_nas._numbers import finite_number, whole_number
from proard_nas.attacks import BATCH_NORM, METHODS
from proard_nas.supernets import SearchSpace

from .losses import AttackBudget, Objective, make_loss
from .sampling import SAMPLERS

DIMENSIONS = ("width_mult", "kernel_size", "depth", "expand_ratio")
CHOICE_LISTS = ("depths", "width_mults", "expand_ratios", "kernel_sizes", "stem_residuals")
DRAWS = ("step", "epoch")
TEACHERS = ("frozen", "live")

Choices = Mapping[str, Sequence[float]] | Sequence[tuple[str, Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training: a frozen, hashable value that JSON can carry where its losses have names.

    Parameters
    ----------
    name : str
    epochs : int
        Passes over the training data, at least 1.
    loss : str or Objective
        A name from ``LOSSES`` (``'trades'``, ``'rslad'``, ...) or an object of the same form.
    elastic : tuple of str, default=()
        The dimensions that vary (``'width_mult'``, ``'kernel_size'``, ``'depth'``,
        ``'expand_ratio'``); none trains the largest network alone.
    lr : float, default=0.01
        Peak learning rate of the stage; it falls to zero along a cosine (see ``anneal``).
    sampler : {'uniform', 'sandwich', 'attentive'}, default='uniform'
        How the students of a step are drawn.
    students_per_step : int, default=1
    sort_channels : tuple of str, default=()
        Dimensions whose channels are sorted by importance before the stage.
    drop_rate : float, default=0.0
        Dropout before the classifier during the stage.
    choices : mapping of str to tuple, default={}
        Lists that the stage opens in place of the space's own, such as ``{'depths': (1, 2)}``
        (``'depths'``, ``'width_mults'``, ``'expand_ratios'``, ``'kernel_sizes'``,
        ``'stem_residuals'``). Kept as sorted pairs; ``dict(stage.choices)`` is the mapping.
    draw : {'step', 'epoch'}, default='step'
        New students in each optimizer step, or the same ones for a whole pass over the data.
    share_attack : bool, default=False
        Whether all students of a step get the adversarial images made for the first of them.
    teacher : {'frozen', 'live'}, default='frozen'
        A copy that no longer learns, or the largest student with its current weights. Where
        the largest student is itself among those of a step, a live teacher is trained with
        ``teacher_loss``: in-place distillation (Yu and Huang 2019, section 3).
    teacher_loss : str or Objective, default='trades'
        A loss that needs no teacher; used with ``teacher='live'`` alone.
    attack : {'pgd', 'ffgsm', 'n-fgsm'}, default=None
        Method of the inner attack; None is that of the training's settings.
    attack_steps : int, default=None
        Steps of ``'pgd'``; None are those of the training's settings.
    batch_norm : {'batch', 'clean', 'running'}, default='batch'
        Statistics that the inner attack sees: those of the attacked batch, of the clean batch,
        or the running ones.
    warmup : float, default=0.0
        Epochs in which the learning rate rises along a line to its peak; less than ``epochs``. The cosine counts
        from the stage's beginning, as in timm: it then goes on from where it would be without the warm-up.
    nesterov : bool, default=False
        Nesterov's momentum.
    weight_decay : float, default=None
        None is that of the training's settings.
    anneal : (float, float), default=(0.0, 1.0)
        The part of a cosine from the peak learning rate to zero that the stage runs through, as shares of
        it: the whole one. Stages with (0, 0.5) and (0.5, 1) share one.

    Raises
    ------
    ValueError
        For unknown names, empty lists of choices, and numbers outside the ranges above.

    Examples
    --------
    >>> stage = Stage('depth', 25, 'rslad', ('depth',), choices={'depths': [2, 1]}, draw='epoch')
    >>> stage.choices
    (('depths', (1, 2)),)
    >>> Stage.from_dict(stage.to_dict()) == stage
    True
    """

    name: str
    epochs: int
    loss: str | Objective
    elastic: tuple[str, ...] = ()
    lr: float = 0.01
    sampler: str = "uniform"
    students_per_step: int = 1
    sort_channels: tuple[str, ...] = ()
    drop_rate: float = 0.0
    choices: Choices = ()
    draw: str = "step"
    share_attack: bool = False
    teacher: str = "frozen"
    teacher_loss: str | Objective = "trades"
    attack: str | None = None
    attack_steps: int | None = None
    batch_norm: str = "batch"
    warmup: float = 0.0
    nesterov: bool = False
    weight_decay: float | None = None
    anneal: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("elastic", "sort_channels", "anneal"):
            self._set(name, tuple(getattr(self, name)))
        self._set("choices", _pairs(self.name, self.choices))
        self._check_names()
        self._to_numbers()
        self._check_numbers()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # Python's own numbers, since records in JSON take no other

    def _check_names(self) -> None:
        make_loss(self.loss)
        if make_loss(self.teacher_loss).needs_teacher:
            raise ValueError(
                f"stage {self.name!r} has teacher_loss={self.teacher_loss!r}, which distils; "
                "it must be a loss that needs no teacher, such as 'trades'"
            )
        if self.share_attack and self.teacher == "live" and not make_loss(self.teacher_loss).passes.attacked:
            raise ValueError(
                f"stage {self.name!r} shares the first student's adversarial images, but teacher_loss="
                f"{self.teacher_loss!r} makes none; allowed: a loss with an attack, or share_attack=False"
            )
        check_name("sampler", self.sampler, SAMPLERS)
        check_name("draw", self.draw, DRAWS)
        check_name("teacher", self.teacher, TEACHERS)
        check_name("batch norm mode", self.batch_norm, BATCH_NORM)
        if self.attack is not None:
            check_name("attack method", self.attack, METHODS)
        for dimension in (*self.elastic, *self.sort_channels):
            check_name("dimension", dimension, DIMENSIONS)

    def _to_numbers(self) -> None:
        """Turn numbers into Python's own, and raise ValueError for what is none."""
        start = f"stage {self.name!r}: "
        for name, least in (("epochs", 0), ("students_per_step", 0), ("attack_steps", 1)):
            if not self._is_left_out(name):
                self._set(name, whole_number(start + name, getattr(self, name), least))
        for name in ("lr", "warmup", "drop_rate", "weight_decay"):
            if not self._is_left_out(name):
                self._set(name, finite_number(start + name, getattr(self, name)))
        self._set("anneal", tuple(finite_number(f"{start}anneal", one) for one in self.anneal))

    def _is_left_out(self, name: str) -> bool:
        return name in ("attack_steps", "weight_decay") and getattr(self, name) is None

    def _check_numbers(self) -> None:
        if self.epochs < 1 or self.students_per_step < 1:
            raise ValueError(
                f"stage {self.name!r} needs at least one epoch and one student in each step; "
                f"got epochs={self.epochs}, students_per_step={self.students_per_step}"
            )
        if not self.lr > 0 or not 0 <= self.drop_rate < 1:
            raise ValueError(
                f"stage {self.name!r} needs lr > 0 and 0 <= drop_rate < 1; got {self.lr}, {self.drop_rate}"
            )
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(
                f"stage {self.name!r} needs 0 <= warmup < epochs; got warmup={self.warmup}, epochs={self.epochs}"
            )
        if len(self.anneal) != 2 or not 0 <= self.anneal[0] < self.anneal[1] <= 1:
            raise ValueError(
                f"stage {self.name!r} needs anneal=(start, end) with 0 <= start < end <= 1, got {self.anneal}"
            )
        if self.warmup and self.anneal[0]:
            raise ValueError(
                f"stage {self.name!r} goes on along a cosine, so it has no warm-up; got warmup={self.warmup}"
            )
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ValueError(f"stage {self.name!r} needs a weight_decay that is not negative, got {self.weight_decay}")

    def space(self, space: SearchSpace) -> SearchSpace:
        """Return the sub-space the stage draws from: its choices, of which only the elastic vary.

        Raises
        ------
        ValueError
            If the stage lists a choice that the space does not offer.
        """
        return space.restrict(**dict(self.choices)).with_elastic(self.elastic)

    def budget(self, budget: AttackBudget) -> AttackBudget:
        """Return the settings' attack budget with what the stage says in its place.

        The stage always says ``batch_norm``.
        """
        own = {"method": self.attack, "steps": self.attack_steps, "batch_norm": self.batch_norm}
        given: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        return dataclasses.replace(budget, **given)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict of all fields.

        Raises
        ------
        ValueError
            If a loss is an object: only names can be written.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("loss", "teacher_loss"):
            if not isinstance(values[name], str):
                raise ValueError(f"stage {self.name!r} has {name}={values[name]!r}; only a loss's name can be written")
        lists = {name: list(values[name]) for name in ("elastic", "sort_channels", "anneal")}
        return values | lists | {"choices": {name: list(row) for name, row in dict(self.choices).items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stage:
        """Build the stage from `to_dict`'s form; fields that have a default may be missing.

        Raises
        ------
        ValueError
            If a field is unknown or missing.
        """
        fields = dataclasses.fields(cls)
        for key in data:
            if key not in {field.name for field in fields}:
                raise unknown_name("stage field", key, [field.name for field in fields])
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in data]
        if missing:
            raise ValueError(f"a stage needs the fields {missing}, got only {sorted(data)}")
        return cls(**data)


def _pairs(stage: str, choices: Choices) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Return choices in the one form that equal stages share: pairs and values sorted."""
    try:
        rows = {name: tuple(values) for name, values in dict(choices).items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"choices of stage {stage!r} must map names to lists, got {choices!r}") from error
    for name, values in rows.items():
        check_name("list of choices", name, CHOICE_LISTS)
        if not values or not all(isinstance(value, (int, float)) for value in values):
            raise ValueError(f"stage {stage!r} needs a non-empty list of numbers as {name}, got {choices!r}")
    return tuple((name, tuple(sorted(rows[name]))) for name in sorted(rows))
