"""Measure a student, saved or of an estimator, on the test part of some data, naturally and under attacks.

All attacks are l-infinity, on images in [0, 1]. The training part of the data is not read: of an archive x_test and
y_test are, of a folder its sub-folder test (or the folder itself, if it has no parts).
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ._data import add_data, test_data
from ._flags import number
from ._report import Report
from ._students import (
    add_choice,
    add_estimator,
    chosen,
    class_names,
    estimator_source,
    image_shape,
    load_student_folder,
    open_estimator,
    student_source,
)

if TYPE_CHECKING:
    from torch import nn

    from proard_nas.data import Source
    from proard_nas.evaluation import AttackSettings, Evaluation
    from proard_nas.supernets import StudentNet

HELP = "measure a student under attacks"
EXAMPLES = """\
  proard-nas evaluate student --data photos.npz
  proard-nas evaluate student --data photos/ --attack natural pgd cw autoattack --eps 4/255 --check-masking
  proard-nas evaluate --estimator robust --result front.json -i 3 --data torch/cifar10 --root data --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    from proard_nas.attacks import ATTACKS

    parser.add_argument("student", nargs="?", metavar="STUDENT", help="folder of a saved student")
    add_estimator(parser, required=False)
    add_choice(parser)
    add_data(parser, "what to measure on (its test part)", required=True)
    group = parser.add_argument_group("attacks")
    group.add_argument(
        "--attack",
        nargs="+",
        choices=("natural", *ATTACKS),
        default=["natural", "fgsm", "pgd"],
        metavar="NAME",
        help=f"of natural, {', '.join(ATTACKS)} (default: natural fgsm pgd)",
    )
    group.add_argument("--eps", type=number, help="largest change of a pixel (default: training's, else 8/255)")
    group.add_argument(
        "--step-size", type=number, help="of pgd and cw (default: the estimator's, in proportion to eps, else eps / 4)"
    )
    group.add_argument("--steps", type=int, help="of pgd and cw (default: the estimator's eval_steps, else 20)")
    group.add_argument("--queries", type=int, help="of square (default: 5000)")
    group.add_argument("--worst-case", action="store_true", help="an image must survive this attack and all before it")
    group.add_argument("--check-masking", action="store_true", help="look for signs of masked gradients, too")
    parser.add_argument("--max-images", type=int, metavar="N", help="measure on N images only, drawn by the seed")
    parser.add_argument("--batch-size", type=int, default=256, help="images at a time (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="of --max-images and the attacks (default: 0)")
    parser.add_argument("--device", help="auto, cpu or cuda (default: the estimator's, else auto)")


def run(arguments: argparse.Namespace) -> Report:
    """Run the command."""
    from proard_nas._numbers import whole_number
    from proard_nas.evaluation import check_gradient_masking, evaluate_all

    network, source, attacks = _what(arguments)
    suspects = [attack for attack in attacks if attack.name != "natural"]
    if arguments.check_masking and not suspects:
        raise ValueError("--check-masking needs an attack; 'natural' has no gradients to mask")
    if arguments.max_images is not None:
        whole_number("--max-images", arguments.max_images, 1)
        source = source.head(arguments.max_images, seed=arguments.seed)
    how: dict[str, Any] = {"batch_size": arguments.batch_size, "seed": arguments.seed}
    found = evaluate_all(network, source, attacks, worst_case=arguments.worst_case, **how)
    masking = None
    if arguments.check_masking:
        masking = check_gradient_masking(network, source, suspects[-1], **how).to_dict()
    data = {
        "network": arguments.student or arguments.estimator or arguments.model,
        "data": arguments.data,
        "results": [one.to_dict() for one in found],
        "masking": masking,
    }
    return Report(data, _text(found, masking))


def _what(arguments: argparse.Namespace) -> tuple[nn.Module, Source, list[AttackSettings]]:
    """Return the network, the test data in its form, and the attacks."""
    if (arguments.student is None) == (arguments.estimator is None and arguments.model is None):
        raise ValueError(
            "give either the folder of a saved student or --estimator FOLDER (or --model NAME --pretrained)"
        )
    if arguments.student is not None:
        if any(given is not None for given in (arguments.result, arguments.arch, arguments.index)):
            raise ValueError("--result, -i and --arch pick a student of --estimator, not of a saved student's folder")
        student = load_student_folder(arguments.student, arguments.device or "auto")
        x, y = test_data(arguments, class_names(student), image_shape(student)[1:])
        return student, student_source(student, x, y), _attacks(arguments, _trained_eps(student))
    estimator = open_estimator(arguments, arguments.device)
    network = estimator.extract(chosen(arguments)[0])
    x, y = test_data(arguments, [str(name) for name in estimator.classes_], estimator.image_size_)
    return (
        network,
        estimator_source(estimator, x, y),
        _attacks(arguments, estimator.eps, estimator.step_size, estimator.eval_steps),
    )


def _trained_eps(student: StudentNet) -> float | None:
    """Return the ``eps`` that a saved student was trained against, if it says so."""
    training = student.metadata.get("training")
    eps = training.get("eps") if isinstance(training, dict) else None
    return float(eps) if isinstance(eps, (int, float)) else None


def _attacks(
    arguments: argparse.Namespace,
    eps: float | None = None,
    step_size: float | None = None,
    steps: int | None = None,
) -> list[AttackSettings]:
    """Return the attacks asked for; what is not asked for is as given here, else the library's default."""
    from proard_nas.attacks import EPS, ITERATED, warn_if_short
    from proard_nas.evaluation import AttackSettings

    if arguments.eps is not None:
        step_size = step_size * arguments.eps / eps if step_size and eps else None
        eps = arguments.eps
    eps = EPS if eps is None else eps
    wanted = (arguments.step_size, step_size, eps / 4)
    step_size = next(value for value in wanted if value is not None)
    steps = steps if arguments.steps is None else arguments.steps
    if arguments.queries is not None and "square" not in arguments.attack:
        raise ValueError(f"--queries are of square, and --attack names {' '.join(arguments.attack)}")
    own_steps = {"square": arguments.queries} | dict.fromkeys(ITERATED, steps)
    attacks = [AttackSettings(name, eps, step_size, own_steps.get(name)) for name in arguments.attack]
    for one in attacks:
        if one.name in ITERATED and one.steps is not None:
            warn_if_short(one.title, one.eps, one.step_size, one.steps)
    return attacks


def _text(found: list[Evaluation], masking: dict[str, Any] | None) -> str:
    from tabulate import tabulate

    rows = [(one.attack, 100 * one.accuracy, one.eps, one.n_images, one.seconds) for one in found]
    table = tabulate(
        rows,
        headers=["attack", "accuracy %", "eps", "images", "seconds"],
        floatfmt=("", ".2f", ".5g", "", ".1f"),
        missingval="-",
    )
    if masking is None:
        return table
    warnings = "\n".join(f"  {text}" for text in masking["warnings"])
    return f"{table}\n" + (f"signs of masked gradients:\n{warnings}" if warnings else "no sign of masked gradients")
