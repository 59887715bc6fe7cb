"""Builds docs/results.md and its figures from the JSON files under benchmarks/results/, and from nothing else.

    python benchmarks/results_page.py

A section is left out while its files are not there. The paper's own figures (its table 1) are written down here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import _record
import _robustness
import _study
import export
import labelling
import latency
import matplotlib as mpl
import network_shapes
import numpy as np
import predictor
import resume
import search
import student_overhead
import training_step
from _alone import DEVICES, how_trained, part_of_time, trained_alone
from matplotlib.figure import Figure
from tabulate import tabulate

mpl.use("Agg")
DOCS = Path(__file__).resolve().parents[1] / "docs"
METRICS = _robustness.TABLE
NAMES = _robustness.NAMES
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
PAPER_GAIN = {"natural": 13.0, "pgd20": 14.0}  # best progressive over best random student, Dyn-ResNet, section 5.1
PARTS = (Fraction(1), Fraction(1, DEVICES))  # of the supernet's time, for which networks alone are compared with it
COLOURS = {"paper": "tab:blue", "random": "tab:orange", "trades": "tab:green", "rslad": "tab:red", "natural": "0.5"}


class Page:
    """The text and the figures that are built."""

    def __init__(self, results: Path, docs: Path) -> None:
        self.results, self.docs = results, docs
        self.parts: list[str] = []

    def files(self, stem: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the names and contents of the result files of a script, smoke runs aside."""
        for path in sorted(self.results.glob(f"{stem}*.json"), key=lambda path: path.stem.split("_")):
            if "smoke" not in path.stem:
                yield path.name, json.loads(path.read_text())

    def studies(self, stem: str, title: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield the results and the study of each file of a script, between a heading and where they come from."""
        for number, (name, record) in enumerate(self.files(stem)):
            found, study = record["results"], record["results"]["study"]
            self.add(*([] if number else [title]), f"### {study['data']}", settings(study))
            yield found, study
            self.source(name, record)

    def add(self, *parts: str) -> None:
        self.parts += parts

    def bullets(self, texts: Iterable[str]) -> None:
        lines = [f"- {text}" for text in texts]
        if lines:
            self.parts.append("\n".join(lines))

    def table(self, rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> None:
        self.add(tabulate(rows, headers, tablefmt="github", disable_numparse=True))

    def printed(self, text: str) -> None:
        self.add(f"```text\n{text.rstrip()}\n```")

    def source(self, name: str, record: dict[str, Any]) -> None:
        """Say where figures come from."""
        machine, version = record["machine"], record["versions"]
        changed = " with changes" if record.get("modified") else ""
        minutes = round(record["seconds"] / 60)
        lasted = f"{minutes} minute{'s' * (minutes != 1)}"
        self.add(
            f"<sub>`{record['command']}`, {record['date'][:10]}, {lasted} in its last run, "
            f"commit {str(record['commit'])[:8]}{changed}, {machine['cores']} cores ({machine['cpu']}), torch "
            f"{version['torch']}: [{name}](../benchmarks/results/{name})</sub>"
        )

    def figure(self, name: str, title: str, draw: Callable[[Any], None], width: float = 5.5) -> None:
        """Draw one pair of axes and show it."""
        figure = Figure(figsize=(width, 4), layout="constrained")
        draw(figure.add_subplot())
        path = self.docs / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100, metadata={"Software": None})
        self.add(f"![{title}](figures/{name}.png)")

    def write(self) -> Path:
        path = self.docs / "results.md"
        path.write_text("\n\n".join(self.parts) + "\n")
        return path


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def settings(study: dict[str, Any]) -> str:
    """Describe a study in a sentence."""
    b, r = study["budget"], study["recipe"]
    return (
        f"Budget `{study['budget_name']}`: `{study['model']}`, {b['n_train']:,} training images, teacher "
        f"{b['teacher_epochs']} epochs ({r['teacher_loss'].upper()}), steps {b['step_epochs']} epochs "
        f"({r['loss'].upper()}), inner attack {r['attack']}, {study['precision']}. Attack: {study['attack']}."
    )


# -- what the figures answer ------------------------------------------------------------------------


def in_short(page: Page) -> None:
    """Answer a reader's questions first, each by a table with a line for a file's figures."""
    page.add("## In short")
    sampling = list(progressive_minus_random(page))
    if sampling:
        page.add(
            "**Does progressive training beat random sampling?** Progressive minus random, in points on average over "
            "many students, from the same teacher with as many student-steps; ± standard error over the seeds, in bold "
            "where shown."
        )
        page.table(sampling, ["data", "students", "seeds", *(NAMES[m] for m in _robustness.METRICS)])
    alone = list(found_minus_alone(page))
    if alone:
        page.add(
            "**Does a found student beat the same network trained alone**, for as many epochs as teacher and steps "
            "together? Found minus alone, in points."
        )
        page.table(alone, ["data", "minus", "seeds", *(NAMES[m] for m in METRICS)])
    packaged = [row for _, record in page.files("shipped") for row in shipped_minus_others(record["results"], PARTS)]
    if packaged:
        page.add(
            "**Is a student of the supernet that comes with the package as good as the same network trained alone**, "
            f"for as long as the supernet or for a {DEVICES}th of its time, or as itself when tuned for so long? The "
            "supernet's minus the other, in points, one training of each."
        )
        page.table(packaged, ["student", "minus", *(NAMES[m] for m in METRICS)])
    costs = list(costs_of_devices(page))
    if costs:
        page.add("**What does it save?** RSLAD for each device over one supernet for all, in multiply-accumulates.")
        page.table(
            costs, ["data", "student", "devices from which it is cheaper", "at 50 devices", "devices for 60 times"]
        )


def progressive_minus_random(page: Page) -> Iterator[list[str]]:
    for _, record in page.files("schedules"):
        for data, found in record["results"]["data"].items():
            own, other = (found["schedules"][method] for method in (_study.PROGRESSIVE, _study.RANDOM))
            changes = [_robustness.compare(own[m]["seeds"], other[m]["seeds"]) for m in _robustness.METRICS]
            n = found["settings"]["budget"]["n_students"]
            yield [data, str(n), str(len(changes[0]["seeds"])), *map(points, changes)]
    for _, record in page.files("population"):
        found = record["results"]
        changes = [found["means_by_seed"][metric]["difference"] for metric in ("natural", "pgd20")]
        n, n_seeds = found["n_students_of_all_seeds"], len(changes[0]["seeds"])
        yield [f"{found['study']['data']}, figures 2 and 7", str(n), str(n_seeds), *map(points, changes), ""]


def found_minus_alone(page: Page) -> Iterator[list[str]]:
    for _, record in page.files("table1"):
        found = record["results"]
        for method in _study.ALONE:
            changes = {r["metric"]: r for r in found["comparisons"] if (r["which"], r["against"]) == ("found", method)}
            n = len(changes["natural"]["seeds"])
            yield [found["study"]["data"], _study.TITLES[method], str(n), *(points(changes[m]) for m in METRICS)]


def costs_of_devices(page: Page) -> Iterator[list[str]]:
    for _, record in page.files("devices"):
        for which, one in record["results"]["measured"].items():
            cost = one["macs"]
            even, sixty = (n_devices(cost[name]) for name in ("break_even_devices", "devices_for_60"))
            yield [record["results"]["study"]["data"], which, even, f"{cost['ratio']['50']:.1f} times", sixty]


# -- the supernet that ships ------------------------------------------------------------------------


def shipped(page: Page) -> None:
    for name, record in page.files("shipped"):
        found = record["results"]
        page.add("## The supernet that comes with the package")
        if "pack" in found:
            pack = found["pack"]
            rmse = {output: score["rmse"] for output, score in pack["predictor"].items()}
            calibration = pack["calibration"]["synthetic"]
            page.add(
                f"Trained in {pack['training_seconds'] / 3600:.2f} hours on {pack['cores']} "
                f"core{'s' * (pack['cores'] > 1)} ({pack['macs']:.3g} multiply-accumulates), "
                f"{pack['n_labels']} labels, {pack['bytes'] / 1e6:.2f} MB in all. The predictor's held-out RMSE is "
                + " and ".join(f"{value:.4f} ({output.replace('_', ' ')})" for output, value in rmse.items())
                + f". Calibrated on its synthetic images instead of {pack['calibration']['n_real']} real ones, "
                f"students change by {100 * calibration['natural']:+.2f} points naturally and "
                f"{100 * calibration['pgd10']:+.2f} under PGD-10, on average."
            )
        n_auto = found["budget"]["n_auto"]
        titles = [*(f"{NAMES[m]}, %" for m in METRICS[:-1]), f"AutoAttack, % ({n_auto} images)"]
        whole = {row["student"]: percent(row["autoattack"]) for row in found.get("attack", [])}
        rows = [["the supernet's", *shipped_row(row), whole.get(row["student"], "")] for row in found.get("card", [])]
        rows += [
            [f"{_kind(row)}, {part_of_time(row['part'])} ({row['epochs']} epochs)", *shipped_row(row), ""]
            for row in found.get("alone", [])
        ]
        page.add(found["measurement"])
        page.table(rows, ["trained", "student", *titles, "AutoAttack, % (all images)"])
        largest = next((row for row in found.get("card", []) if row["student"] == "largest"), None)
        if largest is not None:
            held = largest["natural"] >= 0.70 and largest["pgd20"] >= 0.43
            page.add(
                f"Its largest student has {percent(largest['natural'])} % natural and {percent(largest['pgd20'])} % "
                f"PGD-20 accuracy; the bar was 70 and 43: {'held' if held else 'missed'}."
            )
        alone = next((r for r in found.get("alone", []) if r["student"] == "largest" and r["part"] == 1), None)
        if largest is not None and alone is not None:
            less = 100 * (alone["pgd20"] - largest["pgd20"])
            page.add(
                f"Alone for the whole time it has {less:+.2f} points of PGD-20 more; at most 3 was the bar: "
                f"{'held' if less <= 3 else 'missed'}."
            )
        others = list(shipped_minus_others(found))
        if others:
            page.add(
                "The supernet's students minus the same networks otherwise trained, in points, one training of each:"
            )
            page.table(others, ["student", "minus", *titles])
        left = list(not_trained_yet(found))
        if left:
            page.add(f"Not trained alone yet: {', '.join(left)}.")
        page.source(name, record)


def shipped_row(row: dict[str, Any]) -> list[str]:
    return [row["student"], *(percent(row[m]) for m in METRICS)]


def _kind(row: dict[str, Any]) -> str:
    return "the supernet's, tuned" if row["tuned"] else "alone"


def shipped_minus_others(found: dict[str, Any], parts: Collection[Fraction] | None = None) -> Iterator[list[str]]:
    """Compare the supernet's students with the same networks trained alone or tuned, for these parts of its time."""
    card = {row["student"]: row for row in found.get("card", [])}
    for row in found.get("alone", []):
        own = card.get(row["student"])
        if own and (parts is None or row["part"] in map(float, parts)):
            yield [row["student"], how_trained(row), *(f"{100 * (own[m] - row[m]):+.1f}" for m in METRICS)]


def not_trained_yet(found: dict[str, Any]) -> Iterator[str]:
    """Yield the students that are still to be trained alone, and for how long."""
    done = {(row["student"], row["part"], row["tuned"]) for row in found.get("alone", [])}
    for name, part, tuned in trained_alone(row["student"] for row in found.get("card", [])):
        if part in PARTS and (name, float(part), tuned) not in done:
            yield f"{name} ({'tuned, ' * tuned}{part_of_time(part)})"


# -- the paper's tables and figures -------------------------------------------------------------------


def table1(page: Page) -> None:
    for found, study in page.studies("table1", "## Table 1: students beside networks trained alone"):
        b = study["budget"]
        rows = [
            [row["which"], _study.TITLES[row["method"]], *(_robustness.with_std(row[m]) for m in METRICS)]
            for row in found["table"]
        ]
        page.table(rows, ["student", "trained", *(f"{NAMES[m]}, %" for m in METRICS)])
        sizes = {
            which: ", ".join(f"{one['mmacs']:.1f} MMACs" for one in archs)
            for which, archs in found["architectures"].items()
        }
        page.add(
            f"{of_seeds(len(found['table'][0]['natural']['seeds']))}, {b['n_test']:,} test "
            f"images, AutoAttack on the first {b['n_auto']} ({study['autoattack']}; not the reference code). Largest: "
            f"{sizes['largest'].split(', ')[0]}; found under a fifth of it: {sizes['found']}. TRADES alone learns from "
            f"labels for all {b['teacher_epochs'] + b['step_epochs']} epochs; RSLAD and both supernets learn from a "
            f"teacher that had {b['teacher_epochs']}: with so few, that may decide between them more than the method."
        )
        differences(page, [((row["which"], row["against"]), row["metric"], row) for row in found["comparisons"]])
        if study["data"] in PAPER_TABLE:
            page.add("The paper's figures, of networks 20 to 50 times as large and some 700 epochs on all images:")
            page.table(
                [[row[0], *(f"{value:.1f}" for value in row[1:])] for row in PAPER_TABLE[study["data"]]],
                ["network", *(f"{NAMES[m]}, %" for m in METRICS[:-1])],
            )
        page.figure(
            f"table1_{study['data']}", "Accuracy against MMACs for each method", lambda ax, f=found: draw_methods(ax, f)
        )


def of_seeds(n: int) -> str:
    return "One seed" if n == 1 else f"Mean ± standard deviation over {n} seeds"


Difference = tuple[tuple[str, str], str, dict[str, Any]]  # student and trained how; metric; from `compare`


def differences(page: Page, rows: Sequence[Difference]) -> None:
    """Show what a progressive supernet's students have over others, and say in words what that shows."""
    metrics = list(dict.fromkeys(metric for _, metric, _ in rows))
    by_pair: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for pair, metric, found in rows:
        by_pair.setdefault(pair, {})[metric] = found
    n_seeds = len(rows[0][2]["seeds"])
    page.add(
        f"{_study.TITLES[_study.PROGRESSIVE]} minus the others, in points"
        + (" ± standard error over the seeds, in bold where shown:" if n_seeds > 1 else ", in one seed:")
    )
    page.table(
        [[student, _study.TITLES[other], *(points(found[m]) for m in metrics)]
         for (student, other), found in by_pair.items()],
        ["student", "minus", *(NAMES[m] for m in metrics)],
    )  # fmt: skip
    if n_seeds == 1:
        page.add("One seed: which of these differences another seed would show again, nobody can say.")
        return
    students = dict.fromkeys(student for student, _ in by_pair)
    page.bullets(
        f"{student}, {NAMES[metric]}: {shown({o: found[metric] for (s, o), found in by_pair.items() if s == student})}."
        for student in students
        for metric in metrics
    )


def points(found: dict[str, Any]) -> str:
    """Return a difference in points with its standard error, in bold where it is shown, marked where barely."""
    text = f"{100 * found['mean']:+.2f}"
    if found["standard_error"] is None:
        return text
    text += f" ± {100 * found['standard_error']:.2f}"
    if not found["shown"]:
        return text
    low, high = found["t_interval"]
    return f"**{text}**" + (" †" if low <= 0 <= high else "")


def shown(against: dict[str, dict[str, Any]]) -> str:
    """Say in words what progressive training is shown to win over and to lose to."""
    groups: dict[str, list[str]] = {}
    for other, found in against.items():
        word = (
            "no difference shown from" if not found["shown"] else "better than" if found["mean"] > 0 else "worse than"
        )
        groups.setdefault(word, []).append(_study.TITLES[other])
    return "; ".join(f"{word} {' and '.join(others)}" for word, others in groups.items())


def draw_methods(ax: Any, found: dict[str, Any]) -> None:
    """Draw PGD-20 (full) and natural accuracy (dashed) of each method at both sizes."""
    mmacs = {which: np.mean([one["mmacs"] for one in archs]) for which, archs in found["architectures"].items()}
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


def population(page: Page) -> None:
    for found, study in page.studies(
        "population", "## Figures 2 and 7: many students, progressive against random sampling"
    ):
        rows = [
            [_study.TITLES[method], NAMES[output], *(percent(one[k]) for k in ("mean", "std", "worst", "best"))]
            for method, outputs in found["distribution"].items()
            for output, one in outputs.items()
        ]
        page.table(rows, ["trained", "accuracy", "mean, %", "std", "worst", "best"])
        page.bullets(population_words(found, output) for output in found["paired"])
        page.add(
            f"{found['n_students']:,} students on {found['n_images']} test images for the first seed, "
            f"{found['n_students_of_all_seeds']} of them for all."
        )
        title = "Students' accuracy, first seed"
        page.figure(f"population_{study['data']}", title, lambda ax, f=found: draw_population(ax, f))


def population_words(found: dict[str, Any], output: str) -> str:
    """Say how the two trainings compare in one output."""
    one, seeds = found["paired"][output], found["means_by_seed"][output]["difference"]
    return (
        f"{NAMES[output]}: progressive minus random {100 * one['mean_difference']:+.2f} points on average, better for "
        f"{one['share_better']:.0%} of the students; best student {100 * one['best_minus_best']:+.1f} points (the "
        f"paper: {PAPER_GAIN[output]:+.0f}, against a baseline that began with random weights and half the budget). "
        f"Over seeds: {seeds['verdict']}."
    )


def draw_population(ax: Any, found: dict[str, Any]) -> None:
    aside = 25 / found["n_images"]  # points: accuracies are counts of images, and many students share a place
    for method, shift in (("random", aside), ("paper", -aside)):
        students = found["students"][method]
        pairs = np.array([students["natural"], students["pgd20"]])
        (natural, robust), counts = np.unique(pairs, axis=1, return_counts=True)
        ax.scatter(
            100 * natural + shift, 100 * robust, s=3 * counts, alpha=0.7, linewidths=0, color=COLOURS[method],
            label=_study.TITLES[method],
        )  # fmt: skip
    ax.set(xlabel="natural accuracy, % (area: number of students)", ylabel="PGD-20 accuracy, %")
    ax.legend(fontsize=8)


def widths(page: Page) -> None:
    for found, _ in page.studies("widths", "## Figure 6: one dimension at a time"):
        metrics = ("natural", "fgsm", "pgd20")
        rows = [
            [row["student"], f"{row['mmacs']:.1f}", _study.TITLES[method]]
            + [_robustness.with_std(row[method][metric]) for metric in metrics]
            for row in found["students"]
            for method in ("paper", "random")
        ]
        line = found["largest_with_trades"]
        rows.append(["largest", "", _study.TITLES["teacher"], *(_robustness.with_std(line[x]) for x in metrics)])
        page.table(rows, ["student", "MMACs", "trained", *(f"{NAMES[m]}, %" for m in metrics)])
        differences(
            page,
            [((row["student"], "random"), m, _robustness.compare(row["paper"][m]["seeds"], row["random"][m]["seeds"]))
             for row in found["students"] for m in metrics],
        )  # fmt: skip


def devices(page: Page) -> None:
    for found, study in page.studies("devices", "## Figure 8: the cost for N devices"):
        costs = [(f"measured, {which} student, {unit}", one[unit])
                 for which, one in found["measured"].items() for unit in ("macs", "seconds")]  # fmt: skip
        paper = found["paper"] or {}
        costs += [(f"counted, the paper's schedule, {network}, macs", one["macs"]) for network, one in paper.items()]
        rows = [
            [title, f"{one['once']:.3g}", f"{one['alone']:.3g}", n_devices(one["break_even_devices"]),
             n_devices(one["devices_for_60"]), f"{one['ratio']['50']:.1f}"]
            for title, one in costs
        ]  # fmt: skip
        page.table(rows, ["", "supernet", "one RSLAD", "break-even devices", "devices for 60x", "ratio at 50 devices"])
        page.add(
            "Break-even is the number of devices from which on one supernet and a search for each cost less than a "
            "training for each. The paper's factor of 60 is one of many devices, and stands in the last column but "
            "one; never says that each device's own search takes more than a sixtieth of a training."
        )
        page.figure(f"devices_{study['data']}", "Cost against devices", lambda ax, c=costs: draw_devices(ax, c))


def n_devices(n: int | None) -> str:
    return "never" if n is None else f"{n:,}"


def draw_devices(ax: Any, costs: list[tuple[str, dict[str, Any]]]) -> None:
    for title, one in costs:
        n = [int(k) for k in one["ratio"]]
        ax.plot(n, list(one["ratio"].values()), "o-", markersize=3, label=title)
    ax.axhline(1, color="0.7", linewidth=1)
    ax.axhline(60, color="0.7", linewidth=1, linestyle="--")
    ax.set(xscale="log", yscale="log", xlabel="devices", ylabel="separate RSLAD over one supernet")
    ax.legend(fontsize=7)


def predicted(page: Page) -> None:
    for found, study in page.studies("predicted", "## Figure 9: predicted against measured"):
        rows = []
        for output, one in found["by_seed"].items():
            rmse, *errors = (predictor.with_std(one[name]) for name in ("rmse", "label_noise", "std_of_students"))
            others = (predictor.with_std(one[name], digits=2) for name in ("kendall_tau", "r2"))
            paper = f"{found['outputs'][output]['paper_rmse']:.4f}"
            rows.append([output.replace("_", " "), rmse, paper, *errors, *others])
        page.table(rows, ["", "RMSE", "the paper's", "chance in labels", "students' std", "tau", "R2"])
        n_seeds = len(found["by_seed"]["robust_accuracy"]["rmse"]["seeds"])
        fewer = f" ({found['n_held_of_other_seeds']} in the other seeds)" if n_seeds > 1 else ""
        page.add(
            f"{of_seeds(n_seeds)}, {found['n_labels']} students learned from, {found['n_held']} others compared"
            f"{fewer}, labels on {found['n_images']} validation images. Chance in labels is an accuracy's standard "
            "deviation over draws of so many images; all students are measured on the same ones, so that much of it "
            "is common to them and the predictor's error may be smaller."
        )
        title = "Predicted against measured, first seed"
        page.figure(f"predicted_{study['data']}", title, lambda ax, f=found: draw_predicted(ax, f))


def draw_predicted(ax: Any, found: dict[str, Any]) -> None:
    for output, colour in (("natural_accuracy", "tab:blue"), ("robust_accuracy", "tab:red")):
        one = found["outputs"][output]
        x, y = 100 * np.array(one["measured"]), 100 * np.array(one["predicted"])
        ax.scatter(x, y, s=8, alpha=0.6, color=colour, label=output.replace("_", " "))
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color="0.6", linewidth=1)
    ax.set(xlabel="measured, %", ylabel="predicted, %")
    ax.legend(fontsize=8)


