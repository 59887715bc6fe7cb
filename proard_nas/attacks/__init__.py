"""Attacks, all subclasses of torchattacks' `Attack`: those inside training losses and those that evaluate."""

from __future__ import annotations

from .autoattack import AutoAttack, ReferenceAutoAttack
from .budget import BATCH_NORM, EPS, METHODS, STEP_SIZE, AttackBudget, check_budget, warn_if_short
from .evaluation import (
    ATTACKS,
    BUILT_IN,
    ITERATED,
    attack_steps,
    attack_title,
    make_attack,
    register_attacks,
    run_attack,
)
from .inner import InnerAttack, inner_attack
from .modes import attack_mode, seeded
from .noise import Noise
from .objectives import AttackObjective, cross_entropy, divergence, kl_each
from .square import Square
from .worst_case import WorstCasePGD, margin

__all__ = [
    "ATTACKS",
    "BATCH_NORM",
    "BUILT_IN",
    "EPS",
    "ITERATED",
    "METHODS",
    "STEP_SIZE",
    "AttackBudget",
    "AttackObjective",
    "AutoAttack",
    "InnerAttack",
    "Noise",
    "ReferenceAutoAttack",
    "Square",
    "WorstCasePGD",
    "attack_mode",
    "attack_steps",
    "attack_title",
    "check_budget",
    "cross_entropy",
    "divergence",
    "inner_attack",
    "kl_each",
    "make_attack",
    "margin",
    "register_attacks",
    "run_attack",
    "seeded",
    "warn_if_short",
]
