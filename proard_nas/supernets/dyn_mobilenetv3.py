"""Dynamic MobileNetV3: elastic kernel, depth and expansion (ProARD, sections 4.3 and 5)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d, create_act_layer
from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from .architecture import Architecture
from .family import Family, build_network, default_cfg, register_supernet
from .layers import Axis, Conv, Linear, Plan, Size, conv_norm, last_features, make_divisible, out_size
from .modules import build_conv_norm
from .network import StudentNet
from .space import SearchSpace
from .supernet import Supernet

__all__ = ["DynMobileNetV3", "MobileNetV3", "MobileNetV3Family"]

STEM_CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class MobileNetV3Family(Family):
    """The constants of the network and the choices of its supernet.

    Parameters
    ----------
    student, space, img_size, norm_mean, norm_std
        See `Family`.
    widths, strides : tuple of int
        Output channels and stride of each stage.
    hard_swish, squeeze : tuple of bool
        For each stage, hard-swish in place of ReLU, and squeeze-and-excitation.
    final_width, head_width : int, default=960, 1280
        Channels of the last convolution and of the layer before the classifier.
    stem_stride : int, default=1
        Stride of the first convolution.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    hard_swish: tuple[bool, ...]
    squeeze: tuple[bool, ...]
    final_width: int = 960
    head_width: int = 1280
    stem_stride: int = 1

    def plan(self, arch: Architecture, num_classes: int, in_chans: int, img_size: Size) -> Plan:
        """Return the layers of one architecture (see `Family`)."""
        stem, x = _stem(Axis("image", in_chans), self.stem_stride, img_size), Axis("stem", STEM_CHANNELS)
        size, stages = last_features(stem).out_size, {}
        for s, (width, stride) in enumerate(zip(self.widths, self.strides, strict=True)):
            out, blocks = Axis(f"stage{s}", width), {}
            for b, (ratio, kernel) in enumerate(zip(arch.expand_ratio[s], arch.kernel_size[s], strict=True)):
                place, step = f"stages.{s}.{b}", stride if b == 0 else 1
                blocks[str(b)] = inverted_bottleneck(place, x, out, ratio, kernel, step, size, self.squeeze[s])
                x, size = out, out_size(blocks[str(b)].part("depthwise"))
            stages[str(s)] = Plan(blocks)
        final, hidden = Axis("final", self.final_width), Axis("head", self.head_width)
        head = {"conv": Conv(final, hidden, (1, 1))}
        fc = {"fc": Linear(hidden, Axis("classes", num_classes))} if num_classes else {}
        return Plan(
            {"stem": stem, "stages": Plan(stages), "neck": conv_norm(x, final, size), "head": Plan({**head, **fc})}
        )


@functools.cache
def _stem(image: Axis, stride: int, size: Size) -> Plan:
    first, out = Axis("stem_first", STEM_CHANNELS), Axis("stem", STEM_CHANNELS)
    conv = conv_norm(image, first, size, 3, stride)
    size = out_size(conv)
    return Plan(
        {
            "conv": conv,
            "depthwise": conv_norm(first, first, size, 3, depthwise=True),
            "project": conv_norm(first, out, size),
        }
    )


