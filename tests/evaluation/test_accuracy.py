"""Accuracies against scikit-learn's and torchattacks' own, and labels that survive a kill."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import timm
import torch
import torchattacks
from sklearn.metrics import accuracy_score
from torch import nn

from proard_nas._random import derive_seed
from proard_nas.attacks import ATTACKS, AutoAttack, ReferenceAutoAttack, make_attack, run_attack
from proard_nas.data import ArraySource
from proard_nas.evaluation import (
    AttackSettings,
    Labels,
    calibrate,
    check_gradient_masking,
    evaluate,
    evaluate_all,
    label_students,
)
from proard_nas.evaluation import accuracy as accuracy_module
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


def test_an_attack_of_ones_own_has_a_name_once_it_is_registered(net, source, monkeypatch):
    def mifgsm(model, eps, step_size, steps, seed):
        return torchattacks.MIFGSM(model, eps, step_size, steps)

    monkeypatch.setitem(ATTACKS, "mifgsm", mifgsm)
    adversarial = torchattacks.MIFGSM(net.eval(), 0.05, 0.01, 7)(source.x, source.y)
    expected = ((net(source.x).argmax(1) == source.y) & (net(adversarial).argmax(1) == source.y)).float().mean()
    found = evaluate(net, source, AttackSettings("mifgsm", 0.05, 0.01, 7))
    assert (found.accuracy, found.attack) == (pytest.approx(float(expected)), "mifgsm")
    assert (found.eps, found.step_size, found.steps) == (0.05, 0.01, 7)
    assert 0 < found.accuracy < 0.8


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


def small_network(seed=0, n_classes=4):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, n_classes)
    )


@pytest.fixture
def few():
    """Images and the labels of a small network, a fifth of them wrong."""
    net = small_network().eval()
    x = torch.rand(50, 1, 8, 8)
    y = net(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    return net, ArraySource(x, y)


EVERY = [
    AttackSettings("fgsm", 0.02),
    AttackSettings("pgd", 0.02, 0.005, 10),
    AttackSettings("cw", 0.02, 0.005, 10),
    AttackSettings("square", 0.02, steps=150),
]


def survivors_without_dropping(net, source, settings, batch_size, seed):
    """All naturally right images are attacked, PGD and CW over all steps."""
    found = []
    for index, (x, y) in enumerate(source.batches(batch_size)):
        right, here = net(x).argmax(1) == y, derive_seed(seed, "evaluate", index)
        options = {"eps": settings.eps, "step_size": settings.step_size, "steps": settings.steps, "seed": here}
        attack = make_attack(settings.name, net, **options)
        if hasattr(attack, "drop_fooled"):
            attack.drop_fooled = False
        survived = right.clone()
        survived[right] = net(run_attack(attack, x[right], y[right], seed=here)).argmax(1) == y[right]
        found.append(survived)
    return torch.cat(found)


def test_dropping_fooled_images_changes_no_accuracy_for_each_attack_and_across_attacks(few):
    net, source = few
    kept = [survivors_without_dropping(net, source, one, 17, 3) for one in EVERY]
    singles = evaluate_all(net, source, EVERY, batch_size=17, seed=3)
    assert [one.accuracy for one in singles] == [float(k.double().mean()) for k in kept]
    together = torch.stack(kept).cumprod(0).bool()
    assert 0 < together[-1].sum() < kept[0].sum()
    worst = evaluate_all(net, source, EVERY, worst_case=True, batch_size=17, seed=3)
    assert [one.accuracy for one in worst] == [float(k.double().mean()) for k in together]


def test_the_order_of_attacks_changes_nothing_in_the_end(few):
    net, source = few
    forward, backward = (evaluate_all(net, source, a, worst_case=True)[-1].accuracy for a in (EVERY, EVERY[::-1]))
    assert forward == backward


def test_single_evaluations_equal_those_of_one_pass(few):
    net, source = few
    for one, attack in zip(evaluate_all(net, source, EVERY, seed=1), EVERY, strict=True):
        alone = evaluate(net, source, attack, seed=1)
        assert (one.accuracy, one.attack, one.steps) == (alone.accuracy, alone.attack, alone.steps)


def test_images_already_fooled_are_not_attacked_again(few, monkeypatch):
    net, source = few
    sizes, run = [], accuracy_module.run_attack

    def counts(attack, x, y, **options):
        sizes.append(len(x))
        return run(attack, x, y, **options)

    monkeypatch.setattr(accuracy_module, "run_attack", counts)
    found = evaluate_all(net, source, EVERY, worst_case=True)
    assert sizes == [40, *(round(50 * one.accuracy) for one in found[:-1])]


def test_results_of_several_attacks_say_what_they_are_under(few):
    net, source = few
    first, second = evaluate_all(net, source, EVERY[:2], worst_case=True)
    assert (first.attack, first.step_size, first.steps) == ("FGSM", None, None)
    assert (second.attack, second.eps, second.steps) == ("FGSM + PGD-10", 0.02, None)
    assert second.seconds >= first.seconds > 0
    (square,) = evaluate_all(net, source, [EVERY[3]])
    assert (square.attack, square.step_size, square.steps) == ("Square-150", None, 150)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("name", ["autoattack", "autoattack-reference"])
def test_autoattack_is_at_most_pgd_and_says_which_one_it_is(n_classes, name, monkeypatch):
    if name == "autoattack-reference":
        pytest.importorskip("pyautoattack")
    monkeypatch.setattr(AutoAttack.__init__, "__defaults__", (8 / 255, 0, 100))
    monkeypatch.setattr(ReferenceAutoAttack.__init__, "__defaults__", (8 / 255, 0, 100))
    net = small_network(n_classes=n_classes).eval()
    x = torch.rand(30, 1, 8, 8)
    net[-1].bias.data -= net(x).detach().mean(0)  # else one class wins everywhere
    source = ArraySource(x, net(x).argmax(1))
    attacks = [AttackSettings("pgd", 0.01, 0.0025), AttackSettings(name, 0.01)]
    pgd, auto = evaluate_all(net, source, attacks)
    assert auto.accuracy <= pgd.accuracy < 1
    assert (auto.eps, auto.step_size, auto.steps) == (0.01, None, None)
    package = "pyautoattack" if "reference" in name else "torchattacks"
    assert f"{package} {auto.versions[package]}" in auto.attack
    assert ("without APGD-T" in auto.attack) == (n_classes == 2)
    json.dumps(auto.to_dict())


def test_a_missing_reference_is_named_before_the_work(few, monkeypatch):
    net, source = few
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ImportError, match=r'pip install "proard-nas\[autoattack\]"'):
        evaluate_all(net, source, ["pgd", "autoattack-reference"])


def test_any_timm_model_can_be_evaluated():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    x = torch.rand(6, 3, 64, 64)
    source = ArraySource(x, model(x).argmax(1))
    found = evaluate_all(model, source, ["natural", AttackSettings("cw", steps=2)])
    assert found[0].accuracy == 1 and found[0].eps is None and found[1].attack == "CW-inf-2"


def test_default_steps_are_the_attacks_own_and_too_few_queries_are_refused():
    assert [AttackSettings(name).steps for name in ("pgd", "cw", "square")] == [20, 20, 5000]
    with pytest.raises(ValueError, match="too few"):
        AttackSettings("square", steps=20)


class NoNumber(nn.Module):
    """Logits that are NaN, or right with gradients that are NaN."""

    def __init__(self, everywhere):
        super().__init__()
        self.everywhere = everywhere

    def forward(self, x):
        zero = (x.flatten(1).sum(1) * 0).abs()
        slope = (zero.sqrt() if not self.everywhere else zero / 0)[:, None]  # the square root has no gradient at 0
        return torch.cat([1 + slope, slope], 1)


@pytest.mark.parametrize("attack", ["natural", "fgsm", "pgd"])
def test_logits_that_are_no_numbers_are_never_right(attack):
    source = ArraySource(torch.rand(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64))
    assert evaluate(NoNumber(True), source, attack).accuracy == 0


def test_gradients_that_are_no_numbers_move_no_image_and_are_a_sign_of_masking():
    source = ArraySource(torch.rand(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64))
    assert [evaluate(NoNumber(False), source, attack).accuracy for attack in ("pgd", "fgsm")] == [1, 1]
    report = check_gradient_masking(NoNumber(False), source, queries=100)
    assert report.zero_gradients == 1


@pytest.mark.parametrize("attack", [None, 20, ["pgd"]])
def test_what_names_no_attack_is_refused(net, source, attack):
    with pytest.raises(ValueError, match="unknown attack.*allowed: 'autoattack'.*'natural', 'pgd'"):
        evaluate(net, source, attack)


def test_what_yields_no_batches_is_no_source(net, source, calibration):
    for measure in (lambda given: evaluate(net, given), lambda given: label_students(net, [], given, calibration)):
        with pytest.raises(TypeError, match=r"a tuple is no Source.*ArraySource\(x, y\)"):
            measure((source.x, source.y))


def test_labels_without_a_logit_are_refused(net, source):
    wrong = ArraySource(source.x, source.y + 10)
    for measure in (evaluate, lambda *given: check_gradient_masking(*given, "pgd")):
        with pytest.raises(ValueError, match="a label of 1[0-9], which is out of range; allowed: 0 to"):
            measure(net, wrong)


def test_students_are_labelled_under_an_attack_by_name(net, source, calibration):
    archs = [net.space.smallest]
    named = label_students(net, archs, source, calibration, attack="fgsm")
    given = label_students(net, archs, source, calibration, attack=AttackSettings("fgsm"))
    assert named.settings == given.settings and (named.accuracies == given.accuracies).all()


def test_no_image_is_refused(net, calibration):
    none = ArraySource(torch.rand(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))
    for measure in (
        lambda: evaluate(NoNumber(False), none, "natural"),
        lambda: check_gradient_masking(NoNumber(False), none),
        lambda: label_students(net, [net.space.smallest], none, calibration),
    ):
        with pytest.raises(ValueError, match="no image to measure on"):
            measure()


@pytest.mark.parametrize("change", [lambda x: 255 * x, lambda x: (x - 0.5) / 0.25], ids=["bytes", "normalised"])
def test_pixels_outside_0_to_1_are_refused(net, source, calibration, change):
    wrong = ArraySource(change(source.x), source.y)
    given = rf"has pixels from {wrong.x.min():.7g} to {wrong.x.max():.7g}; allowed: \[0, 1\]"
    for measure in (
        evaluate,
        lambda net, images: evaluate_all(net, images, ["natural"]),
        check_gradient_masking,
        lambda net, images: label_students(net, [net.space.smallest], images, calibration),
    ):
        with pytest.raises(ValueError, match=f"a batch {given}"):
            measure(net, wrong)
    with pytest.raises(ValueError, match=f"the batch to calibrate on {given}"):
        label_students(net, [net.space.smallest], source, wrong.x)


@pytest.mark.parametrize("one", ["pgd", AttackSettings("fgsm")])
def test_one_attack_in_place_of_several_is_refused(net, source, one):
    with pytest.raises(TypeError, match=r"attacks is .*(pgd|fgsm).*, a single one; allowed: a list of them"):
        evaluate_all(net, source, one)


def test_numbers_of_numpy_are_kept_as_pythons_own(net, source, calibration, tmp_path):
    attack = AttackSettings("pgd", np.float32(0.1), np.float64(0.02), np.int64(3))
    own = {"name": "pgd", "eps": float(np.float32(0.1)), "step_size": 0.02, "steps": 3}
    assert json.loads(json.dumps(vars(attack))) == own
    seed, record = np.int64(1), tmp_path / "labels.jsonl"
    options = {"attack": attack, "batch_size": np.int64(20), "seed": seed}
    labels = label_students(net, [net.space.smallest], source, calibration, **options, record=record)
    assert Labels.load(record) == labels
    json.dumps(evaluate(net, source, attack, seed=seed).to_dict())
    json.dumps(check_gradient_masking(net, source, attack, n_images=2, queries=np.int64(1), seed=seed).to_dict())


def test_autoattack_takes_a_live_student_and_leaves_its_supernet_alone(net, calibration, monkeypatch):
    monkeypatch.setattr(AutoAttack.__init__, "__defaults__", (8 / 255, 0, 100))
    arch, attack, x = net.space.smallest, AttackSettings("autoattack", 0.01), torch.rand(20, 1, 8, 8)
    live, extracted = (calibrate(student, calibration).eval() for student in (net.student(arch), net.extract(arch)))
    source, slices = ArraySource(x, extracted(x).argmax(1)), list(live.parameters())
    expected = evaluate(extracted, source, attack).accuracy
    assert 0 < expected < 1
    assert evaluate(live, source, attack).accuracy == expected
    assert all(now is before for now, before in zip(live.parameters(), slices, strict=True))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
