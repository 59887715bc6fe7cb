"""Accounting: sums over stages and restarts, and nothing made up."""

from __future__ import annotations

import json
import time

import pytest

from proard_nas.training import accounting
from proard_nas.training.accounting import Ledger, Spent


class FakeMeter:
    def __init__(self, *readings):
        self.readings = list(readings)

    def joules(self):
        return self.readings.pop(0)


def test_spent_adds_up_and_an_unknown_energy_stays_unknown():
    spent = Spent()
    spent.add(macs=1e9, seconds=2.0, images=128, steps=1, energy_joules=50.0, device="a")
    spent.add(macs=2e9, seconds=0.5, images=64, steps=1, energy_joules=25.0, device="b")
    spent.add(device="a")
    assert spent == Spent(3e9, 2.5, 192, 2, 75.0, "a + b")
    spent.add(energy_joules=None)
    spent.add(energy_joules=10.0)
    assert spent.energy_joules is None
    assert Spent.from_dict(json.loads(json.dumps(spent.to_dict()))) == spent


def test_a_measurement_counts_its_block_only(tmp_path):
    ledger, start = Ledger(), time.perf_counter()
    with ledger.measure("teacher", "cpu", FakeMeter(100.0, 130.0)) as measurement:
        measurement.add(macs=5.0, images=4, steps=1)
        measurement.add(macs=5.0, images=4, steps=1)
        time.sleep(0.05)
    spent = ledger.entries["teacher"]
    assert (spent.macs, spent.images, spent.steps, spent.energy_joules, spent.device) == (10.0, 8, 2, 30.0, "cpu")
    assert 0.05 <= spent.seconds <= time.perf_counter() - start


def test_a_block_that_fails_is_counted_too():
    ledger = Ledger()
    with pytest.raises(KeyError), ledger.measure("teacher", "cpu", FakeMeter(0.0, 7.0)):
        raise KeyError
    assert ledger.entries["teacher"].energy_joules == 7.0
    with ledger.measure("depth", "cpu"):
        pass


def test_an_open_measurement_is_saved_up_to_now_and_counted_once():
    ledger, start = Ledger(), time.perf_counter()
    with ledger.measure("teacher", "cpu", FakeMeter(0.0, 10.0, 15.0, 40.0)):
        time.sleep(0.03)
        saved = ledger.to_dict()["teacher"]
        assert saved["energy_joules"] == 10.0 and saved["seconds"] >= 0.03
        assert ledger.total.energy_joules == 15.0
        time.sleep(0.03)
    spent = ledger.entries["teacher"]
    assert spent.energy_joules == 40.0 and 0.06 <= spent.seconds <= time.perf_counter() - start


def test_a_long_block_reads_the_counter_on_the_way(monkeypatch):
    monkeypatch.setattr(accounting, "READ_EVERY", 0.0)
    meter = FakeMeter(0.0, 1.0, 2.0, 3.0)
    with Ledger().measure("teacher", "cpu", meter) as measurement:
        measurement.add(steps=1)
        measurement.add(steps=1)
    assert meter.readings == []


def test_a_restored_ledger_goes_on_adding_in_the_same_order():
    ledger = Ledger()
    for name in ("teacher", "depth"):
        with ledger.measure(name, "cpu", FakeMeter(0.0, 10.0)) as measurement:
            measurement.add(macs=1.0, images=3, steps=1)
    before = ledger.entries["depth"].seconds
    ledger = Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    for name in ("depth", "labelling"):
        with ledger.measure(name, "cpu", FakeMeter(0.0, 5.0)) as measurement:
            measurement.add(macs=1.0, images=3, steps=1)
    assert list(ledger.entries) == ["teacher", "depth", "labelling"]
    depth = ledger.entries["depth"]
    assert (depth.macs, depth.images, depth.steps, depth.energy_joules) == (2.0, 6, 2, 15.0) and depth.seconds > before
    total = ledger.total
    assert (total.macs, total.images, total.steps, total.energy_joules) == (4.0, 12, 4, 30.0)
    assert total.seconds == pytest.approx(sum(spent.seconds for spent in ledger.entries.values()))


def test_measurements_do_not_nest():
    ledger = Ledger()
    with ledger.measure("teacher"), pytest.raises(RuntimeError, match="'labelling'"), ledger.measure("labelling"):
        pass


def known():
    ledger = Ledger()
    ledger.entries = {
        "teacher": Spent(2e15, 3600.0, 1000, 10, 400.0, "gpu"),
        "labelling": Spent(1e15, 1400.0, 0, 100, 100.0, "gpu"),
    }
    return ledger


def test_training_is_paid_once_and_each_device_costs_a_search():
    assert known().for_devices(1, search_seconds=10.0) == {
        "devices": 1,
        "macs": 3e15,
        "seconds": 5010.0,
        "energy_joules": 500.0,
        "macs_per_device": 3e15,
        "seconds_per_device": 5010.0,
    }
    many = known().for_devices(100, search_seconds=10.0)
    assert (many["macs"], many["seconds"], many["macs_per_device"], many["seconds_per_device"]) == (
        3e15,
        6000.0,
        3e13,
        60.0,
    )
    for arguments in ((0,), (1, -1.0)):
        with pytest.raises(ValueError, match="n must be at least 1"):
            known().for_devices(*arguments)


def test_the_table_has_a_line_for_each_part_and_says_what_is_unknown():
    ledger = known()
    ledger.entries["labelling"].energy_joules = None
    head, _, teacher, labelling, total = str(ledger).splitlines()
    assert head.split() == ["part", "MACs", "time", "images", "steps", "energy", "device"]
    assert teacher.split() == ["teacher", "2e+15", "60.0", "minutes", "1000", "10", "0.4", "kJ", "gpu"]
    assert labelling.split()[-2:] == ["unknown", "gpu"]
    assert total.split() == ["total", "3e+15", "83.3", "minutes", "1000", "110", "unknown", "gpu"]
    assert "total" in str(Ledger())
