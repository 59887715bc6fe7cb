"""What a search found: the front, the best student, and both as a table, a plot, a file and a network."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proard_nas._folders import read_strictly, whole_file, write_bytes
from proard_nas.supernets.architecture import Architecture

from .candidate import ACCURACIES, Candidate
from .constraints import Constraints
from .figure import PlotData, draw, plot_data
from .objectives import check_objectives, sort_key
from .table import front_frame, front_text

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike
    from torch import nn

Extractor = Callable[[Architecture], "nn.Module"]

FORMAT = "proard_nas.search_result"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class GenerationRecord:
    """The predicted points of one generation, kept for plots such as the paper's figure 10.

    Parameters
    ----------
    number : int
        0 for the first generation; otherwise how many generations had been run.
    macs : tuple of int
    natural_accuracy, robust_accuracy : tuple of float
        As predicted, in [0, 1]; one entry for each member.
    feasible : tuple of bool
        Which members keep all limits.
    """

    number: int
    macs: tuple[int, ...]
    natural_accuracy: tuple[float, ...]
    robust_accuracy: tuple[float, ...]
    feasible: tuple[bool, ...]

    @classmethod
    def of(cls, number: int, members: Sequence[Candidate], constraints: Constraints) -> GenerationRecord:
        """Record the members' figures."""
        return cls(
            number,
            tuple(member.macs for member in members),
            tuple(member.natural_accuracy for member in members),
            tuple(member.robust_accuracy for member in members),
            tuple(constraints.are_kept_by(member) for member in members),
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GenerationRecord:
        """Build from a dict of the fields, lists in place of tuples."""
        return cls(
            data["number"],
            tuple(data["macs"]),
            tuple(data["natural_accuracy"]),
            tuple(data["robust_accuracy"]),
            tuple(data["feasible"]),
        )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SearchResult:
    """The front a search found and how it was found.

    Parameters
    ----------
    front : list of Candidate
        The students that no other student beats, by rising MACs, then parameters, then falling
        robust and natural accuracy.
    objectives : tuple of str
    constraints : dict, default={}
        The limits that were set, such as ``{'max_flops': 2000.0}`` (MMACs).
    seed : int or None, default=None
    n_evaluated : int, default=0
        How many distinct students were predicted.
    generations : tuple of GenerationRecord, default=()
        The first generation and the survivors of the last.
    study : optuna.Study or None, default=None
        The search as an Optuna study; not saved.
    extractor : callable or None, default=None
        Takes an architecture, returns the student as a network; not saved.
    population : array-like or None, default=None
        The labelled students that `plot` draws where it is given no others; not saved.
    weights : str or None, default=None
        Checksum of the supernet's weights that the figures are of.

    Raises
    ------
    ValueError
        If the front is empty or holds an architecture twice.
    """

    front: list[Candidate]
    objectives: tuple[str, ...] = ACCURACIES
    constraints: dict[str, float] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    n_evaluated: int = 0
    generations: tuple[GenerationRecord, ...] = ()
    study: optuna.Study | None = None
    extractor: Extractor | None = None
    population: ArrayLike | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if not self.front:
            raise ValueError("a search result needs at least one candidate on its front")
        if len({candidate.architecture for candidate in self.front}) != len(self.front):
            raise ValueError("the front must not hold an architecture twice")
        check_objectives(self.objectives, has_latency=True)
        Constraints(**self.constraints)
        object.__setattr__(self, "front", sorted(self.front, key=sort_key))

    # -- reading it -------------------------------------------------------------------------

    @property
    def best(self) -> Candidate:
        """The student to take if nothing else is asked for.

        The highest mean of natural and robust accuracy; if some students have been verified, among these and by their
        measured figures, and of these, where some do, those that reach the least accuracies asked for as measured, too.
        Among equals, to nine decimals, the one of the fewest MACs.
        """
        verified = [candidate for candidate in self.front if candidate.is_verified]
        floors = {name: self.constraints.get(f"min_{name}") or 0.0 for name in ACCURACIES}
        kept = [c for c in verified if all(float((c.measured or {})[name]) >= floors[name] for name in floors)]
        return max(kept or verified or self.front, key=lambda c: (round(c.mean_accuracy, 9), -c.macs, -c.params))

    def __len__(self) -> int:
        return len(self.front)

    def __str__(self) -> str:
        limits = ", ".join(f"{name}={value:.15g}" for name, value in self.constraints.items()) or "none"
        unit = " (flops in MMACs)" if any(name.endswith("flops") for name in self.constraints) else ""
        head = f"{len(self)} students on the front of {', '.join(self.objectives)}; limits: {limits}{unit}"
        return f"{head}\n{front_text(self.front, best=self.front.index(self.best))}"

    __repr__ = __str__

    def to_frame(self) -> pd.DataFrame:
        """Return the front as a table, one row for each student.

        Columns: ``mmacs`` (millions of multiply-accumulates), ``macs``, ``params``, ``latency_ms``, the predicted
        ``natural_accuracy`` and ``robust_accuracy`` in [0, 1], ``measured_*`` for each measured figure,
        and ``architecture``.

        Raises
        ------
        ImportError
            If pandas is not installed; it comes with ``pip install "proard-nas[report]"``.
        """
        return front_frame(self.front)

    def plot_data(self, population: ArrayLike | None = None) -> PlotData:
        """Return what `plot` draws, as numbers."""
        return plot_data(self, population)

    def plot(self, population: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
        """Draw the front over the first generation and a labelled population, verified students marked.

        Parameters
        ----------
        population : array-like of shape (n, 2) or (n, 3), default=None
            Natural and robust accuracy of labelled students in [0, 1]; as a third column their MMACs,
            which is needed where MACs are an axis. None draws the labelled students of the estimator that searched,
            unless an axis is one that is not known of them.
        ax : matplotlib.axes.Axes or None, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed; it comes with ``pip install "proard-nas[report]"``.
        """
        return draw(self.plot_data(population), ax)

    def extract(self, i: int | None = None) -> nn.Module:
        """Return a student of the front as a network; what was measured of it is in its ``metadata``.

        Parameters
        ----------
        i : int or None, default=None
            Its place on the front; None takes `best`.

        Raises
        ------
        RuntimeError
            If the result has no extractor, as after `load`, or the estimator has other weights than those that the
            result's figures are of.
        IndexError
            If the front has no such place.
        """
        if self.extractor is None:
            raise RuntimeError(
                "this search result has no estimator to extract from; use with_extractor(est.extract), or "
                "est.extract(result.best.architecture), where est is the fitted ProARDEstimator"
            )
        if i is not None and not -len(self) <= i < len(self):
            raise IndexError(f"the front has {len(self)} students, numbered from 0; got {i}")
        candidate = self.best if i is None else self.front[i]
        student = self.extractor(candidate.architecture)
        metadata = getattr(student, "metadata", None)
        if isinstance(metadata, dict):  # another extractor's network may have none
            self.check_weights(metadata.get("supernet_weights"))
            metadata.update(candidate.card_figures)
        return student

    def check_weights(self, weights: str | None) -> None:
        """Raise RuntimeError if the figures are known to be of other weights than an estimator's, by their checksum."""
        if None not in (self.weights, weights) and self.weights != weights:
            raise RuntimeError(
                f"the figures of this search are of weights {self.weights}, of other weights than the estimator's "
                f"({weights}); search again, or extract the architecture alone, which comes without figures"
            )

    def most_accurate(self, k: int) -> list[Candidate]:
        """Return the ``k`` students of the front with the highest mean of both accuracies, the best first."""
        return sorted(self.front, key=lambda candidate: candidate.mean_accuracy, reverse=True)[:k]

    # -- adding to it -----------------------------------------------------------------------

    def with_extractor(self, extractor: Extractor) -> SearchResult:
        """Return the same result with a function from an architecture to a network."""
        return dataclasses.replace(self, extractor=extractor)

    def with_measured(self, measured: Mapping[Architecture, Mapping[str, float | int | str]]) -> SearchResult:
        """Return the same result with measured figures attached to students of the front.

        Parameters
        ----------
        measured : mapping of Architecture to dict
            Such as ``{arch: {'natural_accuracy': 0.86, 'robust_accuracy': 0.53, 'attack': 'pgd'}}``, accuracies
            in [0, 1]. They are added to what has been measured before.

        Raises
        ------
        ValueError
            If an architecture is not on the front, or a figure is NaN or out of its range.
        """
        known = {candidate.architecture for candidate in self.front}
        for architecture in measured:
            if architecture not in known:
                raise ValueError(f"not on the front, so its figures have no place: {architecture!r}")
        front = [
            dataclasses.replace(c, measured={**(c.measured or {}), **measured[c.architecture]})
            if c.architecture in measured
            else c
            for c in self.front
        ]
        return dataclasses.replace(self, front=front)

    # -- keeping it -------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict, without study, extractor and population."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "objectives": list(self.objectives),
            "constraints": dict(self.constraints),
            "seed": self.seed,
            "weights": self.weights,
            "n_evaluated": self.n_evaluated,
            "front": [candidate.to_dict() for candidate in self.front],
            "generations": [dataclasses.asdict(record) for record in self.generations],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], extractor: Extractor | None = None) -> SearchResult:
        """Build the result from `to_dict`'s form.

        Raises
        ------
        ValueError
            If it is no search result, of another version, incomplete or damaged.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ValueError(f"this is no search result: it must say 'format': {FORMAT!r}")
        if data.get("version") != VERSION:
            raise ValueError(f"search result of version {data.get('version')!r}; this library reads version {VERSION}")
        try:
            return cls(
                front=[Candidate.from_dict(candidate) for candidate in data["front"]],
                objectives=tuple(data["objectives"]),
                constraints=dict(data["constraints"]),
                seed=data["seed"],
                n_evaluated=data["n_evaluated"],
                generations=tuple(GenerationRecord.from_dict(record) for record in data["generations"]),
                weights=data.get("weights"),  # an older file has it not
                extractor=extractor,
            )
        except KeyError as error:
            raise ValueError(f"the search result lacks {error}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"a damaged search result: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result as JSON; the file is there whole or not at all.

        Parameters
        ----------
        path : str or path
            A file in an existing folder; one that exists is replaced.
        """
        text = json.dumps(self.to_dict(), allow_nan=False, indent=1)
        with whole_file(path) as temporary:
            write_bytes(temporary, text.encode())
            temporary.chmod(0o644)  # readable for all, whatever the umask

    @classmethod
    def load(cls, path: str | os.PathLike[str], extractor: Extractor | None = None) -> SearchResult:
        """Read a result that `save` wrote.

        Parameters
        ----------
        path : str or path
        extractor : callable or None, default=None
            For `extract`, which works only with it.

        Raises
        ------
        ValueError
            If the file is no search result, of another version, damaged, or holds NaN or infinity; names it.
        """
        try:
            return cls.from_dict(read_strictly(Path(path)), extractor)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
