"""Dynamic residual networks: elastic depth, width and expansion (ProARD, section 4.3 and figure 3)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ConvNormAct
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .architecture import Architecture
from .family import Family, build_network, default_cfg, register_supernet, tagged
from .layers import Axis, Linear, MaxPool, Plan, Size, conv_norm, last_features, make_divisible, out_size
from .modules import build_conv_norm
from .network import StudentNet
from .space import SearchSpace
from .supernet import Supernet

__all__ = ["DynResNet", "ResNet", "ResNetFamily"]


@dataclasses.dataclass(frozen=True)
class ResNetFamily(Family):
    """The constants of one residual network and the choices of its supernet.

    Parameters
    ----------
    student, space, img_size, norm_mean, norm_std
        See `Family`.
    widths, strides : tuple of int
        Output channels (before the width multiplier) and stride of each stage.
    stem_width : int
        Output channels of the stem, before the width multiplier.
    patch : int, default=0
        0 is the three-convolution stem at full resolution; k > 0 is one convolution of k x k
        patches (1 stands for 3 x 3 at full resolution).
    bottleneck : bool, default=True
        1x1, 3x3, 1x1 blocks; False is two 3x3 convolutions.
    reduce_stem : bool, default=False
        The three-convolution stem quarters the resolution, for photographs of ImageNet's size:
        its first convolution has stride 2, and a maximum over 3x3 windows of stride 2 follows.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    stem_width: int
    patch: int = 0
    bottleneck: bool = True
    reduce_stem: bool = False

    def plan(self, arch: Architecture, num_classes: int, in_chans: int, img_size: Size) -> Plan:
        """Return the layers of one architecture (see `Family`)."""
        n_stem = len(arch.width_mult) - len(self.widths)
        stem_mults = arch.width_mult[:n_stem]
        image = Axis("image", in_chans)
        if self.patch:
            stem, x = _patch_stem(image, self.stem_width, stem_mults[-1], self.patch, img_size)
        else:
            stem, x = _deep_stem(image, self.stem_width, stem_mults, arch.stem_residual, self.reduce_stem, img_size)
        size = last_features(stem).out_size
        block = _bottleneck if self.bottleneck else _basic
        stages = {}
        for s, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            out = Axis(f"stage{s}", make_divisible(width * arch.width_mult[n_stem + s]), "width_mult")
            blocks = {}
            for b, ratio in enumerate(arch.expand_ratio[s]):
                blocks[str(b)] = block(f"stages.{s}.{b}", x, out, ratio, stride if b == 0 else 1, size, b == 0)
                x, size = out, out_size(blocks[str(b)].part("conv1" if not self.bottleneck else "conv2"))
            stages[str(s)] = Plan(blocks)
        head = {"fc": Linear(x, Axis("classes", num_classes))} if num_classes else {}
        return Plan({"stem": stem, "stages": Plan(stages), "head": Plan(head)})


def _stem_axis(width: int, mult: float) -> Axis:
    return Axis("stem", make_divisible(width * mult), "width_mult")


@functools.cache
def _patch_stem(image: Axis, width: int, mult: float, patch: int, size: Size) -> tuple[Plan, Axis]:
    out = _stem_axis(width, mult)
    return Plan({"conv0": conv_norm(image, out, size, patch if patch > 1 else 3, stride=patch)}), out


@functools.cache
def _deep_stem(
    image: Axis, width: int, mults: tuple[float, ...], residual: bool, reduce: bool, size: Size
) -> tuple[Plan, Axis]:
    out = _stem_axis(width, mults[-1])
    inner = Axis("stem_inner", make_divisible(make_divisible(width * mults[0]) / 2), "width_mult")
    parts: dict[str, Plan | MaxPool] = {"conv0": (first := conv_norm(image, inner, size, 3, stride=2 if reduce else 1))}
    size = out_size(first)
    if residual:
        parts["residual"] = conv_norm(inner, inner, size, 3)
    parts["conv1"] = conv_norm(inner, out, size, 3)
    if reduce:
        parts["pool"] = MaxPool(out, size)
    return Plan(parts), out


