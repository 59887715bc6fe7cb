"""Labels of students as values, and the record that keeps them: one line of JSON for each (section 4.5)."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proard_nas import distributed
from proard_nas._folders import check_json_lines, naming
from proard_nas.supernets import Architecture

logger = logging.getLogger(__name__)
IMAGES = "images_checksum"
"""The setting of labels that tells the images they are of; None of a dataset, whose transforms may change them."""


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
        Attack, eps, steps, number of images, batch size, seed, and checksums of the supernet's weights, of the
        calibration images and, where they were held in memory, of the images.
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
        """Read what `save` or `label_students` wrote; a torn last line is left out.

        Raises
        ------
        ValueError
            If the file is no record of labels, or was damaged.
        """
        settings, labels = read_record(Path(path))
        return cls(tuple(labels), settings)


def append_line(path: Path, data: dict[str, Any]) -> None:
    """Append one line of JSON and put it on the disk."""
    with path.open("a") as file:
        file.write(json.dumps(data) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_record(path: Path) -> tuple[dict[str, Any], list[Label]]:
    """Return the settings and labels of a record; a torn last line is left out."""
    check_json_lines(path, "settings", "record of labels")
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was not written whole
    if not lines:
        return {}, []
    with naming(path):
        return dict(json.loads(lines[0])["settings"]), [Label.from_dict(json.loads(line)) for line in lines[1:]]


class Record:
    """The labels known so far, and the file that gets a line for each new one.

    Each process of a distributed run has a file of its own, named after its rank, and reads those of all, also what
    another number of processes has left: a run goes on with more or fewer of them. A file of other settings that holds
    no label, as a call leaves that fails before the first one, is begun anew.

    Parameters
    ----------
    path : Path or None
        Of a single process; None keeps no file.
    settings : dict
        How the labels are measured.
    defaults : mapping
        What a setting was before records had it.

    Raises
    ------
    ValueError
        If a file holds labels of other settings, or is no record of labels; it is left as it is.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], defaults: Mapping[str, Any]) -> None:
        self.labels: dict[Architecture, Label] = {}
        self._file = None if path is None else _part(path, distributed.rank(), distributed.world_size())
        if path is None or self._file is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(settings))
        for part in record_parts(path):  # this process's own among them: a file of others is refused before it is cut
            found, labels = read_record(part)
            if labels:
                _check_settings(part, {**defaults, **found}, wanted)
            elif part == self._file and found != wanted:
                os.truncate(part, 0)
            self.labels.update({label.architecture: label for label in labels})
        if not _cut_torn_line(self._file):
            append_line(self._file, {"settings": settings})
        if self.labels:
            logger.info("%s holds %d labels; going on from there", path, len(self.labels))

    def add(self, label: Label) -> None:
        """Keep a label, on the disk if there is a file."""
        self.labels[label.architecture] = label
        if self._file is not None:
            append_line(self._file, label.to_dict())

    def exchange(self) -> None:
        """Learn what the other processes know, which must all make this call."""
        for labels in distributed.gather(self.labels):
            self.labels = {**labels, **self.labels}


def _part(path: Path, rank: int, size: int) -> Path:
    return path if size == 1 else path.with_name(f"{path.stem}-{rank}-of-{size}{path.suffix}")


def record_parts(path: Path) -> list[Path]:
    """Return the files that any number of processes may have left for a record; none where there is no folder."""
    if not path.parent.is_dir():
        return []
    name = re.compile(rf"{re.escape(path.stem)}(-\d+-of-\d+)?{re.escape(path.suffix)}")
    return sorted(file for file in path.parent.iterdir() if name.fullmatch(file.name))


def _check_settings(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    other = [name for name in wanted if found.get(name) != wanted[name]]
    if other:
        hint = "give another file or the same settings"
        if other[0] == IMAGES and None in (found.get(IMAGES), wanted[IMAGES]):
            hint = "whether arrays and a dataset hold the same images is not known; give another file or them as before"
        raise ValueError(
            f"{path} holds labels measured with {other[0]}={found.get(other[0])!r}, not {wanted[other[0]]!r}; {hint}"
        )


def _cut_torn_line(path: Path) -> bool:
    """Cut off what follows the last newline, in place, so that a kill loses nothing; return whether a line is left."""
    if not path.exists():
        return False
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return whole > 0
