"""The page's sections on the paper's figures: their tables, what they show in words, and the figures drawn again."""

from __future__ import annotations

from typing import Any

import _robustness
import _study
import numpy as np
import predictor
from _answers import n_devices
from _page import COLOURS, NAMES, Page, between, counted, differences, of_seeds, percent, points, shown_either_way, slug
from devices import PAPER_EPOCHS, PAPER_LABELS, WIDE_EPOCHS, ratios_by_seed

PAPER_GAINS = {  # the best progressive student minus the best random one, section 5.1
    "proard_dyn_mobilenetv3": {"natural": 10.0, "pgd20": 5.0},
    "proard_dyn_resnet": {"natural": 13.0, "pgd20": 14.0},
}


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
        gains = next((gain for name, gain in PAPER_GAINS.items() if study["model"].startswith(name)), {})
        page.bullets(population_words(found, output, gains.get(output)) for output in found["paired"])
        n_seeds = len(found["means_by_seed"]["natural"]["difference"]["seeds"])
        page.add(
            f"{found['n_students']:,} students on {found['n_images']} test images for the first of {n_seeds} seeds, "
            f"{found['n_students_of_all_seeds']} of them for all. Lines join the students that no other beats in both "
            "accuracies."
        )
        title = "Students' accuracy, first seed"
        page.figure(f"population_{slug(study)}", title, lambda ax, f=found: draw_population(ax, f))


def population_words(found: dict[str, Any], output: str, paper: float | None) -> str:
    """Say how the two trainings compare in one output, and whether the paper's gain is there."""
    one, seeds = found["paired"][output], found["means_by_seed"][output]["difference"]
    return (
        f"{NAMES[output]}: progressive minus random {100 * one['mean_difference']:+.2f} points on average, better for "
        f"{one['share_better']:.0%} of the students; best student {100 * one['best_minus_best']:+.1f} points"
        + ("" if paper is None else f" (the paper: {paper:+.0f}, {reached(100 * one['best_minus_best'], paper)})")
        + f". Over seeds: {seeds['verdict']}."
    )


def reached(gain: float, paper: float) -> str:
    return "as much is seen here" if gain >= paper else "which is not seen here"


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
            [((row["student"], other), metric, row["against"][other][metric])
             for row in found["students"] for other in row["against"] for metric in metrics],
            NAMES,
        )  # fmt: skip
        page.add(widths_words(found))


def widths_words(found: dict[str, Any]) -> str:
    """Say whether what the paper reads from its figure 6 is seen here."""
    changes = [change for row in found["students"] for change in row["against"]["random"].values()]
    better, worse = map(counted, shown_either_way(changes))
    least = found["students"][0]
    behind = ", ".join(f"{NAMES[metric]} {points(change)}" for metric, change in least["against"]["teacher"].items())
    return (
        "The paper's students are better in all when trained progressively, and a narrow one nearly equals the largest "
        f"network trained with TRADES. Here progressive training is shown to be better in {better} of "
        f"{len(changes)} comparisons with random sampling, worse in {worse}; the narrowest student "
        f"({least['student']}) minus the largest trained with TRADES, in points: {behind}."
    )


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
        f"{'Means over ' * (n_seeds > 1)}{n_seeds} seed{'s' * (n_seeds > 1)}{by_seed(found) * (n_seeds > 1)}. "
        "Seconds are those of the machines that trained each seed, some beside other work: they compare less well than "
        "multiply-accumulates. The supernet's part holds its teacher, "
        f"steps and {n_labels} labels, whose multiply-accumulates are an upper bound; the networks alone share one "
        f"teacher, counted once, and are trained for {epochs} epochs each. Break-even is the number of devices from "
        "which the supernet is cheaper; never says that a device takes more than a sixtieth of a training."
    )
    if paper:
        text += (
            f" The paper says 60 times for 50 devices. Counted from its own schedule (RSLAD for {PAPER_EPOCHS} epochs "
            f"from a WRN-34-10 that is trained for {WIDE_EPOCHS}, both assumed, of a student of mean cost) it is "
            f"{between([one['macs']['ratio']['50'] for one in paper])} times. {PAPER_LABELS:,} labels on 10,000 images "
            f"are {between([100 * one['labelling'] / one['macs']['once'] for one in paper], '.0f')} % of the "
            "supernet's cost there, as an upper bound; without them it is "
            f"{between([without_labels(one) for one in paper])} times."
        )
    return text


