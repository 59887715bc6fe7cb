"""The networks compute what the same blocks of timm's own networks compute."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from torch import nn
from torch.nn import functional as F

from proard_nas.supernets import Proxyless, ResNet, SearchSpace
from proard_nas.supernets.dyn_proxyless import ProxylessFamily
from proard_nas.supernets.dyn_resnet import ResNetFamily


def randomise(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point() and not name.startswith("norm."):
                noise = torch.rand(tensor.shape, generator=generator)
                fan = tensor[0].numel() if tensor.dim() > 1 else 1
                tensor.copy_(noise + 0.5 if tensor.dim() == 1 else (noise - 0.5) * (12 / fan) ** 0.5)
    return net.double().eval()


RENAMED = {
    **{f"conv{i}.conv": f"conv{i}" for i in (1, 2, 3)},
    **{f"conv{i}.bn": f"bn{i}" for i in (1, 2, 3)},
    "shortcut.conv": "downsample.0",
    "shortcut.bn": "downsample.1",
}


@pytest.mark.parametrize(
    ("name", "depths", "ratio", "bottleneck"),
    [("resnet50", (3, 4, 6, 3), 0.25, True), ("resnet18", (2, 2, 2, 2), 1.0, False)],
)
def test_residual_networks_are_timms_with_the_stem_of_cifar(name, depths, ratio, bottleneck):
    widths = (256, 512, 1024, 2048) if bottleneck else (64, 128, 256, 512)
    space = SearchSpace(depths=(0,), base_depths=depths, width_mults=(1.0,), n_widths=5, expand_ratios=(ratio,))
    family = ResNetFamily(name, space, widths, (1, 2, 2, 2), stem_width=64, patch=1, bottleneck=bottleneck)
    net = randomise(ResNet(family))
    reference = timm.create_model(name, num_classes=10)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    weights = {}
    for key, tensor in net.state_dict().items():
        if key.startswith("stages."):
            _stages, stage, block, *middle, last = key.split(".")
            weights[f"layer{int(stage) + 1}.{block}.{RENAMED['.'.join(middle)]}.{last}"] = tensor
        elif not key.startswith("norm."):
            weights[
                key.replace("stem.conv0.conv", "conv1").replace("stem.conv0.bn", "bn1").replace("head.fc", "fc")
            ] = tensor
    # timm's basic block 0 of the first stage has no shortcut convolution where nothing changes shape; ours always has.
    reference = reference.double().eval()
    if not bottleneck:
        block = reference.layer1[0]
        block.downsample = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64)).double().eval()
    reference.load_state_dict(weights)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(net(x), reference(net.norm(x)), rtol=1e-9, atol=1e-9)


def blocks_of_timm(arch):
    """Build the five stages of inverted bottlenecks from timm's blocks."""
    table = [(24, 1, nn.ReLU, False), (40, 2, nn.ReLU, True), (80, 2, nn.Hardswish, False),
             (112, 1, nn.Hardswish, True), (160, 2, nn.Hardswish, True)]  # fmt: skip
    gate = partial(SqueezeExcite, rd_ratio=0.25, gate_layer="hard_sigmoid", force_act_layer="relu",
                   rd_round_fn=lambda v: timm.layers.make_divisible(v, 8))  # fmt: skip
    inp, stages = 16, []
    for (out, stride, act, squeeze), ratios, kernels in zip(table, arch.expand_ratio, arch.kernel_size, strict=True):
        blocks = []
        for i, (ratio, kernel) in enumerate(zip(ratios, kernels, strict=True)):
            options = {"dw_kernel_size": kernel, "stride": stride if i == 0 else 1, "exp_ratio": ratio}
            blocks.append(
                InvertedResidual(inp, out, act_layer=act, se_layer=gate if squeeze else None, pad_type="", **options)
            )
            inp = out
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)


NAMES = {"expand.conv": "conv_pw", "expand.bn": "bn1", "depthwise.conv": "conv_dw", "depthwise.bn": "bn2",
         "project.conv": "conv_pwl", "project.bn": "bn3", "se.conv_reduce": "se.conv_reduce",
         "se.conv_expand": "se.conv_expand"}  # fmt: skip


