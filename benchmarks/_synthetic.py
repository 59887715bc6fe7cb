"""Images for calibration that are no photographs: made to have the statistics that the training images have."""

from __future__ import annotations

import json
from typing import Any

import _training
import numpy as np
import torch
from _shipped import Job
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from proard_nas import Supernet
from proard_nas.attacks import seeded
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, calibrate, evaluate

DRAWN = 1000  # training images whose statistics a step in making calibration images is after


def synthetic_images(network: Supernet, real: Tensor, n: int, steps: int) -> Tensor:
    """Make images whose statistics in the layers of random students are those of the real images.

    Starts from blurred noise. Each step draws a student, calibrates it on some real images, and moves the images
    against the gradient of what their batch statistics differ by: squared differences of means in standard deviations,
    and of the logarithms of the deviations, averaged over channels and layers.
    """
    with seeded(0):
        coarse = nn.functional.interpolate(torch.rand(n, real.shape[1], 4, 4), size=real.shape[2:], mode="bilinear")
        x = (coarse + 0.1 * torch.randn(n, *real.shape[1:])).clamp(0, 1).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        few = real[rng.permutation(len(real))[:DRAWN]]
        with torch.no_grad():
            student = calibrate(network.student(network.space.sample(rng)), few)
        loss = statistics_differ(student, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return x.detach()


def statistics_differ(student: nn.Module, x: Tensor) -> Tensor:
    """Return by how much the statistics of a batch differ from a student's own, averaged over channels and layers."""
    differences: list[Tensor] = []

    def compare(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        mean, var = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
        assert norm.running_mean is not None and norm.running_var is not None
        own = norm.running_var.clone() + norm.eps
        differences.append(((mean - norm.running_mean.clone()) ** 2 / own).mean())
        differences.append((0.5 * ((var + norm.eps) / own).log()).square().mean())

    norms = [module for module in student.modules() if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(compare) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the statistics stay as they are
    student.train()(x)
    for hook in hooks:
        hook.remove()
    return torch.stack(differences).mean()


def check_images(job: Job, network: Supernet, real: Tensor, synthetic: Tensor, source: ArraySource) -> dict[str, Any]:
    """Compare students calibrated on the synthetic images, on the real ones and on as few real ones."""
    path = job.folder / "calibration.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    rng, rows = np.random.default_rng(1), []
    space = network.space
    attack = AttackSettings("pgd", job.recipe.eps, job.recipe.step_size, 10)
    for arch in [space.largest, space.smallest, *(space.sample(rng) for _ in range(18))]:
        row = {}
        for name, images in (("real", real), ("few real", real[: len(synthetic)]), ("synthetic", synthetic)):
            student = calibrate(network.extract(arch), images).eval()
            few = source.head(500)
            row[name] = [evaluate(student, few, one).accuracy for one in ("natural", attack)]
        rows.append(row)
    found = {
        name: {
            output: float(np.mean([row[name][i] - row["real"][i] for row in rows]))
            for i, output in enumerate(("natural", "pgd10"))
        }
        for name in ("few real", "synthetic")
    } | {"n_students": len(rows), "n_real": len(real), "n_synthetic": len(synthetic)}
    _training.write(path, found)
    return found
