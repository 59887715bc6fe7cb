"""ONNX files in eight bits: static quantisation by onnxruntime, ranges taken from calibration images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proard_nas._errors import check_name
from proard_nas._folders import FilePath, whole_file
from proard_nas.data.checks import check_pixels

from ._exporting import quiet, require
from .onnx import as_properties, properties_of, read_model, set_properties, strip

# "Entropy" is left out: with onnxruntime's number of bins it has one candidate, the whole range.
METHODS = {"minmax": "MinMax", "percentile": "Percentile"}
BATCH = 64


def quantize_onnx(path: FilePath, out: FilePath, images: Tensor, *, method: str = "minmax") -> Path:
    """Quantise an ONNX file to eight-bit integers.

    Weights and activations become int8, weights with a scale for each output channel; operators that onnxruntime has
    no eight-bit form for stay in float. The file takes and gives floats as before (QuantizeLinear and
    DequantizeLinear inside), and keeps what `export_onnx` wrote into it.

    Parameters
    ----------
    path : path
        A file from `export_onnx`.
    out : path
        The file to write, in a folder that exists. Replaced if it exists; written whole or not at all.
    images : Tensor of shape (N, C, H, W)
        *Training* images in [0, 1], float32, that the ranges of activations are taken from; a few hundred.
    method : {'minmax', 'percentile'}, default='minmax'
        The whole range, or the one that holds 99.999 % of the values, which has all activations of all images in
        memory at once.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ImportError
        If onnxruntime is not installed: ``pip install "proard-nas[onnx]"``.
    OSError
        If there is no such file, or ``out`` cannot be written; before anything is computed.
    ValueError
        For an unknown method, or images of another type, shape or range.

    Notes
    -----
    The form is what onnxruntime's documentation recommends on CPUs: its preprocessing first, then QDQ with signed
    integers for both. Rounding changes how a network reacts to attacks: measure it with `quantization_report`.
    """
    check_name("calibration method", method, METHODS)
    quantization = require("onnxruntime.quantization", "quantize_onnx", "onnx")
    shaping = require("onnxruntime.quantization.shape_inference", "quantize_onnx", "onnx")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no ONNX file {path}")
    name = _check_images(path, images)
    batches = torch.split(images, BATCH if method == "minmax" else 1)  # histograms need batches of equal size
    facts = {"method": method, "n_images": len(images), "weights": "int8, per channel", "activations": "int8"}
    with whole_file(out) as temporary, tempfile.TemporaryDirectory() as folder, quiet():
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        shaping.quant_pre_process(str(path), str(prepared))
        quantization.quantize_static(
            str(prepared),
            str(quantized),
            _reader(quantization, name, batches),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=getattr(quantization.CalibrationMethod, METHODS[method]),
        )
        _finish(quantized, temporary, {**properties_of(path), **as_properties({"quantization": facts})})
    return Path(out)


def _check_images(path: FilePath, images: Tensor) -> str:
    """Check calibration images against a file's input; return the input's name."""
    graph = read_model(path).graph
    dims = graph.input[0].type.tensor_type.shape.dim
    wanted = tuple(dim.dim_value for dim in dims[1:])
    if not isinstance(images, Tensor) or images.dtype != torch.float32 or tuple(images.shape[1:]) != wanted:
        given = (
            f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise ValueError(f"images is {given}; allowed: a float32 tensor of shape (N, {', '.join(map(str, wanted))})")
    if len(images) == 0:
        raise ValueError("images is empty; allowed: at least one image")
    check_pixels(images, "the calibration data")
    return str(graph.input[0].name)


def _reader(quantization: Any, name: str, batches: tuple[Tensor, ...]) -> Any:
    """Return onnxruntime's form of an iterator over batches."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: batch.cpu().numpy()}

    return Reader()


def _finish(source: Path, target: Path, properties: dict[str, str]) -> None:
    """Check the quantised file and write it with its properties."""
    import onnx

    model = read_model(source)
    strip(model)
    set_properties(model, properties)
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString())
