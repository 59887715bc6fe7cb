"""Runs that stop and go on, teachers of one's own, records: the estimator's side of the training engine."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import math
import os
import shutil
import signal
import types

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state

from proard_nas import ProARDEstimator
from proard_nas._describing import described
from proard_nas.evaluation import UncalibratedError, calibrate, population
from proard_nas.training import Stage, Trainer

SMALL = {
    "model": "proard_dyn_resnet_tiny",
    "epochs": 5,
    "lr": 0.1,
    "batch_size": 64,
    "eps": 0.1,
    "step_size": 0.05,
    "attack_steps": 2,
    "eval_steps": 2,
    "ema_decay": 0.9,
    "n_labels": 12,
    "n_calibration": 64,
    "n_watch": 32,
    "precision": "float32",
    "random_state": 0,
    "progress": False,
    "checkpoint_seconds": 0,
}


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype("float32").reshape(-1, 1, 8, 8)[:320], y[:320]


@pytest.fixture(scope="module")
def fitted(digits):
    return ProARDEstimator(**SMALL).fit(*digits)


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """Return the folder of a run that is finished."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    ProARDEstimator(**SMALL).fit(*digits, checkpoint_dir=folder)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """Return a copy of that folder, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def bits(estimator):
    return {name: tensor.clone() for name, tensor in estimator.supernet_.state_dict().items()}


def without_seconds(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def stop_at(monkeypatch, epoch, number):
    """Send this process a signal after the given epoch of all."""
    original = Trainer._report

    def report(self, record, stage):
        original(self, record, stage)
        if record["global_epoch"] == epoch:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "_report", report)


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGINT, KeyboardInterrupt), pytest.param(signal.SIGTERM, SystemExit, marks=pytest.mark.slow)],
)
def test_a_stopped_fit_leaves_a_usable_estimator_and_goes_on_to_the_same_bits(
    digits, fitted, tmp_path, monkeypatch, caplog, number, error
):
    est = ProARDEstimator(**SMALL)
    with monkeypatch.context() as patch:
        stop_at(patch, 2, number)
        with pytest.raises(error):
            est.fit(*digits, checkpoint_dir=tmp_path / "run")
    assert est.predict(digits[0]).shape == (320,)
    assert est.extract(est.supernet_.space.smallest)(torch.rand(1, 1, 8, 8)).shape == (1, 10)
    with pytest.raises(NotFittedError):
        est.search()
    est.fit(*digits, checkpoint_dir=tmp_path / "run")
    assert "going on from stage 'depth', epoch 1 of 1, step 2" in caplog.text
    assert all(torch.equal(tensor, bits(fitted)[name]) for name, tensor in bits(est).items())
    assert without_seconds(est.history_) == without_seconds(fitted.history_)
    assert [label.architecture for label in est.labels_.students] == fitted.labels_.architectures
    assert (est.labels_.accuracies == fitted.labels_.accuracies).all()


def test_sigterm_while_labelling_leaves_a_usable_estimator_and_a_refit_goes_on(digits, fitted, run, monkeypatch):
    (run / "labels.jsonl").unlink()
    monkeypatch.setattr(Trainer, "step", None)  # it has been trained
    original, calls = population.label_student, []

    def label_student(*args):
        calls.append(args)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(population, "label_student", label_student)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # where it is not caught, nothing stops
    try:
        est = ProARDEstimator(**SMALL)
        with pytest.raises(SystemExit) as stopped:
            est.fit(*digits, checkpoint_dir=run)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 128 + 15 and len(calls) == 6
    assert (est.predict(digits[0]) == fitted.predict(digits[0])).all()
    est.fit(*digits, checkpoint_dir=run)
    assert len(calls) == 6 + 12 - 5
    assert est.labels_.architectures == fitted.labels_.architectures
    assert (est.labels_.accuracies == fitted.labels_.accuracies).all()


