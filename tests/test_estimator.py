"""The whole path through the public face: fit, search, extract, predict, save, load, and wrong input."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from proard_nas import ProARDEstimator
from proard_nas._devices import device_of
from proard_nas._fitting import check_parameters
from proard_nas._random import derive_seed
from proard_nas.deploy import build_latency_table, save_student
from proard_nas.evaluation import AttackSettings, UncalibratedError, evaluate
from proard_nas.supernets import is_calibrated
from proard_nas.training import AttackBudget, Precision, Stage, TrainSettings, make_schedule

SMALL = {
    "model": "proard_dyn_resnet_tiny",
    "epochs": 8,
    "lr": 0.1,
    "batch_size": 64,
    "eps": 0.1,
    "step_size": 0.05,
    "attack_steps": 2,
    "eval_steps": 3,
    "n_labels": 24,
    "n_calibration": 256,
    "precision": "float32",
    "random_state": 0,
    "progress": False,
}
SHORT = {**SMALL, "epochs": 4, "attack_steps": 1, "n_labels": 12}  # where it does not matter how well it is trained
SEARCH = {"population_size": 20, "n_generations": 5}


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    images = (x / 16).astype("float32").reshape(-1, 1, 8, 8)
    return train_test_split(images, y, test_size=0.3, stratify=y, random_state=0)


def head(digits, n=300):
    """Return the first images of both splits, where how well a network is trained does not matter."""
    return [part[:n] for part in digits]


@pytest.fixture(scope="module")
def fitted(digits):
    x_train, _, y_train, _ = digits
    return ProARDEstimator(**SMALL).fit(x_train, y_train)


def test_students_are_calibrated_on_images_as_training_saw_them(digits):
    x_train, _, y_train, _ = head(digits)
    white, few = np.ones_like(x_train), SMALL | {"epochs": 4, "n_watch": 0, "n_labels": 12}
    cropped = ProARDEstimator(**few, augment="crop").fit(white, y_train)
    assert cropped.calibration_images_.mean() < 0.9  # zeros at the edges
    student, seen = cropped.extract(cropped.supernet_.space.largest), []
    whole = ProARDEstimator(**few).fit(white, y_train)
    assert whole.calibration_images_.min() == 1
    norm = next(m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean((0, 2, 3))))
    with torch.no_grad():
        student(cropped.calibration_images_)
    torch.testing.assert_close(norm.running_mean, seen[0], rtol=1e-3, atol=1e-4)


def bits(estimator):
    return [tensor.clone() for tensor in estimator.supernet_.state_dict().values()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# -- the path ---------------------------------------------------------------------------------


def test_the_three_lines_work_as_written(digits):
    x_train, _, y_train, _ = head(digits)
    loader = DataLoader(TensorDataset(torch.from_numpy(x_train), torch.from_numpy(y_train)), 64, shuffle=True)
    est = ProARDEstimator(**SHORT).fit(loader)
    student = est.search(max_flops=2000, **SEARCH).extract()
    assert isinstance(student, torch.nn.Module) and not student.training
    assert student(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert timm.create_model("proard_dyn_resnet50") is not None


def test_a_found_student_fits_the_budget_and_is_a_calibrated_plain_timm_model(fitted):
    result = fitted.search(max_flops=0.6, **SEARCH)
    student = result.extract()
    assert result.best.macs <= 0.6e6
    assert student.cost(img_size=8).macs == result.best.macs
    assert is_calibrated(student)
    assert student.pretrained_cfg["architecture"] == "proard_resnet_tiny"
    assert student.pretrained_cfg["input_size"] == (1, 8, 8)
    assert not hasattr(student, "space")


def test_the_supernet_is_of_images_of_the_datas_size(digits):
    x_train, _, y_train, _ = digits
    few = {**SHORT, "n_watch": 0}
    est = ProARDEstimator(**few).fit(np.pad(x_train[:200], ((0, 0), (0, 0), (0, 4), (0, 4))), y_train[:200])
    assert tuple(est.supernet_.pretrained_cfg["input_size"]) == (1, 12, 12)
    assert est.supernet_.extract(est.supernet_.space.smallest).pretrained_cfg["input_size"] == (1, 12, 12)
    right = build_latency_table(est.supernet_, runtime="torch", rounds=3, threads=1, n_students=4, n_holdout=0)
    wrong = build_latency_table(
        est.supernet_, runtime="torch", rounds=3, threads=1, n_students=4, n_holdout=0, img_size=8
    )
    assert est.search(max_latency_ms=1000, latency=right, **SEARCH).best.latency_ms > 0
    with pytest.raises(ValueError, match=r"images of \(8, 8\) pixels; the estimator's have \(12, 12\)"):
        est.search(max_latency_ms=1000, latency=wrong, **SEARCH)


def test_students_are_robust_and_accurate_on_the_test_split(fitted, digits):
    _, x_test, _, y_test = digits
    student = fitted.search(**SEARCH).extract()
    natural = fitted.evaluate(x_test, y_test, student=student, attack="natural").accuracy
    robust = fitted.evaluate(x_test, y_test, student=student, attack="pgd").accuracy
    assert natural > 0.8
    assert 0.3 < robust < natural


def test_a_student_is_measured_by_its_architecture_too(fitted, digits):
    _, x_test, _, y_test = digits
    arch = fitted.supernet_.space.smallest
    own = fitted.evaluate(x_test, y_test, student=fitted.extract(arch))
    assert fitted.evaluate(x_test, y_test, student=arch).accuracy == own.accuracy
    assert fitted.evaluate(x_test, y_test, student=arch.to_dict()).accuracy == own.accuracy
    with pytest.raises(TypeError, match="a network or an Architecture, got 'smallest'"):
        fitted.evaluate(x_test, y_test, student="smallest")


@pytest.mark.parametrize("verify", [-1, 2.5])
def test_a_wrong_number_to_verify_is_named(fitted, verify):
    with pytest.raises(ValueError, match="verify must be a whole number of at least 0"):
        fitted.search(verify=verify, **SEARCH)


def test_what_cannot_be_trained_on_is_named(digits):
    x, _, y, _ = digits
    few = {**SMALL, "epochs": 4}
    with pytest.raises(ValueError, match="label 1 is None"):
        ProARDEstimator(**few).fit(x, np.array([0, None, *y[2:]], dtype=object))
    with pytest.raises(TypeError, match="'depth'; its choices are depths, width_mults"):
        ProARDEstimator(**few, model_args={"depth": 3}).fit(x, y)
    loader = DataLoader(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), 1)
    with pytest.raises(ValueError, match="first batch has 1 image; allowed: batches of at least 2"):
        ProARDEstimator(**few).fit(loader)


def test_extracting_does_not_change_the_supernet(fitted):
    before = bits(fitted)
    first, second = fitted.search(max_flops=1, **SEARCH).extract(), fitted.extract()
    assert same(before, bits(fitted))
    first.head.fc.weight.data.zero_()
    second.head.fc.weight.data.zero_()
    assert same(before, bits(fitted))


def test_prediction_is_the_largest_students_and_consistent(fitted, digits):
    _, x_test, _, y_test = digits
    probabilities = fitted.predict_proba(x_test)
    with torch.no_grad():
        logits = fitted.extract()(torch.from_numpy(x_test))
    np.testing.assert_allclose(probabilities, logits.softmax(1).numpy(), atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    predicted = fitted.predict(x_test)
    assert np.array_equal(predicted, fitted.classes_[probabilities.argmax(1)])
    assert fitted.score(x_test, y_test) == accuracy_score(y_test, predicted)
    loader = DataLoader(TensorDataset(torch.from_numpy(x_test), torch.from_numpy(y_test)), 50)
    assert fitted.score(loader) == pytest.approx(fitted.score(x_test, y_test))
    assert fitted.robust_score(loader) <= fitted.robust_score(x_test, y_test, eps=0.01) <= fitted.score(loader)
    assert np.array_equal(fitted.predict(loader), predicted)


class OnDevice(torch.Tensor):
    """A tensor that has to be brought to the CPU before NumPy can read it."""

    def __array__(self, *_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_labels_on_a_device_are_scored(fitted, digits):
    _, x_test, _, y_test = digits
    labels = torch.from_numpy(y_test).as_subclass(OnDevice)
    assert fitted.score(x_test, labels) == fitted.score(x_test, y_test)


def test_verified_candidates_carry_measured_figures(fitted):
    result = fitted.search(verify=2, **SEARCH)
    verified = [candidate for candidate in result.front if candidate.is_verified]
    means = [(candidate.natural_accuracy + candidate.robust_accuracy) / 2 for candidate in result.front]
    assert len(result.front) > 2 and len(set(means)) == len(means)
    assert sorted(result.front.index(candidate) for candidate in verified) == sorted(np.argsort(means)[-2:])
    label = fitted.measure(result.best.architecture)
    assert result.best.measured["robust_accuracy"] == label.robust_accuracy


def test_the_card_of_a_verified_student_states_what_was_measured(fitted, tmp_path):
    result = fitted.search(verify=1, **SEARCH)
    result.extract().save(tmp_path / "student")
    card = ModelCard.load(tmp_path / "student" / "README.md")
    measured = result.best.measured
    assert [(figure.metric_name, figure.metric_value, figure.dataset_split) for figure in card.data.eval_results] == [
        ("Natural accuracy", measured["natural_accuracy"], "validation"),
        ("Accuracy under PGD-3, eps=0.1", measured["robust_accuracy"], "validation"),
    ]
    assert f"## Accuracy\n\nOn {fitted.n_val_} images of validation." in card.text
    assert "natural_accuracy" not in fitted.search(**SEARCH).extract().metadata


def test_a_search_is_drawn_over_the_labelled_students(fitted):
    accuracies = 100 * fitted.labels_.accuracies
    result = fitted.search(**SEARCH)
    texts = [text.get_text() for text in result.plot().get_legend().get_texts()]
    assert "labelled students" in texts
    np.testing.assert_allclose(result.plot_data().population, accuracies)
    mmacs = [fitted.supernet_.cost(arch, 8).mmacs for arch in fitted.labels_.architectures]
    cheap = fitted.search(objectives=("robust_accuracy", "macs"), **SEARCH)
    np.testing.assert_allclose(cheap.plot_data().population, np.column_stack([accuracies[:, 1], mmacs]))
    assert len(fitted.search(objectives=("robust_accuracy", "params"), **SEARCH).plot_data().population) == 0
    assert "population" not in result.to_dict()


def test_predicting_with_an_active_student_that_is_not_calibrated_raises(fitted, digits):
    _, x_test, _, y_test = digits
    est = copy.deepcopy(fitted)
    est.supernet_.set_active(est.supernet_.space.smallest)
    for ask in (est.predict, est.predict_proba, lambda x: est.score(x, y_test)):
        with pytest.raises(UncalibratedError, match="calibrate it on training images"):
            ask(x_test)
    est.supernet_.set_active(None)
    assert np.array_equal(est.predict(x_test), fitted.predict(x_test))


def test_what_fit_finds_out_and_keeps(fitted, digits):
    assert fitted.classes_.tolist() == list(range(10))
    assert (fitted.in_chans_, fitted.image_size_, fitted.n_features_in_) == (1, (8, 8), 64)
    assert fitted.n_train_ + fitted.n_val_ == len(digits[0])
    assert len(fitted.labels_) == 24
    assert len(fitted.history_) == 8
    assert fitted.cost_.macs > 0 and fitted.cost_.seconds > 0
    for output in ("natural_accuracy", "robust_accuracy"):
        assert np.isfinite(fitted.predictor_score_[output]["rmse"])
        assert "kendall_tau" in fitted.predictor_score_[output]


def test_the_same_random_state_gives_the_same_bits_and_the_same_front(digits):
    x_train, _, y_train, _ = head(digits)
    est = ProARDEstimator(**SHORT).fit(x_train, y_train)
    again = clone(est).fit(x_train, y_train)
    assert same(bits(est), bits(again))
    assert est.labels_.accuracies.tolist() == again.labels_.accuracies.tolist()
    first, second = est.search(**SEARCH), again.search(**SEARCH)
    assert [c.architecture for c in first.front] == [c.architecture for c in second.front]


def test_datasets_and_labels_of_any_type_are_taken(digits):
    x_train, x_test, y_train, y_test = head(digits)
    names = np.array([f"digit {i}" for i in range(10)])
    settings = {
        **SMALL,
        "schedule": [Stage("teacher", 2, "trades", lr=0.1)],
        "epochs": None,
        "lr": None,
        "n_labels": 12,
    }
    est = ProARDEstimator(**settings).fit(x_train, names[y_train])
    assert est.classes_.tolist() == sorted(names)
    assert set(est.predict(x_test)) <= set(names)
    assert est.extract().pretrained_cfg["label_names"] == sorted(names)
    assert est.score(x_test, y_test) == est.score(x_test, names[y_test]) > 0.1  # numbers of the classes
    dataset = TensorDataset(torch.from_numpy(x_train), torch.from_numpy(y_train))
    assert ProARDEstimator(**settings).fit(dataset).score(x_test, y_test) > 0.1


def test_what_weights_were_trained_against_is_what_the_stages_did(digits):
    x_train, _, y_train, _ = head(digits)
    stages = [Stage("t", 1, "trades", lr=0.1), Stage("s", 1, "adaad", ("depth",), attack="n-fgsm")]
    given = {**SHORT, "schedule": stages, "epochs": None, "lr": None}
    facts = ProARDEstimator(**given).fit(x_train, y_train).training_
    assert (facts["loss"], facts["attack"]) == ("adaad", "pgd, n-fgsm")
    with pytest.raises(ValueError, match="loss='ard' is of a named schedule, but the schedule is a list of stages"):
        ProARDEstimator(**given, loss="ard").fit(x_train, y_train)


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)

    def __iter__(self):
        yield from zip(self.x, self.y, strict=True)


def test_data_that_cannot_be_split_trains_with_a_val_loader(digits):
    x_train, x_test, y_train, y_test = head(digits)
    settings = {**SMALL, "schedule": [Stage("teacher", 1, "trades")], "epochs": None, "lr": None, "n_labels": 12}
    loader = DataLoader(Stream(x_train, y_train), 64)
    with pytest.raises(ValueError, match="val_loader"):
        ProARDEstimator(**settings).fit(loader)
    est = ProARDEstimator(**settings).fit(loader, val_loader=DataLoader(Stream(x_test[:90], y_test[:90]), 30))
    assert est.n_val_ == 90


def test_callbacks_see_every_epoch_and_can_end_training(digits):
    x_train, _, y_train, _ = head(digits)

    class Watch:
        def __init__(self):
            self.epochs = []

        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context, *, metadata=None):
            if metadata:
                self.epochs.append(metadata["epoch"])
            return len(self.epochs) == 2

    watch = Watch()
    settings = {**SMALL, "schedule": [Stage("teacher", 5, "trades")], "epochs": None, "lr": None, "n_labels": 12}
    est = ProARDEstimator(**settings).set_callbacks(watch).fit(x_train, y_train)
    assert watch.epochs == [0, 1]
    assert len(est.history_) == 2


# -- saving -----------------------------------------------------------------------------------


def test_a_loaded_estimator_predicts_searches_and_extracts_the_same(fitted, digits, tmp_path):
    fitted.save(tmp_path / "est")
    loaded = ProARDEstimator.load(tmp_path / "est")
    assert same(bits(fitted), bits(loaded))
    assert np.array_equal(fitted.predict(digits[1]), loaded.predict(digits[1]))
    first, second = fitted.search(max_flops=1, **SEARCH), loaded.search(max_flops=1, **SEARCH)
    assert [c.architecture for c in first.front] == [c.architecture for c in second.front]
    assert same(first.extract().state_dict().values(), second.extract().state_dict().values())
    assert loaded.get_params() == fitted.get_params()
    with pytest.raises(RuntimeError, match="no validation data"):
        loaded.search(verify=1, **SEARCH)


def test_a_saved_student_is_rebuilt_by_timm_alone_with_the_same_bits(fitted, tmp_path):
    student = fitted.search(max_flops=1, **SEARCH).extract()
    save_student(student, tmp_path / "student", {"note": 1})
    again = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
    assert same(student.state_dict().values(), again.state_dict().values())
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(student(x), again(x))
    assert {path.suffix for path in (tmp_path / "student").iterdir()} == {".json", ".md", ".safetensors"}


def test_saving_refuses_a_folder_that_holds_something_else_and_leaves_no_trace(fitted, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else"):
        fitted.save(tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    fitted.save(tmp_path / "est")
    fitted.save(tmp_path / "est")  # replacing a saved estimator is fine
    assert sorted(path.name for path in tmp_path.iterdir()) == ["est", "mine"]


def test_loading_a_folder_that_is_not_ours_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a saved estimator: it has no estimator\.json"):
        ProARDEstimator.load(tmp_path)


# -- wrong input ------------------------------------------------------------------------------


def no_training(monkeypatch):
    def refuse(*_):
        raise AssertionError("training started")

    monkeypatch.setattr("proard_nas.training.trainer.Trainer.run", refuse)


X, Y = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32), np.arange(40) % 4


def with_value(value):
    x = X.copy()
    x[3, 0, 2, 2] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (with_value(1.5), Y, r"\[0, 1\]"),
        (with_value(-0.1), Y, r"\[0, 1\]"),
        (with_value(np.nan), Y, "NaN"),
        (with_value(np.inf), Y, "inf"),
        ((X * 255).astype(np.uint8), Y, "uint8"),
        (X, Y[:-1], "inconsistent numbers of samples"),
        (X, None, "y"),
        (X, np.zeros(40), "class"),
        (X.transpose(0, 2, 3, 1), Y, "channels"),
        ([], None, "empty"),
        ([(torch.from_numpy(X),)], None, "label"),
        (DataLoader(torch.from_numpy(X), 8), None, "label"),
        (DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), 8), Y, "y was given together"),
    ],
)
def test_wrong_data_is_refused_before_training(monkeypatch, x, y, message):
    no_training(monkeypatch)
    with pytest.raises(ValueError, match=message):
        ProARDEstimator(**SMALL).fit(x, y)


def test_a_batch_shape_that_changes_is_refused(monkeypatch):
    no_training(monkeypatch)
    batches = [(torch.rand(4, 1, 8, 8), torch.arange(4)), (torch.rand(4, 1, 9, 9), torch.arange(4))]
    with pytest.raises(ValueError, match="9, 9"):
        ProARDEstimator(**SMALL).fit(batches, val_loader=batches[:1])


def test_labels_out_of_range_are_refused(monkeypatch):
    no_training(monkeypatch)
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    with pytest.raises(ValueError, match="num_classes"):
        ProARDEstimator(**SMALL, num_classes=3).fit(dataset)
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y) - 1)
    with pytest.raises(ValueError, match="-1"):
        ProARDEstimator(**SMALL).fit(dataset)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"eps": 0}, r"eps must be in \(0, 1\].*got 0"),
        ({"eps": -0.1}, "got -0.1"),
        ({"step_size": 0}, "step_size must be above 0"),
        ({"attack_steps": 0}, "attack steps must be a whole number of at least 1, got 0"),
        ({"model": "proard_dyn_resnet_tny"}, "Did you mean 'proard_dyn_resnet_tiny'"),
        ({"loss": "rsladd"}, "unknown loss 'rsladd'.*Did you mean 'rslad'"),
        ({"teacher_loss": "trade"}, "Did you mean 'trades'"),
        ({"schedule": "papr"}, "unknown schedule 'papr'.*Did you mean 'paper'"),
        ({"precision": "float16"}, "unknown precision 'float16'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"epochs": 2}, "epochs=2 is less than one for each of the 4 stages"),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2, got 1"),
        ({"n_labels": 0}, "n_labels must be a whole number of at least"),
        ({"val_fraction": 1.5}, "val_fraction"),
        ({"teacher": "resnet5000"}, "teacher 'resnet5000' is no timm model; allowed: one of timm.list_models"),
        ({"teacher": torch.nn.Flatten(), "loss": "trades"}, "no stage distils from one .their losses: 'trades'.*rslad"),
        ({"model_args": {"depths": ()}}, "depths must list at least one choice"),
    ],
)
def test_wrong_parameters_are_refused_before_training(monkeypatch, parameters, message):
    no_training(monkeypatch)
    with pytest.raises(ValueError, match=message):
        ProARDEstimator(**{**SMALL, **parameters}).fit(X, Y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"val_fraction": 2}, "val_fraction is 2; allowed: above 0 and below 1"),
        ({"num_classes": 1}, "num_classes must be a whole number of at least 2, got 1"),
        ({"num_classes": "10"}, "num_classes must be a whole number of at least 2, got '10'"),
        ({"random_state": "x"}, "'x' cannot be used to seed"),
        ({"n_labels": 10**9}, "n_labels=1000000000 is more than the"),
        ({"clip_grad": "1"}, "clip_grad must be a number, got '1'"),
        ({"keep_best": "no"}, "keep_best must be True or False, got 'no'"),
        ({"schedule": None}, "a schedule must be a name or a non-empty list of Stage, got None"),
        ({"teacher_loss": "rslad"}, r"stage 'teacher' distils from a teacher \('rslad'\).*allowed: a first stage that"),
        (
            {
                "schedule": [Stage("a", 1, "trades"), Stage("b", 1, "rslad", ("kernel_size",))],
                "epochs": None,
                "lr": None,
            },
            "stage 'b' opens kernel_size, which the supernet has no choice of; allowed: width_mult, depth",
        ),
        ({"teacher": 3}, "teacher must be a module, a timm model's name or None, got 3"),
    ],
)
def test_wrong_parameters_are_refused_before_data_are_read(parameters, message):
    with pytest.raises(ValueError, match=message):
        check_parameters(ProARDEstimator(**{**SMALL, **parameters}))


def test_columns_of_validation_data_in_another_order_are_refused(monkeypatch):
    pandas = pytest.importorskip("pandas")
    no_training(monkeypatch)
    frame = pandas.DataFrame(X.reshape(40, -1)[:, :4], columns=list("abcd"))
    with pytest.raises(ValueError, match="must be in the same order"):
        ProARDEstimator(**SMALL).fit(frame, Y, val_loader=(frame[list("dcba")], Y))


def test_a_gpu_that_is_not_in_the_machine_is_refused_by_fit_and_replaced_in_what_is_loaded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    est = ProARDEstimator(**SMALL, device="cuda:2")
    with pytest.raises(ValueError, match="device='cuda:2' was asked for; allowed: 'cuda:0' to 'cuda:1'"):
        est.fit(None)
    assert device_of(est) == torch.device("cuda")
    assert device_of(est.set_params(device="cuda:1")) == torch.device("cuda:1")


def test_every_parameter_of_training_reaches_it(monkeypatch):
    seen = {}

    def record(trainer, stages):
        seen.update(settings=trainer.settings, stages=stages)
        raise RuntimeError("seen")

    monkeypatch.setattr("proard_nas.training.trainer.Trainer.run", record)
    est = ProARDEstimator(
        "proard_dyn_resnet_tiny", epochs=8, lr=0.3, anneal="whole", loss="ard", teacher_loss="sat", batch_size=10,
        momentum=0.8, weight_decay=3e-4, eps=0.1, step_size=0.03, attack="n-fgsm", attack_steps=4, ema_decay=0.9,
        clip_grad=2.0, awp=0.01, augment="crop-flip", compile_teacher=True, sync_batch_norm=True, keep_best=False,
        checkpoint_seconds=7.0, precision="float32", device="cpu", random_state=5, progress=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="seen"):
        est.fit(X, Y)
    assert seen["settings"] == TrainSettings(
        batch_size=10,
        momentum=0.8,
        weight_decay=3e-4,
        budget=AttackBudget(eps=0.1, step_size=0.03, steps=4, method="n-fgsm"),
        precision=Precision("float32", channels_last=True),
        seed=derive_seed(int(check_random_state(5).randint(2**31)), "training"),
        progress=False,
        ema_decay=0.9,
        clip_grad=2.0,
        awp=0.01,
        augment="crop-flip",
        compile_teacher=True,
        sync_batch_norm=True,
        keep_best=False,
        checkpoint_seconds=7.0,
    )
    teacher, *steps = seen["stages"]
    assert (teacher.loss, {stage.loss for stage in steps}) == ("sat", {"ard"})
    assert {stage.lr for stage in seen["stages"]} == {0.3} and sum(stage.epochs for stage in seen["stages"]) == 8
    assert teacher.anneal == (0, teacher.epochs / 8) and steps[-1].anneal[1] == 1


def test_a_misspelt_model_argument_is_a_type_error(monkeypatch):
    no_training(monkeypatch)
    with pytest.raises(TypeError, match="depth_choices"):
        ProARDEstimator(**SMALL, model_args={"depth_choices": (0, 1)}).fit(X, Y)


def test_an_impossible_constraint_names_the_smallest_cost(fitted):
    smallest = fitted.supernet_.cost(fitted.supernet_.space.smallest, 8).mmacs
    with pytest.raises(ValueError, match=str(smallest)[:5]):
        fitted.search(max_flops=0.0001)
    assert fitted.search(max_flops=smallest, **SEARCH).best.macs == round(smallest * 1e6)


def test_wrong_search_arguments_are_refused(fitted):
    with pytest.raises(TypeError, match="Did you mean 'max_params'"):
        fitted.search(max_parms=3)
    with pytest.raises(ValueError, match="max_flops"):
        fitted.search(max_flops=-1)


def test_wrong_evaluation_input_is_refused(fitted, digits):
    _, x_test, _, y_test = digits
    with pytest.raises(ValueError, match="unknown attack 'pdg'.*Did you mean 'pgd'"):
        fitted.robust_score(x_test, y_test, attack="pdg")
    with pytest.raises(ValueError, match=r"\(1, 9, 9\)|9"):
        fitted.predict(np.zeros((2, 1, 9, 9), dtype=np.float32))
    with pytest.raises(ValueError, match="without labels"):
        fitted.robust_score(x_test)


def test_steps_of_another_eps_are_as_long_a_part_of_it(fitted, digits):
    _, x_test, _, y_test = digits
    x_test, y_test = x_test[:60], y_test[:60]
    found = fitted.evaluate(x_test, y_test, eps=0.3)
    assert (found.eps, found.steps) == (0.3, 3) and found.step_size == pytest.approx(0.15)  # half of eps, as in SMALL
    same = evaluate(fitted.supernet_, fitted.encoder_source(x_test, y_test), AttackSettings("pgd", 0.3, 0.15, 3),
                    seed=fitted.seed_)  # fmt: skip
    assert found.accuracy == same.accuracy
    own = fitted.evaluate(x_test, y_test, eps=fitted.eps)
    assert own.step_size == fitted.step_size and own.accuracy == fitted.robust_score(x_test, y_test)


def test_an_attack_too_short_for_its_ball_is_warned_of_once(fitted, digits, caplog):
    x_train, x_test, y_train, y_test = head(digits)
    fitted.robust_score(x_test, y_test)
    assert "out of reach" not in caplog.text
    fitted.robust_score(x_test, y_test, steps=1)
    assert caplog.text.count("PGD-1: 1 steps of 0.05") == 1
    short = {**SHORT, "step_size": 0.02, "eval_steps": 2}
    ProARDEstimator(**short).fit(x_train, y_train)
    assert caplog.text.count("PGD-1 of training: ") == caplog.text.count("PGD-2 of labels: ") == 1


def test_weights_that_would_not_count_are_refused(fitted, digits):
    _, x_test, _, y_test = digits
    data = TensorDataset(torch.as_tensor(x_test), torch.as_tensor(y_test))
    assert fitted.score(data) == pytest.approx(fitted.score(x_test, y_test, sample_weight=np.ones(len(y_test))))
    with pytest.raises(ValueError, match="sample_weight goes with arrays"):
        fitted.score(data, sample_weight=np.ones(len(y_test)))


def test_an_unfitted_estimator_says_so():
    est = ProARDEstimator()
    for call in (est.search, est.extract, lambda: est.predict(X), lambda: est.score(X, Y), lambda: est.save("x")):
        with pytest.raises(NotFittedError):
            call()


def test_parameters_are_stored_as_given_and_a_copy_is_equal():
    parameters = {**SMALL, "model_args": {"depths": (0, 1)}}
    est = ProARDEstimator(**parameters)
    assert {k: v for k, v in est.get_params().items() if k in parameters} == parameters
    assert clone(est).get_params() == est.get_params() == copy.deepcopy(est).get_params()


def test_defaults_are_the_papers():
    defaults = ProARDEstimator().get_params()
    assert defaults["model"] == "proard_dyn_resnet50"
    space = timm.create_model("proard_dyn_resnet_tiny").space
    stages = make_schedule(defaults["schedule"], space, epochs=defaults["epochs"], lr=defaults["lr"])
    assert [stage.epochs for stage in stages] == [300, 120, 120, 120]
    assert {stage.lr for stage in stages} == {0.01}
    assert (defaults["momentum"], defaults["weight_decay"]) == (0.9, 2e-4)
    assert (defaults["batch_size"], defaults["attack_steps"], defaults["eval_steps"]) == (128, 10, 20)
    assert (defaults["eps"], defaults["step_size"]) == (8 / 255, 2 / 255)
    assert defaults["n_labels"] == 2000


def test_the_best_labelled_students_that_keep_the_limits_join_the_first_generation(fitted):
    space, labels = fitted.supernet_.space, fitted.labels_.students
    trials = fitted.search(max_flops=1, **SEARCH).study.trials[: SEARCH["population_size"]]
    first = {space.decode([trial.params[gene.name] for gene in space.genes]) for trial in trials}
    kept = [label for label in labels if fitted.supernet_.cost(label.architecture, fitted.image_size_).macs <= 1e6]
    figures = {label.architecture: (label.natural_accuracy, label.robust_accuracy) for label in kept}
    joined = first & set(figures)
    assert 1 <= len(joined) <= SEARCH["population_size"] // 5 + 2  # and perhaps the two ends of the space
    for natural, robust in (figures[arch] for arch in joined - {space.smallest, space.largest}):
        better = sum(n >= natural and r >= robust and (n, r) != (natural, robust) for n, r in figures.values())
        assert better < SEARCH["population_size"] // 5
    undominated = [a for a, (n, r) in figures.items()
                   if not any(x >= n and y >= r and (x, y) != (n, r) for x, y in figures.values())]  # fmt: skip
    assert joined & set(undominated)
