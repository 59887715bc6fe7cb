"""Train a robust supernet on your images, label students and fit the predictor; under torchrun, in several processes.

Only the training part of the data is read. help(proard_nas.ProARDEstimator) explains the estimator's parameters. A run
that was stopped goes on where it was when the same command is given again: until it is done its checkpoints are in the
folder OUT.run, or in that of --checkpoint-dir, where they stay. With --estimator, or --model and --pretrained, the
training goes on from the weights of a fitted estimator, whose parameters hold where no flag says otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ._data import add_data, own_validation, training_data
from ._flags import Kind, add_parameters, given, json_value
from ._report import Report
from ._students import add_pretrained, open_estimator

if TYPE_CHECKING:
    from proard_nas import ProARDEstimator

FROM_FLAGS = ("warm_start",)  # --estimator and --pretrained say it
HELP = "train a robust supernet on your images"
EXAMPLES = """\
  proard-nas fit --data photos.npz --out robust --checkpoint-dir run --model proard_dyn_resnet_small --epochs 40
  proard-nas fit --data photos/ --image-size 64 --out robust --attack n-fgsm --eps 4/255 --step-size 1/255
  proard-nas fit --data torch/cifar10 --root data --download --out robust
  proard-nas fit --config fit.toml --epochs 10          (epochs of the command line win)
  proard-nas fit --model proard_dyn_resnet_small --pretrained --schedule sandwich --epochs 30 --data more.npz --out new
  torchrun --nproc-per-node 4 -m proard_nas fit --data photos.npz --out robust --checkpoint-dir run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data's flags, and one for each parameter of the estimator."""
    from proard_nas import ProARDEstimator

    add_data(parser, "what to train on (its training part)", required=True, validation=True)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder for the fitted estimator")
    parser.add_argument(
        "--checkpoint-dir", metavar="FOLDER", help="folder for checkpoints and labels (default: OUT.run)"
    )
    parser.add_argument("--estimator", metavar="FOLDER", help="a fitted estimator to go on from")
    add_pretrained(parser)
    group = parser.add_argument_group("parameters of ProARDEstimator")
    kinds: dict[str, Kind] = {"model_args": json_value, "random_state": int}
    add_parameters(group, ProARDEstimator, skip=FROM_FLAGS, kinds=kinds, only_given=True)


def _estimator(arguments: argparse.Namespace) -> ProARDEstimator:
    """Return the estimator that is to be fitted, or to be fitted further."""
    from proard_nas import ProARDEstimator

    parameters = given(arguments, ProARDEstimator, skip=FROM_FLAGS)
    if arguments.estimator is None and not arguments.pretrained:
        return ProARDEstimator(**parameters)
    if arguments.estimator is not None and "model" in parameters:
        raise ValueError("--estimator FOLDER goes on with that estimator's supernet; give no --model beside it")
    if "model" not in parameters:
        arguments.model = None
    estimator = open_estimator(arguments)
    estimator.set_params(**parameters, warm_start=True)
    return estimator


def _size_for(estimator: ProARDEstimator, data: str) -> tuple[int, int] | None:
    """Return the size to which pictures are brought: that which the network was made for; None: they have one."""
    from timm.models import get_pretrained_cfg

    path = Path(data)
    sized = path.is_file() or (data.lower().startswith("torch/") and not path.exists())
    cfg = None if sized else get_pretrained_cfg(estimator.model)
    return None if cfg is None else cfg.input_size[1:]


def run(arguments: argparse.Namespace) -> Report | None:
    """Run the command; processes other than the main one have nothing to report."""
    from proard_nas import distributed
    from proard_nas._devices import device_of
    from proard_nas._estimator_io import check_target
    from proard_nas._fitting import check_parameters

    check_target(arguments.out)
    out = Path(arguments.out).resolve()
    folder = Path(arguments.checkpoint_dir or out.with_name(f"{out.name}.run")).resolve()
    if folder.is_relative_to(out):
        raise ValueError(
            f"--checkpoint-dir {arguments.checkpoint_dir} is --out {arguments.out} or lies in it; allowed: a folder "
            "outside of it"
        )
    estimator = _estimator(arguments)
    check_parameters(estimator)  # before data are read, or downloaded
    size = getattr(estimator, "image_size_", None) or _size_for(estimator, arguments.data)
    with distributed.process_group(device_of(estimator)):
        with distributed.main_first():
            x, y = training_data(arguments, size)
            classes = getattr(x, "classes", None)
            validation = own_validation(arguments, None if classes is None else list(map(str, classes)), size)
        estimator.fit(x, y, val_loader=validation, checkpoint_dir=folder)
    estimator.save(arguments.out)
    if not distributed.is_main():
        return None
    if not arguments.checkpoint_dir:
        shutil.rmtree(folder)
    score = {name: score["rmse"] for name, score in estimator.predictor_score_.items()}
    data = {
        "estimator": arguments.out,
        "n_train": estimator.n_train_,
        "n_val": estimator.n_val_,
        "classes": [str(name) for name in estimator.classes_],
        "n_labels": len(estimator.labels_),
        "predictor": estimator.predictor_score_,
        "spent": estimator.spent_.to_dict(),
    }
    text = f"{estimator.spent_}\npredictor, held-out RMSE: {json.dumps(score)}\nsaved in {arguments.out}"
    return Report(data, text)
