"""Promises about bad files and bad disks: a clear error, nothing executed, nothing half-written, the old one kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import timm
import torch

import proard_nas  # noqa: F401  (registers the networks)
from proard_nas import _folders
from proard_nas.deploy import load_student, save_student


def make_student(seed=0):
    net = timm.create_model("proard_dyn_resnet_tiny")
    student = net.extract(net.space.sample(seed))
    with torch.no_grad():
        student.train()(torch.rand(8, 1, 8, 8))
    return student.eval()


@pytest.fixture(scope="module")
def student():
    return make_student()


@pytest.fixture(scope="module")
def saved(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "s"
    student.save(folder, {"seed": 0})
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "s"))


def renew_checksums(folder):
    """Do what somebody with bad intent would."""
    sums = json.loads((folder / "checksums.json").read_text())
    for name in sums:
        data = (folder / name).read_bytes()
        sums[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "checksums.json").write_text(json.dumps(sums))


def flip(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def edit(path, change):
    data = json.loads(path.read_text())
    result = change(data)
    path.write_text(json.dumps(data if result is None else result))


class Trap:
    """What writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# -- damage -----------------------------------------------------------------------------------


def test_what_is_no_student_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="a Linear cannot be saved so; allowed: a student or a supernet"):
        save_student(torch.nn.Linear(2, 2), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "proard.json"])
def test_a_changed_or_shortened_file_is_named(folder, name):
    whole = (folder / name).read_bytes()
    flip(folder / name, position=len(whole) // 2)
    with pytest.raises(ValueError, match=f"{name}.*SHA-256"):
        load_student(folder)
    (folder / name).write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=f"{name}.*has {len(whole) - 7} bytes and should have {len(whole)}"):
        load_student(folder)
    (folder / name).write_bytes(whole)
    load_student(folder)


def test_timm_alone_does_not_notice_a_changed_weight(folder, student):
    flip(folder / "model.safetensors")
    changed = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    assert not all(torch.equal(changed[name], tensor) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"model.safetensors": 3}', "{}", "[" * 100_000])
