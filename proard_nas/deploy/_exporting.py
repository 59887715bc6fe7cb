"""What all exports share: the network that is exported, optional packages, silence."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from timm.models import create_model
from torch import Tensor, nn

from proard_nas._folders import FilePath
from proard_nas.evaluation.calibration import require_calibrated
from proard_nas.supernets import StudentNet, Supernet

BATCH_SIZES = (1, 2, 7)  # that an exported file is compared with PyTorch on


def require(module: str, what: str, extra: str) -> Any:
    """Import an optional package.

    Raises
    ------
    ImportError
        If it is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f'{what} needs {package}: pip install "proard-nas[{extra}]"') from error


def frozen(student: nn.Module) -> StudentNet:
    """Return a copy of a student as it is exported: on the CPU, float32, eval mode, sharing nothing.

    Of a supernet, the active student is copied. A live student is copied too.

    Raises
    ------
    TypeError
        If this is another network.
    UncalibratedError
        If it has no batch norm statistics of its own.
    """
    if not isinstance(student, StudentNet):
        raise TypeError(
            f"{type(student).__name__} cannot be exported; allowed: a student, such as SearchResult.extract() or "
            "supernet.extract(arch) return, or a supernet, of which the active student is exported"
        )
    student = _active(student) if isinstance(student, Supernet) else student
    require_calibrated(student)
    tensors = {
        name: tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else None, copy=True).contiguous()
        for name, tensor in student.state_dict().items()
    }
    with torch.device("meta"):
        copy = cast(StudentNet, create_model(student.cfg.student, **student.model_args()))
    copy.load_state_dict(tensors, strict=True, assign=True)
    copy.pretrained_cfg = copy.default_cfg = dict(student.pretrained_cfg)
    copy.metadata = dict(student.metadata)
    return copy.eval().requires_grad_(False)


def _active(supernet: Supernet) -> StudentNet:
    """Return the active student with what is known of the supernet."""
    student = supernet.extract(supernet.active)
    # A supernet's figures are those of its largest student.
    others = () if supernet.active == supernet.space.largest else ("natural_accuracy", "robust_accuracy")
    student.metadata = {name: value for name, value in supernet.metadata.items() if name not in others}
    cfg = getattr(supernet, "pretrained_cfg", {})
    student.pretrained_cfg |= {name: cfg[name] for name in ("license", "label_names") if name in cfg}
    return student


def example_images(student: StudentNet, n: int) -> Tensor:
    """Return random images in [0, 1], the same on each call, of the size that a student was made for."""
    size = student.pretrained_cfg["input_size"][1:]
    return torch.rand(n, student.in_chans, *size, generator=torch.Generator().manual_seed(n))


@contextlib.contextmanager
def reading(path: FilePath) -> Iterator[None]:
    """Say of what cannot be read as an ONNX network that it is none.

    The errors of onnx and onnxruntime have no type in common.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no ONNX network that can be read: {error}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep off the screen what exporters print, and their warnings about their own code."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
