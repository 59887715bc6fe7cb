"""One slicing rule for every network: a student's tensor is the leading slice of the supernet's.

The exception is an elastic kernel: a smaller depthwise kernel is the centre of the next larger
one, transformed by a learned matrix (`KernelConv2d`).
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Layer, Plan

HOOKS = tuple(name for name, value in nn.Module().__dict__.items() if type(value) is OrderedDict)


class KernelConv2d(nn.Conv2d):
    """A depthwise convolution whose kernel can shrink, with one learned matrix for each smaller size.

    The matrix for size k maps the k*k centre of the next larger kernel (flattened) to the kernel
    of size k; it is shared by all channels and starts as the identity.
    """

    student_type = nn.Conv2d

    @classmethod
    def wrap(cls, conv: nn.Conv2d, kernel_sizes: Sequence[int]) -> KernelConv2d:
        """Give an existing depthwise convolution the matrices for the smaller kernel sizes."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.__dict__.update({k: v for k, v in conv.__dict__.items() if k != "_parameters"})
        for name, parameter in conv._parameters.items():
            new.register_parameter(name, parameter)
        for size in sorted(kernel_sizes, reverse=True)[1:]:
            eye = torch.eye(size * size, device=conv.weight.device, dtype=conv.weight.dtype)
            new.register_parameter(f"transform_{size}", nn.Parameter(eye))
        return new

    def chain(self, size: int) -> list[nn.Parameter]:
        """Return the matrices that lead from the largest kernel to the given size, in order."""
        matrices = (p for name, p in self._parameters.items() if p is not None and name.startswith("transform_"))
        return [matrix for matrix in matrices if len(matrix) >= size * size]


def shrink_kernel(channels: int, weight: Tensor, *matrices: Tensor) -> Tensor:
    """Return the first channels of a depthwise weight, shrunk once for each matrix.

    Parameters
    ----------
    channels : int
    weight : Tensor of shape (C, 1, K, K)
    *matrices : Tensor of shape (k*k, k*k)
        From the larger to the smaller kernel.

    Returns
    -------
    Tensor of shape (channels, 1, k, k)
    """
    weight = weight[:channels]
    for matrix in matrices:
        size = round(matrix.shape[0] ** 0.5)
        centre = part_of(weight, (channels, 1, size, size))
        weight = F.linear(centre.reshape(channels, -1), matrix).reshape(channels, 1, size, size)
    return weight.clone() if not matrices else weight


