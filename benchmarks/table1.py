"""Table 1: students of a progressively trained supernet beside the same networks trained alone, under attacks.

Two architectures for each seed: the largest, and the student that a search found under a fifth of its cost. Each is
taken from the supernet trained in the paper's three steps and from one trained by fair random sampling (the same
teacher, as many student-steps), and trained alone from scratch: with TRADES, with RSLAD from the same teacher, and
naturally, on the same images with the same inner attack for as many epochs as teacher and steps together. All are
measured on the same test images: natural, FGSM, PGD-20 and, on fewer images, AutoAttack, which the paper does not give.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import _robustness
import _study
import _training
import torch
from _study import ALONE, PROGRESSIVE, RANDOM, Study, Unit
from tabulate import tabulate

from proard_nas import Architecture
from proard_nas.evaluation import calibrate
from proard_nas.evaluation.population import append_line

SHARED = (PROGRESSIVE, RANDOM)
WHICH = ("largest", "found")


def measure(study: Study) -> dict[str, Any]:
    """Train what is missing and measure each network once it is trained: a run that ends early leaves what it has."""
    seeds, network = study.budget.seeds, study.network(0)
    archs, rows = {}, []
    torch.set_num_threads(_training.threads(1))  # of what is measured here; trainings side by side set their own
    for seed in seeds:
        study.ensure(Unit(seed, method) for method in SHARED)
        archs[seed] = {"largest": network.space.largest, "found": study.found(seed)}
        rows += rows_of(study, seed, archs[seed])
    return {
        "architectures": {
            which: [
                {"arch": archs[seed][which].to_dict(), "mmacs": network.cost(archs[seed][which]).mmacs,
                 "params": network.cost(archs[seed][which]).params}
                for seed in seeds
            ]
            for which in WHICH
        },
        "table": summary(rows, seeds),
        "comparisons": comparisons(rows, seeds),
        "cost": {str(unit): cost(study, unit) for seed in seeds for unit in units(seed, archs[seed])},
        "rows": rows,
    }  # fmt: skip


def units(seed: int, archs: dict[str, Architecture]) -> list[Unit]:
    alone = [Unit(seed, method, arch) for method in ALONE for arch in archs.values()]
    return [Unit(seed, _study.TEACHER), *(Unit(seed, method) for method in SHARED), *alone]


def cost(study: Study, unit: Unit) -> dict[str, float]:
    record = study.record(unit)
    return {name: record[name] for name in ("macs", "training_seconds")}


def rows_of(study: Study, seed: int, archs: dict[str, Architecture]) -> list[dict[str, Any]]:
    """Measure one seed's networks; those alone are trained before."""
    for which, method in itertools.product(WHICH, SHARED):
        row(study, seed, archs, which, method)
    alone = {Unit(seed, method, archs[which]): (which, method) for which, method in itertools.product(WHICH, ALONE)}
    # Those that are trained from the teacher first, whose weights another run may not have.
    study.ensure(
        sorted(alone, key=lambda unit: not unit.needs), ended=lambda unit: row(study, seed, archs, *alone[unit])
    )
    return [row(study, seed, archs, *one) for one in itertools.product(WHICH, (*SHARED, *ALONE))]


def row(study: Study, seed: int, archs: dict[str, Architecture], which: str, method: str) -> dict[str, Any]:
    """Measure one network of a seed, or read its line in the record."""
    record = study.records / f"seed{seed}-table1.jsonl"
    for known in _robustness.read_lines(record):
        if (known["method"], known["which"]) == (method, which):
            return known
    images, calibration = study.images(seed).test, study.calibration(seed)
    if method in SHARED:
        supernet = study.supernet(seed, method)
        found = _robustness.measure_student(supernet, archs[which], images, calibration, study.test, auto=True)
    else:
        network = calibrate(study.trained(Unit(seed, method, archs[which])), calibration)
        found = _robustness.measure_network(network, images, study.test, auto=True)
    found = {"seed": seed, "method": method, "which": which, **found}
    append_line(record, found)
    return found


def values(rows: list[dict[str, Any]], method: str, which: str, metric: str) -> list[float]:
    """Return one figure of each seed, in their order."""
    return [row[metric] for row in rows if (row["method"], row["which"]) == (method, which)]


def summary(rows: list[dict[str, Any]], seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        {"method": method, "which": which}
        | {metric: _robustness.spread(values(rows, method, which, metric)) for metric in _robustness.TABLE}
        for which in WHICH
        for method in (*SHARED, *ALONE)
    ]


def comparisons(rows: list[dict[str, Any]], seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """Compare the progressive supernet's students with all others, seed by seed."""
    found = []
    for which in WHICH:
        for other in (RANDOM, *ALONE):
            for metric in _robustness.TABLE:
                difference = _robustness.compare(
                    values(rows, PROGRESSIVE, which, metric), values(rows, other, which, metric)
                )
                words = _robustness.verdict(
                    _study.TITLES[PROGRESSIVE], _study.TITLES[other], _robustness.NAMES[metric], difference
                )
                found.append({"which": which, "against": other, "metric": metric, **difference, "verdict": words})
    return found


def table(found: dict[str, Any]) -> str:
    rows = [
        [row["which"], _study.TITLES[row["method"]], *(_robustness.with_std(row[m]) for m in _robustness.TABLE)]
        for row in found["table"]
    ]
    return tabulate(rows, ["student", "trained", *(f"{_robustness.NAMES[m]}, %" for m in _robustness.TABLE)])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    args: argparse.Namespace = _study.parser(__doc__, "table1").parse_args(argv)
    found = _study.run("table1", args, measure)
    print(table(found))
    for row in found["comparisons"]:
        print(f"{row['which']}, {row['verdict']}")
    return found


if __name__ == "__main__":
    _study.main(main)
