"""What a student costs: multiply-accumulates and parameters, exact functions of its plan."""

from __future__ import annotations

from typing import NamedTuple

from .layers import Plan


class Cost(NamedTuple):
    """The cost of one student for one image.

    Attributes
    ----------
    macs : int
        Multiply-accumulates of its convolutions and linear layers. The paper's "FLOPs" are
        millions of these (MMACs); many tools count two FLOPs for each.
    params : int
        Number of learned parameters.
    """

    macs: int
    params: int

    @property
    def mmacs(self) -> float:
        """Millions of multiply-accumulates, the unit of ``max_flops``."""
        return self.macs / 1e6

    def __str__(self) -> str:
        return f"{self.mmacs:.4g} MMACs, {self.params:,} parameters"


def plan_cost(plan: Plan) -> Cost:
    """Return the cost of a plan: the sum over its layers."""
    return Cost(plan.macs, plan.params)
