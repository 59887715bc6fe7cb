"""Promises of saving: the same bits from timm alone, what is known kept beside them, folders replaced whole."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import timm
import torch

import proard_nas  # noqa: F401  (registers the networks)
from proard_nas.deploy import load_student, save_student

FIGURES = {"natural_accuracy": 0.93, "robust_accuracy": 0.61, "attack": "PGD-20", "eps": 8 / 255}
FILES = ["README.md", "checksums.json", "config.json", "model.safetensors", "proard.json"]


def images(net, n=4):
    channels, height, width = net.pretrained_cfg["input_size"]
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1))


def calibrated(net):
    """Give statistics of its own to each batch norm."""
    with torch.no_grad():
        net.train()(images(net, 16))
    return net.eval()


def make_student(name="proard_dyn_resnet_tiny", seed=0):
    net = timm.create_model(name)
    return calibrated(net.extract(net.space.sample(seed)))


@pytest.fixture(scope="module")
def student():
    return make_student()


def same_bits(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def facts(folder):
    return json.loads((folder / "proard.json").read_text())


# -- the same bits ----------------------------------------------------------------------------


def check_round_trip(student, folder):
    student.save(folder)
    x = images(student)
    for again in (timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), load_student(folder)):
        assert same_bits(student, again)
        assert type(again) is type(student) and again.arch == student.arch
        with torch.no_grad():
            assert torch.equal(again(x), student(x))


@pytest.mark.parametrize("name", ["proard_dyn_resnet_tiny", "proard_dyn_resnet_small"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_saved_student_comes_back_bit_equal(tmp_path, name, seed):
    check_round_trip(make_student(name, seed), tmp_path / "s")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["proard_dyn_resnet_tiny", "proard_dyn_resnet_small", "proard_dyn_mobilenetv3"])
def test_fifty_random_students_come_back_bit_equal(tmp_path, name):
    net = timm.create_model(name)
    for seed in range(50):
        check_round_trip(calibrated(net.extract(net.space.sample(seed))), tmp_path / "s")


@pytest.mark.slow
def test_a_fresh_process_needs_only_to_import_the_package(tmp_path, student):
    student.save(tmp_path / "s")
    x = images(student)
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys, numpy, timm, torch, proard_nas\n"
        "net = timm.create_model(f'local-dir:{sys.argv[1]}/s', pretrained=True).eval()\n"
        "with torch.no_grad(): y = net(torch.from_numpy(numpy.load(sys.argv[1] + '/x.npy')))\n"
        "numpy.save(sys.argv[1] + '/y.npy', y.numpy())"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    with torch.no_grad():
        assert np.array_equal(np.load(tmp_path / "y.npy"), student(x).numpy())


def test_a_supernet_is_saved_and_loaded_the_same_way(tmp_path):
    net = calibrated(timm.create_model("proard_dyn_resnet_tiny", num_classes=7, expand_ratios=(0.3, 0.6)))
    net.set_active(net.space.smallest)
    net.save(tmp_path / "net")
    again = load_student(tmp_path / "net")
    assert same_bits(net, again)
    assert again.space == net.space
    assert again.active == net.space.largest
    assert facts(tmp_path / "net")["kind"] == "supernet"


def test_the_files_hold_the_students_numbers_as_other_libraries_read_them(tmp_path, student):
    student.save(tmp_path / "s")
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == FILES
    stored = safetensors.numpy.load_file(tmp_path / "s" / "model.safetensors")
    assert stored.keys() == student.state_dict().keys()
    assert all(np.array_equal(stored[name], tensor.numpy()) for name, tensor in student.state_dict().items())
    for name, sums in json.loads((tmp_path / "s" / "checksums.json").read_text()).items():
        data = (tmp_path / "s" / name).read_bytes()
        assert sums == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def test_save_student_and_the_method_write_the_same_bytes(tmp_path, student):
    student.save(tmp_path / "a", FIGURES)
    save_student(student, tmp_path / "b", FIGURES)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_layout_in_memory_and_half_precision_do_not_matter(tmp_path):
    student = make_student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    student.to(memory_format=torch.channels_last).save(tmp_path / "s")
    assert all(torch.equal(before[k], v) for k, v in load_student(tmp_path / "s").state_dict().items())
    half = student.bfloat16()
    half.save(tmp_path / "half")
    again = load_student(tmp_path / "half").state_dict()
    assert all(torch.equal(v.to(again[k].dtype), again[k]) for k, v in half.state_dict().items())


def test_names_of_classes_and_the_input_size_come_back(tmp_path):
    student = make_student()
    names = [f"class {i}" for i in range(10)]
    student.pretrained_cfg |= {"label_names": names, "input_size": (1, 12, 12), "pool_size": (3, 3)}
    student.save(tmp_path / "s")
    again = load_student(tmp_path / "s")
    assert again.pretrained_cfg["label_names"] == names
    assert tuple(again.pretrained_cfg["input_size"]) == (1, 12, 12)
    assert facts(tmp_path / "s")["macs"] == student.cost(img_size=12).macs


def test_a_new_classifier_comes_back(tmp_path):
    student = make_student()
    student.reset_classifier(3)
    student.save(tmp_path / "s")
    again = load_student(tmp_path / "s")
    assert same_bits(student, again) and again.num_classes == 3


# -- what is known about a student ------------------------------------------------------------


def test_what_is_known_is_kept_beside_the_weights(tmp_path, student):
    student.save(tmp_path / "s", {**FIGURES, "data": "digits", "seed": np.int64(3), "scores": np.array([0.5, 1.0])})
    kept = facts(tmp_path / "s")
    assert {name: kept[name] for name in FIGURES} == FIGURES
    assert (kept["data"], kept["seed"], kept["scores"]) == ("digits", 3, [0.5, 1.0])
    assert kept["architecture"] == student.arch.to_dict()
    assert kept["params"] == sum(p.numel() for p in student.parameters())
    assert kept["macs"] == student.cost().macs
    assert kept["calibrated"] is True
    assert kept["license"] == "apache-2.0"
    assert kept["versions"]["torch"] == torch.__version__
    assert kept["versions"]["timm"] == timm.__version__


def test_metadata_go_on_with_the_student_and_new_ones_win(tmp_path):
    student = make_student()
    student.metadata = {"seed": 1, "data": "digits"}
    student.save(tmp_path / "a", {"seed": 2})
    again = load_student(tmp_path / "a")
    assert (again.metadata["seed"], again.metadata["data"]) == (2, "digits")
    again.save(tmp_path / "b")
    assert facts(tmp_path / "a") == facts(tmp_path / "b")


def test_a_licence_is_written_wherever_it_is_looked_for(tmp_path, student):
    student.save(tmp_path / "s", {"license": "cc-by-4.0"})
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == facts(tmp_path / "s")["license"] == "cc-by-4.0"
    assert "license: cc-by-4.0" in (tmp_path / "s" / "README.md").read_text()
    assert student.pretrained_cfg["license"] == "apache-2.0"


def test_a_student_that_is_not_calibrated_is_saved_and_says_so(tmp_path, caplog):
    net = timm.create_model("proard_dyn_resnet_tiny")
    net.extract(net.space.smallest).save(tmp_path / "s")
    assert facts(tmp_path / "s")["calibrated"] is False
    assert "not calibrated" in caplog.text
    assert "Not calibrated" in (tmp_path / "s" / "README.md").read_text()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"macs": 1}, "must not give 'macs'"),
        ({"architecture": {}}, "must not give 'architecture'"),
        ({"natural_accuracy": 93.0}, r"natural_accuracy must be a number in \[0, 1\], got 93.0"),
        ({"natural_accuracy": float("nan")}, "got nan"),
        ({"natural_accuracy": "0.9"}, "got '0.9'"),
        ({"natural_accuracy": [0.9]}, "must be a number"),
        ({"robust_accuracy": 0.5}, "without 'attack' and 'eps'"),
        ({"robust_accuracy": 0.5, "attack": "PGD-20"}, "without 'eps'"),
        ({"loss": float("inf")}, "proard.json cannot be written as JSON"),
        ({"net": object()}, "proard.json cannot be written as JSON"),
        ({1: 2}, "names"),
        (["seed"], "metadata must be a mapping"),
    ],
)
def test_metadata_that_cannot_be_true_or_kept_are_refused(tmp_path, student, metadata, message):
    with pytest.raises(ValueError, match=message):
        student.save(tmp_path / "s", metadata)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"macs": 1}, "must not give 'macs'"), ({"robust_accuracy": 0.5}, "without 'attack' and 'eps'")],
)
def test_metadata_of_a_networks_own_are_looked_at_too(tmp_path, student, monkeypatch, metadata, message):
    monkeypatch.setattr(student, "metadata", metadata)
    with pytest.raises(ValueError, match=message):
        student.save(tmp_path / "s")
    assert not list(tmp_path.iterdir())


# -- what cannot be saved ---------------------------------------------------------------------


def live():
    net = timm.create_model("proard_dyn_resnet_tiny")
    return net.student(net.space.smallest)


def pruned():
    student = make_student()
    student.prune_intermediate_layers([0])
    return student


def foreign():
    student = make_student()
    student.head.fc = torch.nn.Linear(student.head.fc.in_features, 4)
    return student


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (live, "live student.*extract"),
        (pruned, "the weights are not those of a proard_resnet_tiny"),
        (foreign, r"head.fc.weight has the shape \(4, \d+\) and should have \(10, \d+\)"),
        (lambda: make_student().double(), "float64"),
    ],
)
def test_what_timm_could_not_build_again_is_refused_and_leaves_nothing(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        make().save(tmp_path / "deep" / "s")
    assert not list(tmp_path.iterdir())


# -- folders ----------------------------------------------------------------------------------


def test_parents_are_made_and_the_folder_has_the_usual_rights(tmp_path, student):
    student.save(tmp_path / "a" / "b" / "s")
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual.txt").write_text("")
    assert (tmp_path / "a" / "b" / "s").stat().st_mode == (tmp_path / "usual").stat().st_mode
    for path in (tmp_path / "a" / "b" / "s").iterdir():
        assert path.stat().st_mode == (tmp_path / "usual.txt").stat().st_mode


def test_the_current_folder_and_a_link_to_a_folder_can_be_saved_to(tmp_path, monkeypatch, student):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    student.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and same_bits(load_student(tmp_path / "real"), student)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    student.save(".")
    assert same_bits(load_student(tmp_path / "here"), student)


def test_a_saved_network_is_replaced_whole(tmp_path, student):
    other = make_student(seed=5)
    assert not same_bits(other, student)
    student.save(tmp_path / "s")
    other.save(tmp_path / "s")
    assert same_bits(load_student(tmp_path / "s"), other)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_what_somebody_else_put_there_is_never_replaced(tmp_path, student):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")  # of another library
    student.save(tmp_path / "mine")
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for name, message in (("file", "is a file"), ("other", "no proard.json|'config.json'"), ("mine", "'thesis.txt'")):
        with pytest.raises(FileExistsError, match=message):
            student.save(tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "other" / "config.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine", "other"]
