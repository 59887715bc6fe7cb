"""Channel sorting: the most important channels first, the network's function unchanged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from proard_nas._errors import unknown_name

from .layers import Axis, Conv, Linear, Plan

Place = tuple[str, int]


def sort_channels(
    network: nn.Module, plan: Plan, dimensions: Sequence[str] = ("expand_ratio",)
) -> dict[str, list[tuple[int, Tensor]]]:
    """Reorder the channels of elastic axes by the L1 norm of the weights that read them.

    Every tensor that shares an axis is permuted alike, so the largest network computes the
    same function (up to the order of its sums).

    Parameters
    ----------
    network : nn.Module
        A supernet, changed in place.
    plan : Plan
        The plan of its largest architecture.
    dimensions : sequence of {'expand_ratio', 'width_mult'}, default=('expand_ratio',)
        Which axes are reordered: middle channels of blocks, or outputs of stem and stages.

    Returns
    -------
    dict of str to list of (int, Tensor)
        For each tensor that changed, the dimension and the order it was indexed with, so that
        momentum or averages of the same tensors can follow.

    Notes
    -----
    The importance is that of Once-for-All (Cai et al. 2020, section 3.2).
    """
    for name in dimensions:
        if name not in ("expand_ratio", "width_mult"):
            raise unknown_name("dimension to sort", name, ("expand_ratio", "width_mult"))
    readers, places = _index(plan)
    done: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    with torch.no_grad():
        for axis, owners in places.items():
            if axis.dimension not in dimensions or not readers[axis]:
                continue
            order = _importance(tensors, readers[axis]).argsort(descending=True, stable=True)
            for name, dim in owners:
                tensors[name].copy_(tensors[name].index_select(dim, order))
                done[name].append((dim, order))
    return dict(done)


def _index(plan: Plan) -> tuple[dict[Axis, list[str]], dict[Axis, list[Place]]]:
    """Return, for each axis, the weights that read it and every place where it stands."""
    readers: dict[Axis, list[str]] = defaultdict(list)
    gates: dict[Axis, list[str]] = defaultdict(list)
    places: dict[Axis, list[Place]] = defaultdict(list)
    for name, layer in plan.layers():
        if isinstance(layer, Linear) or (isinstance(layer, Conv) and not layer.depthwise):
            own = gates if isinstance(layer, Conv) and layer.gate else readers
            own[layer.inp].append(f"{name}.weight")
        for tensor, axes in layer.axes.items():
            for dim, axis in enumerate(axes):
                if axis is not None and axis.dimension:
                    places[axis].append((f"{name}.{tensor}", dim))
    # A gate does not say how important features are, but how important what is within it.
    return gates | readers, places


def _importance(tensors: dict[str, Tensor], weights: Sequence[str]) -> Tensor:
    return torch.stack([tensors[name].abs().transpose(0, 1).flatten(1).sum(1) for name in weights]).sum(0)