def untouched(monkeypatch):
    """Let nothing be trained or labelled from here on."""
    monkeypatch.setattr(Trainer, "step", None)
    monkeypatch.setattr("proard_nas.evaluation.population.label_student", None)


def test_a_refused_refit_leaves_the_earlier_fit_whole(digits, fitted, run):
    est, (x, y) = copy.deepcopy(fitted), digits
    few = y < 3
    with pytest.raises(ValueError, match="holds a run with other settings"):
        est.fit(x[few], y[few], checkpoint_dir=run)
    assert (est.predict(x) == fitted.predict(x)).all() and est.classes_.tolist() == list(range(10))
    assert est.extract().pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]
    assert est.search(n_generations=1, population_size=4).best.mmacs > 0


def test_a_refit_that_fails_in_training_leaves_the_earlier_fit_whole(digits, fitted, monkeypatch):
    est = copy.deepcopy(fitted).set_params(random_state=1)
    monkeypatch.setattr(Trainer, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        est.fit(*digits)
    assert (est.seed_, est.n_train_) == (fitted.seed_, fitted.n_train_)
    assert torch.equal(est.calibration_images_, fitted.calibration_images_)
    est = ProARDEstimator(**SMALL)
    with pytest.raises(ZeroDivisionError):
        est.fit(*digits)
    assert not [name for name in vars(est) if name.endswith("_") and not name.startswith("_")]


def test_a_refit_that_is_stopped_has_no_labels_of_the_earlier_fit(digits, fitted, tmp_path, monkeypatch):
    est = copy.deepcopy(fitted)
    stop_at(monkeypatch, 0, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        est.fit(*digits)
    for call in (est.search, lambda: est.label(13), lambda: est.save(tmp_path / "est")):
        with pytest.raises(NotFittedError):
            call()
    assert est.predict(digits[0]).shape == (320,)


def test_a_finished_run_is_not_trained_or_labelled_again(digits, fitted, run, monkeypatch, caplog):
    untouched(monkeypatch)
    with caplog.at_level("INFO"):
        second = ProARDEstimator(**SMALL).fit(*digits, checkpoint_dir=run)
    assert "an earlier run has spent" in caplog.text and "will cost" not in caplog.text
    assert all(torch.equal(tensor, bits(fitted)[name]) for name, tensor in bits(second).items())


def test_a_folder_of_other_settings_or_data_is_refused_by_naming_the_difference(digits, fitted, run, monkeypatch):
    with pytest.raises(ValueError, match=r"parameters\.eps.*0\.1.*0\.05"):
        ProARDEstimator(**{**SMALL, "eps": 0.05}).fit(*digits, checkpoint_dir=run)
    with pytest.raises(ValueError, match=r"data\.train"):
        ProARDEstimator(**SMALL).fit(digits[0][:300], digits[1][:300], checkpoint_dir=run)
    with pytest.raises(ValueError, match=r"data\.labels"):
        ProARDEstimator(**SMALL).fit(digits[0], [digits[1][1], *digits[1][1:]], checkpoint_dir=run)
    untouched(monkeypatch)
    est = ProARDEstimator(**SMALL).fit(*digits, checkpoint_dir=run)  # nothing was lost
    assert all(torch.equal(tensor, bits(fitted)[name]) for name, tensor in bits(est).items())


class Loss:
    """An objective with a setting, and no text of its own."""

    def __init__(self, weight):
        self.weight, self.owner = weight, self

    def bound(self, logits):
        return logits


def scaled(by):
    return lambda logits: by * logits


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (Loss(1.0), Loss(1.0), Loss(2.0)),
        (lambda logits: logits, None, lambda logits: 2 * logits),
        (functools.partial(max, 1), functools.partial(max, 1), functools.partial(max, 2)),
        (
            torch.nn.CrossEntropyLoss(torch.ones(2)),
            torch.nn.CrossEntropyLoss(torch.ones(2)),
            torch.nn.CrossEntropyLoss(torch.zeros(2)),
        ),
        (*(torch.nn.CrossEntropyLoss(label_smoothing=s) for s in (0.1, 0.1, 0.2)),),
        (lambda logits: logits.relu(), None, lambda logits: logits.exp()),
        (*(scaled(by) for by in (1, 1, 2)),),
        (*(Loss(weight).bound for weight in (1, 1, 2)),),
    ],
)
def test_losses_of_ones_own_are_told_apart_by_what_they_hold(one, same, other):
    assert described(one) == described(same or one) != described(other)
    assert json.loads(json.dumps(described(one))) == described(one) and " at 0x" not in str(described(one))


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held


