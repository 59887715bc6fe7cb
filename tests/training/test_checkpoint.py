"""Checkpoints: what comes back, what survives a kill or damage, and what stays in the folder."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import pickle
import random
import subprocess
import sys
import time

import pytest
import torch

from proard_nas.training.checkpoint import CheckpointError, CheckpointStore

SETTINGS = {"seed": 0, "stages": [{"name": "teacher", "epochs": 2}], "eps": 8 / 255}
FILES = ("tensors.safetensors", "state.json", "checksums.json")

WRITER = """
import sys, torch
from proard_nas.training.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1], {"seed": 0})
found = store.load()
counter = 0 if found is None else found[1]["counter"]
print("ready", flush=True)
while True:
    counter += 1
    value = torch.full((50, 1000), float(counter))
    store.save({"a": value, "b": value.double(), "n": torch.tensor(counter)}, {"counter": counter, "pad": [0] * 5000},
               good=counter % 5 == 0)
    print(counter, flush=True)
"""


def make(folder, settings=SETTINGS, **kwargs):
    return CheckpointStore(folder / "run", settings, **kwargs)


def save_numbers(store, *numbers, good=()):
    return [store.save({"w": torch.full((3,), float(n))}, {"n": n}, good=n in good) for n in numbers]


def loaded_number(store, good=False):
    tensors, state = store.load(good=good)
    assert (tensors["w"] == state["n"]).all()
    return state["n"]


def names(folder):
    return sorted(path.name for path in (folder / "run").iterdir())


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool],
)
def test_every_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    value = (torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 9).abs().to(dtype)
    store = make(tmp_path)
    store.save({"many": value, "one": value[0, 0], "none": value[:0]}, {})
    tensors, _ = store.load()
    for name, wanted in {"many": value, "one": value[0, 0], "none": value[:0]}.items():
        assert tensors[name].dtype == dtype and tensors[name].shape == wanted.shape
        assert torch.equal(tensors[name], wanted)


def test_special_floats_in_tensors_come_back_bit_for_bit(tmp_path):
    value = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45])
    store = make(tmp_path)
    store.save({"w": value}, {})
    assert torch.equal(store.load()[0]["w"].view(torch.int32), value.view(torch.int32))


def test_layouts_and_shared_memory_come_back_as_contiguous_values_of_their_own(tmp_path):
    base = torch.randn(4, 6, 5, 3, requires_grad=True)
    given = {
        "channels_last": base.detach().to(memory_format=torch.channels_last),
        "transposed": base.transpose(0, 2),
        "strided": base[::2, 1:5:3],
        "expanded": base[:1].expand(4, 6, 5, 3),
        "same": base,
        "same again": base,
        "parameter": torch.nn.Parameter(base.detach()[0]),
    }
    store = make(tmp_path)
    store.save(given, {})
    tensors, _ = store.load()
    assert tensors.keys() == given.keys()
    for name, wanted in given.items():
        assert torch.equal(tensors[name], wanted) and tensors[name].is_contiguous()
    tensors["same"].zero_()
    assert torch.equal(tensors["same again"], base)


def test_state_comes_back_exactly(tmp_path):
    rng = random.Random(0)
    state = {
        "floats": [0.1, 1e-320, -0.0, 1.7976931348623157e308, *(rng.uniform(-1, 1) for _ in range(100))],
        "big": 2**127 + 1,
        "text": 'ünï "code" \ud800\n',
        "nothing": None,
        "nested": {"yes": True, "empty": {}, "list": []},
    }
    store = make(tmp_path)
    store.save({}, state)
    tensors, back = store.load()
    assert tensors == {} and back == state
    assert [x.hex() for x in back["floats"]] == [x.hex() for x in state["floats"]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, torch.ones(1), {1: 2}, {"set"}, b"bytes"])
def test_state_that_json_cannot_hold_is_refused_by_name_and_leaves_nothing(tmp_path, value):
    store = make(tmp_path)
    save_numbers(store, 1)
    before = names(tmp_path)
    with pytest.raises(ValueError, match=r"state\.history\.1\.loss"):
        store.save({}, {"history": [{"loss": 1.0}, {"loss": value}]})
    assert names(tmp_path) == before and loaded_number(store) == 1


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    store = make(tmp_path)
    save_numbers(store, 1)
    before = names(tmp_path)

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            save_numbers(store, 2)
    assert names(tmp_path) == before and loaded_number(store) == 1


def test_nothing_saved_gives_none(tmp_path):
    store = make(tmp_path)
    assert store.load() is None and store.load(good=True) is None
    save_numbers(store, 1)
    assert store.load(good=True) is None


def test_the_newest_comes_back_also_in_another_process_and_without_its_pointer(tmp_path):
    save_numbers(make(tmp_path), 1, 2, 3)
    pointer = tmp_path / "run" / "latest.json"
    assert json.loads(pointer.read_text()) == {"checkpoint": "checkpoint-00000003"}
    assert loaded_number(make(tmp_path)) == 3
    pointer.write_text('{"checkp')
    assert loaded_number(make(tmp_path)) == 3
    pointer.unlink()
    assert loaded_number(make(tmp_path)) == 3
    assert [path.name for path in save_numbers(make(tmp_path), 4)] == ["checkpoint-00000004"]


def test_pruning_keeps_the_newest_and_the_newest_good_one(tmp_path):
    store = make(tmp_path, keep=2)
    save_numbers(store, 1, 2, 3, 4, 5, 6, good=(1, 3))
    kept = [f"checkpoint-{n:08d}" for n in (3, 5, 6)]
    assert names(tmp_path) == [*kept, "latest.json", "settings.json"]
    assert loaded_number(store) == 6 and loaded_number(store, good=True) == 3
    save_numbers(make(tmp_path, keep=2), 7, 8, good=(8,))
    assert names(tmp_path)[:-2] == ["checkpoint-00000007", "checkpoint-00000008"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    save_numbers(make(tmp_path), 1)
    before = names(tmp_path)
    (tmp_path / "run" / ".tmp-checkpoint-00000002").mkdir()
    (tmp_path / "run" / ".tmp-checkpoint-00000002" / "state.json").write_text("{")
    (tmp_path / "run" / ".tmp-latest.json").write_text("{")
    store = make(tmp_path)
    assert names(tmp_path) == before
    save_numbers(store, 2)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "longer"])
def test_a_damaged_file_means_the_older_checkpoint_and_a_warning(tmp_path, caplog, name, damage):
    store = make(tmp_path)
    path = save_numbers(store, 1, 2)[-1] / name
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "longer": data + b"}"}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert loaded_number(make(tmp_path)) == 1
    assert "checkpoint-00000002" in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_never_changes_what_comes_back(tmp_path, name):
    store = make(tmp_path)
    path = save_numbers(store, 1, 2, good=(1, 2))[-1] / name
    data = path.read_bytes()
    fallbacks = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        number = loaded_number(store, good=position % 2 == 0)
        fallbacks += number == 1
    # White space in the checksums is all that may change without harm.
    assert fallbacks >= (len(data) if name != "checksums.json" else len(data) // 2)


def test_all_damaged_is_an_error_that_names_them(tmp_path):
    store = make(tmp_path)
    for path in save_numbers(store, 1, 2):
        (path / "state.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match="checkpoint-00000002, checkpoint-00000001"):
        store.load()
    with pytest.raises(CheckpointError, match="good checkpoint"):
        store.load(good=True)


def test_a_damaged_checkpoint_does_not_push_out_a_whole_one(tmp_path):
    store = make(tmp_path, keep=2)
    (save_numbers(store, 1, 2)[-1] / "state.json").write_bytes(b"")
    store = make(tmp_path, keep=2)
    assert loaded_number(store) == 1
    save_numbers(store, 3)
    assert names(tmp_path)[:-2] == ["checkpoint-00000001", "checkpoint-00000003"]


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_executed(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    store = make(tmp_path)
    folder = save_numbers(store, 1, 2)[-1]
    path = folder / "tensors.safetensors"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save(Bomb(), path)
    sums = json.loads((folder / "checksums.json").read_text())
    data = path.read_bytes()
    sums[path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "checksums.json").write_text(json.dumps(sums))
    assert loaded_number(store) == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("other", "key", "stored", "given"),
    [
        ({**SETTINGS, "seed": 1}, "seed", "0", "1"),
        ({**SETTINGS, "stages": [{"name": "teacher", "epochs": 3}]}, "stages.0.epochs", "2", "3"),
        ({**SETTINGS, "stages": []}, "stages", r"\[\{.*\}\]", r"\[\]"),
        ({k: v for k, v in SETTINGS.items() if k != "eps"}, "eps", "0.03.*", "absent"),
        ({**SETTINGS, "mixup": None}, "mixup", "absent", "null"),
        ({**SETTINGS, "seed": False}, "seed", "0", "false"),
    ],
)
def test_other_settings_are_refused_and_named(tmp_path, other, key, stored, given):
    make(tmp_path)
    with pytest.raises(ValueError, match=rf": {key} was {stored} and is now {given}\. .*another folder.*same settings"):
        make(tmp_path, other)


def test_a_folder_in_which_nothing_was_left_is_refused_too_since_its_run_may_go_on(tmp_path):
    folder = make(tmp_path).folder
    with pytest.raises(ValueError, match="seed was 0 and is now 1.*if it has ended, the folder can be deleted"):
        make(tmp_path, {**SETTINGS, "seed": 1})
    (folder / "labels.jsonl").write_text("")
    with pytest.raises(ValueError, match="to go on with that run.$"):
        make(tmp_path, {**SETTINGS, "seed": 1})


def test_settings_are_compared_as_json(tmp_path):
    make(tmp_path, {"eps": math.nan, "size": (32, 32), "rate": 1, 3: "x"})
    make(tmp_path, {"eps": math.nan, "size": [32, 32], "rate": 1.0, "3": "x"})


def test_settings_that_cannot_be_read_are_an_error(tmp_path):
    make(tmp_path)
    (tmp_path / "run" / "settings.json").write_text("{")
    with pytest.raises(CheckpointError, match="settings.json is damaged"):
        make(tmp_path)


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        make(tmp_path)
    assert names(tmp_path) == ["thesis.tex"]


def test_a_run_killed_before_its_settings_were_written_starts_anew(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-settings.json").write_text('{"se')
    make(tmp_path)
    assert names(tmp_path) == ["settings.json"]


def test_keep_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        make(tmp_path, keep=0)


def check_after_kill(folder, before, caplog):
    caplog.clear()
    found = CheckpointStore(folder, {"seed": 0}).load()
    if found is None:
        assert before == 0
        return 0
    tensors, state = found
    counter = state["counter"]
    assert counter >= before
    assert all((tensor == counter).all() for tensor in tensors.values()) and tensors.keys() == {"a", "b", "n"}
    assert not caplog.records, "a kill must leave no damaged checkpoint behind"
    return counter


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_and_never_goes_back(tmp_path, caplog):
    rng, counter = random.Random(0), 0
    for _ in range(15):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "run")], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"ready\n"
            for _ in range(rng.randint(0, 4)):
                counter += 1
                assert int(writer.stdout.readline()) == counter
            time.sleep(rng.uniform(0.0, 0.05))
            writer.kill()
        counter = check_after_kill(tmp_path / "run", counter, caplog)
    assert counter > 15


@pytest.mark.parametrize("step", range(24))
def test_a_kill_at_each_call_to_the_disk_leaves_a_whole_checkpoint(tmp_path, monkeypatch, caplog, step):
    """The same without chance: a child process dies at each of the 22 calls of one save, in turn."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    store = CheckpointStore(tmp_path / "run", {"seed": 0}, keep=1)
    store.save({k: torch.ones(3) for k in "abn"}, {"counter": 1})
    child = os.fork()
    if child == 0:
        try:
            die_at(step)
            store.save({k: torch.full((3,), 2.0) for k in "abn"}, {"counter": 2})
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    check_after_kill(tmp_path / "run", 1, caplog)


def die_at(step):
    calls = 0

    def audit(event, arguments):
        nonlocal calls
        if event in {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.scandir"}:
            if calls == step:
                os._exit(1)
            calls += 1

    sys.addaudithook(audit)
