"""A folder of training checkpoints that survives being killed at any moment."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from proard_nas import distributed
from proard_nas._folders import is_left_by_system, plain, sync_folder, write_bytes

logger = logging.getLogger(__name__)

SETTINGS, POINTER = "settings.json", "latest.json"
TENSORS, STATE, CHECKSUMS = "tensors.safetensors", "state.json", "checksums.json"
PREFIX, TEMPORARY = "checkpoint-", ".tmp-"
ABSENT = object()


class CheckpointError(RuntimeError):
    """There are checkpoints, and none of them can be read."""


class CheckpointStore:
    """The checkpoints of one run: safetensors and JSON only, nothing is ever unpickled.

    A checkpoint is written under a temporary name and renamed once it is safely on the disk, so
    that a kill leaves either all of it or none. One process writes to a folder at a time; files
    that an earlier one left half-written are removed at construction.

    Parameters
    ----------
    folder : str or Path
        New, empty, or the folder of an earlier run with the same settings.
    settings : dict
        What identifies the run: nested, of what JSON can hold. Tuples equal lists, NumPy's numbers Python's.
    defaults : dict, optional
        What settings count as that an older folder lacks, as they were added since: nested as ``settings``.
    keep : int, default=2
        How many of the newest checkpoints stay; the newest good one stays as well.

    Raises
    ------
    ValueError
        If the folder holds a run with other settings; names the first that differs.
    FileExistsError
        If the folder holds something that is not a run.
    CheckpointError
        If the folder's settings cannot be read.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     store = CheckpointStore(folder, {"seed": 0})
    ...     _ = store.save({"weight": torch.ones(2)}, {"epoch": 3})
    ...     CheckpointStore(folder, {"seed": 0}).load()
    ({'weight': tensor([1., 1.])}, {'epoch': 3})
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        keep: int = 2,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder, self.keep = Path(folder), keep
        self._damaged: set[Path] = set()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim(*(json.loads(json.dumps(given, default=plain)) for given in (settings, defaults or {})))
        if distributed.is_main():  # which alone writes: what another process finds may be on its way
            for path in self.folder.glob(f"{TEMPORARY}*"):
                _remove(path)

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], good: bool = False) -> Path:
        """Write a checkpoint, then remove those that are no longer needed.

        Parameters
        ----------
        tensors : dict of str to Tensor
            Of any device, layout and dtype that safetensors knows; they may share memory.
        state : dict
            Strict JSON: string keys and finite numbers. Floats come back exactly, tuples as lists.
        good : bool, default=False
            Whether a later run may roll back to it: ``load(good=True)``.

        Returns
        -------
        Path
            The folder of the checkpoint.

        Raises
        ------
        ValueError
            If the state holds what JSON cannot; names its key.
        OSError
            If it cannot be written; what there was before stays as it was.
        """
        _check_json(state, "state")
        target = self.folder / f"{PREFIX}{self._next_number():08d}"
        temporary = self.folder / f"{TEMPORARY}{target.name}"
        temporary.mkdir()
        try:
            _write_generation(temporary, tensors, {"good": bool(good), "state": state})
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.folder)
        _write_atomically(self.folder / POINTER, _to_json({"checkpoint": target.name}))
        self._prune()
        return target

    def load(self, good: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and state of the newest checkpoint that is whole.

        Each file is compared with its checksum. A damaged checkpoint is skipped with a warning
        in the log.

        Parameters
        ----------
        good : bool, default=False
            Only what was saved as good.

        Returns
        -------
        (dict of str to Tensor, dict) or None
            Contiguous tensors on the CPU, which share no memory; None if none was ever saved.

        Raises
        ------
        CheckpointError
            If all that there are, are damaged.
        """
        damaged = []
        for path in self._generations():
            try:
                found = _read_generation(path, good)
            except _DamagedError as error:
                logger.warning("skipping the damaged checkpoint %s: %s", path, error)
                damaged.append(path)
                self._damaged.add(path)
                continue
            if found is not None:
                return found
        if damaged:
            names = ", ".join(path.name for path in damaged)
            kind = "good checkpoint" if good else "checkpoint"
            raise CheckpointError(f"no {kind} in {self.folder} can be read; damaged: {names}. Start in another folder.")
        return None

    def _claim(self, settings: Any, defaults: Any) -> None:
        """Make the folder this run's, or raise if it is somebody else's."""
        path = self.folder / SETTINGS
        found = (path.name for path in self.folder.iterdir() if not path.name.startswith(TEMPORARY))
        others = sorted(name for name in found if not is_left_by_system(name) and name != SETTINGS)
        if not path.exists():
            if others:
                raise FileExistsError(
                    f"{self.folder} is no folder of checkpoints: it holds {others[0]!r} and no {SETTINGS}. "
                    "Give a new or an empty folder."
                )
            _write_atomically(path, _to_json(settings, strict=False))
            return
        try:
            stored = json.loads(path.read_bytes())
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}); give another folder") from error
        different = _difference(_completed(stored, defaults), settings)
        if different is not None:
            key, before, now = different
            raise ValueError(
                f"{self.folder} holds a run with other settings: {key} was {before} and is now {now}. "
                "Give another folder, or the same settings to go on with that run."
                + " It has left nothing yet: if it has ended, the folder can be deleted."
                * (not others)
            )

    def _generations(self) -> list[Path]:
        """Return the folders of all checkpoints, newest first."""
        found = [p for p in self.folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdecimal()]
        return sorted(found, key=_number, reverse=True)

    def _next_number(self) -> int:
        return max(map(_number, self._generations()), default=0) + 1

    def _prune(self) -> None:
        # What load() found damaged is not counted: it would push out one that can be read.
        whole = [path for path in self._generations() if path not in self._damaged]
        keep = {*whole[: self.keep], *[path for path in whole if _is_good(path)][:1]}
        for path in self._generations():
            if path not in keep:
                gone = path.rename(self.folder / f"{TEMPORARY}{path.name}")
                self._damaged.discard(path)
                _remove(gone)


class _DamagedError(Exception):
    """A checkpoint that is incomplete or was changed."""


def _write_generation(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    files = {
        TENSORS: safetensors.torch.save({name: _plain(tensor) for name, tensor in tensors.items()}),
        STATE: _to_json(state),
    }
    sums = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    for name, data in {**files, CHECKSUMS: _to_json(sums)}.items():
        write_bytes(folder / name, data)
    sync_folder(folder)


def _read_generation(folder: Path, good: bool) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and state, or None if a good one is wanted and this one is not."""
    try:
        sums = json.loads((folder / CHECKSUMS).read_bytes())
        saved = json.loads(_checked(folder, STATE, sums))
        if good and not saved["good"]:
            return None
        tensors = safetensors.torch.load(_checked(folder, TENSORS, sums))
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from error
    return tensors, saved["state"]


def _checked(folder: Path, name: str, sums: dict[str, Any]) -> bytes:
    """Return the bytes of a file, the very ones that were compared with its checksum."""
    data = (folder / name).read_bytes()
    if len(data) != sums[name]["bytes"]:
        raise _DamagedError(f"{name} has {len(data)} bytes and should have {sums[name]['bytes']}")
    if hashlib.sha256(data).hexdigest() != sums[name]["sha256"]:
        raise _DamagedError(f"{name} does not have its checksum")
    return data


def _is_good(folder: Path) -> bool:
    try:
        return json.loads((folder / STATE).read_bytes())["good"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _plain(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares memory with nothing."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _check_json(value: Any, key: str) -> None:
    """Raise ValueError, naming the key, for what would not come back from JSON as it was."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{key} has the key {name!r}; JSON keys are strings")
            _check_json(item, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_json(item, f"{key}.{i}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} is {value}; only finite numbers can be saved")
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{key} is a {type(value).__name__}; only dict, list, str, int, float, bool and None are JSON")


def _completed(stored: Any, defaults: Any) -> Any:
    """Return what is stored, and the defaults of what is not."""
    if not isinstance(stored, dict) or not isinstance(defaults, dict):
        return stored
    return {**defaults, **{name: _completed(value, defaults.get(name)) for name, value in stored.items()}}


def _difference(stored: Any, given: Any, key: str = "") -> tuple[str, str, str] | None:
    """Return dotted key, stored and given value of the first difference, or None."""
    if isinstance(stored, dict) and isinstance(given, dict):
        pairs = [(name, stored.get(name, ABSENT), given.get(name, ABSENT)) for name in {**given, **stored}]
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(stored, given, strict=True))]
    else:
        before, now = ("absent" if x is ABSENT else json.dumps(x) for x in (stored, given))  # NaN equals NaN as text
        same = before == now or (stored == given and isinstance(stored, bool) == isinstance(given, bool))
        return None if same else (key or "settings", before, now)
    found = (_difference(a, b, f"{key}.{name}".lstrip(".")) for name, a, b in pairs)
    return next((difference for difference in found if difference is not None), None)


def _to_json(value: Any, strict: bool = True) -> bytes:
    return json.dumps(value, allow_nan=not strict, indent=1).encode()


def _number(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    write_bytes(temporary, data)
    temporary.replace(path)
    sync_folder(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
