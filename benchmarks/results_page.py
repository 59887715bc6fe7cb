"""Builds docs/results.md and its figures from the JSON files under benchmarks/results/, and from nothing else.

    python benchmarks/results_page.py

A section is left out while its files are not there. The paper's own figures (its table 1) are in _table1_section.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _record
import _robustness
import _study
import export
import labelling
import latency
import network_shapes
import numpy as np
import predictor
import resume
import search
import student_overhead
import training_step
from _answers import in_short, n_devices
from _page import COLOURS, NAMES, Page, between, differences, of_seeds, percent, points, slug, training
from _shipped_section import shipped
from _table1_section import table1
from devices import PAPER_EPOCHS, WIDE_EPOCHS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAPER_GAIN = {"natural": 13.0, "pgd20": 14.0}  # best progressive over best random student, Dyn-ResNet, section 5.1


# -- the paper's tables and figures -------------------------------------------------------------------


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
        n_seeds = len(found["means_by_seed"]["natural"]["difference"]["seeds"])
        page.add(
            f"{found['n_students']:,} students on {found['n_images']} test images for the first of {n_seeds} seeds, "
            f"{found['n_students_of_all_seeds']} of them for all. Lines join the students that no other beats in both "
            "accuracies."
        )
        title = "Students' accuracy, first seed"
        page.figure(f"population_{slug(study)}", title, lambda ax, f=found: draw_population(ax, f))


def population_words(found: dict[str, Any], output: str) -> str:
    """Say how the two trainings compare in one output."""
    one, seeds = found["paired"][output], found["means_by_seed"][output]["difference"]
    return (
        f"{NAMES[output]}: progressive minus random {100 * one['mean_difference']:+.2f} points on average, better for "
        f"{one['share_better']:.0%} of the students; best student {100 * one['best_minus_best']:+.1f} points (the "
        f"paper: {PAPER_GAIN[output]:+.0f}). Over seeds: {seeds['verdict']}."
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
        ax.plot(*(100 * front(natural, robust)), color=COLOURS[method], linewidth=1)
    ax.set(xlabel="natural accuracy, % (area: number of students)", ylabel="PGD-20 accuracy, %")
    ax.legend(fontsize=8)


def front(natural: np.ndarray, robust: np.ndarray) -> np.ndarray:
    """Return the pairs that no other pair beats in both, by natural accuracy; shape (2, n)."""
    order = np.lexsort((-robust, -natural))
    best = np.maximum.accumulate(robust[order])
    first = np.concatenate([[True], best[1:] > best[:-1]])
    return np.stack([natural[order][first], robust[order][first]])


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
            NAMES,
        )  # fmt: skip


def devices(page: Page) -> None:
    for found, study in page.studies("devices", "## Figure 8: the cost for N devices"):
        costs = [(f"measured, {which} student, {unit}", one[unit])
                 for which, one in found["measured"].items() for unit in ("macs", "seconds")]  # fmt: skip
        paper = found["paper"] or {}
        costs += [(f"counted, the paper's schedule, {network}, macs", one["macs"]) for network, one in paper.items()]
        rows = [
            [title, *(f"{one[part]:.3g}" for part in ("once", "each", "alone_once", "alone")),
             n_devices(one["break_even_devices"]), n_devices(one["devices_for_60"]), f"{one['ratio']['50']:.1f}"]
            for title, one in costs
        ]  # fmt: skip
        parts = ["supernet, once", "each device", "RSLAD's teacher, once", "each RSLAD"]
        page.table(rows, ["", *parts, "break-even devices", "devices for 60x", "ratio at 50 devices"])
        page.add(device_words(found, study["budget"], study["n_labels"]))
        page.figure(f"devices_{slug(study)}", "Cost against devices", lambda ax, c=costs: draw_devices(ax, c))


def device_words(found: dict[str, Any], budget: dict[str, Any], n_labels: int) -> str:
    """Say what the table of costs shows, what is counted in it, and what the paper says."""
    measured, paper = list(found["measured"].values()), list((found["paper"] or {}).values())
    macs, seconds = ([one[unit]["ratio"]["50"] for one in measured] for unit in ("macs", "seconds"))
    n_seeds = len(measured[0]["seeds"]["rslad"]["seconds"])
    epochs = budget["teacher_epochs"] + budget["step_epochs"]
    text = (
        f"At 50 devices one supernet and 50 searches, each with the labels of the {_study.CANDIDATES} students it "
        f"chooses from, cost {between(macs)} times less in multiply-accumulates than a teacher and 50 RSLAD trainings "
        f"from it, {between(seconds)} times in seconds. "
        f"{'Means over ' * (n_seeds > 1)}{n_seeds} seed{'s' * (n_seeds > 1)}. The supernet's part holds its teacher, "
        f"steps and {n_labels} labels, whose multiply-accumulates are an upper bound; the networks alone share one "
        f"teacher, counted once, and are trained for {epochs} epochs each. Break-even is the number of devices from "
        "which the supernet is cheaper; never says that a device takes more than a sixtieth of a training."
    )
    if paper:
        text += (
            f" The paper says 60 times for 50 devices. Counted from its own schedule (RSLAD for {PAPER_EPOCHS} epochs "
            f"from a WRN-34-10 that is trained for {WIDE_EPOCHS}, both assumed, of a student of mean cost) it is "
            f"{between([one['macs']['ratio']['50'] for one in paper])} times."
        )
    return text


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
            f"is common to them and the predictor's error may be smaller. {predicted_words(found)}"
        )
        title = "Predicted against measured, first seed"
        page.figure(f"predicted_{slug(study)}", title, lambda ax, f=found: draw_predicted(ax, f))


def predicted_words(found: dict[str, Any]) -> str:
    """Say how the predictor's errors compare with the paper's and with how far the students differ."""
    texts = []
    for output, one in found["by_seed"].items():
        larger = one["rmse"]["mean"] > found["outputs"][output]["paper_rmse"]
        texts.append(
            f"on {output.replace('_', ' ')} the error is {'larger' if larger else 'no larger'} than the paper's, and "
            f"{one['r2']['mean']:.0%} of the students' variance is predicted"
        )
    return f"{'; '.join(texts)}.".capitalize()


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
            f"{between(found['n_evaluated'], ',')} students looked at in {found['n_generations']} generations. "
            f"{between(found['n_measured']['front'], 'd')} of the front minus "
            f"{between(found['n_measured']['first'], 'd')} of the first generation that keep the limit, in points ± "
            f"standard error over the seeds, bold where shown: measured {gains} on {found['n_images']} test images; "
            f"predicted {', '.join(predicted_gains(found['means']))} on the {study['budget']['n_val']} validation "
            "images that the predictor's labels are of. The figure shows predictions."
        )
        title = "Generations, first seed"
        page.figure(f"generations_{slug(study)}", title, lambda ax, f=found: draw_generations(ax, f))


def predicted_gains(means: dict[str, Any]) -> list[str]:
    first = means["first"]
    return [
        f"{output.replace('_', ' ')} {100 * (one['predicted']['mean'] - first[output]['predicted']['mean']):+.2f}"
        for output, one in means["front"].items()
    ]


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
            b, recipe = found["settings"]["budget"], found["settings"]["recipe"]
            for part, title in (("schedules", "the same teacher, as many student-steps"), ("batch_norm", "batch norm")):
                rows = [
                    [key, *(_robustness.with_std(row[m]) for m in _robustness.METRICS)]
                    for key, row in found[part].items()
                    if isinstance(row, dict)
                ]
                page.add(f"### {data}: {title}")
                page.table(rows, ["", *(f"{NAMES[m]}, %" for m in _robustness.METRICS)])
                auto = found["autoattack"]
                one_image = 100 / len(auto["students"]) / b["n_auto"]
                page.add(
                    f"{training(b, recipe)}; {b['n_students']} students on {b['n_test']} test images, PGD-20 with "
                    f"steps of {recipe['step_size']:.5f}, AutoAttack ({auto['attack']}) on {len(auto['students'])} of "
                    f"them and {b['n_auto']} images, of which one more in one student is {one_image:.2f} points; seeds "
                    f"{', '.join(map(str, found[part]['seeds']))}."
                )
                if "sandwich" in found[part]:
                    page.add(
                        "The gradients of the sandwich's three students are averaged, not summed: at the same learning "
                        "rate a student-step moves the weights a third as far as in the others, which may be what it "
                        "loses by."
                    )
                page.bullets(f"{text}." for text in found[part]["verdict"].split("; "))
        page.source(name, record)


# -- what else is measured: as the scripts themselves print it ----------------------------------------


def search_text(results: dict[str, Any]) -> str:
    load = results["load_average"]
    return "\n\n".join(
        f"{name} (load average {load[name][0]:.1f} before, {load[name][1]:.1f} after)\n"
        + search.summary(name, results[name])
        for name in search.MEASURES
        if name in results
    )


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
each section stands the command of its last run. Long runs were put together from several: with
`--records benchmarks/results/records` a script goes on from the seeds and networks that are finished.

Weights, students and searches were chosen on images split off from the training part, never on test images.
Differences between methods count as shown where they are larger than twice their standard error over the seeds. With
three seeds one comparison in five passes that by chance, and nothing is corrected for their number: those marked †,
whose 95 % t-interval holds zero, are not to be relied on. Where fewer than all test images are measured on, each seed
draws its own, and all that is compared within a seed is measured on the same; small numbers of images stand beside
their figures.

`FILE.npz` of CIFAR-10 and CIFAR-100 holds x_train, y_train, x_test and y_test: uint8, images of shape (n, 32, 32, 3),
in the order of the official files, on which it depends which images a seed draws. In the one of CIFAR-10 that the
results were made from, 75 training and 20 test images are decoded JPEG copies of the original ones."""


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
