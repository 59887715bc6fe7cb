"""Rare classes, many classes, and names of classes: kept from the data to the saved student."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets import FakeData

from proard_nas import ProARDEstimator
from proard_nas.data import prepare, split_indices, validation_part
from proard_nas.data.inputs import class_names
from proard_nas.deploy import save_student

SMALL = {"epochs": 4, "attack_steps": 1, "eval_steps": 1, "n_labels": 12, "n_watch": 0, "n_calibration": 32, "lr": 0.1,
         "precision": "float32", "random_state": 0, "progress": False, "device": "cpu"}  # fmt: skip


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5, 0.9])
def test_every_class_of_two_images_or_more_is_in_both_parts_however_rare(fraction):
    rng = np.random.default_rng(1)
    for seed in range(30):
        sizes = np.r_[400, rng.integers(2, 6, size=rng.integers(1, 8))]
        y = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        train, val = split_indices(y, fraction, seed)
        assert sorted([*train, *val]) == list(range(len(y)))
        assert len(val) == round(fraction * len(y))
        assert set(y[train]) == set(y[val]) == set(range(len(sizes)))


def test_the_swap_that_keeps_rare_classes_leaves_the_others_shares_as_they_were():
    y = np.repeat(np.arange(3), [500, 300, 2])
    _, val = split_indices(y, 0.1, 0)
    counts = np.bincount(y[val])
    assert counts[2] == 1
    assert abs(counts[0] - 50) <= 2 and abs(counts[1] - 30) <= 1


def test_a_class_of_one_image_is_trained_on_and_never_judged():
    y = np.r_[np.zeros(50), np.ones(50), 2].astype(int)
    x = np.random.default_rng(0).random((101, 1, 4, 4), dtype=np.float32)
    prepared = prepare(x, y, val_fraction=0.2)
    assert prepared.summary.classes.tolist() == [0, 1, 2]
    assert 2 in prepared.train.y.tolist() and 2 not in prepared.val.y.tolist()


@pytest.mark.parametrize("n_classes", [2, 1000])
def test_two_to_a_thousand_classes_are_prepared_with_every_class_in_training(n_classes):
    y = np.arange(max(40, 3 * n_classes)) % n_classes
    x = np.random.default_rng(0).random((len(y), 1, 4, 4), dtype=np.float32)
    prepared = prepare(x, y)
    assert prepared.summary.num_classes == n_classes
    assert set(prepared.train.y.tolist()) == set(range(n_classes))
    net = timm.create_model("proard_dyn_resnet_tiny", num_classes=n_classes).eval()
    assert net(prepared.val.x[:2]).shape == (2, n_classes)


@pytest.mark.slow
def test_a_thousand_classes_can_be_fitted():
    y = np.arange(2000) % 1000
    x = np.random.default_rng(0).random((2000, 1, 4, 4), dtype=np.float32)
    estimator = ProARDEstimator("proard_dyn_resnet_tiny", **SMALL).fit(x, y)
    assert estimator.predict_proba(x[:3]).shape == (3, 1000)
    assert estimator.extract()(torch.from_numpy(x[:2])).shape == (2, 1000)


class Read(Dataset):
    """As timm's datasets: names of classes are known to a reader."""

    def __init__(self, places):
        self.reader = type("Reader", (), {"class_to_idx": places})()


def test_names_come_from_timms_readers_where_they_number_all_classes():
    assert class_names(Read({"dog": 1, "cat": 0})) == ["cat", "dog"]
    assert class_names(Read({"dog": 1, "cat": 3})) is None
    assert class_names(Read({})) is None


@pytest.mark.slow
def test_names_of_classes_reach_the_saved_student(tmp_path):
    x, y = np.random.default_rng(0).random((40, 1, 8, 8)), np.array(["zebra", "ant"])[np.arange(40) % 2]
    estimator = ProARDEstimator("proard_dyn_resnet_tiny", **SMALL).fit(x, y)
    save_student(estimator.extract(), tmp_path / "student")
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["pretrained_cfg"]["label_names"] == ["ant", "zebra"]
    student = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
    assert list(student.pretrained_cfg["label_names"]) == ["ant", "zebra"]
    named = np.array(student.pretrained_cfg["label_names"])[student(torch.from_numpy(x).float()).argmax(1)]
    assert named.tolist() == estimator.predict(x).tolist()


@pytest.mark.parametrize("kind", ["arrays", "strings", "dataset"])
def test_the_validation_part_is_found_again_as_it_was_given(kind):
    data = FakeData(60, (3, 8, 8), 3, transform=transforms.ToTensor())
    x, y = torch.stack([image for image, _ in data]), np.array([label for _, label in data])
    if kind == "strings":
        y = np.array(["c", "a", "b"])[y]
    given = (data,) if kind == "dataset" else (x, y)
    prepared = prepare(*given, val_fraction=0.2, seed=9)
    x_val, y_val = validation_part(*given, val_fraction=0.2, seed=9)
    expected = torch.cat([images for images, _ in prepared.val.batches(5)])
    if kind == "dataset":
        assert torch.equal(torch.stack([image for image, _ in x_val]), expected)
        assert y_val is None
    else:
        assert torch.equal(torch.as_tensor(x_val), expected)
        assert set(y_val) <= set(y) and y_val.dtype == y.dtype


def test_no_validation_part_of_data_that_cannot_be_split():
    with pytest.raises(ValueError, match="no validation part can be split off a list"):
        validation_part([(torch.rand(4, 1, 4, 4), torch.arange(4))], val_fraction=0.5, seed=0)