class _LeadingSlices(torch.autograd.Function):
    """Dense leading slices; the gradient lands in the full tensor, zero outside the slice."""

    @staticmethod
    def forward(ctx: Any, shapes: Sequence[tuple[int, ...]], *full: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.full = full
        return tuple(dense_slice(t, shape) for t, shape in zip(full, shapes, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        return None, *(
            _pad(grad, full) if need and grad is not None else None
            for grad, full, need in zip(grads, ctx.full, needed, strict=True)
        )


class _Recomputed(torch.autograd.Function):
    """A cheap function computed again in each backward pass, so that there can be several."""

    @staticmethod
    def forward(ctx: Any, fn: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.fn, ctx.tensors, ctx.versions = fn, tensors, [t._version for t in tensors]
        return fn(*(t.detach() for t in tensors))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.versions != [t._version for t in ctx.tensors]:
            raise RuntimeError("the supernet's kernels changed after this live student was made; make it again")
        leaves = [t.detach().requires_grad_() for t in ctx.tensors]
        with torch.enable_grad():
            result = ctx.fn(*leaves)
        return None, *torch.autograd.grad(result, leaves, grads)


def leading(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the view of a tensor's leading slice of the given shape."""
    for dim, (have, want) in enumerate(zip(tensor.shape, shape, strict=True)):
        if want != have:
            tensor = tensor.narrow(dim, 0, want)
    return tensor


def part_of(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the view of what a student's tensor is made from: leading channels, and the centre of a larger kernel."""
    view = leading(tensor, (*shape[:2], *tensor.shape[2:]))
    for dim in range(2, tensor.dim()):
        view = view.narrow(dim, (tensor.shape[dim] - shape[dim]) // 2, shape[dim])
    return view


def dense_slice(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a leading slice without gaps: a view where only the first dimension shrinks, else a copy."""
    if tensor.shape[1:] == shape[1:]:
        return tensor.narrow(0, 0, shape[0])
    return copy_slice(tensor, shape)


def copy_slice(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a dense copy of a leading slice, in the memory format of the full tensor."""
    last = tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return leading(tensor, shape).clone(memory_format=torch.channels_last if last else torch.contiguous_format)


def _pad(grad: Tensor, full: Tensor) -> Tensor:
    if grad.shape == full.shape:
        return grad
    padded = torch.zeros_like(full)
    leading(padded, grad.shape).copy_(grad)
    return padded


def _has_parameters(module: nn.Module) -> bool:
    own = any(parameter is not None for parameter in module._parameters.values())
    return own or any(child is not None and _has_parameters(child) for child in module._modules.values())


class LiveStudent:
    """Builds a live student: the supernet's module tree cloned without its tensors, then filled with slices.

    Parameters
    ----------
    supernet : nn.Module
        Its tensors are sliced; hooks registered on its modules are left behind.
    plan : Plan
        The student's layers.

    Attributes
    ----------
    module : nn.Module
        The student.
    """

    def __init__(self, supernet: nn.Module, plan: Plan) -> None:
        self._slots: list[tuple[dict[str, Any], str, Tensor, tuple[int, ...]]] = []
        self._statistics: list[tuple[dict[str, Any], str, Tensor]] = []
        self._counters: list[dict[str, Any]] = []
        self.module = self._clone(supernet, plan)
        if self._slots:
            _, _, full, shapes = zip(*self._slots, strict=True)
            for slot, value in zip(self._slots, _LeadingSlices.apply(shapes, *full), strict=True):
                slot[0][slot[1]] = value
        if self._counters:
            self._fill_statistics()

    def _fill_statistics(self) -> None:
        """Give each batch norm its own statistics, all of them parts of two tensors: cheap to make."""
        views = [view for *_, view in self._statistics]
        parts = torch.split(torch.cat(views), [len(view) for view in views])
        for (buffers, name, _), value in zip(self._statistics, parts, strict=True):
            buffers[name] = value
        zeros = torch.zeros(len(self._counters), dtype=torch.long, device=views[0].device)
        for buffers, zero in zip(self._counters, zeros.unbind(), strict=True):
            buffers["num_batches_tracked"] = zero

    def _clone(self, module: nn.Module, part: Plan | Layer | None) -> nn.Module:
        kind = getattr(type(module), "student_type", type(module))
        new: nn.Module = object.__new__(kind)
        state = module.__dict__.copy()
        for name in HOOKS:  # they belong to the module they were registered on
            state[name] = OrderedDict()
        state["_modules"] = self._children(module, part) if module._modules else {}
        if part is None or isinstance(part, Plan):
            state["_parameters"] = dict.fromkeys(module._parameters)
            state["_buffers"] = {k: None if b is None else b.clone() for k, b in module._buffers.items()}
        else:
            state.update(part.attributes)
            state["_parameters"], state["_buffers"] = self._tensors(module, part)
        object.__setattr__(new, "__dict__", state)
        return new

    def _children(self, module: nn.Module, part: Plan | Layer | None) -> dict[str, nn.Module | None]:
        children: dict[str, nn.Module | None] = {}
        for name, child in module._modules.items():
            sub = part.get(name) if isinstance(part, Plan) else None
            if child is not None and (sub is not None or not _has_parameters(child)):
                children[name] = self._clone(child, sub)
            elif not isinstance(module, nn.Sequential):
                children[name] = None
        return children

    def _tensors(self, module: nn.Module, layer: Layer) -> tuple[dict[str, Any], dict[str, Any]]:
        parameters: dict[str, Any] = {}
        buffers: dict[str, Any] = {}
        shapes = layer.shapes
        for name, full in module._parameters.items():
            shape = shapes.get(name)
            if full is None or (shape and full.shape == shape):
                parameters[name] = full
            elif shape and isinstance(module, KernelConv2d) and shape[-1] != full.shape[-1]:
                rule = functools.partial(shrink_kernel, shape[0])
                parameters[name] = _Recomputed.apply(rule, full, *module.chain(shape[-1]))
            elif shape:
                self._slots.append((parameters, name, full, shape))
                parameters[name] = None  # keeps the order of the module's own
        for name, buffer in module._buffers.items():
            buffers[name] = None
            if buffer is None:
                continue
            if name == "num_batches_tracked":
                self._counters.append(buffers)
            else:
                self._statistics.append((buffers, name, buffer.narrow(0, 0, shapes[name][0])))
        return parameters, buffers
