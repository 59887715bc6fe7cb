"""How good the predictor is with so many labels, how long it takes, and whether choosing the labels makes it better.

One supernet is trained; everything is learned from its students, measured on the same validation images, never on the
test split. There are uniform draws, of which each seed holds other ones out; a spread population, from the smallest
sizes to the largest; and two that are only predicted: ``ends``, spread likewise, and ``front``, students that a search
with a predictor of all other labels found best for their cost.

- ``curve``: error, rank correlation and calibration on the held-out draws, by the number of uniform labels.
- ``choice``: at equal numbers of labels, ``uniform`` ones; ``mixed``, drawn at random half from the uniform and half
  from the spread population; and ``active``, chosen in rounds from both by `choose_architectures`. All begin with the
  same uniform ones.
- ``seconds``: to fit the largest number of labels, and to predict 10,000 students.

A seed decides what is held out, the first labels, the choice, and the predictor's folds and initial weights. All
labels and the training leave records in the ``--work`` folder: stop the script whenever you like and start it again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _images
import _record
import _robustness
import _training
import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from proard_nas import Architecture, ProARDEstimator
from proard_nas.attacks import EPS, STEP_SIZE
from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, Labels, label_students
from proard_nas.search import AccuracyPredictor, choose_architectures, search
from proard_nas.search.drawing import first_generation

WORK = _record.RESULTS / ".work"
BARS = {"natural_accuracy": 0.0073, "robust_accuracy": 0.0072}  # the RMSE of the paper's abstract
OUTPUTS = ("natural_accuracy", "robust_accuracy")
FIGURES = ("rmse", "kendall_tau", "r2", "within_1_std", "within_2_std")
ARMS = ("uniform", "mixed", "active")


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is done.

    Parameters
    ----------
    n_train, n_val : int
        Images to train on, and to label on.
    epochs : int
        Of the whole schedule.
    n_calibration : int
        Training images for each student's batch norm statistics.
    eval_steps : int
        Of PGD in labels.
    n_uniform, n_held : int
        Students drawn uniformly; of them held out.
    curve : tuple of int
        Numbers of labels; the last is at most ``n_uniform - n_held``.
    n_spread : int
        Students of the spread population.
    rounds : tuple of int
        Labels after each round of the active choice.
    n_ends, n_front : int
        Students that are only predicted.
    n_generations : int
        Of the search for the front.
    n_predict : int
        Students whose prediction is timed.
    """

    n_train: int
    n_val: int
    epochs: int
    n_calibration: int
    eval_steps: int
    n_uniform: int
    n_held: int
    curve: tuple[int, ...]
    n_spread: int
    rounds: tuple[int, ...]
    n_ends: int
    n_front: int
    n_generations: int = 100
    n_predict: int = 10_000

    def __post_init__(self) -> None:
        for name in ("curve", "rounds"):
            sizes = getattr(self, name)
            if list(sizes) != sorted(set(sizes)) or not 10 <= sizes[0] <= sizes[-1] <= self.n_uniform - self.n_held:
                raise ValueError(f"{name} must rise from at least 10 to at most n_uniform - n_held, got {sizes}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a data set's supernet is trained and attacked."""

    model: str
    eps: float
    step_size: float
    attack: str
    attack_steps: int
    lr: float
    batch_size: int = 64
    weight_decay: float = 2e-4
    ema_decay: float = 0.0
    augment: str = "none"

    def estimator(self, budget: Budget) -> ProARDEstimator:
        return ProARDEstimator(
            **dataclasses.asdict(self),
            epochs=budget.epochs,
            eval_steps=budget.eval_steps,
            n_labels=12,
            n_calibration=budget.n_calibration,
            n_watch=min(200, budget.n_val),
            precision="float32",
            random_state=0,
        )


RECIPES = {
    "digits": Recipe("proard_dyn_resnet_tiny", 0.1, 0.025, "pgd", 5, 0.1),
    "cifar10": Recipe(
        "proard_dyn_resnet_small", EPS, STEP_SIZE, "n-fgsm", 10, 0.1, 128, 5e-4, ema_decay=0.995, augment="crop-flip"
    ),
}
CURVE, ROUNDS = (100, 250, 500, 1000, 1700), (250, 500, 750, 1000)
BUDGETS = {
    "smoke": dict.fromkeys(RECIPES, Budget(
        160, 40, 4, 64, 2, 60, 15, (15, 45), 30, (15, 25, 35), 8, 5, n_generations=4, n_predict=200
    )),
    "laptop": {
        "digits": Budget(847, 500, 48, 256, 10, 2000, 300, CURVE, 500, ROUNDS, 100, 50),
        "cifar10": Budget(13_000, 500, 24, 500, 10, 2000, 300, CURVE, 500, ROUNDS, 100, 50),
    },
    "long": {
        "digits": Budget(747, 600, 120, 512, 20, 2000, 300, CURVE, 1700, ROUNDS, 300, 100),
        "cifar10": Budget(40_000, 10_000, 60, 4000, 20, 2000, 300, CURVE, 1700, ROUNDS, 300, 100),
    },
}  # fmt: skip
SEEDS = {"smoke": (0,), "laptop": (0, 1, 2), "long": (0, 1, 2)}


# -- data, supernet and labels --------------------------------------------------------------------


def load(data: str, file: str | None, budget: Budget) -> tuple[ArraySource, ArraySource]:
    """Return images to train on and to label on, both from the training split."""
    return _images.training_parts(data, file, budget.n_train, budget.n_val, seed=0)


@dataclasses.dataclass(frozen=True)
class Measurer:
    """A trained supernet, and how its students are measured."""

    estimator: ProARDEstimator
    val: ArraySource
    record: Path
    jobs: int

    @property
    def space(self) -> Any:
        return self.estimator.supernet_.space

    def __call__(self, architectures: Sequence[Architecture]) -> Labels:
        est = self.estimator
        attack = AttackSettings("pgd", est.eps, est.step_size, est.eval_steps)
        return label_students(
            est.supernet_, architectures, self.val, est.calibration_images_,
            attack=attack, n_jobs=self.jobs, record=self.record,
        )  # fmt: skip

    def cost(self, arch: Architecture) -> Any:
        return self.estimator.supernet_.cost(arch, self.estimator.image_size_)

    def predictor(self, seed: int, labels: Labels) -> AccuracyPredictor:
        made = AccuracyPredictor(self.space, self.cost, random_state=seed)
        return made.fit(labels.architectures, labels.accuracies)


def train(recipe: Recipe, budget: Budget, sources: tuple[ArraySource, ArraySource], folder: Path) -> ProARDEstimator:
    """Train the supernet, or go on from what the folder holds."""
    train_part, val = sources
    return recipe.estimator(budget).fit(
        train_part.x.numpy(),
        train_part.y.numpy(),
        val_loader=(val.x.numpy(), val.y.numpy()),
        checkpoint_dir=folder / "training",
    )


def populations(measure: Measurer, budget: Budget) -> dict[str, Labels]:
    """Draw and label all students: the same ones every time, and none in two populations."""
    space, rng = measure.space, np.random.default_rng(0)
    drawn = {"uniform": space.sample_distinct(budget.n_uniform, rng)}
    known = set(drawn["uniform"])
    for name, n in (("spread", budget.n_spread), ("ends", budget.n_ends)):
        drawn[name] = []
        while len(drawn[name]) < n:
            arch = first_generation(space, 1, rng)[0]  # the first of each generation is of a drawn size
            if arch not in known:
                drawn[name].append(arch)
                known.add(arch)
    _estimate(measure, drawn["uniform"], sum(map(len, drawn.values())) + budget.n_front)
    found = {name: measure(architectures) for name, architectures in drawn.items()}
    found["front"] = measure(near_front(measure, budget, found))
    return found


def _estimate(measure: Measurer, architectures: Sequence[Architecture], n: int) -> None:
    """Say how long the labels will take that are not in the record."""
    seconds = np.mean([label.seconds for label in measure(architectures[: 2 * measure.jobs]).students])
    done = len(Labels.load(measure.record))
    left = max(0, n - done) * seconds / measure.jobs / 60
    print(f"{seconds:.2f} s for one label, {done} of {n} in the record: about {left:.0f} minutes", flush=True)


def near_front(measure: Measurer, budget: Budget, known: dict[str, Labels]) -> list[Architecture]:
    """Return students that a search finds best for their cost, evenly over cost, and that are not labelled yet.

    Its predictor has learned from all labels, so that it is on no side of the comparison.
    """
    labels = joined(*known.values())
    predictor = measure.predictor(0, labels)
    result = search(
        measure.space, predictor.predict, measure.cost, objectives=(*OUTPUTS, "macs"),
        n_generations=budget.n_generations, seed=0,
    )  # fmt: skip
    labelled = set(labels.architectures)
    front = [c.architecture for c in sorted(result.front, key=lambda c: c.macs) if c.architecture not in labelled]
    places = np.linspace(0, len(front) - 1, min(budget.n_front, len(front))).round()
    return [front[int(place)] for place in places]


def joined(*parts: Labels) -> Labels:
    return Labels(tuple(label for part in parts for label in part.students), parts[0].settings)


def take(labels: Labels, places: Sequence[int]) -> Labels:
    return Labels(tuple(labels.students[int(place)] for place in places), labels.settings)


# -- what is compared -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Split:
    """One seed's part of the uniform draws that is held out, and the rest in the order in which it is learned from."""

    held: Labels
    rest: Labels

    @classmethod
    def of(cls, uniform: Labels, n_held: int, seed: int) -> Split:
        order = np.random.default_rng(seed).permutation(len(uniform)).tolist()
        return cls(take(uniform, order[:n_held]), take(uniform, order[n_held:]))


def active_labels(measure: Measurer, pool: Labels, first: int, rounds: Sequence[int], seed: int) -> Labels:
    """Choose from a labelled pool, whose first ones are the first round."""
    by_architecture = {label.architecture: label for label in pool.students}
    known = take(pool, range(first))
    for total in rounds:
        if total > len(known):
            chosen = choose_architectures(
                measure.predictor(seed, known), total - len(known), known.architectures,
                seed=1000 * seed + len(known), candidates=pool.architectures,
            )  # fmt: skip
            known = joined(known, Labels(tuple(by_architecture[arch] for arch in chosen), pool.settings))
    return known


def mixed_labels(uniform: Labels, spread: Labels, first: int, total: int, seed: int) -> Labels:
    """Draw at random, as many from both as long as the spread ones last, after the same first ones."""
    rng = np.random.default_rng(seed)
    n_spread = min((total - first) // 2, len(spread))
    chosen = take(spread, rng.permutation(len(spread))[:n_spread].tolist())
    return joined(take(uniform, range(total - n_spread)), chosen)


def rows_of(measure: Measurer, budget: Budget, found: dict[str, Labels], seed: int) -> list[dict[str, Any]]:
    """Return the figures of every arm, number of labels, test population and output, for one seed."""
    split = Split.of(found["uniform"], budget.n_held, seed)
    tests = {"held": split.held, "ends": found["ends"], "front": found["front"]}
    first = budget.rounds[0]
    pool = joined(split.rest, found["spread"])
    active = active_labels(measure, pool, first, budget.rounds, seed)
    learned = {("uniform", n): take(split.rest, range(n)) for n in sorted({*budget.curve, *budget.rounds})}
    learned |= {("mixed", n): mixed_labels(split.rest, found["spread"], first, n, seed) for n in budget.rounds}
    learned |= {("active", n): take(active, range(n)) for n in budget.rounds}
    rows = []
    for (arm, n), labels in tqdm(learned.items(), desc=f"seed {seed}", leave=False, disable=None):
        start = time.perf_counter()
        predictor = measure.predictor(seed, labels)
        seconds = time.perf_counter() - start
        for test, known in tests.items():
            report = predictor.evaluate(known.architectures, known.accuracies)
            rows += [
                {"seed": seed, "arm": arm, "n_labels": n, "test": test, "output": output, "fit_seconds": seconds}
                | {figure: report[output][figure] for figure in FIGURES}
                for output in OUTPUTS
            ]
    return rows


def timings(measure: Measurer, budget: Budget, uniform: Labels) -> dict[str, Any]:
    """Return the seconds of one fit of the largest number of labels, and of predicting many students."""
    labels = take(uniform, range(budget.curve[-1]))
    start = time.perf_counter()
    predictor = measure.predictor(0, labels)
    fitted = time.perf_counter()
    architectures = [measure.space.sample(i) for i in range(budget.n_predict)]
    drawn = time.perf_counter()
    predictor.predict(architectures)
    return {
        "n_labels": len(labels),
        "fit": fitted - start,
        "n_predicted": budget.n_predict,
        "predict": time.perf_counter() - drawn,
    }


# -- results --------------------------------------------------------------------------------------


def spread_of(rows: Sequence[dict[str, Any]], figure: str, **wanted: Any) -> dict[str, Any]:
    return _robustness.spread([r[figure] for r in rows if all(r[name] == value for name, value in wanted.items())])


def curve(rows: Sequence[dict[str, Any]], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return the figures on the held-out draws by the number of uniform labels."""
    return [
        {"n_labels": n, "output": output}
        | {f: spread_of(rows, f, arm="uniform", n_labels=n, test="held", output=output) for f in FIGURES}
        for n in sizes
        for output in OUTPUTS
    ]


def choice(rows: Sequence[dict[str, Any]], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return the arms' errors at equal numbers of labels, and the differences from uniform ones, seed by seed."""
    found = []
    for test in ("held", "ends", "front"):
        for output in OUTPUTS:
            for n in sizes:
                row: dict[str, Any] = {"test": test, "output": output, "n_labels": n}
                row |= {a: spread_of(rows, "rmse", arm=a, n_labels=n, test=test, output=output) for a in ARMS}
                for arm in ARMS[1:]:
                    row[f"{arm} - uniform"] = _robustness.compare(row[arm]["seeds"], row["uniform"]["seeds"])
                found.append(row)
    return found


def verdict(row: dict[str, Any], arm: str = "active") -> str:
    """Say in words whether an arm's labels are better than uniform ones: errors are better when they are smaller."""
    found = row[f"{arm} - uniform"]
    figures = f"RMSE {row[arm]['mean']:.4f} against {row['uniform']['mean']:.4f}"
    where = f"{row['test']}, {row['output']}, {row['n_labels']} labels"
    if found["shown"] is None:
        return f"{where}: {figures} in one seed: nothing can be concluded"
    if not found["shown"]:
        return f"{where}: no difference shown ({figures})"
    return f"{where}: {arm if found['mean'] < 0 else 'uniform'} wins{_robustness.mark(found)} ({figures})"


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is said of the comparisons with the most labels."""
    most = max(row["n_labels"] for row in rows)
    return [verdict(row) for row in rows if row["n_labels"] == most]


def bars(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say whether the error on the held-out draws is as small as the paper's, with all labels of the curve."""
    said, n_labels = [], max(row["n_labels"] for row in rows)
    for row in rows:
        if row["n_labels"] < n_labels:
            continue
        output, mean, bar = row["output"], row["rmse"]["mean"], BARS[row["output"]]
        said.append(f"{output}, {n_labels} labels: RMSE {mean:.4f}, {'within' if mean <= bar else 'above'} {bar}")
    return said


def described(measure: Measurer, labels: Labels) -> dict[str, Any]:
    """Return what a population is, and the standard deviation that chance gives a label on so many images."""
    mmacs = [measure.cost(arch).macs / 1e6 for arch in labels.architectures]
    y = labels.accuracies
    return {
        "n": len(labels),
        "mmacs": [min(mmacs), max(mmacs)],
        **{
            name: {
                "mean": float(y[:, i].mean()),
                "std": float(y[:, i].std()),
                "binomial_std": math.sqrt(y[:, i].mean() * (1 - y[:, i].mean()) / labels.settings["n_images"]),
            }
            for i, name in enumerate(OUTPUTS)
        },
        "seconds_a_label": float(np.mean([label.seconds for label in labels.students])),
    }


def run(
    data: str, file: str | None, recipe: Recipe, budget: Budget, seeds: Sequence[int], folder: Path, jobs: int
) -> dict[str, Any]:
    """Train, label and compare on one data set; go on from what the folder holds."""
    settings = {"data": data, "budget": dataclasses.asdict(budget), "recipe": dataclasses.asdict(recipe)}
    sources = load(data, file, budget)
    estimator = train(recipe, budget, sources, folder)
    measure = Measurer(estimator, sources[1], folder / "labels.jsonl", jobs)
    found = populations(measure, budget)
    rows = [row for seed in seeds for row in rows_of(measure, budget, found, seed)]
    return {
        "settings": json.loads(json.dumps(settings)),
        "labels": found["uniform"].settings,
        "seeds": list(seeds),
        "training": {name: entry for name, entry in estimator.spent_.to_dict().items() if name != "labelling"},
        "largest_student": estimator.history_[-1].get("validation"),
        "populations": {name: described(measure, labels) for name, labels in found.items()},
        "curve": curve(rows, budget.curve),
        "choice": choice(rows, budget.rounds),
        "rule": _robustness.RULE,
        "seconds": timings(measure, budget, found["uniform"]),
        "rows": rows,
    }


with_std = functools.partial(_robustness.with_std, digits=4, scale=1)


def text(results: dict[str, Any]) -> str:
    parts = []
    for data, found in results.items():
        b, recipe, given = found["settings"]["budget"], found["settings"]["recipe"], found["labels"]
        parts.append(
            f"{data}: {recipe['model']}, {b['n_train']} training images, {b['epochs']} epochs, inner attack "
            f"{recipe['attack']} of {recipe['attack_steps']} steps; labels on {given['n_images']} validation images, "
            f"naturally and under {given['name'].upper()}-{given['steps']}, eps {given['eps']:.5f}, step "
            f"{given['step_size']:.5f}; mean ± standard deviation over {len(found['seeds'])} seeds"
        )
        rows = [[data, r["n_labels"], r["output"], with_std(r["rmse"]),
                 *(with_std(r[figure], digits=2) for figure in FIGURES[1:])] for r in found["curve"]]  # fmt: skip
        papers = ", ".join(map(str, BARS.values()))
        header = ["data", "labels", "output", f"RMSE\n(paper: {papers})", "Kendall's tau", "R2",
                  "within 1 std\n(right: 0.68)", "within 2 std\n(0.95)"]  # fmt: skip
        parts.append(tabulate(rows, header, disable_numparse=True))
        rows = [[data, r["test"], r["output"], r["n_labels"], *(with_std(r[arm]) for arm in ARMS)]
                for r in found["choice"]]  # fmt: skip
        parts.append(tabulate(rows, ["data", "students", "output", "labels", *(f"{arm}, RMSE" for arm in ARMS)],
                              disable_numparse=True))  # fmt: skip
        s = found["seconds"]
        parts += bars(found["curve"]) + verdicts(found["choice"])
        parts.append(f"{s['fit']:.1f} s to fit {s['n_labels']} labels, {s['predict']:.2f} s to predict "
                     f"{s['n_predicted']} students")  # fmt: skip
    return "\n".join(parts)


# -- command line ---------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=("digits",), help="digits, cifar10=FILE.npz")
    parser.add_argument("--budget", choices=BUDGETS, default="laptop")
    for field in dataclasses.fields(Budget):
        several = {"nargs": "+"} if field.name in ("curve", "rounds") else {}
        option = "--" + field.name.replace("_", "-")
        parser.add_argument(option, type=int, **several, help="in place of the budget's, for every data set")
    parser.add_argument(
        "--eps", type=float, help="of all attacks, in place of the data set's; steps are a quarter of it"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="0 1 2, or 0 with the budget smoke")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that label, of one thread each")
    parser.add_argument("--work", default=WORK, help="folder for records and checkpoints")
    parser.add_argument("--out", default=_record.RESULTS / "predictor.json")
    args = parser.parse_args(argv)
    args.seeds = args.seeds or SEEDS[args.budget]
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run from the command line."""
    args = parse(argv)
    started = time.time()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for given in args.data:
        data, _, file = given.partition("=")
        if data not in RECIPES or (data == "cifar10") != bool(file):
            raise SystemExit(f"--data {given}: allowed are digits and cifar10=FILE.npz")
        changes = {f.name: getattr(args, f.name) for f in dataclasses.fields(Budget)}
        changes = {name: tuple(n) if isinstance(n, list) else n for name, n in changes.items() if n is not None}
        budget = dataclasses.replace(BUDGETS[args.budget][data], **changes)
        recipe, strength = RECIPES[data], ""
        if args.eps is not None:
            recipe = dataclasses.replace(recipe, eps=args.eps, step_size=args.eps / 4)
            strength = f"-eps{args.eps:.4g}"
        folder = _training.ignored_by_git(Path(args.work).resolve()) / f"predictor-{data}-{args.budget}{strength}"
        folder.mkdir(exist_ok=True)
        results[data] = run(data, file or None, recipe, budget, args.seeds, folder, args.jobs)
        path = _record.save(
            args.out, {"budget": args.budget, "jobs": args.jobs, "data": results}, args.seeds[0], started
        )
    print(text(results))
    print("wrote", path)
    return results


if __name__ == "__main__":
    _record.keep_memory()
    main()
