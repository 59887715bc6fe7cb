"""Promises of torch.export and ExecuTorch programs: the student's logits, without this library, or with its runtime."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import timm
import torch

import proard_nas
from proard_nas.deploy import export_executorch, export_program
from proard_nas.deploy import program as program_module
from proard_nas.evaluation import UncalibratedError


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    return export_program(student, tmp_path_factory.mktemp("program") / "student.pt2")


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_a_program_gives_the_same_bits_on_any_batch_size(student, exported, images, n):
    program = torch.export.load(exported).module()
    x = images(student, n)
    with torch.no_grad():
        assert torch.equal(program(x), student(x))
        assert student(x).abs().max() > 1


def test_a_program_names_no_folder_of_the_machine_it_was_made_on(exported):
    with zipfile.ZipFile(exported) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert str(Path(proard_nas.__file__).parent).encode() not in content
    assert b"site-packages" not in content


def test_a_student_in_training_stays_so(lively_student, images, tmp_path):
    student = lively_student().train()
    program = torch.export.load(export_program(student, tmp_path / "student.pt2")).module()
    assert all(module.training for module in student.modules())
    assert all(parameter.requires_grad for parameter in student.parameters())
    with torch.no_grad():
        assert torch.equal(program(images(student, 3)), student.eval()(images(student, 3)))


@pytest.mark.parametrize("export", [export_program, export_executorch])
def test_what_cannot_be_exported_is_refused_before_a_file_is_made(student, tmp_path, export, monkeypatch):
    monkeypatch.setattr(program_module, "require", lambda *names: None)
    net = timm.create_model("proard_dyn_resnet_tiny")
    with pytest.raises(UncalibratedError):
        export(net.extract(net.space.smallest), tmp_path / "student")
    with pytest.raises(TypeError, match="ReLU cannot be exported"):
        export(torch.nn.ReLU(), tmp_path / "student")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        export(student, tmp_path / "no" / "student")
    assert not any(tmp_path.iterdir())


def test_a_failure_leaves_no_file(student, tmp_path, monkeypatch):
    def save(program, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", save)
    with pytest.raises(OSError, match="No space left"):
        export_program(student, tmp_path / "student.pt2")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("given", [0, 2.0, True])
def test_a_wrong_largest_batch_is_named(student, tmp_path, given):
    with pytest.raises(ValueError, match=f"max_batch is {given}; allowed: integers from 1"):
        export_executorch(student, tmp_path / "student.pte", max_batch=given)


def test_without_executorch_its_extra_is_named(student, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(ImportError, match=r'needs executorch: pip install "proard-nas\[executorch\]"'):
        export_executorch(student, tmp_path / "student.pte")


@pytest.mark.slow
def test_a_program_runs_without_this_library_and_without_timm(student, exported, images, tmp_path):
    x = images(student, 5)
    with torch.no_grad():
        torch.save({"x": x, "y": student(x)}, tmp_path / "expected.pt")
    code = (
        "import sys, torch; sys.modules['timm'] = sys.modules['proard_nas'] = None; torch.set_num_threads(1)\n"
        f"data = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"assert torch.equal(torch.export.load({str(exported)!r}).module()(data['x']), data['y'])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "max_batch"), [("proard_dyn_resnet_tiny", 1), ("proard_dyn_mobilenetv3", 7)])
def test_executorchs_runtime_gives_the_students_logits(lively_student, images, tmp_path, name, max_batch, capsys):
    pytest.importorskip("executorch.exir")
    runtime = pytest.importorskip("executorch.runtime")
    student = lively_student(name)
    path = export_executorch(student, tmp_path / "student.pte", max_batch=max_batch)
    assert capsys.readouterr().out == ""
    assert [one.name for one in tmp_path.iterdir()] == ["student.pte"]
    assert b"XnnpackBackend" in path.read_bytes()
    method = runtime.Runtime.get().load_program(path).load_method("forward")
    for n in {1, min(2, max_batch), max_batch}:
        x = images(student, n)
        with torch.no_grad():
            torch.testing.assert_close(method.execute([x])[0], student(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(RuntimeError):
        method.execute([images(student, max_batch + 1)])
