"""Accounting: energy as the counters say, sums over restarts, and nothing made up."""

from __future__ import annotations

import json
import sys
import time
import types

import pytest
import torch

from proard_nas.training import accounting
from proard_nas.training.accounting import EnergyMeter, Ledger, Spent


def zone(root, name, label, energy, limit=1_000_000):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    return folder / "energy_uj"


class FakeMeter:
    def __init__(self, *readings):
        self.readings = list(readings)

    def joules(self):
        return self.readings.pop(0)


def test_joules_of_a_cpu_are_those_of_its_packages_and_memory(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 5000)
    cores = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 0)
    platform = zone(tmp_path, "intel-rapl:2", "psys", 0)
    meter = EnergyMeter("cpu", powercap=tmp_path)
    assert meter.joules() == 0
    for path, energy in ((first, 400_100), (second, 205_000), (cores, 7), (memory, 50_000), (platform, 9)):
        path.write_text(f"{energy}\n")
    assert meter.joules() == pytest.approx(0.4 + 0.2 + 0.05)


def test_a_counter_that_wraps_goes_on(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 900_000, limit=1_000_000)
    meter = EnergyMeter("cpu", powercap=tmp_path)
    for energy, joules in ((100_000, 0.2), (600_000, 0.7), (0, 1.1), (999_999, 2.099999), (1, 2.100001)):
        counter.write_text(str(energy))
        assert meter.joules() == pytest.approx(joules)


def test_energy_that_is_not_reported_is_none(tmp_path):
    assert EnergyMeter("cpu", powercap=tmp_path / "nowhere").joules() is None
    assert EnergyMeter("meta", powercap=tmp_path).joules() is None
    zone(tmp_path, "intel-rapl:0", "package-0", 100).write_text("")
    assert EnergyMeter("cpu", powercap=tmp_path).joules() is None


def test_files_that_may_not_be_read_give_none(tmp_path, monkeypatch):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    read = type(counter).read_text

    def denied(path, *args, **kwargs):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(type(counter), "read_text", denied)
    assert EnergyMeter("cpu", powercap=tmp_path).joules() is None


def test_a_counter_that_is_lost_on_the_way_gives_none_from_then_on(tmp_path, caplog):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    meter = EnergyMeter("cpu", powercap=tmp_path)
    counter.unlink()
    assert meter.joules() is None and "can no longer be read" in caplog.text
    counter.write_text("500")
    assert meter.joules() is None


class NVMLError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch):
    """A driver with one GPU, which torch lists under another number than NVML does."""
    module = types.ModuleType("pynvml")
    module.NVMLError, module.millijoules, module.nvmlInit = NVMLError, 5_000, lambda: None

    def by_uuid(uuid):
        if uuid != "GPU-abc":
            raise NVMLError("Not Found")
        return "handle"

    def energy(handle):
        assert handle == "handle"
        if module.millijoules is None:
            raise NVMLError("Not Supported")
        return module.millijoules

    module.nvmlDeviceGetHandleByUUID, module.nvmlDeviceGetTotalEnergyConsumption = by_uuid, energy
    monkeypatch.setitem(sys.modules, "pynvml", module)
    properties = types.SimpleNamespace(uuid="abc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    module.properties = properties
    return module


def test_joules_of_a_gpu_are_those_of_nvml(nvml):
    meter = EnergyMeter("cuda:1")
    nvml.millijoules += 2_500
    assert meter.joules() == 2.5
    nvml.millijoules += 1_000
    assert meter.joules() == 3.5


def test_a_gpu_without_a_counter_gives_none(nvml):
    nvml.millijoules = None
    assert EnergyMeter("cuda").joules() is None


def test_a_gpu_that_nvml_does_not_know_gives_none(nvml):
    nvml.properties.uuid = "other"
    assert EnergyMeter("cuda").joules() is None


def test_a_gpu_counter_that_was_reset_gives_none(nvml):
    meter = EnergyMeter("cuda")
    nvml.millijoules = 10
    assert meter.joules() is None


def test_a_gpu_without_nvml_gives_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter("cuda").joules() is None


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
    ledger = Ledger()
    with ledger.measure("teacher", "cpu", FakeMeter(100.0, 130.0)) as measurement:
        measurement.add(macs=5.0, images=4, steps=1)
        measurement.add(macs=5.0, images=4, steps=1)
        time.sleep(0.05)
    spent = ledger.entries["teacher"]
    assert (spent.macs, spent.images, spent.steps, spent.energy_joules, spent.device) == (10.0, 8, 2, 30.0, "cpu")
    assert 0.05 <= spent.seconds < 2


def test_a_block_that_fails_is_counted_too():
    ledger = Ledger()
    with pytest.raises(KeyError), ledger.measure("teacher", "cpu", FakeMeter(0.0, 7.0)):
        raise KeyError
    assert ledger.entries["teacher"].energy_joules == 7.0
    with ledger.measure("depth", "cpu"):
        pass


def test_an_open_measurement_is_saved_up_to_now_and_counted_once():
    ledger = Ledger()
    with ledger.measure("teacher", "cpu", FakeMeter(0.0, 10.0, 15.0, 40.0)):
        time.sleep(0.03)
        saved = ledger.to_dict()["teacher"]
        assert saved["energy_joules"] == 10.0 and saved["seconds"] >= 0.03
        assert ledger.total.energy_joules == 15.0
        time.sleep(0.03)
    spent = ledger.entries["teacher"]
    assert spent.energy_joules == 40.0 and 0.06 <= spent.seconds < 2


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
