"""Figure 6: students of each width (or kernel size) at the largest depth and expansion, progressive against random.

Beside them stands the largest network trained with TRADES alone: the teacher that both supernets start from, the
paper's green line.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import _robustness
import _study
import _training
import torch
from _study import PROGRESSIVE, RANDOM, TEACHER, Study, Unit
from tabulate import tabulate

from proard_nas import Architecture
from proard_nas.evaluation.population import append_line
from proard_nas.supernets import SearchSpace

METHODS = (PROGRESSIVE, RANDOM)
METRICS = ("natural", "fgsm", "pgd20")


def students(space: SearchSpace) -> dict[str, Architecture]:
    """Return the students that differ in the first elastic dimension alone, by its value."""
    largest = space.largest
    if space.width_mults:
        return {
            f"W = {width:g}": dataclasses.replace(largest, width_mult=(width,) * space.n_widths)
            for width in sorted(space.width_mults)
        }
    return {
        f"K = {size}": dataclasses.replace(
            largest, kernel_size=tuple((size,) * len(row) for row in largest.kernel_size)
        )
        for size in sorted(space.kernel_sizes)
    }


def measure(study: Study) -> dict[str, Any]:
    """Train what is missing, and measure the students of all seeds."""
    seeds, network = study.budget.seeds, study.network(0)
    study.ensure(Unit(seed, method) for seed in seeds for method in METHODS)
    torch.set_num_threads(_training.threads(1))
    archs = students(network.space)
    rows = [row for seed in seeds for row in rows_of(study, seed, archs)]
    lines = {metric: _robustness.spread(values(rows, TEACHER, "largest", metric)) for metric in METRICS}
    return {
        "n_images": study.budget.n_test,
        "students": [
            {"student": name, "mmacs": network.cost(arch).mmacs, "params": network.cost(arch).params}
            | {m: {metric: _robustness.spread(values(rows, m, name, metric)) for metric in METRICS} for m in METHODS}
            | {
                "against": {
                    other[0]: differences(rows, name, other, study.budget.n_test)
                    for other in ((RANDOM, name), (TEACHER, "largest"))
                }
            }
            for name, arch in archs.items()
        ],
        "largest_with_trades": lines,
        "rows": rows,
    }


def rows_of(study: Study, seed: int, archs: dict[str, Architecture]) -> list[dict[str, Any]]:
    """Measure one seed's students, with a line in the record for each."""
    record = study.records / f"seed{seed}-widths.jsonl"
    rows = _robustness.read_lines(record)
    known = {(row["method"], row["student"]) for row in rows}
    wanted = [(method, name, arch) for method in METHODS for name, arch in archs.items()]
    wanted.append((TEACHER, "largest", study.network(seed).space.largest))
    for method, name, arch in wanted:
        if (method, name) not in known:
            found = _robustness.measure_student(
                study.supernet(seed, method), arch, study.images(seed).test, study.calibration(seed), study.test, False
            )
            rows.append({"seed": seed, "method": method, "student": name, **{m: found[m] for m in METRICS}})
            append_line(record, rows[-1])
    return rows


def values(rows: list[dict[str, Any]], method: str, student: str, metric: str) -> list[float]:
    """Return one figure of each seed, in their order."""
    return [row[metric] for row in rows if (row["method"], row["student"]) == (method, student)]


def differences(
    rows: list[dict[str, Any]], student: str, other: tuple[str, str], n_images: int
) -> dict[str, dict[str, Any]]:
    """Compare a student of the progressive supernet with another, given as how it was trained and which it is."""
    return {
        m: _robustness.compare(values(rows, PROGRESSIVE, student, m), values(rows, *other, m), 1 / n_images)
        for m in METRICS
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    found = _study.run("widths", _study.parser(__doc__, "widths").parse_args(argv), measure)
    rows = [
        [row["student"], row["mmacs"], _study.TITLES[m], *(_robustness.with_std(row[m][metric]) for metric in METRICS)]
        for row in found["students"]
        for m in METHODS
    ]
    line = found["largest_with_trades"]
    rows.append(["largest", "", _study.TITLES[TEACHER], *(_robustness.with_std(line[metric]) for metric in METRICS)])
    print(tabulate(rows, ["student", "MMACs", "trained", *(f"{_robustness.NAMES[m]}, %" for m in METRICS)]))
    return found


if __name__ == "__main__":
    _study.main(main)
