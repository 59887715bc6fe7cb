"""Runs to be timed: a network and an input made into a function without arguments, for each runtime."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from proard_nas._errors import check_name
from proard_nas._numbers import whole_number

from ._exporting import reading
from ._timing import CLOCKS, Run

RUNTIMES = ("onnxruntime", "torch")
ONNX_FLOATS = (torch.float32, torch.float16)
Shape = Sequence[int]


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode, and each of its modules back into its own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def make_run(network: nn.Module, shape: Shape, runtime: str, threads: int) -> Run:
    """Return a function that runs a network in eval mode on one random input of a shape.

    Parameters
    ----------
    network : nn.Module
        In eval mode. With ``'onnxruntime'`` it is not needed any more after this call.
    shape : sequence of int
        The input's, batch first.
    runtime : {'onnxruntime', 'torch'}
    threads : int
        For ``'onnxruntime'``; torch's are a setting of the process (`torch_threads`).

    Raises
    ------
    ValueError
        If ONNX Runtime cannot compute in the network's number format.
    """
    first = next(network.parameters(), torch.empty(0))
    x = torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0)).to(first)
    return _torch_run(network, x) if runtime == "torch" else _onnx_run(network, x, threads)


def _torch_run(network: nn.Module, x: torch.Tensor) -> Run:
    def run() -> object:
        with torch.inference_mode():
            y = network(x)
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            return y

    return run


def _onnx_run(network: nn.Module, x: torch.Tensor, threads: int) -> Run:
    if x.dtype not in ONNX_FLOATS:
        raise ValueError(
            f"ONNX Runtime has no convolutions in {x.dtype} on the CPU: call .float() first, or give runtime='torch'"
        )
    session = _session(exported(network, x), threads)
    feed = {session.get_inputs()[0].name: x.cpu().numpy()}
    return lambda: session.run(None, feed)


def make_file_run(path: str, batch_size: int, threads: int, size: tuple[int, int] | None) -> tuple[Run, Shape]:
    """Return a function that runs an ONNX file on one random input, and the input's shape.

    Raises
    ------
    ValueError
        If the file holds no ONNX network, or its input is no batch of images, or of another size.
    """
    with reading(path):
        session = _session(path, threads)
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        raise ValueError(f"{path} does not take one batch of images: {[(i.name, i.shape, i.type) for i in inputs]}")
    wanted = (batch_size, None, *(size or (None, None)))
    shape = [n if isinstance(n, int) else given for n, given in zip(inputs[0].shape, wanted, strict=True)]
    wrong = any(given not in (None, n) for n, given in zip(shape, wanted, strict=True))
    if wrong or not all(isinstance(n, int) for n in shape):
        raise ValueError(f"{path} takes images of shape {inputs[0].shape}, not batches of {batch_size} at {size}")
    feed = {inputs[0].name: np.random.default_rng(0).random(shape, dtype=np.float32)}
    return (lambda: session.run(None, feed)), shape


def _session(model: str | bytes, threads: int) -> Any:
    runtime = require_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def require_onnxruntime() -> Any:
    """Import ONNX Runtime, or say how to install it."""
    try:
        import onnxruntime
    except ImportError as error:
        message = "runtime='onnxruntime' needs ONNX Runtime: pip install \"proard-nas[onnx]\"; or give runtime='torch'"
        raise ImportError(message) from error
    return onnxruntime


def exported(network: nn.Module, x: torch.Tensor) -> bytes:
    """Return a network as ONNX.

    The exporter by tracing takes some 30 ms for a block; the other one takes more than a second, and
    a latency table needs hundreds of exports. ONNX Runtime makes the same convolutions of both.
    """
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated in favour of the other
        torch.onnx.export(network, (x,), cast(Any, file), dynamo=False)  # a file, too, whatever its types say
    return file.getvalue()


def check_setting(runtime: str, clock: str, threads: int | None, batch_size: int) -> int:
    """Check what is to be measured, and return the number of threads.

    Raises
    ------
    ValueError
        If a name is unknown, a number is not positive, or the CPU clock is to measure several threads.
    ImportError
        If ONNX Runtime is wanted and not installed.
    """
    check_name("runtime", runtime, RUNTIMES)
    check_name("clock", clock, CLOCKS)
    whole_number("batch_size", batch_size, 1)
    threads = torch.get_num_threads() if threads is None else whole_number("threads", threads, 1)
    if clock == "cpu" and threads != 1:
        raise ValueError(f"clock='cpu' counts the time of one thread and needs threads=1, got {threads}")
    if runtime == "onnxruntime":
        require_onnxruntime()
    return threads
