"""Table 1: students of a progressively trained supernet beside the same networks trained alone, under attacks.

Two architectures for each seed: the largest, and the student that a search found under a fifth of its cost. Each is
taken from the supernet trained in the paper's three steps and from one trained by fair random sampling (the same
teacher, as many student-steps), and trained alone from scratch: with TRADES, with RSLAD from the same teacher, and
naturally, on the same images with the same inner attack for as many epochs as teacher and steps together. All are
measured on the same test images: natural, FGSM, PGD-20 and, on fewer images, AutoAttack, which the paper does not give.

Each network is measured as soon as it can be. ``--as-it-stands`` trains and measures nothing and writes down what
earlier runs have left: on a machine that is lent for minutes, the table grows row by row.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Iterator
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


def measure(study: Study, as_it_stands: bool = False) -> dict[str, Any]:
    """Train what is missing and measure each network once it is trained: a run that ends early leaves what it has."""
    torch.set_num_threads(_training.threads(1))  # of what is measured here; trainings side by side set their own
    if not as_it_stands:
        for seed in study.budget.seeds:
            measure_seed(study, seed)
    rows = [row for seed in study.budget.seeds for row in known_rows(study, seed)]
    if not rows:
        raise SystemExit(f"{study.records} has no row of the table yet")
    archs = {seed: known_architectures(study, seed) for seed in study.budget.seeds}
    return {
        "architectures": {
            which: [described(study, archs[seed][which]) for seed in archs if which in archs[seed]] for which in WHICH
        },
        "table": summary(rows),
        "comparisons": comparisons(rows, study.budget),
        "cost": {str(unit): found for seed in archs for unit, found in costs(study, seed, archs[seed])},
        "rows": rows,
    }


def known_architectures(study: Study, seed: int) -> dict[str, Architecture]:
    """Return the largest and, once it was searched, the found architecture of a seed."""
    found = {"found": study.found(seed)} if study.has_found(seed) else {}
    return {"largest": study.network(0).space.largest, **found}


def described(study: Study, arch: Architecture) -> dict[str, Any]:
    cost = study.network(0).cost(arch)
    return {"arch": arch.to_dict(), "mmacs": cost.mmacs, "params": cost.params}


def costs(study: Study, seed: int, archs: dict[str, Architecture]) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Yield what each training of a seed has taken that has ended."""
    alone = [Unit(seed, method, arch) for method in ALONE for arch in archs.values()]
    for unit in (Unit(seed, _study.TEACHER), *(Unit(seed, method) for method in SHARED), *alone):
        if study.is_trained(unit):
            record = study.record(unit)
            names = ("macs", "training_seconds", "student_images", "device", "energy_joules", "made")
            which = next((name for name, arch in archs.items() if arch == unit.arch), None)
            found = {name: record[name] for name in names if name in record}
            yield unit, {"method": unit.method, "which": which, **found}


def measure_seed(study: Study, seed: int) -> None:
    """Measure one seed's networks; those alone are trained before."""
    largest = {"largest": study.network(0).space.largest}

    def at_once(unit: Unit) -> None:
        if unit.method in SHARED:
            row(study, seed, largest, "largest", unit.method)

    study.ensure((Unit(seed, method) for method in SHARED), ended=at_once)
    for method in SHARED:
        row(study, seed, largest, "largest", method)
    archs = {**largest, "found": study.found(seed)}
    for method in SHARED:
        row(study, seed, archs, "found", method)
    alone = {Unit(seed, method, archs[which]): (which, method) for which, method in itertools.product(WHICH, ALONE)}
    # Those that are trained from the teacher first, whose weights another run may not have.
    study.ensure(
        sorted(alone, key=lambda unit: not unit.needs), ended=lambda unit: row(study, seed, archs, *alone[unit])
    )
    for one in alone.values():
        row(study, seed, archs, *one)


def known_rows(study: Study, seed: int) -> list[dict[str, Any]]:
    """Return a seed's rows that the record has, in the table's order."""
    places = list(itertools.product(WHICH, (*SHARED, *ALONE)))
    rows = _robustness.read_lines(study.records / f"seed{seed}-table1.jsonl")
    return sorted(rows, key=lambda row: places.index((row["which"], row["method"])))


def row(study: Study, seed: int, archs: dict[str, Architecture], which: str, method: str) -> None:
    """Measure one network of a seed, unless the record has a line of it."""
    record = study.records / f"seed{seed}-table1.jsonl"
    if any((known["method"], known["which"]) == (method, which) for known in _robustness.read_lines(record)):
        return
    images, calibration = study.images(seed).test, study.calibration(seed)
    if method in SHARED:
        supernet = study.supernet(seed, method)
        found = _robustness.measure_student(supernet, archs[which], images, calibration, study.test, auto=True)
    else:
        network = calibrate(study.trained(Unit(seed, method, archs[which])), calibration)
        found = _robustness.measure_network(network, images, study.test, auto=True)
    append_line(record, {"seed": seed, "method": method, "which": which, **found})


def values(rows: list[dict[str, Any]], method: str, which: str, metric: str) -> dict[int, float]:
    """Return one figure of each seed that has it, by the seed."""
    return {row["seed"]: row[metric] for row in rows if (row["method"], row["which"]) == (method, which)}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"method": method, "which": which}
        | {m: _robustness.spread([*values(rows, method, which, m).values()]) for m in _robustness.COLUMNS}
        for which in WHICH
        for method in (*SHARED, *ALONE)
        if values(rows, method, which, "natural")
    ]


def comparisons(rows: list[dict[str, Any]], budget: _study.Budget) -> list[dict[str, Any]]:
    """Compare the progressive supernet's students with all others, in the seeds that have both."""
    found = []
    one_image = dict.fromkeys(_robustness.TABLE, 1 / budget.n_test) | {"autoattack": 1 / budget.n_auto}
    for which in WHICH:
        for other in (RANDOM, *ALONE):
            for metric in _robustness.TABLE:
                own, others = (values(rows, method, which, metric) for method in (PROGRESSIVE, other))
                seeds = [seed for seed in own if seed in others]
                if not seeds:
                    continue
                difference = _robustness.compare(
                    [own[seed] for seed in seeds], [others[seed] for seed in seeds], one_image[metric]
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
    parser: argparse.ArgumentParser = _study.parser(__doc__, "table1")
    parser.add_argument("--as-it-stands", action="store_true", help="write what the records hold, and do no more")
    args = parser.parse_args(argv)
    found = _study.run("table1", args, functools.partial(measure, as_it_stands=args.as_it_stands))
    print(table(found))
    for row in found["comparisons"]:
        print(f"{row['which']}, {row['verdict']}")
    return found


if __name__ == "__main__":
    _study.main(main)
