"""Labels in rounds and after fit: the same table however often a run stops, and never of different settings."""

from __future__ import annotations

import copy
import json
import shutil
import signal

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from torch.utils.data import TensorDataset

from proard_nas import ProARDEstimator, SearchResult, _labelling, _searching
from proard_nas._random import derive_seed
from proard_nas._searching import verified
from proard_nas.data import ArraySource
from proard_nas.evaluation import population
from proard_nas.evaluation.population import images_checksum
from proard_nas.search import Candidate, active
from proard_nas.training import Stage, Trainer, accounting

SMALL = {
    "model": "proard_dyn_resnet_tiny",
    "model_args": {"width_mults": [0.25, 0.5]},
    "schedule": [Stage("teacher", 2, "trades", lr=0.1)],
    "batch_size": 64,
    "eps": 0.1,
    "step_size": 0.05,
    "attack_steps": 1,
    "eval_steps": 2,
    "n_labels": 12,
    "n_calibration": 64,
    "n_watch": 0,
    "precision": "float32",
    "random_state": 0,
    "progress": False,
}
ACTIVE = {**SMALL, "label_choice": "active", "label_rounds": 3, "n_labels": 24}


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype("float32").reshape(-1, 1, 8, 8), y


@pytest.fixture(scope="module")
def train(digits):
    return digits[0][:256], digits[1][:256]


@pytest.fixture(scope="module")
def val(digits):
    return digits[0][256:296], digits[1][256:296]


@pytest.fixture(scope="module")
def once_fitted(train, val):
    return ProARDEstimator(**SMALL).fit(*train, val_loader=val)


@pytest.fixture
def fitted(once_fitted):
    return copy.deepcopy(once_fitted)


@pytest.fixture
def loaded(once_fitted, tmp_path):
    once_fitted.save(tmp_path / "est")
    return ProARDEstimator.load(tmp_path / "est")


@pytest.fixture(scope="module")
def active_folder(train, val, tmp_path_factory):
    folder = tmp_path_factory.mktemp("active") / "run"
    return folder, ProARDEstimator(**ACTIVE).fit(*train, val_loader=val, checkpoint_dir=folder)


