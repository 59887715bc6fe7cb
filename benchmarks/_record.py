"""What every benchmark writes down about itself beside its figures: command, code, versions, machine, seed, time."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "torchattacks",
    "numpy",
    "optuna",
    "scikit-learn",
    "onnx",
    "onnxruntime",
    "proard-nas",
)


# glibc gives large blocks back to the system when they are freed and faults every page in again when they are
# allocated: a fifth of a step on a CPU, and most of its noise. These keep them.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}


def keep_memory() -> None:
    """Start this process again with an allocator that keeps freed memory, unless it already has one.

    Both sides of a comparison profit alike; what remains is the difference between them.
    """
    if sys.platform == "linux" and not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP_MEMORY})


def save(path: str | Path, results: Any, seed: int | None, started: float) -> Path:
    """Write a benchmark's results as JSON.

    Parameters
    ----------
    path : str or Path
        The file; missing folders are made.
    results : JSON-able
    seed : int or None
        The seed of the run; None where nothing is random.
    started : float
        ``time.time()`` at the start of the run.
    """
    path = Path(path)
    record = {
        "command": command(),
        "date": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "seed": seed,
        **commit(),
        "versions": versions(),
        "machine": machine(),
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    part.replace(path)  # a reader, or a run that is killed, never leaves half a file
    return path


def command() -> str:
    """Return the command line, with paths inside the project relative to it, and the names alone of others."""
    return " ".join(["python", *(_portable(a) for a in sys.argv)])


def _portable(argument: str) -> str:
    before, equals, given = argument.rpartition("=")
    path = Path(given)
    if (path.is_absolute() or path.exists()) and path.resolve().is_relative_to(ROOT):
        given = str(path.resolve().relative_to(ROOT))
    elif path.is_absolute():
        given = path.name
    return f"{before}{equals}{given}"


def commit() -> dict[str, Any]:
    """Return the commit of the code, and whether tracked Python files differ from it."""
    try:
        head = _git("rev-parse", "HEAD")
        return {"commit": head, "modified": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "*.py"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def made() -> dict[str, Any]:
    """Return by which code, when and on which machine something was made, for a small record of it."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"date": now, "command": command(), **commit(), "versions": versions(), "machine": machine()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what the figures ran on."""
    from proard_nas.deploy._machine import machine as described

    return {
        **described(),
        "threads": torch.get_num_threads(),
        "keeps_freed_memory": KEEP_MEMORY.items() <= os.environ.items(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
