"""Folders for students and supernets: safetensors and JSON in timm's layout, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

from proard_nas.supernets import StudentNet

Folder = str | os.PathLike[str]


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
        write_network(student, temporary)
        cost = student.cost(img_size=tuple(student.pretrained_cfg["input_size"][1:]))
        facts = {"architecture": student.arch.to_dict(), "macs": cost.macs, "params": cost.params}
        write_json(temporary / "proard.json", {**facts, **(metadata or {})})


def write_network(network: StudentNet, folder: Path) -> None:
    """Write a network's weights and configuration as timm does; see `save_student`."""
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    folder.mkdir(exist_ok=True)
    config: Any = folder / "config.json"  # typed as str; older versions of timm take a Path only
    save_config_for_hf(network, config, model_args=network.model_args())
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def write_json(path: Path, data: Any) -> None:
    """Write JSON; numbers and arrays of NumPy are written as plain ones."""
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