def among(*names):
    """Return a function with sets of names among its constants, in the order in which they were put in them."""
    code = (lambda kind: kind).__code__
    return types.FunctionType(code.replace(co_consts=(None, frozenset(names), (1, frozenset(names)))), {})


def test_a_description_depends_neither_on_the_order_of_sets_nor_on_addresses():
    one, same, other = (0, 8), (8, 0), (0, 16)  # 0 and 8 want the same place of a small set: the first gets it
    assert list(frozenset(one)) != list(frozenset(same))
    for make in (lambda held: {"held": set(held)}, lambda held: Slotted(set(held)), lambda held: among(*held)):
        assert described(make(one)) == described(make(same)) != described(make(other))
    assert described(Slotted(1)) == described(Slotted(1)) != described(Slotted(2))
    for value in (torch.relu, math.exp, torch.Tensor.relu, torch.Generator(), np.random.default_rng(0), np.exp):
        assert "0x" not in str(described(value)) and json.loads(json.dumps(described(value))) == described(value)
    assert described(torch.relu) != described(torch.tanh) and described(math.exp) != described(math.log)


def test_a_description_of_constants_without_sets_is_as_it_was():
    """Folders of earlier runs are gone on with."""

    def loss(kind="a"):
        return kind in ("a", "b"), (1,), ((0.5, None), True), "it's"

    code = loss.__code__
    text = code.co_code + repr([code.co_names, [repr(constant) for constant in code.co_consts]]).encode()
    assert described(loss)[0].endswith(hashlib.sha256(text).hexdigest()[:16])


def test_numpys_numbers_are_as_good_as_pythons(digits, tmp_path):
    short = {
        **SMALL,
        "epochs": None,
        "lr": None,
        "schedule": [Stage("teacher", np.int64(1), "natural", lr=np.float32(0.25))],
    }
    ProARDEstimator(**short).fit(*digits, checkpoint_dir=tmp_path / "run")
    plain = {"schedule": [Stage("teacher", 1, "natural", lr=0.25)], "batch_size": np.int64(64), "eps": np.float64(0.1)}
    est = ProARDEstimator(**{**short, **plain}).fit(*digits, checkpoint_dir=tmp_path / "run")
    est.save(tmp_path / "est")
    assert ProARDEstimator.load(tmp_path / "est").batch_size == 64


def test_a_device_of_torchs_is_as_good_as_its_name(digits, monkeypatch):
    monkeypatch.setattr(Trainer, "run", None)
    with pytest.raises(TypeError, match="NoneType"):  # reaches the training
        ProARDEstimator(**SMALL, device=torch.device("cpu")).fit(*digits)


def test_a_parameter_that_a_folder_is_too_old_to_know_counts_as_its_default(digits, run, monkeypatch):
    path = run / "settings.json"
    settings = json.loads(path.read_text())
    assert settings["parameters"].pop("anneal") == "stage"
    path.write_text(json.dumps(settings))
    untouched(monkeypatch)
    ProARDEstimator(**SMALL).fit(*digits, checkpoint_dir=run)
    with pytest.raises(ValueError, match=r'parameters\.anneal was "stage" and is now "whole"'):
        ProARDEstimator(**SMALL, anneal="whole").fit(*digits, checkpoint_dir=run)


