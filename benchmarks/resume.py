"""Whether a training that is killed at any moment ends with the very weights of one that never was.

A short training over all stages of the paper's schedule is killed with SIGKILL at random moments, uniform over the life
of its process after imports, and started again each time; a training that ends before all kills have landed is followed
by another. Every one of them must end with the bits (SHA-256 of each tensor) of a training that had no store and was
never killed, and no restart may go on from before the last checkpoint that was written. Done for one process and for
two that train together (gloo), which are killed as one process group.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import _record
import numpy as np
import timm
import torch
import torch.distributed
from tabulate import tabulate
from torch import Tensor, nn

import proard_nas  # noqa: F401  (registers the networks)
from proard_nas import distributed, quickstart
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings
from proard_nas.training import AttackBudget, CheckpointStore, Trainer, TrainSettings, Validation, make_schedule

MODEL = "proard_dyn_resnet_tiny"
BATCH, N_TRAIN, N_VAL = 16, 72, 40  # five steps an epoch, the last of half a batch
CHECKPOINT_SECONDS = (0.0, 0.2)  # one of them is drawn for each life
KILLS_PER_TRAINING = 8  # about: moments are uniform over a quarter of what a whole training takes
POLL = 0.002
Position = tuple[int, ...]  # stage, whether it was entered, epoch, step
Training = Callable[[Path, Path | None, float], None]


@dataclasses.dataclass
class Life:
    """One process (or group of them), from its start to its end.

    Attributes
    ----------
    training : int
        Which of the trainings it was part of.
    moment_s : float or None
        When it was to be killed; None was left alone.
    checkpoint_seconds : float
    lived_s : float
    killed : bool
        False if it had ended before.
    started_s : float or None
        When it had restored; None was killed before that.
    restored, saved : Position or None
        Where it went on, and its last checkpoint.
    in_write : bool
        Whether it died while writing one.
    damaged : list of str
        Warnings about damaged checkpoints.
    """

    training: int
    moment_s: float | None
    checkpoint_seconds: float
    lived_s: float = 0.0
    killed: bool = False
    started_s: float | None = None
    restored: Position | None = None
    saved: Position | None = None
    in_write: bool = False
    damaged: list[str] = dataclasses.field(default_factory=list)


# -- the training, in a process of its own ------------------------------------------------------


class Journal(logging.Handler):
    """Lines of JSON, each written at once: what is known about a process that was killed."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._start = time.monotonic()

    def write(self, event: str, value: Any) -> None:
        line = {"event": event, "value": value, "seconds": time.monotonic() - self._start}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def emit(self, record: logging.LogRecord) -> None:
        self.write("damaged" if "damaged checkpoint" in record.getMessage() else "warning", record.getMessage())


class JournalledStore(CheckpointStore):
    """A store that says in a journal when it writes."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        super().__init__(folder, {"benchmark": "resume"})
        self._journal = journal

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], good: bool = False) -> Path:
        self._journal.write("saving", position(state))
        path = super().save(tensors, state, good)
        self._journal.write("saved", position(state))
        return path

    def load(self, good: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        found = super().load(good)
        if found is not None and not good:
            self._journal.write("loaded", position(found[1]))
        return found


def position(state: Mapping[str, Any]) -> Position:
    return (state["phase"], int(state["entered"]), state["epoch"], state["step"])


def train(
    source: ArraySource, val: ArraySource, epochs: int, journal_path: Path, folder: Path | None, every: float
) -> None:
    """Train from the beginning, or from what the folder holds, to the end."""
    journal = Journal(journal_path)
    logging.getLogger("proard_nas").addHandler(journal)
    torch.manual_seed(0)
    net = timm.create_model(MODEL, num_classes=10)
    settings = TrainSettings(
        BATCH, budget=AttackBudget(0.1, 0.05, 2), progress=False, ema_decay=0.9, checkpoint_seconds=every
    )
    validation = Validation(val, AttackSettings("pgd", 0.1, 0.05, 2), n_students=2)
    stages = make_schedule("paper", net.space, epochs=epochs, lr=0.05)
    store = _store(folder, journal)
    trainer = Trainer(net, source, source.x[:32], settings, validation=validation, store=store)
    trainer.restore(stages)
    distributed.wait_for_all()  # before anybody writes
    journal.write("started", None)
    trainer.run(stages)
    journal.write("events", trainer.events)
    journal.write("finished", digest(net))


def _store(folder: Path | None, journal: Journal) -> CheckpointStore | None:
    """Return each process's store: the one that writes is made first, since making one tidies the folder."""
    if folder is None:
        return None
    store = JournalledStore(folder, journal) if distributed.is_main() else None
    distributed.wait_for_all()
    return store or JournalledStore(folder, journal)


