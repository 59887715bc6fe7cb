"""How fast the search for students is, what it finds against other searches, and whether it keeps its limits.

All on synthetic surfaces of accuracy and robustness over the real spaces: smooth, saturating with size, with a
trade-off between the two that is mild or strong, learned by an `AccuracyPredictor` from noisy labels as in practice.
``speed``: 10,000 candidates with the library, with pymoo's NSGA-II and with Optuna's stock sampler (of fewer trials),
and the hypervolume of each front (bar: 10 s for the library). ``random``: hypervolume against uniform random search of
as many predictions. ``recall``: the share of the true front, known from enumerating a whole space, that each seed
finds, without and with the refinement of the front (bar: 1). ``limits``: random combinations of limits with short
searches; a student on a front that breaks one is an error (bar: none), and whether somebody could have kept the
limits of a search that raised is known from the enumeration. ``warm_start``: hypervolume after a few generations that
started with the best labelled students, and with none. Seconds are of wall time and, less disturbed by other load on
the machine, of this process; the load is written down.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import _record
import _robustness
import numpy as np
import optuna
import timm
from numpy.typing import NDArray
from tabulate import tabulate

import proard_nas  # noqa: F401  (registers the networks)
from proard_nas.search import AccuracyPredictor, SearchResult, search
from proard_nas.search.objectives import non_dominated
from proard_nas.supernets import Architecture, SearchSpace
from proard_nas.supernets.cost import Cost

Matrix = NDArray[np.float64]
SMALL_MODEL = "proard_dyn_resnet_tiny"
TRADE_OFFS = {"mild": 3.0, "strong": 0.3}  # what helps both accuracies, against what helps one
NOISE = 0.004  # of a label: about that of 10,000 images
TIME_BAR = 10.0


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is run.

    Attributes
    ----------
    models : tuple of str
        For what needs no enumeration.
    small : dict
        Choices that the enumerated space is restricted to.
    n_labels, population_size, n_generations, n_seeds : int
    stock_trials : int
        For Optuna's stock sampler, whose time grows with the square.
    n_limits : int
        Random combinations of limits.
    """

    models: tuple[str, ...] = ("proard_dyn_resnet50", "proard_dyn_mobilenetv3")
    small: dict[str, Any] = dataclasses.field(default_factory=dict)
    n_labels: int = 1700
    population_size: int = 100
    n_generations: int = 100
    n_seeds: int = 10
    stock_trials: int = 2000
    n_limits: int = 1000

    @property
    def size(self) -> dict[str, int]:
        return {"population_size": self.population_size, "n_generations": self.n_generations}


BUDGETS = {
    "laptop": Budget(),
    "smoke": Budget((SMALL_MODEL,), {"width_mults": (0.5, 1.0), "expand_ratios": (0.25, 0.5)}, 60, 20, 5, 2, 60, 20),
}


# -- the surface that is searched ---------------------------------------------------------------


class Surface:
    """Natural and robust accuracy as smooth functions of the architecture.

    Each gene's place among its choices, from 0 to 1, has a weight for each accuracy, part of it shared and part of
    it of opposite signs; both saturate with the sum, and pairs of genes interact.
    """

    def __init__(self, space: SearchSpace, seed: int, shared: float) -> None:
        rng = np.random.default_rng(seed)
        n = len(space.genes)
        self.space = space
        self.places = [{c: i / max(1, len(g.choices) - 1) for i, c in enumerate(sorted(g.choices))}
                       for g in space.genes]  # fmt: skip
        sign, size = rng.choice([-1.0, 1.0], n), rng.gamma(2.0, 1.0, n)
        self.weights = np.stack([size * (shared + sign), size * (shared - sign)], axis=1)
        self.weights /= np.abs(self.weights).sum(axis=0)
        self.pairs = rng.normal(0, 1 / n, (2, n, n))

    def __call__(self, archs: Sequence[Architecture]) -> Matrix:
        """Return natural and robust accuracy, shape (n, 2)."""
        z = np.array([self._row(arch) for arch in archs])
        centred = z - 0.5
        interaction = np.stack([((centred @ pairs) * centred).sum(axis=1) for pairs in self.pairs], axis=1)
        saturated = 1 - np.exp(-2 * (z @ self.weights))
        return np.clip([0.78, 0.46] + saturated * [0.09, 0.08] + 0.02 * interaction, 0, 1)

    def _row(self, arch: Architecture) -> list[float]:
        """Return the places of the genes; 0 for those of absent blocks."""
        blocks = self.space.n_blocks(arch)
        pairs = zip(self.space.genes, self.space.to_genes(arch), self.places, strict=True)
        return [
            place[value] if gene.block is None or gene.block < blocks[gene.stage or 0] else 0.0
            for gene, value, place in pairs
        ]


