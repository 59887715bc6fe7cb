"""Folders for students, supernets and estimators: safetensors and JSON in timm's layout, written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from proard_nas._errors import unknown_name
from proard_nas.data import ArrayEncoder
from proard_nas.evaluation import Labels
from proard_nas.supernets import StudentNet
from proard_nas.training import Precision, Stage, TrainingCost

if TYPE_CHECKING:
    from proard_nas.estimator import ProARDEstimator

FORMAT = 1
Folder = str | os.PathLike[str]
Estimator = TypeVar("Estimator", bound="ProARDEstimator")
PARTS = ("estimator.json", "predictor.json", "labels.jsonl", "calibration.safetensors", "supernet")


def save_student(student: StudentNet, folder: Folder, metadata: Mapping[str, Any] | None = None) -> None:
    """Save a student or a supernet so that timm alone builds it again.

    ``timm.create_model('local-dir:FOLDER', pretrained=True)`` after ``import proard_nas`` gives
    a network with the same bits.

    Parameters
    ----------
    student : StudentNet
    folder : path
        Made, or replaced if it holds a saved network.
    metadata : mapping, default=None
        JSON-able figures to keep beside the weights, in ``proard.json``.

    Raises
    ------
    FileExistsError
        If the folder holds something else.
    """
    with whole_folder(folder, "config.json") as temporary:
        _write_network(student, temporary)
        cost = student.cost(img_size=tuple(student.pretrained_cfg["input_size"][1:]))
        facts = {"architecture": student.arch.to_dict(), "macs": cost.macs, "params": cost.params}
        _write_json(temporary / "proard.json", {**facts, **(metadata or {})})


def save_estimator(estimator: ProARDEstimator, folder: Folder) -> None:
    """Save a fitted estimator: supernet, labels, predictor, settings and calibration images.

    The folder holds up to ``n_calibration`` training images, without which no student can be
    given its batch norm statistics.
    """
    with whole_folder(folder, "estimator.json") as temporary:
        _write_network(estimator.supernet_, temporary / "supernet")
        estimator.labels_.save(temporary / "labels.jsonl")
        _write_json(temporary / "predictor.json", estimator.predictor_.to_dict())
        save_file({"images": _as_bytes(estimator.calibration_images_)}, temporary / "calibration.safetensors")
        _write_json(temporary / "estimator.json", _state(estimator))


def load_estimator(cls: type[Estimator], folder: Folder) -> Estimator:
    """Load what `save_estimator` wrote.

    Raises
    ------
    FileNotFoundError
        If the folder is not a saved estimator; names what is missing.
    ValueError
        If it was written by another version of the format.
    """
    from proard_nas.search import AccuracyPredictor

    folder = Path(folder)
    missing = [part for part in PARTS if not (folder / part).exists()]
    if missing:
        raise FileNotFoundError(f"{folder} is not a saved estimator: it has no {', '.join(missing)}")
    state = json.loads((folder / "estimator.json").read_text())
    if state["format"] != FORMAT:
        raise ValueError(f"{folder} has format {state['format']}; this version reads format {FORMAT}")
    estimator = cls(**_parameters(state["parameters"], cls))
    estimator.device_ = torch.device("cuda" if torch.cuda.is_available() and estimator.device != "cpu" else "cpu")
    supernet = timm.create_model(f"local-dir:{folder / 'supernet'}", pretrained=True)
    estimator.supernet_ = supernet.to(estimator.device_).eval()
    estimator.labels_ = Labels.load(folder / "labels.jsonl")
    estimator.calibration_images_ = _as_images(load_file(folder / "calibration.safetensors")["images"])
    for name, value in state["fitted"].items():
        setattr(estimator, name, value)
    estimator.classes_ = np.array(state["classes"]["values"], dtype=state["classes"]["dtype"])
    estimator.image_size_ = tuple(estimator.image_size_)
    estimator.encoder_ = ArrayEncoder.from_dict(state["encoder"])
    estimator.precision_ = Precision(**state["precision"])
    estimator.cost_ = TrainingCost(tuple(map(tuple, state["cost"]["stages"])), state["cost"]["seconds"])
    predictor = json.loads((folder / "predictor.json").read_text())
    estimator.predictor_ = AccuracyPredictor.from_dict(predictor, estimator.supernet_.space, estimator._cost)
    return estimator


FITTED = ("seed_", "in_chans_", "image_size_", "n_features_in_", "n_train_", "n_val_", "history_", "predictor_score_")


def _state(estimator: ProARDEstimator) -> dict[str, Any]:
    parameters = estimator.get_params(deep=False)
    for name in ("loss", "teacher_loss"):
        if not isinstance(parameters[name], str):
            raise ValueError(f"an estimator with {name}={parameters[name]!r} cannot be saved; only named losses can")
    if not isinstance(parameters["schedule"], str):
        parameters["schedule"] = [dataclasses.asdict(stage) for stage in parameters["schedule"]]
    if not isinstance(parameters["random_state"], (int, np.integer, type(None))):
        parameters["random_state"] = None
    classes = estimator.classes_
    return {
        "format": FORMAT,
        "parameters": parameters,
        "fitted": {name: getattr(estimator, name) for name in FITTED},
        "classes": {"values": classes.tolist(), "dtype": str(classes.dtype)},
        "encoder": estimator.encoder_.to_dict(),
        "precision": dataclasses.asdict(estimator.precision_),
        "cost": dataclasses.asdict(estimator.cost_),
    }


def _parameters(parameters: dict[str, Any], cls: type[ProARDEstimator]) -> dict[str, Any]:
    known = cls().get_params(deep=False)
    for name in parameters:
        if name not in known:
            raise unknown_name("estimator parameter", name, known)
    if not isinstance(parameters["schedule"], str):
        rows = ({k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in parameters["schedule"])
        parameters["schedule"] = [Stage(**row) for row in rows]
    return parameters


def _write_network(network: StudentNet, folder: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    folder.mkdir(exist_ok=True)
    save_for_hf(network, str(folder), model_args=network.model_args(), safe_serialization=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _as_bytes(images: torch.Tensor) -> torch.Tensor:
    """Return images as bytes where that loses nothing, else as they are."""
    scaled = (images * 255).round()
    exact = torch.equal(scaled / 255, images)
    return (scaled.to(torch.uint8) if exact else images).contiguous().cpu()


def _as_images(stored: torch.Tensor) -> torch.Tensor:
    return stored.float() / 255 if stored.dtype == torch.uint8 else stored


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be written as JSON")


@contextlib.contextmanager
def whole_folder(folder: Folder, mark: str) -> Iterator[Path]:
    """Give a temporary folder to write to, which takes the place of ``folder`` once all went well.

    Parameters
    ----------
    folder : path
    mark : str
        A file that says an existing folder may be replaced.

    Raises
    ------
    FileExistsError
        If the folder exists, is not empty and lacks the mark.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / mark).exists())):
        raise FileExistsError(f"{folder} exists and holds something else (no {mark}); give another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        old = temporary.with_name(temporary.name + "-old")
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
