"""Figure 9: what the predictor says of students that it has not seen, and what they measure.

The predictor learns from students labelled on validation images; the others are labelled in the same way: all of them
for the first seed, a fifth, at least 60, for the others. Labels are counts of images: how far other images would move
them stands beside the predictor's error, though what moves all students alike costs it nothing.
"""

from __future__ import annotations

from typing import Any

import _robustness
import _study
import numpy as np
from _study import PROGRESSIVE, Study, Unit

from proard_nas.evaluation import Labels

BARS = {"natural_accuracy": 0.0076, "robust_accuracy": 0.0072}  # the paper's RMSE, section 5.2
LEAST = 60


def measure(study: Study) -> dict[str, Any]:
    """Train and label what is missing; predict the students that were held out."""
    seeds, budget = study.budget.seeds, study.budget
    study.ensure(Unit(seed, PROGRESSIVE) for seed in seeds)
    fewer = min(budget.n_held, max(LEAST, budget.n_held // 5))
    found = [compared(study, seed, fewer if number else budget.n_held) for number, seed in enumerate(seeds)]
    return {
        "n_labels": budget.n_labels,
        "n_held": budget.n_held,
        "n_held_of_other_seeds": fewer,
        "n_images": budget.n_val,
        "outputs": found[0],
        "by_seed": {
            output: {
                name: _robustness.spread([one[output][name] for one in found])
                for name in ("rmse", "label_noise", "std_of_students", "kendall_tau", "r2")
            }
            for output in BARS
        },
    }


def compared(study: Study, seed: int, n_held: int) -> dict[str, Any]:
    """Return how well a seed's predictor knows students that it did not learn from, for each output."""
    budget = study.budget
    archs = study.drawn(budget.n_labels + n_held, seed)
    labels = study.labelled(seed, archs)
    known, held = labels.students[: budget.n_labels], labels.students[budget.n_labels :]
    predictor = study.predictor(seed, Labels(known, labels.settings))
    unseen = [label.architecture for label in held]
    measured = np.array([(label.natural_accuracy, label.robust_accuracy) for label in held])
    predicted, report = predictor.predict(unseen), predictor.evaluate(unseen, measured)
    found = {}
    for i, (output, bar) in enumerate(BARS.items()):
        p = measured[:, i]
        found[output] = {
            **report[output],
            "paper_rmse": bar,
            "label_noise": float(np.sqrt((p * (1 - p)).mean() / budget.n_val)),
            "std_of_students": float(p.std()),
            "measured": p.tolist(),
            "predicted": predicted[:, i].tolist(),
        }
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    found = _study.run("predicted", _study.parser(__doc__, "predicted").parse_args(argv), measure)
    for output, row in found["outputs"].items():
        by_seed = ", ".join(f"{rmse:.4f}" for rmse in found["by_seed"][output]["rmse"]["seeds"])
        print(
            f"{output}: RMSE {row['rmse']:.4f} on {found['n_held']} students (the paper's {row['paper_rmse']}), tau "
            f"{row['kendall_tau']:.3f}; chance in labels of {found['n_images']} images {row['label_noise']:.4f}, the "
            f"students' own deviation {row['std_of_students']:.4f}; RMSE by seed {by_seed}"
        )
    return found


if __name__ == "__main__":
    _study.main(main)
