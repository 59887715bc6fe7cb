"""Measure more students of a fitted estimator and fit its predictor anew.

Students are measured on the validation part that fit held out: --data takes fit's data, of which the same part is drawn
again. Data of its own is --val-data. Test data is never labelled on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ._data import add_data, validation_data
from ._report import Report
from ._students import add_estimator, open_estimator

HELP = "measure more students and fit the predictor anew"
EXAMPLES = """\
  proard-nas label --estimator robust --data photos.npz --n-labels 2000 --record labels.jsonl
  proard-nas label --estimator robust --val-data held-out.npz --n-labels 500 --replace --out relabelled
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_estimator(parser)
    parser.add_argument("--n-labels", required=True, type=int, metavar="N", help="labelled students there are to be")
    parser.add_argument("--record", metavar="FILE", help="gets a line for each student, read on a restart")
    parser.add_argument("--replace", action="store_true", help="measure all anew, old labels included")
    parser.add_argument("--out", metavar="FOLDER", help="where the estimator is saved (default: where it was)")
    add_data(parser, "the data of fit, of which the held-out part is used again", validation=True)


def _check_record(arguments: argparse.Namespace) -> None:
    """Raise ValueError for a record in an estimator's folder, which would then hold a file that is none of its own."""
    if arguments.record is None:
        return
    for folder in filter(None, (arguments.estimator, arguments.out)):
        if Path(arguments.record).resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(
                f"--record {arguments.record} lies in the estimator's folder {folder}; allowed: a file outside of it"
            )


def run(arguments: argparse.Namespace) -> Report | None:
    """Run the command; processes other than the main one have nothing to report."""
    from proard_nas import distributed
    from proard_nas._devices import device_of
    from proard_nas._estimator_io import check_target

    folder = arguments.out or arguments.estimator
    if folder is None:
        raise ValueError("--pretrained needs --out FOLDER: what comes with the library stays as it is")
    check_target(folder)
    _check_record(arguments)
    estimator = open_estimator(arguments)
    with distributed.process_group(device_of(estimator)):
        with distributed.main_first():
            x, y = validation_data(arguments, estimator)
        estimator.label(arguments.n_labels, x, y, record=arguments.record, replace=arguments.replace)
    estimator.save(folder)
    if not distributed.is_main():
        return None
    score = {name: score["rmse"] for name, score in estimator.predictor_score_.items()}
    data = {"estimator": folder, "n_labels": len(estimator.labels_), "predictor": estimator.predictor_score_}
    return Report(
        data,
        f"{len(estimator.labels_)} students labelled\npredictor, held-out RMSE: {json.dumps(score)}\nsaved in {folder}",
    )
