"""Whether students leave the library unchanged: saved and loaded by timm alone, and as ONNX files.

For random students of each supernet, every tensor of which is random, or trained with ``--steps``: after
``student.save`` and ``timm.create_model('local-dir:...', pretrained=True)`` all tensors have the same bits (bar:
all students). After ``export_onnx`` the logits in onnxruntime differ from PyTorch's by at most 1e-4 on batches of
1, 2 and 7 images (bar: 1e-4; a student's classifier is scaled so that the largest logit of 64 images is 10, which
robust networks reach: random ones have outliers, whose rounding grows with them, and a few steps of training leave
small ones), and the file is at most 5 % larger than the weights (bar: 1.05). How far PyTorch's own logits are from
those in float64 stands beside the difference. Seconds are medians for one student.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import _images
import _record
import _training
import timm
import torch
from tabulate import tabulate
from torch import Tensor, nn

import proard_nas  # noqa: F401  (registers the networks)
from proard_nas import Architecture, Supernet
from proard_nas.deploy import export_onnx
from proard_nas.deploy.onnx import TOLERANCE, onnx_difference
from proard_nas.evaluation import calibrate
from proard_nas.evaluation.accuracy import predict_logits
from proard_nas.supernets import SUPERNETS, StudentNet
from proard_nas.training import Precision, Stage, Trainer, calibration_images

LARGEST_RATIO = 1.05
LARGEST_LOGIT, N_SCALED = 10.0, 64
BATCH_SIZE = 32
N_PIXELS, LEAST_CALIBRATION = 64 * 32 * 32, 16  # of the images for calibration, at least so many
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is tried: which supernets, and how many students of each."""

    models: tuple[str, ...]
    students: int


BUDGETS = {
    "smoke": Budget(("proard_dyn_resnet_tiny", "proard_dyn_resnet_small"), 2),
    "laptop": Budget(tuple(SUPERNETS), 50),
}


def make_supernet(name: str, seed: int) -> Supernet:
    """Return a supernet with random batch norms: as it starts, residual branches are zero and test nothing."""
    torch.manual_seed(seed)
    net = timm.create_model(name)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return net


def train_supernet(name: str, data: str, steps: int, seed: int) -> tuple[Supernet, Tensor]:
    """Return a supernet after so many steps of single-step adversarial training, and the images it saw.

    A new student is drawn over the whole space in each step.

    Raises
    ------
    ValueError
        If the network takes other images.
    """
    named, file = _images.named_data(data)
    recipe = dataclasses.replace(_training.RECIPES[named], model=name, batch_size=BATCH_SIZE, ema_decay=0.0)
    source, _ = _images.training_parts(named, file, steps * BATCH_SIZE, 1, seed)
    net = recipe.network(_images.N_CLASSES[named], seed)
    wanted = (net.in_chans, *net.cfg.img_size)
    if tuple(source.x.shape[1:]) != wanted:
        raise ValueError(f"{name} takes images of {wanted}, and {named} holds {tuple(source.x.shape[1:])}")
    stage = Stage("all", 1, "sat", net.space.dimensions, recipe.teacher_lr, attack="n-fgsm")
    precision = _training.measured_precision(
        net, source.head(12 * BATCH_SIZE), [stage], recipe.settings(seed, Precision(), 0.0), "auto", name
    )
    seen = calibration_images(source, len(source), recipe.augment)
    Trainer(net, source, seen[:LEAST_CALIBRATION], recipe.settings(seed, precision, 0.0)).run([stage])
    return net, seen


