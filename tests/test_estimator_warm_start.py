"""A fit that goes on from the weights of an earlier one."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

from proard_nas import ProARDEstimator, SearchResult
from proard_nas.evaluation import population
from proard_nas.training import Stage, Trainer

SMALL = {
    "model": "proard_dyn_resnet_tiny",
    "epochs": 4,
    "lr": 0.05,
    "batch_size": 64,
    "eps": 0.1,
    "step_size": 0.05,
    "attack_steps": 1,
    "eval_steps": 1,
    "n_labels": 12,
    "n_calibration": 64,
    "n_watch": 32,
    "precision": "float32",
    "random_state": 0,
    "progress": False,
}
STILL = {"lr": 1e-12, "weight_decay": 0.0}  # a training that leaves the weights where they are


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype("float32").reshape(-1, 1, 8, 8)[:256], y[:256]


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """Give the folder of a fitted estimator."""
    path = tmp_path_factory.mktemp("saved") / "est"
    ProARDEstimator(**SMALL).fit(*digits).save(path)
    return path


def loaded(folder, **parameters):
    return ProARDEstimator.load(folder).set_params(warm_start=True, **parameters)


def bits(estimator):
    return {name: tensor.clone() for name, tensor in estimator.supernet_.state_dict().items()}


def same_bits(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_it_starts_from_the_earlier_weights(digits, folder):
    before = ProARDEstimator.load(folder).predict_proba(digits[0])
    after = loaded(folder, **STILL).fit(*digits).predict_proba(digits[0])
    np.testing.assert_allclose(after, before, atol=1e-5)
    cold = ProARDEstimator.load(folder).set_params(**STILL).fit(*digits).predict_proba(digits[0])
    assert abs(cold - before).max() > 0.01


def test_the_largest_student_is_trained_whichever_was_active(digits, folder):
    active = loaded(folder)
    active.supernet_.set_active(active.supernet_.space.smallest)
    expected = bits(loaded(folder).fit(*digits))
    assert same_bits(expected, bits(active.fit(*digits)))
    assert active.supernet_.active == active.supernet_.space.largest


def test_a_search_before_does_not_put_its_figures_on_later_students(digits, folder):
    est = loaded(folder, **STILL | {"lr": 0.05})
    result = est.search(population_size=8, n_generations=1)
    assert result.extract().metadata["supernet_weights"] == result.weights
    est.fit(*digits)
    with pytest.raises(RuntimeError, match="the figures of this search are of weights .*search again"):
        result.extract()
    with pytest.raises(RuntimeError, match="search again"):
        SearchResult.from_dict(result.to_dict(), est.extract).extract()


def test_other_held_out_images_are_warned_of(digits, folder, caplog):
    loaded(folder).fit(*digits)
    assert "trained on" not in caplog.text
    loaded(folder, val_fraction=0.2).fit(*digits)
    assert "may have been trained on" in caplog.text


def test_records_and_costs_go_on(digits, folder):
    first = ProARDEstimator.load(folder)
    est = loaded(folder, epochs=5).fit(*digits)
    assert est.history_[:4] == first.history_
    assert [record["global_epoch"] for record in est.history_] == list(range(9))
    for name, spent in first.spent_.entries.items():
        assert est.spent_.entries[name].macs > spent.macs and est.spent_.entries[name].steps > spent.steps
    assert first.spent_.to_dict() == ProARDEstimator.load(folder).spent_.to_dict()
    assert not np.array_equal(est.labels_.accuracies, first.labels_.accuracies)


def test_the_same_images_are_held_out(digits, folder, monkeypatch):
    seen = []
    original = Trainer.__init__
    monkeypatch.setattr(
        Trainer,
        "__init__",
        lambda self, net, source, *a, **k: (seen.append(source), original(self, net, source, *a, **k))[1],
    )
    ProARDEstimator(**SMALL).fit(*digits)
    loaded(folder, random_state=None).fit(*digits)
    assert torch.equal(seen[0].x, seen[1].x)
    assert loaded(folder).seed_ == ProARDEstimator.load(folder).seed_


def test_a_first_fit_starts_as_ever(digits):
    plain = ProARDEstimator(**SMALL).fit(*digits)
    assert same_bits(bits(plain), bits(ProARDEstimator(**SMALL, warm_start=True).fit(*digits)))


def test_images_may_be_of_another_size(digits, folder):
    x, y = digits
    est = loaded(folder).fit(np.pad(x, ((0, 0), (0, 0), (0, 4), (0, 4))), y)
    assert est.supernet_.pretrained_cfg["input_size"] == (1, 12, 12)


def test_numbers_as_labels_are_the_places_of_the_earlier_fits_names(digits, tmp_path):
    x, y = digits
    names = np.array([f"digit {i}" for i in range(10)])
    ProARDEstimator(**SMALL).fit(x, names[y]).save(tmp_path / "est")
    est = loaded(tmp_path / "est").fit(x, y)
    assert est.classes_.tolist() == names.tolist() and est.extract().pretrained_cfg["label_names"] == names.tolist()
    with pytest.raises(ValueError, match="goes on from a supernet of classes"):
        loaded(tmp_path / "est").fit(x, y + 1)


def test_students_may_be_taught_at_once_by_the_network_there_is(digits, folder):
    stage = Stage("more", 1, "rslad", ("depth", "width_mult", "expand_ratio"))
    with pytest.raises(ValueError, match="no stage before it trains one"):
        ProARDEstimator(**SMALL | {"schedule": [stage], "epochs": None, "lr": None}).fit(*digits)
    est = loaded(folder, schedule=[stage], epochs=None, lr=None).fit(*digits)
    assert [record["stage"] for record in est.history_[4:]] == ["more"]


@pytest.mark.parametrize(
    ("change", "parameters", "message"),
    [
        (lambda x, y: (x, y % 5), {}, r"classes \[0, 1, 2, 3, 4, 5, 6, 7, 8, 9\]; the data has \[0, 1, 2, 3, 4\]"),
        (lambda x, y: (x.repeat(3, 1), y), {}, "channels 1; the data has 3"),
        (lambda x, y: (x, y), {"model_args": {"depths": (0,)}}, "another supernet than .*'depths'"),
        (lambda x, y: (x, y), {"model_args": {"global_pool": "max"}}, "another supernet than .*'global_pool'"),
    ],
)
def test_other_data_or_networks_are_refused_before_training(digits, folder, monkeypatch, change, parameters, message):
    monkeypatch.setattr(Trainer, "run", None)
    est = loaded(folder, **parameters)
    before = bits(est)
    with pytest.raises(ValueError, match=message):
        est.fit(*change(*digits))
    assert same_bits(bits(est), before) and len(est.history_) == 4


@pytest.mark.parametrize("again", ["same object", "loaded anew"])
def test_a_stopped_one_goes_on_to_the_same_bits(digits, folder, tmp_path, monkeypatch, again):
    whole = loaded(folder).fit(*digits)
    est, original = loaded(folder), Trainer._report

    def report(self, record, stage):
        original(self, record, stage)
        if record["global_epoch"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_report", report)
        with pytest.raises(SystemExit):
            est.fit(*digits, checkpoint_dir=tmp_path / "run")
    assert [record["global_epoch"] for record in est.history_] == list(range(7))
    est = est if again == "same object" else loaded(folder)
    est.fit(*digits, checkpoint_dir=tmp_path / "run")
    assert same_bits(bits(est), bits(whole))
    assert [record["global_epoch"] for record in est.history_] == list(range(8))
    assert est.spent_.total.macs == whole.spent_.total.macs


def test_a_first_fit_that_was_stopped_goes_on_in_the_same_process(digits, tmp_path, monkeypatch):
    est, whole = ProARDEstimator(**SMALL, warm_start=True), ProARDEstimator(**SMALL).fit(*digits)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_report", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            est.fit(*digits, checkpoint_dir=tmp_path / "run")
    est.fit(*digits, checkpoint_dir=tmp_path / "run")
    assert same_bits(bits(est), bits(whole)) and len(est.history_) == 4


def test_one_that_was_stopped_while_labelling_goes_on_in_the_same_process(digits, folder, tmp_path, monkeypatch):
    est, original, calls = loaded(folder), population.label_student, []

    def label(*args, **options):
        calls.append(args[1])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(population, "label_student", label)
    with pytest.raises(KeyboardInterrupt):
        est.fit(*digits, checkpoint_dir=tmp_path / "run")
    with pytest.raises(NotFittedError):
        est.search()
    est.fit(*digits, checkpoint_dir=tmp_path / "run")
    assert len(calls) == 12 + 1 and len(est.labels_) == 12 and len(est.history_) == 8


def test_callbacks_and_tensorboard_count_epochs_on(digits, folder, monkeypatch):
    class Records(list):
        def setup(self, estimator, context):
            pass

        teardown = on_fit_task_begin = setup

        def on_fit_task_end(self, estimator, context, *, metadata=None):
            if metadata:
                self.append(metadata)

    class Writer(Records):
        def __init__(self, log_dir):
            written.append(self)

        __call__ = list.append

        def close(self):
            pass

    seen, written = Records(), []
    monkeypatch.setattr("proard_nas._reporting.TensorBoardWriter", Writer)
    est = loaded(folder, log_dir="logs").set_callbacks(seen).fit(*digits)
    assert [record["global_epoch"] for record in seen] == [4, 5, 6, 7] and seen == written[-1] == est.history_[4:]


def test_a_folder_that_began_from_other_weights_is_refused(digits, folder, tmp_path):
    est = loaded(folder).fit(*digits, checkpoint_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="start was"):
        est.fit(*digits, checkpoint_dir=tmp_path / "run")
