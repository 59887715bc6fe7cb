"""Scikit-learn's own suite for estimators, run on ours with a tiny network on 2-D arrays."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import check_dataframe_column_names_consistency, parametrize_with_checks

from proard_nas import ProARDEstimator
from proard_nas.training import Stage

EXPECTED_FAILURES: dict[str, str] = {}

ESTIMATOR = ProARDEstimator(
    "proard_dyn_resnet_tiny",
    model_args={"width_mults": (0.25, 0.5), "depths": (0,), "expand_ratios": (0.25, 0.5)},
    schedule=[
        Stage("teacher", 12, "natural", lr=0.1),
        Stage("all", 1, "rslad", ("width_mult", "expand_ratio"), lr=0.02),
    ],
    batch_size=32,
    attack_steps=1,
    eval_steps=1,
    n_labels=12,
    n_watch=0,
    n_calibration=256,
    precision="float32",
    random_state=0,
    progress=False,
)


@parametrize_with_checks([ESTIMATOR], expected_failed_checks=lambda _: EXPECTED_FAILURES)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_columns_of_other_names_or_in_another_order_are_refused():
    pytest.importorskip("pandas")
    check_dataframe_column_names_consistency("ProARDEstimator", ESTIMATOR)
