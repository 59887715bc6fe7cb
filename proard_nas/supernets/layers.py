"""A network's shape as data: the layers an architecture has, their costs and their tensors."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping

Size = tuple[int, int]
Axes = tuple["Axis | None", ...]


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to a multiple of ``divisor``, never more than 10 % below the value.

    Examples
    --------
    >>> make_divisible(64 * 0.65), make_divisible(18), make_divisible(3)
    (40, 24, 8)
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclasses.dataclass(frozen=True)
class Axis:
    """A set of channels that several tensors share, such as the output of one stage.

    Parameters
    ----------
    name : str
        Unique in the network; tensors whose axes have the same name are permuted together.
    channels : int
        How many channels this architecture has of it.
    dimension : str, default=''
        The dimension of the search space that makes it elastic (``'width_mult'`` or
        ``'expand_ratio'``); empty where its order is fixed (image channels, classes).
    """

    name: str
    channels: int
    dimension: str = ""


@dataclasses.dataclass(frozen=True)
class Conv:
    """A square convolution, padded by half its kernel (even kernels are patches: no padding).

    Parameters
    ----------
    inp, out : Axis
        Input and output channels; a depthwise convolution has the same axis twice.
    kernel_size, stride : int, default=1
        In pixels.
    size : tuple of int
        Height and width of its *input*, for the count of multiply-accumulates.
    depthwise, bias : bool, default=False
        One filter for each channel; an additive term.
    gate : bool, default=False
        It only weighs channels (squeeze and excitation), on 1x1 inputs: not a feature, and not
        counted when channels are ranked by the weights that read them.
    """

    inp: Axis
    out: Axis
    size: Size
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    bias: bool = False
    gate: bool = False

    @property
    def padding(self) -> int:
        """Pixels of zero padding on each side."""
        return self.kernel_size // 2 if self.kernel_size % 2 else 0

    @property
    def out_size(self) -> Size:
        """Height and width of the output."""
        height, width = ((n + 2 * self.padding - self.kernel_size) // self.stride + 1 for n in self.size)
        return height, width

    @property
    def groups(self) -> int:
        """Groups of the convolution."""
        return self.inp.channels if self.depthwise else 1

    @property
    def params(self) -> int:
        """Number of parameters."""
        return self.out.channels * (self.inp.channels // self.groups * self.kernel_size**2 + self.bias)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image (the bias is not counted)."""
        return (self.params - self.bias * self.out.channels) * math.prod(self.out_size)

    @functools.cached_property
    def axes(self) -> dict[str, Axes]:
        """For each tensor of the layer, the axis of each of its dimensions (None: not channels)."""
        weight = (self.out, None if self.depthwise else self.inp, None, None)
        return {"weight": weight} | ({"bias": (self.out,)} if self.bias else {})

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of the layer."""
        weight = (self.out.channels, self.inp.channels // self.groups, self.kernel_size, self.kernel_size)
        return {"weight": weight} | ({"bias": weight[:1]} if self.bias else {})

    @functools.cached_property
    def attributes(self) -> dict[str, object]:
        """The attributes of the torch module that depend on the architecture."""
        return {
            "in_channels": self.inp.channels,
            "out_channels": self.out.channels,
            "kernel_size": (self.kernel_size, self.kernel_size),
            "padding": (self.padding, self.padding),
            "_reversed_padding_repeated_twice": (self.padding,) * 4,
            "groups": self.groups,
        }


@dataclasses.dataclass(frozen=True)
class Norm:
    """A batch norm over an axis; counts parameters, no multiply-accumulates."""

    axis: Axis
    macs = 0

    @property
    def params(self) -> int:
        """Scale and shift."""
        return 2 * self.axis.channels

    @functools.cached_property
    def axes(self) -> dict[str, Axes]:
        """As `Conv.axes`, running statistics included."""
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (self.axis,))

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """As `Conv.shapes`."""
        return dict.fromkeys(self.axes, (self.axis.channels,))

    @functools.cached_property
    def attributes(self) -> dict[str, object]:
        """As `Conv.attributes`."""
        return {"num_features": self.axis.channels}


@dataclasses.dataclass(frozen=True)
class Linear:
    """A fully connected layer applied once for each image."""

    inp: Axis
    out: Axis
    bias: bool = True

    @property
    def params(self) -> int:
        """Number of parameters."""
        return self.out.channels * (self.inp.channels + self.bias)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.out.channels * self.inp.channels

    @functools.cached_property
    def axes(self) -> dict[str, Axes]:
        """As `Conv.axes`."""
        return {"weight": (self.out, self.inp)} | ({"bias": (self.out,)} if self.bias else {})

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """As `Conv.shapes`."""
        return {name: tuple(axis.channels for axis in axes if axis) for name, axes in self.axes.items()}

    @functools.cached_property
    def attributes(self) -> dict[str, object]:
        """As `Conv.attributes`."""
        return {"in_features": self.inp.channels, "out_features": self.out.channels}


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """A maximum over square windows, padded by half of them; it has no parameters and counts nothing.

    Parameters
    ----------
    out : Axis
        Its channels, those that it reads.
    size : tuple of int
        Height and width of its *input*.
    kernel_size, stride : int, default=3, 2
        In pixels.
    """

    out: Axis
    size: Size
    kernel_size: int = 3
    stride: int = 2
    params = 0
    macs = 0

    @property
    def out_size(self) -> Size:
        """Height and width of the output."""
        height, width = ((n + 2 * (self.kernel_size // 2) - self.kernel_size) // self.stride + 1 for n in self.size)
        return height, width

    @property
    def axes(self) -> dict[str, Axes]:
        """As `Conv.axes`: there are no tensors."""
        return {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """As `Conv.shapes`."""
        return {}

    @property
    def attributes(self) -> dict[str, object]:
        """As `Conv.attributes`."""
        return {}


Layer = Conv | Norm | Linear | MaxPool


class Plan(Mapping[str, "Plan | Layer"]):
    """The layers of a network or of a part of it, under the names its module gives them.

    A plan is a pure function's result: the network is built from it, its costs are summed
    over it, and the tensors of a student are sliced by it. It must not be changed.

    Parameters
    ----------
    parts : mapping of str to Plan or layer

    Examples
    --------
    >>> image, hidden = Axis('image', 3), Axis('hidden', 8)
    >>> plan = Plan({'conv': Conv(image, hidden, (4, 4), 3), 'bn': Norm(hidden)})
    >>> plan.params, plan.macs
    (232, 3456)
    """

    __slots__ = ("_parts", "macs", "params")

    def __init__(self, parts: Mapping[str, Plan | Layer]) -> None:
        self._parts = dict(parts)
        self.macs: int = sum(part.macs for part in self._parts.values())
        self.params: int = sum(part.params for part in self._parts.values())

    def __getitem__(self, name: str) -> Plan | Layer:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def part(self, name: str) -> Plan:
        """Return a sub-plan by name."""
        part = self._parts[name]
        if not isinstance(part, Plan):
            raise TypeError(f"{name!r} is a layer, not a part of several layers")
        return part

    def layer(self, name: str) -> Layer:
        """Return a layer by its name in this plan."""
        part = self._parts[name]
        if isinstance(part, Plan):
            raise TypeError(f"{name!r} is a part of several layers, not a layer")
        return part

    def layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """Yield every layer with its dotted name, in order."""
        for name, part in self._parts.items():
            if isinstance(part, Plan):
                yield from part.layers(f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", part


def conv_norm(inp: Axis, out: Axis, size: Size, kernel_size: int = 1, stride: int = 1, depthwise: bool = False) -> Plan:
    """Plan a convolution followed by batch norm, under timm's names ``conv`` and ``bn``."""
    conv = Conv(inp, out, size, kernel_size, stride, depthwise)
    return Plan({"conv": conv, "bn": Norm(out)})


def out_size(part: Plan, name: str = "conv") -> Size:
    """Return the output size of the named convolution of a plan."""
    layer = part.layer(name)
    if not isinstance(layer, Conv):
        raise TypeError(f"{name!r} is no convolution")
    return layer.out_size


def last_features(part: Plan) -> Conv | MaxPool:
    """Return the last layer of a plan that makes feature maps."""
    makers = (layer for _, layer in part.layers() if isinstance(layer, MaxPool | Conv))
    return [layer for layer in makers if isinstance(layer, MaxPool) or not layer.gate][-1]
