"""Attacks, all subclasses of torchattacks' `Attack`: those inside training losses and those that evaluate."""

from __future__ import annotations

from .budget import BATCH_NORM, EPS, METHODS, STEP_SIZE, AttackBudget, check_budget
from .evaluation import ATTACKS, WorstCasePGD, make_attack, run_attack
from .inner import InnerAttack, inner_attack
from .modes import attack_mode, seeded
from .noise import Noise
from .objectives import AttackObjective, cross_entropy, divergence, kl_each

__all__ = [
    "ATTACKS",
    "BATCH_NORM",
    "EPS",
    "METHODS",
    "STEP_SIZE",
    "AttackBudget",
    "AttackObjective",
    "InnerAttack",
    "Noise",
    "WorstCasePGD",
    "attack_mode",
    "check_budget",
    "cross_entropy",
    "divergence",
    "inner_attack",
    "kl_each",
    "make_attack",
    "run_attack",
    "seeded",
]
