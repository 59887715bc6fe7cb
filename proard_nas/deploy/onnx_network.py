"""An ONNX file as a network that the evaluation can measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proard_nas._folders import FilePath

from ._exporting import reading, require


class OnnxNetwork(nn.Module):
    """A network in an ONNX file, run by onnxruntime on the CPU; it has no gradients.

    Parameters
    ----------
    path : path
        A file with one input, images of shape (N, C, H, W) in [0, 1], and one output, logits.
    threads : int, default=None
        Threads within an operation; None is onnxruntime's choice, one for each core.

    Raises
    ------
    ImportError
        If onnxruntime is not installed; it comes with ``pip install "proard-nas[onnx]"``.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file holds no ONNX network.

    Examples
    --------
    >>> from proard_nas.evaluation import evaluate
    >>> evaluate(OnnxNetwork("student.onnx"), source, "square").accuracy  # doctest: +SKIP
    """

    def __init__(self, path: FilePath, *, threads: int | None = None) -> None:
        super().__init__()
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}; allowed: integers from 1, or None for onnxruntime's choice")
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no ONNX file {path}")
        self.session = open_session(path, threads)
        self.input_name: str = self.session.get_inputs()[0].name
        # What evaluates a network asks its first parameter for the device.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (N, num_classes), of images in [0, 1]; they come back on the images' device.

        Raises
        ------
        RuntimeError
            If gradients are asked for.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                "a network in an ONNX file has no gradients: attack it with 'square', or attack the network it was "
                "exported from"
            )
        (logits,) = self.session.run(None, {self.input_name: x.detach().cpu().numpy()})
        return torch.from_numpy(logits).to(x.device)


def open_session(path: FilePath, threads: int | None = None) -> Any:
    """Return an onnxruntime session on the CPU that reports errors only."""
    runtime = require("onnxruntime", "running an ONNX file", "onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    with reading(path):
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
