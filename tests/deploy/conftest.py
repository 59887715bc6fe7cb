"""Students whose every tensor matters: fresh networks have residual branches at zero and logits near zero."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import proard_nas  # noqa: F401  (registers the networks)
from proard_nas.deploy import export_onnx
from proard_nas.evaluation import calibrate
from proard_nas.supernets import StudentNet, Supernet


@pytest.fixture(scope="session")
def lively_supernet() -> Callable[..., Supernet]:
    """Give a function that makes a supernet with random batch norms and logits of size 1 to 10."""

    def make(name: str = "proard_dyn_resnet_tiny", seed: int = 0, **options: object) -> Supernet:
        generator = torch.Generator().manual_seed(seed)
        net = timm.create_model(name, **options)
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
                    module.bias.copy_(0.2 * torch.randn(module.bias.shape, generator=generator))
            weight = net.head.fc.weight
            weight.copy_(5 * torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
        return net

    return make


@pytest.fixture(scope="session")
def lively_student(lively_supernet: Callable[..., Supernet]) -> Callable[..., StudentNet]:
    """Give a function that makes a calibrated student in eval mode, by default the smallest there is."""

    def make(name: str = "proard_dyn_resnet_tiny", arch: object = "smallest", **options: object) -> StudentNet:
        net = lively_supernet(name, **options)
        student = net.extract(net.space.smallest if arch == "smallest" else net.space.sample(seed=arch))
        return calibrate(student, images_for(student, 16)).eval()

    return make


def images_for(net: nn.Module, n: int, seed: int = 1) -> torch.Tensor:
    shape = (n, net.in_chans, *net.pretrained_cfg["input_size"][1:])
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def images() -> Callable[..., torch.Tensor]:
    """Give a function that makes n images in [0, 1] for a network."""
    return images_for


@pytest.fixture(scope="session")
def student(lively_student: Callable[..., StudentNet]) -> StudentNet:
    """Give one small student, which tests leave as it is."""
    student = lively_student()
    student.metadata = {"license": "mit", "note": "from the student"}
    student.pretrained_cfg |= {"label_names": list("abcdefghij")}
    return student


TEXTS = {"data_version": "1.10", "commit": "1234e56", "drift": "NaN", "seen": "true", "range": "12e999", "q": '"'}


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """Give metadata of `onnx_file` that are text and look like JSON."""
    return TEXTS


@pytest.fixture(scope="session")
def onnx_file(student: StudentNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give its ONNX file, in a folder of its own: exporting takes seconds."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    figures = {"natural_accuracy": 0.9, "test": {"attack": "PGD-20", "accuracy": np.float64(0.5)}}
    return export_onnx(student, tmp_path_factory.mktemp("onnx") / "student.onnx", metadata={**figures, **TEXTS})
