"""Promises of docs/new_network.md: its code runs as it stands, and its network is one like all others."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from proard_nas.supernets import SUPERNETS

GUIDE = Path(__file__).parents[2] / "docs" / "new_network.md"


def blocks():
    return re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    (folder / "dyn_separable.py").write_text(blocks()[0], encoding="utf-8")
    return folder


@pytest.fixture(scope="module", autouse=True)
def family(folder):
    """Import the guide's file, as its reader does."""
    before = list(SUPERNETS)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("dyn_separable")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("dyn_separable")
        SUPERNETS[:] = before


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = timm.create_model("dyn_separable").eval()
    for name, tensor in net.state_dict().items():
        if name.endswith(("bn.weight", "bn.bias", "running_mean", "running_var")):
            tensor.add_(torch.rand(tensor.shape) / 2)
        elif "transform" in name:
            tensor.add_(torch.randn(tensor.shape) / 10)
    return net


def test_a_family_takes_fewer_than_100_lines():
    assert 30 < len(blocks()[0].splitlines()) < 100


def test_the_guides_code_runs_from_training_to_export(folder, monkeypatch):
    monkeypatch.chdir(folder)
    pytest.importorskip("onnxscript")
    names: dict = {}
    for block in blocks()[1:]:
        before = {k: v.clone() for k, v in names["net"].state_dict().items()} if "net" in names else {}
        exec(compile(block, str(GUIDE), "exec"), names)
        if "optimizer.step()" in block:
            live = dict(names["live"].named_parameters())
            changed = [k for k, p in names["net"].named_parameters() if not torch.equal(p, before[k])]
            assert {k for k in changed if ".transform_" not in k} == live.keys()
    assert (folder / "student.onnx").stat().st_size > 4 * names["student"].cost().params * 0.9


def test_students_are_bit_equal_and_cost_what_is_counted(net):
    x, rng, macs = torch.rand(2, 3, 32, 32), np.random.default_rng(0), 0

    def count(module, _inputs, output):
        nonlocal macs
        macs += output[0].numel() * module.weight[0].numel()

    outputs = []
    for arch in [net.space.largest, net.space.smallest, *net.space.sample_distinct(10, rng)]:
        student = net.extract(arch).eval()
        outputs.append(student(x).detach())
        assert torch.equal(net.student(arch)(x), outputs[-1])
        for module in student.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(count)
        macs = 0
        student(x)
        assert net.cost(arch).macs == macs
        assert net.cost(arch).params == sum(p.numel() for p in student.parameters())
    assert len({float(y.sum()) for y in outputs}) == len(outputs)
    assert min(y.std() for y in outputs) > 1e-6


def test_gradients_of_students_land_in_the_supernet(net):
    arch, x, y = net.space.smallest, torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    live, extracted = net.train().student(arch), net.extract(arch)
    for student in (live, extracted):
        F.cross_entropy(student(x), y).backward()
    for name, parameter in extracted.named_parameters():
        full = net.get_parameter(name)
        if full.dim() < 4 or full.shape[-1] == parameter.shape[-1]:
            assert torch.equal(full.grad[tuple(slice(n) for n in parameter.shape)], parameter.grad), name
    kernels = [p.grad for n, p in net.named_parameters() if n.endswith("transform_3") and p.grad is not None]
    assert len(kernels) == 3 and all(g.any() for g in kernels)


def test_sorting_its_channels_keeps_the_function(net):
    net = net.double()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    before = net(x)
    assert net.sort_channels(("width_mult",))
    torch.testing.assert_close(net(x), before, rtol=1e-9, atol=1e-9)


def test_the_estimator_and_the_commands_know_its_name():
    from proard_nas import ProARDEstimator
    from proard_nas._fitting import check_parameters

    assert "dyn_separable" in SUPERNETS
    check_parameters(ProARDEstimator("dyn_separable"))


def test_it_has_timms_interface(net):
    cfg = net.default_cfg
    assert (cfg["first_conv"], cfg["classifier"], cfg["pool_size"]) == ("stem.conv", "head.fc", (8, 8))
    x = torch.rand(1, 3, 32, 32)
    features = timm.create_model("separable", features_only=True)(x)
    assert [tuple(f.shape[1:]) for f in features] == [(16, 32, 32), (32, 32, 32), (64, 16, 16), (128, 8, 8)]
    net.reset_classifier(0)
    assert net(x).shape == (1, net.num_features) == (1, 128)
