"""From student to device: saving, latency, model cards, the Hugging Face hub, ONNX, torch.export, ExecuTorch, int8."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from proard_nas.supernets.card import model_card

from ._building import build_latency_table
from .hub import load_from_hub, pull_folder, push_folder, push_to_hub
from .latency import Latency, measure_latency
from .latency_table import LatencyTable
from .saving import load_student, save_student

if TYPE_CHECKING:
    from .int8_report import QuantizationReport, quantization_report
    from .onnx import export_onnx, onnx_metadata
    from .onnx_network import OnnxNetwork
    from .program import export_executorch, export_program
    from .quantization import quantize_onnx

# Imported when first used: they bring the evaluation with them.
_LAZY = {
    "OnnxNetwork": ".onnx_network",
    "QuantizationReport": ".int8_report",
    "export_executorch": ".program",
    "export_onnx": ".onnx",
    "export_program": ".program",
    "onnx_metadata": ".onnx",
    "quantization_report": ".int8_report",
    "quantize_onnx": ".quantization",
}

__all__ = [
    "Latency",
    "LatencyTable",
    "OnnxNetwork",
    "QuantizationReport",
    "build_latency_table",
    "export_executorch",
    "export_onnx",
    "export_program",
    "load_from_hub",
    "load_student",
    "measure_latency",
    "model_card",
    "onnx_metadata",
    "pull_folder",
    "push_folder",
    "push_to_hub",
    "quantization_report",
    "quantize_onnx",
    "save_student",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