def test_a_folder_too_old_to_know_of_labels_is_gone_on_with(digits, run, monkeypatch):
    path = run / "settings.json"
    settings = json.loads(path.read_text())
    for name in ("labels", "batches"):
        del settings["data"][name]
    path.write_text(json.dumps(settings))
    untouched(monkeypatch)
    ProARDEstimator(**SMALL).fit(*digits, checkpoint_dir=run)


def test_a_loader_of_other_batches_is_refused(digits, tmp_path):
    x, y = (torch.as_tensor(part) for part in digits)
    settings = {**SMALL, "epochs": None, "lr": None, "schedule": [Stage("teacher", 1, "natural", lr=0.1)]}

    def fit(size):
        batches = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
        return ProARDEstimator(**settings).fit(batches, val_loader=[(x[:64], y[:64])], checkpoint_dir=tmp_path / "run")

    fit(80)
    with pytest.raises(ValueError, match=r"data\.batches was 4 and is now 2"):
        fit(160)


def test_a_run_without_a_seed_goes_on_with_the_one_it_drew(digits, tmp_path):
    short = [Stage("teacher", 1, "natural", lr=0.1)]
    settings = {**SMALL, "random_state": None, "epochs": None, "lr": None, "schedule": short}
    first = ProARDEstimator(**settings).fit(*digits, checkpoint_dir=tmp_path / "run")
    second = ProARDEstimator(**settings).fit(*digits, checkpoint_dir=tmp_path / "run")
    assert first.seed_ == second.seed_
    assert ProARDEstimator(**settings).fit(*digits, checkpoint_dir=tmp_path / "other").seed_ != first.seed_


