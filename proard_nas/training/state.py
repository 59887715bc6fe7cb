"""Where training stands: everything a checkpoint holds, as JSON-able values and named tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


@dataclasses.dataclass
class State:
    """The JSON-able part of a training's state; the rest is tensors.

    Attributes
    ----------
    phase, epoch, step : int
        The next step: which stage, epoch of it and batch of that.
    entered : bool
        Whether the stage's preparations (teacher, sorting) are done.
    stopped : bool
        Whether a callback has ended training.
    losses : list of float
        Of the steps so far of the epoch under way; ``images`` were seen in them and ``lr`` was the rate of the first.
    lr_scale : float
        Halved at every return to an earlier state after a failure in the stage; ``rollbacks`` counts these.
    attack_steps : int or None
        Steps of the inner attack after a single-step one has failed in this stage.
    watch, best, precision, ledger : dict
        See `Watch`, `Trainer`, `Precision` and `Ledger`.
    history, events : list of dict
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    entered: bool = False
    stopped: bool = False
    losses: list[float] = dataclasses.field(default_factory=list)
    images: int = 0
    lr: float = 0.0
    lr_scale: float = 1.0
    rollbacks: int = 0
    attack_steps: int | None = None
    watch: dict[str, float] = dataclasses.field(default_factory=dict)
    best: dict[str, Any] | None = None
    precision: dict[str, Any] | None = None
    ledger: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able deep copy."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> State:
        """Build from `to_dict`'s form, which is not kept."""
        return State(**dataclasses.asdict(cls(**data)))


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> Tensors:
    """Return tensors under ``prefix.name``."""
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """Return the tensors that `prefixed` named so, under their own names."""
    start = f"{prefix}."
    return {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}


def copied(tensors: Tensors) -> Tensors:
    """Return copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def momentum_of(optimizer: torch.optim.Optimizer, network: nn.Module) -> Tensors:
    """Return the momentum of each parameter that has one, by the parameter's name."""
    found = {name: optimizer.state.get(p, {}).get("momentum_buffer") for name, p in network.named_parameters()}
    return {name: buffer for name, buffer in found.items() if buffer is not None}


def load_momentum(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Tensors) -> None:
    """Give each named parameter its momentum, in the parameter's own memory layout."""
    parameters = dict(network.named_parameters())
    for name, tensor in tensors.items():
        parameter = parameters[name]
        optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter.detach()).copy_(tensor)
