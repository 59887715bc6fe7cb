"""One student's architecture as a value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from proard_nas._errors import unknown_name

Choice = int | float | bool

BLOCK_DIMENSIONS = ("expand_ratio", "kernel_size")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One student's architecture: a frozen, hashable value that JSON can carry.

    Parameters
    ----------
    depth : tuple of int
        One choice for each stage (the choice itself, not the number of blocks: a space adds
        its base depth).
    width_mult : tuple of float, default=()
        Width multipliers: those of the stem first, then one for each stage.
    expand_ratio : tuple of tuple of float, default=()
        For each stage, one ratio of middle channels for each block that the depth keeps.
    kernel_size : tuple of tuple of int, default=()
        For each stage, one depthwise kernel size in pixels for each block that the depth keeps.
    stem_residual : bool, default=False
        Whether the optional residual convolution of the stem is there.

    Examples
    --------
    >>> arch = Architecture(depth=(0, 1), expand_ratio=((0.2,), (0.2, 0.35)))
    >>> Architecture.from_dict(arch.to_dict()) == arch
    True
    """

    depth: tuple[int, ...]
    width_mult: tuple[float, ...] = ()
    expand_ratio: tuple[tuple[float, ...], ...] = ()
    kernel_size: tuple[tuple[int, ...], ...] = ()
    stem_residual: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", whole_row("depth", self.depth))
        object.__setattr__(self, "width_mult", number_row("width_mult", self.width_mult))
        for name in BLOCK_DIMENSIONS:
            rows = getattr(self, name)
            if not isinstance(rows, (list, tuple)):
                raise ValueError(f"{name} must be a list of one list for each stage, got {rows!r}")
            row = whole_row if name == "kernel_size" else number_row
            object.__setattr__(self, name, tuple(row(f"{name}[{i}]", r) for i, r in enumerate(rows)))
        if not isinstance(self.stem_residual, bool):
            raise ValueError(f"stem_residual must be true or false, got {self.stem_residual!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict; dimensions that the network does not have are left out."""
        full = dataclasses.asdict(self)
        full["stem_residual"] = self.stem_residual or None
        return {k: lists(v) for k, v in full.items() if v not in ((), None)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Build the value from `to_dict`'s form.

        Raises
        ------
        ValueError
            If a field is unknown, missing or of the wrong type; the message names it.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"an architecture must be a mapping of fields, got {type(data).__name__}")
        allowed = [field.name for field in dataclasses.fields(cls)]
        for key in data:
            if key not in allowed:
                raise unknown_name("architecture field", key, allowed)
        if "depth" not in data:
            raise ValueError(f"an architecture needs the field 'depth', got only {sorted(data)}")
        return cls(**data)


def number_row(name: str, values: Any) -> tuple[Any, ...]:
    """Return a row of numbers as a tuple of Python's own; raise a ValueError that names the field if it is none."""
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{name} must be a list, got {values!r}")
    for value in values:
        if not isinstance(value, (bool, int, float, np.integer, np.floating)):
            raise ValueError(f"{name} must hold numbers, got {value!r}")
    return tuple(v.item() if isinstance(v, np.generic) else v for v in values)


def whole_row(name: str, values: Any) -> tuple[Any, ...]:
    """Return a row whose fractions without a fraction, as other languages' JSON may write 3, are integers."""
    return tuple(int(v) if isinstance(v, float) and v.is_integer() else v for v in number_row(name, values))


def lists(value: Any) -> Any:
    """Return nested lists in place of nested tuples, as JSON takes them."""
    return [lists(v) for v in value] if isinstance(value, (list, tuple)) else value
