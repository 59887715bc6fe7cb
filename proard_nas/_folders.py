"""Files and folders written whole or not at all, checksums, and JSON read with errors that name the file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

FilePath = str | os.PathLike[str]
Folder = FilePath

CHECKSUMS = "checksums.json"
# What reading values of the wrong kind or shape raises; anything else is not the file's fault.
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)


# -- writing ----------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_folder(folder: Folder, mark: str, names: Collection[str]) -> Iterator[Path]:
    """Give a temporary folder to write to, which takes the place of ``folder`` once all went well.

    Parameters
    ----------
    folder : path
        Its parents are made.
    mark : str
        A file that every folder of this kind has.
    names : collection of str
        All that folders of this kind may hold; one that holds more is never replaced.

    Raises
    ------
    FileExistsError
        If the folder exists, is not empty, and lacks the mark or holds more than ``names``.
    OSError
        If it cannot be written. Nothing of the new folder is left, and the old one is as it was.
    """
    target = Path(folder).resolve()
    check_replaceable(target, mark, names)
    temporary = target.with_name(f".{target.name}-{uuid.uuid4().hex[:12]}")
    try:
        with _parents(target.parent), _removed_on_failure(temporary):
            temporary.mkdir()
            yield temporary
            _sync_all(temporary)
            _take_place(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{folder} could not be written, and nothing was changed: {reason}") from error


def check_replaceable(target: Path, mark: str, names: Collection[str]) -> None:
    """Raise OSError if a folder of this kind would replace something else, or cannot be made; see `whole_folder`."""
    if not os.path.lexists(target):
        parent = next(path for path in target.parents if os.path.lexists(path))
        start = f"{target} could not be written, and nothing was changed"
        if not parent.is_dir():
            raise NotADirectoryError(f"{start}: {parent} is a file")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(f"{start}: Permission denied in {parent}")
        return
    try:
        found = sorted(path.name for path in target.iterdir() if not is_left_by_system(path.name))
    except NotADirectoryError:
        raise FileExistsError(f"{target} exists and is a file; give another folder") from None
    others = [name for name in found if name not in names]
    if found and (mark not in found or others):
        what = f"{others[0]!r}" if others else f"no {mark}"
        raise FileExistsError(f"{target} exists and holds something else ({what}); give another folder")


def is_left_by_system(name: str) -> bool:
    """Return whether a file is one that macOS or Windows puts into folders that are looked at."""
    return name in (".DS_Store", "Thumbs.db", "desktop.ini") or name.startswith("._")


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; those that were made are removed again if the body fails."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _sync_all(folder: Path) -> None:
    """Wait until all files of a folder are on the disk, and that they are there."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds before it
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _take_place(new: Path, target: Path) -> None:
    old = new.with_name(f"{new.name}-old")
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    with contextlib.suppress(OSError):  # the new folder is in place all the same
        sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def check_writable(path: FilePath) -> None:
    """Raise FileNotFoundError or IsADirectoryError if a path could not be a file's."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder; give the name of a file in it")


@contextlib.contextmanager
def whole_file(path: FilePath) -> Iterator[Path]:
    """Give a temporary file to write to, beside ``path``, which takes its place once all went well.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    IsADirectoryError
        If the path is a folder.
    OSError
        If nothing can be written there.
    """
    path = Path(path)
    check_writable(path)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(error.errno, f"cannot write into the folder {path.parent}: {error.strerror}") from error
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on the disk, so that a full disk is noticed here."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, data: Any, *, strict: bool = True, indent: int | None = 1) -> None:
    """Write JSON; numbers and arrays of NumPy are written as plain ones.

    Parameters
    ----------
    path : Path
    data : what JSON can hold
    strict : bool, default=True
        Whether to refuse NaN and infinities, which other languages cannot read.
    indent : int, default=1
        None writes one line, for many numbers: indented, each has a line of its own.

    Raises
    ------
    ValueError
        If the data hold what has no form in JSON; names the file.
    """
    try:
        text = json.dumps(data, indent=indent, default=plain, allow_nan=not strict)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be written as JSON: {error}") from error
    write_bytes(path, text.encode())


def plain(value: Any) -> Any:
    """Return a number or array of NumPy as JSON has it: the ``default=`` of `json.dumps`."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r} of type {type(value).__name__} has no form in JSON")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_checksums(folder: Path, names: Sequence[str]) -> None:
    """Write the length and SHA-256 of files of a folder beside them."""
    write_json(folder / CHECKSUMS, {name: _checksum((folder / name).read_bytes()) for name in names})


