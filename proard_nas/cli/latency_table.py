"""Measure a supernet's layers on this machine, for searches with --max-latency-ms."""

from __future__ import annotations

import argparse
from typing import Any

from ._flags import add_parameters, given, json_value, size
from ._report import Report
from ._students import add_pretrained, open_estimator

HELP = "measure latencies on this machine, for a search"
EXAMPLES = """\
  proard-nas latency-table --estimator robust --out laptop.json
  proard-nas latency-table --model proard_dyn_resnet50 --threads 1 --out one-thread.json
  proard-nas search --estimator robust --max-latency-ms 5 --latency-table laptop.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags, one for each argument of `build_latency_table`."""
    from proard_nas.deploy import build_latency_table

    parser.add_argument("--model", metavar="NAME", help="a supernet's name (see the command models)")
    parser.add_argument("--model-args", type=json_value, metavar="JSON", help="its arguments, such as num_classes")
    parser.add_argument("--estimator", metavar="FOLDER", help="a fitted estimator, in place of --model")
    add_pretrained(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="file for the table, in JSON")
    group = parser.add_argument_group("measuring")
    add_parameters(group, build_latency_table, skip=("supernet",), kinds={"img_size": size})


def run(arguments: argparse.Namespace) -> Report:
    """Run the command."""
    from proard_nas._folders import check_writable
    from proard_nas.deploy import build_latency_table

    check_writable(arguments.out)
    supernet, img_size = _supernet(arguments)
    arguments.img_size = arguments.img_size or img_size
    table = build_latency_table(supernet, **given(arguments, build_latency_table, skip=("supernet",)))
    table.save(arguments.out)
    smallest, largest = (table(arch) for arch in (supernet.space.smallest, supernet.space.largest))
    data = {"table": arguments.out, "smallest_ms": smallest, "largest_ms": largest, "evaluation": table.evaluation}
    text = f"from {smallest:.3g} ms (smallest student) to {largest:.3g} ms (largest); saved in {arguments.out}"
    if table.evaluation:
        error, tau = table.evaluation["mape"], table.evaluation["kendall_tau"]
        text += f"\nagainst students measured whole: mean absolute error {error:.1%}, Kendall's tau {tau:.2f}"
    return Report(data, text)


def _supernet(arguments: argparse.Namespace) -> tuple[Any, tuple[int, int] | None]:
    """Return the supernet, and the size of the images that an estimator was fitted on."""
    if (arguments.model is None) == (arguments.estimator is None):
        raise ValueError("give either --model NAME or --estimator FOLDER")
    if arguments.estimator is not None or arguments.pretrained:
        if arguments.model_args is not None:
            raise ValueError("--model-args goes with --model NAME alone: an estimator's supernet has its own")
        estimator = open_estimator(arguments)
        return estimator.supernet_, estimator.image_size_
    import timm

    from proard_nas._errors import check_name
    from proard_nas.supernets import SUPERNETS

    check_name("model", arguments.model, SUPERNETS)
    return timm.create_model(arguments.model, **(arguments.model_args or {})).eval(), None