@functools.cache
def inverted_bottleneck(
    name: str, inp: Axis, out: Axis, ratio: float, kernel: int, stride: int, size: Size, squeeze: bool = False
) -> Plan:
    """Plan a 1x1 expansion to ``ratio`` times the channels, a depthwise convolution and a 1x1 projection."""
    channels = make_divisible(round(inp.channels * ratio))
    middle = Axis(f"{name}.middle", channels, "expand_ratio")
    depthwise = conv_norm(middle, middle, size, kernel, stride, depthwise=True)
    parts = {"expand": conv_norm(inp, middle, size), "depthwise": depthwise}
    if squeeze:
        hidden = Axis(f"{name}.squeezed", make_divisible(channels // 4), "expand_ratio")
        parts["se"] = Plan(
            {
                "conv_reduce": Conv(middle, hidden, (1, 1), bias=True, gate=True),
                "conv_expand": Conv(hidden, middle, (1, 1), bias=True, gate=True),
            }
        )
    return Plan({**parts, "project": conv_norm(middle, out, out_size(depthwise))})


class Stem(nn.Module):
    """A 3x3 convolution and one fixed block without expansion, with an identity shortcut."""

    def __init__(self, plan: Plan, **dd: Any) -> None:
        super().__init__()
        self.conv = build_conv_norm(plan.part("conv"), act=nn.Hardswish, **dd)
        self.depthwise = build_conv_norm(plan.part("depthwise"), **dd)
        self.project = build_conv_norm(plan.part("project"), act=None, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to the first features."""
        x = self.conv(x)
        y: Tensor = self.project(self.depthwise(x))
        return x + y


class InvertedBottleneck(nn.Module):
    """1x1 expansion, depthwise convolution, optional squeeze-and-excitation, 1x1 projection.

    The input is added where it has the shape of the output.
    """

    def __init__(self, plan: Plan, act: type[nn.Module], **dd: Any) -> None:
        super().__init__()
        expand, depthwise, project = (plan.part(n).layer("conv") for n in ("expand", "depthwise", "project"))
        assert isinstance(expand, Conv) and isinstance(depthwise, Conv) and isinstance(project, Conv)
        self.residual = depthwise.stride == 1 and expand.inp.channels == project.out.channels
        self.expand = build_conv_norm(plan.part("expand"), act=act, **dd)
        self.depthwise = build_conv_norm(plan.part("depthwise"), act=act, **dd)
        self.se: nn.Module = nn.Identity()
        if "se" in plan:
            reduce = plan.part("se").layer("conv_reduce")
            assert isinstance(reduce, Conv)
            self.se = SqueezeExcite(
                reduce.inp.channels, rd_channels=reduce.out.channels, gate_layer="hard_sigmoid", **dd
            )
        self.project = build_conv_norm(plan.part("project"), act=None, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map features to features, halving the resolution where the stride is 2."""
        y: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class Head(nn.Module):
    """Pooling, a 1x1 convolution without norm or bias, hard-swish, dropout, classifier."""

    def __init__(self, plan: Plan, num_classes: int, pool_type: str, drop_rate: float, **dd: Any) -> None:
        super().__init__()
        conv = plan.layer("conv")
        assert isinstance(conv, Conv)
        self.global_pool = SelectAdaptivePool2d(pool_type=pool_type)
        self.conv = nn.Conv2d(conv.inp.channels, conv.out.channels, 1, bias=False, **dd)
        self.act = create_act_layer("hard_swish")
        self.flatten = nn.Flatten(1) if pool_type else nn.Identity()
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Linear(conv.out.channels, num_classes, **dd) if num_classes else nn.Identity()

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace the classifier and, if named, the pooling."""
        if pool_type is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=pool_type)
            self.flatten = nn.Flatten(1) if pool_type else nn.Identity()
        like = self.conv.weight
        dd: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.fc = nn.Linear(self.conv.out_channels, num_classes, **dd) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify features of shape (N, C, H, W)."""
        x = self.drop(self.flatten(self.act(self.conv(self.global_pool(x)))))
        return x if pre_logits else self.fc(x)


class MobileNetV3(StudentNet):
    """A MobileNetV3 of one architecture; see `StudentNet` for the parameters."""

    cfg: MobileNetV3Family

    def _build_stem(self, plan: Plan, **dd: Any) -> nn.Module:
        return Stem(plan, **dd)

    def _build_block(self, plan: Plan, stage: int, **dd: Any) -> nn.Module:
        return InvertedBottleneck(plan, nn.Hardswish if self.cfg.hard_swish[stage] else nn.ReLU, **dd)

    def _build_neck(self, plan: Plan, **dd: Any) -> nn.Module:
        return build_conv_norm(plan.part("neck"), act=nn.Hardswish, **dd)

    def _build_head(self, plan: Plan, global_pool: str, **dd: Any) -> nn.Module:
        return Head(plan.part("head"), self.num_classes, global_pool, self.drop_rate, **dd)

    def _head_channels(self, plan: Plan) -> int:
        return self.cfg.head_width


class DynMobileNetV3(Supernet, MobileNetV3):
    """A MobileNetV3 supernet; see `Supernet` for the parameters."""

    student_type = MobileNetV3


MOBILENETV3 = MobileNetV3Family(
    student="proard_mobilenetv3",
    space=SearchSpace(depths=(2, 3, 4), base_depths=(0, 0, 0, 0, 0), expand_ratios=(3, 4, 6), kernel_sizes=(3, 5, 7)),
    widths=(24, 40, 80, 112, 160),
    strides=(1, 2, 2, 1, 2),
    hard_swish=(False, False, True, True, True),
    squeeze=(False, True, False, True, True),
)


MOBILENETV3_224 = dataclasses.replace(
    MOBILENETV3,
    student="proard_mobilenetv3_224",
    strides=(2, 2, 2, 1, 2),
    stem_stride=2,
    img_size=(224, 224),
    norm_mean=IMAGENET_DEFAULT_MEAN,
    norm_std=IMAGENET_DEFAULT_STD,
)

default_cfgs = generate_default_cfgs(
    {
        f"{prefix}{name}.untrained": cfg
        for name, cfg in {
            "mobilenetv3": default_cfg(MOBILENETV3),
            "mobilenetv3_224": default_cfg(MOBILENETV3_224, num_classes=1000),
        }.items()
        for prefix in ("proard_", "proard_dyn_")
    }
)


@register_model
def proard_mobilenetv3(pretrained: bool = False, **kwargs: Any) -> MobileNetV3:
    """One student of Dyn-MobileNetV3; ``arch`` says which, the largest by default."""
    return build_network(MobileNetV3, "proard_mobilenetv3", MOBILENETV3, pretrained, **kwargs)


@register_model
def proard_mobilenetv3_224(pretrained: bool = False, **kwargs: Any) -> MobileNetV3:
    """One student of `proard_dyn_mobilenetv3_224`; ``arch`` says which, the largest by default."""
    return build_network(MobileNetV3, "proard_mobilenetv3_224", MOBILENETV3_224, pretrained, **kwargs)


@register_supernet
def proard_dyn_mobilenetv3(pretrained: bool = False, **kwargs: Any) -> DynMobileNetV3:
    """Dyn-MobileNetV3 of the paper: 2.18e19 students, 35 to 180 MMACs at 32x32."""
    return build_network(DynMobileNetV3, "proard_dyn_mobilenetv3", MOBILENETV3, pretrained, **kwargs)


@register_supernet
def proard_dyn_mobilenetv3_224(pretrained: bool = False, **kwargs: Any) -> DynMobileNetV3:
    """Dyn-MobileNetV3 for 224x224 images of 1000 classes: the same students with the strides of ImageNet."""
    return build_network(DynMobileNetV3, "proard_dyn_mobilenetv3_224", MOBILENETV3_224, pretrained, **kwargs)