@dataclasses.dataclass
class Problem:
    """A space with its costs, a fitted predictor and the labels it was fitted to."""

    space: SearchSpace
    cost: Callable[[Architecture], Cost]
    predictor: AccuracyPredictor
    archs: list[Architecture]
    labels: Matrix
    report: dict[str, Any]

    @classmethod
    def of(cls, model: str, budget: Budget, seed: int, trade_off: str, **choices: Any) -> Problem:
        net = timm.create_model(model, num_classes=10)
        space = net.space.restrict(**choices)
        archs = space.sample_distinct(min(budget.n_labels, space.size // 2), seed)
        noise = np.random.default_rng(seed).normal(0, NOISE, (len(archs), 2))
        labels = np.clip(Surface(space, seed, TRADE_OFFS[trade_off])(archs) + noise, 0, 1)
        predictor = AccuracyPredictor(space, net.cost, random_state=seed)
        return cls(space, net.cost, predictor, archs, labels, predictor.holdout(archs, labels))

    def limit(self, quantile: float) -> float | None:
        """Return the MMACs that such a part of the labelled students keeps to; None for all."""
        macs = [self.cost(arch).macs for arch in self.archs]
        return None if quantile == 1 else float(np.quantile(macs, quantile)) / 1e6

    def search(self, seed: int, **arguments: Any) -> SearchResult:
        return search(self.space, self.predictor.predict, self.cost, seed=seed, progress=False, **arguments)


# -- the others ---------------------------------------------------------------------------------


def pymoo_module(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"pymoo.{name}")
    except ImportError as error:
        raise ImportError('this benchmark compares with pymoo: pip install "proard-nas[bench]"') from error


def hypervolume(points: Matrix, reference: Matrix) -> float:
    """Return the area that the points dominate above a reference point, both accuracies made large."""
    better = points[(points > reference).all(axis=1)]
    if not len(better):
        return 0.0
    return float(pymoo_module("indicators.hv").HV(ref_point=-reference)(-better))


def front_points(result: SearchResult) -> Matrix:
    return np.array([(c.natural_accuracy, c.robust_accuracy) for c in result.front])


def reference_of(problem: Problem) -> Matrix:
    """Return the lowest predicted accuracies of the labelled students: the same point for every front."""
    reference: Matrix = problem.predictor.predict(problem.archs).min(axis=0)
    return reference


def pymoo_front(problem: Problem, budget: Budget, seed: int, max_flops: float | None) -> Matrix:
    """Run pymoo's NSGA-II with the same predictor, limit, crossover and mutation."""
    choices = [gene.choices for gene in problem.space.genes]
    tops = np.array([len(c) - 1 for c in choices])

    class Students(pymoo_module("core.problem").Problem):  # type: ignore[misc]
        def __init__(self) -> None:
            n_limits = int(max_flops is not None)
            super().__init__(n_var=len(tops), n_obj=2, n_ieq_constr=n_limits, xl=0 * tops, xu=tops, vtype=int)

        def _evaluate(self, x: Any, out: dict[str, Any], *_: Any, **__: Any) -> None:
            archs = [problem.space.decode([c[i] for c, i in zip(choices, row, strict=True)]) for row in x]
            out["F"] = -problem.predictor.predict(archs)
            if max_flops is not None:
                out["G"] = np.array([problem.cost(arch).macs / 1e6 / max_flops - 1 for arch in archs])

    class Redraw(pymoo_module("core.mutation").Mutation):  # type: ignore[misc]
        def _do(self, _: Any, x: Any, *__: Any, random_state: Any = None, **___: Any) -> Any:
            rng = random_state or np.random.default_rng(seed)
            return np.where(rng.random(x.shape) < 0.1, rng.integers(0, tops + 1, x.shape), x)

    algorithm = pymoo_module("algorithms.moo.nsga2").NSGA2(
        pop_size=budget.population_size,
        sampling=pymoo_module("operators.sampling.rnd").IntegerRandomSampling(),
        crossover=pymoo_module("operators.crossover.ux").UX(),
        mutation=Redraw(prob=1.0),
    )
    minimize = pymoo_module("optimize").minimize
    found = minimize(Students(), algorithm, ("n_gen", budget.n_generations), seed=seed)
    return np.empty((0, 2)) if found.F is None else -np.atleast_2d(found.F)


def stock_front(problem: Problem, budget: Budget, seed: int, max_flops: float | None) -> Matrix:
    """Run Optuna's own NSGA-II on the same objective, one student at a time as it asks for them."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.NSGAIISampler(population_size=budget.population_size, mutation_prob=0.1, seed=seed)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    for _ in range(budget.stock_trials):
        trial = study.ask()
        arch = problem.space.decode([trial.suggest_categorical(g.name, g.choices) for g in problem.space.genes])
        if max_flops is not None:
            trial.set_constraint("max_flops", problem.cost(arch).macs / 1e6 - max_flops)
        study.tell(trial, problem.predictor.predict([arch])[0].tolist())
    return np.array([trial.values for trial in study.best_trials]).reshape(-1, 2)


# -- measures -----------------------------------------------------------------------------------


def measure_speed(budget: Budget, seed: int) -> dict[str, Any]:
    """Time the library, pymoo and the stock sampler, and compare their fronts."""
    found: dict[str, Any] = {}
    for model in budget.models:
        problem = Problem.of(model, budget, seed, "mild")
        limit, reference = problem.limit(0.3), reference_of(problem)
        runs: dict[str, Callable[[], Matrix]] = {
            "library": lambda p=problem, m=limit: front_points(p.search(seed, max_flops=m, **budget.size)),
            "library, not refined": lambda p=problem, m=limit: front_points(
                p.search(seed, max_flops=m, refine=False, **budget.size)
            ),
            "pymoo": lambda p=problem, m=limit: pymoo_front(p, budget, seed, m),
            f"Optuna, {budget.stock_trials} trials": lambda p=problem, m=limit: stock_front(p, budget, seed, m),
        }
        rows = {}
        for name, run in runs.items():
            points, seconds = timed(run)
            rows[name] = {**seconds, "hypervolume": hypervolume(points, reference), "front": len(points)}
        found[model] = {"max_flops": limit, "reference": reference.tolist(), "predictor": problem.report, "runs": rows}
    return {"candidates": budget.population_size * budget.n_generations, "bar_s": TIME_BAR, "models": found}


def timed(action: Callable[[], Matrix]) -> tuple[Matrix, dict[str, float]]:
    wall, own = time.perf_counter(), time.process_time()
    value = action()
    return value, {"wall_s": time.perf_counter() - wall, "process_s": time.process_time() - own}


def measure_random(budget: Budget, seed: int) -> dict[str, Any]:
    """Compare hypervolumes with those of uniform draws of as many predictions."""
    found: dict[str, Any] = {}
    for model in budget.models:
        problem = Problem.of(model, budget, seed, "mild")
        reference = reference_of(problem)
        for quantile in (1, 0.3, 0.05):
            limit = problem.limit(quantile)
            rows = [_against_random(problem, budget, limit, reference, seed + i) for i in range(budget.n_seeds)]
            ratios = [row["search"] / row["random"] if row["random"] else None for row in rows]
            found[f"{model}, limit {'none' if limit is None else f'{limit:.4g} MMACs'}"] = {
                "max_flops": limit,
                "search": _robustness.spread([row["search"] for row in rows]),
                "random": _robustness.spread([row["random"] for row in rows]),
                "wins": sum(row["search"] > row["random"] for row in rows),
                "ratios": ratios,
                "seeds": rows,
            }
    return found


def _against_random(
    problem: Problem, budget: Budget, limit: float | None, reference: Matrix, seed: int
) -> dict[str, float]:
    result = problem.search(seed, max_flops=limit, **budget.size)
    drawn = problem.space.sample_distinct(min(result.n_evaluated, problem.space.size), seed)
    kept = [arch for arch in drawn if limit is None or problem.cost(arch).macs / 1e6 <= limit]
    points = problem.predictor.predict(kept) if kept else np.empty((0, 2))
    return {
        "search": hypervolume(front_points(result), reference),
        "random": hypervolume(points, reference),
        "predictions": result.n_evaluated,
        "random_feasible": len(kept),
    }


class Enumerated:
    """A whole space with the predictor's figures of every architecture; looking one up costs nothing."""

    def __init__(self, problem: Problem) -> None:
        self.space = problem.space
        self.archs = list(problem.space)
        self.place = {arch: i for i, arch in enumerate(self.archs)}
        self.costs = [problem.cost(arch) for arch in self.archs]
        self.macs = np.array([cost.macs for cost in self.costs])
        self.params = np.array([cost.params for cost in self.costs])
        parts = [self.archs[i : i + 5000] for i in range(0, len(self.archs), 5000)]
        self.accuracies = np.concatenate([problem.predictor.predict(part) for part in parts])
        # A device that a wide stem and many blocks slow down, and multiply-accumulates do not.
        self.latencies = np.array([1.0 + 2 * a.width_mult[0] + 0.5 * sum(a.depth) for a in self.archs])

    def search(self, seed: int, **arguments: Any) -> SearchResult:
        return search(
            self.space,
            lambda archs: self.accuracies[[self.place[arch] for arch in archs]],
            lambda arch: self.costs[self.place[arch]],
            seed=seed,
            progress=False,
            **arguments,
        )

    def front(self, max_flops: float) -> set[Architecture]:
        feasible = np.flatnonzero(self.macs / 1e6 <= max_flops)
        return {self.archs[i] for i in feasible[non_dominated(-self.accuracies[feasible])]}

    def keep(self, limits: Mapping[str, float]) -> NDArray[np.bool_]:
        """Tell who keeps all limits, without the library's own code for it."""
        within = {
            "max_flops": lambda limit: self.macs / 1e6 <= limit,
            "min_flops": lambda limit: self.macs / 1e6 >= limit,
            "max_params": lambda limit: self.params <= limit,
            "max_latency_ms": lambda limit: self.latencies <= limit,
            "min_natural_accuracy": lambda limit: self.accuracies[:, 0] >= limit,
            "min_robust_accuracy": lambda limit: self.accuracies[:, 1] >= limit,
        }
        return np.logical_and.reduce([within[name](limit) for name, limit in limits.items()])


def measure_recall(budget: Budget, seed: int) -> dict[str, Any]:
    """Find out how much of the true front each seed finds."""
    found: dict[str, Any] = {}
    for trade_off in TRADE_OFFS:
        space = Enumerated(Problem.of(SMALL_MODEL, budget, seed, trade_off, **budget.small))
        for quantile in (1, 0.3, 0.02):
            limit = float(np.quantile(space.macs, quantile)) / 1e6
            true = space.front(limit)
            rows: dict[str, Any] = {}
            for name, refine in (("not refined", False), ("refined", True)):
                results = [
                    space.search(seed + i, max_flops=limit, refine=refine, **budget.size) for i in range(budget.n_seeds)
                ]
                fronts = [{c.architecture for c in result.front} for result in results]
                rows[name] = {
                    "recall": [len(front & true) / len(true) for front in fronts],
                    "precision": [len(front & true) / len(front) for front in fronts],
                    "predictions": [result.n_evaluated for result in results],
                }
            found[f"{trade_off} trade-off, {limit:.4g} MMACs"] = {
                "architectures": len(space.archs),
                "max_flops": limit,
                "true_front": len(true),
                **rows,
            }
    return found


def measure_limits(budget: Budget, seed: int) -> dict[str, Any]:
    """Set random limits and count students of a front that break one, and searches that raised."""
    space = Enumerated(Problem.of(SMALL_MODEL, budget, seed, "strong", **budget.small))
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("searches", "front", "infeasible", "raised_rightly", "raised_although_possible"), 0)
    missed = []
    for i in range(budget.n_limits):
        limits = random_limits(space, rng)
        kept = space.keep(limits)
        latency = (lambda arch: float(space.latencies[space.place[arch]])) if "max_latency_ms" in limits else None
        counts["searches"] += 1
        try:
            result = space.search(seed + i, latency=latency, population_size=20, n_generations=10, **limits)
        except ValueError as error:
            if "limit" not in str(error) and not any(name in str(error) for name in limits):
                raise
            possible = int(kept.sum())
            counts["raised_although_possible" if possible else "raised_rightly"] += 1
            missed += [{"limits": limits, "who_keep_them": possible}] if possible else []
            continue
        counts["front"] += len(result.front)
        counts["infeasible"] += sum(not kept[space.place[c.architecture]] for c in result.front)
    return {**counts, "architectures": len(space.archs), "missed": missed}


def random_limits(space: Enumerated, rng: np.random.Generator) -> dict[str, float]:
    """Draw one to four limits, each at a random quantile of its figure: some are easy, some kept by nobody."""
    figures = {
        "max_flops": space.macs / 1e6,
        "min_flops": space.macs / 1e6,
        "max_params": space.params,
        "max_latency_ms": space.latencies,
        "min_natural_accuracy": space.accuracies[:, 0],
        "min_robust_accuracy": space.accuracies[:, 1],
    }
    names = rng.choice(list(figures), size=rng.integers(1, 5), replace=False).tolist()
    limits = {name: float(np.quantile(figures[name], rng.random())) for name in names}
    if limits.get("min_flops", 0) > limits.get("max_flops", np.inf):  # that alone is refused
        limits["min_flops"], limits["max_flops"] = limits["max_flops"], limits["min_flops"]
    return limits


def measure_warm_start(budget: Budget, seed: int) -> dict[str, Any]:
    """Compare hypervolumes after a few generations, with and without the best labelled students in the first."""
    found: dict[str, Any] = {}
    for model in budget.models:
        problem = Problem.of(model, budget, seed, "mild")
        reference = reference_of(problem)
        for quantile in (1, 0.05):
            limit = problem.limit(quantile)
            starts = {"none": [], "labelled": best_labelled(problem, limit, budget.population_size // 5)}
            for n in sorted({max(1, budget.n_generations // part) for part in (20, 5, 1)}):
                rows = {
                    name: _robustness.spread(
                        [
                            hypervolume(
                                front_points(
                                    problem.search(
                                        seed + i,
                                        max_flops=limit,
                                        warm_start=start,
                                        population_size=budget.population_size,
                                        n_generations=n,
                                        refine=False,
                                    )
                                ),
                                reference,
                            )
                            for i in range(budget.n_seeds)
                        ]
                    )
                    for name, start in starts.items()
                }
                where = "none" if limit is None else f"{limit:.4g} MMACs"
                found[f"{model}, limit {where}, {n} generations"] = {
                    "warm_starts": len(starts["labelled"]),
                    **rows,
                    "ratio": rows["labelled"]["mean"] / rows["none"]["mean"] if rows["none"]["mean"] else None,
                }
    return found


def best_labelled(problem: Problem, limit: float | None, n: int) -> list[Architecture]:
    """Return the feasible labelled students by layers of non-domination, at most ``n``."""
    left = [i for i, a in enumerate(problem.archs) if limit is None or problem.cost(a).macs / 1e6 <= limit]
    chosen: list[int] = []
    while left and len(chosen) < n:
        layer = non_dominated(-problem.labels[left])
        chosen += [i for i, keep in zip(left, layer, strict=True) if keep]
        left = [i for i, keep in zip(left, layer, strict=True) if not keep]
    return [problem.archs[i] for i in chosen[:n]]


# -- the command --------------------------------------------------------------------------------

MEASURES: dict[str, Callable[[Budget, int], dict[str, Any]]] = {
    "speed": measure_speed,
    "random": measure_random,
    "recall": measure_recall,
    "limits": measure_limits,
    "warm_start": measure_warm_start,
}


def summary(name: str, found: Mapping[str, Any]) -> str:
    """Return a measure as a table."""
    if name == "speed":
        rows = [
            [model, who, run["wall_s"], ("yes" if run["wall_s"] <= found["bar_s"] else "no") * (who == "library"),
             run["process_s"], run["hypervolume"], run["front"]]
            for model, f in found["models"].items()
            for who, run in f["runs"].items()
        ]  # fmt: skip
        bar = f"within {found['bar_s']:g} s"
        return tabulate(rows, ["supernet", "by", "wall, s", bar, "process, s", "hypervolume", "front"], floatfmt=".4g")
    if name == "recall":
        rows = [
            [where, f["true_front"], who, min(f[who]["recall"]), statistics.fmean(f[who]["recall"])]
            for where, f in found.items()
            for who in ("not refined", "refined")
        ]
        return tabulate(rows, ["where", "true front", "search", "least recall", "mean recall"], floatfmt=".4f")
    if name == "limits":
        return tabulate([(k, v) for k, v in found.items() if k != "missed"])
    pair = ("search", "random") if name == "random" else ("labelled", "none")
    rows = [[where, *(f[side][key] for side in pair for key in ("mean", "std"))] for where, f in found.items()]
    return tabulate(rows, ["where", *(f"{side}, {key}" for side in pair for key in ("mean", "std"))], floatfmt=".4g")


def failures(results: Mapping[str, Any]) -> list[str]:
    """Return what must never be: a front that breaks a limit."""
    broken = results.get("limits", {}).get("infeasible", 0)
    return [f"{broken} students on fronts break a limit"] if broken else []


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=BUDGETS, default="laptop")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=tuple(MEASURES))
    parser.add_argument("--seeds", type=int, help="for each comparison; otherwise the budget's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=_record.RESULTS / "search.json")
    args = parser.parse_args()
    started, budget = time.time(), BUDGETS[args.budget]
    if args.seeds:
        budget = dataclasses.replace(budget, n_seeds=args.seeds)
    results: dict[str, Any] = {"budget": dataclasses.asdict(budget), "load_average": {}}
    for name in args.only:
        before = os.getloadavg()[0]
        results[name] = MEASURES[name](budget, args.seed)
        results["load_average"][name] = [before, os.getloadavg()[0]]
        print(f"{name}\n{summary(name, results[name])}\n", flush=True)
        path = _record.save(args.out, results, args.seed, started)
    print("wrote", path)
    if failures(results):
        sys.exit("; ".join(failures(results)))


if __name__ == "__main__":
    main()
