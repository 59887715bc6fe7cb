"""What a training really cost: time, energy and work, counted while it runs and over restarts."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tabulate import tabulate

from .budget import duration
from .energy import EnergyMeter

READ_EVERY = 60.0  # seconds; a counter of the CPU's energy wraps after some tens of minutes


@dataclasses.dataclass
class Spent:
    """What one part of the work cost.

    Attributes
    ----------
    macs : float
        Multiply-accumulates.
    seconds : float
        Of wall clock.
    images, steps : int
        Training images seen and optimizer steps taken; for labelling, images and students measured.
    energy_joules : float or None
        Of the device; of several processes, this one's alone. None once any part was spent where the machine does not
        report it.
    device : str
        Names of the devices it was spent on.
    """

    macs: float = 0.0
    seconds: float = 0.0
    images: int = 0
    steps: int = 0
    energy_joules: float | None = 0.0
    device: str = ""

    def add(
        self,
        macs: float = 0.0,
        seconds: float = 0.0,
        images: int = 0,
        steps: int = 0,
        energy_joules: float | None = 0.0,
        device: str = "",
    ) -> None:
        """Add to each of the sums; an unknown energy makes the sum unknown."""
        self.macs += macs
        self.seconds += seconds
        self.images += images
        self.steps += steps
        known = self.energy_joules is not None and energy_joules is not None
        self.energy_joules = (self.energy_joules or 0.0) + (energy_joules or 0.0) if known else None
        names = [name for name in f"{self.device} + {device}".split(" + ") if name]
        self.device = " + ".join(dict.fromkeys(names))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-able dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Spent:
        """Return what `to_dict` described."""
        return cls(**fields)


class Measurement:
    """An open measurement: work is added by the caller, time and energy by themselves."""

    def __init__(self, spent: Spent, device: torch.device, meter: EnergyMeter) -> None:
        self._spent, self._device, self._meter = spent, device, meter
        self._wait()
        self._start, self._joules = time.perf_counter(), meter.joules() or 0.0

    def add(self, macs: float = 0.0, images: int = 0, steps: int = 0) -> None:
        """Add work that was done."""
        self._spent.add(macs=macs, images=images, steps=steps)
        if time.perf_counter() - self._start > READ_EVERY:
            self.lap()

    def lap(self) -> None:
        """Add the time and the energy since the last lap."""
        self._wait()
        now, joules = time.perf_counter(), self._meter.joules()
        used = None if joules is None else joules - self._joules
        self._spent.add(seconds=now - self._start, energy_joules=used)
        self._start, self._joules = now, joules or 0.0

    def _wait(self) -> None:
        """Wait for the device's queue, whose work would be counted elsewhere."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class Ledger:
    """Costs by name, in the order in which the work began: teacher, stages, labelling.

    A ledger that was saved and restored goes on adding, so that its sums are those of the whole
    training and not of the last run.

    Attributes
    ----------
    entries : dict of str to Spent

    Examples
    --------
    >>> ledger = Ledger()
    >>> with ledger.measure("teacher", "cpu") as measurement:
    ...     measurement.add(macs=1e9, images=128, steps=1)
    >>> ledger = Ledger.from_dict(ledger.to_dict())
    >>> with ledger.measure("teacher", "cpu") as measurement:
    ...     measurement.add(macs=1e9, images=128, steps=1)
    >>> ledger.total.images
    256
    """

    def __init__(self) -> None:
        self.entries: dict[str, Spent] = {}
        self._open: Measurement | None = None

    @contextlib.contextmanager
    def measure(
        self, name: str, device: str | torch.device = "cpu", meter: EnergyMeter | None = None
    ) -> Iterator[Measurement]:
        """Count time and energy of the ``with`` block under a name, also if it fails.

        Parameters
        ----------
        name : str
            An entry that exists is added to.
        device : str or torch.device, default='cpu'
            Where the work is done; its queue is waited for at the end.
        meter : EnergyMeter, default=None
            None makes one for the device.

        Raises
        ------
        RuntimeError
            If another measurement is open: its time would be counted twice.
        """
        if self._open is not None:
            raise RuntimeError(f"cannot measure {name!r} within another measurement; its time would count twice")
        device = torch.device(device)
        spent = self.entries.setdefault(name, Spent())
        spent.add(device=_device_name(device))
        self._open = Measurement(spent, device, meter or EnergyMeter(device))
        try:
            yield self._open
        finally:
            measurement, self._open = self._open, None
            measurement.lap()

    @property
    def total(self) -> Spent:
        """The sum of all entries."""
        self._update()
        total = Spent()
        for spent in self.entries.values():
            total.add(**spent.to_dict())
        return total

    def for_devices(self, n: int, search_seconds: float = 0.0) -> dict[str, Any]:
        """Return what it costs to serve a number of target devices (ProARD, figure 8).

        Training and labelling are paid once; each device costs one search and no training.

        Parameters
        ----------
        n : int
            Target devices, at least 1.
        search_seconds : float, default=0.0
            Of one search.

        Returns
        -------
        dict
            ``devices``, ``macs``, ``seconds``, ``energy_joules`` (without the searches; None if
            unknown), ``macs_per_device`` and ``seconds_per_device``.
        """
        if n < 1 or search_seconds < 0:
            raise ValueError(f"n must be at least 1 and search_seconds not negative; got {n} and {search_seconds}")
        total = self.total
        seconds = total.seconds + n * search_seconds
        return {
            "devices": n,
            "macs": total.macs,
            "seconds": seconds,
            "energy_joules": total.energy_joules,
            "macs_per_device": total.macs / n,
            "seconds_per_device": seconds / n,
        }

    def plus(self, other: Ledger) -> Ledger:
        """Return a ledger of both, entries of one name added up."""
        both = Ledger.from_dict(self.to_dict())
        for name, fields in other.to_dict().items():
            both.entries.setdefault(name, Spent()).add(**fields)
        return both

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return a JSON-able dict of all entries, an open measurement included up to now."""
        self._update()
        return {name: spent.to_dict() for name, spent in self.entries.items()}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Mapping[str, Any]]) -> Ledger:
        """Return the ledger that `to_dict` described."""
        ledger = cls()
        ledger.entries = {name: Spent.from_dict(fields) for name, fields in entries.items()}
        return ledger

    def _update(self) -> None:
        if self._open is not None:
            self._open.lap()

    def __str__(self) -> str:
        rows = [_row(name, spent) for name, spent in [*self.entries.items(), ("total", self.total)]]
        headers = ["part", "MACs", "time", "images", "steps", "energy", "device"]
        return tabulate(rows, headers=headers, disable_numparse=True, colalign=["left", *["right"] * 5, "left"])


def _row(name: str, spent: Spent) -> list[str]:
    joules = spent.energy_joules
    energy = "unknown" if joules is None else f"{joules / 1e3:.3g} kJ"
    work = [f"{spent.macs:.3g}", duration(spent.seconds), f"{spent.images}", f"{spent.steps}"]
    return [name, *work, energy, spent.device]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type
