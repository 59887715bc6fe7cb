"""Labels: the measured accuracy and robustness of many students, one line of JSON for each (section 4.5)."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from proard_nas._random import derive_seed
from proard_nas.data import Source
from proard_nas.supernets import Architecture, Supernet

from .accuracy import AttackSettings, correct
from .calibration import calibrate

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Label:
    """One student's measured figures.

    Attributes
    ----------
    architecture : Architecture
    natural_accuracy, robust_accuracy : float
        In [0, 1].
    seconds : float
        Calibration and both measurements.
    """

    architecture: Architecture
    natural_accuracy: float
    robust_accuracy: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {**dataclasses.asdict(self), "architecture": self.architecture.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Label:
        """Build from `to_dict`'s form."""
        return cls(**{**data, "architecture": Architecture.from_dict(data["architecture"])})


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of a population and how they were measured.

    Attributes
    ----------
    students : tuple of Label
    settings : dict
        Attack, eps, steps, number of images, seed.
    """

    students: tuple[Label, ...]
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.students)

    @property
    def architectures(self) -> list[Architecture]:
        """The architectures, in order."""
        return [label.architecture for label in self.students]

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """Natural and robust accuracy, shape (n, 2), in [0, 1]."""
        return np.array([(s.natural_accuracy, s.robust_accuracy) for s in self.students]).reshape(-1, 2)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one line of JSON for the settings and one for each student."""
        lines = [{"settings": self.settings}, *(label.to_dict() for label in self.students)]
        Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Labels:
        """Read what `save` or `label_students` wrote; a torn last line is left out."""
        settings, labels = read_record(Path(path))
        return cls(tuple(labels), settings)


def label_students(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    source: Source,
    calibration: Tensor,
    *,
    attack: AttackSettings | None = None,
    batch_size: int = 256,
    seed: int = 0,
    record: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Labels:
    """Measure students: each is calibrated, then measured naturally and under an attack.

    All students see the same images and the same random starts.

    Parameters
    ----------
    supernet : Supernet
    architectures : sequence of Architecture
        Duplicates are measured once.
    source : Source
        Validation images; never those of a test split.
    calibration : Tensor of shape (N, C, H, W)
        Training images.
    attack : AttackSettings, default=None
        None is PGD-20, step 2/255, eps 8/255.
    batch_size : int, default=256
    seed : int, default=0
        Of the attack's random starts.
    record : path, default=None
        A file that gets one line for each student as it is measured; students already in it
        are not measured again.
    progress : bool, default=True
        A progress bar where the output is a terminal.

    Raises
    ------
    ValueError
        If an architecture is not in the space, or the record holds labels of other settings.
    """
    attack = attack or AttackSettings()
    wanted = list(dict.fromkeys(supernet.space.validate(arch) for arch in architectures))
    settings = {**dataclasses.asdict(attack), "n_images": len(source), "n_calibration": len(calibration), "seed": seed}
    done = _open_record(Path(record), settings) if record else {}
    todo = [arch for arch in wanted if arch not in done]
    bar = tqdm(todo, desc="labelling students", disable=None if progress else True, delay=2, leave=False)
    for arch in bar:
        label = label_student(supernet, arch, source, calibration, attack, batch_size, seed)
        done[arch] = label
        if record:
            append_line(Path(record), label.to_dict())
    return Labels(tuple(done[arch] for arch in wanted), settings)


def label_student(
    supernet: Supernet,
    arch: Architecture,
    source: Source,
    calibration: Tensor,
    attack: AttackSettings,
    batch_size: int = 256,
    seed: int = 0,
) -> Label:
    """Measure one student; see `label_students`."""
    start = time.perf_counter()
    with torch.no_grad():
        student = calibrate(supernet.student(arch), calibration, batch_size)
    natural = robust = total = 0
    clean = AttackSettings("natural")
    for index, (x, y) in enumerate(source.batches(batch_size)):
        right = correct(student, x, y, clean, 0)
        natural += int(right.sum())
        total += len(x)
        right = right.to(x.device)
        if right.any():
            place = derive_seed(seed, "evaluate", index)
            robust += int(correct(student, x[right], y[right], attack, place).sum())
    return Label(arch, natural / total, robust / total, time.perf_counter() - start)


def append_line(path: Path, data: dict[str, Any]) -> None:
    """Append one line of JSON and put it on the disk."""
    with path.open("a") as file:
        file.write(json.dumps(data) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_record(path: Path) -> tuple[dict[str, Any], list[Label]]:
    """Return the settings and labels of a record; a torn last line is left out."""
    text = path.read_text()
    lines = text.split("\n")[:-1]  # what follows the last newline was not written whole
    if not lines:
        return {}, []
    return json.loads(lines[0])["settings"], [Label.from_dict(json.loads(line)) for line in lines[1:]]


def _open_record(path: Path, settings: dict[str, Any]) -> dict[Architecture, Label]:
    """Return what a record holds, cutting a torn last line off; start it if it is new."""
    if not path.exists() or "\n" not in path.read_text():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": settings}) + "\n")
        return {}
    text = path.read_text()
    if not text.endswith("\n"):
        path.write_text(text[: text.rindex("\n") + 1])
    found, labels = read_record(path)
    if found != settings:
        other = next(k for k in settings if found.get(k) != settings[k])
        raise ValueError(
            f"{path} holds labels measured with {other}={found.get(other)!r}, not {settings[other]!r}; "
            "give another file or the same settings"
        )
    logger.info("%s holds %d labels; going on from there", path, len(labels))
    return {label.architecture: label for label in labels}
