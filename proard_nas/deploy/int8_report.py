"""What eight bits cost and bring: accuracy, robustness, size and latency of a student before and after."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchattacks import PGD

from proard_nas._folders import FilePath
from proard_nas._numbers import whole_number
from proard_nas._random import derive_seed
from proard_nas.attacks import EPS, STEP_SIZE, WorstCasePGD, attack_steps, run_attack
from proard_nas.attacks.objectives import is_right
from proard_nas.data import Source
from proard_nas.evaluation import AttackSettings, Evaluation, evaluate
from proard_nas.evaluation.accuracy import NATURAL, predict_logits, versions
from proard_nas.supernets import StudentNet

from ._machine import machine
from ._timing import time_in_turn
from .onnx import agrees, onnx_difference
from .onnx_network import OnnxNetwork


@dataclasses.dataclass(frozen=True)
class FileFigures:
    """The figures of one ONNX file.

    Attributes
    ----------
    file_bytes : int
    latency_ms : dict
        ``median``, ``p10`` and ``p90`` in milliseconds for one image, ``runs`` and ``threads``.
    natural, pgd, square : Evaluation
        Accuracies, with the attack's settings. ``pgd`` is made on the float student for both files: white-box for
        one, transferred to the other. ``square`` attacks the file itself.
    """

    file_bytes: int
    latency_ms: dict[str, float | int]
    natural: Evaluation
    pgd: Evaluation
    square: Evaluation


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """A student's float file beside its int8 file; see `quantization_report`.

    Attributes
    ----------
    float32, int8 : FileFigures
    agreement : float
        Share of images, in [0, 1], that both files give the same class without an attack.
    machine, versions : dict
        What latency and accuracy were measured on and with.
    """

    float32: FileFigures
    int8: FileFigures
    agreement: float
    machine: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return dataclasses.asdict(self)


def quantization_report(
    student: StudentNet,
    float_path: FilePath,
    int8_path: FilePath,
    source: Source,
    *,
    eps: float = EPS,
    step_size: float = STEP_SIZE,
    steps: int = 20,
    queries: int = 5000,
    batch_size: int = 256,
    seed: int = 0,
    runs: int = 200,
    threads: int = 1,
) -> QuantizationReport:
    """Measure a student's int8 file against its float file.

    An int8 network has no useful gradients, so attacks that need them say nothing about it. Two are used that do not:
    PGD made on the float student and transferred, and the black-box Square attack on the int8 file itself.

    Parameters
    ----------
    student : StudentNet
        The student that both files come from.
    float_path, int8_path : path
        Files from `export_onnx` and `quantize_onnx`.
    source : Source
        Images in [0, 1] and labels, not those of the calibration.
    eps, step_size : float, default=8/255, 2/255
        Of the attacks, l-infinity.
    steps : int, default=20
        Of PGD.
    queries : int, default=5000
        Of Square, at least 100.
    batch_size : int, default=256
    seed : int, default=0
    runs : int, default=200
        Timed runs of each file on one image, in turn; the latencies are comparable with each other.
    threads : int, default=1
        Threads that a run may use.

    Raises
    ------
    ImportError
        If onnxruntime is not installed: ``pip install "proard-nas[onnx]"``.
    UncalibratedError
        If the student has no batch norm statistics of its own.
    ValueError
        If the float file is not this student's, or a setting is not allowed.

    Notes
    -----
    An image counts as fooled by the transferred attack if either the first iterate that fools the student or the last
    iterate of a whole PGD fools the file: the first lies close to the student's own boundary and transfers less.
    """
    pgd, square = AttackSettings("pgd", eps, step_size, steps), AttackSettings("square", eps, step_size, queries)
    whole_number("runs", runs, 1)
    difference, largest = onnx_difference(student, float_path)
    if not agrees(difference, largest):
        raise ValueError(f"{float_path} is not this student's: their logits differ by {difference:.2g}")
    files = {"float32": float_path, "int8": int8_path}
    networks = {name: OnnxNetwork(path, threads=threads) for name, path in files.items()}
    # The cheap ones come first: they also check pixels and labels.
    natural = {name: evaluate(one, source, NATURAL, batch_size=batch_size, seed=seed) for name, one in networks.items()}
    times = _latencies(list(networks.values()), source, runs)
    transferred = _transfer(student, networks, source, pgd, batch_size, seed)
    figures = {
        name: FileFigures(
            file_bytes=Path(files[name]).stat().st_size,
            latency_ms={**_quantiles(times[:, place]), "runs": runs, "threads": threads},
            natural=natural[name],
            pgd=transferred[name],
            square=evaluate(network, source, square, batch_size=batch_size, seed=seed),
        )
        for place, (name, network) in enumerate(networks.items())
    }
    agreement = _agreement(networks["float32"], networks["int8"], source, batch_size)
    return QuantizationReport(**figures, agreement=agreement, machine=machine(), versions=_versions())


def _transfer(
    student: StudentNet,
    networks: dict[str, OnnxNetwork],
    source: Source,
    settings: AttackSettings,
    batch_size: int,
    seed: int,
) -> dict[str, Evaluation]:
    """Return each network's accuracy under PGD that is made on the student."""
    start, total, survived = time.perf_counter(), 0, dict.fromkeys(networks, 0)
    device = next(student.parameters()).device
    steps = attack_steps(settings.name, settings.steps)
    attacks = [kind(student, settings.eps, settings.step_size, steps) for kind in (WorstCasePGD, PGD)]
    for index, (images, labels) in enumerate(source.batches(batch_size)):
        x, y, total = images.to(device), labels.to(device), total + len(images)
        draw = derive_seed(seed, "evaluate", index)
        tries = [x, *(run_attack(attack, x, y, seed=draw) for attack in attacks)]
        for name, network in networks.items():
            survived[name] += int(torch.stack([_right(network, one, y) for one in tries]).all(0).sum())
    seconds = time.perf_counter() - start  # of all networks together: the attack is one
    title = f"{settings.title} made on the float student"
    return {
        name: Evaluation(
            accuracy=count / total,
            n_images=total,
            attack=title,
            eps=settings.eps,
            step_size=settings.step_size,
            steps=steps,
            seed=seed,
            seconds=seconds,
            versions=_versions(),
        )
        for name, count in survived.items()
    }


def _right(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return is_right(predict_logits(network, x), y)


def _agreement(one: nn.Module, other: nn.Module, source: Source, batch_size: int) -> float:
    same = total = 0
    for x, _ in source.batches(batch_size):
        same += int((predict_logits(one, x).argmax(1) == predict_logits(other, x).argmax(1)).sum())
        total += len(x)
    return same / total


def _latencies(networks: list[OnnxNetwork], source: Source, runs: int) -> NDArray[np.float64]:
    """Return milliseconds for one image, shape (runs, n_networks); the networks take turns."""
    image = source.head(1).x.cpu()
    calls = [functools.partial(network, image) for network in networks]
    return time_in_turn(calls, "wall", rounds=runs, warmup=5)


def _quantiles(times: NDArray[np.float64]) -> dict[str, float]:
    p10, median, p90 = np.quantile(times, (0.1, 0.5, 0.9)).tolist()
    return {"median": median, "p10": p10, "p90": p90}


def _versions() -> dict[str, str]:
    return versions("onnx", "onnxruntime")
