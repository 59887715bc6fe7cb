"""A network's folder: weights and configuration in timm's layout, what is known about it, a model card, checksums."""

from __future__ import annotations

import json
import logging
import numbers
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor

from proard_nas._errors import check_name
from proard_nas._folders import (
    CHECKSUMS,
    Folder,
    check_replaceable,
    whole_folder,
    write_bytes,
    write_checksums,
    write_json,
)

from .card import model_card

if TYPE_CHECKING:
    from .network import StudentNet

logger = logging.getLogger(__name__)

FORMAT = 1
CONFIG, WEIGHTS, FACTS, CARD = "config.json", "model.safetensors", "proard.json", "README.md"
FILES = (CONFIG, WEIGHTS, FACTS, CARD, CHECKSUMS)
CHECKED = (CONFIG, WEIGHTS, FACTS)
# What is computed here, so that nobody's metadata can contradict it.
OWN_FACTS = (
    "format",
    "network",
    "kind",
    "architecture",
    "macs",
    "params",
    "input_size",
    "num_classes",
    "calibrated",
    "versions",
)
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}


def save_network(
    network: StudentNet, folder: Folder, metadata: Mapping[str, Any] | None = None, dtype: str | None = None
) -> None:
    """Save a student or a supernet; see `StudentNet.save`."""
    check_dtype(dtype)
    facts = {**network.metadata, **check_metadata({} if metadata is None else metadata)}
    with whole_folder(folder, FACTS, FILES) as temporary:
        write_network(network, temporary, facts, dtype)


def check_dtype(dtype: str | None) -> None:
    """Raise ValueError unless weights can be stored in the format of this name; None is each tensor's own."""
    if dtype is not None:
        check_name("dtype", dtype, DTYPES)


def write_network(network: StudentNet, folder: Path, metadata: Mapping[str, Any], dtype: str | None = None) -> None:
    """Write the files of a network into a folder that exists; raise as `check_metadata` does."""
    metadata = check_metadata(metadata)  # a network's own may have been set by hand
    state = rounded(_checked_state(network), dtype)
    given = {"pretrained_cfg": {"license": metadata["license"]}} if metadata.get("license") else {}
    config_path: Any = folder / CONFIG  # typed as str; older versions of timm take a Path only
    save_config_for_hf(network, config_path, model_config=given, model_args=network.model_args())
    config = json.loads((folder / CONFIG).read_bytes())
    check_shapes(config, {name: tensor.shape for name, tensor in state.items()})
    facts = {**describe(network, config), **metadata}
    if not facts["calibrated"]:
        logger.warning("the saved %s is not calibrated: its batch norm statistics are not its own", facts["network"])
    write_bytes(folder / WEIGHTS, safetensors.torch.save(state, metadata={"format": "pt"}))
    write_json(folder / FACTS, facts)
    write_bytes(folder / CARD, model_card(json.loads((folder / FACTS).read_bytes())).encode())
    write_checksums(folder, CHECKED)


def check_target(folder: Folder) -> None:
    """Raise OSError if a network could not be saved in a folder: it holds something else, or cannot be made."""
    check_replaceable(Path(folder).resolve(), FACTS, FILES)


def rounded(state: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    """Return tensors with the weights in a number format; None changes nothing.

    Vectors and the normalisation, which are few, stay as they are.
    """
    if dtype is None:
        return dict(state)
    return {
        name: tensor.to(DTYPES[dtype])
        if tensor.is_floating_point() and tensor.ndim > 1 and not name.startswith("norm.")
        else tensor
        for name, tensor in state.items()
    }


def describe(network: StudentNet, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that follow from a network and its configuration for timm."""
    from proard_nas import __version__

    from .supernet import is_calibrated

    input_size = config["pretrained_cfg"]["input_size"]
    cost = network.cost(img_size=(input_size[1], input_size[2]))
    return {
        "format": FORMAT,
        "network": config["architecture"],
        "kind": "student" if "arch" in config["model_args"] else "supernet",
        "architecture": network.arch.to_dict(),
        "macs": cost.macs,
        "params": cost.params,
        "input_size": list(input_size),
        "num_classes": network.num_classes,
        "calibrated": is_calibrated(network),
        "license": config["pretrained_cfg"].get("license"),
        "versions": {
            "proard_nas": __version__,
            "timm": timm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as a dict.

    Raises
    ------
    ValueError
        If a name is one that is computed, an accuracy lies outside [0, 1], or a robust accuracy
        comes without its attack and eps.
    """
    if not isinstance(metadata, Mapping) or not all(isinstance(name, str) for name in metadata):
        raise ValueError(f"metadata must be a mapping of names to values, got {metadata!r}")
    for name in OWN_FACTS:
        if name in metadata:
            raise ValueError(f"metadata must not give {name!r}: it is computed from the network and the machine")
    for name in ("natural_accuracy", "robust_accuracy"):
        value = metadata.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
            raise ValueError(f"metadata {name} must be a number in [0, 1], got {value!r}")
    missing = [name for name in ("attack", "eps") if "robust_accuracy" in metadata and metadata.get(name) is None]
    if missing:
        raise ValueError(
            f"metadata robust_accuracy means nothing without {' and '.join(map(repr, missing))}; give them"
        )
    return dict(metadata)


def check_shapes(config: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Check that the network of a configuration has tensors of these names and shapes; none is allocated.

    Raises
    ------
    ValueError
        If it has others; names the first that differs.
    """
    with torch.device("meta"):
        sketch = timm.create_model(config["architecture"], **config["model_args"])
    wanted = {name: tensor.shape for name, tensor in sketch.state_dict().items()}
    for name in {**wanted, **shapes}:
        has, needs = (None if where.get(name) is None else tuple(where[name]) for where in (shapes, wanted))
        if has != needs:
            raise ValueError(
                f"the weights are not those of a {config['architecture']} as configured: {name} has the shape {has} "
                f"and should have {needs}"
            )


def _checked_state(network: StudentNet) -> dict[str, Tensor]:
    """Return a network's tensors as safetensors wants them, or say why timm could not build the network again."""
    if not getattr(network, "pretrained_cfg", None):
        raise ValueError("only a network that timm.create_model or extract made can be saved; this one has no config")
    supernet = "arch" not in network.model_args()
    if not supernet and network.pretrained_cfg.get("architecture") != network.cfg.student:
        raise ValueError("a live student is a view of its supernet and cannot be saved; use supernet.extract(arch)")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is {tensor.dtype}, which timm would round to float32; call .float() first")
    return state
