"""Keeps a training's state: in memory to return to after a failure, on disk to go on from."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from proard_nas import distributed
from proard_nas.supernets import StudentNet, Supernet

from .accounting import Ledger
from .checkpoint import CheckpointError, CheckpointStore
from .precision import Precision
from .state import State, Tensors, copied, load_momentum, momentum_of, prefixed, without_prefix
from .step import StepRunner

logger = logging.getLogger(__name__)


class Keeper:
    """Holds everything that training changes, and copies of it.

    Parameters
    ----------
    network : StudentNet
    runner : StepRunner
        Its teacher and helper are part of the state.
    ema_decay : float
        0 keeps no averaged weights.
    store : CheckpointStore or None
    seconds : float
        Longest time between two checkpoints.

    Attributes
    ----------
    state : State
    ledger : Ledger
    optimizer : torch.optim.Optimizer or None
        Its momentum is part of the state.
    ema : ModelEmaV3 or None
    kept : dict of str to tensors
        Of which no module is the owner: ``best``, ``initial``, and ``momentum`` while there is no optimizer.
    """

    def __init__(
        self, network: StudentNet, runner: StepRunner, ema_decay: float, store: CheckpointStore | None, seconds: float
    ) -> None:
        self.network, self.runner, self.ema_decay, self.store, self.seconds = network, runner, ema_decay, store, seconds
        self.own_teacher = runner.teacher is not None
        self.state, self.ledger = State(), Ledger()
        self.optimizer: torch.optim.Optimizer | None = None
        self.ema: ModelEmaV3 | None = None
        self.kept: dict[str, Tensors] = {}
        self._good: tuple[Tensors, dict[str, Any]] = ({}, {})
        self._good_is_stored = True
        self._saved_at = time.monotonic()

    @property
    def averaged(self) -> nn.Module:
        """The network as it would be used now: averaged, where an average is kept."""
        return self.network if self.ema is None else self.ema.module

    def start_average(self) -> None:
        """Start the moving average from the weights as they are, where one is wanted."""
        self.ema = ModelEmaV3(self.network, self.ema_decay, use_warmup=True) if self.ema_decay else None

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Use an optimizer from now on, with the momentum that was kept, if any."""
        self.optimizer = optimizer
        load_momentum(optimizer, self.network, self.kept.pop("momentum", {}))

    def end_stage(self) -> None:
        """Take the stage's best weights, or the averaged ones; forget its optimizer and average."""
        best = self.kept.pop("best", None)
        if best is not None:
            self.network.load_state_dict(best)
        elif self.ema is not None:
            self.network.load_state_dict(self.ema.module.state_dict())
        self.optimizer, self.ema = None, None
        self.kept.pop("momentum", None)

    def keep_best(self, figure: float, natural: float, n_images: int, **facts: Any) -> None:
        """Keep the network as it would be used now, if it is the best of its stage.

        The one-standard-error rule (Breiman et al. 1984, section 3.4.3): among weights whose figure is within one
        standard error of the stage's highest, which so few images cannot tell from it, those of the highest natural
        accuracy are the best, and of equal ones the later.

        Parameters
        ----------
        figure, natural : float
            What weights are chosen by, and natural accuracy, in [0, 1], of the same ``n_images``.
        """
        best = self.state.best
        highest = figure if best is None else max(figure, best["highest"])
        least = highest - math.sqrt(highest * (1 - highest) / n_images)
        if best is None or best["figure"] < least or (figure >= least and natural >= best["natural"]):
            self.state.best = {"figure": figure, "natural": natural, "highest": highest, **facts}
            self.kept["best"] = copied(dict(self.averaged.state_dict()))
        else:
            best["highest"] = highest

    # -- returning ----------------------------------------------------------------------------

    def remember(self) -> None:
        """Make the present state the one to return to after a failure."""
        self._good = (copied(self._changing()) | self._fixed(), self._state_dict())
        self._good_is_stored = False

    def return_to_good(self) -> None:
        """Return to the state that was remembered; what was spent stays spent."""
        ledger = self.ledger
        self._load(*self._good)
        self.ledger = ledger

    # -- checkpoints --------------------------------------------------------------------------

    def restore(self) -> bool:
        """Go on from the store's newest checkpoint, if there is one; return whether there is."""
        found = self.store.load() if self.store else None
        if found is None or self.store is None:
            return False
        Precision(**found[1]["precision"]).prepare(self.network)  # so that copies of it are in this layout, too
        self._load(*found)
        try:
            self._good = self.store.load(good=True) or found
        except CheckpointError as error:
            logger.warning("%s; a return after a failure goes to the newest checkpoint", error)
            self._good = found
        return True

    def save_if_due(self) -> None:
        """Write a checkpoint if the last one is old enough."""
        if time.monotonic() - self._saved_at >= self.seconds:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, and before it the state to return to if that is not on disk."""
        if self.store is None or not distributed.is_main():
            return
        state, (tensors, good) = self._state_dict(), self._good
        if not self._good_is_stored:
            self.store.save(tensors, good, good=True)
            self._good_is_stored = True
        if state != good:
            self.store.save(self._changing() | self._fixed(), state)
        self._saved_at = time.monotonic()

    # -- what the state is --------------------------------------------------------------------

    def _changing(self) -> Tensors:
        """Return the tensors that training changes in place, by name; they are not copies."""
        tensors = prefixed("network", dict(self.network.state_dict()))
        if self.ema is not None:
            tensors |= prefixed("ema", dict(self.ema.module.state_dict()))
        if self.optimizer is not None:
            tensors |= prefixed("momentum", momentum_of(self.optimizer, self.network))
        return tensors

    def _fixed(self) -> Tensors:
        """Return the other tensors of the state, by name."""
        teacher = None if self.own_teacher else self.runner.teacher
        tensors: Tensors = {}
        for name, module in (("teacher", teacher), ("helper", self.runner.helper)):
            tensors |= prefixed(name, dict(module.state_dict())) if module is not None else {}
        for name, values in self.kept.items():
            tensors |= prefixed(name, values)
        return tensors

    def _state_dict(self) -> dict[str, Any]:
        self.state.ledger = self.ledger.to_dict()
        return self.state.to_dict()

    def _load(self, tensors: Tensors, state: dict[str, Any]) -> None:
        self.state = State.from_dict(state)
        self.ledger = Ledger.from_dict(self.state.ledger)
        self.network.load_state_dict(without_prefix("network", tensors))
        kept = {name: without_prefix(name, tensors) for name in ("best", "initial", "momentum")}
        self.kept = {name: found for name, found in kept.items() if found}
        for name in ("teacher", "helper"):
            self._load_frozen(name, without_prefix(name, tensors))
        averaged = without_prefix("ema", tensors)
        self.ema, self.optimizer = None, None
        if averaged:
            self.start_average()
            self.averaged.load_state_dict(averaged)

    def _load_frozen(self, name: str, tensors: Tensors) -> None:
        if tensors:
            network = getattr(self.runner, name) or frozen(self.network)
            network.load_state_dict(tensors)
            setattr(self.runner, name, network)


def frozen(network: StudentNet) -> nn.Module:
    """Return a copy of the largest student that no longer learns, in eval mode."""
    if isinstance(network, Supernet):
        return network.extract(network.space.largest).eval().requires_grad_(False)
    return copy.deepcopy(network).eval().requires_grad_(False)


@contextlib.contextmanager
def dropout(network: StudentNet, rate: float) -> Iterator[None]:
    """Set the dropout before the classifier inside the block."""
    before, network.head.drop.p = network.head.drop.p, rate
    try:
        yield
    finally:
        network.head.drop.p = before
