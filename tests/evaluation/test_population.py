"""Labels of many students: equal to single evaluations, for any number of workers and processes, and never lost."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import pytest
import timm
import torch
import torch.distributed as dist
from torch.utils.data import TensorDataset
from torchattacks import MIFGSM

from proard_nas.attacks import ATTACKS
from proard_nas.data import ArraySource, DatasetSource
from proard_nas.evaluation import AttackSettings, Labels, calibrate, evaluate, label_students
from proard_nas.evaluation.labelling import run_each

ATTACK = AttackSettings("pgd", 0.05, 0.02, 3)
DEADLINE = 120


def make_net(seed=0):
    """Return a supernet whose weights are far enough from their start that its students differ."""
    torch.manual_seed(seed)
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=4)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


def make_data(net):
    """Return validation images, whose labels the largest student mostly agrees with, and calibration images."""
    generator = torch.Generator().manual_seed(0)
    x, calibration = torch.rand(50, 1, 8, 8, generator=generator), torch.rand(64, 1, 8, 8, generator=generator)
    with torch.no_grad():
        y = calibrate(net.extract(net.space.largest), calibration).eval()(x).argmax(1)
    y[::5] = (y[::5] + 1) % 4
    return ArraySource(x, y), calibration


@pytest.fixture(scope="module")
def net():
    return make_net()


@pytest.fixture(scope="module")
def data(net):
    return make_data(net)


@pytest.fixture(scope="module")
def archs(net):
    return net.space.sample_distinct(5, 0)


@pytest.fixture(scope="module")
def alone(net, data, archs):
    return label_students(net, archs, *data, attack=ATTACK, batch_size=20, seed=1)


def figures(labels):
    return [(s.architecture, s.natural_accuracy, s.robust_accuracy) for s in labels.students]


def lines_of(record):
    return [json.loads(line) for line in record.read_text().splitlines()]


# -- workers -----------------------------------------------------------------------------------


def test_labels_of_two_workers_are_single_evaluations_in_the_order_asked_for(net, data, archs, alone, tmp_path):
    source, calibration = data
    record = tmp_path / "labels.jsonl"
    labels = label_students(
        net, [*archs, archs[0]], *data, attack=ATTACK, batch_size=20, seed=1, n_jobs=2, record=record
    )
    assert labels.architectures == archs
    assert figures(labels) == figures(alone)
    assert len(set(labels.accuracies[:, 1])) > 1
    for label in labels.students:
        student = calibrate(net.extract(label.architecture), calibration, 20)
        assert label.natural_accuracy == evaluate(student, source, "natural", batch_size=20).accuracy
        assert label.robust_accuracy == evaluate(student, source, ATTACK, batch_size=20, seed=1).accuracy
    written = Labels.load(record)
    assert sorted(figures(written), key=str) == sorted(figures(labels), key=str)
    assert len(lines_of(record)) == 1 + len(archs)


def test_workers_know_an_attack_of_ones_own(net, data, archs, monkeypatch):
    monkeypatch.setitem(ATTACKS, "mifgsm", lambda model, eps, step, steps, seed: MIFGSM(model, eps, step, steps))
    attack = dataclasses.replace(ATTACK, name="mifgsm")
    alone = label_students(net, archs[:2], *data, attack=attack)
    assert figures(label_students(net, archs[:2], *data, attack=attack, n_jobs=2)) == figures(alone)


def test_threads_that_share_torchs_generator_measure_the_same(net, data, archs, alone):
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert figures(label_students(net, archs, *data, attack=ATTACK, batch_size=20, seed=1)) == figures(alone)


def counted(folder):
    """Return a function that leaves a file in a folder whenever it is unpacked."""

    class Counted:  # inside, so that it travels by value: a worker cannot import a test
        def __init__(self):
            self.ballast = bytes(2_000_000)  # as large as what joblib maps into memory

        def __setstate__(self, state):
            self.__dict__.update(state)
            (folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()

        def __call__(self, value):
            time.sleep(0.01)
            return value, os.getpid(), torch.get_num_threads()

    return Counted()


def test_each_worker_unpacks_what_all_values_share_once_and_has_one_thread(tmp_path):
    results = list(run_each(counted(tmp_path), range(30), n_jobs=2))
    for file in tmp_path.glob(f"{os.getpid()}-*"):
        file.unlink()
    assert sorted(value for value, _, _ in results) == list(range(30))
    workers = {worker for _, worker, _ in results}
    assert os.getpid() not in workers
    assert sorted(int(file.name.split("-")[0]) for file in tmp_path.iterdir()) == sorted(workers)
    assert {threads for _, _, threads in results} == {1}


def test_lines_are_written_as_students_are_done_and_an_error_loses_none(net, data, archs, tmp_path):
    class Failing(ArraySource):
        """Fails in the third student, after a pass for the checksum."""

        passes = 0

        def batches(self, *args, **kwargs):
            Failing.passes += 1
            if Failing.passes == 4:
                raise RuntimeError("the disk is gone")
            return super().batches(*args, **kwargs)

    source, calibration = data
    record = tmp_path / "labels.jsonl"
    with pytest.raises(RuntimeError, match="the disk is gone"):
        label_students(net, archs, Failing(source.x, source.y), calibration, attack=ATTACK, record=record)
    assert Labels.load(record).architectures == archs[:2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_measures_the_same(net, data, archs, alone, tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
    )
    record = tmp_path / "labels.jsonl"
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        labels = label_students(net, archs, *data, attack=ATTACK, batch_size=20, seed=1, record=record)
        where = {worker for _, worker, _ in run_each(counted(tmp_path), range(20))}
    assert figures(labels) == figures(alone)
    assert len(lines_of(record)) == 1 + len(archs)
    unpacked = [int(file.name.split("-")[0]) for file in tmp_path.glob("[0-9]*-[0-9]*")]
    assert os.getpid() not in where and sorted(unpacked) == sorted(where)


# -- the record --------------------------------------------------------------------------------


def test_fewer_images_are_drawn_by_the_seed_and_recorded(net, data, archs, tmp_path):
    source, calibration = data
    record = tmp_path / "labels.jsonl"
    labels = label_students(net, archs, *data, attack=ATTACK, n_images=20, record=record)
    assert lines_of(record)[0]["settings"] == labels.settings
    assert (labels.settings["n_images"], labels.settings["steps"]) == (20, 3)
    first = label_students(net, archs, source.head(20), calibration, attack=ATTACK)
    assert first.accuracies.tolist() != labels.accuracies.tolist()
    assert figures(label_students(net, archs, *data, attack=ATTACK, n_images=20)) == figures(labels)
    assert figures(label_students(net, archs, *data, attack=ATTACK, n_images=50)) == figures(
        label_students(net, archs, *data, attack=ATTACK)
    )


def test_whoever_asks_is_told_of_each_label_as_it_is_recorded(net, data, archs, tmp_path):
    record, seen = tmp_path / "labels.jsonl", []
    label_students(net, archs[:2], *data, attack=ATTACK, record=record)
    labels = label_students(
        net, archs, *data, attack=ATTACK, record=record, on_label=lambda one: seen.append((one, len(lines_of(record))))
    )
    assert seen == list(zip(labels.students[2:], (4, 5, 6), strict=True))


def test_a_record_of_other_weights_is_refused(net, data, archs, tmp_path):
    record = tmp_path / "labels.jsonl"
    label_students(net, archs[:1], *data, attack=ATTACK, record=record)
    with pytest.raises(ValueError, match="measured with weights='"):
        label_students(make_net(seed=1), archs[:1], *data, attack=ATTACK, record=record)


def test_a_record_from_before_batch_size_and_weights_were_recorded_is_gone_on_with(net, data, archs, tmp_path):
    record = tmp_path / "labels.jsonl"
    label_students(net, archs[:2], *data, attack=ATTACK, record=record)
    settings, *labels = lines_of(record)
    for name in ("batch_size", "weights"):
        del settings["settings"][name]
    old = "".join(json.dumps(line) + "\n" for line in (settings, *labels))
    record.write_text(old)
    label_students(net, archs[:2], *data, attack=ATTACK, record=record)
    assert record.read_text() == old
    with pytest.raises(ValueError, match="batch_size=256, not 20"):
        label_students(net, archs[:2], *data, attack=ATTACK, record=record, batch_size=20)


@pytest.mark.parametrize("torn", ["", '{"settings": {"na', "\x00"])
def test_a_record_without_one_whole_line_is_begun_anew(net, data, archs, tmp_path, torn):
    record = tmp_path / "labels.jsonl"
    record.write_text(torn)
    labels = label_students(net, archs[:1], *data, attack=ATTACK, record=record)
    assert Labels.load(record) == labels


def test_other_numbers_of_processes_go_on_from_the_same_labels(net, data, archs, alone, tmp_path, monkeypatch):
    settings = {"settings": alone.settings}
    for i, name in enumerate(("labels-0-of-2.jsonl", "labels-1-of-2.jsonl")):
        rows = [settings, *(label.to_dict() for label in alone.students[i::2])]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "labels-of-mine.jsonl").write_text("not a record\n")
    monkeypatch.setattr("proard_nas.evaluation.population.label_student", None)
    labels = label_students(net, archs, *data, attack=ATTACK, batch_size=20, seed=1, record=tmp_path / "labels.jsonl")
    assert labels == alone


# -- kills and processes -----------------------------------------------------------------------

N_STUDENTS = 16


def main(task, folder, number):
    """Label in a process of its own: ``kill`` as one with some workers, ``pair`` as one of two processes."""
    torch.set_num_threads(1)
    net = make_net()
    source, calibration = make_data(net)
    record = folder / "labels.jsonl"
    if task == "kill":
        archs = net.space.sample_distinct(N_STUDENTS, 3)
        labels = label_students(net, archs, source, calibration, record=record, n_jobs=number)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        meeting, patience = f"file://{folder / 'meeting'}", datetime.timedelta(seconds=DEADLINE / 2)
        dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=2, timeout=patience)
        archs = net.space.sample_distinct(5, 0)
        labels = label_students(net, archs, source, calibration, attack=ATTACK, batch_size=20, seed=1, record=record)
        dist.destroy_process_group()
    labels.save(folder / f"{task}-{number}.out")


def start(*arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def end(process):
    """End what a killed process may have left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_two_processes_measure_half_each_and_know_all(archs, alone, tmp_path):
    processes = [start("pair", tmp_path, rank) for rank in range(2)]
    try:
        assert [process.wait(DEADLINE) for process in processes] == [0, 0]
    finally:
        for process in processes:
            end(process)
    for rank in range(2):
        assert figures(Labels.load(tmp_path / f"pair-{rank}.out")) == figures(alone)
        assert Labels.load(tmp_path / f"labels-{rank}-of-2.jsonl").architectures == archs[rank::2]
    assert not (tmp_path / "labels.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_killed_at_random_nothing_is_lost_and_nothing_measured_twice(net, data, tmp_path, n_jobs):
    archs, record = net.space.sample_distinct(N_STUDENTS, 3), tmp_path / "labels.jsonl"
    draw, before, kills = random.Random(n_jobs), [], 0
    while not (tmp_path / f"kill-{n_jobs}.out").exists():
        process = start("kill", tmp_path, n_jobs)
        try:
            wanted, deadline = len(before) + draw.randint(3, 6), time.monotonic() + DEADLINE
            while process.poll() is None and (not record.exists() or record.read_text().count("\n") < wanted):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.05))
            kills += process.poll() is None
            process.kill()
        finally:
            process.wait()
            after = record.read_text().split("\n")[:-1]
            end(process)
        assert after[: len(before)] == before
        before = after
    assert kills >= 2
    written = Labels.load(record)
    assert len(written) == len(set(written.architectures)) == N_STUDENTS
    whole = label_students(net, archs, *data)
    assert figures(Labels.load(tmp_path / f"kill-{n_jobs}.out")) == figures(whole)
    assert sorted(figures(written), key=str) == sorted(figures(whole), key=str)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))


