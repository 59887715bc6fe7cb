"""TensorBoard records: which numbers are written, where, and what is said when it is missing."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest

from proard_nas.training.records import TensorBoardWriter

RECORD = {
    "stage": "depth",
    "epoch": 1,
    "global_epoch": 7,
    "loss": 0.25,
    "images": 128,
    "note": "text",
    "rolled_back": True,
    "nothing": None,
    "validation": {"natural_accuracy": 0.5, "attack": "pgd", "deeper": {"x": 1.0}},
}
WRITTEN = {
    f"{group}/{key}": value
    for group in ("depth", "train")
    for key, value in {"loss": 0.25, "images": 128.0, "validation/natural_accuracy": 0.5}.items()
}


class FakeWriter:
    made: list[FakeWriter]

    def __init__(self, log_dir, purge_step=None):
        self.log_dir, self.purge_step, self.scalars, self.flushed, self.closed = log_dir, purge_step, [], 0, False
        self.made.append(self)

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def flush(self):
        self.flushed = len(self.scalars)

    def close(self):
        self.closed = True


@pytest.fixture
def fake(monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter, FakeWriter.made = FakeWriter, []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return FakeWriter


def test_numbers_go_under_their_stage_and_under_train_at_the_global_epoch(fake, tmp_path):
    with TensorBoardWriter(tmp_path) as writer:
        writer(RECORD)
        (file,) = fake.made
        assert file.flushed == len(file.scalars) == len(WRITTEN)
    assert {tag: value for tag, value, _ in file.scalars} == WRITTEN
    assert {step for *_, step in file.scalars} == {7}
    assert file.log_dir == str(tmp_path) and file.closed


def test_a_stage_called_train_is_written_once(fake, tmp_path):
    TensorBoardWriter(tmp_path)({"stage": "train", "global_epoch": 0, "loss": 1.0})
    assert fake.made[0].scalars == [("train/loss", 1.0, 0)]


def test_a_run_that_goes_on_replaces_what_it_repeats(fake, tmp_path):
    writer = TensorBoardWriter(tmp_path)
    for epoch in (7, 8):
        writer({**RECORD, "global_epoch": epoch})
    assert [file.purge_step for file in fake.made] == [7]


@pytest.mark.parametrize("key", ["stage", "global_epoch"])
def test_a_record_without_its_place_is_refused(fake, tmp_path, key):
    writer = TensorBoardWriter(tmp_path)
    with pytest.raises(ValueError, match=f"'{key}' is not in"):
        writer({k: v for k, v in RECORD.items() if k != key})
    writer.close()


def test_the_error_without_tensorboard_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install "proard-nas\[tensorboard\]"'):
        TensorBoardWriter(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_reads_back_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TensorBoardWriter(tmp_path / "new" / "folder") as writer:
        for epoch in (6, 7, 8):
            writer({**RECORD, "global_epoch": epoch})
    with TensorBoardWriter(tmp_path / "new" / "folder") as writer:
        writer({**RECORD, "global_epoch": 8, "loss": 0.125})
    events = EventAccumulator(str(tmp_path / "new" / "folder"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(WRITTEN)
    for tag, value in WRITTEN.items():
        scalars = [(event.step, event.value) for event in events.Scalars(tag)]
        assert scalars == [(6, value), (7, value), (8, 0.125 if tag.endswith("/loss") else value)]
