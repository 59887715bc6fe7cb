"""Students as ONNX files: one file each, any batch size, normalisation inside, checked against PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import proard_nas
from proard_nas._folders import FilePath, plain, whole_file
from proard_nas.evaluation.accuracy import versions
from proard_nas.supernets import StudentNet
from proard_nas.supernets.saving import check_metadata

from ._exporting import BATCH_SIZES, example_images, frozen, quiet, reading, require
from .onnx_network import OnnxNetwork

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
LOWEST_OPSET = 18  # what the exporter translates to; it converts from there upwards
TOLERANCE = 1e-4
FILE_FACTS = ("input_range", "input_layout", "opset")


def export_onnx(
    student: StudentNet,
    path: FilePath,
    *,
    opset: int = OPSET,
    metadata: Mapping[str, Any] | None = None,
    check: bool = True,
) -> Path:
    """Write a student as one ONNX file.

    The input ``images`` has shape (batch, channels, height, width), floats in [0, 1]: any batch size, and the image
    size of the student's ``pretrained_cfg``. The output ``logits`` has shape (batch, classes). Normalisation is inside,
    batch norm is folded into the convolutions.

    Parameters
    ----------
    student : StudentNet
        In any mode, on any device; left as it was. Of a supernet, the active student is exported (the largest, unless
        ``set_active`` chose another): the file holds that student's weights only.
    path : path
        A file in a folder that exists. Replaced if it exists; written whole or not at all.
    opset : int, default=18
        Version of ONNX's operators, from 18.
    metadata : mapping, default=None
        JSON-able facts to keep in the file beside the student's own ``metadata``, as for `StudentNet.save`; figures
        such as ``{'natural': evaluate(...).to_dict()}``. Always there: ``network``, ``architecture``, ``macs``,
        ``params``, ``input_size``, ``num_classes``, ``class_names`` (where known), ``input_range``, ``input_layout``,
        ``opset``, ``license``, ``versions``. `onnx_metadata` reads them.
    check : bool, default=True
        Check the file with onnx's checker, and its logits against PyTorch's on batches of 1, 2 and 7 random images:
        within 1e-4, times the largest logit where that is above 1.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ImportError
        If onnxscript (or, for the check, onnxruntime) is not installed: ``pip install "proard-nas[onnx]"``.
    UncalibratedError
        If the student has no batch norm statistics of its own.
    OSError
        If the folder does not exist or cannot be written to; before anything is exported.
    ValueError
        For an opset that cannot be written, or metadata that cannot be kept or give what is computed.
    RuntimeError
        If the check finds a difference.
    """
    _check_opset(opset)
    require("onnxscript", "export_onnx", "onnx")
    if check:
        require("onnxruntime", "export_onnx with check=True", "onnx")
    network = frozen(student)
    known = check_metadata({**network.metadata, **_check_metadata(metadata or {})})
    properties = as_properties({**known, **_facts(network, opset, known)})
    with whole_file(path) as temporary:
        model = _translate(network, opset)
        strip(model)
        set_properties(model, properties)
        temporary.write_bytes(model.SerializeToString())
        if check:
            _check_file(temporary, network)
    return Path(path)


def onnx_metadata(path: FilePath) -> dict[str, Any]:
    """Return what `export_onnx` (and `quantize_onnx`) kept in a file beside the network.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it holds no ONNX network.
    """
    return {key: _from_json(value) for key, value in properties_of(path).items()}


def properties_of(path: FilePath) -> dict[str, str]:
    """Return a file's properties as the text that they are."""
    return {entry.key: entry.value for entry in read_model(path).metadata_props}


def read_model(path: FilePath) -> ModelProto:
    """Read an ONNX file."""
    import onnx

    with reading(path):
        return onnx.load(str(path))


