"""Figure 8: what it costs to serve N devices: one supernet and a search for each, or one RSLAD training for each.

``measured``: multiply-accumulates and seconds of this study's own trainings: the teacher, the three steps, labelling,
and the predictor, once, and for each device a search and the labels of the candidates it chooses from, against RSLAD
trainings of single networks from the same teacher, of the largest architecture and of the one found under a fifth of
its cost. ``paper``: the same counted, not run, for the paper's schedule and networks (50,000 images of 32x32; RSLAD 300
epochs from WRN-34-10, which is itself trained for 100 epochs with TRADES), and how many devices the paper's factor of
60 would take. A training's multiply-accumulates are those of all forward and backward passes of its steps; validation
while it trains counts in its seconds alone. Labelling's are an upper bound, no image being fooled early.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from typing import Any

import _study
import numpy as np
import timm
from _study import PROGRESSIVE, TEACHER, Study, Unit
from tabulate import tabulate

from proard_nas.supernets import Supernet
from proard_nas.training import AttackBudget, Stage, labelling_macs, make_loss, make_schedule, training_cost
from proard_nas.training.budget import step_macs

DEVICES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
CLAIM = 60
PAPER_IMAGES, PAPER_LABELS, PAPER_EPOCHS, WIDE_EPOCHS = 50_000, 2000, 300, 100
PAPER_NETWORKS = ("proard_dyn_resnet50", "proard_dyn_mobilenetv3")
WIDE_RESNET = "proard_dyn_wide_resnet"


def measure(study: Study, paper: bool) -> dict[str, Any]:
    """Train and label what is missing, and add up."""
    seeds = study.budget.seeds
    study.ensure(Unit(seed, PROGRESSIVE) for seed in seeds)
    found = {seed: {"largest": study.network(seed).space.largest, "found": study.found(seed)} for seed in seeds}
    study.ensure(Unit(seed, "rslad", arch) for seed in seeds for arch in found[seed].values())
    shared = {seed: supernet_costs(study, seed) for seed in seeds}
    return {
        "measured": {which: own_costs(study, found, shared, which) for which in ("largest", "found")},
        "paper": {name: paper_costs(name) for name in PAPER_NETWORKS} if paper else None,
    }


# -- this study ---------------------------------------------------------------------------------


def supernet_costs(study: Study, seed: int) -> dict[str, dict[str, float]]:
    """Return what one seed's supernet, its labels, the predictor and a search took."""
    labels = labelling(study, seed)
    share = _study.CANDIDATES / study.budget.n_labels
    return {
        "teacher": training(study, Unit(seed, TEACHER)),
        "steps": training(study, Unit(seed, PROGRESSIVE)),
        "labelling": labels,
        "candidates": {unit: share * value for unit, value in labels.items()},
        **predictor_and_search(study, seed),
    }


def own_costs(
    study: Study, found: dict[int, dict[str, Any]], shared: dict[int, dict[str, dict[str, float]]], which: str
) -> dict[str, Any]:
    """Return what the supernet and a network alone took, averaged over the seeds, and how they compare."""
    parts: dict[str, dict[str, list[float]]] = {}
    for seed in found:
        costs = {**shared[seed], "rslad": training(study, Unit(seed, "rslad", found[seed][which]))}
        for name, cost in costs.items():
            for unit, value in cost.items():
                parts.setdefault(name, {}).setdefault(unit, []).append(value)
    means = {name: {unit: statistics.mean(values) for unit, values in cost.items()} for name, cost in parts.items()}
    return {"parts": means, "seeds": parts} | {
        unit: compared_parts({name: cost[unit] for name, cost in means.items()}) for unit in ("macs", "seconds")
    }


def ratios_by_seed(parts: dict[str, dict[str, list[float]]], unit: str) -> list[float]:
    """Return the ratio at 50 devices of each seed alone, from what each part took in each."""
    n_seeds = len(parts["rslad"][unit])
    of_seeds = ({name: values[unit][i] for name, values in parts.items()} for i in range(n_seeds))
    return [compared_parts(one)["ratio"]["50"] for one in of_seeds]


def training(study: Study, unit: Unit) -> dict[str, float]:
    record = study.record(unit)
    return {"macs": record["macs"], "seconds": record["training_seconds"]}


def labelling(study: Study, seed: int) -> dict[str, float]:
    network, budget = study.network(0), study.budget
    labels = study.labelled(seed, study.drawn(budget.n_labels, seed))
    mean = float(np.mean([network.cost(arch).macs for arch in labels.architectures]))
    macs = labelling_macs(len(labels), budget.n_val, budget.n_calibration, 20, mean)
    return {"macs": macs, "seconds": sum(label.seconds for label in labels.students)}