def make_student(net: Supernet, arch: Architecture, seed: int, seen: Tensor | None = None) -> StudentNet:
    """Return a calibrated student whose logits are as large as those of a robust network that is trained to the end."""
    student = net.extract(arch)
    n = max(LEAST_CALIBRATION, N_PIXELS // math.prod(student.cfg.img_size))
    calibrate(student, images_for(student, n, seed) if seen is None else seen[:n]).eval()
    with torch.no_grad():
        parts = images_for(student, N_SCALED, seed + 1).split(LEAST_CALIBRATION)
        largest = max(float(predict_logits(student, part).abs().max()) for part in parts)
        student.head.fc.weight.mul_(LARGEST_LOGIT / largest)
    return student


def rounding(student: StudentNet) -> float:
    """Return how far logits in float32 are from those in float64, at most."""
    images = images_for(student, LEAST_CALIBRATION // 2, seed=2)
    exact = copy.deepcopy(student).double()
    return float((predict_logits(student, images).double() - predict_logits(exact, images.double())).abs().max())


def images_for(net: StudentNet, n: int, seed: int) -> Tensor:
    height, width = net.cfg.img_size
    return torch.rand(n, net.in_chans, height, width, generator=torch.Generator().manual_seed(seed))


def measure_student(student: StudentNet, folder: Path) -> dict[str, Any]:
    """Save and export one student, and compare what comes back."""
    saving_s, _ = seconds(lambda: student.save(folder / "student"))
    loading_s, loaded = seconds(lambda: timm.create_model(f"local-dir:{folder / 'student'}", pretrained=True))
    export_s, path = seconds(lambda: export_onnx(student, folder / "student.onnx", check=False))
    compare_s, (difference, largest) = seconds(lambda: onnx_difference(student, path))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in student.state_dict().values())
    return {
        "mmacs": student.cost().mmacs,
        "weight_bytes": weights,
        "bit_equal": same_bits(student, loaded),
        "onnx_difference": difference,
        "rounding": rounding(student),
        "largest_logit": largest,
        "onnx_bytes": path.stat().st_size,
        "onnx_over_weights": path.stat().st_size / weights,
        "seconds": {"save": saving_s, "load": loading_s, "export": export_s, "compare": compare_s},
        "arch": student.arch.to_dict(),
    }


def seconds(action: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def measure(name: str, n_students: int, seed: int, data: str, steps: int) -> dict[str, Any]:
    """Measure random students of one supernet."""
    net, seen = train_supernet(name, data, steps, seed) if steps else (make_supernet(name, seed), None)
    rows = []
    for place, arch in enumerate(net.space.sample_distinct(n_students, seed=seed)):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure_student(make_student(net, arch, seed, seen), Path(folder)))
        print(f"{name}: {place + 1} of {n_students}, {sum(rows[-1]['seconds'].values()):.1f} s", flush=True)
    return {
        "n_students": len(rows),
        "n_bit_equal": sum(row["bit_equal"] for row in rows),
        "largest_onnx_difference": max(row["onnx_difference"] for row in rows),
        "largest_rounding": max(row["rounding"] for row in rows),
        "largest_logit": max(row["largest_logit"] for row in rows),
        "largest_onnx_over_weights": max(row["onnx_over_weights"] for row in rows),
        "seconds": {key: statistics.median(row["seconds"][key] for row in rows) for key in rows[0]["seconds"]},
        "students": rows,
    }


def meets(found: dict[str, Any]) -> bool:
    """Say whether a supernet's students meet all bars."""
    return bool(
        found["n_bit_equal"] == found["n_students"]
        and found["largest_onnx_difference"] <= TOLERANCE
        and found["largest_onnx_over_weights"] <= LARGEST_RATIO
    )


def failed(results: dict[str, Any]) -> list[str]:
    """Return the supernets that miss a bar."""
    return [name for name, found in results.items() if not meets(found)]


def relative(found: dict[str, Any]) -> float:
    """Return the largest difference for a student's largest logit, where that is above 1: what an export checks."""
    return max(row["onnx_difference"] / max(1.0, row["largest_logit"]) for row in found["students"])


def table(results: dict[str, Any]) -> str:
    """Lay out the summary."""
    rows = [
        [name, r["n_students"], r["n_bit_equal"], f"{r['largest_onnx_difference']:.1e}", f"{relative(r):.1e}",
         f"{r['largest_rounding']:.1e}", f"{r['largest_logit']:.1f}",
         f"{r['largest_onnx_over_weights']:.3f}", "yes" if meets(r) else "no",
         *(f"{value:.2f}" for value in r["seconds"].values())]
        for name, r in results.items()
    ]  # fmt: skip
    header = ["supernet", "students", "bit-equal\n(bar: all)", f"ONNX differs by\n(bar {TOLERANCE:g})",
              "over the\nlargest logit", "PyTorch differs\nfrom float64 by", "largest logit",
              f"file over weights\n(bar {LARGEST_RATIO})", "bars met",
              "save, s", "load, s", "export, s", "compare, s"]  # fmt: skip
    return tabulate(rows, header, disable_numparse=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=BUDGETS, default="laptop")
    parser.add_argument("--models", nargs="+", choices=SUPERNETS, help="in place of the budget's")
    parser.add_argument("--students", type=int, help="of each supernet, in place of the budget's")
    parser.add_argument("--steps", type=int, default=0, help="of training first; 0: random weights")
    parser.add_argument("--data", default=_images.STAND_IN, help=f"to train on: {_images.DATA_HELP}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=_record.RESULTS / "export.json")
    args = parser.parse_args()
    budget = BUDGETS[args.budget]
    started, results = time.time(), {}
    for name in args.models or budget.models:
        results[name] = measure(name, args.students or budget.students, args.seed, args.data, args.steps)
        path = _record.save(
            args.out, {"budget": args.budget, "training_steps": args.steps, "supernets": results}, args.seed, started
        )
    print(table(results))
    print("wrote", path)
    sys.exit(1 if failed(results) else 0)


if __name__ == "__main__":
    main()
