"""Figure 9: what the predictor says of students that it has not seen, and what they measure.

The predictor learns from students labelled on validation images; the others are labelled in the same way. Labels are
counts of images: the error that chance alone would bring stands beside the predictor's.
"""

from __future__ import annotations

from typing import Any

import _study
import numpy as np
from _study import PROGRESSIVE, Study, Unit

BARS = {"natural_accuracy": 0.0076, "robust_accuracy": 0.0072}  # the paper's RMSE, section 5.2


def measure(study: Study) -> dict[str, Any]:
    """Train and label what is missing; predict the students that were held out."""
    seed, budget = study.budget.seeds[0], study.budget
    study.ensure([Unit(seed, PROGRESSIVE)])
    archs = study.drawn(budget.n_labels + budget.n_held, seed)
    labels = study.labelled(seed, archs)
    known, held = archs[: budget.n_labels], labels.students[budget.n_labels :]
    predictor = study.predictor(seed, study.labelled(seed, known))
    unseen = [label.architecture for label in held]
    measured = np.array([(label.natural_accuracy, label.robust_accuracy) for label in held])
    predicted, report = predictor.predict(unseen), predictor.evaluate(unseen, measured)
    n_images = budget.n_val
    found = {}
    for i, (output, bar) in enumerate(BARS.items()):
        p = measured[:, i]
        found[output] = {
            **report[output],
            "paper_rmse": bar,
            "label_noise": float(np.sqrt((p * (1 - p)).mean() / n_images)),
            "std_of_students": float(p.std()),
            "measured": p.tolist(),
            "predicted": predicted[:, i].tolist(),
        }
    return {
        "n_labels": len(known),
        "n_held": len(held),
        "n_images": n_images,
        "outputs": found,
        "seconds_a_label": float(np.mean([label.seconds for label in labels.students])),
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    found = _study.run("predicted", _study.parser(__doc__, "predicted").parse_args(argv), measure)
    for output, row in found["outputs"].items():
        print(
            f"{output}: RMSE {row['rmse']:.4f} on {found['n_held']} students (the paper's {row['paper_rmse']}), tau "
            f"{row['kendall_tau']:.3f}; chance in labels of {found['n_images']} images {row['label_noise']:.4f}, the "
            f"students' own deviation {row['std_of_students']:.4f}"
        )
    return found


if __name__ == "__main__":
    _study.main(main)
