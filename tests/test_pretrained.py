"""The trained supernet that comes with the library: from timm, from Python, within its promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from proard_nas import PRETRAINED, ProARDEstimator, _shipped
from proard_nas.supernets import family

NAME = "proard_dyn_resnet_small"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
shipped = pytest.mark.skipif(NAME not in PRETRAINED, reason="no trained supernet comes with this checkout")


def test_a_network_with_weights_is_tagged_by_its_data(monkeypatch, tmp_path):
    folder = tmp_path / "some_net" / "supernet"
    folder.mkdir(parents=True)
    (folder / "proard.json").write_text(json.dumps({"data": "CIFAR-10"}))
    monkeypatch.setattr(_shipped, "ROOT", tmp_path)
    for module in (_shipped, family):
        monkeypatch.setattr(module, "PRETRAINED", ("some_net",))
    weights = str(folder / "model.safetensors")
    assert family.tagged("some_net", {"num_classes": 10}) == ("some_net.cifar10", {"num_classes": 10, "file": weights})
    assert family.tagged("other", {"num_classes": 10}) == ("other.untrained", {"num_classes": 10})


def test_a_name_without_weights_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="unknown pretrained model 'proard_dyn_resnet50'"):
        ProARDEstimator.from_pretrained("proard_dyn_resnet50")


def test_where_nothing_comes_with_the_library_the_message_says_so(monkeypatch):
    monkeypatch.setattr(_shipped, "PRETRAINED", ())
    with pytest.raises(ValueError, match="unknown pretrained model 'a_net'; allowed: none here"):
        _shipped.folder("a_net")


@shipped
def test_it_takes_four_megabytes_at_most():
    files = [path for path in _shipped.folder(NAME).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000


@shipped
def test_timm_gives_the_estimators_supernet():
    net = timm.create_model(NAME, pretrained=True).eval()
    est = ProARDEstimator.from_pretrained(NAME)
    for (name, one), other in zip(net.state_dict().items(), est.supernet_.state_dict().values(), strict=True):
        assert torch.equal(one, other.contiguous()), name
    assert f"{NAME}.cifar10" in timm.list_models("proard*", pretrained=True)


@shipped
def test_students_are_found_calibrated_and_named():
    est = ProARDEstimator.from_pretrained(NAME)
    student = est.search(max_flops=10, n_generations=3, population_size=20, seed=0).extract()
    assert student.cost().mmacs <= 10
    assert student.pretrained_cfg["label_names"] == CLASSES
    x = torch.rand(4, 3, 32, 32)
    assert student(x).isfinite().all()
    assert set(est.predict(x.numpy())) <= set(CLASSES)
    assert est.warm_start is False  # as documented: a fit of one's own begins anew unless asked otherwise


@shipped
def test_the_card_states_five_measured_students():
    card = (_shipped.folder(NAME) / "README.md").read_text()
    lines = [line for line in card.splitlines() if line.startswith(("| largest |", "| found", "| smallest |"))]
    assert len(lines) == 5
    for title in ("natural", "FGSM", "PGD-20", "AutoAttack"):
        assert title in card


@shipped
@pytest.mark.slow
def test_the_command_line_finds_a_student_within_a_minute_of_the_processor(tmp_path):
    resource = pytest.importorskip("resource")

    def spent():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    command = [sys.executable, "-m", "proard_nas", "search", "--model", NAME, "--pretrained", "--max-flops", "10"]
    done = subprocess.run(
        [*command, "--extract", str(tmp_path / "student"), "--json"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert spent() - before < 60
    assert json.loads(done.stdout)["front"]
    assert (Path(tmp_path) / "student" / "model.safetensors").is_file()
