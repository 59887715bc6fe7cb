"""From fit to evaluate on the command line: each command does what the Python API does."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from proard_nas import Architecture, ProARDEstimator, SearchResult, cli
from proard_nas.cli import main
from proard_nas.cli._data import own_validation, training_data, validation_data
from proard_nas.deploy import load_student
from proard_nas.evaluation.population import checksum, images_checksum
from proard_nas.search import search

SEARCH = ["--max-flops", "1.5", "--n-generations", "4", "--population-size", "20", "--no-progress"]


@pytest.fixture(scope="module")
def estimator(fitted):
    return ProARDEstimator.load(fitted)


@pytest.fixture(scope="module")
def front(fitted, tmp_path_factory):
    """Give the files of a search's result and of its best student."""
    folder = tmp_path_factory.mktemp("front")
    argv = ["search", "--estimator", fitted, *SEARCH, "--out", folder / "front.json", "--extract", folder / "student"]
    assert main(list(map(str, argv))) == 0
    return folder


def test_fit_reads_the_training_part_and_keeps_the_names_of_the_classes(estimator):
    assert estimator.classes_.tolist() == ["four", "nought"]
    assert (estimator.n_train_, estimator.n_val_) == (117, 13)
    assert (estimator.in_chans_, estimator.image_size_) == (3, (9, 9))


def test_search_finds_the_front_of_the_python_api(estimator, fitted, front, call, capsys):
    result = estimator.search(max_flops=1.5, n_generations=4, population_size=20, progress=False)
    expected = result.to_dict()
    assert SearchResult.load(front / "front.json").to_dict() == expected
    assert call("search", "--estimator", fitted, *SEARCH)["front"] == expected["front"]
    assert all(candidate.mmacs <= 1.5 for candidate in result.front)
    assert main(["search", "--estimator", str(fitted), *SEARCH]) == 0
    assert capsys.readouterr().out == f"{result}\n"


def test_every_argument_of_the_search_has_a_flag_that_reaches_it(fitted, monkeypatch, estimator, tmp_path):
    seen = {}

    def spy(self, **arguments):
        seen.update(arguments)
        raise ValueError("seen")

    monkeypatch.setattr(ProARDEstimator, "search", spy)
    monkeypatch.setattr("proard_nas.deploy.LatencyTable.load", lambda *given: "table")
    arch = estimator.supernet_.space.smallest
    given = {"max_flops": 3.0, "min_flops": 1.0, "max_params": 5e5, "max_latency_ms": 4.0, "min_natural_accuracy": 0.1,
             "min_robust_accuracy": 0.2, "population_size": 30, "n_generations": 7, "mutation_prob": 0.3, "seed": 0,
             "storage": "study.log", "study_name": "mine"}  # fmt: skip
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    flags += ["--latency-table", "phone.json"]
    flags += ["--objectives", "macs", "robust_accuracy", "--no-progress", "--warm-start", json.dumps([arch.to_dict()])]
    assert main(["search", "--estimator", str(fitted), *flags]) == 1
    expected = {
        **given,
        "objectives": ["macs", "robust_accuracy"],
        "progress": False,
        "refine": True,
        "latency": "table",
        "warm_start": [arch],
    }
    assert seen == expected
    assert set(inspect.signature(search).parameters) - set(seen) == {"space", "predict", "cost"}


def test_a_search_that_nothing_meets_fails_with_the_smallest_cost(fitted, fails, estimator):
    net = estimator.supernet_
    smallest = f"{net.cost(net.space.smallest, 9).mmacs:.4g}"
    message = fails("search", "--estimator", fitted, "--max-flops", "0.001")
    assert f"below the smallest student's {smallest}" in message


def test_a_database_that_cannot_be_opened_is_named(fitted, fails):
    argv = ["search", "--estimator", fitted, *SEARCH, "--storage"]
    assert "the storage sqlite:///none/x.db cannot be opened: " in fails(*argv, "sqlite:///none/x.db")
    message = fails(*argv, "mysql+none://me:secret@host/x")
    assert "the storage mysql+none://host/x cannot be opened: " in message and "secret" not in message


