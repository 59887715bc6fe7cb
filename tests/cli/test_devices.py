"""Towards devices: exported files give the student's outputs, and latencies reach the search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from proard_nas import ProARDEstimator, deploy
from proard_nas.cli import main


@pytest.fixture(scope="module")
def student(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices") / "student"
    assert main(["extract", "--estimator", str(fitted), "--out", str(folder)]) == 0
    return folder


class Table:
    """A latency table for tests: a tenth of a millisecond for each block."""

    evaluation = None

    def __call__(self, arch):
        return 0.1 * sum(map(len, arch.expand_ratio))

    def save(self, path):
        Path(path).write_text("{}")


def test_a_latency_table_limits_the_search(fitted, monkeypatch, call):
    loaded = []
    monkeypatch.setattr(deploy.LatencyTable, "load", lambda path, supernet: loaded.append((path, supernet)) or Table())
    found = call("search", "--estimator", fitted, "--latency-table", "phone.json", "--max-latency-ms", "0.4",
                 "--n-generations", "3", "--population-size", "20")  # fmt: skip
    assert loaded[0][0] == "phone.json" and loaded[0][1].space.size > 1
    assert found["constraints"]["max_latency_ms"] == 0.4
    for row in found["front"]:
        blocks = sum(map(len, row["architecture"]["expand_ratio"]))
        assert row["latency_ms"] == pytest.approx(0.1 * blocks) and blocks <= 4


def test_a_latency_table_of_another_network_or_of_several_images_is_refused(fitted, tmp_path, fails):
    estimator = ProARDEstimator.load(fitted)
    table = deploy.build_latency_table(
        estimator.supernet_, runtime="torch", threads=1, n_students=4, n_holdout=0, max_parts=5, rounds=2
    ).to_dict()
    several = deploy.LatencyTable.from_dict(table | {"setting": table["setting"] | {"batch_size": 16}})
    several.save(tmp_path / "several.json")
    argv = ("search", "--estimator", fitted, "--latency-table", tmp_path / "several.json")
    assert "of batches of 16 images, and a search's milliseconds are those of one" in fails(*argv)
    args = table["network"]["args"] | {"num_classes": 7}
    other = deploy.LatencyTable.from_dict(table | {"network": table["network"] | {"args": args}})
    with pytest.raises(ValueError, match="of another network: its num_classes is 7, not 2"):
        estimator.search(latency=other)


def test_latency_table_passes_its_flags_on(fitted, monkeypatch, tmp_path, call):
    seen = []

    def spy(supernet, *, runtime="onnxruntime", threads: int | None = None, img_size=None, budget_s: float = 180.0):
        seen.append((supernet, runtime, threads, img_size, budget_s))
        return Table()

    monkeypatch.setattr(deploy, "build_latency_table", spy)
    argv = ["latency-table", "--out", tmp_path / "a.json", "--threads", "1", "--budget-s", "5"]
    facts = call(*argv, "--estimator", fitted)
    call(*argv, "--model", "proard_dyn_resnet_tiny", "--img-size", "12x8", "--runtime", "torch")
    assert seen[0][1:] == ("onnxruntime", 1, (9, 9), 5.0)
    assert seen[1][1:] == ("torch", 1, (12, 8), 5.0)
    space = seen[0][0].space
    expected = [Table()(arch) for arch in (space.smallest, space.largest)]
    assert [facts["smallest_ms"], facts["largest_ms"]] == pytest.approx(expected)


def test_latency_table_needs_one_supernet(fitted, tmp_path, fails):
    argv = ["latency-table", "--out", tmp_path / "a.json"]
    assert "give either --model NAME or --estimator FOLDER" in fails(*argv)
    assert "Did you mean 'proard_dyn_resnet_tiny'" in fails(*argv, "--model", "proard_dyn_resnet_tini")


def test_export_says_what_is_missing(student, tmp_path, fails):
    argv = ["export", "--out", tmp_path / "a.onnx"]
    assert "no student was given" in fails(*argv)
    assert "--int8 needs --format onnx and --data" in fails(*argv, student, "--int8")
    assert "--int8 needs --format onnx and --data" in fails(*argv, student, "--int8", "--data", "a.npz", "--format",
                                                            "torch-export")  # fmt: skip
    for flags in ((), ("--int8", "--data", "a.npz")):
        assert "there is no folder" in fails("export", "no student", "--out", tmp_path / "no" / "a.onnx", *flags)
    for flags in (("--data", "a.npz"), ("--n-calibration", "9")):
        assert "--data and --n-calibration are for --int8" in fails(*argv, student, *flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_exported_files_give_the_students_outputs(student, photos, tmp_path, call):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = timm.create_model(f"local-dir:{student}", pretrained=True).eval()
    images = torch.rand(5, 3, 9, 9)
    expected = network(images).detach().numpy()

    def outputs(path):
        session = onnxruntime.InferenceSession(str(path))
        return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]

    facts = call("export", student, "--out", tmp_path / "a.onnx")
    np.testing.assert_allclose(outputs(tmp_path / "a.onnx"), expected, atol=1e-4)
    assert facts["bytes"] == (tmp_path / "a.onnx").stat().st_size
    shutil.copytree(photos / "train", tmp_path / "data" / "train")  # no test images to calibrate on
    call("export", student, "--out", tmp_path / "b.onnx", "--int8", "--data", tmp_path / "data")
    assert (tmp_path / "b.onnx").stat().st_size < 0.5 * facts["bytes"]
    assert np.abs(outputs(tmp_path / "b.onnx") - expected).max() < 0.5 * np.abs(expected).max()
    call("export", student, "--out", tmp_path / "a.pt2", "--format", "torch-export")
    program = torch.export.load(tmp_path / "a.pt2").module()
    np.testing.assert_allclose(program(images).detach().numpy(), expected, atol=1e-4)


@pytest.mark.slow
def test_a_measured_latency_table_serves_a_search(fitted, tmp_path, call):
    pytest.importorskip("onnxruntime")
    small = ["--threads", "1", "--n-students", "6", "--n-holdout", "4", "--max-parts", "20", "--rounds", "5"]
    facts = call("latency-table", "--estimator", fitted, "--out", tmp_path / "a.json", *small)
    limit = (facts["smallest_ms"] + facts["largest_ms"]) / 2
    found = call("search", "--estimator", fitted, "--latency-table", tmp_path / "a.json", "--n-generations", "3",
                 "--population-size", "20", "--max-latency-ms", limit)  # fmt: skip
    assert all(0 < row["latency_ms"] <= limit for row in found["front"])
    assert json.loads((tmp_path / "a.json").read_text())


def test_arguments_of_a_network_are_refused_beside_an_estimator(fitted, fails, tmp_path):
    argv = ("--estimator", fitted, "--model-args", '{"num_classes": 3}', "--out", tmp_path / "t.json")
    assert "--model-args goes with --model NAME alone" in fails("latency-table", *argv)
