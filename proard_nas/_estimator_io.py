"""An estimator's folder: supernet, labels, predictor, settings and calibration images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file

from . import distributed
from ._errors import unknown_name
from .data import ArrayEncoder
from .deploy.saving import Folder, whole_folder, write_json, write_network
from .evaluation import Labels
from .search import AccuracyPredictor
from .supernets import Supernet
from .training import Ledger, Precision, Stage, TrainingCost

if TYPE_CHECKING:
    from .estimator import ProARDEstimator

FORMAT = 1
Estimator = TypeVar("Estimator", bound="ProARDEstimator")
PARTS = ("estimator.json", "predictor.json", "labels.jsonl", "calibration.safetensors", "supernet")


def save_estimator(estimator: ProARDEstimator, folder: Folder) -> None:
    """Save a fitted estimator: supernet, labels, predictor, settings and calibration images.

    The folder holds up to ``n_calibration`` training images, without which no student can be
    given its batch norm statistics. Under torchrun the main process alone writes.
    """
    if not distributed.is_main():
        return
    with whole_folder(folder, "estimator.json") as temporary:
        write_network(estimator.supernet_, temporary / "supernet")
        estimator.labels_.save(temporary / "labels.jsonl")
        write_json(temporary / "predictor.json", estimator.predictor_.to_dict())
        save_file({"images": _as_bytes(estimator.calibration_images_)}, temporary / "calibration.safetensors")
        write_json(temporary / "estimator.json", _state(estimator))


def load_estimator(cls: type[Estimator], folder: Folder) -> Estimator:
    """Load what `save_estimator` wrote.

    Raises
    ------
    FileNotFoundError
        If the folder is not a saved estimator; names what is missing.
    ValueError
        If it was written by another version of the format.
    """
    folder = Path(folder)
    missing = [part for part in PARTS if not (folder / part).exists()]
    if missing:
        raise FileNotFoundError(f"{folder} is not a saved estimator: it has no {', '.join(missing)}")
    state = json.loads((folder / "estimator.json").read_text())
    if state["format"] != FORMAT:
        raise ValueError(f"{folder} has format {state['format']}; this version reads format {FORMAT}")
    estimator = cls(**_parameters(state["parameters"], cls))
    estimator.device_ = torch.device("cuda" if torch.cuda.is_available() and estimator.device != "cpu" else "cpu")
    supernet = cast(Supernet, timm.create_model(f"local-dir:{folder / 'supernet'}", pretrained=True))
    estimator.supernet_ = supernet.to(estimator.device_).eval()
    estimator.labels_ = Labels.load(folder / "labels.jsonl")
    estimator.calibration_images_ = _as_images(load_file(folder / "calibration.safetensors")["images"])
    for name, value in state["fitted"].items():
        setattr(estimator, name, value)
    estimator.classes_ = np.array(state["classes"]["values"], dtype=state["classes"]["dtype"])
    height, width = estimator.image_size_
    estimator.image_size_ = (height, width)
    estimator.encoder_ = ArrayEncoder.from_dict(state["encoder"])
    estimator.precision_ = Precision(**state["precision"])
    estimator.cost_ = TrainingCost(tuple(map(tuple, state["cost"]["stages"])), state["cost"]["seconds"])
    estimator.spent_ = Ledger.from_dict(state["spent"])
    predictor = json.loads((folder / "predictor.json").read_text())
    estimator.predictor_ = AccuracyPredictor.from_dict(predictor, estimator.supernet_.space, estimator._cost)
    return estimator


FITTED = (
    "seed_",
    "in_chans_",
    "image_size_",
    "n_features_in_",
    "n_train_",
    "n_val_",
    "history_",
    "events_",
    "predictor_score_",
)


def _state(estimator: ProARDEstimator) -> dict[str, Any]:
    parameters = estimator.get_params(deep=False)
    for name in ("loss", "teacher_loss"):
        if not isinstance(parameters[name], str):
            raise ValueError(f"an estimator with {name}={parameters[name]!r} cannot be saved; only named losses can")
    if not isinstance(parameters["schedule"], str):
        parameters["schedule"] = [stage.to_dict() for stage in parameters["schedule"]]
    if not isinstance(parameters["random_state"], (int, np.integer, type(None))):
        parameters["random_state"] = None
    if not isinstance(parameters["teacher"], (str, type(None))):
        parameters["teacher"] = None  # a module has done its part
    if parameters["log_dir"] is not None:
        parameters["log_dir"] = str(parameters["log_dir"])
    classes = estimator.classes_
    return {
        "format": FORMAT,
        "parameters": parameters,
        "fitted": {name: getattr(estimator, name) for name in FITTED},
        "classes": {"values": classes.tolist(), "dtype": str(classes.dtype)},
        "encoder": estimator.encoder_.to_dict(),
        "precision": dataclasses.asdict(estimator.precision_),
        "cost": dataclasses.asdict(estimator.cost_),
        "spent": estimator.spent_.to_dict(),
    }


def _parameters(parameters: dict[str, Any], cls: type[ProARDEstimator]) -> dict[str, Any]:
    known = cls().get_params(deep=False)
    for name in parameters:
        if name not in known:
            raise unknown_name("estimator parameter", name, known)
    if not isinstance(parameters["schedule"], str):
        parameters["schedule"] = [Stage.from_dict(row) for row in parameters["schedule"]]
    return parameters


def _as_bytes(images: torch.Tensor) -> torch.Tensor:
    """Return images as bytes where that loses nothing, else as they are."""
    scaled = (images * 255).round()
    exact = torch.equal(scaled / 255, images)
    return (scaled.to(torch.uint8) if exact else images).contiguous().cpu()


def _as_images(stored: torch.Tensor) -> torch.Tensor:
    return stored.float() / 255 if stored.dtype == torch.uint8 else stored