@pytest.mark.parametrize(("grown", "trims"), [(1_000_000, 0), (250_000_000, 1)])
def test_a_worker_gives_memory_back_once_much_has_gathered(monkeypatch, grown, trims):
    from proard_nas.evaluation import labelling

    calls, pages = [], iter([1000, 1000 + grown // labelling.os.sysconf("SC_PAGE_SIZE")])
    monkeypatch.setattr(labelling, "_used_at_first", {})
    monkeypatch.setattr(labelling.Path, "read_text", lambda self: f"9 {next(pages)} 9")
    monkeypatch.setattr(
        labelling.ctypes, "CDLL", lambda name: type("Library", (), {"malloc_trim": staticmethod(calls.append)})
    )
    labelling._give_back_memory()
    labelling._give_back_memory()
    assert calls == [0] * trims


def test_a_system_without_such_a_call_is_left_alone(monkeypatch):
    from proard_nas.evaluation import labelling

    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr(labelling.Path, "read_text", missing)
    labelling._give_back_memory()


def test_a_record_of_other_images_is_refused(net, data, archs, tmp_path):
    source, calibration = data
    record = tmp_path / "labels.jsonl"
    label_students(net, archs[:2], source, calibration, attack=ATTACK, record=record)
    other = ArraySource(source.x.flip(-1).contiguous(), source.y)
    with pytest.raises(ValueError, match="images_checksum"):
        label_students(net, archs[:2], other, calibration, attack=ATTACK, record=record)
    dataset = DatasetSource(TensorDataset(source.x, source.y))
    with pytest.raises(ValueError, match="whether arrays and a dataset hold the same images is not known"):
        label_students(net, archs[:2], dataset, calibration, attack=ATTACK, record=record)
    lines = record.read_text().splitlines()
    settings = json.loads(lines[0])
    del settings["settings"]["images_checksum"]  # as older versions wrote it
    record.write_text("\n".join([json.dumps(settings), *lines[1:]]) + "\n")
    label_students(net, archs[:2], source, calibration, attack=ATTACK, record=record)


def test_a_record_of_other_calibration_images_is_refused(net, data, archs, tmp_path):
    source, calibration = data
    record = tmp_path / "labels.jsonl"
    label_students(net, archs[:2], *data, attack=ATTACK, record=record)
    with pytest.raises(ValueError, match="calibration_checksum"):
        label_students(net, archs[:2], source, calibration.flip(-1), attack=ATTACK, record=record)
    settings, *labels = lines_of(record)
    del settings["settings"]["calibration_checksum"]  # as older versions wrote it
    old = "".join(json.dumps(line) + "\n" for line in (settings, *labels))
    record.write_text(old)
    label_students(net, archs[:2], *data, attack=ATTACK, record=record)
    assert record.read_text() == old


@pytest.mark.parametrize(
    "foreign",
    [
        b"notes without a newline",
        b"notes\nand more",
        b'{"a": 1}\n{"b',
        b"[1, 2]\n3",
        b'{"settings": 3}\n',
        b"\xff\xfe\n\0",
    ],
)
@pytest.mark.parametrize("name", ["labels.jsonl", "labels-1-of-2.jsonl"])
def test_a_file_that_is_no_record_is_refused_and_left_as_it_is(net, data, archs, tmp_path, name, foreign):
    (tmp_path / name).write_bytes(foreign)
    with pytest.raises(ValueError, match=rf"{name} (is no record of labels|is damaged).*"):
        label_students(net, archs[:1], *data, attack=ATTACK, record=tmp_path / "labels.jsonl")
    with pytest.raises(ValueError, match=rf"{name} (is no record of labels|is damaged).*"):
        Labels.load(tmp_path / name)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: foreign}


def test_a_record_with_a_line_of_others_is_refused_by_name(net, data, archs, tmp_path):
    record = tmp_path / "labels.jsonl"
    label_students(net, archs[:1], *data, attack=ATTACK, record=record)
    content = record.read_bytes() + b'{"architecture": 3}\ntorn'
    record.write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.jsonl is damaged"):
        label_students(net, archs[:1], *data, attack=ATTACK, record=record)
    assert record.read_bytes() == content


def test_fewer_images_are_known_by_those_that_are_drawn(net, data, archs, tmp_path):
    source, calibration = data
    record, options = tmp_path / "labels.jsonl", {"attack": ATTACK, "n_images": 20}
    label_students(net, archs[:1], source, calibration, **options, record=record)
    turned = source.take(range(len(source) - 1, -1, -1))
    with pytest.raises(ValueError, match="images_checksum"):
        label_students(net, archs[:1], turned, calibration, **options, record=record)
    whole = tmp_path / "whole.jsonl"
    first = label_students(net, archs[:1], source, calibration, attack=ATTACK, record=whole)
    assert label_students(net, archs[:1], turned, calibration, attack=ATTACK, record=whole) == first


def test_a_call_that_fails_before_its_first_label_leaves_the_record_to_the_next(net, data, archs, tmp_path):
    source, calibration = data
    record = tmp_path / "labels.jsonl"
    with pytest.raises(ValueError, match="out of range"):
        label_students(net, archs[:1], ArraySource(source.x, source.y + 10), calibration, attack=ATTACK, record=record)
    assert len(lines_of(record)) == 1
    labels = label_students(net, archs[:1], source, calibration, attack=ATTACK, record=record)
    assert Labels.load(record) == labels


def test_what_cannot_be_measured_is_refused_before_a_record_is_begun(net, data, archs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    for wrong, error in (({"batch_size": 0}, ValueError), ({"attack": "autoattack-reference"}, ImportError)):
        with pytest.raises(error, match=r"batch_size|proard-nas\[autoattack\]"):
            label_students(net, archs[:1], *data, **wrong, record=tmp_path / "labels.jsonl")
    assert not list(tmp_path.iterdir())
