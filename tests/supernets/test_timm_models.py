"""Promises to timm: every supernet and every student is a model as timm's own, through all of its interface."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.models import FeatureInfo, group_parameters
from timm.models import is_model as timm_knows
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from proard_nas.supernets import SUPERNETS, Architecture, Supernet

IMAGE_SIZE = 64  # pixels, at most


def inputs(model, n=2):
    channels, height, width = model.default_cfg["input_size"]
    return torch.rand(n, channels, min(height, IMAGE_SIZE), min(width, IMAGE_SIZE))


def size_of(model, image):
    """Return height and width of a convolutional network's last features by its total stride."""
    reduction = model.feature_info[-1]["reduction"]
    return tuple(math.ceil(n / reduction) for n in image.shape[2:])


@pytest.fixture
def model(build, spec):
    return build(spec).eval()


def test_timm_lists_the_networks_in_modules_of_their_own():
    listed = timm.list_models("proard*")
    assert all(timm_knows(name) for name in listed)
    modules = ("dyn_mobilenetv3", "dyn_proxyless", "dyn_resnet", "dyn_wide_resnet")
    assert sorted(name for module in modules for name in timm.list_models(module=module)) == sorted(listed)
    assert set(SUPERNETS) == {name for name in listed if name.startswith("proard_dyn_")}
    with torch.device("meta"):
        students = {timm.create_model(name).cfg.student for name in SUPERNETS}
    assert set(listed) == {*SUPERNETS, *students}
    assert "resnet50" in timm.list_models(module="resnet")
    assert "proard_dyn_resnet50" not in timm.list_models(module="resnet")


def test_forward_gives_finite_logits_also_with_checkpointing(model):
    x = inputs(model)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, model.num_classes)
        assert logits.isfinite().all()
        model.set_grad_checkpointing()
        assert model.grad_checkpointing
        torch.testing.assert_close(model(x), logits)
        model.set_grad_checkpointing(enable=False)
        assert not model.grad_checkpointing


def test_every_parameter_gets_a_gradient(build, spec):
    model = build(spec, num_classes=42).train()
    model(inputs(model)).mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    # The largest student has the largest kernel everywhere: only smaller ones use the matrices.
    matrices = [n for n, _ in model.named_parameters() if ".transform_" in n]
    assert missing == matrices
    assert bool(matrices) == (isinstance(model, Supernet) and len(model.space.kernel_sizes) > 1)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["proard_dyn_mobilenetv3", "proard_dyn_proxyless small"])
def test_the_kernel_matrices_get_their_gradients_from_students_with_smaller_kernels(build, name):
    net = build(name).train()
    arch = net.space.largest.to_dict()
    arch["kernel_size"] = [[3] * len(row) for row in arch["kernel_size"]]
    net.student(Architecture.from_dict(arch))(inputs(net)).mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_the_default_configuration_is_true(build, spec):
    model = build(spec, device="meta").eval()
    features = model.forward_features(torch.zeros(2, *model.default_cfg["input_size"], device="meta"))
    cfg, state = model.default_cfg, model.state_dict()
    assert cfg is model.pretrained_cfg
    assert model.num_classes == cfg["num_classes"] == (1000 if "_224" in spec else 10)
    assert f"{cfg['classifier']}.weight" in state
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert state[f"{cfg['first_conv']}.weight"].shape[1] == model.in_chans == cfg["input_size"][0]
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert convs[0] == cfg["first_conv"]
    assert tuple(features.shape[2:]) == tuple(cfg["pool_size"])


def test_features_and_head_have_the_announced_shapes(model):
    x = inputs(model)
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features
    before = model.forward_head(features, pre_logits=True)
    assert before.shape == (2, model.head_hidden_size)
    assert before.shape[1] == model.get_classifier().in_features
    torch.testing.assert_close(model.forward_head(features), model(x), rtol=0, atol=0)
    torch.testing.assert_close(model.get_classifier()(before), model(x))


