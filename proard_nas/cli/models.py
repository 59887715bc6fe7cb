"""List the supernets there are, with their sizes for the number of classes they have by default."""

from __future__ import annotations

import argparse
from typing import Any, cast

from ._report import Report

HELP = "the supernets there are, with their sizes"
EXAMPLES = """\
  proard-nas models
  proard-nas models --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags: it has none of its own."""


def run(arguments: argparse.Namespace) -> Report:
    """Run the command."""
    import timm
    import torch
    from tabulate import tabulate

    from proard_nas.supernets import SUPERNETS, Supernet

    rows: list[dict[str, Any]] = []
    for name in SUPERNETS:
        with torch.device("meta"):
            net = cast(Supernet, timm.create_model(name))
        small, large = net.cost(net.space.smallest), net.cost(net.space.largest)
        rows.append(
            {
                "model": name,
                "students": net.space.size,
                "image_size": list(net.cfg.img_size),
                "num_classes": net.num_classes,
                "macs": [small.macs, large.macs],
                "params": [small.params, large.params],
            }
        )
    table = [
        (
            row["model"],
            f"{row['students']:.3g}",
            "x".join(map(str, row["image_size"])),
            row["num_classes"],
            *(macs / 1e6 for macs in row["macs"]),
            *row["params"],
        )
        for row in rows
    ]
    headers = ["supernet", "students", "images", "classes", "MMACs\nfrom", "MMACs\nto", "parameters\nfrom",
               "parameters\nto"]  # fmt: skip
    return Report(rows, tabulate(table, headers=headers, floatfmt=".4g", intfmt=","))
