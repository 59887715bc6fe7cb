"""Write a saved student as one file for a device: ONNX, torch.export or ExecuTorch, in ONNX also with 8-bit integers.

Calibration images of --int8 are from the training part of --data.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._data import add_data, training_data
from ._report import Report
from ._students import image_shape, load_student_folder, student_source

if TYPE_CHECKING:
    from proard_nas.supernets import StudentNet

HELP = "write a student as ONNX, torch.export or ExecuTorch"
EXAMPLES = """\
  proard-nas export student --out student.onnx
  proard-nas export student --out student.int8.onnx --int8 --data photos.npz
  proard-nas export student --out student.pt2 --format torch-export
  proard-nas export student --out student.pte --format executorch
"""
FORMATS = ("onnx", "torch-export", "executorch")
N_CALIBRATION = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("student", nargs="?", metavar="STUDENT", help="folder of a saved student")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="(default: onnx)")
    parser.add_argument("--int8", action="store_true", help="quantise to 8-bit integers (onnx only); needs --data")
    parser.add_argument("--n-calibration", type=int, metavar="N", help=f"images for --int8 (default: {N_CALIBRATION})")
    add_data(parser, "images that --int8 calibrates on (training part)")


def run(arguments: argparse.Namespace) -> Report:
    """Run the command."""
    from proard_nas._folders import check_writable
    from proard_nas.deploy import export_executorch, export_onnx, export_program

    if arguments.student is None:
        raise ValueError("no student was given; allowed: the folder of a saved student")
    if arguments.int8 and (arguments.format != "onnx" or arguments.data is None):
        raise ValueError("--int8 needs --format onnx and --data, whose training part it calibrates on")
    if not arguments.int8 and (arguments.data is not None or arguments.n_calibration is not None):
        raise ValueError("--data and --n-calibration are for --int8, which was not given")
    check_writable(arguments.out)
    student = load_student_folder(arguments.student, "cpu")
    if arguments.int8:
        _export_int8(student, arguments)
    else:
        write = {"onnx": export_onnx, "torch-export": export_program, "executorch": export_executorch}
        write[arguments.format](student, arguments.out)
    n_bytes = Path(arguments.out).stat().st_size
    data: dict[str, Any] = {
        "file": arguments.out,
        "format": arguments.format,
        "int8": arguments.int8,
        "bytes": n_bytes,
        "input_shape": list(image_shape(student)),
    }
    return Report(data, f"{arguments.out}: {n_bytes / 1e6:.3g} MB, images in [0, 1] of {image_shape(student)}")


def _export_int8(student: StudentNet, arguments: argparse.Namespace) -> None:
    from proard_nas.deploy import export_onnx, quantize_onnx

    data = training_data(arguments, image_shape(student)[1:])
    n = N_CALIBRATION if arguments.n_calibration is None else arguments.n_calibration
    images = student_source(student, *data).head(n, seed=0).x
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "float.onnx"
        export_onnx(student, whole)
        quantize_onnx(whole, arguments.out, images)
