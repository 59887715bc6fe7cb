"""Measuring the parts of a supernet's students, and whole students, in turn and under one setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from proard_nas._numbers import whole_number
from proard_nas.supernets import Architecture, Supernet

from ._parts import Found, build_parts, build_student
from ._runs import check_setting, make_run, torch_threads
from ._timing import Run, time_in_turn

BYTES_PER_PARAM = 10  # that ONNX Runtime takes
MEMORY_SHARE = 0.5  # of what is available
LEAST_ROOM = 100_000_000  # parameters in memory at a time, however little is available
PASSES = 2
ITERATIONS = 50


@dataclasses.dataclass(frozen=True)
class Setting:
    """Under what a latency is measured; see `measure_latency` for the fields."""

    runtime: str
    batch_size: int
    threads: int
    clock: str
    img_size: tuple[int, int]

    @classmethod
    def checked(
        cls, runtime: str, batch_size: int, threads: int | None, clock: str, img_size: tuple[int, int]
    ) -> Setting:
        """Return the setting with the number of threads known, or raise what `check_setting` does."""
        return cls(runtime, batch_size, check_setting(runtime, clock, threads, batch_size), clock, img_size)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {**dataclasses.asdict(self), "img_size": list(self.img_size)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Setting:
        """Build the setting from `to_dict`'s form; what it names need not be installed here."""
        height, width = (whole_number("img_size", n, 1) for n in data["img_size"])
        counts = {name: whole_number(name, data[name], 1) for name in ("batch_size", "threads")}
        return cls(str(data["runtime"]), clock=str(data["clock"]), img_size=(height, width), **counts)


def measure(
    supernet: Supernet,
    found: Sequence[Found],
    students: Sequence[Architecture],
    setting: Setting,
    rounds: int,
    budget_s: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure parts and whole students in turn, all at once if they fit into memory.

    Where they do not they are measured in groups, twice, in other company the second time: from
    what parts, or students, have in common with those that they were grouped with, it follows by
    how much the machine's speed differed from group to group, and all are set right by that.

    Returns
    -------
    parts, students : numpy.ndarray of shape (rounds, n)
        Milliseconds.
    """
    params = [*(one.part.params for one in found), *(supernet.cost(arch).params for arch in students)]
    room = _room()
    n_passes = 1 if sum(params) <= room else PASSES
    passes, memberships = [], []
    bar = tqdm(total=n_passes * len(params), desc="measuring", delay=2, disable=None, leave=False)
    with torch_threads(setting.threads), bar:
        for number in range(n_passes):
            groups = _grouped(params, room, number)
            timed = []
            for group in groups:
                parts = [found[i] for i in group if i < len(found)]
                whole = [students[i - len(found)] for i in group if i >= len(found)]
                runs = [*_part_runs(supernet, parts, setting), *_student_runs(supernet, whole, setting)]
                share = budget_s * len(group) / len(params) / n_passes
                timed.append(time_in_turn(runs, setting.clock, rounds=-(-rounds // n_passes), budget_s=share))
                bar.update(len(group))
            passes.append(_joined(timed, groups))
            memberships.append(_membership(groups))
    halves = (slice(0, len(found)), slice(len(found), None))
    set_right = [_at_one_speed([t[:, half] for t in passes], [m[half] for m in memberships]) for half in halves]
    return set_right[0], set_right[1]


def _room() -> int:
    """Return how many parameters may be held in memory at a time."""
    try:
        pages = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
        available = 1024 * pages["MemAvailable"]
    except (OSError, KeyError, ValueError):  # another system
        available = 0
    return max(LEAST_ROOM, int(available * MEMORY_SHARE / BYTES_PER_PARAM))


def _grouped(params: Sequence[int], room: int, seed: int) -> list[list[int]]:
    """Divide indices among groups that fit into the room, at random, in each of them in order."""
    groups: list[list[int]] = [[]]
    total = 0
    for i in np.random.default_rng(seed).permutation(len(params)).tolist():
        if groups[-1] and total + params[i] > room:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += params[i]
    return [sorted(group) for group in groups]


def _joined(timed: Sequence[NDArray[np.float64]], groups: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return the times of all groups, shape (rounds, n), in the order of the indices."""
    rounds = min(len(times) for times in timed)
    joined = np.concatenate([times[:rounds] for times in timed], axis=1)
    return joined[:, np.argsort(np.concatenate(groups))]


def _membership(groups: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return the number of each index's group."""
    found = np.zeros(sum(map(len, groups)), dtype=np.int64)
    for number, group in enumerate(groups):
        found[group] = number
    return found


def _at_one_speed(
    passes: Sequence[NDArray[np.float64]], memberships: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Return the rounds of all passes, each group's times divided by its speed.

    A time's logarithm is taken to be the sum of one of what is timed and one of its group; both
    follow by alternating least squares from the medians of each pass.

    Parameters
    ----------
    passes : sequence of ndarray of shape (rounds, n)
    memberships : sequence of ndarray of shape (n,)
        For each pass, the group of each column.
    """
    if len(passes) == 1:
        return passes[0]
    logs = np.log(np.array([np.median(times, axis=0) for times in passes]))
    speeds = np.zeros_like(logs)
    for _ in range(ITERATIONS):
        own = (logs - speeds).mean(axis=0)
        for number, members in enumerate(memberships):
            for group in np.unique(members):
                inside = members == group
                speeds[number, inside] = (logs[number] - own)[inside].mean()
    return np.concatenate([times * np.exp(-speed) for times, speed in zip(passes, speeds, strict=True)])


def _part_runs(supernet: Supernet, found: Sequence[Found], setting: Setting) -> list[Run]:
    built = build_parts(supernet, found, setting.img_size, setting.batch_size)
    return [make_run(module, shape, setting.runtime, setting.threads) for module, shape in built]


def _student_runs(supernet: Supernet, students: Sequence[Architecture], setting: Setting) -> list[Run]:
    shape = (setting.batch_size, supernet.in_chans, *setting.img_size)
    return [make_run(build_student(supernet, arch), shape, setting.runtime, setting.threads) for arch in students]
