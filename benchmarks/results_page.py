"""Builds docs/results.md and its figures from the JSON files under benchmarks/results/, and from nothing else.

    python benchmarks/results_page.py

A section is left out while its files are not there. The paper's own figures are constants of _table1_section.py,
_figures_section.py and the scripts that measure the same, and the bars that are held or missed those of the scripts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _record
import _robustness
import export
import labelling
import latency
import network_shapes
import predictor
import resume
import search
import student_overhead
import training_step
from _answers import in_short
from _figures_section import devices, generations, population, predicted, widths
from _page import NAMES, Page, training
from _shipped_section import shipped
from _table1_section import table1

DOCS = Path(__file__).resolve().parents[1] / "docs"


# -- schedules --------------------------------------------------------------------------------------


def schedules(page: Page) -> None:
    for number, (name, record) in enumerate(page.files("schedules")):
        page.add(*([] if number else ["## Schedules and batch norm choices"]))
        for data, found in record["results"]["data"].items():
            b, recipe = found["settings"]["budget"], found["settings"]["recipe"]
            for part, title in (("schedules", "the same teacher, as many student-steps"), ("batch_norm", "batch norm")):
                metrics = [*_robustness.METRICS[:-1], "pgd20_of_autoattacked", _robustness.METRICS[-1]]
                rows = [
                    [key, *(_robustness.with_std(row[m]) for m in metrics)]
                    for key, row in found[part].items()
                    if isinstance(row, dict)
                ]
                auto = found["autoattack"]
                few = f" ({len(auto['students'])} students, {b['n_auto']} images)"
                names = [*(NAMES[m] for m in metrics[:-2]), NAMES["pgd20"] + few, NAMES["autoattack"] + few]
                page.add(f"### {data}: {title}")
                page.table(rows, ["", *(f"{name}, %" for name in names)])
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
                        "rate a student-step moves the weights a third as far as in the others, which may be a reason "
                        "where it loses."
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

Every measured figure on this page was read from a file under `benchmarks/results/` by
`python benchmarks/results_page.py`; under each section stands the command of its last run, with its commit, machine and
time. Long runs were put together from several: with `--records benchmarks/results/records` a script goes on from the
seeds and networks that are finished, and the last run may have done no more than gather them.

Weights, students and searches were chosen on images split off from the training part. The recipe of the supernet that
comes with the package was changed after its students had been measured on test images (below, where its figures are).
Differences between methods count as shown where they are larger than twice their standard error over the seeds, which
is taken as no smaller than what one more image in one student changes. With three seeds one comparison in five passes
that by chance, and nothing is corrected for their number: those marked †, whose 95 % t-interval holds zero, are not to
be relied on. Where fewer than all test images are measured on, each seed
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