def by_seed(found: dict[str, Any]) -> str:
    """Return the ratios at 50 devices of each seed alone."""
    ranges = (
        f"{which} {' and '.join(between(ratios_by_seed(one['seeds'], unit)) for unit in ('macs', 'seconds'))}"
        for which, one in found["measured"].items()
    )
    return f" (each alone, in multiply-accumulates and in seconds: {'; '.join(ranges)})"


def without_labels(one: dict[str, Any]) -> float:
    """Return the ratio at 50 devices of the paper's schedule if labels cost nothing."""
    return float((50 * one["rslad"] + one["rslad_teacher"]) / sum(one["stages"].values()))


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
            paper = " and ".join(f"{bar:.4f}" for bar in papers(found, output))
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
        error = " and ".join(
            f"{'larger' if one['rmse']['mean'] > bar else 'no larger'} than the paper's {bar:.4f}"
            for bar in papers(found, output)
        )
        texts.append(
            f"on {output.replace('_', ' ')} the error is {error}, and {one['r2']['mean']:.0%} of the students' "
            "variance is predicted"
        )
    return f"{'; '.join(texts)}.".capitalize()


def papers(found: dict[str, Any], output: str) -> list[float]:
    """Return the paper's RMSE in its section 5.2 and, where that is another, in its abstract."""
    return list(dict.fromkeys([found["outputs"][output]["paper_rmse"], predictor.BARS[output]]))


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
        rows[2:2] = [
            ["last, all", output.replace("_", " "), _robustness.with_std(one, 1), ""]
            for output, one in found["last_predicted"].items()
        ]
        page.table(rows, ["generation", "", "predicted on average, %", "measured on average, %"])
        gains = ", ".join(f"{output.replace('_', ' ')} {points(one)}" for output, one in found["gains"].items())
        page.add(
            f"{of_seeds(len(found['gains']['robust_accuracy']['seeds']))}. Under {found['max_mmacs']:.1f} MMACs, "
            f"{between(found['n_evaluated'], ',')} students looked at in {found['n_generations']} generations. "
            f"{between(found['n_measured']['front'], 'd')} of the front minus "
            f"{between(found['n_measured']['first'], 'd')} of the first generation that keep the limit, in points ± "
            f"standard error over the seeds, bold where shown: measured {gains} on {found['n_images']} test images; "
            f"predicted {', '.join(predicted_gains(found['means']))} on the {study['budget']['n_val']} validation "
            f"images that the predictor's labels are of. {generations_words(found)} The figure shows predictions."
        )
        title = "Generations, first seed"
        page.figure(f"generations_{slug(study)}", title, lambda ax, f=found: draw_generations(ax, f))


def generations_words(found: dict[str, Any]) -> str:
    """Say whether the front is better at the same cost, as the paper says of its figure 10."""
    first, last = (_robustness.with_std(found["mmacs"][group], 1, 1) for group in ("first", "front"))
    better = [name.replace("_", " ") for name, one in found["gains"].items() if one["shown"] and one["mean"] > 0]
    return (
        "The paper's front is better in both at the same cost. Here it is shown to be better in "
        f"{' and '.join(better) or 'neither'}, at {last} MMACs on average against {first} of the first generation: all "
        "keep the limit, but the front comes closer to it, and what is due to cost is not told from what is due to the "
        "search."
    )


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
