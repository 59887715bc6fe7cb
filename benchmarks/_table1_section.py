"""The page's section on table 1: networks beside others of the same architecture, the paper's figures, what it took."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Any

import _robustness
import _study
import numpy as np
from _page import COLOURS, COLUMNS, METRICS, NAMES, Page, columns, differences, of_seeds, seeds_of_rows, slug

PAPER_TABLE = {
    "cifar10": [
        ("ResNet-50, TRADES", 84.7, 59.7, 52.6), ("ResNet-50, RSLAD from WRN-34-10", 86.0, 59.4, 52.6),
        ("Dyn-ResNet50 student (24.94 M), ProARD", 87.0, 62.8, 54.2), ("MobileNetV3, TRADES", 80.0, 52.2, 48.6),
        ("MobileNetV3, RSLAD from WRN-34-10", 81.2, 54.5, 50.5),
        ("Dyn-MBV3 student (5.28 M), ProARD", 80.6, 55.0, 50.9),
    ],
    "cifar100": [
        ("ResNet-50, TRADES", 54.6, 28.7, 25.8), ("ResNet-50, RSLAD from WRN-34-10", 55.3, 29.6, 26.5),
        ("Dyn-ResNet50 student (27.24 M), ProARD", 60.1, 29.4, 25.9), ("MobileNetV3, TRADES", 53.4, 28.9, 27.2),
        ("MobileNetV3, RSLAD from WRN-34-10", 54.9, 29.1, 28.7),
        ("Dyn-MBV3 student (5.41 M), ProARD", 55.3, 28.6, 27.8),
    ],
}  # fmt: skip


def table1(page: Page) -> None:
    for found, study in page.studies("table1", "## Table 1: students beside networks trained alone"):
        b = study["budget"]
        n_seeds = seeds_of_rows(found)
        differ = min(n_seeds) < max(n_seeds)
        rows = [
            [row["which"], _study.TITLES[row["method"]], *[str(n)] * differ,
             *(_robustness.with_std(row[m]) for m in COLUMNS)]
            for row, n in zip(found["table"], n_seeds, strict=True)
        ]  # fmt: skip
        names = NAMES | {"autoattack": f"AutoAttack ({b['n_auto']} images)"}
        page.table(rows, ["student", "trained", *["seeds"] * differ, *columns(b["n_auto"])])
        page.add(words(found, study))
        if found["comparisons"]:
            differences(
                page, [((row["which"], row["against"]), row["metric"], row) for row in found["comparisons"]], names
            )
        took = list(taken(found["cost"]))
        if took:
            page.add(
                "What a seed's trainings took on average; images of a step count once for each student that it trains:"
            )
            page.table(took, ["trained", "student", "hours", "images a second", "on"])
            page.add(made_on(found["cost"]))
        if study["data"] in PAPER_TABLE:
            papers(page, found, study)
        page.figure(
            f"table1_{slug(study)}", "Accuracy against MMACs for each method", lambda ax, f=found: draw_methods(ax, f)
        )


def words(found: dict[str, Any], study: dict[str, Any]) -> str:
    """Say what the table was measured on and how its networks were trained."""
    b = study["budget"]
    sizes = {
        which: ", ".join(f"{one['mmacs']:.1f} MMACs" for one in archs)
        for which, archs in found["architectures"].items()
    }
    under = f"; found by a search under a limit: {sizes['found']}" * bool(sizes["found"])
    return (
        f"{of_seeds(*seeds_of_rows(found))}, {b['n_test']:,} test images, AutoAttack on the first "
        f"{b['n_auto']} ({study['autoattack']}; not the reference code). Largest: {sizes['largest'].split(', ')[0]}"
        f"{under}. TRADES alone learns from labels for all {b['teacher_epochs'] + b['step_epochs']} epochs; RSLAD and "
        f"both supernets learn from a teacher that had {b['teacher_epochs']}: that may decide between them more than "
        "the method."
    )


def taken(costs: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    """Yield a row for each kind of training: hours of one seed on average, images a second, and on what."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cost in costs.values():
        if "student_images" in cost:
            kinds.setdefault((cost["method"], cost["which"] or ""), []).append(cost)
    for (method, which), own in kinds.items():
        seconds = statistics.mean(cost["training_seconds"] for cost in own)
        images = statistics.mean(cost["student_images"] for cost in own)
        on = " + ".join(dict.fromkeys(cost.get("device", "cpu") for cost in own))
        yield [_study.TITLES[method], which, f"{seconds / 3600:.2f}", f"{images / seconds:,.0f}", on]


def made_on(costs: dict[str, dict[str, Any]]) -> str:
    """Say how long all trainings took together, and which code and machine they were made by, where that is known."""
    hours = sum(cost["training_seconds"] for cost in costs.values()) / 3600
    makers = Counter(
        "not written down"
        if (made := cost.get("made")) is None
        else f"{made['machine']['cpu']}, commit {str(made['commit'])[:8]}"
        for cost in costs.values()
    )
    return (
        f"All {len(costs)} trainings took {hours:.1f} hours, one after the other or two side by side, which seconds "
        f"depend on as on the machine ({'; '.join(f'{n} of them: {maker}' for maker, n in makers.items())})."
    )


def papers(page: Page, found: dict[str, Any], study: dict[str, Any]) -> None:
    """Show the paper's figures."""
    params = found["architectures"]["largest"][0]["params"]
    page.add(
        "The paper's figures, on all training images: its ResNets have 23.5 to 27.2 M parameters, its MobileNetV3s 4.2 "
        f"to 5.4 M, the largest student here {params / 1e6:.2f} M. ProARD took 660 epochs; those of the others are not "
        "given."
    )
    page.table(
        [[row[0], *(f"{value:.1f}" for value in row[1:])] for row in PAPER_TABLE[study["data"]]],
        ["network", *(f"{NAMES[m]}, %" for m in METRICS[:-1])],
    )


def draw_methods(ax: Any, found: dict[str, Any]) -> None:
    """Draw PGD-20 (full) and natural accuracy (dashed) of each method at both sizes."""
    sizes = {which: [one["mmacs"] for one in archs] for which, archs in found["architectures"].items()}
    mmacs = {which: np.mean(values) for which, values in sizes.items() if values}
    for method in dict.fromkeys(row["method"] for row in found["table"]):
        own = sorted((r for r in found["table"] if r["method"] == method), key=lambda r: mmacs[r["which"]])
        x = [mmacs[row["which"]] for row in own]
        for metric, style in (("pgd20", "o-"), ("natural", "s--")):
            y = [100 * row[metric]["mean"] for row in own]
            error = [100 * (row[metric]["std"] or 0) for row in own]
            label = _study.TITLES[method] if metric == "pgd20" else None
            ax.errorbar(x, y, error, fmt=style, color=COLOURS[method], label=label, capsize=3)
    ax.set(xlabel="MMACs", ylabel="accuracy, % (PGD-20 full, natural dashed)", xscale="log")
    ax.figure.legend(fontsize=8, loc="outside lower center", ncols=3)
