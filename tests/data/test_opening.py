"""Data by name: the right part, the right labels, timm's data sets, and errors that say what is allowed."""

from __future__ import annotations

import importlib.machinery
import io
import struct
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from torchvision.datasets import MNIST, FakeData
from torchvision.transforms import ToTensor

from proard_nas.data import image_folder, open_data, opening, prepare


def write_folder(root, names, n=4, size=(10, 12)):
    for index, (image, _) in enumerate(FakeData(n * len(names), (3, *size), 2)):
        folder = root / names[index % len(names)]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index}.png")


def test_an_archive_gives_the_part_asked_for(tmp_path):
    x, y = np.random.default_rng(0).random((6, 1, 4, 4)), np.arange(6)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    np.savez(tmp_path / "b.npz", x_train=x, y_train=y)
    assert [len(part) for part in open_data(tmp_path / "a.npz")] == [6, 6]
    np.testing.assert_array_equal(open_data(tmp_path / "a.npz", "test")[0], x[:2])
    with pytest.raises(ValueError, match=r"no test part; allowed: an archive with x_test and y_test"):
        open_data(tmp_path / "b.npz", "test")


def test_an_archives_images_are_not_resized(tmp_path):
    x, y = np.zeros((6, 3, 4, 5), np.float32), np.arange(6)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y)
    np.savez(tmp_path / "table.npz", x_train=x.reshape(6, 60), y_train=y)
    assert open_data(tmp_path / "a.npz", image_size=(4, 5))[0].shape == x.shape
    for size, given in (((5, 4), "5x4"), (8, "8x8")):
        with pytest.raises(ValueError, match=rf"image_size is {given}, but .*a.npz' holds images of 4x5 pixels"):
            open_data(tmp_path / "a.npz", image_size=size)
    with pytest.raises(ValueError, match=r"image_size is 8x8, but .* holds an array of shape \(6, 60\)"):
        open_data(tmp_path / "table.npz", image_size=8)


def test_a_folder_with_parts_gives_only_the_part_asked_for(tmp_path):
    write_folder(tmp_path / "train", ["cat", "dog"])
    write_folder(tmp_path / "test", ["dog"])
    for part in ("train", "test"):
        dataset, y = open_data(tmp_path, part, image_size=8)
        assert y is None
        assert {path.split("/")[-3] for path, _ in dataset.samples} == {part}
    assert open_data(tmp_path, image_size=(6, 9))[0][0][0].shape == (3, 6, 9)
    assert open_data(tmp_path)[0][0][0].shape == (3, 32, 32)


def test_a_folder_without_parts_is_taken_whole_and_half_of_them_is_refused(tmp_path, caplog):
    write_folder(tmp_path / "whole", ["cat", "dog"])
    assert len(open_data(tmp_path / "whole")[0]) == 8 and not caplog.records
    assert len(open_data(tmp_path / "whole", "test")[0]) == 8
    assert "all of it is opened as test data" in caplog.text
    write_folder(tmp_path / "half" / "test", ["cat"])
    with pytest.raises(ValueError, match=r"has a part 'test' but no part 'train'"):
        open_data(tmp_path / "half")


def test_a_test_folders_labels_are_places_among_the_training_classes(tmp_path):
    write_folder(tmp_path, ["dog", "zebra"])
    for names in (["ant", "dog", "zebra"], np.array(["ant", "dog", "zebra"])):
        folder = image_folder(tmp_path, 8, names)
        assert {label for _, label in folder} == {1, 2}
        assert {folder.classes[label] for _, label in folder} == {"dog", "zebra"}
        assert folder.classes == list(names)
    with pytest.raises(ValueError, match=r"unknown class .*'zebra'; allowed: 'dog', 'zebras'. Did you mean 'zebras'"):
        image_folder(tmp_path, 8, ["zebras", "dog"])


