"""Training: schedules of stages, losses with their inner attacks, the loop, its records, precision and cost."""

from .accounting import Ledger, Spent
from .augment import AUGMENTATIONS, Augmentation, calibration_images
from .budget import TrainingCost, training_cost
from .checkpoint import CheckpointError, CheckpointStore
from .energy import EnergyMeter
from .losses import LOSSES, AttackBudget, Batch, Noise, Objective, Passes, make_loss, register_loss
from .monitor import Validation
from .planning import labelling_macs, plan_training
from .precision import CANDIDATES, PRECISIONS, Precision, fastest
from .records import TensorBoardWriter
from .recovery import TrainingFailedError
from .sampling import SAMPLERS
from .schedule import SCHEDULES, make_schedule
from .settings import TrainSettings
from .signals import exit_at_sigterm, raise_for
from .stage import Stage
from .trainer import Trainer

__all__ = [
    "AUGMENTATIONS",
    "CANDIDATES",
    "LOSSES",
    "PRECISIONS",
    "SAMPLERS",
    "SCHEDULES",
    "AttackBudget",
    "Augmentation",
    "Batch",
    "CheckpointError",
    "CheckpointStore",
    "EnergyMeter",
    "Ledger",
    "Noise",
    "Objective",
    "Passes",
    "Precision",
    "Spent",
    "Stage",
    "TensorBoardWriter",
    "TrainSettings",
    "Trainer",
    "TrainingCost",
    "TrainingFailedError",
    "Validation",
    "calibration_images",
    "exit_at_sigterm",
    "fastest",
    "labelling_macs",
    "make_loss",
    "make_schedule",
    "plan_training",
    "raise_for",
    "register_loss",
    "training_cost",
]