# -- reading ----------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises
    ------
    ValueError
        If the file is not JSON; names it.
    """
    with naming(path):
        return json.loads(path.read_bytes())


def check_json_lines(path: Path, key: str, what: str) -> None:
    """Raise ValueError unless a file of one JSON object a line is empty or begins with an object that has a key.

    Parameters
    ----------
    path : Path
        A file; it is only read.
    key : str
        The first key of the first line, which may be torn: cut off, or followed by the zeros of a crash.
    what : str
        Names the kind of file in the error, such as ``'record of labels'``.
    """
    with path.open("rb") as file:
        first = file.readline()
    if first.endswith(b"\n"):
        with contextlib.suppress(ValueError):
            line = json.loads(first)
            if isinstance(line, dict) and key in line:
                return
    else:
        torn, start = first.rstrip(b"\0"), f'{{"{key}":'.encode()
        if torn.startswith(start) or start.startswith(torn):
            return
    raise ValueError(f"{path} is no {what}, and was left as it is; give another file")


def read_strictly(path: Path) -> Any:
    """Read JSON, or raise ValueError if it is none or holds NaN or infinity."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"it holds {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def read_checked(folder: Path, name: str) -> bytes:
    """Return the bytes of a file, the very ones that were compared with its checksum.

    Raises
    ------
    ValueError
        If they differ, or the checksums cannot be read or lack the file; names it.
    """
    sums = read_json(folder / CHECKSUMS)
    with naming(folder / CHECKSUMS):
        length, digest = sums[name]["bytes"], sums[name]["sha256"]
    path = folder / name
    data = path.read_bytes()
    if len(data) != length:
        raise ValueError(f"{path} is damaged: it has {len(data)} bytes and should have {length}")
    if _checksum(data)["sha256"] != digest:
        raise ValueError(f"{path} was changed or damaged: its SHA-256 is not the one in {CHECKSUMS}")
    return data


def checked_files(folder: Path) -> list[str]:
    """Return the names of a folder's files that have their checksums, those of folders inside it and the checksums too.

    Raises
    ------
    FileNotFoundError
        If the folder, its checksums or a file they list are not there.
    ValueError
        As `read_checked`.
    """
    names = [CHECKSUMS]
    sums = read_json(folder / CHECKSUMS)
    with naming(folder / CHECKSUMS):
        listed = list(sums)
    for name in listed:
        read_checked(folder, name)
        if name.endswith(f"/{CHECKSUMS}"):
            inner = name.removesuffix(f"/{CHECKSUMS}")
            names += [f"{inner}/{file}" for file in checked_files(folder / inner)]
        else:
            names.append(name)
    return names


def read_checked_json(folder: Path, name: str) -> Any:
    """Return the JSON of a file; raise as `read_checked` does, also if it is not JSON."""
    data = read_checked(folder, name)
    with naming(folder / name):
        return json.loads(data)


def read_checked_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; raise as `read_checked` does, also if it is anything else."""
    data = read_checked(folder, name)
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise ValueError(f"{folder / name} is not safetensors ({error}); a pickle is never loaded") from error


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what wrong values of a file raise into a ValueError that names the file."""
    try:
        yield
    except DAMAGE as error:
        reason = f"no {error}" if isinstance(error, KeyError) else f"{error}"
        raise ValueError(f"{path} is damaged or was not written by this library: {reason}") from error


def _checksum(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
