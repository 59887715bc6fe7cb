"""Students as programs of torch.export (.pt2), and as programs for devices without Python (ExecuTorch, .pte)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from proard_nas._folders import FilePath, whole_file
from proard_nas.supernets import StudentNet

from ._exporting import example_images, frozen, quiet, require

LARGEST_BATCH = 2**16


def export_program(student: StudentNet, path: FilePath) -> Path:
    """Write a student as a program of ``torch.export``, which runs without this library and without timm.

    ``torch.export.load(path).module()(images)`` returns the student's logits, shape (N, num_classes), of images
    (N, C, H, W) in [0, 1]: any N up to 65,536, and the image size of the student's ``pretrained_cfg``.

    Parameters
    ----------
    student : StudentNet
        Left as it was. Of a supernet, the active student is exported.
    path : path
        A file in a folder that exists, usually ``'*.pt2'``. Replaced if it exists; written whole or not at all.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UncalibratedError
        If the student has no batch norm statistics of its own.
    OSError
        If the folder does not exist or cannot be written to; before anything is exported.
    """
    network = frozen(student)
    with whole_file(path) as temporary:
        program = _program(network, LARGEST_BATCH)
        _forget_traces(program)
        with quiet(), temporary.open("wb") as file:
            torch.export.save(program, file)
    return Path(path)


def export_executorch(student: StudentNet, path: FilePath, *, max_batch: int = 1) -> Path:
    """Write a student as an ExecuTorch program for phones and small devices, its operators given to XNNPACK.

    Parameters
    ----------
    student : StudentNet
        Left as it was. Of a supernet, the active student is exported.
    path : path
        A file in a folder that exists, usually ``'*.pte'``. Replaced if it exists; written whole or not at all.
    max_batch : int, default=1
        Largest number of images in a call; the program takes 1 to so many. The device plans memory for the largest.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ImportError
        If executorch is not installed: ``pip install "proard-nas[executorch]"``.
    UncalibratedError
        If the student has no batch norm statistics of its own.
    OSError
        If the folder does not exist or cannot be written to; before anything is exported.
    ValueError
        If ``max_batch`` is not an integer of at least 1.
    """
    if isinstance(max_batch, bool) or not isinstance(max_batch, int) or not 1 <= max_batch <= LARGEST_BATCH:
        raise ValueError(f"max_batch is {max_batch!r}; allowed: integers from 1 to {LARGEST_BATCH}")
    require("executorch.exir", "export_executorch", "executorch")
    network = frozen(student)
    with whole_file(path) as temporary, quiet():
        program = _lower(_program(network, max_batch))
        temporary.write_bytes(program)
    return Path(path)


def _program(network: StudentNet, max_batch: int) -> ExportedProgram:
    """Trace a network for 1 to ``max_batch`` images."""
    images = example_images(network, min(2, max_batch))
    shapes = ({0: Dim("batch", min=1, max=max_batch)},) if max_batch > 1 else None
    with quiet(), torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=shapes)


def _forget_traces(program: ExportedProgram) -> None:
    """Drop each operation's stack trace: it names folders of this machine and outweighs a small network."""
    for node in program.graph.nodes:
        for key in ("stack_trace", "from_node", "torch_fn", "source_fn_stack"):
            node.meta.pop(key, None)


def _lower(program: ExportedProgram) -> bytes:
    exir = require("executorch.exir", "export_executorch", "executorch")
    passes = require("executorch.exir.passes.sym_shape_eval_pass", "export_executorch", "executorch")
    xnnpack = require("executorch.backends.xnnpack.partition.xnnpack_partitioner", "export_executorch", "executorch")
    edge = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    # By default memory is planned for the size of the example, not for the largest batch.
    config = exir.ExecutorchBackendConfig(sym_shape_eval_pass=passes.ConstraintBasedSymShapeEvalPass())
    return bytes(edge.to_executorch(config).buffer)
