"""Energy that a device has used: a GPU's from NVML, a CPU's from the kernel's counters, where there are any."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
Read = Callable[[], float]


class EnergyMeter:
    """Joules that a device has used since the meter was made, where the machine reports them.

    A GPU is asked through NVML (the package ``nvidia-ml-py``; the whole board), a CPU through
    Linux's power capping files (packages and memory). Either counts all processes on the device.

    Parameters
    ----------
    device : str or torch.device, default='cpu'
    powercap : Path, default=/sys/class/powercap
        Where the kernel shows its energy counters.

    Examples
    --------
    >>> meter = EnergyMeter("cpu", powercap=Path("/nowhere"))
    >>> meter.joules() is None
    True
    """

    def __init__(self, device: str | torch.device = "cpu", powercap: Path = POWERCAP) -> None:
        device = torch.device(device)
        self._counters: list[_Counter] = []
        if device.type == "cuda":
            self._counters = _nvml_counters(device)
        elif device.type == "cpu":
            self._counters = _rapl_counters(powercap)
        self._lost = not self._counters

    def joules(self) -> float | None:
        """Return joules since the start, or None if the machine does not report them all along.

        A CPU's counter must be read at least once between two wraps: every few minutes is enough.
        """
        if self._lost:
            return None
        try:
            return sum(counter.joules() for counter in self._counters)
        except (OSError, ValueError, RuntimeError) as error:
            logger.warning("the energy counter can no longer be read: %s", error)
            self._lost = True
            return None


class _Counter:
    """Joules since the start from a counter that may wrap.

    Parameters
    ----------
    read : callable
        Returns the counter in its unit.
    unit : float
        Joules of one unit.
    wraps_at : float
        The counter's range, in its unit, after which it is 0 again. Infinite: it never wraps.
    """

    def __init__(self, read: Read, unit: float, wraps_at: float = math.inf) -> None:
        self._read, self._unit, self._wraps_at = read, unit, wraps_at
        self._last, self._sum = read(), 0.0

    def joules(self) -> float:
        now = self._read()
        if now < self._last and math.isinf(self._wraps_at):
            raise ValueError(f"it fell from {self._last:g} to {now:g}")
        self._sum += now - self._last + (self._wraps_at if now < self._last else 0.0)
        self._last = now
        return self._sum * self._unit


def _nvml_counters(device: torch.device) -> list[_Counter]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        # By its unique name: NVML does not know CUDA_VISIBLE_DEVICES.
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)

        def read() -> float:
            try:
                return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
            except pynvml.NVMLError as error:
                raise OSError(str(error)) from error

        return [_Counter(read, unit=1e-3)]
    except (pynvml.NVMLError, AttributeError, AssertionError, OSError, RuntimeError) as error:
        logger.debug("no energy of %s: %s", device, error)
        return []


def _rapl_counters(powercap: Path) -> list[_Counter]:
    """Return the counters of all packages, and of memory where it is not part of one."""
    try:
        zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if _is_counted(zone)]
        return [
            _Counter(_reader(zone / "energy_uj"), unit=1e-6, wraps_at=_reader(zone / "max_energy_range_uj")())
            for zone in zones
        ]
    except (OSError, ValueError) as error:
        logger.debug("no energy of the CPU: %s", error)
        return []


def _is_counted(zone: Path) -> bool:
    """Tell whether a zone is no part of another: cores are part of a package, packages of 'psys'."""
    name = (zone / "name").read_text().strip()
    return name.startswith("package") or name == "dram"


def _reader(path: Path) -> Read:
    return lambda: float(int(path.read_text()))