def generations(page: Page) -> None:
    for found, study in page.studies("generations", "## Figure 10: the search's first and last generation"):
        rows = [
            [group, output.replace("_", " "), *(_robustness.with_std(one[k], 1) for k in ("predicted", "measured"))]
            for group, outputs in found["means"].items()
            for output, one in outputs.items()
        ]
        page.table(rows, ["students", "", "predicted on average, %", "measured on average, %"])
        gains = ", ".join(f"{output.replace('_', ' ')} {points(one)}" for output, one in found["gains"].items())
        page.add(
            f"{of_seeds(len(found['gains']['robust_accuracy']['seeds']))}. Under {found['max_mmacs']:.1f} MMACs, "
            f"{found['n_evaluated']:,} students looked at in {found['n_generations']} generations. Ten of the front "
            "beside ten of the first generation that keep the limit, measured on "
            f"{found['n_images']} test images: {gains} points, ± standard error over the seeds."
        )
        title = "Generations, first seed"
        page.figure(f"generations_{study['data']}", title, lambda ax, f=found: draw_generations(ax, f))


def draw_generations(ax: Any, found: dict[str, Any]) -> None:
    for one, colour in zip(found["generations"], ("tab:orange", "tab:blue"), strict=True):
        keep = np.array(one["feasible"])
        x, y = (100 * np.array(one[o])[keep] for o in ("natural_accuracy", "robust_accuracy"))
        ax.scatter(x, y, s=10, alpha=0.5, color=colour, label=f"generation {one['number']}, predicted")
    front = [[100 * row[o] for row in found["front"]] for o in ("natural_accuracy", "robust_accuracy")]
    ax.scatter(*front, s=16, facecolors="none", edgecolors="k", label="front, predicted")
    ax.set(xlabel="natural accuracy, %", ylabel="PGD-20 accuracy, %")
    ax.legend(fontsize=8)


