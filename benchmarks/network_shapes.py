"""Which shape of a small residual supernet trains fastest on this CPU, for the multiply-accumulates it has?

Times forward and backward of the largest student of each candidate (and of its smallest), in both memory layouts,
candidates in turn so that other load on the machine falls on all alike. ``--clock cpu`` counts processor seconds, which
other programs disturb less; with it, use one thread. Prints a table sorted by effective speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import _record
import torch
from tabulate import tabulate
from torch.nn import functional as F

from proard_nas.supernets.architecture import Architecture
from proard_nas.supernets.dyn_resnet import RESNET_SMALL, ResNet, ResNetFamily
from proard_nas.supernets.space import SearchSpace

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
MAX_MMACS, MAX_MPARAMS = 50.0, 1.5


def shape(
    widths: tuple[int, ...],
    stem: int,
    ratios: tuple[float, ...],
    patch: int = 2,
    bottleneck: bool = False,
    strides: tuple[int, ...] = (1, 2, 2),
    depths: tuple[int, ...] = (0, 1),
) -> ResNetFamily:
    """Return a candidate family; base depth 1 in each stage."""
    space = SearchSpace(
        depths=depths,
        base_depths=(1,) * len(widths),
        width_mults=RESNET_SMALL.space.width_mults,
        n_widths=1 + len(widths),
        expand_ratios=ratios,
    )
    return dataclasses.replace(
        RESNET_SMALL, space=space, widths=widths, strides=strides, stem_width=stem, patch=patch, bottleneck=bottleneck
    )


HALF, FULL = (0.25, 0.375, 0.5), (0.5, 0.75, 1.0)
CANDIDATES = {
    "one block each, 64-128-256 e1": shape((64, 128, 256), 48, (1.0,), depths=(0,)),
    "basic 48-88-160 e1": shape((48, 88, 160), 40, FULL),
    "basic 40-80-176 e1": shape((40, 80, 176), 40, FULL),
    "basic 32-96-184 e1": shape((32, 96, 184), 32, FULL),
    "basic 48-96-192 e.75": shape((48, 96, 192), 48, (0.25, 0.5, 0.75)),
    "basic 48-104-192 e.75": shape((48, 104, 192), 48, (0.25, 0.5, 0.75)),
    "basic 56-104-200 e.65": shape((56, 104, 200), 48, (0.35, 0.5, 0.65)),
    "basic 48-112-224 e.6": shape((48, 112, 224), 48, (0.3, 0.45, 0.6)),
    "basic 64-120-240 e.5": shape((64, 120, 240), 48, HALF),
    "basic 64-128-224 e.5": shape((64, 128, 224), 48, HALF),
    "basic 56-120-256 e.5": shape((56, 120, 256), 48, HALF),
    "basic 48-128-256 e.5": shape((48, 128, 256), 48, HALF),
    "basic 56-112-256 e.5, stem 32": shape((56, 112, 256), 32, HALF),
    "patch 4, basic 96-128-128 e.6": shape((96, 128, 128), 96, (0.3, 0.45, 0.6), patch=4, strides=(1, 1, 2)),
    "patch 4, basic 96-160-160 e.75": shape((96, 160, 160), 96, (0.25, 0.5, 0.75), patch=4, strides=(1, 2, 1)),
    "bottleneck 120-240-480 e.35": shape((120, 240, 480), 48, (0.2, 0.25, 0.35), bottleneck=True),
    "bottleneck 96-192-384 e.45": shape((96, 192, 384), 48, (0.25, 0.35, 0.45), bottleneck=True),
    "narrow: 3x3 stem, 16-32-64 e1": shape((16, 32, 64), 16, FULL, patch=1, depths=(0, 2)),
    "narrow: 3x3 stem, 16-24-32-48-64 e1": shape((16, 24, 32, 48, 64), 16, FULL, patch=1, strides=(1, 2, 1, 2, 1)),
}


class Timed:
    """One candidate student, ready for timed training steps."""

    def __init__(self, family: ResNetFamily, arch: Architecture, batch: int, layout: str, seed: int) -> None:
        torch.manual_seed(seed)
        memory_format = LAYOUTS[layout]
        self.net = ResNet(family, arch).train().to(memory_format=memory_format)
        self.images = torch.rand(batch, 3, *family.img_size).to(memory_format=memory_format)
        self.labels = torch.randint(10, (batch,))
        self.seconds: list[float] = []

    def step(self, clock: Callable[[], float]) -> None:
        """Run and time a forward and a backward pass."""
        self.net.zero_grad(set_to_none=True)
        start = clock()
        F.cross_entropy(self.net(self.images), self.labels).backward()
        self.seconds.append(clock() - start)


def measure(batch: int, rounds: int, seed: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Time all candidates, round by round."""
    timed = {}
    for name, family in CANDIDATES.items():
        for size in ("largest", "smallest"):
            for layout in LAYOUTS:
                timed[name, size, layout] = Timed(family, getattr(family.space, size), batch, layout, seed)
    for i in range(rounds + 1):
        for one in timed.values():
            one.step(clock)
            if i == 0:  # the first pass also plans and allocates
                one.seconds.clear()
        print(f"round {i} of {rounds}", flush=True)
    return [_row(name, family, batch, timed) for name, family in CANDIDATES.items()]


