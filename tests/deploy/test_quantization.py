"""Promises of int8 files: weights and ranges as the closed form has them, and a report that brute force agrees with."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx
import pytest
import torch
import torchattacks
from onnx.numpy_helper import to_array

from proard_nas._random import derive_seed
from proard_nas.attacks import WorstCasePGD
from proard_nas.data import ArraySource
from proard_nas.deploy import int8_report, onnx_metadata, quantization_report, quantize_onnx
from proard_nas.deploy import quantization as quantization_module
from proard_nas.evaluation import AttackSettings, UncalibratedError, evaluate

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EPS = 0.01


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


@pytest.fixture(scope="module")
def calibration(student, images):
    return images(student, 100, seed=5)


@pytest.fixture(scope="module")
def files(onnx_file, calibration, tmp_path_factory):
    return onnx_file, quantize_onnx(onnx_file, tmp_path_factory.mktemp("int8") / "int8.onnx", calibration)


@pytest.fixture(scope="module")
def source(student, images):
    x = images(student, 48, seed=9)
    with torch.no_grad():
        return ArraySource(x, student(x).argmax(1))  # all right, so that what attacks draw is the same for all


@pytest.fixture(scope="module")
def report(student, files, source):
    return quantization_report(student, *files, source, eps=EPS, step_size=EPS / 4, queries=100, batch_size=20, runs=20)


# -- the file -----------------------------------------------------------------------------------


def test_weights_are_the_nearest_integers_with_a_scale_for_each_channel(files):
    before = {entry.name: to_array(entry) for entry in onnx.load(str(files[0])).graph.initializer}
    after = {entry.name: to_array(entry) for entry in onnx.load(str(files[1])).graph.initializer}
    weights = [name for name in before if name.endswith("weight")]
    assert len(weights) == 14
    for name in weights:
        flat = before[name].reshape(len(before[name]), -1)
        integers = after[f"{name}_quantized"].reshape(flat.shape)
        scale = after[f"{name}_scale"].reshape(-1, 1)
        assert integers.dtype == np.int8 and name not in after
        np.testing.assert_allclose(scale[:, 0], np.abs(flat).max(1) / 127, rtol=0.01)
        assert (np.abs(flat - integers * scale) <= 0.501 * scale).all()


def test_ranges_come_from_the_calibration_images(student, files, calibration):
    graph = onnx.load(str(files[1])).graph
    constants = {entry.name: to_array(entry) for entry in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    first = next(node for node in graph.node if node.op_type == "Conv")
    _, scale, zero = producer[first.input[0]].input
    with torch.no_grad():
        seen = student.norm(calibration)
    low, high = min(0.0, float(seen.min())), max(0.0, float(seen.max()))
    assert float(constants[scale]) == pytest.approx((high - low) / 255, rel=0.01)
    assert int(constants[zero]) == pytest.approx(-128 - low / float(constants[scale]), abs=1)


def test_the_file_is_smaller_close_to_the_float_one_and_keeps_what_it_says(student, files, images):
    assert files[1].stat().st_size < 0.7 * files[0].stat().st_size
    x = images(student, 64, seed=3)
    for n in (1, 2, 7, 64):
        expected = run(files[0], x[:n])
        error = (run(files[1], x[:n]) - expected).abs().mean()
        assert 0 < error < 0.1 * expected.abs().mean()
    facts = onnx_metadata(files[1])
    assert facts.pop("quantization") == {
        "method": "minmax", "n_images": 100, "weights": "int8, per channel", "activations": "int8",
    }  # fmt: skip
    assert facts == onnx_metadata(files[0])
    assert facts["note"] == "from the student"


def test_text_comes_back_as_text_from_both_files(files, texts):
    for path in files:
        facts = onnx_metadata(path)
        assert {name: facts[name] for name in texts} == texts


def test_percentiles_leave_outliers_out_of_the_ranges(files, calibration, tmp_path, capfd):
    images = 0.5 + 0.1 * (calibration - 0.5)
    images[0] = calibration[0]
    whole = quantize_onnx(files[0], tmp_path / "whole.onnx", images)
    path = quantize_onnx(files[0], tmp_path / "int8.onnx", images, method="percentile")
    assert capfd.readouterr().out == ""
    assert onnx_metadata(path)["quantization"]["method"] == "percentile"
    scales = [
        {
            entry.name: float(to_array(entry).max())
            for entry in onnx.load(str(one)).graph.initializer
            if "_scale" in entry.name
        }
        for one in (whole, path)
    ]
    assert scales[0].keys() == scales[1].keys()
    assert all(scales[1][name] <= 1.02 * scales[0][name] for name in scales[0])
    assert sum(scales[1][name] < 0.99 * scales[0][name] for name in scales[0]) >= 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:0], "at least one"),
        (lambda x: 255 * x, r"pixels from 0\.\d+ to 25\d\S*; allowed: \[0, 1\]"),
        (lambda x: x.double(), r"images is torch.float64 of shape \(100, 1, 8, 8\); allowed: a float32 tensor"),
        (lambda x: x[:, :, :4], r"of shape \(N, 1, 8, 8\)"),
        (lambda x: x.numpy(), "images is ndarray"),
        (lambda x: x * float("nan"), r"NaN pixels; allowed: finite values in \[0, 1\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(files, calibration, tmp_path, spoil, message):
    with pytest.raises(ValueError, match=message):
        quantize_onnx(files[0], tmp_path / "int8.onnx", spoil(calibration))
    assert not any(tmp_path.iterdir())


def test_wrong_names_and_missing_files_are_refused(files, calibration, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown calibration method 'max'; allowed: 'minmax', 'percentile'"):
        quantize_onnx(files[0], tmp_path / "int8.onnx", calibration, method="max")
    with pytest.raises(FileNotFoundError, match="there is no ONNX file"):
        quantize_onnx(tmp_path / "no.onnx", tmp_path / "int8.onnx", calibration)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        quantize_onnx(files[0], tmp_path / "no" / "int8.onnx", calibration)
    monkeypatch.setattr(quantization_module, "_finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quantize_onnx(files[0], tmp_path / "int8.onnx", calibration)
    assert not any(tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(ImportError, match=r'needs onnxruntime: pip install "proard-nas\[onnx\]"'):
        quantize_onnx(files[0], tmp_path / "int8.onnx", calibration)


# -- the report ---------------------------------------------------------------------------------


def test_the_report_is_json_and_says_how_each_figure_was_measured(report, files):
    data = json.loads(json.dumps(report.to_dict()))
    for path, name in zip(files, ("float32", "int8"), strict=True):
        figures = data[name]
        assert figures["file_bytes"] == path.stat().st_size
        assert 0 < figures["latency_ms"]["p10"] <= figures["latency_ms"]["median"] <= figures["latency_ms"]["p90"]
        assert (figures["latency_ms"]["runs"], figures["latency_ms"]["threads"]) == (20, 1)
        titles = [figures[attack]["attack"] for attack in ("natural", "pgd", "square")]
        assert titles == ["natural", "PGD-20 made on the float student", "Square-100"]
        assert {figures[attack]["n_images"] for attack in ("natural", "pgd", "square")} == {48}
        assert figures["pgd"]["eps"] == figures["square"]["eps"] == EPS
        assert (figures["pgd"]["step_size"], figures["pgd"]["steps"], figures["pgd"]["seed"]) == (EPS / 4, 20, 0)
    assert data["versions"]["onnxruntime"] == onnxruntime.__version__
    assert data["machine"]["cores"]


def test_accuracy_and_agreement_are_what_counting_gives(report, files, source):
    classes = [run(path, source.x).argmax(1) for path in files]
    accuracies = [float((found == source.y).float().mean()) for found in classes]
    assert [report.float32.natural.accuracy, report.int8.natural.accuracy] == pytest.approx(accuracies)
    assert report.agreement == pytest.approx(float((classes[0] == classes[1]).float().mean()))


def test_transferred_pgd_is_at_least_as_strong_on_the_float_file_as_pgd_on_the_student(report, student, source):
    white_box = evaluate(student, source, AttackSettings("pgd", EPS, EPS / 4), batch_size=20)
    assert 0 < report.float32.pgd.accuracy <= white_box.accuracy < 1
    assert report.float32.pgd.accuracy > white_box.accuracy - 0.1
    assert abs(report.int8.pgd.accuracy - report.float32.pgd.accuracy) < 0.3


def test_transferred_pgd_counts_what_survives_clean_worst_case_and_last_iterates(student, files, source, report):
    attacks = [kind(student, EPS, EPS / 4, 20) for kind in (WorstCasePGD, torchattacks.PGD)]
    survived, worst_case_alone = np.zeros(2, int), np.zeros(2, int)
    for index, (x, y) in enumerate(source.batches(20)):
        images = [x]
        for attack in attacks:
            torch.manual_seed(derive_seed(0, "evaluate", index))
            images.append(attack(x, y).detach())
        right = np.array([[(run(path, each).argmax(1) == y).tolist() for each in images] for path in files])
        survived += right.all(1).sum(1)
        worst_case_alone += right[:, :2].all(1).sum(1)
    assert [report.float32.pgd.accuracy * 48, report.int8.pgd.accuracy * 48] == pytest.approx(survived.tolist())
    assert (survived < worst_case_alone).any()  # so that each of the two attacks counts


def test_square_attacks_the_file_itself(report, student, source):
    expected = evaluate(student, source, AttackSettings("square", EPS, steps=100), batch_size=20)
    assert report.float32.square.accuracy == pytest.approx(expected.accuracy, abs=0.05)
    assert report.int8.square.accuracy < report.int8.natural.accuracy


@pytest.mark.slow
def test_a_file_against_itself_has_the_same_figures(student, files, source):
    found = quantization_report(
        student, files[0], files[0], source, eps=EPS, step_size=EPS / 4, queries=100, batch_size=20, runs=5
    )
    for attack in ("natural", "pgd", "square"):
        assert getattr(found.float32, attack).accuracy == getattr(found.int8, attack).accuracy
    assert found.agreement == 1


@pytest.mark.parametrize("spoil", [lambda x, y: (2 * x, y), lambda x, y: (x, y + 99)])
def test_images_and_labels_are_looked_at_before_the_attacks(student, files, source, monkeypatch, spoil):
    monkeypatch.setattr(int8_report, "_transfer", lambda *_: pytest.fail("attacked first"))
    with pytest.raises(ValueError):  # noqa: PT011  (what evaluate says of them)
        quantization_report(student, *files, ArraySource(*spoil(source.x, source.y)))


def test_another_students_file_and_an_uncalibrated_student_are_refused(files, source, lively_supernet, lively_student):
    net = lively_supernet("proard_dyn_resnet_tiny")
    with pytest.raises(UncalibratedError):
        quantization_report(net.extract(net.space.smallest), *files, source)
    with pytest.raises(ValueError, match="is not this student's: their logits differ"):
        quantization_report(lively_student(arch=1), *files, source)
