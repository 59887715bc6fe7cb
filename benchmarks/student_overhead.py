"""What a live student costs over a static network: the time to make it, and forward and backward through it.

Making: seconds for ``supernet.student(arch)`` less those of one plain copy of the student's tensors, in turn, median
over random architectures (bar: 5 ms). Running: seconds of forward and backward through the live student over those of
the extracted one, in turn, median over random architectures (bar: 1.05), the smallest student beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import _record
import numpy as np
import timm
import torch
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

import proard_nas  # noqa: F401  (registers the networks)
from proard_nas import Architecture, Supernet

MODELS = ("proard_dyn_resnet50", "proard_dyn_mobilenetv3")
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
MAKING_BAR_MS, RUNNING_BAR = 5.0, 1.05


def seconds(action: Callable[[], object]) -> float:
    """Run an action and return how long it took; its result is dropped outside the measured time."""
    start = time.perf_counter()
    result = action()
    taken = time.perf_counter() - start
    del result
    return taken


def measure_making(net: Supernet, archs: Iterable[Architecture], warm_up: int = 10) -> dict[str, float]:
    """Time the making of live students and plain copies of their tensors."""
    live_s, copy_s = [], []
    for arch in archs:
        live_s.append(seconds(lambda arch=arch: net.student(arch)))
        tensors = [t.detach() for t in net.student(arch).state_dict(keep_vars=True).values()]
        copy_s.append(seconds(lambda tensors=tensors: [t.clone() for t in tensors]))
    live_s, copy_s = live_s[warm_up:], copy_s[warm_up:]
    over = [live - copy for live, copy in zip(live_s, copy_s, strict=True)]
    return {
        "n": len(over),
        "live_ms": 1e3 * statistics.median(live_s),
        "copy_ms": 1e3 * statistics.median(copy_s),
        "overhead_ms": 1e3 * statistics.median(over),
        "overhead_p90_ms": 1e3 * float(np.quantile(over, 0.9)),
        "overhead_min_ms": 1e3 * min(over),
    }


class Step:
    """Forward and backward of one network."""

    def __init__(self, network: nn.Module, owner: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        self.network, self.owner, self.x, self.y, self.seconds = network, owner, x, y, []

    def run(self) -> None:
        self.owner.zero_grad(set_to_none=True)
        self.seconds.append(seconds(lambda: F.cross_entropy(self.network(self.x), self.y).backward()))

    @property
    def median(self) -> float:
        """Median without the first pass, which allocates."""
        return statistics.median(self.seconds[1:])


def measure_running(net: Supernet, arch: Architecture, batch: int, repeats: int, layout: str) -> dict[str, Any]:
    """Time forward and backward through the live and the extracted student, in turn."""
    x = torch.rand(batch, net.in_chans, *net.cfg.img_size).to(memory_format=LAYOUTS[layout])
    y = torch.randint(net.num_classes, (batch,))
    extracted = net.extract(arch)
    live, static = Step(net.student(arch), net, x, y), Step(extracted, extracted, x, y)
    for i in range(repeats + 1):
        for step in (live, static) if i % 2 else (static, live):
            step.run()
    net.zero_grad(set_to_none=True)
    return {
        "mmacs": net.cost(arch).mmacs,
        "live_s": live.median,
        "extracted_s": static.median,
        "ratio": live.median / static.median,
        "ratio_of_fastest": min(live.seconds) / min(static.seconds),  # what other load on the machine disturbs least
        "arch": arch.to_dict(),
    }


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one supernet."""
    torch.manual_seed(args.seed)
    net = timm.create_model(name).train().to(memory_format=LAYOUTS[args.layout])
    archs = net.space.sample_distinct(args.making + 10, seed=args.seed)
    making = measure_making(net, archs)
    print(f"{name}: making takes {making['overhead_ms']:.2f} ms over a copy (bar {MAKING_BAR_MS})", flush=True)
    rows = []
    for label, arch in [("smallest", net.space.smallest), *(("random", arch) for arch in archs[: args.archs])]:
        row = measure_running(net, arch, args.batch, args.repeats, args.layout)
        rows.append({"student": label, **row})
        print(f"{name}: {label}, {row['mmacs']:.0f} MMACs: {row['live_s']:.2f} s live, "
              f"{row['extracted_s']:.2f} s extracted, ratio {row['ratio']:.3f}", flush=True)  # fmt: skip
    return {"making": making, "ratio": statistics.median(r["ratio"] for r in rows[1:]), "running": rows}


def table(results: dict[str, Any]) -> str:
    """Lay out the summary."""
    rows = [
        [name, r["making"]["live_ms"], r["making"]["copy_ms"], r["making"]["overhead_ms"], r["ratio"],
         r["running"][0]["ratio"]]
        for name, r in results.items()
    ]  # fmt: skip
    header = ["supernet", "making, ms", "copy, ms", f"over, ms (bar {MAKING_BAR_MS:g})",
              f"running, live / extracted (bar {RUNNING_BAR})", "smallest"]  # fmt: skip
    return tabulate(rows, header, floatfmt=".3f")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--archs", type=int, default=10, help="random architectures to run")
    parser.add_argument("--making", type=int, default=100, help="random architectures to make")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of each network, after one that is not")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--layout", choices=LAYOUTS, default="channels_last")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=_record.RESULTS / "student_overhead.json")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep", help="of memory: see _record.py")
    args = parser.parse_args()
    if args.allocator == "keep":
        _record.keep_memory()
    started = time.time()
    results = {}
    for name in args.models:
        results[name] = measure(name, args)
        settings = {"batch": args.batch, "repeats": args.repeats, "layout": args.layout}
        path = _record.save(args.out, {**settings, "supernets": results}, args.seed, started)
    print(table(results))
    print("wrote", path)


if __name__ == "__main__":
    main()
