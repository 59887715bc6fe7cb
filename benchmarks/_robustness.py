"""Students' accuracy naturally, under PGD-20 and under AutoAttack, and what figures over seeds show."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
import torchattacks
from torch import Tensor, nn

from proard_nas import Architecture, Supernet
from proard_nas._random import derive_seed
from proard_nas.attacks import run_attack
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, calibrate
from proard_nas.evaluation.accuracy import correct, predict_logits
from proard_nas.evaluation.population import append_line
from proard_nas.supernets import StudentNet

STANDARD_QUERIES = 5000
METRICS = ("natural", "pgd20", "autoattack")
TABLE = ("natural", "fgsm", "pgd20", "autoattack")  # the columns of the paper's table 1, and AutoAttack
COLUMNS = ("natural", "fgsm", "pgd20", "pgd20_few", "autoattack")  # with PGD-20 on the images that AutoAttack had
NAMES = {"natural": "natural", "fgsm": "FGSM", "pgd20": "PGD-20", "autoattack": "AutoAttack"}
RULE = (
    "the difference from the baseline, averaged over the seeds, counts as shown where it is larger than twice its "
    "standard error over the seeds, which is taken as no smaller than what one image more changes (two-sided, no "
    "correction for the number of comparisons; the 95 % t-interval, stricter for so few seeds, stands beside it)"
)


@dataclasses.dataclass(frozen=True)
class Test:
    """How a student is measured.

    Parameters
    ----------
    eps, step_size : float
        Of PGD-20; AutoAttack takes eps alone.
    n_auto : int
        AutoAttack is run on the first so many images.
    square_queries : int, default=5000
        Of the Square attack within AutoAttack; fewer only to try something out.
    seed : int, default=0
        Of random starts, which are drawn for the images that a student classifies rightly.
    batch_size : int, default=256
    """

    __test__ = False  # no test case, whatever pytest makes of the name

    eps: float
    step_size: float
    n_auto: int
    square_queries: int = STANDARD_QUERIES
    seed: int = 0
    batch_size: int = 256

    @property
    def pgd20(self) -> str:
        """What PGD-20 is, in full."""
        start = "random start, worst case over the iterates"
        return f"PGD-20, l-infinity, eps {self.eps:.5f}, step {self.step_size:.5f}, {start}"

    @property
    def title(self) -> str:
        """What AutoAttack is called wherever its figures stand."""
        cut = "" if self.square_queries == STANDARD_QUERIES else f", Square cut to {self.square_queries} queries"
        return f"torchattacks {importlib.metadata.version('torchattacks')} AutoAttack standard{cut}"


def measure_student(
    supernet: Supernet, arch: Architecture, images: ArraySource, calibration: Tensor, test: Test, auto: bool
) -> dict[str, Any]:
    """Measure one student after its own calibration; see `measure_network`."""
    student = supernet.extract(arch)
    return measure_network(calibrate(student, calibration, test.batch_size), images, test, auto)


def measure_network(student: StudentNet, images: ArraySource, test: Test, auto: bool) -> dict[str, Any]:
    """Measure a calibrated student; an image survives AutoAttack only if it survives PGD-20 as well.

    Returns
    -------
    dict
        ``natural``, ``fgsm`` and ``pgd20`` over all images; ``natural_few``, ``pgd20_few`` and ``autoattack`` over the
        first ``n_auto``, the last one None unless ``auto``; seconds of the two parts.
    """
    start = time.perf_counter()
    few = slice(0, test.n_auto)
    right, fgsm, survives = rightly_classified(student, images, test)
    found = {
        "natural": share(right),
        "fgsm": share(fgsm),
        "pgd20": share(survives),
        "natural_few": share(right[few]),
        "pgd20_few": share(survives[few]),
        "autoattack": None,
        "seconds": time.perf_counter() - start,
        "autoattack_seconds": None,
    }
    if auto:
        row = autoattack(student, images, survives, few, test)
        found |= {"autoattack": row["robust"] / row["images"], "autoattack_seconds": row["seconds"]}
    return found


def rightly_classified(student: StudentNet, images: ArraySource, test: Test) -> tuple[Tensor, Tensor, Tensor]:
    """Return which images are classified rightly as they are, under FGSM and under PGD-20."""
    student.requires_grad_(False).eval()  # FAB would compute gradients of weights, too
    attacks = [AttackSettings(name, test.eps, test.step_size) for name in ("fgsm", "pgd")]
    outcomes: list[list[Tensor]] = [[], [], []]
    for index, (x, y) in enumerate(images.batches(test.batch_size)):
        right = predict_logits(student, x).argmax(1) == y
        outcomes[0].append(right)
        for attack, found in zip(attacks, outcomes[1:], strict=True):
            survives = right.clone()
            if right.any():
                place = derive_seed(test.seed, "evaluate", index)
                survives[right] = correct(student, x[right], y[right], attack, place)
            found.append(survives)
    right, fgsm, pgd20 = (torch.cat(found) for found in outcomes)
    return right, fgsm, pgd20


def autoattack(
    student: StudentNet, images: ArraySource, survives: Tensor, part: slice, test: Test
) -> dict[str, float | int]:
    """Run AutoAttack on those of a part of the images that survive PGD-20.

    Returns
    -------
    dict
        ``images`` of the part, how many of them are ``robust``, and ``seconds``.
    """
    start = time.perf_counter()
    robust = survives[part].clone()
    if robust.any():
        x, y = images.x[part][robust], images.y[part][robust]
        robust[robust.clone()] = survives_autoattack(student, x, y, test)
    return {"images": len(robust), "robust": int(robust.sum()), "seconds": time.perf_counter() - start}


def autoattack_all(student: StudentNet, images: ArraySource, test: Test, record: Path) -> None:
    """Run AutoAttack on all images, ``n_auto`` at a time, with a line in the record for each part.

    Images that the record has are not attacked again.

    Raises
    ------
    ValueError
        If they were attacked otherwise.
    """
    done = read_lines(record)
    for row in done:
        if row["attack"] != test.title:
            raise ValueError(f"{record} has figures of {row['attack']!r}, asked for were those of {test.title!r}")
    starts = range(sum(row["images"] for row in done), len(images), test.n_auto)
    if starts:
        _, _, survives = rightly_classified(student, images, test)
    for start in starts:
        part = slice(start, start + test.n_auto)
        append_line(record, {"attack": test.title, **autoattack(student, images, survives, part, test)})


def survives_autoattack(network: nn.Module, x: Tensor, y: Tensor, test: Test) -> Tensor:
    """Return which images torchattacks' AutoAttack leaves rightly classified; modes and generators stay as they were.

    They are attacked ``batch_size`` at a time: torchattacks gives all that it is given to the network at once.

    Raises
    ------
    RuntimeError
        If the attack left the ball or [0, 1]: then its figures mean nothing.
    """
    batches = zip(x.split(test.batch_size), y.split(test.batch_size), strict=True)
    return torch.cat([_survives_autoattack(network, *batch, test) for batch in batches])


def _survives_autoattack(network: nn.Module, x: Tensor, y: Tensor, test: Test) -> Tensor:
    attack = torchattacks.AutoAttack(
        network, norm="Linf", eps=test.eps, version="standard", n_classes=network.num_classes, seed=test.seed
    )
    for part in attack._autoattack.attacks:
        if isinstance(part, torchattacks.Square):
            part.n_queries = test.square_queries
    adversarial = run_attack(attack, x, y, seed=test.seed).detach()
    change = float((adversarial - x).abs().max())
    if change > test.eps + 1e-5 or adversarial.min() < 0 or adversarial.max() > 1:
        raise RuntimeError(f"AutoAttack changed a pixel by {change}, eps is {test.eps}; or it left [0, 1]")
    return predict_logits(network, adversarial).argmax(1) == y


def measure_students(
    supernet: Supernet,
    archs: Sequence[Architecture],
    auto: Sequence[int],
    images: ArraySource,
    calibration: Tensor,
    test: Test,
    record: Path,
) -> list[dict[str, Any]]:
    """Measure students, with a line in the record for each; those that have one are not measured again.

    Parameters
    ----------
    auto : sequence of int
        Places of the students that AutoAttack is run on.
    """
    rows = read_lines(record)
    for place in range(len(rows), len(archs)):
        rows.append(measure_student(supernet, archs[place], images, calibration, test, place in auto))
        append_line(record, rows[-1])
    return rows


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines that were written whole, and cut a torn last one off."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def share(flags: Tensor) -> float:
    return float(flags.float().mean())


# -- figures over seeds -------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean over the seeds, the standard deviation (None of one) and the values themselves."""
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "seeds": list(values),
    }


