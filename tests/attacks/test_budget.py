"""The budget of inner attacks: what it refuses and what its methods cost."""

from __future__ import annotations

import pytest

from proard_nas.attacks import AttackBudget, check_budget, warn_if_short


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.01, 5), r"eps must be in \(0, 1\].*got 0.0"),
        ((-1.0, 0.01, 5), "got -1.0"),
        ((float("nan"), 0.01, 5), "eps"),
        ((8.0, 2.0, 5), "got 8.0"),
        ((0.1, 0.0, 5), "step_size must be above 0 .*got 0.0"),
        ((0.1, 0.01, 0), "attack steps must be a whole number of at least 1, got 0"),
    ],
)
def test_a_wrong_budget_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_budget(*arguments)
    with pytest.raises(ValueError, match=message):
        AttackBudget(*arguments)


def test_an_unknown_method_or_batch_norm_mode_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown attack method 'nfgsm'.*Did you mean 'n-fgsm'"):
        AttackBudget(method="nfgsm")
    with pytest.raises(ValueError, match="unknown batch norm mode 'bach'.*Did you mean 'batch'"):
        AttackBudget(batch_norm="bach")


@pytest.mark.parametrize(("method", "single", "steps"), [("pgd", False, 7), ("ffgsm", True, 1), ("n-fgsm", True, 1)])
def test_single_step_methods_take_one_step(method, single, steps):
    budget = AttackBudget(steps=7, method=method)
    assert (budget.single_step, budget.n_steps) == (single, steps)


@pytest.mark.parametrize(
    ("eps", "step_size", "steps", "short"),
    [(8 / 255, 2 / 255, 20, False), (8 / 255, 2 / 255, 4, False), (0.3, 0.1, 3, False), (0.3, 0.1, 2, True)],
)
def test_an_attack_whose_steps_cannot_reach_the_border_is_warned_of(caplog, eps, step_size, steps, short):
    warn_if_short("PGD", eps, step_size, steps)
    assert ("out of reach" in caplog.text) == short
