"""Students and supernets from and to folders: safetensors and JSON in timm's layout, checked when loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model
from torch import Tensor

from proard_nas._errors import unknown_name
from proard_nas._folders import Folder, naming, read_checked_json, read_checked_tensors
from proard_nas.supernets import StudentNet
from proard_nas.supernets.saving import CARD, CONFIG, FACTS, FILES, FORMAT, OWN_FACTS, WEIGHTS, check_shapes

ESTIMATOR = "estimator.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".tar")


def save_student(
    student: StudentNet, folder: Folder, metadata: Mapping[str, Any] | None = None, *, dtype: str | None = None
) -> None:
    """Save a student or a supernet so that timm alone builds it again; the same as ``student.save``.

    See `StudentNet.save` for the parameters and errors.
    """
    if not isinstance(student, StudentNet):
        raise TypeError(f"a {type(student).__name__} cannot be saved so; allowed: a student or a supernet")
    student.save(folder, metadata, dtype=dtype)


def load_student(folder: Folder) -> StudentNet:
    """Load a saved student or supernet, and check that it is what was saved.

    Files are compared with their checksums before anything is built, and the network's tensors
    with those of the file afterwards; timm does neither. Nothing is ever unpickled.

    Parameters
    ----------
    folder : path
        What ``student.save`` or `save_student` wrote, or a download of it.

    Returns
    -------
    StudentNet
        On the CPU, in eval mode, the same bits that were saved; its ``metadata`` are those saved.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or it is not a saved network; names what is missing.
    ValueError
        If a file was changed or damaged, is a pickle, or does not fit the others; names it.

    Notes
    -----
    A checksum finds damage, not malice: who can write the folder can write the checksums too.
    """
    folder = Path(folder)
    _check_ours(folder)
    config, facts = (read_checked_json(folder, name) for name in (CONFIG, FACTS))
    with naming(folder / FACTS):
        if facts["format"] != FORMAT:
            raise ValueError(f"it has format {facts['format']!r}; this version reads format {FORMAT}")
    tensors = read_checked_tensors(folder, WEIGHTS)
    _check_config(folder, config, tensors)
    with naming(folder / CONFIG):
        network = _check_bits(timm.create_model(f"local-dir:{folder}", pretrained=True), tensors)
    network.metadata = {name: value for name, value in facts.items() if name not in OWN_FACTS}
    return network.eval()


def _check_ours(folder: Path) -> None:
    """Say what is wrong with a folder that holds no saved network."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    found = {path.name for path in folder.iterdir()}
    missing = [name for name in FILES if name not in found and name != CARD]
    if not missing:
        return
    hint = ""
    pickles = sorted(name for name in found if name.endswith(PICKLES))
    if ESTIMATOR in found:
        hint = "; it is a saved estimator, for ProARDEstimator.load"
    elif WEIGHTS in missing and pickles:
        hint = f"; it has {pickles[0]!r}, but a pickle is never loaded: it can run any code"
    elif CONFIG in found and WEIGHTS in found:
        hint = f"; timm.create_model('local-dir:{folder}', pretrained=True) loads it unchecked"
    raise FileNotFoundError(f"{folder} is not a saved student: it has no {', '.join(missing)}{hint}")


def _check_config(folder: Path, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Check that a configuration is one of our networks and that the tensors fit it, before any is made."""
    with naming(folder / CONFIG):
        name = config["architecture"]
        if not isinstance(name, str) or not is_model(name):
            raise unknown_name("network", name, timm.list_models("proard_*"))
        check_shapes(config, {name: tensor.shape for name, tensor in tensors.items()})


def _check_bits(network: torch.nn.Module, tensors: Mapping[str, Tensor]) -> StudentNet:
    """Return a network after checking that timm took each tensor as it is; it can leave some out without a word."""
    if not isinstance(network, StudentNet):
        raise ValueError(f"it describes a {type(network).__name__}, which is no network of this library")
    for name, tensor in network.state_dict().items():
        stored = tensors[name].to(tensor.dtype).reshape(-1)
        if not torch.equal(tensor.reshape(-1).view(torch.uint8), stored.view(torch.uint8)):
            raise ValueError(f"it makes timm change {name} on loading; it does not fit {WEIGHTS}")
    return network
