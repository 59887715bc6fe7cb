"""The multi-objective search for students: Optuna's NSGA-II over predicted accuracy and robustness."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from proard_nas._numbers import fraction, whole_number
from proard_nas.supernets.architecture import Architecture
from proard_nas.supernets.space import SearchSpace

from .candidate import ACCURACIES, CostFunction, LatencyFunction, PredictFunction
from .constraints import Constraints
from .ledger import Ledger
from .objectives import check_objectives, front_of
from .result import GenerationRecord, SearchResult

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from .evolution import Evolution

logger = logging.getLogger(__name__)


def search(
    space: SearchSpace,
    predict: PredictFunction,
    cost: CostFunction,
    *,
    max_flops: float | None = None,
    min_flops: float | None = None,
    max_params: float | None = None,
    max_latency_ms: float | None = None,
    latency: LatencyFunction | None = None,
    min_natural_accuracy: float | None = None,
    min_robust_accuracy: float | None = None,
    objectives: Sequence[str] = ACCURACIES,
    population_size: int = 100,
    n_generations: int = 100,
    mutation_prob: float = 0.1,
    seed: int | None = None,
    storage: str | Path | BaseStorage | None = None,
    study_name: str | None = None,
    warm_start: Sequence[Architecture] = (),
    refine: bool = True,
    progress: bool = True,
) -> SearchResult:
    """Search a space for the students that no other student beats (section 4.5 of the paper).

    The result's front is the non-dominated set of all distinct feasible students that were looked
    at, not only of the last generation. The first generation holds the smallest and the largest
    student, so that a limit that only the smallest student keeps is met. After the last one the
    front is refined: students one or two choices away from its own are looked at, too.

    Parameters
    ----------
    space : SearchSpace
        Costs must grow, or stay, with every choice: the limits are checked against those of its
        smallest and largest architecture.
    predict : callable
        Takes a list of n architectures, returns their natural and robust accuracy in [0, 1] as an array
        of shape (n, 2). Called at most once for each generation, with architectures not seen before,
        and a few times to refine the front.
    cost : callable
        Takes an architecture, returns an object with ``macs`` and ``params``, both whole numbers.
    max_flops, min_flops : float or None, default=None
        In MMACs, millions of multiply-accumulates for one image: the unit of the paper's "FLOPs".
        The limit itself is allowed.
    max_params : float or None, default=None
        Number of learned parameters.
    max_latency_ms : float or None, default=None
        Milliseconds; needs ``latency``.
    latency : callable or None, default=None
        Takes an architecture, returns milliseconds. Called once for each distinct architecture.
    min_natural_accuracy, min_robust_accuracy : float or None, default=None
        Least predicted accuracy, in [0, 1].
    objectives : sequence of str, default=('natural_accuracy', 'robust_accuracy')
        Of ``natural_accuracy``, ``robust_accuracy`` (made large), ``macs``, ``params`` and ``latency``
        (made small).
    population_size, n_generations : int, default=100
        At least 2 and 1. A continued study gets ``n_generations`` more, and may get 0: what is left of a search that
        was stopped while it refined the front.
    mutation_prob : float, default=0.1
        Probability that a gene of a child is redrawn.
    seed : int or None, default=None
        The same seed gives the same front; None draws one, which the result tells.
    storage : str, pathlib.Path, optuna storage or None, default=None
        Where the Optuna study is written, generation by generation: a path is a journal file (10,000
        candidates take some 15 s more), text with ``://`` a database (SQLite: about ten minutes).
        None keeps it in memory.
    study_name : str or None, default=None
        With ``storage``: a study of that name is continued.
    warm_start : sequence of Architecture, default=()
        Architectures that join the first generation of this call. If there are more than fit, the best
        of them do. Those that have joined an earlier generation of a continued study do not again.
    refine : bool, default=True
        Whether to refine the front, with as many more predictions, at most, as all generations of the study
        could take. In spaces that were enumerated it found the last of the true front's members. What
        earlier calls have found so in a continued study counts in either case.
    progress : bool, default=True
        Show a progress bar on a terminal.

    Returns
    -------
    SearchResult

    Raises
    ------
    ValueError
        If an argument is out of its range, a limit cannot be kept (the message names the smallest
        or largest student's cost, or the nearest student found), the predictor returns NaN, or the
        stored study was made with other settings or another predictor.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> space = SearchSpace(depths=(0, 1), base_depths=(1, 1), expand_ratios=(0.25, 0.5))
    >>> def cost(arch):
    ...     return SimpleNamespace(macs=10**6 * sum(space.n_blocks(arch)), params=1000)
    >>> def predict(archs):
    ...     return np.array([[0.1 * len(a.expand_ratio[0]), 0.5 - 0.1 * sum(a.depth)] for a in archs])
    >>> result = search(space, predict, cost, max_flops=3, population_size=10, n_generations=5, seed=0)
    >>> max(candidate.mmacs for candidate in result.front)
    3.0
    """
    from .evolution import Evolution
    from .studies import Settings, open_study

    objectives = check_objectives(objectives, latency is not None)
    constraints = Constraints(
        max_flops, min_flops, max_params, max_latency_ms, min_natural_accuracy, min_robust_accuracy
    )
    if max_latency_ms is not None and latency is None:
        raise ValueError(
            "max_latency_ms needs latency=, a function that takes an architecture and returns milliseconds"
        )
    constraints.check_reachable(cost(space.smallest), cost(space.largest))
    settings = Settings(
        space,
        objectives,
        constraints,
        whole_number("population_size", population_size, 2),
        fraction("mutation_prob", mutation_prob),
    )
    n_generations = whole_number("n_generations", n_generations, 0)
    seed = int(np.random.default_rng().integers(2**31)) if seed is None else whole_number("seed", seed, 0)
    if seed >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {seed}")
    warm_start = [space.validate(arch) for arch in warm_start]

    study = open_study(settings, storage, study_name, seed)
    evolution = Evolution(study, settings, Ledger(predict, cost, latency), seed)
    if n_generations + evolution.generation == 0:
        raise ValueError("n_generations must be at least 1, got 0, which only a study that has generations may get")
    if n_generations:
        _run(evolution, n_generations, warm_start, progress)
    evolution.recall_refined(again=refine)
    if refine:
        evolution.refine(budget=settings.population_size * evolution.generation)
    return _result(evolution, seed)


def _run(evolution: Evolution, n_generations: int, warm_start: Sequence[Architecture], progress: bool) -> None:
    immigrants = evolution.immigrants(warm_start)
    # disable=None: silent where there is no terminal.
    for _ in tqdm(range(n_generations), desc="search", unit="gen", disable=None if progress else True, delay=2):
        evolution.step(immigrants)
        immigrants = []


def _result(evolution: Evolution, seed: int) -> SearchResult:
    settings, candidates = evolution.settings, evolution.ledger.candidates
    feasible = [candidate for candidate in candidates if settings.constraints.are_kept_by(candidate)]
    if not feasible:
        nearest = settings.constraints.nearest(candidates)
        raise ValueError(f"none of {len(candidates)} students keeps all limits: {nearest}")
    front = front_of(feasible, settings.objectives)
    logger.info("%d students on the front, of %d feasible and %d in all", len(front), len(feasible), len(candidates))
    last = [member.candidate for member in evolution.survivors]
    records = tuple(
        GenerationRecord.of(number, members, settings.constraints)
        for number, members in ((0, evolution.first), (evolution.generation, last))
    )
    return SearchResult(
        front=front,
        objectives=settings.objectives,
        constraints=settings.constraints.to_dict(),
        seed=seed,
        n_evaluated=len(candidates),
        generations=records,
        study=evolution.study,
    )
