"""Optuna's own plots accept the study of a search."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import optuna
import pytest

from proard_nas.search import search
from proard_nas.supernets.space import SearchSpace

SPACE = SearchSpace(
    depths=(0, 1), base_depths=(1, 1), expand_ratios=(0.2, 0.35), width_mults=(0.5, 0.75, 1.0), n_widths=2,
    stem_residuals=(False, True),
)  # fmt: skip


class Cost(NamedTuple):
    macs: int
    params: int


def predict(archs):
    blocks = np.array([sum(r for row in a.expand_ratio for r in row) for a in archs])
    widths = np.array([sum(a.width_mult) for a in archs])
    return np.column_stack([0.3 + 0.1 * widths + 0.05 * blocks, 0.7 - 0.1 * widths + 0.05 * blocks])


@pytest.fixture(scope="module")
def result():
    def cost(arch):
        return Cost(int(1e6 * sum(arch.width_mult) * (1 + sum(r for row in arch.expand_ratio for r in row))), 1000)

    return search(SPACE, predict, cost, max_flops=3.5, seed=0, population_size=20, n_generations=10, progress=False)


@pytest.fixture
def plots():
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these plots call themselves experimental
        yield optuna.visualization.matplotlib
    from matplotlib import pyplot as plt

    plt.close("all")


def test_the_pareto_front_is_that_of_the_result(result, plots):
    ax = plots.plot_pareto_front(result.study, target_names=["natural", "robust"], include_dominated_trials=False)
    # Students that break a limit are drawn, too, as another collection of points.
    drawn = [{tuple(np.round(point, 9).tolist()) for point in part.get_offsets()} for part in ax.collections]
    assert {(round(c.natural_accuracy, 9), round(c.robust_accuracy, 9)) for c in result.front} in drawn
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("natural", "robust")


def test_the_hypervolume_grows_to_that_of_the_result(result, plots):
    ax = plots.plot_hypervolume_history(result.study, reference_point=[0.3, 0.3])
    heights = ax.lines[0].get_ydata()
    points = sorted({(c.natural_accuracy, c.robust_accuracy) for c in result.front})
    left, area = 0.3, 0.0
    for natural, robust in points:
        area += (natural - left) * (robust - 0.3)
        left = natural
    assert heights[-1] == pytest.approx(area)
    assert (np.diff(heights) >= 0).all()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("plot_optimization_history", {}),
        ("plot_parallel_coordinate", {"params": ["width_mult.0", "depth.0", "stem_residual"]}),
        ("plot_slice", {"params": ["width_mult.0", "depth.0"]}),
        ("plot_contour", {"params": ["width_mult.0", "width_mult.1"]}),
        ("plot_rank", {"params": ["width_mult.0", "width_mult.1"]}),
        ("plot_edf", {}),
        ("plot_timeline", None),
    ],
)
def test_other_plots_are_drawn(result, plots, name, arguments):
    target = {} if arguments is None else {"target": lambda trial: trial.values[1], **arguments}
    axes = np.atleast_1d(getattr(plots, name)(result.study, **target))
    assert any(ax.has_data() for ax in axes.flat)
