"""Batch norm statistics: right, a student's own, and required."""

from __future__ import annotations

import pytest
import timm
import torch

from proard_nas.data import ArraySource
from proard_nas.evaluation import UncalibratedError, calibrate, evaluate
from proard_nas.supernets import is_calibrated


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


def test_evaluating_an_uncalibrated_student_raises(net, images):
    source = ArraySource(images, torch.arange(60) % 10)
    for student in (net.student(net.space.sample(0)), net.extract(net.space.sample(0))):
        with pytest.raises(UncalibratedError, match="calibrate it on training images"):
            evaluate(student, source, "natural")
        evaluate(calibrate(student, images), source, "natural")
