"""Search the students that are most accurate and most robust under constraints on their cost.

--max-flops is in MMACs, millions of multiply-accumulates for one image. --verify measures the best on the validation
part of fit's data, which --data names.
"""

from __future__ import annotations

import argparse

from ._data import add_data, check_no_data, validation_data
from ._flags import add_parameters, given, json_value
from ._report import Report
from ._students import add_estimator, open_estimator

HELP = "search students under constraints on their cost"
EXAMPLES = """\
  proard-nas search --estimator robust --max-flops 20 --max-params 500000 --out front.json
  proard-nas search --estimator robust --max-flops 20 --verify 5 --data photos.npz --extract student
  proard-nas search --estimator robust --max-latency-ms 5 --latency-table phone.json --objectives robust_accuracy macs
  proard-nas search --model proard_dyn_resnet_small --pretrained --max-flops 10 --extract student
  proard-nas search --estimator robust --max-flops 20 --json
"""
ESTIMATORS_DEFAULTS = {
    "seed": "what the estimator's gives",
    "warm_start": "the best of the labelled students; [] is none",
}
FROM_ESTIMATOR = ("space", "predict", "cost", "latency")  # and not from flags of their own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags, one for each argument of the search."""
    from proard_nas.search import search

    add_estimator(parser)
    parser.add_argument("--latency-table", metavar="FILE", help="what the command latency-table wrote")
    parser.add_argument("--verify", type=int, default=0, metavar="K", help="measure the K best students")
    parser.add_argument("--out", metavar="FILE", help="file for the result, in JSON")
    parser.add_argument("--extract", metavar="FOLDER", help="folder for the best student")
    add_data(parser, "with --verify: the data of fit, of which the held-out part is used again", validation=True)
    group = parser.add_argument_group("arguments of the search")
    add_parameters(group, search, skip=FROM_ESTIMATOR, kinds={"warm_start": json_value}, instead=ESTIMATORS_DEFAULTS)


def run(arguments: argparse.Namespace) -> Report:
    """Run the command."""
    from proard_nas import Architecture
    from proard_nas._folders import check_writable
    from proard_nas._numbers import whole_number
    from proard_nas._searching import verified
    from proard_nas.search import search
    from proard_nas.supernets.saving import check_target

    if whole_number("verify", arguments.verify, 0) == 0:
        check_no_data(arguments, "--verify")
    if arguments.out is not None:
        check_writable(arguments.out)
    if arguments.extract is not None:
        check_target(arguments.extract)
    estimator = open_estimator(arguments)
    wanted = given(arguments, search, skip=FROM_ESTIMATOR)
    if "warm_start" in wanted:
        wanted["warm_start"] = [Architecture.from_dict(arch) for arch in wanted["warm_start"]]
    if arguments.latency_table is None and arguments.max_latency_ms is not None:
        raise ValueError("--max-latency-ms needs --latency-table, which the command latency-table writes")
    if arguments.latency_table is not None:
        from proard_nas.deploy import LatencyTable

        wanted["latency"] = LatencyTable.load(arguments.latency_table, estimator.supernet_)
    data = validation_data(arguments, estimator) if arguments.verify else None
    result = estimator.search(**wanted)
    if data is not None:
        result = verified(estimator, result, arguments.verify, *data)
    if arguments.out is not None:
        result.save(arguments.out)
    text = str(result)
    if arguments.extract is not None:
        from .extract import save

        save(estimator, result.best.architecture, result.best, arguments.extract)
        text += f"\nthe best student is in {arguments.extract}"
    return Report({**result.to_dict(), "best": result.front.index(result.best)}, text)
