"""Save one of an estimator's students as a plain timm model, calibrated.

timm.create_model('local-dir:FOLDER', pretrained=True), after import proard_nas, builds it again.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ._report import Report
from ._students import add_choice, add_estimator, chosen, open_estimator

if TYPE_CHECKING:
    from proard_nas import Architecture, ProARDEstimator
    from proard_nas.search import Candidate

HELP = "save a student as a plain timm model"
EXAMPLES = """\
  proard-nas extract --estimator robust --result front.json --out student          (the front's best)
  proard-nas extract --estimator robust --result front.json -i 3 --out student
  proard-nas extract --estimator robust --arch arch.json --out student
  proard-nas extract --estimator robust --out largest
  proard-nas extract --model proard_dyn_resnet_small --pretrained --out largest
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add_estimator(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder for the student")
    add_choice(parser)


def run(arguments: argparse.Namespace) -> Report:
    """Run the command."""
    estimator = open_estimator(arguments)
    facts = save(estimator, *chosen(arguments, estimator), arguments.out)
    cost = f"{facts['macs'] / 1e6:.4g} MMACs, {facts['params']:,} parameters"
    return Report(facts, f"a student of {cost} is in {arguments.out}")


def save(
    estimator: ProARDEstimator, arch: Architecture | None, candidate: Candidate | None, folder: str
) -> dict[str, Any]:
    """Save a student with what a search said of it; return its architecture and costs."""
    from proard_nas.deploy import save_student

    student = estimator.extract(arch)
    cost = student.cost(img_size=estimator.image_size_)
    found: dict[str, Any] = {}
    if candidate is not None:
        found["predicted"] = {
            "natural_accuracy": candidate.natural_accuracy,
            "robust_accuracy": candidate.robust_accuracy,
        }
        found |= candidate.card_figures
        if candidate.latency_ms is not None:
            found["latency_ms"] = candidate.latency_ms
    save_student(student, folder, found)
    return {
        "student": folder,
        "architecture": student.arch.to_dict(),
        "macs": cost.macs,
        "params": cost.params,
        "classes": [str(name) for name in estimator.classes_],
        **found,
    }
