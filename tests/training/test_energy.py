"""Energy: as the counters say, over wraps, and nothing made up."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from proard_nas.training import EnergyMeter


def zone(root, name, label, energy, limit=1_000_000):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    return folder / "energy_uj"


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
