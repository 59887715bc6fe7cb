"""Measuring the parts of a supernet's students, and whole students, in turn and under one setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from proard_nas.supernets import Architecture, Supernet

from ._parts import Found, build_parts, build_student
from ._runs import check_setting, make_run, torch_threads, whole_number
from ._timing import Run, time_in_turn

GROUP_PARAMS = 100_000_000  # in memory at a time; ONNX Runtime takes about 10 bytes for each


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
    """Measure parts and whole students in turn, as many at a time as fit into `GROUP_PARAMS`.

    The smallest student is measured with each group: where the machine's speed differs from group
    to group, its times tell by how much, and the group's are set right by them.

    Returns
    -------
    parts, students : numpy.ndarray of shape (rounds, n)
        Milliseconds.
    """
    part_params = [one.part.params for one in found]
    groups = _grouped([*part_params, *(supernet.cost(arch).params for arch in students)])
    n = len(found) + len(students)
    found_times = []
    bar = tqdm(total=n, desc="measuring", delay=2, disable=None, leave=False)
    with torch_threads(setting.threads), bar:
        for group in groups:
            parts = [found[i] for i in group if i < len(found)]
            whole = [students[i - len(found)] for i in group if i >= len(found)]
            runs = [*_part_runs(supernet, parts, setting), *_student_runs(supernet, whole, setting)]
            runs += _student_runs(supernet, [supernet.space.smallest], setting)
            share = budget_s * len(group) / n
            found_times.append(time_in_turn(runs, setting.clock, rounds=rounds, budget_s=share))
            bar.update(len(group))
    times = np.concatenate(_at_one_speed(found_times), axis=1)
    times = times[:, np.argsort(np.concatenate(groups))]
    return times[:, : len(found)], times[:, len(found) :]


def _grouped(params: Sequence[int]) -> list[list[int]]:
    """Divide indices among groups of at most `GROUP_PARAMS` at random, in each of them in order."""
    groups: list[list[int]] = [[]]
    total = 0
    for i in np.random.default_rng(0).permutation(len(params)).tolist():
        if groups[-1] and total + params[i] > GROUP_PARAMS:
            groups.append([])
            total = 0
        groups[-1].append(i)
        total += params[i]
    return [sorted(group) for group in groups]


def _at_one_speed(groups: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Scale the times of each group so that the last column's median is the same, and drop that column."""
    rounds = min(len(times) for times in groups)
    speeds = [float(np.median(times[:, -1])) for times in groups]
    common = float(np.median(speeds))
    return [times[:rounds, :-1] * (common / speed) for times, speed in zip(groups, speeds, strict=True)]


def _part_runs(supernet: Supernet, found: Sequence[Found], setting: Setting) -> list[Run]:
    built = build_parts(supernet, found, setting.img_size, setting.batch_size)
    return [make_run(module, shape, setting.runtime, setting.threads) for module, shape in built]


def _student_runs(supernet: Supernet, students: Sequence[Architecture], setting: Setting) -> list[Run]:
    shape = (setting.batch_size, supernet.in_chans, *setting.img_size)
    return [make_run(build_student(supernet, arch), shape, setting.runtime, setting.threads) for arch in students]
