"""The gradients of a training step: students attacked and taught; they end in the supernet's parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from proard_nas import distributed
from proard_nas._random import derive_seed, process_seed
from proard_nas.attacks import Noise, attack_mode, seeded
from proard_nas.supernets import Architecture, StudentNet, Supernet
from proard_nas.supernets.slicing import leading, part_of
from proard_nas.supernets.supernet import share_statistics, statistics_of

from .jobs import Job, largest_of
from .losses import Batch
from .precision import Precision


class StepRunner:
    """Computes the gradients of training steps.

    Parameters
    ----------
    network : StudentNet
        The supernet, or a network trained alone; gradients are added to its parameters.
    precision : Precision
    compile_fixed : bool, default=False
        Run networks whose architecture does not change (the largest student and the frozen teacher) through
        ``torch.compile``.

    Attributes
    ----------
    teacher, helper : nn.Module or None
        Frozen networks that losses may ask for.
    """

    def __init__(self, network: StudentNet, precision: Precision, compile_fixed: bool = False) -> None:
        self.network, self.precision = network, precision
        self.device = next(network.parameters()).device
        self.teacher: nn.Module | None = None
        self.helper: nn.Module | None = None
        self._prepare = cast(Callable[[nn.Module], nn.Module], torch.compile) if compile_fixed else _as_it_is
        self._prepared: dict[int, nn.Module] = {}

    def gradients(self, job: Job, x: Tensor, y: Tensor) -> Tensor:
        """Add the gradients of the students' mean loss to the network; return the loss, detached.

        Over several processes this is this process's share: the sum of the shares is the loss, and the sum of the
        gradients the gradient, of the joined batch.

        Parameters
        ----------
        job : Job
        x : Tensor of shape (N, C, H, W)
            This process's images, in [0, 1].
        y : Tensor of shape (N,)
        """
        x, y = self.precision.images(x.to(self.device)), y.to(self.device)
        adversarial: dict[int, Tensor | None] = {}
        seed = process_seed(derive_seed(job.seed, "global"), distributed.rank())  # of dropout
        with seeded(seed, self.device):
            batch = self._batch(job, x, y)
            total = self._pass(job, batch, adversarial)
            if job.awp:
                with self._perturbed(job.awp, job.students):
                    total = self._pass(job, batch, adversarial)
        return total

    def _pass(self, job: Job, batch: Batch, adversarial: dict[int, Tensor | None]) -> Tensor:
        """Add every student's gradient; adversarial images are made where they are not there yet."""
        total = torch.zeros((), device=self.device)
        share = len(batch.y) / job.total / len(job.students)
        for i, arch in enumerate(job.students):
            net = self._student(arch, job.budget.batch_norm == "running")
            loss = job.loss_of(arch, largest_of(self.network))
            key = 0 if job.share_attack else i
            with self.precision.autocast(self.device):
                if key not in adversarial:
                    noise = Noise(derive_seed(job.seed, i), job.total, distributed.rank(), distributed.world_size())
                    adversarial[key] = loss.adversarial(net, batch, job.budget, noise)
                value = loss.loss(net, batch, adversarial[key]) * share
            if not job.awp and not job.share_attack:
                adversarial.pop(key)
            value.backward()  # type: ignore[no-untyped-call]
            total += value.detach()
        return total

    def _batch(self, job: Job, x: Tensor, y: Tensor) -> Batch:
        teacher = self.network if job.live_teacher else self.teacher
        logits = None
        if teacher is not None and job.loss.needs_teacher:
            with torch.no_grad(), self.precision.autocast(self.device):
                if job.live_teacher:
                    with attack_mode(self.network, "batch"):
                        logits = self._fixed(self.network)(x)
                else:
                    logits = self._fixed(teacher)(x)
        return Batch(x, y, logits, None if job.live_teacher else teacher, self.helper)

    def _student(self, arch: Architecture, shared_statistics: bool) -> nn.Module:
        """Return what runs an architecture: the network itself where it is the largest."""
        if self._is_largest(arch):
            return self._fixed(self.network)
        assert isinstance(self.network, Supernet)
        student = self.network.student(arch)
        if shared_statistics:
            share_statistics(student, _slices(statistics_of(self.network), statistics_of(student)))
        return student

    def _is_largest(self, arch: Architecture) -> bool:
        return not isinstance(self.network, Supernet) or arch == self.network.space.largest

    def _fixed(self, network: nn.Module) -> nn.Module:
        if id(network) not in self._prepared:
            self._prepared[id(network)] = self._prepare(network)
        return self._prepared[id(network)]

    @contextlib.contextmanager
    def _perturbed(self, gamma: float, students: Sequence[Architecture]) -> Iterator[None]:
        """Move each weight by ``gamma`` times its norm along its gradient inside; gradients start anew.

        Adversarial weight perturbation, Wu et al. 2020, equations 8 to 11, with one step; biases and batch norms stay
        where they are. The norm is that of what the step's students use: a small one is not moved by the size of the
        largest.
        """
        moved = [p for p in self.network.parameters() if p.grad is not None and p.dim() > 1]
        used = self._used(students)
        distributed.sum_in_place([cast(Tensor, p.grad) for p in moved])
        before = [p.detach().clone() for p in moved]
        with torch.no_grad():
            for p in moved:
                gradient = cast(Tensor, p.grad)
                own = torch.where(used[p], p, 0) if p in used else p
                p.add_(gradient * (gamma * own.norm() / gradient.norm().clamp(min=1e-12)))
        self.network.zero_grad(set_to_none=True)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, old in zip(moved, before, strict=True):
                    p.copy_(old)

    def _used(self, students: Sequence[Architecture]) -> dict[Tensor, Tensor]:
        """Return which elements of the weights any of the students takes; nothing where one takes them all."""
        if any(self._is_largest(arch) for arch in students):
            return {}
        own, used = dict(self.network.named_parameters()), dict[Tensor, Tensor]()
        for arch in students:
            for place, layer in self.network.plan(arch).layers():
                for name, shape in layer.shapes.items():
                    p = own.get(f"{place}.{name}")
                    if p is None or p.dim() == 1:  # another architecture's, or not moved
                        continue
                    if p not in used:
                        used[p] = torch.zeros_like(p, dtype=torch.bool)
                    part_of(used[p], shape).fill_(True)
        return used


def reduce_gradients(network: nn.Module, loss: Tensor, *flags: bool) -> tuple[float, tuple[bool, ...]]:
    """Sum gradients, the loss and flags over the processes, in one collective call.

    Parameters
    ----------
    network : nn.Module
        The same parameters have gradients in every process.
    loss : Tensor, scalar
    *flags : bool

    Returns
    -------
    (float, tuple of bool)
        The summed loss, and whether each flag is set in any process.
    """
    if not distributed.is_on():
        return float(loss), flags
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    extra = torch.tensor([float(loss), *map(float, flags)], device=loss.device)
    distributed.sum_in_place([*gradients, extra])
    return float(extra[0]), tuple(bool(flag > 0) for flag in extra[1:])


def _slices(full: dict[str, Tensor], part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return views of the leading slices of the full statistics: a student that has them writes the supernet's."""
    return {
        name: leading(full[name], tuple(value.shape)) if value.dim() else full[name] for name, value in part.items()
    }


def _as_it_is(network: nn.Module) -> nn.Module:
    return network
