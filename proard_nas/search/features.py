"""Architectures as the predictor's numbers: their encoded genes and the logarithms of their costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from proard_nas.supernets.architecture import BLOCK_DIMENSIONS, Architecture, Choice
from proard_nas.supernets.space import ONE_HOT_LIMIT, Gene, SearchSpace

from .candidate import CostFunction

Matrix = NDArray[np.float64]


class FeatureEncoder:
    """Encodes many architectures at once.

    The genes' columns are those of ``space.encode``, looked up in one table for each gene; the last two
    columns are the logarithms of MACs and parameters.

    Parameters
    ----------
    space : SearchSpace
    cost : callable
        Takes an architecture, returns an object with ``macs`` and ``params``.
    """

    def __init__(self, space: SearchSpace, cost: CostFunction) -> None:
        self._space = space
        self._cost = cost
        # Row 0 of a table, all zero, is the gene of an absent block.
        self._tables = [np.vstack([np.zeros_like(rows[:1]), rows]) for rows in map(_gene_rows, space.genes)]
        self._codes: list[dict[Choice | None, int]] = [
            {None: 0, **{choice: i for i, choice in enumerate(gene.choices, start=1)}} for gene in space.genes
        ]
        self.n_features = sum(table.shape[1] for table in self._tables) + 2

    def __call__(self, architectures: Sequence[Architecture]) -> Matrix:
        """Return the features, of shape (n_architectures, n_features).

        Raises
        ------
        ValueError
            If an architecture is outside the space.
        """
        if not architectures:
            return np.empty((0, self.n_features))
        for arch in architectures:
            self._space.validate(arch)
        codes = np.array(
            [[code[v] for code, v in zip(self._codes, self._values(a), strict=True)] for a in architectures]
        )
        columns = [table[codes[:, gene]] for gene, table in enumerate(self._tables)]
        costs = [(cost.macs, cost.params) for cost in map(self._cost, architectures)]
        return np.hstack([*columns, np.log1p(np.array(costs, dtype=np.float64))])

    def _values(self, arch: Architecture) -> list[Choice | None]:
        """Return one value for each gene, None for those of absent blocks."""
        values: list[Choice | None] = [arch.stem_residual] if self._space.stem_residuals else []
        values += [*arch.width_mult, *arch.depth]
        dimensions = [rows for rows in (getattr(arch, name) for name in BLOCK_DIMENSIONS) if rows]
        most = max(self._space.depths)
        for depth, *rows in zip(arch.depth, *dimensions, strict=True):
            values += itertools.chain.from_iterable(zip(*rows, strict=True))
            values += [None] * (len(rows) * (most - depth))
        return values


def _gene_rows(gene: Gene) -> Matrix:
    """Return the columns of each of the gene's choices, as ``SearchSpace.encode`` documents them."""
    if len(gene.choices) <= ONE_HOT_LIMIT:
        return np.eye(len(gene.choices))
    values = np.array(gene.choices, dtype=np.float64)
    return np.column_stack([np.ones_like(values), (values - values.min()) / (values.max() - values.min())])