@functools.cache
def _bottleneck(name: str, inp: Axis, out: Axis, ratio: float, stride: int, size: Size, first: bool) -> Plan:
    channels = make_divisible(round(out.channels * ratio))
    middle, squeezed = (Axis(f"{name}.middle{i}", channels, "expand_ratio") for i in (1, 2))
    conv2 = conv_norm(middle, squeezed, size, 3, stride)
    parts = {
        "conv1": conv_norm(inp, middle, size),
        "conv2": conv2,
        "conv3": conv_norm(squeezed, out, out_size(conv2)),
    }
    if first:
        parts["shortcut"] = conv_norm(inp, out, size, 1, stride)
    return Plan(parts)


@functools.cache
def _basic(name: str, inp: Axis, out: Axis, ratio: float, stride: int, size: Size, first: bool) -> Plan:
    middle = Axis(f"{name}.middle", make_divisible(round(out.channels * ratio)), "expand_ratio")
    conv1 = conv_norm(inp, middle, size, 3, stride)
    parts = {"conv1": conv1, "conv2": conv_norm(middle, out, out_size(conv1), 3)}
    if first:
        parts["shortcut"] = conv_norm(inp, out, size, 1, stride)
    return Plan(parts)


class Stem(nn.Module):
    """The first convolutions, with an optional residual one between them."""

    residual: nn.Module | None

    def __init__(self, plan: Plan, **dd: Any) -> None:
        super().__init__()
        self.conv0 = build_conv_norm(plan.part("conv0"), **dd)
        residual = build_conv_norm(plan.part("residual"), **dd) if "residual" in plan else None
        self.register_module("residual", residual)
        self.conv1 = build_conv_norm(plan.part("conv1"), **dd) if "conv1" in plan else nn.Identity()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if "pool" in plan else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map images to the first features."""
        x = self.conv0(x)
        if self.residual is not None:
            x = x + self.residual(x)
        return self.pool(self.conv1(x))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Two or three convolutions beside a shortcut, added and rectified."""

    conv1: ConvNormAct
    conv2: ConvNormAct
    conv3: ConvNormAct | None

    def __init__(self, plan: Plan, **dd: Any) -> None:
        super().__init__()
        names = [name for name in plan if name != "shortcut"]
        self.shortcut = build_conv_norm(plan.part("shortcut"), act=None, **dd) if "shortcut" in plan else nn.Identity()
        for name in names:
            self.add_module(name, build_conv_norm(plan.part(name), act=nn.ReLU if name != names[-1] else None, **dd))
        if "conv3" not in plan:
            self.register_module("conv3", None)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map features to features, halving the resolution where the stride is 2."""
        y = self.conv2(self.conv1(x))
        if self.conv3 is not None:
            y = self.conv3(y)
        return self.act(y + self.shortcut(x))  # type: ignore[no-any-return]

    def zero_init_last(self) -> None:
        """Start the residual branch at zero, so that the block begins as its shortcut."""
        last = self.conv2 if self.conv3 is None else self.conv3
        nn.init.zeros_(last.bn.weight)


class ResNet(StudentNet):
    """A residual network of one architecture; see `StudentNet` for the parameters."""

    cfg: ResNetFamily

    def _build_stem(self, plan: Plan, **dd: Any) -> nn.Module:
        return Stem(plan, **dd)

    def _build_block(self, plan: Plan, stage: int, **dd: Any) -> nn.Module:
        return ResidualBlock(plan, **dd)

    def init_weights(self) -> None:
        """Initialise as every student, each residual branch at zero."""
        super().init_weights()
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.zero_init_last()


class DynResNet(Supernet, ResNet):
    """A residual supernet; see `Supernet` for the parameters."""

    student_type = ResNet


RESNET50 = ResNetFamily(
    student="proard_resnet50",
    space=SearchSpace(
        depths=(0, 1, 2),
        base_depths=(2, 2, 4, 2),
        width_mults=(0.65, 0.8, 1.0),
        n_widths=6,
        expand_ratios=(0.2, 0.25, 0.35),
        stem_residuals=(False, True),
    ),
    widths=(256, 512, 1024, 2048),
    strides=(1, 2, 2, 2),
    stem_width=64,
)
RESNET50_FINE = dataclasses.replace(
    RESNET50,
    space=dataclasses.replace(RESNET50.space, expand_ratios=tuple(round(0.2 + 0.01 * i, 2) for i in range(16))),
)
RESNET50_224 = dataclasses.replace(
    RESNET50,
    student="proard_resnet50_224",
    reduce_stem=True,
    img_size=(224, 224),
    norm_mean=IMAGENET_DEFAULT_MEAN,
    norm_std=IMAGENET_DEFAULT_STD,
)
RESNET_TINY = ResNetFamily(
    student="proard_resnet_tiny",
    space=SearchSpace(
        depths=(0, 1),
        base_depths=(1, 1, 1),
        width_mults=(0.5, 0.75, 1.0),
        n_widths=4,
        expand_ratios=(0.25, 0.35, 0.5),
    ),
    widths=(48, 96, 192),
    strides=(1, 2, 2),
    stem_width=32,
    patch=1,
    img_size=(8, 8),
)
# The shape that trains fastest for its multiply-accumulates on two CPU cores: benchmarks/network_shapes.py.
RESNET_SMALL = ResNetFamily(
    student="proard_resnet_small",
    space=SearchSpace(
        depths=(0, 1),
        base_depths=(1, 1, 1),
        width_mults=(0.5, 0.75, 1.0),
        n_widths=4,
        expand_ratios=(0.25, 0.375, 0.5),
    ),
    widths=(56, 120, 256),
    strides=(1, 2, 2),
    stem_width=48,
    patch=2,
    bottleneck=False,
)


default_cfgs = generate_default_cfgs(
    dict(
        tagged(name, cfg)
        for names, cfg in {
            ("proard_resnet50", "proard_dyn_resnet50", "proard_dyn_resnet50_fine"): default_cfg(RESNET50),
            ("proard_resnet50_224", "proard_dyn_resnet50_224"): default_cfg(RESNET50_224, num_classes=1000),
            ("proard_resnet_tiny", "proard_dyn_resnet_tiny"): default_cfg(RESNET_TINY, in_chans=1),
            ("proard_resnet_small", "proard_dyn_resnet_small"): default_cfg(RESNET_SMALL),
        }.items()
        for name in names
    )
)


@register_model
def proard_resnet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """One student of Dyn-ResNet50; ``arch`` says which, the largest by default."""
    return build_network(ResNet, "proard_resnet50", RESNET50, pretrained, **kwargs)


@register_model
def proard_resnet50_224(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """One student of `proard_dyn_resnet50_224`; ``arch`` says which, the largest by default."""
    return build_network(ResNet, "proard_resnet50_224", RESNET50_224, pretrained, **kwargs)


@register_model
def proard_resnet_tiny(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """One student of `proard_dyn_resnet_tiny`; ``arch`` says which, the largest by default."""
    return build_network(ResNet, "proard_resnet_tiny", RESNET_TINY, pretrained, **kwargs)


@register_model
def proard_resnet_small(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """One student of `proard_dyn_resnet_small`; ``arch`` says which, the largest by default."""
    return build_network(ResNet, "proard_resnet_small", RESNET_SMALL, pretrained, **kwargs)


@register_supernet
def proard_dyn_resnet50(pretrained: bool = False, **kwargs: Any) -> DynResNet:
    """Dyn-ResNet50 of the paper: 2.46e12 students, 285 to 2358 MMACs at 32x32."""
    return build_network(DynResNet, "proard_dyn_resnet50", RESNET50, pretrained, **kwargs)


@register_supernet
def proard_dyn_resnet50_fine(pretrained: bool = False, **kwargs: Any) -> DynResNet:
    """Dyn-ResNet50 with expansion ratios in steps of 0.01: more than 1e19 students."""
    return build_network(DynResNet, "proard_dyn_resnet50_fine", RESNET50_FINE, pretrained, **kwargs)


@register_supernet
def proard_dyn_resnet50_224(pretrained: bool = False, **kwargs: Any) -> DynResNet:
    """Dyn-ResNet50 for 224x224 images of 1000 classes: the same students behind a stem that quarters the resolution."""
    return build_network(DynResNet, "proard_dyn_resnet50_224", RESNET50_224, pretrained, **kwargs)


@register_supernet
def proard_dyn_resnet_tiny(pretrained: bool = False, **kwargs: Any) -> DynResNet:
    """A small supernet for 8x8 to 32x32 images, for a first try and for tests."""
    return build_network(DynResNet, "proard_dyn_resnet_tiny", RESNET_TINY, pretrained, **kwargs)


@register_supernet
def proard_dyn_resnet_small(pretrained: bool = False, **kwargs: Any) -> DynResNet:
    """A supernet for 32x32 colour images that two CPU cores can train: a patch stem, few wide stages."""
    return build_network(DynResNet, "proard_dyn_resnet_small", RESNET_SMALL, pretrained, **kwargs)
