"""What a family of networks declares: its choices, its constants, its plan, and how timm builds and lists it."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from proard_nas._shipped import PRETRAINED, tag, weights

from .architecture import Architecture
from .layers import Conv, Plan, Size, last_features
from .space import SearchSpace

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SUPERNETS: list[str] = []
Net = TypeVar("Net", bound=nn.Module)
EntryPoint = TypeVar("EntryPoint", bound=Callable[..., nn.Module])


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of networks; derive from it, add the network's constants, and define `plan`.

    Parameters
    ----------
    student : str
        The name under which timm builds one of its students.
    space : SearchSpace
        The choices of the family's supernet.
    img_size : (int, int), default=(32, 32)
        Height and width of the images it was designed for, in pixels. Keyword only.
    norm_mean, norm_std : tuple of float, default=those of CIFAR-10
        Normalisation of colour images, kept inside the network. Keyword only.
    """

    student: str
    space: SearchSpace
    img_size: Size = dataclasses.field(default=(32, 32), kw_only=True)
    norm_mean: tuple[float, ...] = dataclasses.field(default=CIFAR_MEAN, kw_only=True)
    norm_std: tuple[float, ...] = dataclasses.field(default=CIFAR_STD, kw_only=True)

    def plan(self, arch: Architecture, num_classes: int, in_chans: int, img_size: Size) -> Plan:
        """Return the layers of one architecture.

        Parameters
        ----------
        arch : Architecture
        num_classes : int
            0 leaves the classifier out.
        in_chans : int
            Channels of the images.
        img_size : (int, int)
            Height and width of the images, in pixels.

        Returns
        -------
        Plan
            With the parts ``stem``, ``stages`` (numbered stages of numbered blocks) and
            ``head``, and ``neck`` where there is something between the stages and the pooling;
            every layer under the name that its module has in the network.
        """
        raise NotImplementedError(f"{type(self).__name__} must define plan")


def default_cfg(family: Family, in_chans: int = 3, num_classes: int = 10) -> dict[str, Any]:
    """Return timm's configuration of a family's networks; what follows from the plan is read from it.

    Mean and deviation are 0 and 1: normalisation is inside the network.
    """
    plan = family.plan(family.space.largest, num_classes, in_chans, family.img_size)
    return {
        "url": "",
        "num_classes": num_classes,
        "input_size": (in_chans, *family.img_size),
        "pool_size": last_features(plan.part("stages")).out_size,
        "mean": (0.0,) * in_chans,
        "std": (1.0,) * in_chans,
        "crop_pct": 1.0,
        "interpolation": "bilinear",  # as `proard_nas.data.image_transform` resizes
        "first_conv": next(name for name, layer in plan.layers() if isinstance(layer, Conv)),
        "classifier": "head.fc",
        "license": "apache-2.0",
    }


def tagged(name: str, cfg: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a network's name with timm's tag, and its configuration: with the weights that come with the library."""
    if name not in PRETRAINED:
        return f"{name}.untrained", cfg
    return f"{name}.{tag(name)}", {**cfg, "file": weights(name)}


def build_network(cls: type[Net], variant: str, family: Family, pretrained: bool = False, **kwargs: Any) -> Net:
    """Build a student or a supernet as timm does: the body of an entry point.

    Parameters
    ----------
    cls : type
        The family's network, or its supernet.
    variant : str
        The name of the entry point.
    family : Family
    pretrained : bool, default=False
        The weights then come from timm's configuration, and the normalisation with them, unless it is given here or
        has other channels.
    **kwargs
        What timm and the network's constructor take; anything else is a TypeError.
    """
    feature_cfg = {"feature_cls": "getter", "out_indices": tuple(range(1 + family.space.n_stages))}
    given = [f"norm.{name}" for name in ("mean", "std") if kwargs.get(f"norm_{name}") is not None]

    def keep_own_normalisation(state: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
        own = {name: net.get_buffer(name) for name in ("norm.mean", "norm.std") if name in state}
        return state | {name: value for name, value in own.items() if _differs(value, state[name], name in given)}

    net: Net = build_model_with_cfg(
        cls,
        variant,
        pretrained,
        model_cfg=family,
        feature_cfg=feature_cfg,
        pretrained_filter_fn=keep_own_normalisation,
        **kwargs,
    )
    if kwargs.get("in_chans") is not None:
        _describe_channels(net, kwargs["in_chans"])
    return net


def _describe_channels(net: Any, n: int) -> None:
    """Say in timm's configuration of a network how many channels its images have."""
    channels = {"input_size": (n, *net.pretrained_cfg["input_size"][1:]), "mean": (0.0,) * n, "std": (1.0,) * n}
    net.pretrained_cfg = net.default_cfg = {**net.pretrained_cfg, **channels}


def _differs(own: Tensor, stored: Tensor, given: bool) -> bool:
    """Tell whether a value of a network's own takes the place of the stored one, which may be rounded."""
    return own.shape != stored.shape or (given and not torch.equal(own.to(stored.dtype), stored))


def register_supernet(fn: EntryPoint) -> EntryPoint:
    """Decorate a supernet's entry point: timm and the estimator then know it by the function's name.

    Its configuration is that of the same name in the module's ``default_cfgs``, as for timm's
    ``register_model``, which a student's entry point takes.
    """
    register_model(fn)
    if fn.__name__ not in SUPERNETS:
        bisect.insort(SUPERNETS, fn.__name__)
    return fn
