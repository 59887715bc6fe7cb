"""Promises of timm's own folders: students and supernets come back bit-equal, without pickle."""

from __future__ import annotations

import copy
import json

import timm
import torch
from timm.models import save_for_hf


def save(net, folder):
    save_for_hf(net, str(folder), model_args=net.model_args(), safe_serialization=True)
    assert (folder / "model.safetensors").exists()
    assert not list(folder.glob("*.bin"))


def load(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def assert_same(one, other):
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert repr(one) == repr(other)
    assert type(one) is type(other)


def test_an_extracted_student_comes_back_bit_equal(net, images, tmp_path):
    for i, arch in enumerate((net.space.smallest, net.space.sample(0))):
        student, folder = net.extract(arch), tmp_path / str(i)
        save(student, folder)
        again = load(folder)
        assert_same(student, again)
        assert again.arch == arch
        assert torch.equal(again(images(net)), student(images(net)))
        assert again.cost() == student.cost()


def test_a_supernet_comes_back_bit_equal_with_its_choices(net, images, tmp_path):
    save(net, tmp_path)
    again = load(tmp_path)
    assert_same(net, again)
    assert again.space == net.space
    arch = net.space.sample(0)
    assert torch.equal(again.student(arch)(images(net)), net.student(arch)(images(net)))


def test_options_come_back_too(tmp_path):
    net = timm.create_model(
        "proard_dyn_resnet_tiny", num_classes=7, in_chans=2, drop_rate=0.2, depths=(0, 2), expand_ratios=(0.3, 0.6),
        norm_mean=(0.1, 0.2), norm_std=(0.3, 0.4),
    ).eval()  # fmt: skip
    x = torch.rand(2, 2, 8, 8)
    for i, original in enumerate((net, net.extract(net.space.sample(1)))):
        save(original, tmp_path / str(i))
        again = load(tmp_path / str(i))
        assert_same(original, again)
        assert (again.num_classes, again.in_chans, again.drop_rate, again.head.drop.p) == (7, 2, 0.2, 0.2)
        assert torch.equal(again(x), original(x))
    assert load(tmp_path / "0").space == net.space


def test_the_number_of_classes_can_be_changed_on_loading(tmp_path):
    net = timm.create_model("proard_resnet_tiny").eval()
    save(net, tmp_path)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).eval()
    x = torch.rand(2, 1, 8, 8)
    assert other(x).shape == (2, 3)
    assert torch.equal(other.forward_features(x), net.forward_features(x))


def test_the_arguments_of_a_network_are_json_that_builds_it_again(net):
    arguments = json.loads(json.dumps(net.model_args()))
    again = timm.create_model(net.default_cfg["architecture"], **arguments)
    assert again.space == net.space
    assert repr(again) == repr(net)
    twin = copy.deepcopy(net)
    twin.load_state_dict(again.state_dict())
    assert_same(twin, again)
