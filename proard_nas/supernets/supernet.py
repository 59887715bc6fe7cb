"""The supernet: the largest student of a family, which makes every other student from its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from timm.models import create_model
from torch import Tensor, nn

from . import sorting
from .architecture import Architecture
from .family import Family
from .layers import Conv
from .network import StudentNet
from .slicing import KernelConv2d, LiveStudent
from .space import SearchSpace

Statistics = Mapping[str, Tensor]

if TYPE_CHECKING:
    _Base = StudentNet
else:
    _Base = object


class Supernet(_Base):
    """Mixin that turns a family's network into its supernet.

    The supernet is the family's largest network, an ordinary timm model. Each of its students
    is the same network built smaller, its tensors leading slices of the supernet's.

    Parameters
    ----------
    cfg : Family
    depths, width_mults, expand_ratios, kernel_sizes : sequence, default=None
        Choices in place of the family's own.
    num_classes, in_chans, drop_rate, global_pool, norm_mean, norm_std, device, dtype
        See `StudentNet`.

    Attributes
    ----------
    space : SearchSpace
        The choices; ``space.sample(seed=0)`` draws an architecture.
    active : Architecture
        The student that ``forward`` runs, by default the largest.

    Examples
    --------
    >>> import timm, torch, proard_nas
    >>> net = timm.create_model('proard_dyn_resnet_tiny').eval()
    >>> arch = net.space.sample(seed=0)
    >>> images = torch.rand(2, 1, 8, 8)
    >>> torch.equal(net.student(arch)(images), net.extract(arch).eval()(images))
    True
    """

    student_type: ClassVar[type[StudentNet]]

    def __init__(
        self,
        cfg: Family,
        *,
        depths: Sequence[int] | None = None,
        width_mults: Sequence[float] | None = None,
        expand_ratios: Sequence[float] | None = None,
        kernel_sizes: Sequence[int] | None = None,
        **network: Any,
    ) -> None:
        if "arch" in network:
            raise TypeError(f"{type(self).__name__} takes no 'arch': it is the largest student of its choices")
        lists = {
            "depths": depths,
            "width_mults": width_mults,
            "expand_ratios": expand_ratios,
            "kernel_sizes": kernel_sizes,
        }
        space = _with_choices(cfg.space, {k: tuple(v) for k, v in lists.items() if v is not None})
        super().__init__(dataclasses.replace(cfg, space=space), **network)
        self.space: SearchSpace = space
        self._active: Architecture | None = None
        self._active_statistics: dict[str, Tensor] = {}
        self._make_kernels_elastic()
        self.register_load_state_dict_post_hook(_forget_active_statistics)  # type: ignore[no-untyped-call]

    def _make_kernels_elastic(self) -> None:
        if len(self.space.kernel_sizes) < 2:
            return
        for name, layer in self.plan().part("stages").layers("stages."):
            if isinstance(layer, Conv) and layer.depthwise and layer.kernel_size == max(self.space.kernel_sizes):
                parent, _, child = name.rpartition(".")
                owner = self.get_submodule(parent)
                setattr(owner, child, KernelConv2d.wrap(getattr(owner, child), self.space.kernel_sizes))

    # -- students -----------------------------------------------------------------------------

    def student(self, arch: Architecture, statistics: Statistics | None = None) -> StudentNet:
        """Return a live student: its tensors are slices that gradients flow back through.

        The slices are taken once, now; after the supernet's weights change, make it again. It
        is in the same mode (train or eval), module for module, as the supernet. Its batch norm
        statistics are its own.

        Parameters
        ----------
        arch : Architecture
        statistics : mapping of str to Tensor, default=None
            Batch norm statistics to start from, as `statistics_of` returns them. By default
            the largest student starts from a copy of the supernet's and any other from their
            leading slices, marked as not calibrated.

        Raises
        ------
        ValueError
            If the architecture is not in the space.
        """
        arch = self.space.validate(_as_architecture(arch))
        plan = self.plan(arch)
        live = LiveStudent(self, plan).module
        assert isinstance(live, StudentNet)
        for name in ("space", "_active", "_active_statistics"):
            del live.__dict__[name]
        live._set_architecture(arch, plan)
        if statistics is None and arch == self.space.largest:
            statistics = statistics_of(self)
        load_statistics(live, statistics or {})
        return live

    def extract(self, arch: Architecture, statistics: Statistics | None = None) -> StudentNet:
        """Return a standalone copy of a student: a plain timm model that shares nothing.

        Parameters
        ----------
        arch, statistics
            As for `student`; the active student brings its own statistics.

        Notes
        -----
        Unless statistics are given, a student other than the largest must be calibrated before
        it is used: its batch norm statistics are slices of the supernet's, which do not fit it.
        """
        arch = _as_architecture(arch)
        if statistics is None and arch == self._active:
            statistics = self._active_statistics
        with torch.no_grad():
            tensors = {k: v.detach().clone() for k, v in self.student(arch, statistics).state_dict().items()}
        with torch.device("meta"):
            student = cast(StudentNet, create_model(self.cfg.student, arch=arch.to_dict(), **self._network_args()))
        student.load_state_dict(tensors, strict=True, assign=True)
        for parameter in student.parameters():
            parameter.requires_grad_(True)
        student.pretrained_cfg = {**student.pretrained_cfg, **self._data_config()}
        student.default_cfg = student.pretrained_cfg
        student.grad_checkpointing = self.grad_checkpointing
        return student.train(self.training)

    def model_args(self) -> dict[str, Any]:
        """Return the JSON-able keyword arguments with which timm builds this supernet again."""
        lists = ("depths", "width_mults", "expand_ratios", "kernel_sizes")
        choices = {name: list(getattr(self.space, name)) for name in lists if getattr(self.space, name)}
        return {**choices, **self._network_args()}

    def _data_config(self) -> dict[str, Any]:
        own = getattr(self, "pretrained_cfg", {})
        return {k: own[k] for k in ("input_size", "pool_size") if k in own}

    def sort_channels(self, dimensions: Sequence[str] = ("expand_ratio",)) -> dict[str, list[tuple[int, Tensor]]]:
        """Reorder channels by importance so that every leading slice holds the most important ones.

        See `sorting.sort_channels`. The largest student's function does not change; any other that is active becomes
        uncalibrated, for its channels are others.
        """
        changed = sorting.sort_channels(self, self.plan(self.space.largest), dimensions)
        if changed:
            _forget_active_statistics(self, None)
        return changed

    # -- the active student -------------------------------------------------------------------

    @property
    def active(self) -> Architecture:
        """The architecture that ``forward`` runs."""
        return self._active or self.space.largest

    def set_active(self, arch: Architecture | None) -> None:
        """Make ``forward`` and its kin run another student; None is the largest.

        The student keeps batch norm statistics of its own while it is active: in training mode
        they follow the batches, and in eval mode they are used. Loading a state and sorting channels make it
        uncalibrated.
        What describes the network stays the largest's: ``arch``, ``cost()`` without an architecture,
        ``num_features``, ``feature_info``. For the student's cost, ask ``cost(net.active)``.
        """
        arch = self.space.largest if arch is None else self.space.validate(_as_architecture(arch))
        self._active = None if arch == self.space.largest else arch
        self._active_statistics = {}
        if self._active:
            with torch.no_grad():
                self._active_statistics = statistics_of(self.student(arch))

    @property
    def active_statistics(self) -> Statistics:
        """The batch norm statistics, by name, that ``forward`` uses; the tensors are the network's own."""
        return self._active_statistics if self._active else statistics_of(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the active student's statistics with everything else."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._active_statistics = {name: fn(value) for name, value in self._active_statistics.items()}
        return self

    def _net(self) -> StudentNet | None:
        if self._active is None:
            return None
        live = self.student(self._active)
        share_statistics(live, self._active_statistics)
        return live

    def forward(self, x: Tensor) -> Tensor:
        """Return the active student's logits; see `StudentNet.forward`."""
        live = self._net()
        return super().forward(x) if live is None else live(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the active student's features; see `StudentNet.forward_features`."""
        live = self._net()
        return super().forward_features(x) if live is None else live.forward_features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify the active student's features; see `StudentNet.forward_head`."""
        live = self._net()
        return super().forward_head(x, pre_logits) if live is None else live.forward_head(x, pre_logits)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the active student's intermediate features; see `StudentNet.forward_intermediates`."""
        live = self._net()
        forward = super().forward_intermediates if live is None else live.forward_intermediates
        return forward(x, *args, **kwargs)


def _forget_active_statistics(supernet: nn.Module, _: object) -> None:
    """Make the active student uncalibrated: its statistics were those of the weights before."""
    assert isinstance(supernet, Supernet)
    supernet.set_active(supernet.active)


def statistics_of(network: nn.Module) -> dict[str, Tensor]:
    """Return the batch norm statistics of a network, by name; the tensors are the network's own."""
    return {
        f"{name}.{key}": buffer
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for key, buffer in module.named_buffers(recurse=False)
    }


def load_statistics(network: nn.Module, statistics: Statistics) -> None:
    """Copy batch norm statistics into a network.

    Raises
    ------
    ValueError
        If a name or shape does not fit; nothing is copied then.
    """
    own = statistics_of(network) if statistics else {}
    wrong = [name for name, value in statistics.items() if name not in own or own[name].shape != value.shape]
    if wrong:
        raise ValueError(f"statistics of another network: {wrong[0]!r} does not fit ({len(wrong)} of them)")
    with torch.no_grad():
        for name, value in statistics.items():
            own[name].copy_(value)


def share_statistics(network: nn.Module, statistics: Statistics) -> None:
    """Make a network use, and update in place, the given statistics."""
    for name, value in statistics.items():
        owner, _, key = name.rpartition(".")
        network.get_submodule(owner)._buffers[key] = value


def is_calibrated(network: nn.Module) -> bool:
    """Tell whether every batch norm of a network has seen at least one batch; of a supernet, the largest student's."""
    return has_seen_images(statistics_of(network))


def has_seen_images(statistics: Statistics) -> bool:
    """Tell whether batch norm statistics are those of at least one batch, all of them."""
    return all(int(value) > 0 for name, value in statistics.items() if name.endswith(".num_batches_tracked"))


def _with_choices(space: SearchSpace, lists: dict[str, Any]) -> SearchSpace:
    for name, values in lists.items():
        if not getattr(space, name):
            own = [n for n in ("depths", "width_mults", "expand_ratios", "kernel_sizes") if getattr(space, n)]
            raise TypeError(f"this network has no {name}={values}; its lists of choices are {own}")
        if not values:
            raise ValueError(f"{name} must list at least one choice")
    return dataclasses.replace(space, **lists)


def _as_architecture(arch: Architecture | Mapping[str, Any]) -> Architecture:
    return Architecture.from_dict(arch) if isinstance(arch, Mapping) else arch