def onnx_difference(
    student: StudentNet, path: FilePath, batch_sizes: Sequence[int] = BATCH_SIZES
) -> tuple[float, float]:
    """Compare an ONNX file with a student on random images.

    Parameters
    ----------
    student : StudentNet
    path : path
    batch_sizes : sequence of int, default=(1, 2, 7)

    Returns
    -------
    (float, float)
        The largest difference between two logits, infinite where one is not a number, and the student's largest
        logit.
    """
    network, exported = frozen(student), OnnxNetwork(path)
    difference = largest = 0.0
    with torch.no_grad():
        for n in batch_sizes:
            images = example_images(network, n)
            expected, found = network(images), exported(images)
            if found.shape != expected.shape or not found.isfinite().all():
                return float("inf"), largest
            difference = max(difference, float((found - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    return difference, largest


def agrees(difference: float, largest: float) -> bool:
    """Tell whether what `onnx_difference` returned is rounding only."""
    return difference <= TOLERANCE * max(1.0, largest)


def strip(model: ModelProto) -> None:
    """Drop what the exporter notes for itself.

    Stack traces name folders of the machine they come from and outweigh a small network.
    """
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def as_properties(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return facts as text: strings as they are, unless they would be read as JSON, all else as JSON.

    Raises
    ------
    ValueError
        If JSON cannot hold one of them; names it.
    """
    texts = {}
    for key, value in facts.items():
        as_it_is = isinstance(value, str) and _from_json(value) == value
        try:
            texts[str(key)] = value if as_it_is else json.dumps(value, default=plain, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata {key!r} cannot be kept in an ONNX file: {error}; allowed: JSON") from error
    return texts


def set_properties(model: ModelProto, properties: Mapping[str, str]) -> None:
    """Make these a model's only properties, and this library its producer."""
    del model.metadata_props[:]
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)
    model.producer_name, model.producer_version = "proard-nas", proard_nas.__version__


def _check_opset(opset: int) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int) or not LOWEST_OPSET <= opset <= newest:
        raise ValueError(f"opset is {opset!r}; allowed: integers from {LOWEST_OPSET} to {newest}, with this onnx")


def _check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Check metadata as for `StudentNet.save`; what is said of a file's input is computed, too."""
    given = check_metadata(metadata)
    for name in FILE_FACTS:
        if name in given:
            raise ValueError(f"metadata must not give {name!r}: it is written as export_onnx makes the file")
    return given


def _facts(network: StudentNet, opset: int, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of every student; its license may be among what is known already."""
    cfg = network.pretrained_cfg
    cost = network.cost(img_size=tuple(cfg["input_size"][1:]))
    names = known.get("class_names") or cfg.get("label_names")
    return {
        "network": network.cfg.student,
        "architecture": network.arch.to_dict(),
        "macs": cost.macs,
        "params": cost.params,
        "input_size": list(cfg["input_size"]),
        "num_classes": network.num_classes,
        **({"class_names": list(names)} if names else {}),
        "input_range": [0, 1],
        "input_layout": "batch, channels, height, width",
        "opset": opset,
        "license": known.get("license") or cfg.get("license") or "unknown",
        "versions": versions("onnx", "onnxscript"),
    }


def _translate(network: StudentNet, opset: int) -> ModelProto:
    with quiet():
        program = torch.onnx.export(
            network,
            (example_images(network, 2),),
            input_names=["images"],
            output_names=["logits"],
            opset_version=opset,
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model: ModelProto = program.model_proto
    written = [entry.version for entry in model.opset_import if not entry.domain]
    if written != [opset]:
        raise ValueError(f"opset={opset} cannot be written with this torch and onnxscript, which gave {written}")
    return model


def _check_file(path: Path, network: StudentNet) -> None:
    import onnx

    onnx.checker.check_model(str(path), full_check=True)
    difference, largest = onnx_difference(network, path)
    if not agrees(difference, largest):
        raise RuntimeError(
            f"the ONNX file's logits differ from PyTorch's by {difference:.2g} (largest logit {largest:.2g}); "
            f"allowed: {TOLERANCE:g}. Nothing was written"
        )


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
