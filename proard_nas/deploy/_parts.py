"""The parts that all students of a supernet are made of: stem, blocks, neck, head, each different one once."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from timm.models import create_model
from torch import Tensor, nn

from proard_nas.supernets import Architecture, StudentNet, Supernet
from proard_nas.supernets.layers import Conv, Layer, Linear, MaxPool, Plan

PATIENCE = 200  # students in a row that bring nothing new, after which all parts are taken to be known
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a student, told from others by its place and the shapes of its layers.

    Attributes
    ----------
    place : str
        ``'stem'``, ``'head'``, ... or the stage of a block (``'stages.2'``).
    key : str
        The place and every layer with channels, kernel, stride and input size.
    sizes : tuple of int
        What its latency follows: multiply-accumulates of ordinary and of depthwise convolutions,
        parameters, values that its layers write, layers.
    """

    place: str
    key: str
    sizes: tuple[int, ...]

    @property
    def params(self) -> int:
        """Number of parameters."""
        return self.sizes[2]


def parts_of(plan: Plan) -> Iterator[tuple[str, Part]]:
    """Yield the parts of a student, with the names of their modules."""
    for name, part in plan.items():
        if name == "stages":
            for s in plan.part(name):
                for b, block in plan.part(name).part(s).items():
                    yield f"{name}.{s}.{b}", _described(f"{name}.{s}", block)
        else:
            yield name, _described(name, part)


def _described(place: str, part: Plan | Layer) -> Part:
    layers = list(part.layers()) if isinstance(part, Plan) else [("", part)]
    macs = depthwise = values = 0
    for _, layer in layers:
        if isinstance(layer, Conv | MaxPool):
            by_channel = isinstance(layer, Conv) and layer.depthwise
            macs, depthwise = (macs, depthwise + layer.macs) if by_channel else (macs + layer.macs, depthwise)
            values += layer.out.channels * math.prod(layer.out_size)
        elif isinstance(layer, Linear):
            macs, values = macs + layer.macs, values + layer.out.channels
    key = f"{place}: " + ", ".join([f"{name} {_shape(layer)}" for name, layer in layers])
    return Part(place, key, (macs, depthwise, part.params, values, len(layers)))


def _shape(layer: Layer) -> str:
    if isinstance(layer, Conv | MaxPool):
        height, width = layer.size
        kind = f"k{layer.kernel_size}s{layer.stride} at {height}x{width}"
        if isinstance(layer, MaxPool):
            return f"pool {layer.out.channels} {kind}"
        return f"{'dw' * layer.depthwise}{'b' * layer.bias} {layer.inp.channels}>{layer.out.channels} {kind}"
    return f"{layer.inp.channels}>{layer.out.channels}" if isinstance(layer, Linear) else str(layer.axis.channels)


@dataclasses.dataclass
class Found:
    """A part to be measured, and a student that has it under some name."""

    part: Part
    arch: Architecture
    name: str


def find_parts(supernet: Supernet, img_size: tuple[int, int], most: int, seed: int) -> list[Found]:
    """Find the different parts of a supernet's students, at most so many.

    The smallest and the largest student are looked at first, then students drawn uniformly, until
    `PATIENCE` of them in a row have brought nothing new.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Found] = {}
    idle = 0
    for arch in _students(supernet, rng):
        before = len(found)
        for name, part in parts_of(supernet.plan(arch, img_size)):
            if part.key not in found and len(found) < most:
                found[part.key] = Found(part, arch, name)
        idle = 0 if len(found) > before else idle + 1
        if idle >= PATIENCE or len(found) >= most:
            break
    return list(found.values())


def _students(supernet: Supernet, rng: np.random.Generator) -> Iterator[Architecture]:
    yield supernet.space.largest
    yield supernet.space.smallest
    while True:
        yield supernet.space.sample(rng)


def build_parts(
    supernet: Supernet, found: Sequence[Found], img_size: tuple[int, int], batch_size: int
) -> Iterator[tuple[nn.Module, Shape]]:
    """Build the found parts as modules of their own, in order; yield each with the shape of its input.

    A student is built without memory to learn the shapes; only the part asked for gets tensors,
    with random numbers in them, since latency does not depend on the values.
    """
    names: dict[Architecture, list[str]] = {}
    for one in found:
        names.setdefault(one.arch, []).append(one.name)
    for arch, own in names.items():  # a student's parts were found one after the other
        with torch.device("meta"):
            student = create_model(supernet.cfg.student, arch=arch.to_dict(), **supernet._network_args()).eval()
        shapes = _input_shapes(student, own, (batch_size, supernet.in_chans, *img_size))
        for name in own:
            module = student.get_submodule(name).to_empty(device="cpu")
            _fill(module)
            yield module, shapes[name]


def _input_shapes(student: nn.Module, names: Iterable[str], shape: Shape) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}

    def remember(_: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
        shapes[name] = tuple(inputs[0].shape)

    hooks: list[Any] = [
        student.get_submodule(name).register_forward_pre_hook(functools.partial(remember, name=name)) for name in names
    ]
    student(torch.empty(shape, device="meta"))
    for hook in hooks:
        hook.remove()
    return shapes


def _fill(module: nn.Module) -> None:
    """Fill with moderate random numbers: memory as it comes may hold denormal ones, which are slow."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.fill_(1.0)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.05, generator=generator)
        else:
            tensor.fill_(1)


def build_student(supernet: Supernet, arch: Architecture) -> StudentNet:
    """Build a student with random weights, in eval mode; quicker than to extract it, and as fast to run."""
    with torch.device("meta"):
        student = create_model(supernet.cfg.student, arch=arch.to_dict(), **supernet._network_args())
    student = student.to_empty(device="cpu").eval()
    _fill(student)
    return cast(StudentNet, student)