def test_verify_measures_on_the_very_images_that_fit_held_out(estimator, fitted, photos, call, tmp_path):
    argv = ["search", "--estimator", fitted, *SEARCH, "--verify", "1", "--data", photos]
    found = call(*argv, "--extract", tmp_path / "student")
    (measured,) = [row for row in found["front"] if row["measured"]]
    assert found["front"].index(measured) == found["best"]
    assert (measured["measured"]["n_images"], measured["measured"]["attack"]) == (13, "PGD-2")
    arguments = cli.argparse.Namespace(
        data=str(photos), val_data=None, val_split=None, image_size=None, root=None, download=False, split=None
    )
    x, y = validation_data(arguments, estimator)
    assert images_checksum(estimator.encoder_source(x, y)) == estimator.labels_.settings["images_checksum"]
    student = estimator.extract(Architecture.from_dict(measured["architecture"]))
    images, labels = torch.stack([image for image, _ in x]), torch.tensor([label for _, label in x])
    right = (student(images).argmax(1) == labels).float().mean().item()
    assert measured["measured"]["natural_accuracy"] == pytest.approx(right)
    figures = {**measured["measured"], "split": "validation"}
    assert load_student(tmp_path / "student").metadata.items() >= figures.items()
    python = ProARDEstimator.load(fitted).label(12, x, y)
    result = python.search(max_flops=1.5, n_generations=4, population_size=20, progress=False, verify=1)
    assert result.to_dict()["front"] == found["front"]


def test_a_wrong_number_to_verify_is_refused_before_the_work(fitted, photos, fails, monkeypatch):
    monkeypatch.setattr(ProARDEstimator, "load", None)
    argv = ["search", "--estimator", fitted, *SEARCH, "--verify", "-1", "--data", photos]
    assert "verify must be a whole number of at least 0, got -1" in fails(*argv)


def test_data_that_nothing_would_read_are_refused_before_the_work(fitted, photos, fails, monkeypatch):
    monkeypatch.setattr(ProARDEstimator, "load", None)
    argv = ["search", "--estimator", fitted, *SEARCH]
    assert "--data: data are for --verify, which was not given" in fails(*argv, "--data", photos)
    assert "--val-data and --val-split: data are for --verify" in fails(*argv, "--val-data", photos, "--val-split", "x")


