"""The space of choices that architectures are drawn from."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from proard_nas._errors import unknown_name
from proard_nas._numbers import whole_number

from .architecture import BLOCK_DIMENSIONS, Architecture, Choice, lists, number_row, whole_row

Seed = int | np.random.Generator | None
ONE_HOT_LIMIT = 4


@dataclasses.dataclass(frozen=True)
class Gene:
    """One choice of a space: its name (``'expand_ratio.2.0'``), allowed values and block."""

    name: str
    choices: tuple[Choice, ...]
    stage: int | None = None
    block: int | None = None


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The choices from which a supernet's students are made.

    Parameters
    ----------
    depths : tuple of int
        Allowed depth choices of every stage.
    base_depths : tuple of int
        For each stage, the blocks it has on top of the depth choice (0 where the choice is
        the number of blocks itself).
    width_mults, expand_ratios, kernel_sizes : tuple, default=()
        Allowed values; empty for a dimension that the network does not have.
    n_widths : int, default=0
        How many width multipliers an architecture carries (stem and stages).
    stem_residuals : tuple of bool, default=()
        ``(False, True)`` where the stem has an optional residual convolution.

    Raises
    ------
    ValueError
        If a list of choices is empty where one is needed, has duplicates, or holds values that
        are not positive (depths may be 0).

    Examples
    --------
    >>> space = SearchSpace(depths=(0, 1), base_depths=(1, 1), expand_ratios=(0.25, 0.5))
    >>> space.size
    36
    >>> space.sample(seed=0) in space
    True
    """

    depths: tuple[int, ...]
    base_depths: tuple[int, ...]
    width_mults: tuple[float, ...] = ()
    n_widths: int = 0
    expand_ratios: tuple[float, ...] = ()
    kernel_sizes: tuple[int, ...] = ()
    stem_residuals: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            row = whole_row if field.name in ("depths", "base_depths", "kernel_sizes") else number_row
            if field.name != "n_widths":
                object.__setattr__(self, field.name, row(field.name, getattr(self, field.name)))
        for name in ("depths", "width_mults", "expand_ratios", "kernel_sizes", "stem_residuals"):
            self._check_choices(name)
        if not self.base_depths or any(b < 0 or int(b) != b for b in self.base_depths):
            raise ValueError(f"base_depths must be whole numbers, one for each stage, got {self.base_depths}")
        if min(self.depths) + min(self.base_depths) < 1:
            raise ValueError(f"every stage needs at least one block, got depths={self.depths}, "
                             f"base_depths={self.base_depths}")  # fmt: skip
        if bool(self.width_mults) != bool(self.n_widths):
            raise ValueError(f"width_mults={self.width_mults} does not fit n_widths={self.n_widths}")

    def _check_choices(self, name: str) -> None:
        choices = getattr(self, name)
        if name == "depths" and not choices:
            raise ValueError("depths must list at least one choice")
        if len(set(choices)) != len(choices):
            raise ValueError(f"{name} must not repeat a choice, got {choices}")
        lowest = 0 if name in ("depths", "stem_residuals") else 1e-9
        if any(isinstance(c, str) or not math.isfinite(c) or c < lowest for c in choices):
            raise ValueError(f"{name} must be {'non-negative' if lowest == 0 else 'positive'} numbers, got {choices}")
        if name in ("depths", "kernel_sizes") and any(int(c) != c for c in choices):
            raise ValueError(f"{name} must be whole numbers, got {choices}")
        if name == "kernel_sizes" and any(c % 2 == 0 for c in choices):
            raise ValueError(f"kernel_sizes must be odd, got {choices}")

    # -- what the space holds ---------------------------------------------------------------

    @property
    def n_stages(self) -> int:
        """Number of stages."""
        return len(self.base_depths)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions that offer a choice, in the order in which the paper opens them."""
        have = {
            "width_mult": len(self.width_mults),
            "kernel_size": len(self.kernel_sizes),
            "depth": max(len(self.depths), len(self.stem_residuals)),
            "expand_ratio": len(self.expand_ratios),
        }
        return tuple(name for name, n in have.items() if n > 1)

    @property
    def size(self) -> int:
        """The exact number of architectures."""
        per_block = math.prod(len(self._block_choices(name)) for name in self._block_dimensions)
        size: int = max(1, len(self.stem_residuals)) * len(self.width_mults or (1,)) ** self.n_widths
        for base in self.base_depths:
            size *= sum(per_block ** (base + d) for d in self.depths)
        return size

    @property
    def largest(self) -> Architecture:
        """The architecture with the largest value of every choice."""
        return self._uniform(max)

    @property
    def smallest(self) -> Architecture:
        """The architecture with the smallest value of every choice."""
        return self._uniform(min)

    def n_blocks(self, arch: Architecture) -> tuple[int, ...]:
        """Return the number of blocks of each stage."""
        return tuple(base + d for base, d in zip(self.base_depths, arch.depth, strict=True))

    def __contains__(self, arch: object) -> bool:
        return isinstance(arch, Architecture) and self._problem(arch) is None

    def validate(self, arch: Architecture) -> Architecture:
        """Return ``arch`` if it belongs to the space.

        Raises
        ------
        ValueError
            Naming the field, what was given and what is allowed.
        """
        if not isinstance(arch, Architecture):
            raise ValueError(f"expected an Architecture, got {type(arch).__name__}: {arch!r}")
        problem = self._problem(arch)
        if problem:
            raise ValueError(f"architecture outside the search space: {problem}")
        return arch

    # -- drawing architectures --------------------------------------------------------------

    def sample(self, seed: Seed = None) -> Architecture:
        """Draw an architecture, each choice uniform and independent.

        Parameters
        ----------
        seed : int, numpy.random.Generator or None, default=None
            The source of randomness; the same int gives the same architecture.
        """
        rng = np.random.default_rng(seed)
        return self.decode([g.choices[rng.integers(len(g.choices))] for g in self.genes])

    def sample_distinct(self, n: int, seed: Seed = None, exclude: Sequence[Architecture] = ()) -> list[Architecture]:
        """Draw ``n`` different architectures, none of them in ``exclude``.

        Raises
        ------
        ValueError
            If the space holds fewer than ``n`` others, or ``n`` is no whole number.
        """
        taken = {arch for arch in exclude if arch in self}
        if whole_number("n", n, 0) > self.size - len(taken):
            raise ValueError(f"the space has {self.size - len(taken)} architectures to draw from, {n} were asked for")
        rng = np.random.default_rng(seed)
        if self.size <= 4 * (n + len(taken)):
            rest = [arch for arch in self if arch not in taken]
            return [rest[i] for i in rng.choice(len(rest), size=n, replace=False)]
        found: dict[Architecture, None] = {}
        while len(found) < n:
            arch = self.sample(rng)
            if arch not in taken:
                found[arch] = None
        return list(found)

    def mutate(self, arch: Architecture, probability: float = 0.1, seed: Seed = None) -> Architecture:
        """Redraw each choice with the given probability."""
        rng = np.random.default_rng(seed)
        values = self.to_genes(self.validate(arch))
        for i, gene in enumerate(self.genes):
            if rng.random() < probability:
                values[i] = gene.choices[rng.integers(len(gene.choices))]
        return self.decode(values)

    def crossover(self, first: Architecture, second: Architecture, seed: Seed = None) -> Architecture:
        """Take each choice from one of two parents with equal probability."""
        rng = np.random.default_rng(seed)
        pairs = zip(self.to_genes(self.validate(first)), self.to_genes(self.validate(second)), strict=True)
        return self.decode([pair[rng.integers(2)] for pair in pairs])

    def __iter__(self) -> Iterator[Architecture]:
        """Yield every architecture once (for spaces small enough to enumerate)."""
        globals_ = [g for g in self.genes if g.block is None]
        for values in itertools.product(*(g.choices for g in globals_)):
            fixed = dict(zip((g.name for g in globals_), values, strict=True))
            depth = [fixed[f"depth.{s}"] for s in range(self.n_stages)]
            active = [g for g in self.genes if g.block is not None and self._active(g, depth)]
            for rest in itertools.product(*(g.choices for g in active)):
                yield self._assemble(fixed | dict(zip((g.name for g in active), rest, strict=True)))

    def restrict(self, **choices: Sequence[Choice]) -> SearchSpace:
        """Return the sub-space with the given lists of choices in place of this space's own.

        Raises
        ------
        ValueError
            If a list is unknown or holds a value that this space does not offer.
        """
        allowed = [f.name for f in dataclasses.fields(self) if f.name not in ("base_depths", "n_widths")]
        for name, values in choices.items():
            if name not in allowed:
                raise unknown_name("list of choices", name, allowed)
            extra = [v for v in values if v not in getattr(self, name)]
            if extra or not values:
                raise ValueError(f"{name}={list(values)} must be a non-empty part of {list(getattr(self, name))}")
        lists: dict[str, Any] = {name: tuple(values) for name, values in choices.items()}
        return dataclasses.replace(self, **lists)

    def with_elastic(self, dimensions: Sequence[str]) -> SearchSpace:
        """Return the sub-space in which only the named dimensions vary, the others at their largest.

        The optional residual of the stem counts as depth.
        """
        lists = {
            "width_mult": ("width_mults",),
            "kernel_size": ("kernel_sizes",),
            "depth": ("depths", "stem_residuals"),
            "expand_ratio": ("expand_ratios",),
        }
        for name in dimensions:
            if name not in lists:
                raise unknown_name("dimension", name, lists)
        fixed = [n for dim, names in lists.items() if dim not in dimensions for n in names if getattr(self, n)]
        return self.restrict(**{name: (max(getattr(self, name)),) for name in fixed})

    # -- genes: the fixed-length form that predictors and genetic search use -----------------

    @functools.cached_property
    def genes(self) -> tuple[Gene, ...]:
        """Every choice there can be, including those of blocks that a small depth leaves out."""
        genes = [Gene("stem_residual", self.stem_residuals)] if self.stem_residuals else []
        genes += [Gene(f"width_mult.{i}", self.width_mults) for i in range(self.n_widths)]
        genes += [Gene(f"depth.{s}", self.depths, stage=s) for s in range(self.n_stages)]
        for stage, base in enumerate(self.base_depths):
            for block in range(base + max(self.depths)):
                genes += [Gene(f"{name}.{stage}.{block}", self._block_choices(name), stage, block)
                          for name in self._block_dimensions]  # fmt: skip
        return tuple(genes)

    def decode(self, values: Sequence[Choice]) -> Architecture:
        """Build the architecture from one value for each gene; genes of absent blocks are ignored."""
        genes = self.genes
        if len(values) != len(genes):
            raise ValueError(f"expected {len(genes)} genes, got {len(values)}")
        return self._assemble(dict(zip((g.name for g in genes), values, strict=True)))

    def to_genes(self, arch: Architecture) -> list[Choice]:
        """Return one value for each gene; the genes of absent blocks get their largest choice."""
        return [self._gene_value(arch, g) if self._active(g, arch.depth) else max(g.choices) for g in self.genes]

    def encode(self, arch: Architecture) -> np.ndarray:
        """Return the architecture as features for a predictor.

        A gene of up to four choices becomes that many columns (one-hot, all zero where its
        block is absent); one of more choices becomes two: present, and its value in [0, 1].

        Returns
        -------
        numpy.ndarray of shape (n_features,), float64
        """
        columns: list[float] = []
        for gene in self.genes:
            value = self._gene_value(arch, gene) if self._active(gene, arch.depth) else None
            if len(gene.choices) <= ONE_HOT_LIMIT:
                columns += [float(value == choice) if value is not None else 0.0 for choice in gene.choices]
            elif value is None:
                columns += [0.0, 0.0]
            else:
                low, high = min(gene.choices), max(gene.choices)
                columns += [1.0, (value - low) / (high - low)]
        return np.array(columns)

    # -- JSON ---------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {name: lists(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSpace:
        """Build the space from `to_dict`'s form; an unknown field raises ValueError."""
        allowed = [field.name for field in dataclasses.fields(cls)]
        for key in data:
            if key not in allowed:
                raise unknown_name("search space field", key, allowed)
        return cls(**data)

    # -- inside -------------------------------------------------------------------------------

    @property
    def _block_dimensions(self) -> tuple[str, ...]:
        return tuple(name for name in BLOCK_DIMENSIONS if self._block_choices(name))

    def _block_choices(self, dimension: str) -> tuple[Any, ...]:
        return self.expand_ratios if dimension == "expand_ratio" else self.kernel_sizes

    def _uniform(self, pick: Any) -> Architecture:
        return self.decode([pick(g.choices) for g in self.genes])

    def _active(self, gene: Gene, depth: Sequence[Choice]) -> bool:
        if gene.block is None or gene.stage is None:
            return True
        return gene.block < self.base_depths[gene.stage] + depth[gene.stage]

    def _gene_value(self, arch: Architecture, gene: Gene) -> Choice:
        name, *place = gene.name.split(".")
        value: Any = getattr(arch, name)
        for index in place:
            value = value[int(index)]
        return value  # type: ignore[no-any-return]

    def _assemble(self, values: Mapping[str, Choice]) -> Architecture:
        depth = tuple(int(values[f"depth.{s}"]) for s in range(self.n_stages))
        blocks = {
            name: tuple(
                tuple(values[f"{name}.{s}.{b}"] for b in range(base + d))
                for s, (base, d) in enumerate(zip(self.base_depths, depth, strict=True))
            )
            for name in self._block_dimensions
        }
        return Architecture(
            depth=depth,
            width_mult=tuple(values[f"width_mult.{i}"] for i in range(self.n_widths)),
            stem_residual=bool(values.get("stem_residual", False)),
            **blocks,  # type: ignore[arg-type]
        )

    def _problem(self, arch: Architecture) -> str | None:
        rows: list[tuple[str, Sequence[Any], Sequence[Any], int]] = [
            ("depth", arch.depth, self.depths, self.n_stages),
            ("width_mult", arch.width_mult, self.width_mults, self.n_widths),
        ]
        problem = next(filter(None, (_row_problem(*row) for row in rows)), None)
        if problem:
            return problem
        for name in BLOCK_DIMENSIONS:
            given, choices = getattr(arch, name), self._block_choices(name)
            stages = self.n_stages if choices else 0
            if len(given) != stages:
                return f"{name} must have {stages} stages, got {len(given)}"
            counts = self.n_blocks(arch)
            checks = (_row_problem(f"{name}[{s}]", row, choices, counts[s], f" for depth {arch.depth[s]}")
                      for s, row in enumerate(given))  # fmt: skip
            problem = next(filter(None, checks), None)
            if problem:
                return problem
        if arch.stem_residual not in (self.stem_residuals or (False,)):
            return f"stem_residual={arch.stem_residual} is not among {self.stem_residuals or (False,)}"
        return None


def _row_problem(name: str, given: Sequence[Any], choices: Sequence[Any], count: int, why: str = "") -> str | None:
    if len(given) != count:
        return f"{name} must have {count} values{why}, got {len(given)}: {list(given)}"
    for i, value in enumerate(given):
        if value not in choices:
            return f"{name}[{i}]={value} is not among the choices {list(choices)}"
    return None
