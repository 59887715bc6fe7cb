"""Accuracies against scikit-learn's and torchattacks' own, and labels that survive a kill."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torchattacks
from sklearn.metrics import accuracy_score

from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, Labels, calibrate, evaluate, label_students
from proard_nas.evaluation import population as population_module

ATTACK = AttackSettings("pgd", 0.05, 0.02, 3)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=4)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.fixture
def calibration():
    return torch.rand(64, 1, 8, 8)


@pytest.fixture
def source(net, calibration):
    """Labels that the largest student mostly agrees with, so that accuracies are neither 0 nor 1."""
    x = torch.rand(50, 1, 8, 8)
    calibrate(net, calibration)
    with torch.no_grad():
        y = net.eval()(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    return ArraySource(x, y)


def test_natural_accuracy_is_sklearns(net, source):
    with torch.no_grad():
        expected = accuracy_score(source.y, net.eval()(source.x).argmax(1))
    result = evaluate(net, source, "natural", batch_size=7)
    assert result.accuracy == expected == 0.8
    assert (result.attack, result.eps, result.n_images) == ("natural", None, 50)


def test_fgsm_accuracy_is_torchattacks(net, source):
    net.eval()
    adversarial = torchattacks.FGSM(net, eps=0.05)(source.x, source.y)
    clean = net(source.x).argmax(1) == source.y
    expected = (clean & (net(adversarial).argmax(1) == source.y)).float().mean()
    assert evaluate(net, source, AttackSettings("fgsm", 0.05)).accuracy == pytest.approx(float(expected))


def test_pgd_is_at_most_fgsm_at_most_natural_and_more_eps_hurts_more(net, source):
    natural, weak, strong = (
        evaluate(net, source, attack).accuracy
        for attack in ("natural", AttackSettings("pgd", 0.01, 0.004, 10), AttackSettings("pgd", 0.1, 0.02, 10))
    )
    assert natural > weak >= strong
    assert natural > strong


def test_a_result_says_how_it_was_measured(net, source):
    result = evaluate(net, source, ATTACK, seed=4).to_dict()
    json.dumps(result)
    assert (result["attack"], result["eps"], result["step_size"], result["steps"]) == ("PGD-3", 0.05, 0.02, 3)
    assert result["seed"] == 4 and {"torch", "torchattacks", "timm"} <= set(result["versions"])


def test_evaluation_leaves_the_network_as_it_was(net, source):
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    evaluate(net, source, ATTACK)
    assert net.training and all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_labels_equal_single_evaluations_of_extracted_students(net, source, calibration):
    archs = net.space.sample_distinct(3, 0)
    labels = label_students(net, archs, source, calibration, attack=ATTACK, seed=1)
    for label in labels.students:
        student = calibrate(net.extract(label.architecture), calibration)
        assert label.natural_accuracy == evaluate(student, source, "natural").accuracy
        assert label.robust_accuracy == evaluate(student, source, ATTACK, seed=1).accuracy
    assert labels.accuracies.shape == (3, 2)


def test_duplicates_are_measured_once(net, source, calibration):
    arch = net.space.sample(0)
    assert len(label_students(net, [arch, arch], source, calibration, attack=ATTACK)) == 1


def test_a_killed_labelling_goes_on_where_it_stopped(net, source, calibration, tmp_path, monkeypatch):
    archs, record = net.space.sample_distinct(5, 0), tmp_path / "labels.jsonl"
    whole = label_students(net, archs, source, calibration, attack=ATTACK)
    original, measured = population_module.label_student, []

    def dies_at_the_fourth(supernet, arch, *rest):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(arch)
        return original(supernet, arch, *rest)

    monkeypatch.setattr(population_module, "label_student", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        label_students(net, archs, source, calibration, attack=ATTACK, record=record)
    with record.open("a") as file:
        file.write('{"architecture": {"dep')  # torn by the kill
    resumed: list = []
    monkeypatch.setattr(population_module, "label_student", lambda s, a, *r: (resumed.append(a), original(s, a, *r))[1])
    labels = label_students(net, archs, source, calibration, attack=ATTACK, record=record)
    assert resumed == archs[3:]
    assert labels.accuracies.tolist() == whole.accuracies.tolist()
    assert Labels.load(record).architectures == archs


def test_a_record_of_other_settings_is_refused_by_name(net, source, calibration, tmp_path):
    archs, record = [net.space.sample(0)], tmp_path / "labels.jsonl"
    label_students(net, archs, source, calibration, attack=ATTACK, record=record)
    with pytest.raises(ValueError, match="labels measured with steps=3, not 4"):
        label_students(net, archs, source, calibration, attack=AttackSettings("pgd", 0.05, 0.02, 4), record=record)


def test_labels_round_trip_through_a_file(net, source, calibration, tmp_path):
    labels = label_students(net, net.space.sample_distinct(2, 0), source, calibration, attack=ATTACK)
    labels.save(tmp_path / "labels.jsonl")
    assert Labels.load(tmp_path / "labels.jsonl") == labels
