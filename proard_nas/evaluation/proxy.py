"""How well a cheap measurement (fewer images, fewer attack steps) ranks students as the full one does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch import Tensor

from proard_nas.data import Source
from proard_nas.supernets import Architecture, Supernet

from .accuracy import COUNTED, AttackSettings, attack_or_default
from .labels import Labels
from .population import label_students


@dataclasses.dataclass(frozen=True)
class ProxyReport:
    """The same students measured fully and with a proxy.

    Attributes
    ----------
    full, proxy : Labels
        The same architectures in the same order; their settings say how each was measured.
    tau_natural, tau_robust : float
        Kendall's tau-b between full and proxy accuracy: 1 where they rank all students alike. NaN where either is the
        same for all students.
    rmse_natural, rmse_robust : float
        Of the proxy's accuracy, in [0, 1].
    time_ratio : float
        Seconds that the full measurement takes for each second of the proxy.
    """

    full: Labels
    proxy: Labels
    tau_natural: float
    tau_robust: float
    rmse_natural: float
    rmse_robust: float
    time_ratio: float

    @classmethod
    def of(cls, full: Labels, proxy: Labels) -> ProxyReport:
        """Compare two measurements.

        Raises
        ------
        ValueError
            If they are not of the same students, or of fewer than two.
        """
        if full.architectures != proxy.architectures:
            raise ValueError("a proxy is compared on the same students in the same order; these labels are of others")
        if len(full) < 2:
            raise ValueError(f"a ranking needs at least two distinct students, got {len(full)}")
        tau = [kendalltau(a, b).statistic for a, b in zip(full.accuracies.T, proxy.accuracies.T, strict=True)]
        rmse = np.sqrt(np.square(proxy.accuracies - full.accuracies).mean(0))
        ratio = _seconds(full).sum() / _seconds(proxy).sum()
        return cls(full, proxy, float(tau[0]), float(tau[1]), float(rmse[0]), float(rmse[1]), float(ratio))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures and both settings, without the labels, as a JSON-able dict."""
        figures = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.type == "float"}
        return {**figures, "n_students": len(self.full), "full": self.full.settings, "proxy": self.proxy.settings}


def proxy_correlation(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    source: Source,
    calibration: Tensor,
    *,
    n_images: int,
    steps: int,
    attack: AttackSettings | str | None = None,
    batch_size: int = 256,
    seed: int = 0,
    n_jobs: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ProxyReport:
    """Measure a few students fully and with a proxy, to learn whether the proxy may stand for the full measurement.

    A whole population is then labelled with the proxy by `label_students` with the same ``n_images``, ``seed``, and
    ``attack=AttackSettings(steps=...)``.

    Parameters
    ----------
    supernet, source, calibration, batch_size, seed, n_jobs, progress
        See `label_students`.
    architectures : sequence of Architecture
        20 to 30 drawn at random do: for 30 unrelated ones, tau's standard deviation is 0.13.
    n_images : int
        Images of the proxy, drawn by the seed.
    steps : int
        Attack steps of the proxy.
    attack : AttackSettings or str, default=None
        The full attack, of which the proxy keeps all but the steps. None is PGD-20, step 2/255, eps 8/255.
    folder : path, default=None
        Gets the records ``full.jsonl`` and ``proxy.jsonl``, from which a stopped call goes on.

    Raises
    ------
    ValueError
        If there are fewer than two distinct architectures, or the attack has no number of steps.
    """
    if len(set(architectures)) < 2:
        raise ValueError(f"a ranking needs at least two distinct students, got {len(set(architectures))}")
    attack = attack_or_default(attack)
    if attack.name not in COUNTED:
        raise ValueError(f"attack={attack.name!r} has no steps that a proxy could cut; allowed: {', '.join(COUNTED)}")

    def label(name: str, settings: AttackSettings, images: int | None) -> Labels:
        return label_students(
            supernet,
            architectures,
            source,
            calibration,
            attack=settings,
            n_images=images,
            batch_size=batch_size,
            seed=seed,
            n_jobs=n_jobs,
            record=None if folder is None else Path(folder) / f"{name}.jsonl",
            progress=progress,
        )

    proxy = label("proxy", dataclasses.replace(attack, steps=steps), n_images)
    return ProxyReport.of(label("full", attack, None), proxy)


def _seconds(labels: Labels) -> NDArray[np.float64]:
    return np.array([label.seconds for label in labels.students])