@pytest.fixture(autouse=True, scope="module")
def few_candidates():
    """Look at few candidates, to save time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(active, "N_CANDIDATES", 100)
        patch.setattr(active, "N_REFERENCES", 50)
        yield


def table(estimator):
    return [(s.architecture, s.natural_accuracy, s.robust_accuracy) for s in estimator.labels_.students]


def without_seconds(record):
    return [line.split('"seconds"')[0] for line in record.splitlines()]


def no_measuring(monkeypatch):
    monkeypatch.setattr(population, "label_student", None)


# -- in rounds --------------------------------------------------------------------------------


def test_the_first_round_is_uniform_and_the_others_bring_new_students(active_folder):
    _, est = active_folder
    architectures = est.labels_.architectures
    uniform = est.supernet_.space.sample_distinct(24, derive_seed(est.seed_, "labels"))
    assert len(set(architectures)) == 24
    assert architectures[:12] == uniform[:12]
    assert architectures[12:] != uniform[12:]
    assert est.predictor_.n_labels_ == 24


@pytest.mark.parametrize("n_left", [5, pytest.param(19, marks=pytest.mark.slow)])
def test_labelling_stopped_in_any_round_goes_on_to_the_same_table(
    active_folder, train, val, tmp_path, monkeypatch, n_left
):
    folder, est = active_folder
    shutil.copytree(folder, tmp_path / "run")
    record = tmp_path / "run" / "labels.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    assert len(lines) == 25
    record.write_text("".join(lines[: 1 + n_left]) + lines[1 + n_left][:20])
    monkeypatch.setattr(Trainer, "step", None)
    again = ProARDEstimator(**ACTIVE).fit(*train, val_loader=val, checkpoint_dir=tmp_path / "run")
    assert table(again) == table(est)
    assert without_seconds(record.read_text()) == without_seconds("".join(lines))


@pytest.mark.parametrize("n_left", [0, 24])
def test_what_labelling_spent_is_of_the_whole_of_it_however_often_it_stops(
    active_folder, train, val, tmp_path, monkeypatch, n_left
):
    """Each student took 100 s by its line in the record, far more than it takes to measure it."""
    folder, est = active_folder
    shutil.copytree(folder, tmp_path / "run")
    record = tmp_path / "run" / "labels.jsonl"
    first, *lines = [json.loads(line) for line in record.read_text().splitlines()]
    lines = [{**line, "seconds": 100.0} for line in lines[:n_left]]
    record.write_text("".join(json.dumps(line) + "\n" for line in [first, *lines]))
    monkeypatch.setattr(Trainer, "step", None)
    again = ProARDEstimator(**ACTIVE).fit(*train, val_loader=val, checkpoint_dir=tmp_path / "run")
    spent, whole = again.spent_.entries["labelling"], est.spent_.entries["labelling"]
    assert 100 * n_left < spent.seconds < 100 * n_left + 60
    assert (spent.macs, spent.images, spent.steps) == (whole.macs, whole.images, whole.steps)
    assert n_left == 0 or spent.energy_joules is None


def test_parameters_of_labelling_are_kept_in_a_saved_estimator(active_folder, tmp_path):
    _, est = active_folder
    est.save(tmp_path / "est")
    again = ProARDEstimator.load(tmp_path / "est")
    assert again.get_params() == est.get_params()
    assert (again.label_choice, again.label_rounds, again.n_jobs) == ("active", 3, None)
    assert again.labels_.settings == est.labels_.settings


@pytest.mark.slow
def test_several_processes_measure_the_same(fitted, val):
    alone = copy.deepcopy(fitted).label(20)
    assert table(fitted.set_params(n_jobs=2).label(20)) == table(alone)


# -- after fit --------------------------------------------------------------------------------


def test_more_labels_later_are_what_fit_would_have_measured(fitted, train, val):
    whole = ProARDEstimator(**{**SMALL, "n_labels": 20}).fit(*train, val_loader=val)
    assert fitted.label(20) is fitted
    assert table(fitted) == table(whole)
    assert fitted.predictor_.to_dict() == whole.predictor_.to_dict()
    assert fitted.predictor_score_ == whole.predictor_score_
    assert fitted.spent_.entries["labelling"].images == 20 * 40
    assert fitted.n_labels == 12  # parameters are the user's


def test_the_energy_counter_is_read_on_the_way_through_many_students(fitted, monkeypatch):
    """It wraps after some tens of minutes, and one wrap at most is noticed between two readings."""
    readings = []
    monkeypatch.setattr(accounting, "READ_EVERY", 0.0)
    monkeypatch.setattr(accounting.EnergyMeter, "joules", lambda meter: float(readings.append(1) or len(readings)))
    fitted.label(20)
    assert len(readings) > 8


def test_active_choice_goes_on_after_fit(fitted):
    before = table(fitted)
    fitted.set_params(label_choice="active", label_rounds=2).label(20)
    assert table(fitted)[:12] == before
    assert len(set(fitted.labels_.architectures)) == 20


def test_a_loaded_estimator_labels_on_the_images_given(fitted, loaded, val):
    with pytest.raises(RuntimeError, match="no validation data.*X and y"):
        loaded.label(16)
    assert table(loaded.label(16, *val)) == table(fitted.label(16))
    assert loaded.measure(loaded.labels_.architectures[0]).natural_accuracy == table(fitted)[0][1]
    loaded.label(16)  # the images are at hand now


def test_validation_arrays_of_fit_are_taken_after_load_as_names_and_as_numbers(train, val, tmp_path):
    dataset = TensorDataset(*map(torch.from_numpy, train))
    dataset.classes = [f"digit {9 - place}" for place in range(10)]
    est = ProARDEstimator(**SMALL).fit(dataset, val_loader=val)
    est.save(tmp_path / "est")
    est.label(13)
    for y in (val[1], np.array(dataset.classes)[val[1]]):
        loaded = ProARDEstimator.load(tmp_path / "est").label(13, val[0], y)
        assert loaded.labels_.settings == est.labels_.settings and table(loaded) == table(est)


def test_of_rounded_weights_all_students_have_to_be_measured_anew(once_fitted, val, tmp_path):
    once_fitted.save(tmp_path / "est", dtype="float16")
    rounded = ProARDEstimator.load(tmp_path / "est")
    with pytest.raises(ValueError, match=r"with weights='[^;]*rounded by save to its dtype.*allowed: replace=True"):
        rounded.label(13, *val)
    assert len(rounded.label(13, *val, replace=True).labels_) == 13


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, est: (x[:30], y[:30]), r"n_images=40, now 30"),
        (lambda x, y, est: (1 - x, y), r"with images_checksum='[0-9a-f]{8}', now '[0-9a-f]{8}': they cannot"),
        (lambda x, y, est: est.set_params(eval_steps=3) and (x, y), r"with steps=2, now 3: they cannot be mixed"),
        (lambda x, y, est: est.supernet_.head.fc.bias.data.add_(1) is not None and (x, y), r"with weights="),
    ],
)
def test_labels_of_other_settings_are_not_mixed(loaded, val, monkeypatch, change, message):
    data, before = change(*val, loaded), table(loaded)
    with monkeypatch.context() as patch:
        no_measuring(patch)
        with pytest.raises(ValueError, match=message):
            loaded.label(16, *data)
    assert table(loaded) == before and loaded.n_val_ == 40
    loaded.label(14, *data, replace=True)
    assert len(loaded.labels_) == loaded.predictor_.n_labels_ == 14
    assert loaded.labels_.architectures[:12] == [row[0] for row in before]
    assert loaded.n_val_ == loaded.labels_.settings["n_images"] == len(data[1])
    shares = loaded.labels_.accuracies * len(data[1])
    np.testing.assert_allclose(shares, shares.round(), atol=1e-9)


def test_replacing_measures_as_many_as_are_asked_for(fitted):
    before = table(fitted)
    fitted.set_params(n_labels=13).label(12, replace=True)
    assert table(fitted) == before
    assert fitted.spent_.entries["labelling"].images == 2 * 12 * 40


def test_where_there_are_enough_nothing_is_measured(fitted, monkeypatch):
    no_measuring(monkeypatch)
    predictor, before = fitted.predictor_, table(fitted)
    fitted.label(12)
    assert fitted.predictor_ is predictor and table(fitted) == before


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_stopped_call_changes_nothing_and_goes_on_from_its_record(fitted, tmp_path, monkeypatch, number, error):
    original, before, measured = population.label_student, table(fitted), []

    def label_student(supernet, arch, *args):
        if len(measured) == 3:
            signal.raise_signal(number)
        measured.append(arch)
        return original(supernet, arch, *args)

    monkeypatch.setattr(population, "label_student", label_student)
    with pytest.raises(error):
        fitted.label(18, record=tmp_path / "labels.jsonl")
    assert table(fitted) == before
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == 4
    three, measured[:] = list(measured), []
    monkeypatch.setattr(population, "label_student", lambda s, arch, *a: measured.append(arch) or original(s, arch, *a))
    fitted.label(18, record=tmp_path / "labels.jsonl")
    assert len(measured) == 3 and not set(measured) & set(three)
    assert fitted.labels_.architectures[12:] == three + measured


def test_a_checksum_is_of_images_and_labels_in_any_order(val):
    x, y = torch.from_numpy(val[0]), torch.from_numpy(val[1])
    value = images_checksum(ArraySource(x, y))
    assert images_checksum(ArraySource(x.flip(0), y.flip(0))) == value
    assert images_checksum(ArraySource(x, y.flip(0))) != value
    assert images_checksum(ArraySource(torch.nextafter(x, torch.tensor(1.0)), y)) != value


@pytest.mark.parametrize("size", [50, np.int64(50)])
def test_a_fifth_of_the_first_generation_are_labelled_students(fitted, monkeypatch, size):
    seen = []
    monkeypatch.setattr(_searching, "_best_labelled", lambda labelled, limits, n: seen.append(n) or [])
    fitted.search(population_size=size, n_generations=1, refine=False)
    assert seen == [10]


# -- wrong input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"label_choice": "activ"}, r"unknown label_choice 'activ'.*Did you mean 'active'"),
        ({"label_choice": None}, r"unknown label_choice None; allowed: 'active', 'uniform'"),
        ({"label_rounds": 0}, r"label_rounds must be a whole number of at least 1, got 0"),
        ({"label_rounds": 2.5}, r"label_rounds must be a whole number of at least 1, got 2.5"),
        ({"n_jobs": 0}, r"n_jobs must be None or an integer other than 0.*got 0"),
        ({"n_jobs": "all"}, r"n_jobs must be None or an integer.*got 'all'"),
    ],
)
def test_wrong_parameters_are_refused_before_training(train, fitted, monkeypatch, parameters, message):
    monkeypatch.setattr(Trainer, "run", None)
    with pytest.raises(ValueError, match=message):
        ProARDEstimator(**{**SMALL, **parameters}).fit(*train)
    with pytest.raises(ValueError, match=message):
        fitted.set_params(**parameters).label(14)


def test_wrong_calls_are_refused(fitted, val):
    with pytest.raises(NotFittedError):
        ProARDEstimator().label(20)
    with pytest.raises(ValueError, match=r"n_labels must be a whole number of at least 12, got 11"):
        fitted.label(11)
    with pytest.raises(ValueError, match=r"n_labels=10{9} is more than the \d+ students there are"):
        fitted.label(10**9)
    with pytest.raises(ValueError, match="y was given without X"):
        fitted.label(14, y=val[1])
    with pytest.raises(ValueError, match="without labels"):
        fitted.label(14, val[0])


def test_verifying_looks_labelled_students_up_and_measures_only_others(loaded, val, monkeypatch):
    space, (first, second, *_) = loaded.supernet_.space, loaded.labels_.students
    other = next(arch for arch in space.sample_distinct(14, 0) if arch not in loaded.labels_.architectures)
    archs = [first.architecture, second.architecture, other]
    result = SearchResult([Candidate(arch, 1, 1, 0.5, 0.5) for arch in archs])
    seen, jobs, real = [], [], _labelling.label_students

    def watched(network, archs, *given, **more):
        seen.extend(archs)
        jobs.append(more["n_jobs"])
        return real(network, archs, *given, **more)

    monkeypatch.setattr(_labelling, "label_students", watched)
    monkeypatch.setattr(loaded, "n_jobs", 2)

    def measured(*data):
        seen.clear()
        found = {c.architecture: c.measured for c in verified(loaded, result, 3, *data).front}
        return [(found[arch]["natural_accuracy"], found[arch]["robust_accuracy"]) for arch in archs]

    known = [(label.natural_accuracy, label.robust_accuracy) for label in (first, second)]
    figures = measured(*val)
    assert seen == [other] and figures[:2] == known
    assert measured(val[0][:20], val[1][:20]) != figures and len(seen) == 3
    loaded.label(12, *val)
    assert measured() == figures and seen == [other]
    assert loaded.measure(first.architecture).robust_accuracy == first.robust_accuracy
    loaded.eval_steps = 3
    measured()
    assert len(seen) == 3 and set(jobs) == {2}
