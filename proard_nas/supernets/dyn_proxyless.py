"""Dynamic ProxylessNAS: MobileNetV2's inverted bottlenecks with elastic kernel, depth and expansion.

The backbone is that of ProxylessNAS (Cai, Zhu and Han 2019) as Once-for-All makes it elastic (Cai et al. 2020);
the strides are those of Dyn-MobileNetV3's CIFAR form.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from .architecture import Architecture
from .dyn_mobilenetv3 import InvertedBottleneck, inverted_bottleneck
from .family import Family, build_network, default_cfg, register_supernet
from .layers import Axis, Linear, Plan, Size, conv_norm, last_features, out_size
from .modules import build_conv_norm
from .network import StudentNet
from .space import SearchSpace
from .supernet import Supernet

__all__ = ["DynProxyless", "Proxyless", "ProxylessFamily"]


@dataclasses.dataclass(frozen=True)
class ProxylessFamily(Family):
    """The constants of the network and the choices of its supernet.

    Parameters
    ----------
    student, space, img_size, norm_mean, norm_std
        See `Family`.
    widths, strides : tuple of int
        Output channels and stride of each stage.
    stem_widths : (int, int), default=(32, 16)
        Output channels of the first convolution and of the fixed block without expansion.
    stem_stride : int, default=1
        Stride of the first convolution.
    final_width, head_width : int, default=320, 1280
        Output channels of the fixed last block (3x3, expansion 6) and of the last convolution.
    """

    widths: tuple[int, ...] = (24, 40, 80, 96, 192)
    strides: tuple[int, ...] = (1, 2, 2, 1, 2)
    stem_widths: tuple[int, int] = (32, 16)
    stem_stride: int = 1
    final_width: int = 320
    head_width: int = 1280

    def plan(self, arch: Architecture, num_classes: int, in_chans: int, img_size: Size) -> Plan:
        """Return the layers of one architecture (see `Family`)."""
        stem, x = _stem(Axis("image", in_chans), self.stem_widths, self.stem_stride, img_size)
        size, stages = last_features(stem).out_size, {}
        for s, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            out, blocks = Axis(f"stage{s}", width), {}
            for b, (ratio, kernel) in enumerate(zip(arch.expand_ratio[s], arch.kernel_size[s], strict=True)):
                block = inverted_bottleneck(f"stages.{s}.{b}", x, out, ratio, kernel, stride if b == 0 else 1, size)
                blocks[str(b)], x, size = block, out, last_features(block).out_size
            stages[str(s)] = Plan(blocks)
        final, hidden = Axis("final", self.final_width), Axis("head", self.head_width)
        neck = {"block": inverted_bottleneck("neck", x, final, 6, 3, 1, size), "conv": conv_norm(final, hidden, size)}
        head = {"fc": Linear(hidden, Axis("classes", num_classes))} if num_classes else {}
        return Plan({"stem": stem, "stages": Plan(stages), "neck": Plan(neck), "head": Plan(head)})


@functools.cache
def _stem(image: Axis, widths: tuple[int, int], stride: int, size: Size) -> tuple[Plan, Axis]:
    first, out = Axis("stem_first", widths[0]), Axis("stem", widths[1])
    conv = conv_norm(image, first, size, 3, stride)
    depthwise = conv_norm(first, first, out_size(conv), 3, depthwise=True)
    return Plan({"conv": conv, "depthwise": depthwise, "project": conv_norm(first, out, out_size(depthwise))}), out


class Proxyless(StudentNet):
    """A ProxylessNAS network of one architecture; see `StudentNet` for the parameters."""

    def _build_stem(self, plan: Plan, **dd: Any) -> nn.Module:
        acts = {"conv": nn.ReLU6, "depthwise": nn.ReLU6, "project": None}
        parts = {name: build_conv_norm(plan.part(name), act=act, **dd) for name, act in acts.items()}
        return nn.Sequential(OrderedDict(parts))

    def _build_block(self, plan: Plan, stage: int, **dd: Any) -> nn.Module:
        return InvertedBottleneck(plan, nn.ReLU6, **dd)

    def _build_neck(self, plan: Plan, **dd: Any) -> nn.Module:
        block = InvertedBottleneck(plan.part("neck").part("block"), nn.ReLU6, **dd)
        conv = build_conv_norm(plan.part("neck").part("conv"), act=nn.ReLU6, **dd)
        return nn.Sequential(OrderedDict(block=block, conv=conv))


class DynProxyless(Supernet, Proxyless):
    """A ProxylessNAS supernet; see `Supernet` for the parameters."""

    student_type = Proxyless


PROXYLESS = ProxylessFamily(
    student="proard_proxyless",
    space=SearchSpace(depths=(2, 3, 4), base_depths=(0, 0, 0, 0, 0), expand_ratios=(3, 4, 6), kernel_sizes=(3, 5, 7)),
)

default_cfgs = generate_default_cfgs(
    {f"{name}.untrained": default_cfg(PROXYLESS) for name in ("proard_proxyless", "proard_dyn_proxyless")}
)


@register_model
def proard_proxyless(pretrained: bool = False, **kwargs: Any) -> Proxyless:
    """One student of Dyn-ProxylessNAS; ``arch`` says which, the largest by default."""
    return build_network(Proxyless, "proard_proxyless", PROXYLESS, pretrained, **kwargs)


@register_supernet
def proard_dyn_proxyless(pretrained: bool = False, **kwargs: Any) -> DynProxyless:
    """Dyn-ProxylessNAS: 2.18e19 students; plain inverted bottlenecks, which run fast on most devices."""
    return build_network(DynProxyless, "proard_dyn_proxyless", PROXYLESS, pretrained, **kwargs)
