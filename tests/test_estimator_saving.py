"""Promises of an estimator's folder: it comes back the same, whole or not at all, and bad files are named."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.datasets import load_digits

from proard_nas import ProARDEstimator, _folders
from proard_nas.deploy import load_student
from proard_nas.training import LOSSES, Stage, make_loss

SEARCH = {"population_size": 20, "n_generations": 3}
PARTS = (
    "estimator.json",
    "predictor.json",
    "labels.jsonl",
    "calibration.safetensors",
    "supernet/config.json",
    "supernet/proard.json",
    "supernet/model.safetensors",
)
JSON = [name for name in PARTS if ".json" in name]


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype("float32").reshape(-1, 1, 8, 8)[:200], np.array([f"digit {label}" for label in y[:200]])


@pytest.fixture(scope="module")
def fitted(digits):
    est = ProARDEstimator(
        "proard_dyn_resnet_tiny", epochs=4, attack="n-fgsm", eps=0.1, step_size=0.1, eval_steps=1, n_labels=12,
        n_calibration=64, n_watch=0, batch_size=64, precision="float32", device="cpu", random_state=0, progress=False,
    )  # fmt: skip
    return est.fit(*digits)


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "est"
    fitted.save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "est"))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def renew_checksums(folder):
    """Do what somebody with bad intent would, from the inside out."""
    for where in (folder / "supernet", folder):
        sums = json.loads((where / "checksums.json").read_text())
        for name in sums:
            data = (where / name).read_bytes()
            sums[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (where / "checksums.json").write_text(json.dumps(sums))


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# -- there and back ---------------------------------------------------------------------------


def test_a_loaded_estimator_predicts_searches_and_extracts_the_same(fitted, saved, digits):
    loaded = ProARDEstimator.load(saved)
    assert np.array_equal(fitted.predict_proba(digits[0]), loaded.predict_proba(digits[0]))
    assert fitted.classes_.tolist() == loaded.classes_.tolist()
    assert loaded.get_params() == fitted.get_params()
    first, second = fitted.search(**SEARCH), loaded.search(**SEARCH)
    assert [c.architecture for c in first.front] == [c.architecture for c in second.front]
    a, b = (result.extract().state_dict() for result in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(fitted.calibration_images_, loaded.calibration_images_)


def test_what_is_loaded_and_saved_again_is_the_same(saved, tmp_path):
    ProARDEstimator.load(saved).save(tmp_path / "again")
    first, again = contents(saved), contents(tmp_path / "again")
    assert first.keys() == again.keys()
    for name in PARTS:
        if name.endswith(".json"):
            assert json.loads(first[name]) == json.loads(again[name])  # timm may list its arguments in another order
        else:
            assert first[name] == again[name]


def test_the_folder_holds_safetensors_json_and_a_card_and_its_supernet_stands_alone(fitted, saved):
    files = contents(saved)
    assert {Path(name).suffix for name in files} == {".json", ".jsonl", ".safetensors", ".md"}
    for name, data in files.items():
        if name.endswith(".json"):
            json.loads(data)
        if name.endswith(".safetensors"):
            with safe_open(saved / name, framework="numpy") as tensors:
                assert list(tensors.keys())
    assert b"64 of the training images" in files["README.md"]
    supernet, own = load_student(saved / "supernet").state_dict(), fitted.supernet_.state_dict()
    assert all(torch.equal(supernet[name], tensor) for name, tensor in own.items())


def test_every_file_but_the_cards_has_its_checksum(saved):
    listed = {"checksums.json", "README.md", "supernet/README.md"}
    for where in ("", "supernet/"):
        for name, sums in json.loads((saved / where / "checksums.json").read_text()).items():
            assert sums["sha256"] == hashlib.sha256((saved / where / name).read_bytes()).hexdigest()
            listed.add(where + name)
    assert listed == set(contents(saved))


def test_figures_that_are_not_finite_do_not_keep_an_estimator_from_being_saved(saved, tmp_path):
    estimator = ProARDEstimator.load(saved)
    estimator.events_ = [{"loss": float("nan")}]
    estimator.save(tmp_path / "est")
    assert np.isnan(ProARDEstimator.load(tmp_path / "est").events_[0]["loss"])


def test_a_loss_of_ones_own_is_saved_by_its_name_and_asked_for_again_in_a_fit(saved, tmp_path):
    estimator = ProARDEstimator.load(saved)
    estimator.loss = make_loss
    estimator.save(tmp_path / "est")
    loaded = ProARDEstimator.load(tmp_path / "est")
    x = torch.rand(1, *loaded.supernet_.pretrained_cfg["input_size"])
    assert torch.equal(loaded.extract()(x), estimator.extract()(x))
    with pytest.raises(ValueError, match="unknown loss 'own: make_loss'"):
        loaded.fit(x, [0])


def test_a_device_of_torchs_is_saved_by_its_name(saved, tmp_path):
    ProARDEstimator.load(saved).set_params(device=torch.device("cpu")).save(tmp_path / "est")
    assert ProARDEstimator.load(tmp_path / "est").device == "cpu"


def test_an_estimator_is_loaded_for_the_device_asked_for(folder):
    edit(folder / "estimator.json", lambda d: d["parameters"].update(device="cuda:1"))
    renew_checksums(folder)
    loaded = ProARDEstimator.load(folder, device="cpu")
    assert loaded.device == "cpu" and loaded.device_ == torch.device("cpu")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        ProARDEstimator.load(folder, device="gpu")


def test_what_weights_were_trained_against_does_not_follow_the_parameters(saved, tmp_path):
    estimator = ProARDEstimator.load(saved)
    trained = {"supernet": "proard_dyn_resnet_tiny", "loss": "rslad", "attack": "n-fgsm", "eps": 0.1, "n_images": 180}
    estimator.set_params(model="proard_dyn_resnet_small", eps=0.2, attack="pgd", loss="ard").save(tmp_path / "est")
    card = (tmp_path / "est" / "README.md").read_text()
    assert "| eps | 0.1 |" in card and "# proard_dyn_resnet_tiny" in card
    for one in (estimator, ProARDEstimator.load(tmp_path / "est")):
        assert one.eps == 0.2 and one.extract().metadata["training"] == trained


def test_an_older_folders_weights_were_trained_by_its_parameters(fitted, folder):
    edit(folder / "estimator.json", lambda d: [d.pop(name) for name in ("training", "columns")])
    renew_checksums(folder)
    assert ProARDEstimator.load(folder).training_ == fitted.training_


def test_names_of_columns_are_kept(saved, tmp_path):
    estimator = ProARDEstimator.load(saved)
    assert not hasattr(estimator, "feature_names_in_")
    estimator.feature_names_in_ = np.array(["a", "b"], dtype=object)
    estimator.save(tmp_path / "est")
    loaded = ProARDEstimator.load(tmp_path / "est").feature_names_in_
    assert loaded.dtype == object and loaded.tolist() == ["a", "b"]


@pytest.mark.parametrize("registered", [False, True])
def test_a_stage_with_a_loss_that_is_not_there_is_loaded_saved_and_missed_in_a_fit_alone(
    fitted, saved, tmp_path, monkeypatch, registered
):
    def mine(net, batch, x_adv):
        return torch.nn.functional.cross_entropy(net(batch.x), batch.y)

    estimator = ProARDEstimator.load(saved)
    with monkeypatch.context() as patch:
        patch.setitem(LOSSES, "mine", lambda: make_loss(mine))
        stages = [Stage("a", 1, "natural"), Stage("b", 2, "mine" if registered else mine, ("depth",), lr=0.05)]
        estimator.set_params(schedule=stages, epochs=None).save(tmp_path / "est")
        there = ProARDEstimator.load(tmp_path / "est").schedule
    assert there == stages or not registered
    loaded = ProARDEstimator.load(tmp_path / "est")
    loaded.save(tmp_path / "again")
    loaded = ProARDEstimator.load(tmp_path / "again")
    x = torch.rand(2, *loaded.supernet_.pretrained_cfg["input_size"])
    assert np.array_equal(loaded.predict_proba(x), fitted.predict_proba(x))
    assert loaded.schedule[0] == stages[0]
    name = "mine" if registered else f"own: {mine.__qualname__}"
    with pytest.raises(ValueError, match=f"unknown loss '{name}'"):
        loaded.fit(x, ["digit 0", "digit 1"])
    patched = {**loaded.schedule[1], "loss": "natural"}
    assert Stage.from_dict(patched) == Stage("b", 2, "natural", ("depth",), lr=0.05)


# -- bad files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PARTS, "checksums.json", "supernet/checksums.json"])
def test_a_changed_a_cut_and_a_missing_file_are_named(folder, name):
    whole = (folder / name).read_bytes()
    middle = len(whole) // 2
    for data in (whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], b"", b"{"):
        (folder / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            ProARDEstimator.load(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace("supernet/", "")):
        ProARDEstimator.load(folder)


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("text", ["{", "null\n", "\xff\n", '{"a": 1}\n', "[" * 100_000])
def test_json_that_is_not_ours_is_named_even_with_its_checksum(folder, name, text):
    (folder / name).write_bytes(text.encode("latin-1"))
    renew_checksums(folder)
    if name == "labels.jsonl" and "\n" not in text:
        text += "\n"  # a last line without its end is one that was not written whole
        (folder / name).write_bytes(text.encode("latin-1"))
        renew_checksums(folder)
    with pytest.raises(ValueError, match=name):
        ProARDEstimator.load(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("estimator.json", lambda d: d.update(format=7), "format 7; this version reads format 2"),
        ("estimator.json", lambda d: d["parameters"].update(epoch=3), "'epoch'.*Did you mean 'epochs'"),
        ("estimator.json", lambda d: d["fitted"].pop("seed_"), "no 'seed_'"),
        ("estimator.json", lambda d: d["fitted"].update(image_size_=3), "estimator.json"),
        ("estimator.json", lambda d: d.pop("classes"), "no 'classes'"),
        ("predictor.json", lambda d: d["members"][0].clear(), "predictor.json"),
        ("predictor.json", lambda d: d["space"].update(depths=[0, 1, 2]), "another space"),
        ("supernet/config.json", lambda d: d["model_args"].update(expand_ratios=[0.1]), "has the shape"),
        ("supernet/config.json", lambda d: d.update(architecture="proard_resnet_tiny"), "supernet/config.json"),
    ],
)
def test_values_that_do_not_fit_are_named(folder, name, change, message):
    edit(folder / name, change)
    renew_checksums(folder)
    with pytest.raises(ValueError, match=message) as error:
        ProARDEstimator.load(folder)
    assert name in str(error.value)


def test_a_state_cannot_set_what_is_not_an_attribute_of_fit(folder):
    edit(folder / "estimator.json", lambda d: d["fitted"].update(predict="gone"))
    renew_checksums(folder)
    assert callable(ProARDEstimator.load(folder).predict)


def test_the_supernet_of_another_estimator_is_noticed(folder):
    supernet = load_student(folder / "supernet")
    with torch.no_grad():
        supernet.head.fc.bias.add_(1)
    supernet.save(folder / "supernet")
    with pytest.raises(ValueError, match=r"supernet/checksums\.json"):
        ProARDEstimator.load(folder)


def test_a_student_in_place_of_the_supernet_is_refused(folder):
    supernet = load_student(folder / "supernet")
    supernet.extract(supernet.space.smallest).save(folder / "supernet")
    renew_checksums(folder)
    with pytest.raises(ValueError, match="holds a student, not a supernet"):
        ProARDEstimator.load(folder)


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", PARTS)
def test_a_pickle_in_place_of_any_file_is_refused_and_not_executed(folder, tmp_path, name):
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")) + b"\n")
    renew_checksums(folder)
    with pytest.raises(ValueError, match=name):
        ProARDEstimator.load(folder)
    assert not (tmp_path / "sprung").exists()


def test_an_estimator_of_images_that_rounding_put_outside_0_to_1_comes_back(saved, tmp_path):
    est = ProARDEstimator.load(saved)
    est.calibration_images_ = est.calibration_images_.clamp(0, 1) * (1 + 9e-6) - 4e-6
    est.save(tmp_path / "again")
    assert torch.equal(ProARDEstimator.load(tmp_path / "again").calibration_images_, est.calibration_images_)


def test_images_of_8_bits_take_a_byte_for_each_pixel_and_come_back_the_same(saved, tmp_path):
    est = ProARDEstimator.load(saved)
    est.calibration_images_ = torch.arange(256).reshape(4, 1, 8, 8).float() / 255
    est.save(tmp_path / "again")
    with safe_open(tmp_path / "again" / "calibration.safetensors", framework="pt") as tensors:
        assert torch.equal(tensors.get_tensor("images"), torch.arange(256).to(torch.uint8).reshape(4, 1, 8, 8))
    assert torch.equal(ProARDEstimator.load(tmp_path / "again").calibration_images_, est.calibration_images_)


@pytest.mark.parametrize("images", [torch.zeros(4, 1, 9, 9), torch.full((4, 1, 8, 8), 2.0), torch.zeros(4)])
def test_calibration_images_that_do_not_fit_are_named(folder, images):
    from safetensors.torch import save_file

    save_file({"images": images}, folder / "calibration.safetensors")
    renew_checksums(folder)
    problem = "pixels from 2 to 2" if images.max() > 1 else "images of shape"
    with pytest.raises(ValueError, match=rf"calibration\.safetensors.*{problem}.*allowed: "):
        ProARDEstimator.load(folder)


def test_a_folder_that_is_not_ours_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        ProARDEstimator.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"not a saved estimator: it has no estimator\.json, predictor\.json"):
        ProARDEstimator.load(tmp_path)


# -- disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 2, 4, 6, 8])
def test_a_full_disk_leaves_nothing_and_keeps_what_there_was(tmp_path, monkeypatch, saved, fitted, n):
    old = Path(shutil.copytree(saved, tmp_path / "old"))
    (old / "README.md").write_text("the old one")
    before, calls = contents(old), iter(range(1000))

    def fsync(_descriptor):
        if next(calls) >= n:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_folders.os, "fsync", fsync)
    for target in (tmp_path / "new" / "deep", old):
        with pytest.raises(OSError, match="could not be written.*No space left"):
            fitted.save(target)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert contents(old) == before


def test_half_precision_halves_the_weights_and_rounds_them(fitted, folder, tmp_path):
    fitted.save(tmp_path / "half", dtype="float16")
    half = ProARDEstimator.load(tmp_path / "half")
    sizes = [(where / "supernet" / "model.safetensors").stat().st_size for where in (tmp_path / "half", folder)]
    assert sizes[0] < 0.6 * sizes[1]
    own = dict(fitted.supernet_.named_parameters())
    for name, tensor in half.supernet_.named_parameters():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, own[name].half().float() if tensor.ndim > 1 else own[name]), name
    archs = [half.supernet_.space.sample(seed) for seed in range(20)]
    assert half.predictor_.predict(archs) == pytest.approx(fitted.predictor_.predict(archs), abs=1e-4)
    sizes = [(where / "predictor.json").stat().st_size for where in (tmp_path / "half", folder)]
    assert sizes[0] < sizes[1]


def test_an_unknown_dtype_is_refused_before_anything_is_written(fitted, tmp_path):
    with pytest.raises(ValueError, match="unknown dtype 'float8'; allowed: 'bfloat16', 'float16', 'float32'"):
        fitted.save(tmp_path / "est", dtype="float8")
    assert not (tmp_path / "est").exists()
