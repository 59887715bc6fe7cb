"""Train a robust supernet on your images, label students and fit the predictor; under torchrun, in several processes.

The other flags are the parameters of proard_nas.ProARDEstimator; help(ProARDEstimator) explains each. With
--checkpoint-dir a run that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import typing
from pathlib import Path
from typing import Any

HELP = "train a robust supernet on your images"
OBJECTS = ("loss", "teacher_loss", "teacher", "schedule", "device")  # by name only
JSON = ("model_args",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data's flags, and one for each parameter of the estimator."""
    parser.add_argument("--data", required=True, help="an .npz archive with x_train and y_train, or a folder of images")
    parser.add_argument("--image-size", type=int, default=32, help="side of the images of a folder (%(default)s)")
    parser.add_argument("--out", required=True, help="folder for the fitted estimator")
    parser.add_argument("--checkpoint-dir", help="folder for checkpoints and labels")
    from proard_nas import ProARDEstimator

    group = parser.add_argument_group("parameters of ProARDEstimator")
    hints = typing.get_type_hints(ProARDEstimator.__init__)
    for name, parameter in inspect.signature(ProARDEstimator).parameters.items():
        flag, kind, default = "--" + name.replace("_", "-"), _kind(name, hints[name]), parameter.default
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            group.add_argument(flag, type=kind, default=default, metavar=name.upper(), help="(%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from proard_nas import ProARDEstimator, distributed
    from proard_nas.data import image_folder, load_npz

    names = inspect.signature(ProARDEstimator).parameters
    estimator = ProARDEstimator(**{name: getattr(arguments, name) for name in names})
    if Path(arguments.data).is_dir():
        data: tuple[Any, ...] = (image_folder(arguments.data, arguments.image_size),)
    else:
        arrays = load_npz(arguments.data)
        data = (arrays.x_train, arrays.y_train)
    estimator.fit(*data, checkpoint_dir=arguments.checkpoint_dir)
    estimator.save(arguments.out)
    if distributed.is_main():
        score = {name: score["rmse"] for name, score in estimator.predictor_score_.items()}
        sys.stdout.write(
            f"{estimator.spent_}\npredictor, held-out RMSE: {json.dumps(score)}\nsaved in {arguments.out}\n"
        )
    return 0


def _kind(name: str, hint: Any) -> Any:
    """Return what turns a flag's text into a parameter."""
    if name in JSON:
        return json.loads
    if name in OBJECTS:
        return str
    if name == "random_state":
        return int
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    return next((kind for kind in (bool, int, float) if kind in kinds), str)