def schedules(page: Page) -> None:
    for number, (name, record) in enumerate(page.files("schedules")):
        page.add(*([] if number else ["## Schedules and batch norm choices"]))
        for data, found in record["results"]["data"].items():
            b = found["settings"]["budget"]
            for part, title in (("schedules", "the same teacher, as many student-steps"), ("batch_norm", "batch norm")):
                rows = [
                    [key, *(_robustness.with_std(row[m]) for m in _robustness.METRICS)]
                    for key, row in found[part].items()
                    if isinstance(row, dict)
                ]
                page.add(f"### {data}: {title}")
                page.table(rows, ["", *(f"{NAMES[m]}, %" for m in _robustness.METRICS)])
                auto = found["autoattack"]
                page.add(
                    f"{b['n_train']:,} training images, teacher {b['teacher_epochs']} epochs, steps "
                    f"{b['step_epochs']}; {b['n_students']} students on {b['n_test']} test images, AutoAttack "
                    f"({auto['attack']}) on {len(auto['students'])} of them and {b['n_auto']} images; seeds "
                    f"{', '.join(map(str, found[part]['seeds']))}."
                )
                page.bullets(f"{text}." for text in found[part]["verdict"].split("; "))
        page.source(name, record)


# -- what else is measured: as the scripts themselves print it ----------------------------------------