@pytest.mark.parametrize("which", ["largest", "smallest", 0, 1])
def test_mobile_networks_are_made_of_timms_inverted_bottlenecks(which):
    with torch.device("meta"):
        space = timm.create_model("proard_dyn_mobilenetv3").space
    arch = space.sample(which) if isinstance(which, int) else getattr(space, which)
    net = randomise(timm.create_model("proard_mobilenetv3", arch=arch))
    stages = blocks_of_timm(arch).double().eval()
    weights = {}
    for key, tensor in net.stages.state_dict().items():
        stage, block, *middle, last = key.split(".")
        weights[f"{stage}.{block}.{NAMES['.'.join(middle)]}.{last}"] = tensor
    stages.load_state_dict(weights)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)

    def conv_norm(part, y):
        y = F.conv2d(y, part.conv.weight, stride=1, padding=part.conv.weight.shape[-1] // 2, groups=part.conv.groups)
        bn = part.bn
        return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    first = F.hardswish(conv_norm(net.stem.conv, (x - net.norm.mean) / net.norm.std))
    y = first + conv_norm(net.stem.project, F.relu(conv_norm(net.stem.depthwise, first)))
    y = F.hardswish(conv_norm(net.neck, stages(y)))
    y = F.hardswish(F.conv2d(y.mean((2, 3), keepdim=True), net.head.conv.weight)).flatten(1)
    expected = F.linear(y, net.head.fc.weight, net.head.fc.bias)
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 1e-6


def test_proxyless_with_the_shape_of_mobilenetv2_is_timms_mobilenetv2():
    space = SearchSpace(depths=(0,), base_depths=(2, 3, 4, 3, 3), expand_ratios=(6,), kernel_sizes=(3,))
    widths, strides = (24, 32, 64, 96, 160), (2, 2, 2, 1, 2)
    net = randomise(Proxyless(ProxylessFamily("mobilenetv2", space, widths, strides, stem_stride=2)))
    reference = timm.create_model("mobilenetv2_100", num_classes=10).double().eval()
    assert net.cost().params == sum(p.numel() for p in reference.parameters())
    own = [t for k, t in net.state_dict().items() if not k.startswith("norm.")]
    theirs = reference.state_dict()
    assert [t.shape for t in own] == [t.shape for t in theirs.values()]  # both list their layers in order
    reference.load_state_dict(dict(zip(theirs, own, strict=True)))
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(net(x), reference((x - net.norm.mean) / net.norm.std), rtol=1e-9, atol=1e-9)
    assert net(x).std() > 1e-6


def wide_resnet(weights, x, depths):
    """Compute a wide residual network from its definition, block by block."""

    def activated(name, y):
        return F.relu(
            F.batch_norm(y, *(weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))
        )

    y = F.conv2d(x, weights["stem.conv.weight"], padding=1)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            place, stride = f"stages.{stage}.{block}", 2 if stage and not block else 1
            first = activated(f"{place}.norm1", y)
            second = activated(
                f"{place}.norm2", F.conv2d(first, weights[f"{place}.conv1.weight"], stride=stride, padding=1)
            )
            shortcut = y if block else F.conv2d(first, weights[f"{place}.shortcut.weight"], stride=stride)
            y = shortcut + F.conv2d(second, weights[f"{place}.conv2.weight"], padding=1)
    return F.linear(activated("neck", y).mean((2, 3)), weights["head.fc.weight"], weights["head.fc.bias"])


@pytest.mark.parametrize(("depths", "mults"), [((2, 3, 2), (0.2, 0.4, 0.2)), ((1, 1, 2), (0.3, 0.2, 0.1))])
def test_wide_residual_networks_are_those_of_their_definition(depths, mults):
    net = randomise(timm.create_model("proard_wide_resnet", arch={"depth": depths, "width_mult": mults}))
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    expected = wide_resnet(net.state_dict(), (x - net.norm.mean) / net.norm.std, depths)
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 1e-6


@pytest.mark.parametrize(("name", "reductions"), [
    ("proard_dyn_resnet50_224", (4, 4, 8, 16, 32)),
    ("proard_dyn_mobilenetv3_224", (2, 4, 8, 16, 16, 32)),
])  # fmt: skip
def test_networks_for_large_photographs_reduce_them_as_those_of_imagenet(name, reductions):
    net = timm.create_model(name, device="meta")
    features = net.forward_intermediates(torch.zeros(1, 3, 224, 224, device="meta"), intermediates_only=True)
    assert tuple(224 // f.shape[-1] for f in features) == reductions
    assert tuple(info["reduction"] for info in net.feature_info) == reductions


def test_the_stem_for_large_photographs_strides_first_and_takes_maxima_last():
    net = timm.create_model("proard_dyn_resnet50_224", device="meta", depths=(0,))
    arch = net.space.smallest.to_dict() | {"stem_residual": True}
    stem = randomise(timm.create_model("proard_resnet50_224", arch=arch)).stem
    x = torch.rand(2, 3, 20, 20, dtype=torch.float64)

    def step(part, y, stride=1):
        bn = part.bn
        y = F.conv2d(y, part.conv.weight, stride=stride, padding=1)
        return F.relu(F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias))

    y = step(stem.conv0, x, stride=2)
    y = F.max_pool2d(step(stem.conv1, y + step(stem.residual, y)), 3, stride=2, padding=1)
    torch.testing.assert_close(stem(x), y, rtol=1e-9, atol=1e-9)


def test_the_stem_of_dyn_resnet50_is_three_convolutions_with_an_optional_residual():
    with torch.device("meta"):
        largest = timm.create_model("proard_dyn_resnet50").space.largest.to_dict()
    for residual in (True, False):
        arch = {k: v for k, v in largest.items() if k != "stem_residual"} | (
            {"stem_residual": True} if residual else {}
        )
        arch["width_mult"] = [0.65, 0.8, *arch["width_mult"][2:]]
        stem = randomise(timm.create_model("proard_resnet50", arch=arch)).stem
        x = torch.rand(2, 3, 8, 8, dtype=torch.float64)

        def step(part, y):
            bn = part.bn
            y = F.conv2d(y, part.conv.weight, padding=1)
            return F.relu(F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias))

        assert stem.conv0.conv.weight.shape == (24, 3, 3, 3)  # half of 64 * 0.65 = 41.6 -> 40, rounded to eights
        assert stem.conv1.conv.weight.shape == (48, 24, 3, 3)  # 64 * 0.8 = 51.2
        y = step(stem.conv0, x)
        if residual:
            y = y + step(stem.residual, y)
        torch.testing.assert_close(stem(x), step(stem.conv1, y), rtol=1e-9, atol=1e-9)


def test_residual_branches_start_at_zero_and_blocks_as_their_shortcuts():
    for name in ("proard_dyn_resnet50", "proard_dyn_resnet_small", "proard_dyn_resnet_tiny"):
        net = timm.create_model(name).eval()
        block = net.stages[1][1]
        x = torch.rand(2, net.feature_info[2]["num_chs"], 4, 4)
        assert torch.equal(block(x), x)
