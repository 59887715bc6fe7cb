"""The trained supernet that comes with the package: made, packed, and measured beside networks trained alone.

Parts, each of which goes on from what it has left in the ``--work`` folder:

- ``train``: the teacher by single-step adversarial training, then the paper's three steps (RSLAD), with a moving
  average of the weights and the best ones by validation images. With ``--further`` the last step again, from the
  weights that are packed: the work folder of the first training is not needed. The largest student, which the first
  time lost in the steps what it had as the teacher, is then among the students of every step and goes on learning from
  labels.
- ``pack``: weights rounded to float16; images for calibration that are no photographs, but have the statistics that the
  training images have in every student; labels on validation images; the predictor; the folder in the package.
- ``card``: five students (the ends and three that a search found) on the test images: natural, FGSM, PGD-20 and, on
  fewer images, AutoAttack. No weights, student or search is chosen on these images.
- ``attack``: AutoAttack on all test images for these five, the cheapest first. It takes hours: so many images at a
  time leave a line in a small record, and with ``--n-attacked`` a run does so many of the students.
- ``alone``: the largest and the found students trained alone, for as long as the supernet took, and the found ones for
  a fiftieth of that too: what fifty devices would leave to each. For that fiftieth the found ones are also tuned:
  trained in the same way from what they are in the supernet. The time is counted in epochs of the largest student, so
  that a faster or slower machine than the supernet's does not change what a network is given. The whole time is split
  in three trainings, each from where the one before ended, as the supernet had several. Each that is finished leaves a
  small record, and the first two the weights to go on from; with ``--n-alone`` a run does so many of these trainings,
  the fiftieths first, and leaves the others to later runs.

Parts that a run leaves out keep their figures in ``--out``, as long as the packed weights are the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _alone
import _images
import _record
import _robustness
import _study
import _training
import numpy as np
import torch
from _shipped import (
    BUDGETS,
    PACKAGE,
    PARTS,
    Job,
    chosen,
    earlier,
    measured_before,
    packed_weights,
    training_seconds,
)
from _synthetic import check_images, synthetic_images
from tabulate import tabulate

from proard_nas import Architecture, ProARDEstimator
from proard_nas.data import ArraySource
from proard_nas.evaluation import calibrate
from proard_nas.evaluation.population import append_line, checksum, tensor_checksum
from proard_nas.supernets.saving import rounded

HELD_OUT = "validation_checksum"  # of the classes of the images that are held out, in order

# -- train ----------------------------------------------------------------------------------------


def train(job: Job) -> ProARDEstimator:
    """Train the supernet, or go on from what the folder holds."""
    done = job.folder / "trained"
    if done.exists():
        return ProARDEstimator.load(done)
    recipe, budget, images = job.recipe, job.budget, job.images()
    estimator = ProARDEstimator.load(job.packed) if job.further else ProARDEstimator()
    if job.further:
        check_held_out(estimator, images.validation)
    estimator.set_params(
        model=recipe.model,
        warm_start=job.further,
        schedule=recipe.stages(budget),
        batch_size=recipe.batch_size,
        weight_decay=recipe.weight_decay,
        eps=recipe.eps,
        step_size=recipe.step_size,
        attack=recipe.attack,
        ema_decay=recipe.ema_decay,
        augment=recipe.augment,
        n_watch=budget.n_watch,
        n_labels=12,
        n_calibration=budget.n_calibration,
        precision=recipe.precision,
        random_state=0,
    )
    estimator.fit(*job.named(images.train), job.named(images.validation), job.folder / "training")
    estimator.save(done)
    _training.write(job.folder / "cores.json", _training.threads(1))
    return estimator


def check_held_out(estimator: ProARDEstimator, validation: ArraySource) -> None:
    """End the program if the images held out now follow each other in other classes: training may have seen them.

    Classes tell the order of a file; its images may differ in a few bits, as those of CIFAR-10 do (see the page).
    """
    known, now = estimator.supernet_.metadata[HELD_OUT], tensor_checksum(validation.y)
    if now != known:
        raise SystemExit(
            f"the {len(validation)} images held out now are not those of before ({HELD_OUT} {now!r}, was {known!r}); "
            "allowed: a file that has the training images in their official order"
        )


# -- pack -----------------------------------------------------------------------------------------


def pack(job: Job) -> dict[str, Any]:
    """Round the weights, make the calibration images, label, and write the folder in the package."""
    estimator, images, budget = train(job), job.images(), job.budget
    network = estimator.supernet_
    network.load_state_dict(rounded(network.state_dict(), "float16"))
    real = estimator.calibration_images_
    path = job.folder / "synthetic.npy"
    if not path.exists():
        made = synthetic_images(network, real, budget.n_synthetic, budget.synthetic_steps)
        np.save(path, (made * 255).round().to(torch.uint8).numpy())
    synthetic = torch.from_numpy(np.load(path)).float() / 255
    checked = check_images(job, network, real, synthetic, images.validation)
    estimator.calibration_images_ = synthetic
    calibrate(network, synthetic)
    x, y = job.named(images.validation.head(budget.n_label_images))
    estimator.n_jobs = job.jobs
    estimator.label(budget.n_labels, x, y, replace=True, record=job.folder / "labels.jsonl")
    estimator.n_jobs, estimator.n_labels = None, budget.n_labels  # of a fit that goes on from what is packed
    for figures in ("students", "measurement"):  # of the weights before
        network.metadata.pop(figures, None)
    network.metadata |= {
        "data": {"cifar10": "CIFAR-10"}.get(job.data, job.data),
        "license": "apache-2.0",
        HELD_OUT: tensor_checksum(images.validation.y),
        "load": f'ProARDEstimator.from_pretrained("{job.recipe.model}")',
        "calibration": f"Students are given their batch norm statistics from {len(synthetic)} images that come with "
        "it. They are no photographs: they were made from noise to have, in the layers of random students, the "
        "statistics that the training images have.",
        "description": f"{description(job, estimator)} {how_to_continue(job)}",
    }
    estimator.save(job.packed, dtype="float16")
    return {
        "calibration": checked,
        "predictor": estimator.predictor_score_,
        "n_labels": len(estimator.labels_),
        "training_seconds": training_seconds(estimator.spent_),
        "cores": job.cores,
        "trained_last": {"recipe": dataclasses.asdict(job.recipe), "budget": dataclasses.asdict(budget)},
        "macs": estimator.spent_.total.macs,
        "spent": estimator.spent_.to_dict(),
        "bytes": sum(file.stat().st_size for file in job.packed.rglob("*") if file.is_file()),
        "validation": [row["validation"] for row in estimator.history_ if "validation" in row][-1],
    }


def description(job: Job, estimator: ProARDEstimator) -> str:
    machine = _record.machine()
    epochs = Counter(row["stage"] for row in estimator.history_)
    hours = training_seconds(estimator.spent_) / 3600
    return (
        f"Trained on {job.budget.n_train:,} images in {hours:.1f} hours on {job.cores} CPU core{'s' * (job.cores > 1)} "
        f"({'the last time ' * job.further}{machine['cpu']}): "
        f"{', '.join(f'{name} {n}' for name, n in epochs.items())} epochs, inner attack {job.recipe.attack}, eps "
        f"{job.recipe.eps * 255:.0f}/255."
    )


def how_to_continue(job: Job) -> str:
    file = "" if job.file is None else "=FILE.npz"
    return (
        "To continue it, from a checkout, with the same images held out: `python benchmarks/shipped.py --further "
        f"--parts train pack card --data {job.data}{file}`. That replaces the packed folder by what it becomes."
    )


# -- card -----------------------------------------------------------------------------------------


def card(job: Job) -> list[dict[str, Any]]:
    """Measure five students of the packed supernet on the test images, and write them on its cards."""
    estimator = ProARDEstimator.load(job.packed)
    torch.set_num_threads(_training.threads(1))
    record, rows = job.folder / f"card-{checksum(estimator.supernet_)}.jsonl", []
    known = {row["student"]: row for row in _robustness.read_lines(record)}
    for name, arch in chosen(estimator, job.budget.limits).items():
        student = estimator.extract(arch)
        if name not in known or known[name]["arch"] != arch.to_dict():
            cost = estimator.supernet_.cost(arch)
            known[name] = {"student": name, "arch": arch.to_dict(), "mmacs": cost.mmacs, "params": cost.params}
            known[name] |= _robustness.measure_network(student, job.images().test, job.test, auto=True)
            append_line(record, known[name])
        rows.append(known[name])
    write_cards(job, estimator, rows, earlier(job).get("attack", []))
    return rows


def write_cards(
    job: Job, estimator: ProARDEstimator, rows: list[dict[str, Any]], attacked: list[dict[str, Any]]
) -> None:
    """Write on the packed supernet's cards what was measured; AutoAttack on all images where it has been run on all."""
    whole = {row["student"]: row for row in attacked}
    students = []
    for row in rows:
        figures = {f"{_robustness.NAMES[m]}, %": round(100 * row[m], 2) for m in _robustness.TABLE}
        if row["student"] in whole:
            figures["AutoAttack, %"] = round(100 * whole[row["student"]]["autoattack"], 2)
        else:
            figures["AutoAttack, %"] = f"{figures['AutoAttack, %']} ({job.budget.n_auto} images)"
        cost = {"MMACs": round(row["mmacs"], 2), "parameters": row["params"]}
        students.append({"student": row["student"], **cost, **figures})
    n_before = len(measured_before(job))
    measurement = job.measurement + (
        f" Students of {n_before} earlier training{'s' * (n_before > 1)}, from which this one went on, were measured "
        "on them before, and the recipe was changed in between: the figures may flatter a little." * bool(n_before)
    )
    estimator.supernet_.metadata |= {"students": students, "measurement": measurement}
    estimator.set_params(warm_start=False)  # which a user asks for, not the training that made it
    estimator.save(job.packed, dtype="float16")


