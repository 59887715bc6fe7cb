"""An estimator's folder: supernet, labels, predictor, settings and calibration images."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import safetensors.torch
import torch

from . import distributed
from ._devices import check_device, device_of
from ._errors import unknown_name
from ._fitting import loss_name, training_facts
from ._folders import (
    CHECKSUMS,
    Folder,
    check_replaceable,
    naming,
    read_checked,
    read_checked_json,
    read_checked_tensors,
    whole_folder,
    write_bytes,
    write_checksums,
    write_json,
)
from .data import ArrayEncoder
from .data.checks import check_given
from .evaluation import Labels
from .search import AccuracyPredictor
from .supernets import Supernet
from .supernets.card import estimator_card
from .supernets.saving import CARD, check_dtype, write_network
from .training import LOSSES, Ledger, Precision, Stage, TrainingCost

if TYPE_CHECKING:
    from .estimator import ProARDEstimator


FORMAT = 2
Estimator = TypeVar("Estimator", bound="ProARDEstimator")
STATE, PREDICTOR, LABELS = "estimator.json", "predictor.json", "labels.jsonl"
IMAGES, SUPERNET = "calibration.safetensors", "supernet"
PARTS = (STATE, PREDICTOR, LABELS, IMAGES, SUPERNET, CHECKSUMS)
LOSS_NAMES = ("loss", "teacher_loss")
CHECKED = (STATE, PREDICTOR, LABELS, IMAGES, f"{SUPERNET}/{CHECKSUMS}")


def check_target(folder: Folder) -> None:
    """Raise FileExistsError if an estimator could not be saved in a folder, since that holds something else."""
    check_replaceable(Path(folder).resolve(), STATE, (*PARTS, CARD))


def save_estimator(estimator: ProARDEstimator, folder: Folder, dtype: str | None = None) -> None:
    """Save a fitted estimator: supernet, labels, predictor, settings and calibration images.

    The folder holds up to ``n_calibration`` training images, without which no student can be
    given its batch norm statistics. Under torchrun the main process alone writes. With a ``dtype``
    the supernet's weights are stored in it, and the predictor's numbers with six digits. A loss of one's own
    is saved by its name alone.

    Raises
    ------
    FileExistsError
        If the folder holds something else than a saved estimator.
    OSError
        If the folder cannot be written; then nothing of it is left, and an older one is as it was.
    """
    check_dtype(dtype)
    if not distributed.is_main():
        return
    state = _state(estimator)
    predictor = estimator.predictor_.to_dict()
    with whole_folder(folder, STATE, (*PARTS, CARD)) as temporary:
        (temporary / SUPERNET).mkdir()
        facts = {**estimator.supernet_.metadata, "seed": estimator.seed_}
        write_network(estimator.supernet_, temporary / SUPERNET, facts, dtype)
        estimator.labels_.save(temporary / LABELS)
        write_json(temporary / PREDICTOR, predictor if dtype is None else _six_digits(predictor), indent=None)
        images = safetensors.torch.save({"images": _as_bytes(estimator.calibration_images_)})
        write_bytes(temporary / IMAGES, images)
        write_json(temporary / STATE, state, strict=False)  # a loss that was not finite is part of its history
        write_bytes(temporary / CARD, estimator_card(_facts(estimator)).encode())
        write_checksums(temporary, CHECKED)


def load_estimator(cls: type[Estimator], folder: Folder, device: str | None = None) -> Estimator:
    """Load what `save_estimator` wrote, and check that it is what was saved.

    A ``device`` replaces the one it was saved with. A stage whose loss has no such name here stays the dict that was
    saved, until a fit asks for the loss.

    Raises
    ------
    FileNotFoundError
        If the folder is not a saved estimator; names what is missing.
    ValueError
        If a file was changed or damaged, or was written by another version; names it. If there is no such device.
    """
    check_device("auto" if device is None else device)
    folder = Path(folder)
    _check_ours(folder)
    state = read_checked_json(folder, STATE)
    with naming(folder / STATE):
        if state["format"] != FORMAT:
            raise ValueError(f"it has format {state['format']!r}; this version reads format {FORMAT}")
        estimator = cls(**_parameters(state["parameters"], cls))
        estimator.device = estimator.device if device is None else device
        _restore(estimator, state)
    estimator.device_ = device_of(estimator)
    estimator.supernet_ = _load_supernet(folder).to(estimator.device_)
    estimator.precision_.prepare(estimator.supernet_)  # in another layout, the last bits of its logits differ
    read_checked(folder, LABELS)
    with naming(folder / LABELS):
        estimator.labels_ = Labels.load(folder / LABELS)
    tensors = read_checked_tensors(folder, IMAGES)
    with naming(folder / IMAGES):
        estimator.calibration_images_ = _as_images(tensors["images"], (estimator.in_chans_, *estimator.image_size_))
    predictor = read_checked_json(folder, PREDICTOR)
    with naming(folder / PREDICTOR):
        estimator.predictor_ = AccuracyPredictor.from_dict(predictor, estimator.supernet_.space, estimator._cost)
    return estimator


def _check_ours(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    missing = [part for part in PARTS if not (folder / part).exists()]
    if missing:
        raise FileNotFoundError(f"{folder} is not a saved estimator: it has no {', '.join(missing)}")


def _load_supernet(folder: Path) -> Supernet:
    from .deploy import load_student

    read_checked(folder, f"{SUPERNET}/{CHECKSUMS}")
    supernet = load_student(folder / SUPERNET)
    if not isinstance(supernet, Supernet):
        raise ValueError(f"{folder / SUPERNET} holds a student, not a supernet")
    return supernet


def _restore(estimator: ProARDEstimator, state: dict[str, Any]) -> None:
    """Set the fitted attributes that the state holds."""
    fitted = state["fitted"]
    for name in FITTED:
        setattr(estimator, name, fitted[name])
    estimator.classes_ = np.array(state["classes"]["values"], dtype=state["classes"]["dtype"])
    height, width = estimator.image_size_
    estimator.image_size_ = (height, width)
    estimator.encoder_ = ArrayEncoder.from_dict(state["encoder"])
    estimator.precision_ = Precision(**state["precision"])
    estimator.cost_ = TrainingCost(tuple(map(tuple, state["cost"]["stages"])), state["cost"]["seconds"])
    estimator.spent_ = Ledger.from_dict(state["spent"])
    estimator.training_ = state.get("training") or training_facts(estimator, ())  # an older folder has it not
    if state.get("columns"):
        estimator.feature_names_in_ = np.array(state["columns"], dtype=object)


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
    parameters |= {name: loss_name(parameters[name]) for name in LOSS_NAMES}
    if not isinstance(parameters["schedule"], str):
        parameters["schedule"] = [_row(stage) for stage in parameters["schedule"]]
    if not isinstance(parameters["random_state"], (int, np.integer, type(None))):
        parameters["random_state"] = None
    if not isinstance(parameters["teacher"], (str, type(None))):
        parameters["teacher"] = None  # a module has done its part
    parameters["device"] = str(parameters["device"])
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
        "training": estimator.training_,
        "columns": getattr(estimator, "feature_names_in_", None),
    }


def _row(stage: Stage | dict[str, Any]) -> dict[str, Any]:
    """Return a stage with its losses' names; one of one's own has done its part, and another fit says it is missing."""
    if isinstance(stage, dict):  # it was loaded, without its loss
        return stage
    named = dataclasses.replace(stage, loss="natural", teacher_loss="trades")
    return named.to_dict() | {name: loss_name(getattr(stage, name)) for name in LOSS_NAMES}


def _stage(row: dict[str, Any]) -> Stage | dict[str, Any]:
    missing = [name for name in LOSS_NAMES if isinstance(row.get(name), str) and row[name] not in LOSSES]
    return row if missing else Stage.from_dict(row)


def _facts(estimator: ProARDEstimator) -> dict[str, Any]:
    from . import __version__

    network = estimator.supernet_
    known = ("description", "license", "data", "load", "calibration", "students", "measurement")
    return {
        **{name: network.metadata[name] for name in known if name in network.metadata},
        "model": estimator.training_["supernet"],
        "smallest_mmacs": network.cost(network.space.smallest, estimator.image_size_).mmacs,
        "largest_mmacs": network.cost(network.space.largest, estimator.image_size_).mmacs,
        "n_labels": len(estimator.labels_),
        "n_images": len(estimator.calibration_images_),
        "input_size": [estimator.in_chans_, *estimator.image_size_],
        "classes": _shown_classes(estimator.classes_.tolist()),
        "eps": estimator.training_["eps"],
        "seed": estimator.seed_,
        "predictor_score": estimator.predictor_score_,
        "versions": {"proard_nas": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _shown_classes(classes: list[Any]) -> str:
    """Return how many classes there are, and the first twenty of them."""
    return f"{len(classes)}: {', '.join(map(str, classes[:20]))}{', ...' * (len(classes) > 20)}"


def _parameters(parameters: dict[str, Any], cls: type[ProARDEstimator]) -> dict[str, Any]:
    known = cls().get_params(deep=False)
    for name in parameters:
        if name not in known:
            raise unknown_name("estimator parameter", name, known)
    if not isinstance(parameters["schedule"], str):
        parameters["schedule"] = [_stage(row) for row in parameters["schedule"]]
    return parameters


def _six_digits(value: Any) -> Any:
    """Return JSON-able data with its numbers rounded to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _six_digits(item) for key, item in value.items()}
    return [_six_digits(item) for item in value] if isinstance(value, list) else value


def _as_bytes(images: torch.Tensor) -> torch.Tensor:
    """Return images as bytes where that loses nothing, else as they are."""
    scaled = (images * 255).round()
    exact = torch.equal(scaled / 255, images)
    return (scaled.to(torch.uint8) if exact else images).contiguous().cpu()


def _as_images(stored: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    images = stored.float() / 255 if stored.dtype == torch.uint8 else stored
    check_given(images, shape, "the calibration data")
    return images