def test_a_run_of_a_generator_goes_on_in_the_same_process(digits, tmp_path, monkeypatch):
    short = {**SMALL, "epochs": None, "lr": None, "schedule": [Stage("teacher", 2, "natural", lr=0.1)]}
    est = ProARDEstimator(**{**short, "random_state": check_random_state(0)})
    with monkeypatch.context() as patch:
        stop_at(patch, 0, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            est.fit(*digits, checkpoint_dir=tmp_path / "run")
    est.fit(*digits, checkpoint_dir=tmp_path / "run")
    whole = ProARDEstimator(**{**short, "random_state": check_random_state(0)}).fit(*digits)
    assert all(torch.equal(tensor, bits(whole)[name]) for name, tensor in bits(est).items())


def test_a_folder_with_something_else_in_it_is_refused(digits, tmp_path):
    (tmp_path / "letters.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        ProARDEstimator(**SMALL).fit(*digits, checkpoint_dir=tmp_path)
    assert (tmp_path / "letters.txt").read_text() == "mine"


def test_settings_of_somebody_else_are_refused_by_name(digits, tmp_path):
    (tmp_path / "settings.json").write_text('{"editor": 1}')
    with pytest.raises(ValueError, match=r"settings\.json is not of a run of fit: it names no seed"):
        ProARDEstimator(**{**SMALL, "random_state": None}).fit(*digits, checkpoint_dir=tmp_path)


def test_a_teacher_of_ones_own_teaches_every_stage_and_stays_as_it_was(digits):
    teacher = calibrate(timm.create_model("proard_resnet_tiny", num_classes=10), torch.from_numpy(digits[0])).train()
    before = copy.deepcopy(teacher.state_dict())
    est = ProARDEstimator(**{**SMALL, "teacher": teacher}).fit(*digits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    # A teacher that has learnt nothing gives almost equal logits: who is distilled from it learns as little.
    assert est.history_[0]["stage"] == "teacher" and est.history_[0]["loss"] < 0.1
    assert est.score(*digits) < 0.5


MEAN, STD = 0.3, 0.1


@pytest.fixture(scope="module")
def named(digits, tmp_path_factory):
    """Return a timm model that was trained on normalised images, and the name it has where it is saved."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    x, y = map(torch.from_numpy, digits)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(15):
        for i in range(0, len(x), 64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model((x[i : i + 64] - MEAN) / STD), y[i : i + 64]).backward()
            optimizer.step()
    return model.eval(), save(model, tmp_path_factory.mktemp("named"), (MEAN,), (STD,))


def save(model, folder, mean, std):
    model.pretrained_cfg.update(input_size=(len(mean), 8, 8), mean=mean, std=std)
    arguments = {"num_classes": 10, "in_chans": len(mean)}
    timm.models.save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    return f"local-dir:{folder}"


def test_a_teacher_by_name_sees_images_normalised_as_in_its_training(digits, named, monkeypatch):
    (model, name), teachers, original = named, [], Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, stages: (teachers.append(self.teacher), original(self, stages))[1])
    est = ProARDEstimator(**{**SMALL, "eps": 0.02, "step_size": 0.01, "teacher": name}).fit(*digits)
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(teachers[0](x), model((x - MEAN) / STD))
    assert est.score(*digits) > 0.6


def test_a_teacher_by_name_of_other_channels_is_refused(digits, monkeypatch, tmp_path):
    name = save(timm.create_model("test_resnet", num_classes=10), tmp_path, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    monkeypatch.setattr(Trainer, "run", None)
    with pytest.raises(ValueError, match=r"by mean=\(0.5, 0.5, 0.5\).*the data's have 1 channels; allowed: a module"):
        ProARDEstimator(**SMALL, teacher=name).fit(*digits)


def test_a_network_of_ours_as_teacher_is_taken_as_it_is(digits, tmp_path, monkeypatch):
    torch.manual_seed(0)
    own = timm.create_model("proard_resnet_tiny", num_classes=10, norm_mean=(0.3,), norm_std=(0.1,)).eval()
    with pytest.raises(UncalibratedError, match="the teacher's batch norm statistics"):
        ProARDEstimator(**SMALL, teacher=own).fit(*digits)
    calibrate(own, torch.from_numpy(digits[0])).save(tmp_path / "own")
    teachers = []
    monkeypatch.setattr(Trainer, "run", lambda self, stages: teachers.append(self.teacher) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ProARDEstimator(**SMALL, teacher=f"local-dir:{tmp_path / 'own'}").fit(*digits)
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(teachers[0](x), own(x))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (torch.nn.Flatten(), r"output of shape \(2, 64\).*allowed: \(2, 10\)"),
        (torch.nn.Linear(3, 10), r"does not take images of shape \(1, 8, 8\)"),
        (7, "teacher must be a module, a timm model's name or None, got 7"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_training(digits, monkeypatch, teacher, message):
    monkeypatch.setattr(Trainer, "run", None)
    with pytest.raises(ValueError, match=message):
        ProARDEstimator(**{**SMALL, "teacher": teacher}).fit(*digits)


def test_records_are_json_and_say_what_was_spent(fitted):
    json.dumps([fitted.history_, fitted.events_, fitted.spent_.to_dict()], allow_nan=False)
    assert fitted.events_ == []
    stages = [record["stage"] for record in fitted.history_]
    assert stages == ["teacher", "teacher", "width_mult", "depth", "expand_ratio"]
    assert all(0 <= record["validation"]["robust"] <= record["validation"]["natural"] for record in fitted.history_)
    spent = fitted.spent_.entries
    assert list(spent) == ["teacher", "width_mult", "depth", "expand_ratio", "labelling"]
    largest = fitted.supernet_.cost(fitted.supernet_.space.largest, 8).macs
    # 2 epochs of 288 images, TRADES with PGD-2: clean logits, 2 x (forward, to images), 2 x (forward, to weights)
    assert spent["teacher"].macs == 2 * 288 * largest * (1 + 4 + 6)
    many, one = fitted.spent_.for_devices(50), fitted.spent_.for_devices(1)
    assert many["macs"] == one["macs"] == fitted.spent_.total.macs


def test_saving_and_loading_keeps_the_records(fitted, tmp_path):
    fitted.save(tmp_path / "est")
    loaded = ProARDEstimator.load(tmp_path / "est")
    assert loaded.history_ == fitted.history_ and loaded.spent_.to_dict() == fitted.spent_.to_dict()


def test_without_tensorboard_its_folder_is_refused_before_training(digits, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(Trainer, "run", None)
    with pytest.raises(ImportError, match=r"proard-nas\[tensorboard\]"):
        ProARDEstimator(**{**SMALL, "log_dir": tmp_path}).fit(*digits)


def test_single_step_training_is_watched_each_epoch(digits):
    short = {"epochs": None, "lr": None, "schedule": [Stage("teacher", 2, "sat", lr=0.1)]}
    est = ProARDEstimator(**{**SMALL, **short, "attack": "n-fgsm", "attack_steps": 10}).fit(*digits)
    assert len(est.history_) == 2
    largest = est.supernet_.cost(est.supernet_.space.largest, 8).macs
    # SAT on 288 images: one step (forward, to images) where PGD-10 takes ten, then forward and to weights
    assert est.spent_.entries["teacher"].macs == 2 * 288 * largest * (2 + 3)
    assert all("single_step" in record["validation"] for record in est.history_)


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("attack", "nfgsm", "Did you mean 'n-fgsm'"),
        ("schedule", "attentiv", "Did you mean 'attentive'"),
        ("teacher_loss", "marts", "Did you mean 'mart'"),
        ("augment", "crop_flip", "Did you mean 'crop-flip'"),
        ("ema_decay", 1.0, r"ema_decay must be in \[0, 1\)"),
        ("clip_grad", 0, "clip_grad must be above 0 or None, got 0"),
        ("awp", -1, "awp"),
        ("n_watch", -1, "n_watch must be a whole number of at least 0"),
        ("epochs", 4.5, "epochs must be a whole number of at least 1, got 4.5"),
        ("device", "auto:1", "unknown device 'auto:1'"),
        ("device", "cpu:x", "unknown device 'cpu:x'"),
        ("model_args", {"num_classes": 5}, "model_args has 'num_classes', .*allowed: the estimator's num_classes"),
        ("model_args", {"norm_mean": [0.5]}, "model_args has 'norm_mean', which follows from the data"),
        ("model_args", {"drop_rate": 0.3}, r"model_args has 'drop_rate', .*allowed: .*Stage\(drop_rate=\.\.\.\)"),
        ("model_args", "depths", "model_args must be a dict"),
    ],
)
def test_a_wrong_setting_is_named_before_training(digits, monkeypatch, parameter, value, message):
    monkeypatch.setattr(Trainer, "run", None)
    with pytest.raises(ValueError, match=message):
        ProARDEstimator(**{**SMALL, parameter: value}).fit(*digits)


def test_training_is_watched_on_all_classes_of_sorted_data(digits, monkeypatch):
    watched = []

    class Stop(Exception):  # noqa: N818
        pass

    def run(trainer, stages):
        watched.append(trainer.validation)
        raise Stop

    monkeypatch.setattr(Trainer, "run", run)
    order = digits[1].argsort()
    with pytest.raises(Stop):
        ProARDEstimator(**{**SMALL, "val_fraction": 0.4}).fit(digits[0][order], digits[1][order])
    assert set(watched[0].source.y.tolist()) == set(range(10)) and watched[0].chance < 0.4


HELPED = {"schedule": [Stage("teacher", 1, "hat", lr=0.1)], "epochs": None, "lr": None}


@pytest.mark.parametrize("change", [{"teacher_loss": "hat"}, HELPED])
def test_epochs_of_a_helper_are_reported_too(digits, change):
    est = ProARDEstimator(**{**SMALL, **change}).fit(*digits)
    assert "(helper)" in est.history_[0]["stage"]


def test_a_teacher_of_ones_own_stays_as_it_is(digits):
    torch.manual_seed(0)
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    ProARDEstimator(**{**SMALL, "teacher": own}).fit(*digits)
    assert own.training and all(parameter.requires_grad for parameter in own.parameters())