def test_a_target_under_a_file_is_refused_before_the_work(fitted, photos, fails, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(ProARDEstimator, "load", None)
    words = f"could not be written, and nothing was changed: {tmp_path / 'file'} is a file"
    assert words in fails("search", "--estimator", fitted, *SEARCH, "--extract", tmp_path / "file" / "a" / "b")
    assert words in fails("fit", "--data", tmp_path / "none.npz", "--out", tmp_path / "file" / "a")


def test_flags_that_lack_what_they_need_are_named(fitted, front, photos, fails, tmp_path):
    evaluate = ["evaluate", "--estimator", fitted, "--data", photos]
    assert "--queries are of square, and --attack names pgd" in fails(*evaluate, "--attack", "pgd", "--queries", "5")
    assert "--max-images must be a whole number of at least 1, got 0" in fails(*evaluate, "--max-images", "0")
    assert "--arch {bad is no JSON" in fails(
        "extract", "--estimator", fitted, "--arch", "{bad", "--out", tmp_path / "s"
    )
    argv = ["search", "--estimator", fitted, *SEARCH, "--max-latency-ms", "5"]
    assert "--max-latency-ms needs --latency-table" in fails(*argv)
    (tmp_path / "flat").mkdir()
    assert "Allowed: a folder with one sub-folder of images" in fails("fit", "--data", tmp_path / "flat", "--out", "o")
    (tmp_path / "text.npz").write_text("no archive")
    assert "is no .npz archive" in fails("fit", "--data", tmp_path / "text.npz", "--out", tmp_path / "o")


def test_a_pgd_that_cannot_reach_the_border_is_warned_of(fitted, photos, call, caplog):
    argv = ["evaluate", "--estimator", fitted, "--data", photos, "--max-images", "4", "--attack", "pgd"]
    call(*argv, "--steps", "2", "--step-size", "1/1000")
    assert "2 steps of 0.001 are together shorter than eps" in caplog.text


def test_the_estimators_own_defaults_of_a_search_can_be_left_or_changed(fitted, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(ProARDEstimator, "search", lambda self, **given: seen.append(given) or {}["none"])
    for more in ([], ["--warm-start", "[]", "--seed", "0"]):
        assert main(["search", "--estimator", str(fitted), *more]) == 1
    assert not {"seed", "warm_start"} & seen[0].keys()
    assert (seen[1]["seed"], seen[1]["warm_start"]) == (0, [])
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "(default: what the estimator's gives)" in words
    assert "(default: the best of the labelled students; [] is none)" in words


def test_verify_needs_data_and_refuses_other_data(fitted, photos, fails, tmp_path):
    argv = ["search", "--estimator", fitted, *SEARCH, "--verify", "1"]
    assert "give --data (that of fit) or --val-data" in fails(*argv)
    assert "--val-split val names a part of --data or --val-data" in fails(*argv, "--val-split", "val")
    assert "has 63 training images beside those held out, but the estimator's fit had 117" in fails(
        *argv, "--data", photos / "test"
    )


@pytest.mark.parametrize(
    ("data", "model", "size"),
    [
        ("{photos}", "proard_dyn_mobilenetv3_224", (224, 224)),
        ("{photos}", "proard_dyn_resnet_tiny", (8, 8)),
        ("hfds/cifar10", "proard_dyn_resnet_small", (32, 32)),
        ("torch/cifar10", "proard_dyn_mobilenetv3_224", None),
    ],
)
def test_fit_brings_pictures_to_the_size_of_the_network(monkeypatch, photos, tmp_path, data, model, size):
    seen = []

    def stop(data, part, image_size, **how):
        seen.append(image_size)
        raise ValueError("enough")

    monkeypatch.setattr("proard_nas.data.open_data", stop)
    for flags, wanted in ((), size), (("--image-size", "9x12"), (9, 12)):
        argv = ["fit", "--data", data.format(photos=photos), "--model", model, "--out", tmp_path / "out", *flags]
        assert main(list(map(str, argv))) == 1
        assert seen.pop() == wanted


def test_the_root_of_a_named_data_set_is_not_that_of_an_archive_beside_it(monkeypatch, photos):
    seen = []
    monkeypatch.setattr("proard_nas.data.open_data", lambda data, part, **how: seen.append((data, how)) or (0, 0))
    named = {"data": "torch/cifar10", "split": None, "val_split": None, "image_size": None}
    arguments = cli.argparse.Namespace(**named, root="there", download=True, val_data=str(photos))
    training_data(arguments)
    own_validation(arguments)
    assert [(data, how.get("root"), how.get("download")) for data, how in seen] == [
        ("torch/cifar10", "there", True),
        (str(photos), None, None),
    ]


def test_the_same_images_in_another_order_are_refused(fitted, photos, fails, tmp_path):
    """Others would be held out of them, also such as fit has trained on."""
    names = sorted(path.name for path in (photos / "train" / "nought").iterdir())
    for folder in ("nought", "four"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        for path in (photos / "train" / folder).iterdir():
            turned = names[-1 - names.index(path.name)] if folder == "nought" else path.name
            shutil.copy(path, tmp_path / "train" / folder / turned)
    for command in (["search", *SEARCH, "--verify", "1"], ["label", "--n-labels", "14"]):
        message = fails(command[0], "--estimator", fitted, *command[1:], "--data", tmp_path)
        assert "not the images that the estimator's labels were measured on" in message


def test_label_adds_students_and_saves_the_estimator(fitted, photos, tmp_path, call):
    shutil.copytree(fitted, tmp_path / "est")
    argv = ["label", "--estimator", tmp_path / "est", "--data", photos, "--n-labels", "14"]
    assert call(*argv, "--record", tmp_path / "labels.jsonl")["n_labels"] == 14
    before, after = ProARDEstimator.load(fitted).labels_, ProARDEstimator.load(tmp_path / "est").labels_
    assert after.students[:12] == before.students
    assert len(set(after.architectures)) == 14
    assert (tmp_path / "labels.jsonl").stat().st_size > 0


def test_a_record_in_an_estimators_folder_is_refused(fitted, photos, tmp_path, fails):
    """Lines added to the estimator's own file, or a file beside it, would make the folder one that is not loaded."""
    argv = ["label", "--estimator", fitted, "--data", photos, "--n-labels", "14"]
    before = (fitted / "labels.jsonl").read_bytes()
    assert "allowed: a file outside of it" in fails(*argv, "--record", fitted / "labels.jsonl")
    assert "allowed: a file outside of it" in fails(*argv, "--out", tmp_path / "o", "--record", tmp_path / "o" / "r")
    assert (fitted / "labels.jsonl").read_bytes() == before


def test_labels_can_be_made_anew_on_other_images_and_on_those_of_fit_again(fitted, photos, tmp_path, call):
    argv = ["label", "--n-labels", "12", "--replace", "--estimator"]
    call(*argv, fitted, "--val-data", photos / "test", "--out", tmp_path / "other")
    call(*argv, tmp_path / "other", "--data", photos, "--out", tmp_path / "again")
    first, again = (ProARDEstimator.load(folder).labels_ for folder in (fitted, tmp_path / "again"))
    assert [label.robust_accuracy for label in again.students] == [label.robust_accuracy for label in first.students]


def test_labels_on_other_images_are_not_mixed(fitted, photos, fails):
    argv = ["label", "--estimator", fitted, "--val-data", photos / "test", "--n-labels", "14"]
    assert "cannot be mixed" in fails(*argv)


def test_extract_saves_the_chosen_student_for_timm(estimator, fitted, front, tmp_path, call):
    result = SearchResult.load(front / "front.json")
    for pick, arch in (
        (["--result", front / "front.json"], result.best.architecture),
        (["--result", front / "front.json", "-i", "0"], result.front[0].architecture),
        (["--arch", json.dumps(result.front[0].architecture.to_dict())], result.front[0].architecture),
        (["--arch", front / "student" / "proard.json"], result.best.architecture),
        ([], estimator.supernet_.space.largest),
    ):
        facts = call("extract", "--estimator", fitted, *pick, "--out", tmp_path / "student")
        student = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
        assert student.arch == arch
        assert facts["params"] == sum(p.numel() for p in student.parameters())
        assert list(student.pretrained_cfg["label_names"]) == ["four", "nought"]
        images = torch.rand(3, 3, 9, 9)
        assert torch.equal(student(images), estimator.extract(arch)(images))


def test_a_student_that_is_not_there_or_named_twice_is_refused(fitted, front, fails, tmp_path):
    argv = ["extract", "--estimator", fitted, "--out", tmp_path / "student"]
    assert "students, numbered from 0; got 99" in fails(*argv, "--result", front / "front.json", "-i", "99")
    assert "allowed: one of them" in fails(*argv, "--result", front / "front.json", "--arch", "{}")
    assert "-i was given without --result" in fails(*argv, "-i", "0")
    assert not (tmp_path / "student").exists()


def by_hand(student, folder, classes):
    """Return the share of a test folder's images that a student classifies rightly."""
    right = []
    for path in sorted(Path(folder).glob("*/*.png")):
        logits = student(to_tensor(Image.open(path).convert("RGB"))[None])
        right.append(classes[int(logits.argmax())] == path.parent.name)
    return np.mean(right)


def test_evaluate_measures_a_saved_student_on_the_test_part_alone(front, photos, tmp_path, call):
    shutil.copytree(photos / "test", tmp_path / "data" / "test")
    found = call("evaluate", front / "student", "--data", tmp_path / "data", "--attack", "natural", "pgd",
                 "--eps", "4/255", "--steps", "3")  # fmt: skip
    student = timm.create_model(f"local-dir:{front / 'student'}", pretrained=True).eval()
    natural, pgd = found["results"]
    assert natural["accuracy"] == pytest.approx(by_hand(student, photos / "test", ["four", "nought"]))
    assert (natural["n_images"], pgd["attack"], pgd["eps"]) == (70, "PGD-3", 4 / 255)
    assert pgd["step_size"] == 1 / 255
    assert pgd["accuracy"] <= natural["accuracy"]


def test_a_test_folder_that_lacks_a_class_is_judged_by_names(front, photos, tmp_path, call):
    shutil.copytree(photos / "test" / "nought", tmp_path / "noughts" / "nought")
    found = call("evaluate", front / "student", "--data", tmp_path / "noughts", "--attack", "natural")
    student = timm.create_model(f"local-dir:{front / 'student'}", pretrained=True).eval()
    expected = by_hand(student, tmp_path / "noughts", ["four", "nought"])
    assert found["results"][0]["accuracy"] == pytest.approx(expected)
    assert expected > 0.5  # by numbers, all would be fours


def test_evaluate_takes_archives_with_names_or_grey_images_and_an_estimators_students(fitted, front, tmp_path, call):
    x = np.random.default_rng(0).random((8, 1, 9, 9), dtype=np.float32)
    y = np.array(["nought", "four"] * 4)
    np.savez(tmp_path / "a.npz", x_train=x[:1], y_train=y[:1], x_test=x, y_test=y)
    attack = ["--data", tmp_path / "a.npz", "--attack", "natural"]
    student = timm.create_model(f"local-dir:{front / 'student'}", pretrained=True).eval()
    guessed = np.array(["four", "nought"])[student(torch.from_numpy(x).expand(-1, 3, -1, -1)).argmax(1)]
    found = call("evaluate", front / "student", *attack)["results"][0]
    assert found["accuracy"] == pytest.approx(np.mean(guessed == y))
    ours = call("evaluate", "--estimator", fitted, "--result", front / "front.json", *attack)["results"][0]
    assert ours["accuracy"] == found["accuracy"]
    np.savez(tmp_path / "a.npz", x_train=x[:1], y_train=[1], x_test=x, y_test=[1, 0] * 4)  # numbers of the classes
    assert call("evaluate", front / "student", *attack)["results"][0]["accuracy"] == found["accuracy"]


def test_evaluate_attacks_a_saved_student_as_it_was_trained(front, photos, tmp_path, call):
    student = load_student(front / "student")
    student.metadata["training"]["eps"] = 4 / 255
    student.save(tmp_path / "student")
    options = ["--data", photos, "--attack", "fgsm", "--max-images", "20"]
    for argv, eps in ((), 4 / 255), (("--eps", "2/255"), 2 / 255):
        (found,) = call("evaluate", tmp_path / "student", *options, *argv)["results"]
        assert found["eps"] == pytest.approx(eps)


def test_an_estimators_step_is_as_large_a_part_of_another_eps(fitted, photos, tmp_path, call):
    estimator = ProARDEstimator.load(fitted)
    estimator.step_size = estimator.eps / 8
    estimator.save(tmp_path / "est")
    argv = ["evaluate", "--estimator", tmp_path / "est", "--data", photos, "--attack", "pgd", "--max-images", "4"]
    for eps in (8 / 255, 4 / 255):
        (found,) = call(*argv, "--eps", eps)["results"]
        assert (found["eps"], found["step_size"]) == pytest.approx((eps, eps / 8))


def test_evaluate_shows_a_table_and_signs_of_masked_gradients(front, photos, capsys):
    argv = ["evaluate", front / "student", "--data", photos, "--attack", "natural", "fgsm", "--max-images", "20"]
    assert main([*map(str, argv), "--check-masking"]) == 0
    text = capsys.readouterr().out
    assert "accuracy %" in text and "FGSM" in text and "masked gradients" in text


def test_figures_of_other_weights_are_not_put_on_a_student(fitted, front, tmp_path, fails):
    found = json.loads((front / "front.json").read_text())
    assert found["weights"] == checksum(ProARDEstimator.load(fitted).supernet_)
    (tmp_path / "other.json").write_text(json.dumps(found | {"weights": "0"}))
    argv = ["extract", "--estimator", fitted, "--out", tmp_path / "student"]
    assert "of other weights than the estimator's" in fails(*argv, "--result", tmp_path / "other.json")
    assert not (tmp_path / "student").exists()
    (tmp_path / "list.json").write_text("[]")
    assert "holds a list; allowed: an architecture" in fails(*argv, "--arch", tmp_path / "list.json")


def test_the_device_to_evaluate_on_is_checked(fitted, front, photos, fails, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for network in ([front / "student"], ["--estimator", fitted]):
        assert "device='cuda'" in fails("evaluate", *network, "--data", photos, "--device", "cuda")


def test_evaluate_says_what_is_missing(fitted, front, photos, fails, tmp_path):
    assert "give either the folder of a saved student or --estimator" in fails("evaluate", "--data", photos)
    argv = ["evaluate", front / "student", "--data"]
    for flags in (("--arch", "{}"), ("-i", "0")):
        assert "pick a student of --estimator" in fails(*argv, photos, *flags)
    assert "has a part 'train' but no part 'test'" in fails(
        *argv, copied(photos / "train", tmp_path / "half" / "train")
    )
    assert "unknown class" in fails(*argv, copied(photos / "test" / "four", tmp_path / "fives" / "five"))
    assert "is not a saved student" in fails("evaluate", fitted, "--data", photos)
    assert "--check-masking needs an attack" in fails(*argv, photos, "--attack", "natural", "--check-masking")
    np.savez(tmp_path / "t.npz", x_train=np.zeros((2, 4)), y_train=[0, 1], x_test=np.zeros((2, 4)), y_test=[0, 1])
    assert "the data is a table" in fails(*argv, tmp_path / "t.npz")


def copied(source, target):
    shutil.copytree(source, target)
    return target.parent


@pytest.mark.parametrize(
    "argv",
    [
        ("search", "--out", "nowhere/front.json"),
        ("search", "--extract", "{photos}"),
        ("label", "--n-labels", "14", "--out", "{photos}"),
        ("latency-table", "--out", "nowhere/table.json"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_the_work(fitted, photos, fails, monkeypatch, argv):
    monkeypatch.setattr(ProARDEstimator, "load", None)
    command, *flags = (word.format(photos=photos) for word in argv)
    assert any(
        text in fails(command, "--estimator", fitted, *flags) for text in ("there is no folder", "holds something else")
    )


def test_wrong_parameters_are_named_before_data_are_read(tmp_path, fails):
    argv = ("fit", "--data", tmp_path / "not there", "--out", tmp_path / "out")
    assert "n_labels must be" in fails(*argv, "--n-labels", "3")
    assert "not there" in fails(*argv, "--n-labels", "12")