def search_text(results: dict[str, Any]) -> str:
    return "\n\n".join(f"{name}\n{search.summary(name, results[name])}" for name in search.MEASURES if name in results)


def step_text(results: dict[str, Any]) -> str:
    return training_step.table(
        {model: {k: v for k, v in found.items() if k != "batch"} for model, found in results["supernets"].items()}
    )


PRINTED: dict[str, tuple[Any, Callable[[dict[str, Any]], str]]] = {
    "predictor": (predictor, lambda results: predictor.text(results["data"])),
    "search": (search, search_text),
    "labelling": (labelling, lambda results: labelling.table(results["data"])),
    "export": (export, lambda results: export.table(results["supernets"])),
    "latency": (latency, lambda results: latency.summary(results["rows"])),
    "training_step": (training_step, step_text),
    "student_overhead": (student_overhead, lambda results: student_overhead.table(results["supernets"])),
    "resume": (resume, lambda results: resume.table(results["trials"])),
    "network_shapes": (network_shapes, lambda results: network_shapes.table(results["rows"])),
}


def printed(page: Page) -> None:
    for stem, (module, text) in PRINTED.items():
        for number, (name, record) in enumerate(page.files(stem)):
            page.add(*([] if number else [f"## {module.__doc__.splitlines()[0].rstrip('.')}"]))
            page.printed(text(record["results"]))
            page.source(name, record)


SECTIONS = (in_short, shipped, table1, population, widths, devices, predicted, generations, schedules, printed)
INTRODUCTION = """\
# Results

Every figure on this page was read from a file under `benchmarks/results/` by `python benchmarks/results_page.py`; under
each section stands the command that makes the file again. No figure was chosen on the test images: weights, students
and searches were chosen on images split off from the training part. Differences between methods count as shown where
they are larger than twice their standard error over the seeds; † marks those whose 95 % t-interval, wide with two or
three seeds, holds zero all the same. Long runs were put together from several: with
`--records benchmarks/results/records` a script goes on from the seeds and networks that are finished."""


def main(argv: Sequence[str] | None = None) -> Path:
    """Build the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=_record.RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    args = parser.parse_args(argv)
    page = Page(args.results, args.docs)
    page.add(INTRODUCTION)
    for section in SECTIONS:
        section(page)
    path = page.write()
    print("wrote", path)
    return path


if __name__ == "__main__":
    main()
