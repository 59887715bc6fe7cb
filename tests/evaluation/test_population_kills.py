"""Labelling that is killed at random moments and started again: nothing is lost, and nothing is recorded twice.

A nursery, which has imported everything, forks each life, so that a life costs no imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch

from proard_nas.data import ArraySource
from proard_nas.evaluation import AttackSettings, Labels, calibrate, label_students

ATTACK = AttackSettings("pgd", 0.05, 0.02, 4)
STUDENTS_A_KILL = 6  # more than a life can label before it is killed
DEADLINE = 500  # of a nursery; workers of its own make a life slow to begin
POLL = 0.001

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that use torch")


def label(n_students, n_jobs=None, record=None):
    """Label the same students on the same images, whoever calls."""
    torch.manual_seed(0)
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=4)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x, calibration = torch.rand(40, 1, 8, 8), torch.rand(32, 1, 8, 8)
    with torch.no_grad():  # labels that the largest student mostly agrees with
        y = calibrate(net.extract(net.space.largest), calibration).eval()(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    archs = net.space.sample_distinct(n_students, 3)
    return label_students(
        net, archs, ArraySource(x, y), calibration, attack=ATTACK, n_jobs=n_jobs, record=record, progress=False
    )


def figures(labels):
    return [(s.architecture, s.natural_accuracy, s.robust_accuracy) for s in labels.students]


def whole_lines(record):
    """Return what a reader may rely on: the lines that end in a newline."""
    return record.read_bytes().split(b"\n")[:-1] if record.exists() else []


# -- in the nursery ----------------------------------------------------------------------------


def fork(n_students, n_jobs, record, out):
    """Start a life; return its process, which leads a group of its own and its workers'."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        label(n_students, n_jobs, record).save(out)
        status = 0
    finally:
        os._exit(status)


def live(pid, record, wanted, delay, end):
    """Kill a life some time after its record has so many lines; return whether it was killed before its end."""
    moment = None
    while True:
        assert time.monotonic() < end, "the machine is too slow"
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        if moment is None and len(whole_lines(record)) >= wanted:
            moment = time.monotonic() + delay
        if moment is not None and time.monotonic() >= moment:
            break
        time.sleep(POLL)
    os.kill(pid, signal.SIGKILL)  # itself alone, as an operating system does that runs out of memory
    os.waitpid(pid, 0)
    return True


def nursery(folder, n_jobs, kills, seconds):
    """Kill lives until enough were killed, then let one end; write down each life."""
    end = time.monotonic() + seconds
    torch.set_num_threads(1)
    record, out = folder / "labels.jsonl", folder / "out.jsonl"
    draw = random.Random(kills)
    lives = []
    while not out.exists():
        before = whole_lines(record)
        more = kills > sum(life["killed"] for life in lives)
        wanted = len(before) + (2, 0, 1)[len(lives) % 3] if more else 10**9
        delay = draw.uniform(0, 0.1)
        pid = fork(STUDENTS_A_KILL * kills, n_jobs, record, out)
        try:
            killed = live(pid, record, wanted, delay, end)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # workers that it left
        kept = whole_lines(record)
        lives.append(
            {"killed": killed, "before": len(before), "after": len(kept), "kept": kept[: len(before)] == before}
        )
        assert killed or out.exists(), "a life failed"
    (folder / "lives.json").write_text(json.dumps(lives))


def killed(folder, n_jobs, kills, seconds=DEADLINE):
    """Return each life of a labelling that was killed so often."""
    command = [sys.executable, __file__, str(folder), str(n_jobs), str(kills), str(seconds)]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=seconds + 60)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "lives.json").read_text())


# -- what is promised --------------------------------------------------------------------------


def check(folder, lives, kills):
    n_students = STUDENTS_A_KILL * kills  # each has a line, after that of the settings
    assert sum(life["killed"] for life in lives) >= kills
    assert all(life["kept"] for life in lives), "a whole line was lost or changed"
    assert [life["before"] for life in lives[1:]] == [life["after"] for life in lives[:-1]]
    assert sum(1 < life["after"] <= n_students for life in lives) >= kills / 2, "too few died on the way"
    written = Labels.load(folder / "labels.jsonl")
    assert len(written) == len(set(written.architectures)) == n_students
    whole = label(n_students)
    assert len({robust for _, _, robust in figures(whole)}) > 2
    assert figures(Labels.load(folder / "out.jsonl")) == figures(whole)
    assert sorted(figures(written), key=str) == sorted(figures(whole), key=str)
    assert written.settings == whole.settings


def test_killed_three_times_no_label_is_lost_or_recorded_twice(tmp_path):
    check(tmp_path, killed(tmp_path, None, 3), 3)


@pytest.mark.slow
@pytest.mark.timeout(4 * DEADLINE)
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_killed_twelve_times_no_label_is_lost_or_recorded_twice(tmp_path, n_jobs):
    check(tmp_path, killed(tmp_path, n_jobs, 12, 3 * DEADLINE), 12)


if __name__ == "__main__":
    nursery(Path(sys.argv[1]), None if sys.argv[2] == "None" else int(sys.argv[2]), *map(int, sys.argv[3:]))