def test_the_classifier_can_be_removed_and_replaced(model):
    x = inputs(model)
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(x), before)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["a"] * 7}
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert "label_names" not in model.pretrained_cfg and "input_size" in model.pretrained_cfg
    assert model.num_classes == model.get_classifier().out_features == 7
    assert sum(p.numel() for n, p in model.named_parameters() if ".transform_" not in n) == model.cost().params


def test_pooling_can_be_removed_with_the_classifier(model):
    x = inputs(model)
    model.reset_classifier(0, "")
    unpooled = model(x)
    assert tuple(unpooled.shape[2:]) == size_of(model, x)
    assert unpooled.shape[1] == model.head_hidden_size


def test_a_network_can_be_built_without_classifier_and_pooling(build, spec):
    x = inputs(whole := build(spec).eval())
    pooled = build(spec, num_classes=0).eval()
    unpooled = build(spec, num_classes=0, global_pool="").eval()
    for other in (pooled, unpooled):
        other.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("head.fc")})
    before = whole.forward_head(whole.forward_features(x), pre_logits=True)
    assert torch.equal(pooled(x), before)
    assert tuple(unpooled(x).shape) == (2, whole.head_hidden_size, *size_of(whole, x))
    assert isinstance(pooled.get_classifier(), nn.Identity)


@pytest.mark.parametrize("options", [{}, {"feature_cls": "getter"}, {"out_indices": (0, 2)}], ids=str)
def test_feature_extraction_gives_the_announced_features(build, spec, options):
    model = build(spec, features_only=True, **options).eval()
    whole = build(spec).eval()
    x = inputs(whole, n=1)
    with torch.no_grad():
        features = model(x)
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(features) == len(channels) == (2 if "out_indices" in options else len(whole.feature_info))
    for feature, channel, reduction in zip(features, channels, reductions, strict=True):
        assert feature.shape == (1, channel, math.ceil(x.shape[2] / reduction), math.ceil(x.shape[3] / reduction))
        assert feature.isfinite().all()


def test_extracted_features_are_those_of_the_whole_network(build, spec):
    whole, extractor = build(spec).eval(), build(spec, features_only=True).eval()
    extractor.model.load_state_dict({k: v for k, v in whole.state_dict().items() if k in extractor.model.state_dict()})
    x = inputs(whole)
    wanted = whole.forward_intermediates(x, intermediates_only=True)
    for feature, want in zip(extractor(x), wanted, strict=True):
        assert torch.equal(feature, want)


def test_intermediates_are_the_announced_features_also_with_checkpointing(model):
    x = inputs(model)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    output, intermediates = model.forward_intermediates(x)
    assert len(intermediates) == len(info.channels()) >= 3
    for feature, channels, reduction in zip(intermediates, info.channels(), info.reduction(), strict=True):
        assert feature.shape[:2] == (2, channels)
        assert feature.shape[2] == x.shape[2] // reduction
    assert torch.equal(output, model.forward_features(x))
    model.set_grad_checkpointing()
    again, others = model.forward_intermediates(x)
    torch.testing.assert_close(again, output)
    for a, b in zip(others, intermediates, strict=True):
        torch.testing.assert_close(a, b)


def test_intermediates_come_from_the_modules_that_are_named(model):
    x, seen = inputs(model), {}
    hooks = [
        model.get_submodule(info["module"]).register_forward_hook(lambda m, i, o, n=info["module"]: seen.update({n: o}))
        for info in model.feature_info
    ]
    features = model.forward_intermediates(x, intermediates_only=True)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(features)
    for info, feature in zip(model.feature_info, features, strict=True):
        assert torch.equal(seen[info["module"]], feature)


