"""List the supernets there are, with their sizes for 10 classes."""

from __future__ import annotations

import argparse
import sys
from typing import cast

HELP = "the supernets there are, with their sizes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags: it has none."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    import timm
    import torch
    from tabulate import tabulate

    from proard_nas.supernets import SUPERNETS, Supernet

    rows = []
    for name in SUPERNETS:
        with torch.device("meta"):
            net = cast(Supernet, timm.create_model(name))
        small, large = net.cost(net.space.smallest), net.cost(net.space.largest)
        height, width = net.cfg.img_size
        rows.append(
            (name, f"{net.space.size:.3g}", f"{height}x{width}", small.mmacs, large.mmacs, small.params, large.params)
        )
    headers = ["supernet", "students", "images", "MMACs\nfrom", "MMACs\nto", "parameters\nfrom", "parameters\nto"]
    sys.stdout.write(tabulate(rows, headers=headers, floatfmt=".4g", intfmt=",") + "\n")
    return 0
