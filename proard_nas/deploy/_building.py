"""Building a latency table: which parts and students are measured, and what is fitted to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from proard_nas._numbers import whole_number
from proard_nas.supernets import Architecture, SearchSpace, Supernet

from ._comparing import compare
from ._correcting import Correction, fit_correction
from ._estimating import PartEstimator
from ._machine import machine, versions
from ._measuring import Setting, measure
from ._parts import Part, find_parts, parts_of
from ._timing import check_budget
from .latency import input_shape
from .latency_table import LatencyTable


def build_latency_table(
    supernet: Supernet,
    *,
    runtime: str = "onnxruntime",
    batch_size: int = 1,
    threads: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    clock: str = "wall",
    n_students: int = 24,
    n_holdout: int = 10,
    max_parts: int = 256,
    rounds: int = 40,
    budget_s: float = 180.0,
    seed: int = 0,
) -> LatencyTable:
    """Measure what the latency of every student of a supernet follows from.

    Every different part of the students (stem, blocks by shape and resolution, neck, head) is measured
    alone, and a few whole students beside them, all in turn. A student's latency is the sum over its parts
    under a linear correction fitted to the whole students. Parts beyond ``max_parts`` are
    estimated from the measured ones by a Gaussian process on their sizes.

    Parameters
    ----------
    supernet : Supernet
        Any that timm can build by its name. Its weights do not matter.
    runtime : {'onnxruntime', 'torch'}, default='onnxruntime'
        ONNX Runtime on the CPU, or torch on the CPU.
    batch_size : int, default=1
        Images in one batch. An estimator's search takes a table of one image.
    threads : int, default=None
        Threads that one run may use; None is torch's present number.
    img_size : int or (int, int), default=None
        Height and width in pixels; None is the network's own.
    clock : {'wall', 'cpu'}, default='wall'
        Time that passes, or time that the processor spent; see `measure_latency`.
    n_students : int, default=24
        Whole students to fit to: the largest, the smallest and others drawn uniformly.
    n_holdout : int, default=10
        Further students, measured in the same rounds and not fitted to: the table's `evaluation`
        says how far its predictions are from them.
    max_parts : int, default=256
        Parts to measure at most; others are estimated.
    rounds : int, default=40
        Runs of each part and student, at least 2; their medians count.
    budget_s : float, default=180.0
        No round begins after so many seconds, as soon as there are five.
    seed : int, default=0
        Draws the students.

    Returns
    -------
    LatencyTable

    Raises
    ------
    ValueError
        If a setting is unknown or not positive.
    ImportError
        If ONNX Runtime is not installed.

    Examples
    --------
    >>> import timm, proard_nas
    >>> net = timm.create_model('proard_dyn_resnet_tiny', width_mults=[1.0], expand_ratios=[0.5])
    >>> table = build_latency_table(net, runtime='torch', n_students=4, n_holdout=0, rounds=3)
    >>> table(net.space.smallest) > 0
    True
    """
    for name, given, least in (("n_students", n_students, 4), ("n_holdout", n_holdout, 0), ("max_parts", max_parts, 1)):
        whole_number(name, given, least)
    whole_number("rounds", rounds, 2)
    check_budget(budget_s)
    setting = Setting.checked(runtime, batch_size, threads, clock, input_shape(supernet, img_size)[1:])
    network = {"name": supernet.pretrained_cfg["architecture"], "args": supernet.model_args()}
    fitted, held_out = _draw(supernet.space, n_students, n_holdout, seed)
    found = find_parts(supernet, setting.img_size, max_parts, seed)
    part_times, times = measure(supernet, found, [*fitted, *held_out], setting, rounds, budget_s)
    parts = dict(zip((one.part for one in found), np.median(part_times, axis=0).tolist(), strict=True))
    measured = list(zip(fitted, np.median(times, axis=0).tolist(), strict=False))
    correction = _fitted(supernet, parts, measured, setting)
    table = LatencyTable(network, setting, parts, correction, measured, machine(), versions())
    if held_out:
        table.evaluation = compare(held_out, np.array([table(arch) for arch in held_out]), times[:, len(fitted) :])
    return table


def _draw(space: SearchSpace, n: int, n_holdout: int, seed: int) -> tuple[list[Architecture], list[Architecture]]:
    """Draw the students to fit to, the largest and the smallest among them, and those to compare with."""
    ends = list(dict.fromkeys([space.largest, space.smallest]))
    n = min(n, space.size)
    others = space.sample_distinct(min(n + n_holdout, space.size) - len(ends), seed=seed, exclude=ends)
    return [*ends, *others][:n], [*ends, *others][n:]


def _fitted(
    supernet: Supernet, parts: Mapping[Part, float], students: Sequence[tuple[Architecture, float]], setting: Setting
) -> Correction:
    """Fit the correction, with estimates of parts that were not measured."""
    estimate = PartEstimator(parts)
    rows = []
    for arch, _ in students:
        own = [part for _, part in parts_of(supernet.plan(arch, setting.img_size))]
        rows.append([(part, parts[part] if part in parts else estimate(part)) for part in own])
    return fit_correction(rows, [ms for _, ms in students])