# -- AutoAttack on all images -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Attacked:
    """A student, and the record of AutoAttack on it."""

    name: str
    arch: Architecture
    record: Path

    def __str__(self) -> str:
        return self.name

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of all parts in the record together; no ``autoattack`` where there are none."""
        parts = _robustness.read_lines(self.record)
        images, robust, seconds = (sum(part[key] for part in parts) for key in ("images", "robust", "seconds"))
        found = {"student": self.name, "arch": self.arch.to_dict(), "images": images}
        return found | ({"autoattack": robust / images, "seconds": seconds} if parts else {})


def attack(job: Job) -> list[dict[str, Any]]:
    """Run AutoAttack on all test images for the students of the card, and write its figures on the cards."""
    estimator = ProARDEstimator.load(job.packed)
    weights, cost = checksum(estimator.supernet_), estimator.supernet_.cost
    students = [
        Attacked(name, arch, job.records / f"autoattack-{weights}-{_study.short_name(arch)}.jsonl")
        for name, arch in chosen(estimator, job.budget.limits).items()
    ]
    job.records.mkdir(parents=True, exist_ok=True)
    missing = [student for student in students if student.figures["images"] < job.budget.n_test]
    waiting = sorted(missing, key=lambda student: cost(student.arch).macs)[: job.n_attacked]
    run = functools.partial(attack_all, job)
    _training.run_side_by_side(waiting, lambda student: True, run, job.jobs, "AutoAttack on all images")
    rows = [row for row in (student.figures for student in students) if row["images"] == job.budget.n_test]
    measured = earlier(job).get("card")
    if measured:
        write_cards(job, estimator, measured, rows)
    return rows


def attack_all(job: Job, student: Attacked) -> None:
    """Run AutoAttack on all test images for one student."""
    torch.set_num_threads(_training.threads(job.jobs))
    network = ProARDEstimator.load(job.packed).extract(student.arch)
    _robustness.autoattack_all(network, job.images().test, job.test, student.record)


# -- command line -----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=_images.STAND_IN, help=_images.DATA_HELP)
    parser.add_argument("--budget", choices=BUDGETS, default="laptop")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--further", action="store_true", help="train the packed supernet further")
    parser.add_argument("--n-alone", type=int, help="trainings alone that this run does (default: all that are left)")
    parser.add_argument("--n-attacked", type=int, help="students that this run attacks on all images (default: all)")
    parser.add_argument("--records", type=Path, help="folder for small records of what takes hours (default: --work's)")
    parser.add_argument("--package", default=PACKAGE, help="folder in which the packed folder is made")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="labels, attacked students and networks alone, at once"
    )
    parser.add_argument("--work", default=_study.WORK, help="folder for records and checkpoints")
    parser.add_argument("--out", default=_record.RESULTS / "shipped.json")
    args = parser.parse_args(argv)
    started = time.time()
    data, file = _images.named_data(args.data)
    work, package, out = (Path(path).resolve() for path in (args.work, args.package, args.out))
    job = Job(
        data,
        file,
        args.budget,
        work,
        package,
        args.jobs,
        out,
        kept=args.records,
        n_alone=args.n_alone,
        n_attacked=args.n_attacked,
        further=args.further,
    )
    _training.ignored_by_git(job.work)
    job.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(_training.threads(1))
    made = {"train": train, "pack": pack, "card": card, "attack": attack, "alone": _alone.alone}
    results: dict[str, Any] = {
        "data": data,
        "budget": dataclasses.asdict(job.budget),
        "recipe": dataclasses.asdict(job.first_recipe),
        "measurement": job.measurement,
    }
    for part in PARTS:
        if part in args.parts:
            found = made[part](job)
            if part != "train":
                before = {"measured_before": measured_before(job)}
                results |= before | earlier(job) | {part: found, "weights": packed_weights(job)}
                print("wrote", _record.save(out, results, 0, started))
            if part in ("card", "alone"):
                print(table(found))
    return results


def table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["student"],
            row["mmacs"],
            f"{_alone.how_trained(row)}, {row['epochs']} epochs" if "part" in row else "in the supernet",
            *(100 * row[m] for m in _robustness.TABLE),
        ]
        for row in rows
    ]
    return tabulate(cells, ["student", "MMACs", "trained", *_robustness.NAMES.values()], floatfmt=".2f")


if __name__ == "__main__":
    _study.main(main)
