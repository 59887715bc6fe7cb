"""What a proxy report says of two measurements, against closed forms and a count of pairs."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import timm
import torch

from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, Label, Labels, label_students
from proard_nas.evaluation.proxy import ProxyReport, proxy_correlation

ATTACK = AttackSettings("pgd", 0.05, 0.02, 6)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=4)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


def labels_of(net, accuracies, seconds):
    archs = net.space.sample_distinct(len(accuracies), 0)
    rows = zip(archs, accuracies, strict=True)
    return Labels(tuple(Label(arch, natural, robust, seconds) for arch, (natural, robust) in rows), {"steps": seconds})


def test_figures_of_a_report_are_those_of_closed_forms(net):
    full = labels_of(net, [(0.5, 0.1), (0.6, 0.2), (0.7, 0.3), (0.8, 0.4)], 20.0)
    proxy = labels_of(net, [(0.7, 0.4), (0.8, 0.3), (0.9, 0.2), (1.0, 0.1)], 5.0)
    report = ProxyReport.of(full, proxy)
    assert (report.tau_natural, report.tau_robust) == pytest.approx((1, -1))
    assert report.rmse_natural == pytest.approx(0.2)
    assert report.rmse_robust == pytest.approx(math.sqrt((0.3**2 + 0.1**2) / 2))
    assert report.time_ratio == 4
    row = report.to_dict()
    assert json.loads(json.dumps(row)) == row and row["n_students"] == 4
    assert row["full"] == {"steps": 20.0} and row["proxy"] == {"steps": 5.0} and row["tau_robust"] == report.tau_robust


def test_tau_counts_pairs_and_corrects_for_ties(net):
    full = [0.1, 0.2, 0.2, 0.5, 0.4]
    proxy = [0.3, 0.3, 0.6, 0.9, 0.2]
    report = ProxyReport.of(labels_of(net, [(a, a) for a in full], 1), labels_of(net, [(b, b) for b in proxy], 1))
    pairs = list(itertools.combinations(range(5), 2))
    signs = [(full[i] - full[j]) * (proxy[i] - proxy[j]) for i, j in pairs]
    untied = [sum(values[i] != values[j] for i, j in pairs) for values in (full, proxy)]
    expected = (sum(s > 0 for s in signs) - sum(s < 0 for s in signs)) / math.sqrt(untied[0] * untied[1])
    assert report.tau_natural == pytest.approx(expected)


def test_where_all_students_are_alike_there_is_no_tau(net):
    report = ProxyReport.of(labels_of(net, [(0.5, 0.1), (0.5, 0.2)], 1), labels_of(net, [(0.5, 0.1), (0.6, 0.2)], 1))
    assert math.isnan(report.tau_natural) and report.tau_robust == pytest.approx(1)


def test_fewer_than_two_or_other_students_are_refused(net):
    one, two = labels_of(net, [(0.5, 0.1)], 1), labels_of(net, [(0.5, 0.1), (0.6, 0.2)], 1)
    with pytest.raises(ValueError, match="same students in the same order"):
        ProxyReport.of(one, two)
    with pytest.raises(ValueError, match="at least two distinct students, got 1"):
        ProxyReport.of(one, one)
    arch = net.space.sample(0)
    with pytest.raises(ValueError, match="at least two distinct students, got 1"):
        proxy_correlation(
            net,
            [arch, arch],
            ArraySource(torch.rand(4, 1, 8, 8), torch.arange(4)),
            torch.rand(4, 1, 8, 8),
            n_images=2,
            steps=1,
        )


def test_full_and_proxy_labels_are_those_of_label_students_and_kept_in_the_folder(net, tmp_path):
    source, calibration = ArraySource(torch.rand(60, 1, 8, 8), torch.arange(60) % 4), torch.rand(32, 1, 8, 8)
    archs = net.space.sample_distinct(4, 1)
    report = proxy_correlation(
        net, archs, source, calibration, n_images=20, steps=2, attack=ATTACK, seed=3, folder=tmp_path
    )
    full = label_students(net, archs, source, calibration, attack=ATTACK, seed=3)
    short = AttackSettings("pgd", 0.05, 0.02, 2)
    proxy = label_students(net, archs, source, calibration, attack=short, n_images=20, seed=3)
    for found, expected in ((report.full, full), (report.proxy, proxy)):
        assert found.accuracies.tolist() == expected.accuracies.tolist() and found.settings == expected.settings
    assert report.full.settings["steps"] == 6 and report.proxy.settings["steps"] == 2
    assert Labels.load(tmp_path / "full.jsonl") == report.full
    assert Labels.load(tmp_path / "proxy.jsonl") == report.proxy


def test_an_attack_without_steps_has_no_proxy(net):
    source = ArraySource(torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64))
    archs = [net.space.smallest, net.space.largest]
    with pytest.raises(ValueError, match="attack='fgsm' has no steps that a proxy could cut; allowed: pgd"):
        proxy_correlation(net, archs, source, source.x, n_images=4, steps=1, attack=AttackSettings("fgsm"))