def write_mnist(root, seed=0):
    """Write a data set of 12 training and 5 test images in MNIST's own files; return its pixels."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = {}
    for name, n in (("train", 12), ("t10k", 5)):
        x = np.random.default_rng(seed + n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        y = (np.arange(n) % 3).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + x.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + y.tobytes())
        pixels[name] = x
    return pixels


def test_a_torchvision_data_set_gives_its_own_pixels_and_names(tmp_path):
    pixels = write_mnist(tmp_path)
    train, _ = open_data("torch/mnist", root=tmp_path)
    test, _ = open_data("torch/MNIST", "test", root=tmp_path)
    np.testing.assert_array_equal(torch.stack([x for x, _ in train])[:, 0].numpy(), pixels["train"] / np.float32(255))
    assert torch.equal(train[3][0], MNIST(tmp_path, transform=ToTensor())[3][0])
    np.testing.assert_array_equal(torch.stack([x for x, _ in test])[:, 0].numpy(), pixels["t10k"] / np.float32(255))
    prepared = prepare(train, in_chans=3)
    assert (prepared.summary.in_chans, prepared.summary.image_size) == (3, (28, 28))
    assert prepared.summary.classes[3] == "3 - three"
    assert open_data("torch/mnist", root=tmp_path, image_size=14)[0][0][0].shape == (1, 14, 14)


def test_names_that_timm_does_not_know_and_missing_roots_are_refused_early(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set of torch/ 'cifar-10'.*Did you mean 'cifar10'"):
        open_data("torch/cifar-10", root=tmp_path)
    with pytest.raises(ValueError, match=r"root is None; allowed: the folder in which 'torch/mnist'"):
        open_data("torch/mnist")
    with pytest.raises(ValueError, match=r"whose parts are 'train' and 'test' only"):
        open_data("torch/mnist", root=tmp_path, split="validation")
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*begins with torch/"):
        open_data(tmp_path / "none.npz")
    with pytest.raises(RuntimeError, match="download"):
        open_data("torch/mnist", root=tmp_path / "empty")


@pytest.mark.parametrize("split", ["test", "Test", "test[:10%]", "train+test", "train[:80%] + Test[:10%]"])
def test_a_test_split_is_never_opened_for_training(split):
    with pytest.raises(ValueError, match="names test data, which is never trained, labelled or validated on"):
        open_data("hfds/someone/photos", split=split)


def test_a_package_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"'wds/photos' needs the package webdataset: pip install webdataset"):
        open_data("wds/photos", root=tmp_path)


class Hub:
    """What timm asks of a data set of the package ``datasets``."""

    def __init__(self, split):
        self.split = split
        labels = types.SimpleNamespace(names=["cat", "dog"], num_classes=2)
        self.info = types.SimpleNamespace(features={"label": labels}, splits={split: None})

    def __len__(self):
        return 4

    def __getitem__(self, index):
        file = io.BytesIO()
        Image.new("RGB", (6, 6), (0, 51 * index, 255)).save(file, "PNG")
        return {"image": {"bytes": file.getvalue(), "path": None}, "label": index % 2}

    def cast_column(self, name, kind):
        return self


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the package ``datasets``; collects what it is asked for."""
    asked = []
    module = types.ModuleType("datasets")
    module.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    module.Image = lambda decode: None
    module.ClassLabel = types.SimpleNamespace
    module.load_dataset = lambda name, split, **more: asked.append((name, split)) or Hub(split)
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    yield asked
    sys.modules.pop("timm.data.readers.reader_hfds", None)


def test_a_hub_data_set_is_read_through_timm_one_split_only(hub):
    dataset, _ = open_data("hfds/someone/photos", image_size=6)
    assert hub == [("someone/photos", "train")]
    prepared = prepare(dataset, val_fraction=0.5)
    assert prepared.summary.classes.tolist() == ["cat", "dog"]
    torch.testing.assert_close(dataset[3][0][:, 0, 0], torch.tensor([0, 153 / 255, 1]))
    for split in ("validation", "train+validation[:10%]"):
        open_data("hfds/someone/photos", split=split)
    open_data("hfds/someone/photos", "test")
    assert [split for _, split in hub] == ["train", "validation", "train+validation[:10%]", "test"]


def test_a_streamed_data_set_trains_with_validation_data_of_its_own(monkeypatch):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from ((torch.full((3, 4, 4), i / 10), i % 2) for i in range(10))

    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr("timm.data.dataset_factory.create_dataset", lambda *args, **more: Stream())
    stream, _ = open_data("wds/photos", root="somewhere")
    with pytest.raises(ValueError, match="pass val_loader with data to validate on"):
        prepare(stream)
    assert prepare(stream, val_data=stream).summary.n_train == 10


@pytest.mark.parametrize("option", [{"split": "val"}, {"root": "."}, {"download": True}])
def test_options_of_named_data_are_refused_for_files_and_folders(tmp_path, option):
    (name,) = option
    np.savez(tmp_path / "a.npz", x_train=np.zeros((4, 1, 8, 8), np.float32), y_train=np.arange(4))
    for path in (tmp_path, tmp_path / "a.npz"):
        with pytest.raises(ValueError, match=f"{name}=.*which is a file or folder; allowed for data by name only"):
            open_data(path, **option)


def test_sixteen_bit_pictures_keep_their_greys(tmp_path):
    """PIL's own conversion would make everything above 255 white."""
    greys = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    (tmp_path / "a").mkdir()
    Image.fromarray(greys).save(tmp_path / "a" / "0.png")
    x, _ = image_folder(tmp_path, None)[0]
    np.testing.assert_allclose(x[0].numpy(), greys / 65535, atol=1 / 255)


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "validation")])
def test_folders_that_look_like_parts_are_no_classes(tmp_path, names):
    for name in names:
        (tmp_path / name / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="look like parts and not like classes; allowed: parts named train and test"):
        open_data(tmp_path)
