"""Batch norm statistics: right, a student's own, and required."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from proard_nas._random import derive_seed
from proard_nas.attacks import AttackBudget, Noise
from proard_nas.data import ArraySource
from proard_nas.evaluation import UncalibratedError, calibrate, check_gradient_masking, evaluate
from proard_nas.evaluation import calibration as calibration_module
from proard_nas.supernets import is_calibrated, statistics_of


@pytest.fixture
def net():
    return timm.create_model("proard_dyn_resnet_tiny")


@pytest.fixture
def images():
    return torch.rand(60, 1, 8, 8)


def test_statistics_are_those_of_the_images(net, images):
    student = calibrate(net.extract(net.space.sample(0)), images, batch_size=60)
    with torch.no_grad():
        inputs = student.stem.conv0.conv(student.norm(images)).double()
    torch.testing.assert_close(
        student.stem.conv0.bn.running_mean.double(), inputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(student.stem.conv0.bn.running_var.double(), inputs.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_batches_of_equal_size_give_the_means_of_the_whole(net, images):
    arch = net.space.sample(0)
    whole = calibrate(net.extract(arch), images, batch_size=60).stem.conv0.bn.running_mean
    parts = calibrate(net.extract(arch), images, batch_size=20).stem.conv0.bn.running_mean
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_calibrating_a_live_student_touches_neither_the_supernet_nor_another(net, images):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = net.student(net.space.sample(2))
    others = {name: buffer.clone() for name, buffer in other.named_buffers()}
    student = calibrate(net.student(net.space.sample(1)), images)
    assert is_calibrated(student) and not is_calibrated(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(torch.equal(buffer, others[name]) for name, buffer in other.named_buffers())


def test_live_and_extracted_students_calibrate_alike(net, images):
    arch = net.space.sample(3)
    live, extracted = calibrate(net.student(arch), images).eval(), calibrate(net.extract(arch), images).eval()
    with torch.no_grad():
        assert torch.equal(live(images), extracted(images))


def test_the_active_student_of_a_supernet_is_calibrated_and_the_largest_left_alone(net, images):
    net.eval()
    arch = net.space.sample(1)
    own = net.stem.conv0.bn.running_mean.clone()
    net.set_active(arch)
    calibrate(net, images)
    with torch.no_grad():
        assert torch.equal(net(images), calibrate(net.extract(arch), images).eval()(images))
    assert torch.equal(net.stem.conv0.bn.running_mean, own)


def test_a_wrapped_supernet_that_runs_another_student_is_refused_and_left_alone(net, images):
    calibrate(net, images)
    net.set_active(net.space.smallest)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="wraps a supernet that runs another student than its largest; allowed"):
        calibrate(nn.Sequential(net), images)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_calibration_restores_modes_and_momentum(net, images):
    net.train()
    net.stages[0].eval()
    modes = [m.training for m in net.modules()]
    calibrate(net, images)
    assert [m.training for m in net.modules()] == modes
    assert net.stem.conv0.bn.momentum == 0.1


def test_no_image_is_refused(net):
    with pytest.raises(ValueError, match="at least one image"):
        calibrate(net, torch.empty(0, 1, 8, 8))


def test_what_is_no_image_tensor_is_refused(net, images):
    with pytest.raises(TypeError, match="must be a Tensor of shape .*, got a ndarray"):
        calibrate(net.extract(net.space.smallest), images.numpy())
    with pytest.raises(ValueError, match=r"must have the shape \(N, C, H, W\), got \(1, 8, 8\)"):
        calibrate(net.extract(net.space.smallest), images[0])


def test_images_that_do_not_fit_leave_the_statistics_as_they_were(net, images):
    student = calibrate(net.extract(net.space.smallest), images)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(RuntimeError, match="channels"):
        calibrate(student, torch.cat([images, images], 1))
    with pytest.raises(ValueError, match=r"the batch to calibrate on has pixels from .* to 2; allowed: \[0, 1\]"):
        calibrate(student, images.index_fill(0, torch.tensor(7), 2.0))
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_evaluating_an_uncalibrated_student_raises(net, images):
    source = ArraySource(images, torch.arange(60) % 10)
    for student in (net.student(net.space.sample(0)), net.extract(net.space.sample(0))):
        with pytest.raises(UncalibratedError, match="calibrate it on training images"):
            evaluate(student, source, "natural")
        evaluate(calibrate(student, images), source, "natural")


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel, torch.compile])
def test_an_uncalibrated_student_is_found_in_a_wrapper(net, images, wrap):
    source = ArraySource(images, torch.arange(60) % 10)
    network = wrap(net.extract(net.space.sample(0)))
    for measure in (evaluate, check_gradient_masking):
        with pytest.raises(UncalibratedError, match="calibrate it on training images"):
            measure(network, source, "fgsm")


# -- kinds, against plain torch ----------------------------------------------------------------

EPS, STEP_SIZE, STEPS = 0.1, 0.04, 3
RUNNING = AttackBudget(EPS, STEP_SIZE, STEPS, batch_norm="running")
BATCH = AttackBudget(EPS, STEP_SIZE, STEPS, batch_norm="batch")


@pytest.fixture
def plain():
    """A network with two batch norms that no part of this library has made."""
    layers = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))


@pytest.fixture
def labels():
    return torch.arange(60) % 4


def statistics_by_hand(network, batches):
    """Average over the batches the mean and unbiased variance of what each batch norm is given in training mode."""
    network, seen = copy.deepcopy(network).train(), []
    for norm in (network[1], network[4]):
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double()))
    with torch.no_grad():
        for batch in batches:
            network(batch)
    means = [torch.stack([x.mean((0, 2, 3)) for x in seen[i::2]]).mean(0) for i in range(2)]
    variances = [torch.stack([x.var((0, 2, 3)) for x in seen[i::2]]).mean(0) for i in range(2)]
    return [*means, *variances]


def with_statistics(network, found):
    network = copy.deepcopy(network)
    for norm, mean, var in zip((network[1], network[4]), found[:2], found[2:], strict=True):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    return network


def pgd_by_hand(network, x, y, start):
    adversarial = (x + start).clamp(0, 1)
    for _ in range(STEPS):
        adversarial.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(adversarial), y), adversarial)
        moved = adversarial.detach() + STEP_SIZE * gradient.sign()
        adversarial = torch.maximum(torch.minimum(moved, x + EPS), x - EPS).clamp(0, 1)
    return adversarial


def own(network):
    return [norm.running_mean for norm in (network[1], network[4])] + [
        norm.running_var for norm in (network[1], network[4])
    ]


def starts(batches, seed):
    return [EPS * Noise(derive_seed(seed, "calibrate", i)).uniform(x) for i, x in enumerate(batches)]


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=1e-5)


def test_clean_statistics_are_those_by_hand(plain, images):
    assert_close(own(calibrate(plain, images, 20)), statistics_by_hand(plain, images.split(20)))


@pytest.mark.parametrize("budget", [RUNNING, BATCH])
def test_adversarial_statistics_are_those_by_hand_of_the_same_adversarial_images(plain, images, labels, budget):
    batches, targets = images.split(20), labels.split(20)
    attacked = with_statistics(plain, statistics_by_hand(plain, batches)).train(budget is BATCH)
    made = [pgd_by_hand(attacked, *part) for part in zip(batches, targets, starts(batches, seed=5), strict=True)]
    calibrate(plain, images, 20, kind="adversarial", labels=labels, budget=budget, seed=5)
    expected = statistics_by_hand(plain, made)
    assert_close(own(plain), expected)
    assert not torch.allclose(own(plain)[2].double(), statistics_by_hand(plain, batches)[2], rtol=1e-3)


def test_mixed_statistics_are_those_of_batches_whose_every_second_image_is_adversarial(plain, images, labels):
    batches, targets = images.split(20), labels.split(20)
    attacked = with_statistics(plain, statistics_by_hand(plain, batches)).eval()
    made = [batch.clone() for batch in batches]
    for batch, y, start in zip(made, targets, starts([x[1::2] for x in batches], seed=0), strict=True):
        batch[1::2] = pgd_by_hand(attacked, batch[1::2].clone(), y[1::2], start)
    calibrate(plain, images, 20, kind="mixed", labels=labels, budget=RUNNING)
    assert_close(own(plain), statistics_by_hand(plain, made))


def test_the_default_attack_sees_the_clean_statistics(plain, images, labels):
    default = calibrate(copy.deepcopy(plain), images, kind="adversarial", labels=labels)
    spelled_out = AttackBudget(8 / 255, 2 / 255, 10, batch_norm="running")
    other = calibrate(copy.deepcopy(plain), images, kind="adversarial", labels=labels, budget=spelled_out)
    assert all(torch.equal(a, b) for a, b in zip(own(default), own(other), strict=True))


@pytest.mark.parametrize("kind", ["adversarial", "mixed"])
def test_live_extracted_and_active_students_calibrate_alike_in_every_kind(net, images, labels, kind):
    arch = net.space.sample(1)
    net.set_active(arch)
    made = [calibrate(network, images, kind=kind, labels=labels) for network in (net.student(arch), net.extract(arch))]
    calibrate(net, images, kind=kind, labels=labels)
    live, extracted = (statistics_of(network) for network in made)
    assert all(torch.equal(value, extracted[name]) for name, value in live.items())
    assert all(torch.equal(value, net._active_statistics[name]) for name, value in live.items())


@pytest.mark.parametrize("kind", ["clean", "adversarial", "mixed"])
def test_every_kind_leaves_weights_modes_images_and_the_global_generator_as_they_were(plain, images, labels, kind):
    plain.train()
    plain[1].eval()
    modes, before = [m.training for m in plain.modules()], [p.clone() for p in plain.parameters()]
    given, state = images.clone(), torch.get_rng_state()
    calibrate(plain, images, kind=kind, labels=labels)
    assert [m.training for m in plain.modules()] == modes
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(plain.parameters(), before, strict=True))
    assert torch.equal(images, given) and torch.equal(torch.get_rng_state(), state)


def test_what_a_kind_lacks_is_named(plain, images, labels):
    with pytest.raises(ValueError, match="kind='adversarial' attacks the images and needs their classes: give labels"):
        calibrate(plain, images, kind="adversarial")
    with pytest.raises(ValueError, match=r"labels of shape \(59,\); allowed: \(60,\)"):
        calibrate(plain, images, kind="mixed", labels=labels[1:])
    with pytest.raises(ValueError, match="two images or more in each batch"):
        calibrate(plain, images, 1, kind="mixed", labels=labels)
    with pytest.raises(ValueError, match="Did you mean 'adversarial'"):
        calibrate(plain, images, kind="adverserial", labels=labels)


def test_what_must_be_calibrated_is_the_active_student(net, images):
    source = ArraySource(images, torch.zeros(len(images), dtype=torch.int64))
    calibrate(net, images)
    net.set_active(net.space.smallest)
    with pytest.raises(UncalibratedError):
        evaluate(net, source, "natural")
    calibrate(net, images)
    found = evaluate(net, source, "natural")
    other = timm.create_model("proard_dyn_resnet_tiny")
    other.load_state_dict({k: v for k, v in net.state_dict().items() if "num_batches" not in k}, strict=False)
    other.set_active(net.space.smallest)
    calibrate(other, images)  # and never its largest
    assert evaluate(other, source, "natural").accuracy == found.accuracy


@pytest.mark.parametrize("batch_size", [0, -4, 2.5])
def test_a_wrong_batch_size_is_refused(net, images, batch_size):
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        calibrate(net, images, batch_size)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda y: y.index_fill(0, torch.tensor(7), 99), "a label of 99, which is out of range; allowed: 0 to 3"),
        (lambda y: y - 1, "a label of -1, which is negative"),
        (lambda y: y.float(), "labels of type torch.float32; allowed: integers"),
    ],
)
def test_labels_that_do_not_fit_are_refused_and_leave_the_statistics(plain, images, labels, wrong, message):
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(ValueError, match=message):
        calibrate(plain, images, kind="adversarial", labels=wrong(labels))
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_an_attack_that_fails_leaves_the_statistics_as_they_were(plain, images, labels, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(calibration_module, "inner_attack", fails)
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(RuntimeError, match="out of memory"):
        calibrate(plain, images, kind="mixed", labels=labels)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_labels_may_be_integers_of_any_type(plain, images, labels):
    made = [
        own(calibrate(copy.deepcopy(plain), images, kind="adversarial", labels=given))
        for given in (labels, labels.int(), labels.numpy())
    ]
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(other, made[0], strict=True))


def test_images_in_half_precision_are_attacked_in_it(net, images, labels):
    student = net.extract(net.space.smallest).bfloat16()
    calibrate(student, images.bfloat16(), kind="adversarial", labels=labels)
    assert is_calibrated(student) and {value.dtype for value in student.parameters()} == {torch.bfloat16}


def test_sorting_channels_makes_the_active_student_uncalibrated(net, images):
    source = ArraySource(images, torch.zeros(len(images), dtype=torch.int64))
    net.set_active(net.space.smallest)
    calibrate(net, images)
    evaluate(net, source, "natural")
    net.sort_channels()
    with pytest.raises(UncalibratedError):
        evaluate(net, source, "natural")