def test_intermediates_can_be_chosen_and_stop_early(model):
    x = inputs(model)
    every = model.forward_intermediates(x, intermediates_only=True)
    for indices, wanted in (([0], every[:1]), ([-1], every[-1:]), (2, every[-2:]), ([0, 2], [every[0], every[2]])):
        for stop in (False, True):
            chosen = model.forward_intermediates(x, indices=indices, stop_early=stop, intermediates_only=True)
            assert [torch.equal(a, b) for a, b in zip(chosen, wanted, strict=True)] == [True] * len(wanted)
    output, _ = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert torch.equal(output, every[1])
    with pytest.raises(ValueError, match="output_fmt='NLC' is not supported; allowed: 'NCHW'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_a_pruned_network_keeps_what_its_intermediates_need_and_no_more(model):
    x = inputs(model)
    for indices in ([0, len(model.stages)], [0, 1], [0]):
        wanted = model.forward_intermediates(x, indices=indices, intermediates_only=True)
        assert list(model.prune_intermediate_layers(indices)) == indices
        pruned = model.forward_intermediates(x, indices=indices, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(pruned, wanted, strict=True))
        assert len(model.stages) == indices[-1]
        assert torch.equal(model(x), wanted[-1])
        assert model.num_features == wanted[-1].shape[1]
        assert model.num_classes == 0
        assert not any(module.training for module in model.modules())
        model.zero_grad()
        wanted[-1].sum().backward()
        needed = {n for n, p in model.named_parameters() if p.grad is not None}
        assert needed == {n for n, _ in model.named_parameters() if ".transform_" not in n}


def test_a_head_that_need_not_be_pruned_is_kept(model):
    x, last = inputs(model), len(model.stages)
    logits = model(x)
    model.prune_intermediate_layers([last], prune_head=False)
    assert torch.equal(model(x), logits)


@pytest.mark.parametrize("coarse", [False, True])
def test_groups_hold_every_parameter_once_in_the_order_of_depth(model, coarse):
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    names = [n for group in groups.values() for n in group]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    first = next(iter(groups.values()))
    assert f"{model.default_cfg['first_conv']}.weight" in first
    last = list(groups.values())[-1]
    assert f"{model.default_cfg['classifier']}.weight" in last
    blocks = sum(len(stage) for stage in model.stages)
    assert len(groups) >= (len(model.stages) if coarse else blocks) + 2


def test_optimizers_of_timm_take_the_network(model):
    assert create_optimizer_v2(model, opt="sgd", lr=0.1, weight_decay=1e-4)
    decayed = param_groups_layer_decay(model, weight_decay=1e-4, layer_decay=0.9)
    assert sum(len(g["params"]) for g in decayed) == len(list(model.parameters()))
    scale = {id(p): g["lr_scale"] for g in decayed for p in g["params"]}
    first = model.get_submodule(model.default_cfg["first_conv"]).weight
    assert scale[id(first)] == min(scale.values()) < scale[id(model.get_classifier().weight)] == 1.0


def test_a_network_can_be_traced_and_cut_at_each_of_its_features(model):
    x = inputs(model)
    nodes = {info["module"]: str(i) for i, info in enumerate(model.feature_info)} | {"head.fc": "logits"}
    found = create_feature_extractor(model, return_nodes=nodes)(x)
    assert torch.equal(found["logits"], model(x))
    for i, feature in enumerate(model.forward_intermediates(x, intermediates_only=True)):
        assert torch.equal(found[str(i)], feature)


def test_traced_networks_compute_and_train_as_the_originals(model):
    x = inputs(model)
    train_nodes, eval_nodes = get_graph_node_names(model)
    traced = create_feature_extractor(model, train_return_nodes=[train_nodes[-1]], eval_return_nodes=[eval_nodes[-1]])
    assert torch.equal(traced.eval()(x)[eval_nodes[-1]], model(x))
    traced.train()(x)[train_nodes[-1]].mean().backward()
    names = {n for n, _ in model.named_parameters() if ".transform_" not in n}
    assert names == {n for n, p in traced.named_parameters() if p.grad is not None}


def test_checkpointing_does_not_change_gradients(build, spec):
    model = build(spec).train()
    x, gradients = inputs(model), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6 + 1e-4 * a.abs().max().item())


def test_networks_take_other_image_sizes(model):
    with torch.no_grad():
        for size in ((40, 40), (33, 65)):
            x = torch.rand(2, model.in_chans, *size)
            assert model(x).shape == (2, model.num_classes)
            assert tuple(model.forward_features(x).shape[2:]) == model.feature_size(size)
