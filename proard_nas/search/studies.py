"""A search as an ordinary Optuna study: opened, written a generation at a time, and read again."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from proard_nas._folders import check_json_lines
from proard_nas.supernets.architecture import Architecture
from proard_nas.supernets.space import SearchSpace

from .candidate import Candidate
from .constraints import Constraints
from .objectives import DIRECTIONS, objective_value
from .sampler import Genes, Genotype, Individual

logger = logging.getLogger(__name__)

SETTINGS_KEY = "proard_nas:settings"
# The stock sampler's own mark: with it `study.optimize` carries on where our generations end.
GENERATION_KEY = "NSGAIISampler:generation"
MEMBER_KEY = "proard_nas:member"
REFINED_KEY = "proard_nas:refined_after"
WARM_START_KEY = "proard_nas:warm_starts"
LOCK_SECONDS = 10
"""So long is a journal's lock left alone that nobody seems to hold: one that was killed leaves it behind."""
Lock = JournalFileOpenLock if os.name == "nt" else JournalFileSymlinkLock
"""Of journals: on Windows a symbolic link needs a privilege."""


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
        If the stored study was made with other settings or directions; the message names the first difference. If a
        file is no journal of a study; it is left as it is. If a database cannot be opened.
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
    except _database_errors() as error:
        where, reason = re.sub("//[^/]*@", "//", str(storage)), str(error).partition("\n")[0]  # without a password
        raise ValueError(f"the storage {where} cannot be opened: {reason}") from error
    finally:
        optuna.logging.set_verbosity(verbosity)
    _check_settings(study, settings)
    return study


def _database_errors() -> tuple[type[Exception], ...]:
    """Return the errors of Optuna's databases, which derive from no error that tells them from a mistake here."""
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError, optuna.exceptions.OptunaError


def _storage(given: str | Path | BaseStorage | None) -> str | BaseStorage | None:
    if isinstance(given, Path) or (isinstance(given, str) and "://" not in given):
        path = Path(given).resolve()  # a relative path makes a lock that never counts as left behind
        lock = Lock(str(path), grace_period=LOCK_SECONDS)
        if path.exists():
            check_json_lines(path, "op_code", "journal of a study")
        _cut_torn_line(path, lock)
        return JournalStorage(JournalFileBackend(str(path), lock))
    return given


def _cut_torn_line(path: Path, lock: JournalFileOpenLock | JournalFileSymlinkLock) -> None:
    """Remove a last line that was not written whole: the next one would be appended to it."""
    if not path.exists() or _ends_whole(path):
        return
    lock.acquire()  # the line may be one that is being written
    try:
        if not _ends_whole(path):
            text = path.read_bytes()
            os.truncate(path, text.rfind(b"\n") + 1)
            logger.warning("%s: removed a last line that had not been written whole", path)
    finally:
        lock.release()


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _check_settings(study: optuna.Study, settings: Settings) -> None:
    wanted = settings.to_dict()
    if SETTINGS_KEY not in study.user_attrs and study.get_trials(deepcopy=False):
        raise ValueError(f"study {study.study_name!r} holds trials of another program; choose another study_name")
    stored = study.user_attrs.get(SETTINGS_KEY, wanted)
    for name in sorted(set(wanted) | set(stored)):
        if wanted.get(name) != stored.get(name):
            raise ValueError(
                f"study {study.study_name!r} was made with {name}={stored.get(name)!r}, this search asks for "
                f"{name}={wanted.get(name)!r}; use the same settings or another study_name"
            )
    directions = [direction.name.lower() for direction in study.directions]
    if directions != [DIRECTIONS[name] for name in settings.objectives]:
        raise ValueError(
            f"study {study.study_name!r} has the directions {directions}, which are not those of the objectives "
            f"{', '.join(settings.objectives)}; choose another study_name"
        )
    if SETTINGS_KEY not in study.user_attrs:
        study.set_user_attr(SETTINGS_KEY, wanted)


class _CheapToCopy(dict[str, Any]):
    """A dict of values that never change, so that Optuna's deep copy of a trial need not copy them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return dict(self)


def new_trial(
    settings: Settings,
    genotype: Genotype,
    genes: Genes,
    candidate: Candidate,
    generation: int,
    index: int | None,
    number: int,
) -> FrozenTrial:
    """Return a finished trial: the genes, the objectives, one constraint for each limit, all figures.

    The index is the member's in its generation; None marks what a refinement has found after so many generations.
    """
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
        system_attrs={REFINED_KEY: generation} if index is None else {GENERATION_KEY: generation, MEMBER_KEY: index},
        intermediate_values={},
    )
    for name, violation in settings.constraints.violations(candidate).items():
        trial.set_constraint(name, violation)
    return trial


class Stored(NamedTuple):
    """What a study holds of earlier searches.

    Parameters
    ----------
    generations : list of list of Individual
        The complete ones.
    interrupted : list of Individual
        The first members of one that was cut off while it was written, as the last attempt wrote them.
    refined : list of Individual
        What refinements have added to the front.
    n_trials : int
        The number that the next trial will have.
    """

    generations: list[list[Individual]]
    interrupted: list[Individual]
    refined: list[Individual]
    n_trials: int


def read_study(study: optuna.Study, settings: Settings) -> Stored:
    """Read what earlier searches have left in the study.

    A generation that was cut off and then written anew, with another seed, counts as it was written last: from
    the last first member on, or, of studies older than the members' indices, with its last ``population_size``
    trials. Trials that others added to the study do not count.
    """
    trials = study.get_trials(deepcopy=False)
    groups: dict[int, list[Individual]] = {}
    refined: list[Individual] = []
    for member in _members(trials, settings):
        generation = member.trial.system_attrs.get(GENERATION_KEY)
        if generation is not None:
            group = groups.setdefault(generation, [])
            index = member.trial.system_attrs.get(MEMBER_KEY, len(group))
            if index == 0:
                group.clear()
            if index == len(group):
                group.append(member)
        elif REFINED_KEY in member.trial.system_attrs:
            refined.append(member)
    complete: list[list[Individual]] = []
    while len(groups.get(len(complete), ())) >= settings.population_size:
        complete.append(groups[len(complete)][-settings.population_size :])
    return Stored(complete, groups.get(len(complete), []), refined, len(trials))


def _members(trials: Sequence[FrozenTrial], settings: Settings) -> Iterator[Individual]:
    names = [gene.name for gene in settings.space.genes]
    for trial in trials:
        if trial.state == TrialState.COMPLETE and "macs" in trial.user_attrs:
            architecture = settings.space.decode([trial.params[name] for name in names])
            yield Individual(trial, Candidate(architecture, **trial.user_attrs))


def join_once(study: optuna.Study, warm_start: Sequence[Architecture], generation: int) -> list[Architecture]:
    """Return those of a warm start that are to join a generation: not who was given to an earlier one of this study.

    Without it, a search that was stopped and asked for again would differ from one in a single part.
    """
    given: dict[str, int] = dict(study.user_attrs.get(WARM_START_KEY, {}))
    joining = [arch for arch in warm_start if given.setdefault(_digest(arch), generation) == generation]
    if joining:
        study.set_user_attr(WARM_START_KEY, given)  # before the generation: it may be cut off
    return joining


def _digest(architecture: Architecture) -> str:
    text = json.dumps(architecture.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
