"""Validation while training: a few fixed students measured, the best state kept, failures noticed."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proard_nas import distributed
from proard_nas._random import derive_seed
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, calibrate
from proard_nas.evaluation.accuracy import correct
from proard_nas.supernets import Architecture, SearchSpace, StudentNet, Supernet

OVERFITTED, COLLAPSED = "catastrophic overfitting", "collapse to chance"
DROP, RISE = 0.5, 0.02


@dataclasses.dataclass(frozen=True)
class Validation:
    """How training is watched.

    Parameters
    ----------
    source : ArraySource
        Validation images: never those of a test split.
    attack : AttackSettings
        The multi-step attack whose accuracy counts.
    n_students : int, default=4
        The largest, the smallest and random ones of the stage's own space.
    every : int or None, default=None
        Epochs between two measurements; None measures some twenty times a stage, and each epoch where a single-step
        attack has to be watched.
    batch_size : int, default=256
    """

    source: ArraySource
    attack: AttackSettings
    n_students: int = 4
    every: int | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.n_students < 1 or (self.every is not None and self.every < 1):
            raise ValueError(
                f"validation needs at least one student and one epoch between measurements; got "
                f"n_students={self.n_students}, every={self.every}"
            )

    def due(self, epoch: int, epochs: int, single_step: bool) -> bool:
        """Return whether to measure at the end of an epoch, counted from 0."""
        every = self.every or (1 if single_step else max(1, epochs // 20))
        return (epoch + 1) % every == 0 or epoch + 1 == epochs

    @property
    def chance(self) -> float:
        """Accuracy of always guessing the commonest class."""
        return float(torch.bincount(self.source.y).max()) / len(self.source)


def fixed_students(space: SearchSpace, n: int, seed: int) -> list[Architecture]:
    """Return the largest and the smallest student and random ones between, ``n`` distinct ones at most."""
    ends = list(dict.fromkeys([space.largest, space.smallest]))[:n]
    wanted = min(n, space.size) - len(ends)
    return ends + (space.sample_distinct(wanted, np.random.default_rng(seed), exclude=ends) if wanted > 0 else [])


def measure(
    network: StudentNet,
    students: list[Architecture],
    validation: Validation,
    calibration: Tensor,
    seed: int,
    single: bool,
) -> dict[str, Any]:
    """Measure students, each after its own calibration; the processes share the batches.

    Parameters
    ----------
    network : StudentNet
        Left as it was.
    students : list of Architecture
        The first is the largest.
    validation : Validation
    calibration : Tensor of shape (N, C, H, W)
        Training images.
    seed : int
        Of the attack's random starts.
    single : bool
        Whether the first student's single-step (FGSM) accuracy is measured too.

    Returns
    -------
    dict
        ``natural`` and ``robust``: means over the students, in [0, 1]; ``largest_natural``; ``students``: each one's
        pair; ``single_step`` where asked for.
    """
    clean, fgsm = AttackSettings("natural"), dataclasses.replace(validation.attack, name="fgsm")
    rows: list[list[float]] = []
    for index, arch in enumerate(students):
        with torch.no_grad():
            student = calibrate(_standalone(network, arch), calibration, validation.batch_size, reduce=True)
        attacks = [clean, validation.attack, *([fgsm] if single and index == 0 else [])]
        rows.append([_accuracy(student, attack, validation, seed) for attack in attacks])
    found: dict[str, Any] = {
        "natural": float(np.mean([row[0] for row in rows])),
        "robust": float(np.mean([row[1] for row in rows])),
        "largest_natural": rows[0][0],
        "largest_robust": rows[0][1],
        "students": [row[:2] for row in rows],
    }
    return found | ({"single_step": rows[0][2]} if single else {})


def _standalone(network: StudentNet, arch: Architecture) -> StudentNet:
    """Return a student with statistics of its own."""
    if isinstance(network, Supernet):
        return network.student(arch)
    return copy.deepcopy(network)


def _accuracy(student: nn.Module, attack: AttackSettings, validation: Validation, seed: int) -> float:
    right = torch.zeros(())
    for index, (x, y) in enumerate(validation.source.batches(validation.batch_size)):
        if index % distributed.world_size() == distributed.rank():  # whole batches: the attack starts as in one process
            right += correct(student, x, y, attack, derive_seed(seed, "validation", index)).sum().cpu()
    device = next(student.parameters()).device
    right = right.to(device)
    distributed.sum_in_place([right])
    return float(right) / len(validation.source)


@dataclasses.dataclass
class Watch:
    """Notices failures from one measurement to the next; its fields are JSON-able.

    Attributes
    ----------
    natural, robust, single_step : float
        The largest student's best natural and robust accuracy so far in the stage, and its last single-step accuracy.
    """

    natural: float = 0.0
    robust: float = 0.0
    single_step: float = 0.0

    def judge(self, found: dict[str, Any], chance: float) -> str | None:
        """Return what failed, or None; a good measurement becomes part of the record.

        Catastrophic overfitting: robust accuracy of the largest student fell below half its best while its single-step
        accuracy did not fall with it (Wong et al. 2020, section 5). Collapse: its natural accuracy is back at chance,
        or within a tenth of the way, after it was twice as high; where chance is above a third, halfway to 1.
        """
        natural, robust, single = found["largest_natural"], found["largest_robust"], found.get("single_step")
        learned = min(2 * chance, (1 + chance) / 2)
        if self.natural > learned and natural <= chance + (learned - chance) / 10:
            return COLLAPSED
        fell = self.robust > 2 / 3 * chance and robust < DROP * self.robust
        if single is not None and fell and single >= self.single_step - RISE:
            return OVERFITTED
        self.natural, self.robust = max(self.natural, natural), max(self.robust, robust)
        self.single_step = self.single_step if single is None else single
        return None
