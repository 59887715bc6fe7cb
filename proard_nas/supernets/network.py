"""What every student network is: normalisation, stem, stages of blocks, neck and head, as timm knows them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from proard_nas._folders import Folder
from proard_nas._numbers import whole_number

from .architecture import Architecture
from .cost import Cost, plan_cost
from .family import Family
from .layers import Conv, MaxPool, Plan, Size, last_features
from .modules import Normalize, check_pool
from .saving import save_network


class StudentNet(nn.Module):
    """A static network of one architecture with timm's model interface.

    A family's network derives from it and says how to build its blocks. It is built from the
    plan of its architecture, so its layers, its costs and the slices it takes from a supernet
    have one definition.

    Parameters
    ----------
    cfg : Family
        The family's constants, choices and plan.
    arch : Architecture or dict, default=None
        The architecture; None is the largest of the family.
    num_classes : int, default=10
        Size of the classifier's output; 0 leaves the classifier out.
    in_chans : int, default=3
        Channels of the input images.
    drop_rate : float, default=0.0
        Dropout before the classifier, in [0, 1).
    global_pool : str, default='avg'
        timm's pooling type; ``''`` leaves pooling out.
    norm_mean, norm_std : sequence of float, default=None
        Normalisation of each channel, kept inside the network; None is the family's for three
        channels, else 0.5 and 0.25.
    device, dtype : default=None
        As in torch's modules.

    Attributes
    ----------
    arch : Architecture
    num_features : int
        Channels of `forward_features`' output.
    head_hidden_size : int
        Channels that the classifier reads.
    feature_info : list of dict
        timm's description of the intermediate features: after the stem and after each stage.
    metadata : dict
        What is known about where the network comes from; `save` keeps it.
    """

    arch: Architecture
    head: Any
    norm: Normalize
    feature_info: list[dict[str, Any]]
    pretrained_cfg: dict[str, Any]
    default_cfg: dict[str, Any]

    def __init__(
        self,
        cfg: Family,
        arch: Architecture | dict[str, Any] | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        norm_mean: Sequence[float] | None = None,
        norm_std: Sequence[float] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if num_classes < 0 or in_chans < 1 or not 0 <= drop_rate < 1:
            raise ValueError(
                f"num_classes must be at least 0, in_chans at least 1 and drop_rate in [0, 1); got "
                f"num_classes={num_classes}, in_chans={in_chans}, drop_rate={drop_rate}"
            )
        arch = Architecture.from_dict(arch) if isinstance(arch, dict) else arch
        self.cfg, self.num_classes, self.in_chans, self.drop_rate = cfg, num_classes, in_chans, drop_rate
        check_pool(global_pool)
        self.grad_checkpointing = False
        self.metadata: dict[str, Any] = {}
        dd = {"device": device, "dtype": dtype}
        mean, std = _normalisation(cfg, in_chans, norm_mean, norm_std)
        self.arch = cfg.space.largest if arch is None else self._check_shape(arch)
        plan = self.plan()
        self._set_architecture(self.arch, plan)
        self.norm = Normalize(mean, std, **dd)
        self.stem = self._build_stem(plan.part("stem"), **dd)
        stages = plan.part("stages")
        self.stages = nn.Sequential(
            *(
                nn.Sequential(*(self._build_block(stages.part(s).part(b), int(s), **dd) for b in stages.part(s)))
                for s in stages
            )
        )
        self.neck = self._build_neck(plan, **dd)
        self.head = self._build_head(plan, global_pool, **dd)
        self.init_weights()

    # -- what a family defines --------------------------------------------------------------

    def _build_stem(self, plan: Plan, **dd: Any) -> nn.Module:
        """Build the stem from its plan."""
        raise NotImplementedError

    def _build_block(self, plan: Plan, stage: int, **dd: Any) -> nn.Module:
        """Build one block of a stage from its plan."""
        raise NotImplementedError

    def _build_neck(self, plan: Plan, **dd: Any) -> nn.Module:
        """Build what comes between the last stage and the pooling; nothing by default."""
        return nn.Identity()

    def _build_head(self, plan: Plan, global_pool: str, **dd: Any) -> nn.Module:
        """Build pooling, dropout and classifier; timm's head by default."""
        return ClassifierHead(self.num_features, self.num_classes, global_pool, self.drop_rate, **dd)

    # -- architecture and costs -------------------------------------------------------------

    def plan(self, arch: Architecture | None = None, img_size: Size | int | None = None) -> Plan:
        """Return the layers of an architecture of this network's family, by default of its own.

        Parameters
        ----------
        arch : Architecture, default=None
        img_size : (int, int) or int, default=None
            Height and width in pixels; None is the size the family was designed for. It
            matters for the count of multiply-accumulates only.

        Raises
        ------
        ValueError
            If the architecture is none, or one of another family.
        """
        size = self.cfg.img_size if img_size is None else img_size
        size = (size, size) if isinstance(size, int) else size
        arch = self.arch if arch is None else self._check_shape(arch)
        return self.cfg.plan(arch, self.num_classes, self.in_chans, size)

    def cost(self, arch: Architecture | None = None, img_size: Size | int | None = None) -> Cost:
        """Return multiply-accumulates and parameters of an architecture, by default of its own.

        A supernet's own is the largest, whichever student is active. An exact function of the
        values: nothing is built or run. See `plan` for the parameters.
        """
        return plan_cost(self.plan(arch, img_size))

    def model_args(self) -> dict[str, Any]:
        """Return the JSON-able keyword arguments with which timm builds this network again."""
        return {"arch": self.arch.to_dict(), **self._network_args()}

    def _network_args(self) -> dict[str, Any]:
        return {
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
            "drop_rate": self.drop_rate,
            "global_pool": self.head.global_pool.pool_type,
            "norm_mean": self.norm.mean.flatten().tolist(),
            "norm_std": self.norm.std.flatten().tolist(),
        }

    def feature_size(self, img_size: Size | int | None = None) -> Size:
        """Return height and width of `forward_features`' output; see `plan` for the parameter."""
        return _features(self.plan(img_size=img_size))[-1][1].out_size

    def _check_shape(self, arch: Architecture) -> Architecture:
        """Check that an architecture fits the family; its values may lie outside the default choices."""
        space = self.cfg.space
        if arch in space:
            return arch
        if isinstance(arch, Architecture):
            lists = {"depths": arch.depth, "width_mults": arch.width_mult, "stem_residuals": (arch.stem_residual,)}
            for name in ("expand_ratio", "kernel_size"):
                lists[f"{name}s"] = tuple(v for row in getattr(arch, name) for v in row)
            own: dict[str, Any] = {k: tuple(dict.fromkeys(v)) for k, v in lists.items() if v and getattr(space, k)}
            try:
                space = dataclasses.replace(space, **own)
            except ValueError as error:
                raise ValueError(f"architecture outside the search space: {error}") from None
        return space.validate(arch)

    def _set_architecture(self, arch: Architecture, plan: Plan) -> None:
        """Set every attribute that depends on the architecture."""
        self.arch = arch
        self.feature_info, size, reduction = [], self.cfg.img_size[0], 1
        for name, last in _features(plan):
            size, reduction = last.out_size[0], reduction * round(size / last.out_size[0])
            self.feature_info.append({"num_chs": last.out.channels, "reduction": reduction, "module": name})
        self.num_features = _neck_channels(plan) or int(self.feature_info[-1]["num_chs"])
        self.head_hidden_size = self._head_channels(plan)
        if isinstance(getattr(self, "head", None), ClassifierHead):
            self.head.in_features = self.num_features
            self.head.num_features = self.num_features * self.head.global_pool.feat_mult()

    def _head_channels(self, plan: Plan) -> int:
        """Return the channels that the classifier reads."""
        return self.num_features

    def save(self, folder: Folder, metadata: Mapping[str, Any] | None = None, *, dtype: str | None = None) -> None:
        """Save the network in timm's layout, as safetensors and JSON, with a model card.

        ``timm.create_model('local-dir:FOLDER', pretrained=True)`` after ``import proard_nas`` gives
        the same bits; `proard_nas.deploy.load_student` also checks that the files are whole.

        Parameters
        ----------
        folder : path
            Made, or replaced if it holds a saved network and nothing else.
        metadata : mapping, default=None
            JSON-able facts for ``proard.json`` and the card, on top of ``self.metadata``. The card
            knows ``natural_accuracy`` and ``robust_accuracy`` (in [0, 1], the latter with ``attack``
            and ``eps``), ``n_images``, ``data``, ``split``, ``seed``, ``license``, ``name`` and
            ``description``; others are listed. Architecture, costs and versions are added.
        dtype : {'float32', 'float16', 'bfloat16'}, default=None
            Number format of the stored weights; None is their own. Half precision halves the file
            and rounds them; loaded, they are float32 again.

        Raises
        ------
        FileExistsError
            If the folder holds something else.
        ValueError
            If metadata cannot be kept, the dtype is unknown, or timm could not build the network again, as with a
            live student.
        OSError
            If the folder cannot be written; then nothing of it is left, and an older one is as it was.
        """
        save_network(self, folder, metadata, dtype)

    # -- timm's interface -------------------------------------------------------------------

    def init_weights(self) -> None:
        """Initialise: He's normal for convolutions by fan-out, a small normal for the classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's grouping of parameters: by stage (coarse) or by block."""
        blocks = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^neck", (99999,))]
        return {"stem": r"^(?:norm|stem)", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the classifier layer."""
        return self.head.fc  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes remove it. What the old one's classes were called is forgotten.

        Parameters
        ----------
        num_classes : int
        global_pool : str, default=None
            New pooling type; None keeps it.

        Raises
        ------
        ValueError
            If the number or the pooling is not allowed; nothing changes then.
        """
        check_pool(global_pool)
        self.num_classes = whole_number("num_classes", num_classes, 0)
        like = next(self.head.parameters(), next(self.parameters()))  # a head without a classifier may have none
        self.head.reset(self.num_classes, global_pool)
        self.get_classifier().to(device=like.device, dtype=like.dtype)
        for name in ("pretrained_cfg", "default_cfg"):
            if hasattr(self, name):  # which timm's builder sets
                known = getattr(self, name).items()
                setattr(self, name, {k: v for k, v in known if k not in ("label_names", "label_descriptions")})

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the unpooled features, shape (N, num_features, H', W'), of images in [0, 1]."""
        x = self.stem(self.norm(x))
        for stage in self.stages:
            x = self._forward_stage(stage, x)
        return self.neck(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool features and classify them; ``pre_logits`` stops before the classifier."""
        return self.head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (N, num_classes), of images of shape (N, in_chans, H, W) in [0, 1]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return features and the intermediate ones listed in `feature_info`, in timm's form.

        ``norm`` has nothing to apply to in these networks; ``stop_early`` skips the stages after
        the last index asked for.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} is not supported; allowed: 'NCHW'")
        take, last = feature_take_indices(len(self.feature_info), indices)
        x = self.stem(self.norm(x))
        intermediates = [x] if 0 in take else []
        for i, stage in enumerate(self.stages, start=1):
            if stop_early and i > last:
                break
            x = self._forward_stage(stage, x)
            if i in take:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return (x if stop_early and last < len(self.stages) else self.neck(x)), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages (and neck and head) that the given intermediates do not need; return their indices."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        if prune_head or last < len(self.stages):
            self.stages, self.neck = self.stages[:last], nn.Identity()
            self.num_features = self.head_hidden_size = int(self.feature_info[last]["num_chs"])
            self.num_classes, self.head = 0, ClassifierHead(self.num_features, 0, "", self.drop_rate)
            for made in (self.stages, self.neck, *self.head.modules()):  # and the blocks keep theirs
                made.training = self.training
        return take

    def _forward_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting() and len(list(stage.children())):
            return checkpoint_seq(stage, x)  # type: ignore[no-any-return]
        return stage(x)  # type: ignore[no-any-return]


def _normalisation(
    cfg: Family, in_chans: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    mean = mean if mean is not None else (cfg.norm_mean if in_chans == 3 else (0.5,) * in_chans)
    std = std if std is not None else (cfg.norm_std if in_chans == 3 else (0.25,) * in_chans)
    if {len(mean), len(std)} != {in_chans} or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(
            f"norm_mean and norm_std need one value for each of {in_chans} channels, finite, and positive deviations; "
            f"got norm_mean={tuple(mean)}, norm_std={tuple(std)}"
        )
    return mean, std


def _features(plan: Plan) -> list[tuple[str, Conv | MaxPool]]:
    """Return where intermediate features come from: the last layer of the stem and of each stage."""
    parts = {"stem": plan.part("stem")}
    for name, stage in plan.part("stages").items():
        assert isinstance(stage, Plan)
        parts[f"stages.{name}"] = stage.part(str(len(stage) - 1))
    return [(name, last_features(part)) for name, part in parts.items()]


def _neck_channels(plan: Plan) -> int:
    """Return the channels that the neck gives out, 0 where there is none or it keeps those of the last stage."""
    neck = plan.get("neck")
    return last_features(neck).out.channels if isinstance(neck, Plan) else 0