def compare(values: Sequence[float], baseline: Sequence[float], one_image: float = 0.0) -> dict[str, Any]:
    """Compare seed by seed: the differences, their standard error, a 95 % t-interval and what the rule says.

    Parameters
    ----------
    values, baseline : sequence of float
        For each seed one, in the same order.
    one_image : float, default=0.0
        What a seed's figure changes by with one image more in one student: no standard error is smaller, since equal
        counts in all seeds are no certainty.
    """
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    found = spread(differences)
    if found["std"] is None:
        return found | {"standard_error": None, "t_interval": None, "shown": None}
    error = max(found["std"] / math.sqrt(len(differences)), one_image)
    reach = float(scipy.stats.t.ppf(0.975, len(differences) - 1)) * error
    return found | {
        "standard_error": error,
        "t_interval": [found["mean"] - reach, found["mean"] + reach],
        "shown": abs(found["mean"]) > 2 * error,
    }


def mark(found: dict[str, Any]) -> str:
    """Return the mark of a difference that is shown, but whose t-interval holds zero."""
    return " †" if found["shown"] and found["t_interval"][0] <= 0 <= found["t_interval"][1] else ""


def verdict(name: str, baseline: str, metric: str, found: dict[str, Any]) -> str:
    """Say in words what a comparison shows."""
    points = 100 * found["mean"]
    if found["shown"] is None:
        return f"{metric}: {name} against {baseline} {points:+.2f} points in one seed: nothing can be concluded"
    figures = f"{points:+.2f} points, standard error {100 * found['standard_error']:.2f}"
    if not found["shown"]:
        return f"{metric}: no difference shown between {name} and {baseline} ({figures})"
    surely = ", though the t-interval holds zero" * bool(mark(found))
    winner, loser = (name, baseline) if points > 0 else (baseline, name)
    return f"{metric}: {winner} wins over {loser} ({figures}{surely})"


def with_std(found: dict[str, Any] | None, digits: int = 2, scale: float = 100) -> str:
    """Return a mean with its deviation over the seeds, in percent unless the scale is another."""
    if found is None:
        return ""
    values = [value for value in (found["mean"], found["std"]) if value is not None]
    return " ± ".join(f"{scale * value:.{digits}f}" for value in values)
