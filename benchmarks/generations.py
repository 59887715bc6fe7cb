"""Figure 10: the first and the last generation of the search, as predicted and, for some students, as measured.

The search is for accuracy and robustness under a limit on multiply-accumulates, that of the other scripts unless
``--max-flops`` says otherwise. Up to ten students of the first generation that keep the limit and up to ten of the
front, evenly over it, are then measured on test images, which the search and its predictor never saw; so for each seed.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import _robustness
import _study
import numpy as np
from _study import PROGRESSIVE, Study, Unit

from proard_nas.search.candidate import Candidate

N_MEASURED = 10
OUTPUTS = ("natural_accuracy", "robust_accuracy")


def measure(study: Study, max_flops: float | None) -> dict[str, Any]:
    """Train and label what is missing, search, and measure students of both ends."""
    seeds = study.budget.seeds
    study.ensure(Unit(seed, PROGRESSIVE) for seed in seeds)
    found = [searched(study, seed, max_flops) for seed in seeds]
    means = {
        group: {
            output: {
                kind: _robustness.spread(
                    [float(np.mean([row[prefix + output] for row in one["measured"][group]])) for one in found]
                )
                for kind, prefix in (("predicted", "predicted_"), ("measured", ""))
            }
            for output in OUTPUTS
        }
        for group in ("first", "front")
    }
    return {
        **found[0],
        "means": means,
        "n_measured": {group: [len(one["measured"][group]) for one in found] for group in ("first", "front")},
        "mmacs": {
            group: _robustness.spread(
                [float(np.mean([row["mmacs"] for row in one["measured"][group]])) for one in found]
            )
            for group in ("first", "front")
        },
        "last_predicted": {
            output: _robustness.spread([predicted_mean(one["generations"][1], output) for one in found])
            for output in OUTPUTS
        },
        "n_evaluated": [one["n_evaluated"] for one in found],
        "gains": {
            output: _robustness.compare(
                *(means[group][output]["measured"]["seeds"] for group in ("front", "first")),
                one_image=1 / (N_MEASURED * found[0]["n_images"]),
            )
            for output in OUTPUTS
        },
    }


def predicted_mean(generation: dict[str, Any], output: str) -> float:
    """Return the mean prediction of those of a generation that keep the limit."""
    return float(np.mean(np.array(generation[output])[np.array(generation["feasible"])]))


def searched(study: Study, seed: int, max_flops: float | None) -> dict[str, Any]:
    """Search one seed's students, and measure some of the first generation and of the front."""
    result = study.search(seed, max_flops)
    first, last = result.generations
    chosen = {"first": spread_out(first_feasible(study, result)), "front": spread_out(result.front)}
    measured = {
        name: study.population(seed, [one.architecture for one in candidates], PROGRESSIVE).accuracies
        for name, candidates in chosen.items()
    }
    return {
        "max_mmacs": result.constraints["max_flops"],
        "n_evaluated": result.n_evaluated,
        "n_generations": last.number,
        "n_images": min(study.budget.population_images, study.budget.n_test),
        "generations": [
            {"number": one.number, "mmacs": [macs / 1e6 for macs in one.macs], "feasible": list(one.feasible)}
            | {output: list(getattr(one, output)) for output in OUTPUTS}
            for one in (first, last)
        ],
        "front": [
            {"mmacs": one.mmacs, "params": one.params, **{output: getattr(one, output) for output in OUTPUTS}}
            for one in result.front
        ],
        "measured": {
            name: [
                {"mmacs": one.mmacs}
                | {f"predicted_{o}": getattr(one, o) for o in OUTPUTS}
                | {o: float(row[i]) for i, o in enumerate(OUTPUTS)}
                for one, row in zip(chosen[name], measured[name], strict=True)
            ]
            for name in chosen
        },
    }


def first_feasible(study: Study, result: Any) -> list[Candidate]:
    """Return the students of the first generation that keep the limit, read from the search's Optuna study."""
    network, first = study.network(0), result.generations[0]
    trials = result.study.get_trials(deepcopy=False)[: len(first.macs)]
    found = []
    rows = zip(trials, first.natural_accuracy, first.robust_accuracy, first.feasible, strict=True)
    for trial, natural, robust, feasible in rows:
        if feasible:
            arch = architecture_of(network.space, trial.params)
            cost = network.cost(arch)
            found.append(Candidate(arch, cost.macs, cost.params, natural, robust))
    return found


def architecture_of(space: Any, parameters: dict[str, Any]) -> Any:
    """Return the architecture of an Optuna trial: its parameters are the space's genes."""
    return space.decode([parameters.get(gene.name, max(gene.choices)) for gene in space.genes])


def spread_out(candidates: list[Candidate] | tuple[Candidate, ...]) -> list[Candidate]:
    """Return some candidates, evenly over cost, each once."""
    ordered = sorted({one.architecture: one for one in candidates}.values(), key=lambda one: one.macs)
    places = np.linspace(0, len(ordered) - 1, min(N_MEASURED, len(ordered))).round()
    return [ordered[int(place)] for place in places]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    parser: argparse.ArgumentParser = _study.parser(__doc__, "generations")
    parser.add_argument("--max-flops", type=float, help="in MMACs")
    args = parser.parse_args(argv)
    found = _study.run("generations", args, functools.partial(measure, max_flops=args.max_flops))
    for name, row in found["means"].items():
        print(
            f"{name}, under {found['max_mmacs']:.1f} MMACs: "
            + ", ".join(f"{o} predicted {100 * v['predicted']['mean']:.1f} measured "
                        f"{100 * v['measured']['mean']:.1f} %" for o, v in row.items())
        )  # fmt: skip
    return found


if __name__ == "__main__":
    _study.main(main)