def predictor_and_search(study: Study, seed: int) -> dict[str, dict[str, float]]:
    """Fit the predictor, once for all devices, and search; their multiply-accumulates are next to none."""
    labels = study.labelled(seed, study.drawn(study.budget.n_labels, seed))
    start = time.perf_counter()
    predictor = study.predictor(seed, labels)
    fitted = time.perf_counter()
    study.search(seed, known=predictor)
    seconds = {"predictor": fitted - start, "search": time.perf_counter() - fitted}
    return {name: {"seconds": value, "macs": 0.0} for name, value in seconds.items()}


# -- the paper's schedule -------------------------------------------------------------------------


def paper_costs(name: str) -> dict[str, Any]:
    """Count the multiply-accumulates of the paper's schedule, and of RSLAD trainings of a student of mean cost."""
    network, size, budget = timm.create_model(name), (32, 32), AttackBudget()
    assert isinstance(network, Supernet)
    stages = make_schedule("paper", network.space)
    cost = training_cost(network, stages, PAPER_IMAGES, budget, size)
    rng = np.random.default_rng(0)
    mean = float(np.mean([network.cost(network.space.sample(rng)).macs for _ in range(1000)]))
    labels = labelling_macs(PAPER_LABELS, 10_000, 4000, 20, mean)
    wide = timm.create_model(WIDE_RESNET)
    assert isinstance(wide, Supernet)
    teacher = training_cost(wide, [Stage("teacher", WIDE_EPOCHS, "trades")], PAPER_IMAGES, budget, size).macs
    wide_macs = wide.cost(wide.space.largest).macs
    step = step_macs(make_loss("rslad"), [mean], wide_macs, budget, share_attack=False)
    return {
        "stages": dict(cost.stages),
        "labelling": labels,
        "mean_student_macs": mean,
        "teacher_macs": wide_macs,
        "rslad_teacher": teacher,
        "rslad": PAPER_EPOCHS * PAPER_IMAGES * step,
        "macs": compared(cost.macs + labels, 0.0, PAPER_EPOCHS * PAPER_IMAGES * step, teacher),
    }


# -- comparison -----------------------------------------------------------------------------------


def compared_parts(parts: dict[str, float]) -> dict[str, Any]:
    """Compare N searches with N trainings, given what each part took."""
    return compared(
        once=sum(parts[name] for name in ("teacher", "steps", "labelling", "predictor")),
        each=parts["search"] + parts["candidates"],
        alone=parts["rslad"],
        alone_once=parts["teacher"],
    )


def compared(once: float, each: float, alone: float, alone_once: float) -> dict[str, Any]:
    """Compare N searches in one supernet with N trainings from one teacher.

    Parameters
    ----------
    once, each : float
        Of the supernet, and of what each device takes.
    alone, alone_once : float
        Of one network alone, and of the teacher that all of them distil from.
    """

    def ratio(n: float, with_teacher: float) -> float:
        return (n * alone + with_teacher) / (once + n * each)

    def devices_for(factor: float) -> int | None:
        gain = alone - factor * each
        return math.ceil((factor * once - alone_once) / gain) if gain > 0 else None

    return {
        "once": once,
        "each": each,
        "alone": alone,
        "alone_once": alone_once,
        "break_even_devices": max(1, devices_for(1.0) or 1) if alone > each else None,
        "devices_for_60": devices_for(CLAIM),
        "ratio": {str(n): ratio(n, alone_once) for n in DEVICES},
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    parser: argparse.ArgumentParser = _study.parser(__doc__, "devices")
    parser.add_argument("--no-paper", action="store_true", help="leave out what is only counted")
    args = parser.parse_args(argv)
    found = _study.run("devices", args, functools.partial(measure, paper=not args.no_paper))
    rows = [
        [f"{title}, {unit}", *(row[key] for key in ("once", "alone", "break_even_devices", "devices_for_60")),
         row["ratio"]["50"]]
        for title, row, unit in [
            *((f"measured, {which}", costs[unit], unit) for which, costs in found["measured"].items()
              for unit in ("macs", "seconds")),
            *((f"paper, {name}", costs["macs"], "macs") for name, costs in (found["paper"] or {}).items()),
        ]
    ]  # fmt: skip
    headers = ["", "supernet", "one RSLAD", "break-even\ndevices", f"devices for\n{CLAIM}x", "ratio at\n50 devices"]
    print(tabulate(rows, headers, floatfmt=".3g"))
    return found


if __name__ == "__main__":
    _study.main(main)
