"""A search that is stopped at any moment goes on from its study: nothing is lost, nothing is looked at twice."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import pytest

from proard_nas.search import search, studies
from proard_nas.supernets.space import SearchSpace

SPACE = SearchSpace(
    depths=(0, 1), base_depths=(1, 2, 1), expand_ratios=(0.2, 0.25, 0.35), width_mults=(0.5, 1), n_widths=4
)
POPULATION, GENERATIONS = 8, 6
SETTINGS = {"max_flops": 20.0, "population_size": POPULATION, "seed": 0, "progress": False}
PROBES = 50  # stored students that are predicted again, to see that the predictor is the same


class Cost(NamedTuple):
    macs: int
    params: int


class Stopped(BaseException):
    """What a test stops a search with."""


def cost(arch):
    return Cost(int(1e6 * sum(arch.width_mult) * 10 * sum(r for row in arch.expand_ratio for r in row)), 1000)


def predict(archs):
    first = np.array([sum(a.expand_ratio[0]) + a.width_mult[1] for a in archs])
    last = np.array([sum(a.expand_ratio[2]) - a.width_mult[3] + sum(a.depth) for a in archs])
    return np.column_stack([0.4 + 0.1 * first - 0.05 * last, 0.3 + 0.1 * last - 0.05 * first])


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "refined"])
def refine(request):
    return request.param


@pytest.fixture(scope="module")
def whole(refine):
    return search(SPACE, predict, cost, n_generations=GENERATIONS, refine=refine, **SETTINGS)


@pytest.fixture
def storage(kind, tmp_path):
    return str(tmp_path / "search.log") if kind == "journal" else f"sqlite:///{tmp_path}/search.db"


def stored(storage):
    """Return the study's trials as another reader sees them."""
    opened = studies._storage(storage)
    return optuna.load_study(storage=opened, study_name="s").get_trials(deepcopy=False)


def written(storage):
    """Return how many trials there are, without opening the study, which mends what another is still writing."""
    if not storage.startswith("sqlite"):
        path = Path(storage)
        return path.read_bytes().count(b'"op_code":4') if path.exists() else 0
    with contextlib.closing(sqlite3.connect(storage.removeprefix("sqlite:///"))) as database:
        try:
            return database.execute("SELECT COUNT(*) FROM trials").fetchone()[0]
        except sqlite3.OperationalError:  # not there yet, or locked
            return 0


def go_on(storage, refine, function=predict):
    """Run what is left of the search, as far as the study tells."""
    names = optuna.get_all_study_names(studies._storage(storage))
    done = len(stored(storage)) // POPULATION if "s" in names else 0
    n = max(0, GENERATIONS - done)
    return search(SPACE, function, cost, storage=storage, study_name="s", n_generations=n, refine=refine, **SETTINGS)


def assert_same(result, whole, trials):
    assert result.to_dict() == whole.to_dict()
    assert [(t.number, t.params, t.values) for t in trials] == [
        (t.number, t.params, t.values) for t in whole.study.trials
    ]


@pytest.mark.parametrize(("kind", "seed"), [("journal", 0), ("journal", 1), ("journal", 2), ("sqlite", 3)])
def test_stopped_at_random_moments(storage, whole, refine, monkeypatch, seed):
    """While it predicts, and between any two trials that are written."""
    rng = np.random.default_rng(seed)
    add = optuna.Study.add_trial

    def life(n_trials, n_calls):
        """Run until so many trials were written, or so many predictions made."""
        known = {t.params.values() for t in stored(storage)} if n_started else set()
        known = {tuple(values) for values in known}
        counts = {"trials": 0, "calls": 0}

        def adding(study, trial):
            if counts["trials"] == n_trials:
                raise Stopped
            counts["trials"] += 1
            add(study, trial)

        def watched(archs):
            counts["calls"] += 1
            again = [a for a in archs if tuple(SPACE.to_genes(a)) in known]
            assert len(again) <= (PROBES if counts["calls"] == 1 else 0)
            if counts["calls"] == n_calls:
                raise Stopped
            return predict(archs)

        monkeypatch.setattr(optuna.Study, "add_trial", adding)
        return go_on(storage, refine, watched)

    n_started = 0
    while n_started < 4:
        with pytest.raises(Stopped):
            life(*((int(rng.integers(1, 12)), None) if rng.random() < 0.7 else (None, int(rng.integers(1, 3)))))
        n_started += 1
    assert_same(life(None, None), whole, stored(storage))


