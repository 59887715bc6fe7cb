"""Promises of the ONNX export: PyTorch's logits on any batch size, one lean file, written whole or not at all."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
import timm
import torch
from torch import nn

import proard_nas
from proard_nas.data import ArraySource
from proard_nas.deploy import OnnxNetwork, export_onnx, measure_latency, onnx_metadata
from proard_nas.deploy import onnx as onnx_module
from proard_nas.deploy._exporting import frozen
from proard_nas.deploy.onnx import onnx_difference
from proard_nas.evaluation import UncalibratedError, evaluate
from proard_nas.supernets import SUPERNETS

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def weight_bytes(net):
    return sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": x.numpy()})[0]


@pytest.fixture
def exported(onnx_file):
    return onnx_file


# -- what is in the file ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 33])
def test_logits_are_pytorchs_on_any_batch_size(student, exported, images, n):
    x = images(student, n)
    with torch.no_grad():
        expected = student(x).numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(run(exported, x), expected, atol=1e-4, rtol=0)


def test_another_runtime_agrees_and_takes_images_from_0_to_1(student, exported, images):
    x = images(student, 2)
    (found,) = onnx.reference.ReferenceEvaluator(str(exported)).run(None, {"images": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, student(x).numpy(), atol=1e-4, rtol=0)
        assert np.abs(found - student(student.norm(x)).numpy()).max() > 0.1


def test_the_file_is_one_and_at_most_5_percent_larger_than_the_weights(student, exported):
    assert [path.name for path in exported.parent.iterdir()] == ["student.onnx"]
    assert exported.stat().st_size <= 1.05 * weight_bytes(student)


def test_the_file_names_no_folder_of_the_machine_it_was_made_on(exported):
    content = exported.read_bytes()
    assert str(Path(proard_nas.__file__).parent).encode() not in content
    assert b"site-packages" not in content and b".py" not in content


def test_the_file_says_what_it_is(student, exported):
    facts = onnx_metadata(exported)
    cost = student.cost(img_size=(8, 8))
    assert (
        facts.items()
        >= {
            "network": "proard_resnet_tiny",
            "architecture": json.loads(json.dumps(student.arch.to_dict())),
            "macs": cost.macs,
            "params": cost.params,
            "input_size": [1, 8, 8],
            "num_classes": 10,
            "class_names": list("abcdefghij"),
            "input_range": [0, 1],
            "opset": 18,
            "license": "mit",
            "note": "from the student",
            "natural_accuracy": 0.9,
            "test": {"attack": "PGD-20", "accuracy": 0.5},
        }.items()
    )
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    model = onnx.load(str(exported))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.producer_name == "proard-nas"
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", 1, 8, 8,
    ]  # fmt: skip


def test_the_evaluation_measures_the_file_as_it_does_the_student(student, exported, images):
    x = images(student, 40)
    predicted = torch.from_numpy(run(exported, x)).argmax(1)
    y = torch.where(torch.arange(40) % 3 > 0, predicted, (predicted + 1) % 10)
    source = ArraySource(x, y)
    figures = [evaluate(net, source, "natural").accuracy for net in (student, OnnxNetwork(exported, threads=1))]
    assert figures[0] == figures[1] == 26 / 40


def test_a_file_has_no_gradients_and_says_so(student, exported, images):
    source = ArraySource(images(student, 2), student(images(student, 2)).argmax(1))
    with pytest.raises(RuntimeError, match="no gradients: attack it with 'square'"):
        evaluate(OnnxNetwork(exported), source, "pgd")


# -- how it is written --------------------------------------------------------------------------


@pytest.mark.parametrize("read", [OnnxNetwork, onnx_metadata, measure_latency])
def test_a_file_of_another_kind_is_no_onnx_network(read, tmp_path):
    path = tmp_path / "a.onnx"
    path.write_text("import numpy\n")
    with pytest.raises(ValueError, match=r"a\.onnx is no ONNX network that can be read"):
        read(str(path))


def test_the_student_stays_as_it_was_and_nothing_is_printed(lively_student, tmp_path, capfd, monkeypatch):
    student = lively_student()
    student.train()
    student.stem.eval()
    before = copy.deepcopy(student.state_dict())
    modes = [module.training for module in student.modules()]
    export = torch.onnx.export

    def noisy(*arguments, **options):
        print("[torch.onnx] ...")
        return export(*arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", noisy)
    export_onnx(student, tmp_path / "student.onnx", check=False)
    assert capfd.readouterr().out == ""
    assert [module.training for module in student.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.fixture
def spoilt(monkeypatch, exported):
    """Let the exporter return a network with one wrong weight."""

    def translate(network, opset):
        model = onnx.load(str(exported))
        weight = next(entry for entry in model.graph.initializer if entry.name == "head.fc.weight")
        values = onnx.numpy_helper.to_array(weight).copy()
        values[3, 5] += 0.05
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return model

    monkeypatch.setattr(onnx_module, "_translate", translate)


@pytest.mark.usefixtures("spoilt")
def test_a_file_that_differs_is_refused_and_the_old_one_is_kept(student, tmp_path):
    path = tmp_path / "student.onnx"
    path.write_text("old")
    with pytest.raises(RuntimeError, match=r"differ from PyTorch's by 0\.0"):
        export_onnx(student, path)
    assert [one.name for one in tmp_path.iterdir()] == ["student.onnx"]
    assert path.read_text() == "old"


@pytest.mark.usefixtures("spoilt")
def test_the_check_is_left_out_only_if_told_so(student, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = export_onnx(student, tmp_path / "student.onnx", check=False)
    monkeypatch.undo()
    assert onnx_difference(student, path)[0] > 1e-3


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(student, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'needs {package}: pip install "proard-nas\[onnx\]"'):
        export_onnx(student, tmp_path / "student.onnx")
    assert not any(tmp_path.iterdir())


@pytest.fixture
def no_export(monkeypatch):
    """Let any attempt to export fail: what is tested is found before."""

    def translate(network, opset):
        raise AssertionError("exported before all was checked")

    monkeypatch.setattr(onnx_module, "_translate", translate)


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("no/student.onnx", FileNotFoundError, "there is no folder"),
        (".", IsADirectoryError, "it is a folder"),
        ("file/student.onnx", FileNotFoundError, "there is no folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_early(student, tmp_path, place, error, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=message):
        export_onnx(student, tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("no_export")
def test_a_folder_that_cannot_be_written_to_is_refused_early(student, tmp_path, monkeypatch):
    def touch(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(PermissionError, match=re.escape(f"cannot write into the folder {tmp_path}")):
        export_onnx(student, tmp_path / "student.onnx")


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset is 17; allowed: integers from 18 to"),
        ({"opset": 1000}, "opset is 1000"),
        ({"opset": True}, "opset is True"),
        ({"metadata": {"note": object()}}, "metadata 'note' cannot be kept"),
        ({"metadata": {"note": float("nan")}}, "metadata 'note' cannot be kept"),
        ({"metadata": {"macs": 3}}, "must not give 'macs'"),
        ({"metadata": {"input_range": [0, 255]}}, "must not give 'input_range'"),
        ({"metadata": {"input_layout": "batch, height, width, channels"}}, "must not give 'input_layout'"),
        ({"metadata": {"opset": 20}}, "must not give 'opset'"),
    ],
)
def test_wrong_options_are_named_early(student, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(student, tmp_path / "student.onnx", **options)
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("no_export")
def test_a_students_own_metadata_are_looked_at_too(student, tmp_path, monkeypatch):
    monkeypatch.setattr(student, "metadata", {"robust_accuracy": 0.5})
    with pytest.raises(ValueError, match="without 'attack' and 'eps'"):
        export_onnx(student, tmp_path / "student.onnx")


def test_of_a_supernet_what_is_known_goes_along_but_no_other_students_figures(lively_supernet, images):
    net = lively_supernet("proard_dyn_resnet_tiny")
    net.train()(images(net, 16))
    net.metadata = {"seed": 3, "natural_accuracy": 0.9}
    net.pretrained_cfg |= {"license": "mit", "label_names": list("abcdefghij")}
    largest = frozen(net)
    net.set_active(net.space.smallest)
    net(images(net, 16))
    active = frozen(net)
    assert largest.metadata == {"seed": 3, "natural_accuracy": 0.9}
    assert active.metadata == {"seed": 3}
    for student in (largest, active):
        assert student.pretrained_cfg["license"] == "mit"
        assert student.pretrained_cfg["label_names"] == list("abcdefghij")


@pytest.mark.usefixtures("no_export")
def test_a_student_without_statistics_is_refused(tmp_path):
    net = timm.create_model("proard_dyn_resnet_tiny")
    with pytest.raises(UncalibratedError, match="calibrate it"):
        export_onnx(net.extract(net.space.smallest), tmp_path / "student.onnx")
    with pytest.raises(UncalibratedError):
        export_onnx(net, tmp_path / "student.onnx")
    with pytest.raises(TypeError, match="Linear cannot be exported"):
        export_onnx(nn.Linear(2, 2), tmp_path / "student.onnx")


# -- slow: other networks and settings ----------------------------------------------------------


@pytest.mark.slow
def test_of_a_supernet_the_active_student_is_exported_alone(lively_supernet, images, tmp_path):
    net = lively_supernet("proard_dyn_resnet_tiny")
    with torch.no_grad():
        net.train()(images(net, 16))
        net.eval()
        largest = export_onnx(net, tmp_path / "largest.onnx")
        np.testing.assert_allclose(run(largest, images(net, 3)), net(images(net, 3)).numpy(), atol=1e-4)
        net.set_active(net.space.smallest)
        net.train()(images(net, 16))
        net.eval()
        active = export_onnx(net, tmp_path / "active.onnx")
        np.testing.assert_allclose(run(active, images(net, 3)), net(images(net, 3)).numpy(), atol=1e-4)
    assert active.stat().st_size <= 1.05 * weight_bytes(net.extract(net.space.smallest))
    assert onnx_metadata(active)["architecture"] == json.loads(json.dumps(net.space.smallest.to_dict()))


@pytest.mark.slow
def test_a_live_student_in_another_format_is_exported_too(lively_supernet, images, tmp_path):
    net = lively_supernet("proard_dyn_resnet_tiny").to(memory_format=torch.channels_last)
    live = net.student(net.space.sample(seed=2))
    with torch.no_grad():
        live.train()(images(net, 16))
        path = export_onnx(live, tmp_path / "live.onnx")
        np.testing.assert_allclose(run(path, images(net, 3)), live.eval()(images(net, 3)).numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SUPERNETS if not name.endswith("_fine")])
def test_a_random_student_of_each_supernet_is_the_same_in_onnx(lively_student, images, tmp_path, name):
    student = lively_student(name, arch=3)
    path = export_onnx(student, tmp_path / "student.onnx")
    for n in (1, 2, 7):
        with torch.no_grad():
            expected = student(images(student, n)).numpy()
        np.testing.assert_allclose(run(path, images(student, n)), expected, atol=1e-4, rtol=1e-4)
    assert path.stat().st_size <= 1.05 * weight_bytes(student)


@pytest.mark.slow
def test_other_opsets_classes_channels_and_pooling(lively_student, images, tmp_path):
    options = {"num_classes": 7, "in_chans": 2, "norm_mean": (0.1, 0.9), "norm_std": (0.3, 0.2)}
    student = lively_student(**options)
    path = export_onnx(student, tmp_path / "student.onnx", opset=20)
    assert onnx.load(str(path)).opset_import[0].version == 20
    assert onnx_metadata(path)["input_size"] == [2, 8, 8]
    with torch.no_grad():
        np.testing.assert_allclose(run(path, images(student, 3)), student(images(student, 3)).numpy(), atol=1e-4)