def _row(name: str, family: ResNetFamily, batch: int, timed: dict[tuple[str, str, str], Timed]) -> dict[str, Any]:
    with torch.device("meta"):
        cost = {size: ResNet(family, getattr(family.space, size)).cost() for size in ("largest", "smallest")}
    row: dict[str, Any] = {
        "name": name,
        "widths": family.widths,
        "stem_width": family.stem_width,
        "patch": family.patch,
        "strides": family.strides,
        "bottleneck": family.bottleneck,
        "expand_ratios": family.space.expand_ratios,
        "depths": family.space.depths,
        "mmacs": cost["largest"].mmacs,
        "params": cost["largest"].params,
        "smallest_mmacs": cost["smallest"].mmacs,
        "smallest_params": cost["smallest"].params,
        "fits": cost["largest"].mmacs <= MAX_MMACS and cost["largest"].params <= MAX_MPARAMS * 1e6,
    }
    for (candidate, size, layout), one in timed.items():
        if candidate == name:
            seconds = statistics.median(one.seconds)
            row[f"{size}_{layout}_images_per_s"] = batch / seconds
            row[f"{size}_{layout}_gmacs_per_s"] = 3 * cost[size].macs * batch / seconds / 1e9
            row[f"{size}_{layout}_spread"] = (max(one.seconds) - min(one.seconds)) / seconds
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Lay out the rows, the fastest for its multiply-accumulates first; a step counts as three forward passes."""
    header = [
        "candidate",
        "MMACs",
        "M params",
        "fits",
        "GMACs/s last",
        "cont.",
        "images/s last",
        "cont.",
        "smallest MMACs",
        "GMACs/s last",
        "images/s last",
    ]
    body = [
        [
            r["name"],
            r["mmacs"],
            r["params"] / 1e6,
            "yes" if r["fits"] else "no",
            r["largest_channels_last_gmacs_per_s"],
            r["largest_contiguous_gmacs_per_s"],
            r["largest_channels_last_images_per_s"],
            r["largest_contiguous_images_per_s"],
            r["smallest_mmacs"],
            r["smallest_channels_last_gmacs_per_s"],
            r["smallest_channels_last_images_per_s"],
        ]
        for r in rows
    ]
    formats = ("", ".1f", ".2f", "", ".1f", ".1f", ".0f", ".0f", ".1f", ".1f", ".0f")
    return tabulate(body, header, floatfmt=formats)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=_record.RESULTS / "network_shapes.json")
    args = parser.parse_args()
    started = time.time()
    torch.set_num_threads(args.threads)
    rows = measure(args.batch, args.rounds, args.seed, CLOCKS[args.clock])
    rows.sort(key=lambda row: row["largest_channels_last_gmacs_per_s"], reverse=True)
    print(table(rows))
    print("wrote", _record.save(args.out, {"batch": args.batch, "clock": args.clock, "rows": rows}, args.seed, started))


if __name__ == "__main__":
    main()