def test_checksums_that_cannot_be_read_are_named(folder, text):
    (folder / "checksums.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="checksums.json"):
        load_student(folder)


@pytest.mark.parametrize("name", ["config.json", "proard.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\xff", "[" * 100_000])
def test_json_that_is_not_ours_is_named_even_with_its_checksum(folder, name, text):
    (folder / name).write_bytes(text.encode("latin-1"))
    renew_checksums(folder)
    with pytest.raises(ValueError, match=name):
        load_student(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "proard.json", "checksums.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"it has no {name}"):
        load_student(folder)


def test_the_card_may_be_edited_or_removed(folder, student):
    (folder / "README.md").write_text("mine")
    load_student(folder)
    (folder / "README.md").unlink()
    assert load_student(folder).arch == student.arch


def test_a_folder_that_is_not_ours_says_what_it_is(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        load_student(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="not a saved student: it has no config.json, model.safetensors"):
        load_student(tmp_path / "empty")
    (tmp_path / "empty" / "estimator.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"saved estimator, for ProARDEstimator\.load"):
        load_student(tmp_path / "empty")
    for name in ("proard.json", "checksums.json"):
        (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match="loads it unchecked"):
        load_student(folder)


# -- configurations that do not fit -----------------------------------------------------------


def arch(config):
    return config["model_args"]["arch"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: arch(c).update(dept=[0, 0, 0]), "unknown architecture field 'dept'.*Did you mean 'depth'"),
        (lambda c: arch(c).pop("depth"), "needs the field 'depth'"),
        (lambda c: arch(c)["expand_ratio"][0].__setitem__(0, -1.0), "expand_ratios must be positive"),
        (lambda c: arch(c)["expand_ratio"][0].__setitem__(0, 0.9), "has the shape"),
        (lambda c: arch(c)["depth"].__setitem__(0, 7), r"expand_ratio\[0\] must have"),
        (lambda c: arch(c)["width_mult"].__setitem__(1, 0.6), "has the shape"),
        (lambda c: arch(c)["width_mult"].__setitem__(1, 1e5), "has the shape"),  # a terabyte, were it made
        (lambda c: arch(c).update(stem_residual=True), "stem_residual"),
        (lambda c: c.update(architecture="proard_resnet_tin"), "Did you mean 'proard_resnet_tiny'"),
        (lambda c: c.update(architecture=["proard_resnet_tiny"]), "unknown network"),
        (lambda c: c.update(architecture="resnet18", model_args={}), "the weights are not those of a resnet18"),
        (lambda c: c["model_args"].update(drop_rat=0.1), "drop_rat"),
        (lambda c: c.pop("model_args"), "no 'model_args'"),
        (lambda c: c.pop("architecture"), "no 'architecture'"),
        (lambda c: c.pop("pretrained_cfg"), "config.json"),
        # timm alone would load these with a random classifier, without an error
        (lambda c: c.update(num_classes=7), "makes timm change head.fc.weight"),
        (lambda c: c["pretrained_cfg"].update(classifier="stem.conv0.conv", num_classes=7) or c.pop("num_classes"),
         "makes timm change stem.conv0.conv.weight"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_refused(folder, change, message):
    edit(folder / "config.json", lambda data: change(data) and None)
    renew_checksums(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_student(folder)
    assert "config.json" in str(error.value)


def test_another_format_is_refused(folder):
    edit(folder / "proard.json", lambda data: data.update(format=2))
    renew_checksums(folder)
    with pytest.raises(ValueError, match="proard.json.*format 2; this version reads format 1"):
        load_student(folder)


def test_pretrained_false_is_random_and_silent(folder, student):
    torch.manual_seed(1)
    random = timm.create_model(f"local-dir:{folder}").state_dict()
    assert not torch.equal(random["head.fc.weight"], student.state_dict()["head.fc.weight"])


# -- pickles ----------------------------------------------------------------------------------


def test_the_trap_of_the_next_tests_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").is_dir()


@pytest.mark.parametrize("write", [lambda trap: pickle.dumps(trap), lambda trap: torch_file({"weight": trap})])
def test_a_pickle_in_place_of_safetensors_is_refused_and_not_executed(folder, tmp_path, write):
    (folder / "model.safetensors").write_bytes(write(Trap(tmp_path / "sprung")))
    renew_checksums(folder)
    with pytest.raises(ValueError, match=r"model\.safetensors is not safetensors.*a pickle is never loaded"):
        load_student(folder)
    with pytest.raises(Exception, match="header|safetensors|Header"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert not (tmp_path / "sprung").exists()


def test_a_folder_with_a_pickle_only_is_refused_and_not_executed(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(torch_file({"weight": Trap(tmp_path / "sprung")}))
    with pytest.raises(FileNotFoundError, match="it has 'pytorch_model.bin', but a pickle is never loaded"):
        load_student(folder)
    with pytest.raises(RuntimeError, match="weights_only"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert not (tmp_path / "sprung").exists()


def torch_file(value):
    import io

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


# -- disks ------------------------------------------------------------------------------------


def full_after(n, error=None):
    """Return an fsync that fails from its n-th call on, as that of a disk that has become full."""
    calls = iter(range(1000))

    def fsync(_descriptor):
        if next(calls) >= n:
            raise error or OSError(errno.ENOSPC, "No space left on device")

    return fsync


@pytest.mark.parametrize("n", range(4))
def test_a_full_disk_leaves_nothing_and_keeps_what_there_was(tmp_path, monkeypatch, saved, student, n):
    old = Path(shutil.copytree(saved, tmp_path / "old"))
    monkeypatch.setattr(_folders.os, "fsync", full_after(n))
    for target in (tmp_path / "new" / "deep", old):
        with pytest.raises(OSError, match=f"{target.name} could not be written.*nothing was changed.*No space left"):
            make_student(seed=3).save(target)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    again = load_student(old)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in student.state_dict().items())


def test_a_limit_of_the_system_on_the_size_of_files_is_met_the_same_way(tmp_path, saved):
    old = Path(shutil.copytree(saved, tmp_path / "old"))
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    student = make_student(seed=3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        for target in (tmp_path / "new", old):
            with pytest.raises(OSError, match=r"could not be written.*File too large"):
                student.save(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before


@pytest.mark.parametrize("n", range(4))
def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path, monkeypatch, student, n):
    monkeypatch.setattr(_folders.os, "fsync", full_after(n, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        student.save(tmp_path / "a" / "s")
    assert not list(tmp_path.iterdir())


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch, saved, student):
    old = Path(shutil.copytree(saved, tmp_path / "old"))
    rename, calls = Path.rename, []

    def fails_once(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(OSError, match="nothing was changed: Input/output error"):
        make_student(seed=3).save(old)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    again = load_student(old)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in student.state_dict().items())


def test_a_path_that_cannot_be_written_is_named(tmp_path, monkeypatch, student):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match="file/s could not be written"):
        student.save(tmp_path / "file" / "s")
    assert (tmp_path / "file").read_text() == "precious"

    def refuse(self, *_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere
    with pytest.raises(PermissionError, match="forbidden could not be written.*Permission denied"):
        student.save(tmp_path / "forbidden")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
