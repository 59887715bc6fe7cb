"""Dynamic wide residual networks: elastic depth and width of WRN-d-k (Zagoruyko and Komodakis 2016, for CIFAR)."""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .architecture import Architecture
from .family import Family, build_network, default_cfg, register_supernet
from .layers import Axis, Conv, Layer, Linear, Norm, Plan, Size, make_divisible
from .modules import build_conv, build_norm_act
from .network import StudentNet
from .space import SearchSpace
from .supernet import Supernet

__all__ = ["DynWideResNet", "WideResNet", "WideResNetFamily"]

STEM_CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class WideResNetFamily(Family):
    """The constants of a wide residual network and the choices of its supernet.

    Parameters
    ----------
    student, space, img_size, norm_mean, norm_std
        See `Family`. The depth of a stage is its number of blocks.
    widths, strides : tuple of int
        Output channels (before the width multiplier) and stride of each stage.
    """

    widths: tuple[int, ...] = (160, 320, 640)
    strides: tuple[int, ...] = (1, 2, 2)

    def plan(self, arch: Architecture, num_classes: int, in_chans: int, img_size: Size) -> Plan:
        """Return the layers of one architecture (see `Family`)."""
        x, size, stages = Axis("stem", STEM_CHANNELS), img_size, {}
        stem = Plan({"conv": Conv(Axis("image", in_chans), x, size, 3)})
        for s, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            out = Axis(f"stage{s}", make_divisible(width * arch.width_mult[s]), "width_mult")
            blocks = {}
            for b in range(self.space.base_depths[s] + arch.depth[s]):
                blocks[str(b)], size = _block(f"stages.{s}.{b}", x, out, stride if b == 0 else 1, size, b == 0)
                x = out
            stages[str(s)] = Plan(blocks)
        head = {"fc": Linear(x, Axis("classes", num_classes))} if num_classes else {}
        return Plan({"stem": stem, "stages": Plan(stages), "neck": Norm(x), "head": Plan(head)})


@functools.cache
def _block(name: str, inp: Axis, out: Axis, stride: int, size: Size, first: bool) -> tuple[Plan, Size]:
    middle = Axis(f"{name}.middle", out.channels, "width_mult")
    conv1 = Conv(inp, middle, size, 3, stride)
    conv2 = Conv(middle, out, conv1.out_size, 3)
    parts: dict[str, Plan | Layer] = {"norm1": Norm(inp), "conv1": conv1, "norm2": Norm(middle), "conv2": conv2}
    if first:
        parts["shortcut"] = Conv(inp, out, size, 1, stride)
    return Plan(parts), conv2.out_size


class PreActivationBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice, beside a shortcut; nothing after the sum.

    The shortcut is a convolution of the first activations in the first block of a stage, and
    the unchanged input in the others.
    """

    shortcut: nn.Module | None

    def __init__(self, plan: Plan, **dd: Any) -> None:
        super().__init__()
        self.norm1, self.conv1 = build_norm_act(plan["norm1"], **dd), build_conv(plan["conv1"], **dd)
        self.norm2, self.conv2 = build_norm_act(plan["norm2"], **dd), build_conv(plan["conv2"], **dd)
        self.register_module("shortcut", build_conv(plan["shortcut"], **dd) if "shortcut" in plan else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map features to features, halving the resolution where the stride is 2."""
        y = self.norm1(x)
        if self.shortcut is not None:
            x = self.shortcut(y)
        return x + self.conv2(self.norm2(self.conv1(y)))  # type: ignore[no-any-return]


class WideResNet(StudentNet):
    """A wide residual network of one architecture; see `StudentNet` for the parameters."""

    def _build_stem(self, plan: Plan, **dd: Any) -> nn.Module:
        return nn.Sequential(OrderedDict(conv=build_conv(plan["conv"], **dd)))

    def _build_block(self, plan: Plan, stage: int, **dd: Any) -> nn.Module:
        return PreActivationBlock(plan, **dd)

    def _build_neck(self, plan: Plan, **dd: Any) -> nn.Module:
        return build_norm_act(plan["neck"], **dd)


class DynWideResNet(Supernet, WideResNet):
    """A wide residual supernet; see `Supernet` for the parameters."""

    student_type = WideResNet


WIDE_RESNET = WideResNetFamily(
    student="proard_wide_resnet",
    space=SearchSpace(depths=(2, 3, 4, 5), base_depths=(0, 0, 0), width_mults=(0.2, 0.4, 0.6, 0.8, 1.0), n_widths=3),
)

default_cfgs = generate_default_cfgs(
    {f"{name}.untrained": default_cfg(WIDE_RESNET) for name in ("proard_wide_resnet", "proard_dyn_wide_resnet")}
)


@register_model
def proard_wide_resnet(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """One student of Dyn-WideResNet; ``arch`` says which, the largest by default."""
    return build_network(WideResNet, "proard_wide_resnet", WIDE_RESNET, pretrained, **kwargs)


@register_supernet
def proard_dyn_wide_resnet(pretrained: bool = False, **kwargs: Any) -> DynWideResNet:
    """Wide residual networks from WRN-16-2 to WRN-34-10: each stage has 2 to 5 blocks, 2 to 10 times as wide."""
    return build_network(DynWideResNet, "proard_dyn_wide_resnet", WIDE_RESNET, pretrained, **kwargs)
