"""How well a latency table built from parts predicts the latency of whole students.

For each network and runtime a table is built (`build_latency_table`), and in the same rounds, in turn with everything
else, 30 students drawn uniformly are measured that the table is not fitted to. What is compared is the median over
the rounds, batch 1. Bars: mean absolute error under 10 %, Kendall's tau over 0.9. Beside them stand the same figures
between the odd and the even rounds, which say how far the measurement itself can be trusted, and those of a straight
line in multiply-accumulates fitted to the same students as the table.

On a machine with nothing else to do, take ``--clock wall`` (the default): the figure is the median latency. On a loaded
one take ``--clock cpu``: with one thread it leaves out the time in which others had the processor, though not what they
did to its caches and its clock rate.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import _record
import numpy as np
import timm
from scipy.stats import kendalltau
from tabulate import tabulate

import proard_nas  # noqa: F401  (registers the networks)
from proard_nas import Architecture, Supernet
from proard_nas.deploy import LatencyTable, build_latency_table
from proard_nas.supernets import SUPERNETS

MAPE_BAR, TAU_BAR = 0.10, 0.9
N_UNSEEN, N_LOOKUPS = 30, 10_000
FULL = ("proard_dyn_resnet50", "proard_dyn_mobilenetv3")
BUDGETS: dict[str, dict[str, Any]] = {
    "smoke": {"models": ("proard_dyn_resnet_tiny",), "rounds": 5, "n_students": 12, "max_parts": 40},
    "laptop": {"models": FULL, "rounds": 40, "n_students": 30, "max_parts": 256},
}


def measure(net: Supernet, runtime: str, args: argparse.Namespace) -> tuple[LatencyTable, dict[str, Any]]:
    """Build a table and compare it with the students held out."""
    start = time.perf_counter()
    table = build_latency_table(
        net,
        runtime=runtime,
        threads=args.threads,
        clock=args.clock,
        n_students=args.n_students,
        n_holdout=N_UNSEEN,
        max_parts=args.max_parts,
        rounds=args.rounds,
        seed=args.seed,
    )
    build_s = time.perf_counter() - start
    assert table.evaluation is not None
    unseen = [Architecture.from_dict(row["architecture"]) for row in table.evaluation["students"]]
    measured = np.array([row["measured_ms"] for row in table.evaluation["students"]])
    return table, {
        "build_s": build_s,
        "n_parts": len(table.parts),
        "n_students": len(table.students),
        "measurements": (len(table.parts) + len(table.students)) * table.evaluation["rounds"],
        "lookup_us": lookup_us(table),
        "measured_ms": [float(measured.min()), float(np.median(measured)), float(measured.max())],
        "macs": macs_line(net, table, unseen, measured),
        "correction": {"penalty": table.correction.penalty, "loo_mape": table.correction.loo_mape},
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "evaluation": table.evaluation,
    }


def macs_line(net: Supernet, table: LatencyTable, unseen: list[Architecture], measured: np.ndarray) -> dict[str, float]:
    """Return the error of a line in multiply-accumulates, by least squares of relative errors as the table's."""

    def columns(archs: list[Architecture]) -> np.ndarray:
        return np.array([[net.cost(arch, table.setting.img_size).macs, 1.0] for arch in archs])

    known = np.array([ms for _, ms in table.students])
    line = np.linalg.lstsq(columns([a for a, _ in table.students]) / known[:, None], np.ones(len(known)), rcond=None)[0]
    predicted = columns(unseen) @ line
    return {
        "mape": float(np.abs(predicted / measured - 1).mean()),
        "kendall_tau": float(kendalltau(predicted, measured).statistic),
    }


def lookup_us(table: LatencyTable) -> float:
    """Return the microseconds that the table takes for a student it was not asked for before."""
    rng = np.random.default_rng(0)
    archs = [table.space.sample(rng) for _ in range(N_LOOKUPS // 10)]
    start = time.perf_counter()
    for arch in archs:
        table(arch)
    return 1e6 * (time.perf_counter() - start) / len(archs)


def summary(rows: list[dict[str, Any]]) -> str:
    """Lay out the results."""
    lines = []
    for row in rows:
        found = row["evaluation"]
        met = found["mape"] < MAPE_BAR and found["kendall_tau"] > TAU_BAR
        lines.append(
            [row["model"], row["runtime"], row["build_s"], row["n_parts"], row["n_students"], row["measured_ms"][1],
             100 * found["mape"], found["kendall_tau"], "yes" if met else "no",
             f"{100 * found['repeatability_mape']:.1f} %, {found['repeatability_tau']:.3f}",
             f"{100 * row['macs']['mape']:.1f} %, {row['macs']['kendall_tau']:.3f}"]
        )  # fmt: skip
    header = ["network", "runtime", "build, s", "parts", "students", "median\nstudent, ms",
              f"error, %\n(bar {100 * MAPE_BAR:g})", f"tau\n(bar {TAU_BAR:g})", "met", "odd and even\nrounds",
              "line in\nMACs"]  # fmt: skip
    return tabulate(lines, header, floatfmt=("", "", ".0f", "", "", ".3g", ".1f", ".3f"))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=BUDGETS, default="smoke")
    parser.add_argument("--models", nargs="+", choices=SUPERNETS)
    parser.add_argument("--runtimes", nargs="+", default=("onnxruntime", "torch"), choices=("onnxruntime", "torch"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--n-students", type=int, help="whole students to fit to")
    parser.add_argument("--max-parts", type=int, help="parts to measure; others are estimated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", type=Path, help="a folder in which to keep the tables")
    parser.add_argument("--out", default=_record.RESULTS / "latency.json")
    args = parser.parse_args()
    for name, value in BUDGETS[args.budget].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    started = time.time()
    settings = {"batch_size": 1, "bars": {"mape": MAPE_BAR, "kendall_tau": TAU_BAR}}
    settings |= {name: getattr(args, name) for name in ("budget", "threads", "clock", "rounds", "max_parts")}
    rows: list[dict[str, Any]] = []
    for model in args.models:
        net = timm.create_model(model).eval()
        for runtime in args.runtimes:
            table, found = measure(net, runtime, args)
            rows.append({"model": model, "runtime": runtime, **found})
            if args.tables is not None:
                table.save(args.tables / f"{model}_{runtime}.json")
            path = _record.save(args.out, {**settings, "rows": rows}, args.seed, started)
            print(summary(rows[-1:]), flush=True)
    print(summary(rows))
    print("wrote", path)


if __name__ == "__main__":
    main()
