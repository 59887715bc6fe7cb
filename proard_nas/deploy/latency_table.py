"""The latency of every student of a supernet, from measurements of the parts they share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import is_model

from proard_nas._errors import unknown_name
from proard_nas._folders import read_strictly, whole_file, write_json
from proard_nas._numbers import whole_number
from proard_nas.supernets import Architecture, Supernet

from ._comparing import compare
from ._correcting import Correction
from ._estimating import PartEstimator
from ._measuring import Setting, measure
from ._parts import Part, parts_of
from ._table_files import read_correction, read_ms, read_part
from ._timing import check_budget

FORMAT, VERSION = "proard_nas latency table", 1


class LatencyTable:
    """Predicts the latency of any student of a supernet; made by `build_latency_table`.

    It is a function from an architecture to milliseconds, which a search takes as ``latency=``.
    Answers are remembered.

    Parameters
    ----------
    network : mapping
        ``name`` and ``args`` with which timm builds the supernet.
    setting : Setting
        How everything was measured: runtime, batch size, threads, clock, image size.
    parts : mapping of Part to float
        Milliseconds of each measured part.
    correction : Correction
    students : sequence of (Architecture, float)
        The whole students that the correction was fitted to, with their milliseconds.
    machine, versions : mapping
        What it was measured on and with.
    evaluation : mapping, default=None
        What `evaluate` returned last.

    Attributes
    ----------
    space : SearchSpace

    Examples
    --------
    >>> table = LatencyTable.load('laptop.json')                        # doctest: +SKIP
    >>> est.search(max_latency_ms=5, latency=table)                     # doctest: +SKIP
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        setting: Setting,
        parts: Mapping[Part, float],
        correction: Correction,
        students: Sequence[tuple[Architecture, float]],
        machine: Mapping[str, Any],
        versions: Mapping[str, str],
        evaluation: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.setting, self.correction = dict(network), setting, correction
        self.parts, self.students = dict(parts), list(students)
        self.machine, self.versions = dict(machine), dict(versions)
        self.evaluation = None if evaluation is None else dict(evaluation)
        self._twin = _without_memory(self.network)
        self.space = self._twin.space
        self._estimator = PartEstimator(self.parts)
        self._in_student: dict[str, float] = {}
        self._known: dict[Architecture, float] = {}

    def __call__(self, arch: Architecture) -> float:
        """Return the predicted latency of one batch, in milliseconds.

        Raises
        ------
        ValueError
            If the architecture is not in the supernet's space.
        """
        known = self._known.get(arch)
        if known is None:
            plan = self._twin.plan(self.space.validate(arch), self.setting.img_size)
            total = sum(self._part_ms(part) for _, part in parts_of(plan))
            known = self._known[arch] = max(0.0, self.correction.constant_ms + total)
        return known

    def _part_ms(self, part: Part) -> float:
        """Return what a part takes in a student."""
        known = self._in_student.get(part.key)
        if known is None:
            alone = self.parts[part] if part in self.parts else self._estimator(part)
            known = self._in_student[part.key] = self.correction(part, alone)
        return known

    def evaluate(
        self,
        supernet: Supernet,
        architectures: Sequence[Architecture] | None = None,
        *,
        n: int = 30,
        seed: int = 0,
        rounds: int = 40,
        budget_s: float = 120.0,
    ) -> dict[str, Any]:
        """Measure whole students and compare them with what the table says of them.

        Parameters
        ----------
        supernet : Supernet
            The network that the table is of.
        architectures : sequence of Architecture, default=None
            Students to measure; by default ``n`` drawn uniformly, none of them one that the table
            was fitted to.
        n : int, default=30
        seed : int, default=0
        rounds : int, default=40
            Runs of each student, in turn with all others; at least 2.
        budget_s : float, default=120.0
            No round begins after so many seconds.

        Returns
        -------
        dict
            ``n``; ``mape``, the mean of ``|predicted / measured - 1|``; ``max_error``; ``bias``, the mean of
            ``predicted / measured - 1``; ``kendall_tau``; ``repeatability_mape`` and ``repeatability_tau``, the
            same between the medians of the odd and the even rounds: against the median of all rounds even a perfect
            table has about half that ``mape``; ``rounds``; ``students``. Kept in `evaluation` and saved with the table.

        Raises
        ------
        ValueError
            If the supernet is another than the table's, there are fewer than two students, or a setting is out of
            its range.
        """
        self.check(supernet)
        whole_number("rounds", rounds, 2)
        check_budget(budget_s)
        if architectures is None:
            fitted = [arch for arch, _ in self.students]
            architectures = self.space.sample_distinct(whole_number("n", n, 2), seed=seed, exclude=fitted)
        if len(architectures) < 2:
            raise ValueError(f"a comparison needs at least two students, got {len(architectures)}")
        predicted = np.array([self(arch) for arch in architectures])
        _, times = measure(supernet, (), architectures, self.setting, rounds, budget_s)
        self.evaluation = compare(architectures, predicted, times)
        return dict(self.evaluation)

    def check(self, supernet: Supernet) -> None:
        """Raise ValueError if the table is of another network."""
        own, other = _identity(self._twin), _identity(supernet)
        for name, value in own.items():
            if other[name] != value:
                raise ValueError(f"the latency table is of another network: its {name} is {value}, not {other[name]}")

    # -- files --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "network": self.network,
            "space": self.space.to_dict(),
            "setting": self.setting.to_dict(),
            "machine": self.machine,
            "versions": self.versions,
            "correction": self.correction.to_dict(),
            "students": [{"architecture": arch.to_dict(), "ms": ms} for arch, ms in self.students],
            "evaluation": self.evaluation,
            "parts": [{**vars(part), "sizes": list(part.sizes), "ms": ms} for part, ms in self.parts.items()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyTable:
        """Build the table from `to_dict`'s form; see `load` for what is raised."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ValueError(f"this is no latency table: it must say 'format': {FORMAT!r}")
        if data.get("version") != VERSION:
            raise ValueError(f"latency table of version {data.get('version')!r}; this library reads version {VERSION}")
        try:
            table = cls(
                data["network"],
                Setting.from_dict(data["setting"]),
                {read_part(row): read_ms(row["ms"]) for row in data["parts"]},
                read_correction(data["correction"]),
                [(Architecture.from_dict(row["architecture"]), read_ms(row["ms"])) for row in data["students"]],
                data["machine"],
                data["versions"],
                data["evaluation"],
            )
            space = data["space"]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a damaged latency table: {type(error).__name__} {error}") from error
        if space != table.space.to_dict():
            raise ValueError(f"the latency table's space is not the one that {data['network']['name']} has now")
        return table

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON; the file is there whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            write_json(temporary, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str], supernet: Supernet | None = None) -> LatencyTable:
        """Read a table that `save` wrote.

        Parameters
        ----------
        path : path
        supernet : Supernet, default=None
            The network it is to be used for; a table of another one is refused.

        Raises
        ------
        ValueError
            If the file is no latency table, of another version, of another network, incomplete, or
            holds NaN or infinity.
        """
        try:
            table = cls.from_dict(read_strictly(Path(path)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if supernet is not None:
            table.check(supernet)
        return table

    def __repr__(self) -> str:
        s = self.setting
        return (
            f"LatencyTable({self.network['name']}: {len(self.parts)} parts, {len(self.students)} students; "
            f"{s.runtime}, batch {s.batch_size}, threads {s.threads})"
        )


def _without_memory(network: Mapping[str, Any]) -> Supernet:
    """Build the supernet without tensors, for its space and its plans."""
    if not is_model(network["name"]):  # timm would look for some names on the network
        raise unknown_name("network", network["name"], timm.list_models("proard_*"))
    with torch.device("meta"):
        twin = timm.create_model(network["name"], **network["args"])
    if not isinstance(twin, Supernet):
        raise ValueError(f"{network['name']!r} is no supernet")
    return twin


def _identity(supernet: Supernet) -> dict[str, Any]:
    """Return what the layers of a supernet's students depend on."""
    return {
        "student": supernet.cfg.student,
        "space": supernet.space.to_dict(),
        "num_classes": supernet.num_classes,
        "in_chans": supernet.in_chans,
    }
