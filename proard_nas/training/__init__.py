"""Training: schedules of stages, losses with their inner attacks, the loop, precision and cost."""

from .budget import TrainingCost, training_cost
from .losses import LOSSES, AttackBudget, Objective, make_loss
from .planning import labelling_macs, plan_training
from .precision import CANDIDATES, PRECISIONS, Precision, fastest
from .schedule import SCHEDULES, Stage, make_schedule
from .trainer import Trainer, TrainSettings

__all__ = [
    "CANDIDATES",
    "LOSSES",
    "PRECISIONS",
    "SCHEDULES",
    "AttackBudget",
    "Objective",
    "Precision",
    "Stage",
    "TrainSettings",
    "Trainer",
    "TrainingCost",
    "fastest",
    "labelling_macs",
    "make_loss",
    "make_schedule",
    "plan_training",
    "training_cost",
]