def digest(net: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of every tensor."""
    return {
        name: hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()
        for name, tensor in net.state_dict().items()
    }


def joined(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


# -- its life, seen from outside ----------------------------------------------------------------


class Group:
    """Forked processes that train together: they start in a moment, since everything is imported.

    Parameters
    ----------
    size : int
        Number of processes.
    action : callable
        What each of them does.
    scratch : Path
        An empty folder for where they meet and for what they say when they fail.
    """

    def __init__(self, size: int, action: Callable[[], None], scratch: Path) -> None:
        self._errors = scratch / "errors"
        self._left: list[int] = []
        self.pgid = 0
        for rank in range(size):
            pid = os.fork()
            if pid == 0:
                self._be_child(rank, size, action, scratch)
            self.pgid = self.pgid or pid
            self._left.append(pid)
            os.setpgid(pid, self.pgid)

    def _be_child(self, rank: int, size: int, action: Callable[[], None], scratch: Path) -> None:
        status = 1
        try:
            os.setpgid(0, self.pgid)
            os.dup2(os.open(self._errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            if size > 1:
                meeting = f"file://{scratch / 'meeting'}"
                torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
            action()
            if size > 1:
                torch.distributed.destroy_process_group()
            status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())  # not to sys.stderr, which may be somebody else's
        finally:
            os._exit(status)

    def wait(self, seconds: float | None) -> bool:
        """Wait for the end of all, at most so long; return whether they ended."""
        end = float("inf") if seconds is None else time.monotonic() + seconds
        while self._reap() and time.monotonic() < end:
            time.sleep(min(POLL, max(0.0, end - time.monotonic())))
        return not self._left

    def kill(self) -> None:
        """Kill all that are left, at once."""
        if self._left:
            os.killpg(self.pgid, signal.SIGKILL)
        for pid in self._left:
            os.waitpid(pid, 0)
        self._left = []

    def _reap(self) -> bool:
        """Take leave of those that ended; return whether some are left."""
        for pid in list(self._left):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._left.remove(pid)
                if status != 0:
                    self.kill()
                    raise RuntimeError(f"a training failed:\n{self._errors.read_text()}")
        return bool(self._left)


class Trial:
    """Trainings that are killed and started again, and one that is not."""

    def __init__(self, size: int, training: Training, root: Path, seed: int) -> None:
        self.size, self.training, self.root = size, training, root
        self.rng = np.random.default_rng([seed, size])
        self.lives: list[Life] = []
        self.finished: list[dict[str, Any]] = []
        self._n_started = 0

    def run(self, n_kills: int) -> dict[str, Any]:
        started = time.time()
        whole_s, start_s, reference = self._reference()
        scale = 2 * whole_s / max(1, min(n_kills, KILLS_PER_TRAINING))
        index = -1
        while self._n_killed() < n_kills or index < 0:
            index += 1
            self._train(index, n_kills, scale, reference)
        return {
            "processes": self.size,
            "n_kills": self._n_killed(),
            "n_lives": len(self.lives),
            "n_trainings": len(self.finished),
            "all_equal": all(f["equal"] for f in self.finished),
            "went_backwards": self._went_backwards(),
            "damaged_warnings": sum(len(life.damaged) for life in self.lives),
            "killed_while_writing": sum(life.killed and life.in_write for life in self.lives),
            "killed_before_restoring": sum(life.killed and life.started_s is None for life in self.lives),
            "restarts_by_stage": self._by_stage(),  # one after the last: all were done
            "never_killed_s": whole_s,
            "started_after_s": start_s,
            "moments_uniform_to_s": scale,
            "seconds": time.time() - started,
            "reference_sha256": joined(reference),
            "trainings": self.finished,
            "lives": [dataclasses.asdict(life) for life in self.lives],
            "tensors_sha256": reference,
        }

    def _reference(self) -> tuple[float, float, dict[str, str]]:
        """Train without a store or a kill; return its time, the time before its first step, and its weights."""
        start = time.monotonic()
        lines, _, _ = self._live(None, None, 0.0)
        return (
            time.monotonic() - start,
            next(line["seconds"] for line in lines if line["event"] == "started"),
            self._weights(lines),
        )

    def _train(self, index: int, n_kills: int, scale: float, reference: dict[str, str]) -> None:
        """Train once, with kills as long as there are some left."""
        folder = self.root / f"training-{self.size}-{index}"
        while True:
            moment = float(self.rng.uniform(0, scale)) if self._n_killed() < n_kills else None
            life = Life(index, moment, float(self.rng.choice(CHECKPOINT_SECONDS)))
            lines, life.lived_s, life.killed = self._live(folder, moment, life.checkpoint_seconds)
            self._note(life, lines)
            self.lives.append(life)
            if not life.killed:
                break
        weights = self._weights(lines)
        different = [name for name in reference if weights[name] != reference[name]]
        self.finished.append({"sha256": joined(weights), "equal": weights == reference, "different": different})
        shutil.rmtree(folder)

    def _live(
        self, folder: Path | None, moment: float | None, every: float
    ) -> tuple[list[dict[str, Any]], float, bool]:
        """Start a training and kill it at the moment; return its journal, how long it lived, whether it was killed."""
        self._n_started += 1
        scratch = self.root / f"life-{self.size}-{self._n_started}"
        scratch.mkdir()
        journal = scratch / "journal"
        start = time.monotonic()
        group = Group(self.size, lambda: self.training(journal, folder, every), scratch)
        killed = not group.wait(moment)
        group.kill()
        lived = time.monotonic() - start
        text = journal.read_text() if journal.exists() else ""
        shutil.rmtree(scratch)
        return [json.loads(line) for line in text.splitlines()], lived, killed

    def _note(self, life: Life, lines: list[dict[str, Any]]) -> None:
        """Read from the journal what happened in a life."""
        writes = [line for line in lines if line["event"] in {"saving", "saved"}]
        saved = [tuple(line["value"]) for line in writes if line["event"] == "saved"]
        life.saved = saved[-1] if saved else None
        life.in_write = bool(writes) and writes[-1]["event"] == "saving"
        life.damaged = [line["value"] for line in lines if line["event"] == "damaged"]
        life.started_s = next((line["seconds"] for line in lines if line["event"] == "started"), None)
        life.restored = next((tuple(line["value"]) for line in lines if line["event"] == "loaded"), None)

    def _weights(self, lines: list[dict[str, Any]]) -> dict[str, str]:
        """Return the final weights' digests, the same in every process."""
        ends = [line["value"] for line in lines if line["event"] == "finished"]
        if len(ends) != self.size or any(end != ends[0] for end in ends):
            raise RuntimeError(f"{len(ends)} of {self.size} processes finished, or not with the same weights")
        return ends[0]

    def _n_killed(self) -> int:
        return sum(life.killed for life in self.lives)

    def _went_backwards(self) -> int:
        """Count the restarts from before the last checkpoint, and the checkpoints from before where a life began."""
        count, last = 0, {}
        for life in self.lives:
            before = last.get(life.training, ())
            if life.started_s is not None:
                count += (life.restored or ()) < before
                before = max(before, life.restored or ())
            if life.saved is not None:
                count += life.saved < before
                before = max(before, life.saved)
            last[life.training] = before
        return count

    def _by_stage(self) -> dict[str, int]:
        """Count the restarts by the stage, counted from 0, that they went on in."""
        restored = [life.restored for life in self.lives if life.restored is not None]
        return {str(stage): n for stage, n in sorted(collections.Counter(place[0] for place in restored).items())}


def table(results: list[dict[str, Any]]) -> str:
    rows = [
        [r["processes"], r["n_kills"], r["n_lives"], r["n_trainings"], sum(f["equal"] for f in r["trainings"]),
         r["went_backwards"], r["killed_while_writing"], r["damaged_warnings"], r["seconds"]]
        for r in results
    ]  # fmt: skip
    header = ["processes", "kills", "lives", "trainings", "of them equal\n(bar: all)", "went backwards\n(bar 0)",
              "killed while\nwriting", "damaged\n(bar 0)", "seconds"]  # fmt: skip
    return tabulate(rows, header, floatfmt=".1f")


def stage_names(epochs: int) -> list[str]:
    return [stage.name for stage in make_schedule("paper", timm.create_model(MODEL).space, epochs=epochs)]


def data(seed: int) -> tuple[ArraySource, ArraySource]:
    """Return a few of scikit-learn's digits to train and to validate on."""
    (x, y), _ = quickstart.digits(seed)
    source = ArraySource(torch.from_numpy(x), torch.from_numpy(y))
    return source.take(range(N_TRAIN)), source.take(range(N_TRAIN, N_TRAIN + N_VAL))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--epochs", type=int, default=12, help="of the whole schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where checkpoints are written; the system's temporary folder otherwise")
    parser.add_argument("--out", default=_record.RESULTS / "resume.json")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a fork copies no threads, and the order of sums must not depend on how many there are
    started = time.time()
    source, val = data(args.seed)

    def training(journal: Path, folder: Path | None, every: float) -> None:
        train(source, val, args.epochs, journal, folder, every)

    names = stage_names(args.epochs)
    settings = {
        "model": MODEL,
        "stages": names,
        "epochs": args.epochs,
        "batch": BATCH,
        "n_train": N_TRAIN,
        "n_val": N_VAL,
    }
    results: list[dict[str, Any]] = []
    for size in args.processes:
        with tempfile.TemporaryDirectory(dir=args.folder) as root:
            results.append(Trial(size, training, Path(root), args.seed).run(args.kills))
        path = _record.save(args.out, {**settings, "trials": results}, args.seed, started)
    print(table(results))
    print("wrote", path)
    failed = [r for r in results if not r["all_equal"] or r["went_backwards"] or r["damaged_warnings"]]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
