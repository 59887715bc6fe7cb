"""A search as an ordinary Optuna study: opened, written a generation at a time, and read again."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from proard_nas.supernets.space import SearchSpace

from .candidate import Candidate
from .constraints import Constraints
from .objectives import DIRECTIONS, objective_value
from .sampler import Genes, Genotype, Individual

SETTINGS_KEY = "proard_nas:settings"
# The stock sampler's own mark: with it `study.optimize` carries on where our generations end.
GENERATION_KEY = "NSGAIISampler:generation"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What makes two searches the same search, apart from the seed and the number of generations."""

    space: SearchSpace
    objectives: tuple[str, ...]
    constraints: Constraints
    population_size: int
    mutation_prob: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {
            "space": self.space.to_dict(),
            "objectives": list(self.objectives),
            **vars(self.constraints),
            "population_size": self.population_size,
            "mutation_prob": self.mutation_prob,
        }


def open_study(
    settings: Settings, storage: str | Path | BaseStorage | None, study_name: str | None, seed: int
) -> optuna.Study:
    """Create the study, or open the one of that name.

    Parameters
    ----------
    settings : Settings
    storage : str, pathlib.Path, optuna storage or None
        None keeps the study in memory; a URL (``'sqlite:///search.db'``) names a database; any other
        text, and a path, names a journal file.
    study_name : str or None
    seed : int
        For the sampler that the study is left with.

    Raises
    ------
    ValueError
        If the stored study was made with other settings; the message names the first difference.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces each study that is opened
    try:
        study = optuna.create_study(
            storage=_storage(storage),
            study_name=study_name,
            load_if_exists=True,
            directions=[DIRECTIONS[name] for name in settings.objectives],
            sampler=optuna.samplers.NSGAIISampler(
                population_size=settings.population_size, mutation_prob=settings.mutation_prob, seed=seed
            ),
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    _check_settings(study, settings)
    return study


def _storage(given: str | Path | BaseStorage | None) -> str | BaseStorage | None:
    if isinstance(given, Path) or (isinstance(given, str) and "://" not in given):
        return JournalStorage(JournalFileBackend(str(given)))
    return given


def _check_settings(study: optuna.Study, settings: Settings) -> None:
    wanted, stored = settings.to_dict(), study.user_attrs.get(SETTINGS_KEY)
    if stored is None:
        if study.get_trials(deepcopy=False):
            raise ValueError(f"study {study.study_name!r} holds trials of another program; choose another study_name")
        study.set_user_attr(SETTINGS_KEY, wanted)
        return
    for name in sorted(set(wanted) | set(stored)):
        if wanted.get(name) != stored.get(name):
            raise ValueError(
                f"study {study.study_name!r} was made with {name}={stored.get(name)!r}, this search asks for "
                f"{name}={wanted.get(name)!r}; use the same settings or another study_name"
            )


class _CheapToCopy(dict[str, Any]):
    """A dict of values that never change, so that Optuna's deep copy of a trial need not copy them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return dict(self)


def new_trial(
    settings: Settings, genotype: Genotype, genes: Genes, candidate: Candidate, generation: int, number: int
) -> FrozenTrial:
    """Return a finished trial: the genes, the objectives, one constraint for each limit, all figures."""
    figures = {k: v for k, v in vars(candidate).items() if k not in ("architecture", "measured") and v is not None}
    now = datetime.datetime.now()  # without a zone, as Optuna's own
    # Not `create_trial`: it compares every distribution with older forms, a quarter of a search's time.
    trial = FrozenTrial(
        number=number,
        trial_id=-1,
        state=TrialState.COMPLETE,
        value=None,
        values=[objective_value(candidate, name) for name in settings.objectives],
        datetime_start=now,
        datetime_complete=now,
        params=_CheapToCopy(zip(genotype.distributions, genes, strict=True)),
        distributions=_CheapToCopy(genotype.distributions),
        user_attrs=figures,
        system_attrs={GENERATION_KEY: generation},
        intermediate_values={},
    )
    for name, violation in settings.constraints.violations(candidate).items():
        trial.set_constraint(name, violation)
    return trial


def stored_generations(study: optuna.Study, settings: Settings) -> tuple[list[list[Individual]], int]:
    """Read the complete generations of a study, and the number that the next trial will have.

    A generation that was cut off while it was written, and then written again, counts with its last
    ``population_size`` trials; trials that others added to the study do not count.
    """
    trials = study.get_trials(deepcopy=False)
    groups: dict[int, list[Individual]] = {}
    for generation, member in _members(trials, settings):
        groups.setdefault(generation, []).append(member)
    complete: list[list[Individual]] = []
    while len(groups.get(len(complete), ())) >= settings.population_size:
        complete.append(groups[len(complete)][-settings.population_size :])
    return complete, len(trials)


def _members(trials: Sequence[FrozenTrial], settings: Settings) -> Iterator[tuple[int, Individual]]:
    names = [gene.name for gene in settings.space.genes]
    for trial in trials:
        figures, generation = trial.user_attrs, trial.system_attrs.get(GENERATION_KEY)
        if trial.state == TrialState.COMPLETE and generation is not None and "macs" in figures:
            architecture = settings.space.decode([trial.params[name] for name in names])
            yield generation, Individual(trial, Candidate(architecture, **figures))