@pytest.mark.parametrize("refine", [True], indirect=True)
@pytest.mark.parametrize("n_written", [0, 1, 4])
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_stopped_while_it_refines(storage, whole, refine, monkeypatch, n_written):
    """Nothing that it has found is predicted or written again, and the result is that of a search in one part."""
    add, n_trials = optuna.Study.add_trial, POPULATION * GENERATIONS + n_written
    assert len(whole.study.trials) > n_trials

    def adding(study, trial):
        if trial.number == n_trials:
            raise Stopped
        add(study, trial)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", adding)
        with pytest.raises(Stopped):
            go_on(storage, refine)
    found = {tuple(t.params.values()) for t in stored(storage)}
    assert len(stored(storage)) == n_trials
    asked = []
    result = go_on(storage, refine, lambda archs: (asked.append(archs), predict(archs))[1])
    assert not [arch for archs in asked[1:] for arch in archs if tuple(SPACE.to_genes(arch)) in found]
    assert_same(result, whole, stored(storage))
    assert_same(go_on(storage, refine), whole, stored(storage))


def test_no_generation_is_refused_where_there_is_none(tmp_path):
    for stored_in in ({}, {"storage": tmp_path / "search.log", "study_name": "s"}):
        with pytest.raises(ValueError, match="n_generations must be at least 1, got 0, which only a study that has"):
            search(SPACE, predict, cost, n_generations=0, **stored_in, **SETTINGS)


def test_a_torn_last_line_of_a_journal_is_removed(tmp_path, whole, refine):
    path = tmp_path / "search.log"
    search(SPACE, predict, cost, storage=path, study_name="s", n_generations=2, refine=False, **SETTINGS)
    text = path.read_bytes()
    path.write_bytes(text[: text.rfind(b"\n", 0, -1) + 40])
    result = go_on(str(path), refine)
    assert_same(result, whole, stored(str(path)))
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.timeout(60)
def test_a_lock_that_was_left_behind_is_removed_also_for_a_relative_path(tmp_path, whole, refine, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    options = {"storage": "runs/s.log", "study_name": "s", "refine": False, **SETTINGS}
    search(SPACE, predict, cost, n_generations=2, **options)
    made = []
    real = os.symlink
    monkeypatch.setattr(os, "symlink", lambda *where: made.append(where) or real(*where))
    search(SPACE, predict, cost, n_generations=1, **options)
    monkeypatch.setattr(os, "symlink", real)
    target, lock = made[0]
    Path(lock).symlink_to(target)
    monkeypatch.setattr(studies, "LOCK_SECONDS", 3)
    assert_same(go_on("runs/s.log", refine), whole, stored("runs/s.log"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["journal", "sqlite"])
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_killed_at_random_moments(storage, whole, refine, monkeypatch):
    """Each time soon after a drawn number of new trials was written, one every few milliseconds."""
    monkeypatch.setattr(studies, "LOCK_SECONDS", 3)
    add = optuna.Study.add_trial
    monkeypatch.setattr(optuna.Study, "add_trial", lambda study, trial: (add(study, trial), time.sleep(0.005)))
    rng = np.random.default_rng(0)
    killed, before = 0, 0
    while True:
        wanted = before + int(rng.integers(1, 9)) if killed < 5 else math.inf
        pid, status = os.fork(), None
        if pid == 0:
            try:
                go_on(storage, refine)
                os._exit(0)
            finally:
                os._exit(1)
        while status is None and written(storage) < wanted:
            time.sleep(0.001)
            ended, found = os.waitpid(pid, os.WNOHANG)
            status = found if ended else None
        if status is None:
            time.sleep(rng.uniform(0, 0.01))
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        killed += 1
        if optuna.get_all_study_names(studies._storage(storage)):
            after = len(stored(storage))
            assert after >= before
            before = after
    assert killed >= 3
    assert_same(go_on(storage, refine), whole, stored(storage))


@pytest.mark.parametrize(
    "foreign", [b"notes", b"notes\nand more", b'{"a": 1}\n', b"[1, 2]\n3", b"SQLite format 3\0\xff"]
)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path, foreign):
    path = tmp_path / "search.log"
    path.write_bytes(foreign)
    with pytest.raises(ValueError, match=r"search\.log is no journal of a study, and was left as it is; give another"):
        search(SPACE, predict, cost, storage=path, n_generations=1, refine=False, **SETTINGS)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"search.log": foreign}


@pytest.mark.parametrize("torn", [b"", b'{"op', b'{"op_code":0,"worker_id":"a'])
def test_a_journal_without_one_whole_line_is_begun_anew(tmp_path, torn, whole, refine):
    path = tmp_path / "search.log"
    path.write_bytes(torn)
    assert_same(go_on(str(path), refine), whole, stored(str(path)))
