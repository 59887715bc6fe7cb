"""A teacher of the user's own: a network, or the name of a timm model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import timm
import torch
from torch import nn

from .data import PreparedData
from .supernets.modules import Normalize

if TYPE_CHECKING:
    from .estimator import ProARDEstimator


def check_teacher(given: object) -> None:
    """Raise ValueError unless it is a network, the name of a timm model, or None."""
    if not (given is None or isinstance(given, (str, nn.Module))):
        raise ValueError(f"teacher must be a module, a timm model's name or None, got {given!r}")
    if isinstance(given, str) and ":" not in given and not timm.is_model(given.partition(".")[0]):
        raise ValueError(
            f"teacher {given!r} is no timm model; allowed: one of timm.list_models(), 'hf-hub:OWNER/NAME', "
            "'local-dir:FOLDER', or a module"
        )


def own_teacher(estimator: ProARDEstimator, data: PreparedData) -> nn.Module | None:
    """Return a teacher of the user's own, once it has been seen to fit the data."""
    teacher = estimator.teacher
    if teacher is None:
        return None
    classes, shape = data.summary.num_classes, (2, data.summary.in_chans, *data.summary.image_size)
    if isinstance(teacher, str):
        teacher = _by_name(teacher, data.summary.in_chans)
    with torch.no_grad():
        teacher = copy.deepcopy(teacher).to(estimator.device_).eval()  # a parameter, which stays as it is
        try:
            given = tuple(teacher(torch.rand(shape, device=estimator.device_)).shape)
        except RuntimeError as error:
            raise ValueError(f"the teacher does not take images of shape {shape[1:]}: {error}") from error
    if given != (2, classes):
        raise ValueError(f"the teacher gives an output of shape {given} for 2 images; allowed: (2, {classes})")
    return cast(nn.Module, teacher)


def _by_name(name: str, in_chans: int) -> nn.Module:
    """Return a timm model with the normalisation before it that its weights were trained with: timm leaves it out."""
    model: nn.Module = timm.create_model(name, pretrained=True)
    cfg = getattr(model, "pretrained_cfg", {})
    mean, std = tuple(cfg.get("mean") or (0.0,)), tuple(cfg.get("std") or (1.0,))
    if not any(mean) and all(value == 1 for value in std):
        return model
    if {len(mean), len(std)} - {1, in_chans}:
        raise ValueError(
            f"the teacher {name!r} normalises images by mean={mean} and std={std}, and the data's have {in_chans} "
            "channels; allowed: a module from images in [0, 1] to logits"
        )
    return nn.Sequential(Normalize(mean, std), model)
