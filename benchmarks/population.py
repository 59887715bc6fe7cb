"""Figures 2 and 7: accuracy and robustness of many students, trained progressively or by random sampling.

Both supernets start from the same teacher and take as many student-steps. The same students are measured on the same
test images, each after its own calibration: all of them for the first seed, a tenth, at least 30, for the others.
"""

from __future__ import annotations

from typing import Any

import _robustness
import _study
import numpy as np
from _study import PROGRESSIVE, RANDOM, Study, Unit

from proard_nas.evaluation import Labels

METHODS = (PROGRESSIVE, RANDOM)
OUTPUTS = ("natural", "pgd20")
LEAST = 30


def measure(study: Study) -> dict[str, Any]:
    """Train what is missing, and measure the population."""
    seeds, budget, network = study.budget.seeds, study.budget, study.network(0)
    study.ensure(Unit(seed, method) for seed in seeds for method in METHODS)
    archs = study.drawn(budget.n_population, seed=1000)  # not the students that the predictor learns from
    shared = archs[: max(LEAST, len(archs) // 10)]
    found = {
        (seed, method): study.population(seed, archs if seed == seeds[0] else shared, method)
        for seed in seeds
        for method in METHODS
    }
    n_images = min(budget.population_images, budget.n_test)
    first = {method: found[seeds[0], method].accuracies for method in METHODS}
    by_seed = {
        method: [found[seed, method].accuracies[: len(shared)].mean(axis=0) for seed in seeds] for method in METHODS
    }
    return {
        "n_students": len(archs),
        "n_students_of_all_seeds": len(shared),
        "n_images": n_images,
        "students": {
            "mmacs": [network.cost(arch).mmacs for arch in archs],
            "params": [network.cost(arch).params for arch in archs],
            **{method: {o: first[method][:, i].tolist() for i, o in enumerate(OUTPUTS)} for method in METHODS},
        },
        "distribution": {method: described(first[method]) for method in METHODS},
        "paired": {o: paired(*(first[method][:, i] for method in METHODS)) for i, o in enumerate(OUTPUTS)},
        "means_by_seed": {
            o: {method: _robustness.spread([float(row[i]) for row in by_seed[method]]) for method in METHODS}
            | {"difference": compared(by_seed, i, 1 / (len(shared) * n_images))}
            for i, o in enumerate(OUTPUTS)
        },
        "seconds_a_student": float(np.mean([seconds(labels) for labels in found.values()])),
    }


def seconds(labels: Labels) -> float:
    return float(np.mean([label.seconds for label in labels.students]))


def described(accuracies: np.ndarray) -> dict[str, Any]:
    """Return mean, spread, extremes and quartiles of each output."""
    return {
        output: {
            "mean": float(column.mean()),
            "std": float(column.std()),
            "best": float(column.max()),
            "worst": float(column.min()),
            "quartiles": np.quantile(column, (0.25, 0.5, 0.75)).tolist(),
        }
        for output, column in zip(OUTPUTS, accuracies.T, strict=True)
    }


def paired(progressive: np.ndarray, random: np.ndarray) -> dict[str, float]:
    """Compare student by student: how many are better when trained progressively, and by how much on average."""
    difference = progressive - random
    return {
        "mean_difference": float(difference.mean()),
        "share_better": float((difference > 0).mean()),
        "share_equal": float((difference == 0).mean()),
        "best_minus_best": float(progressive.max() - random.max()),
    }


def compared(by_seed: dict[str, list[np.ndarray]], output: int, one_image: float) -> dict[str, Any]:
    """Compare the mean over the students seed by seed."""
    a, b = ([float(row[output]) for row in by_seed[method]] for method in METHODS)
    found = _robustness.compare(a, b, one_image)
    names = (_study.TITLES[method] for method in METHODS)
    return found | {"verdict": _robustness.verdict(*names, _robustness.NAMES[OUTPUTS[output]], found)}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    found = _study.run("population", _study.parser(__doc__, "population").parse_args(argv), measure)
    for output in OUTPUTS:
        one, means = found["paired"][output], found["means_by_seed"][output]
        print(
            f"{found['n_students']} students, {output}: progressive minus random {100 * one['mean_difference']:+.2f} "
            f"points on average, better for {one['share_better']:.0%}; best {100 * one['best_minus_best']:+.2f}; "
            f"over seeds: {means['difference']['verdict']}"
        )
    return found


if __name__ == "__main__":
    _study.main(main)
