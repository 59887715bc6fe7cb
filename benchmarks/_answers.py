"""What the page of results begins with: the questions of a reader, each answered by a sentence and a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import _robustness
import _study
from _alone import DEVICES
from _page import METRICS, NAMES, Page, between, counted, label, points, seeds_of_rows, shown, shown_either_way
from _shipped_section import PARTS, minus_cells, not_attacked_yet, not_trained_yet, shipped_minus_others

ROWS = 2 * (2 + len(_study.ALONE))  # of table 1: two students of two supernets, and alone


def in_short(page: Page) -> None:
    """Answer a reader's questions first, each by a table with a line for a file's figures."""
    page.add("## In short")
    sampling = list(progressive_minus_random(page))
    if sampling:
        page.add(
            f"**Does progressive training beat random sampling?** {sampling_words(sampling)} Progressive minus random, "
            "in points on average over many students, from the same teacher with as many student-steps; ± standard "
            "error over the seeds, in bold where shown."
        )
        page.table(
            [[data, str(n), ", ".join(map(str, seeds)), *(points(c) for c in changes.values()), auto]
             for data, n, seeds, changes, auto in sampling],
            ["data", "students", "seeds", *(NAMES[m] for m in _robustness.METRICS)],
        )  # fmt: skip
    alone = list(found_minus_alone(page))
    if alone:
        page.add(
            "**Does a found student beat the same network trained alone**, for as many epochs as teacher and steps "
            f"together? Under PGD-20: {found_words(alone)}. Found minus alone, in points."
        )
        page.table(
            [[data, _study.TITLES[method], str(len(changes["natural"]["seeds"])),
              *(points(changes[m]) for m in METRICS[:-1]), f"{points(changes['autoattack'])} ({n_auto} images)"]
             for data, method, n_auto, changes in alone],
            ["data", "minus", "seeds", *(NAMES[m] for m in METRICS)],
        )  # fmt: skip
    for _, record in page.files("shipped"):
        packaged(page, record["results"])
    costs(page)
    left = list(not_measured_yet(page))
    if left:
        page.add("**What is not measured yet:**")
        page.bullets(left)


# -- progressive against random sampling -----------------------------------------------------------


Sampling = tuple[str, int, list[int], dict[str, dict[str, Any]], str]  # data, students, seeds, changes, AutoAttack's


def progressive_minus_random(page: Page) -> Iterator[Sampling]:
    for _, record in page.files("schedules"):
        for data, found in record["results"]["data"].items():
            own, other = (found["schedules"][method] for method in (_study.PROGRESSIVE, _study.RANDOM))
            changes = {m: _robustness.compare(own[m]["seeds"], other[m]["seeds"]) for m in _robustness.METRICS}
            b, attacked = found["settings"]["budget"], len(found["autoattack"]["students"])
            auto = f"{points(changes.pop('autoattack'))} ({attacked} students, {b['n_auto']} images)"
            yield data, b["n_students"], found["schedules"]["seeds"], changes, auto
    for _, record in page.files("population"):
        found = record["results"]
        changes = {metric: found["means_by_seed"][metric]["difference"] for metric in ("natural", "pgd20")}
        n, seeds = found["n_students_of_all_seeds"], found["study"]["seeds"]
        yield f"{label(found['study'])}, figures 2 and 7", n, seeds, changes, ""


def sampling_words(rows: Sequence[Sampling]) -> str:
    """Count where one of the two is shown to be better, naturally and under PGD-20."""
    changes = [change for *_, of_row, _ in rows for change in of_row.values()]
    better, worse = shown_either_way(changes)
    return (
        f"{'Yes' if len(better) > len(worse) else 'No'}: of {len(changes)} comparisons of natural and PGD-20 accuracy "
        f"{counted(better)} show it to be better and {counted(worse)} random sampling.{overlap(rows)}"
    )


def overlap(rows: Sequence[Sampling]) -> str:
    """Say which rows are of the same trainings: they are no independent comparisons."""
    said = ""
    for (data, _, seeds, *_), (other, _, others, *_) in itertools.combinations(rows, 2):
        both = sorted({*seeds} & {*others})
        if both and data.split(",")[0] == other.split(",")[0]:
            said += (
                f" The rows {data!r} and {other!r} have the seeds {' and '.join(map(str, both))} in common, with the "
                "same draws: they are not independent."
            )
    return said


# -- found students against networks alone ----------------------------------------------------------


Alone = tuple[str, str, int, dict[str, dict[str, Any]]]  # data, trained how, AutoAttack's images, changes


def found_minus_alone(page: Page) -> Iterator[Alone]:
    for _, record in page.files("table1"):
        found = record["results"]
        for method in _study.ALONE:
            changes = {r["metric"]: r for r in found["comparisons"] if (r["which"], r["against"]) == ("found", method)}
            if changes:
                yield label(found["study"]), method, found["study"]["budget"]["n_auto"], changes


def found_words(rows: Sequence[Alone]) -> str:
    """Say which networks alone a found student is shown to be better and worse than."""
    by_data: dict[str, dict[str, dict[str, Any]]] = {}
    for data, method, _, changes in rows:
        by_data.setdefault(data, {})[method] = changes["pgd20"]
    return "; ".join(
        f"on {data} " + ("one seed cannot say" if all(c["shown"] is None for c in against.values()) else shown(against))
        for data, against in by_data.items()
    )


# -- the supernet that ships ------------------------------------------------------------------------


def packaged(page: Page, found: dict[str, Any]) -> None:
    rows = list(shipped_minus_others(found, PARTS))
    if not rows:
        return
    by_kind: dict[str, list[float]] = {}
    for _, how, changes in rows:
        by_kind.setdefault(how, []).append(100 * changes["pgd20"])
    words = "; ".join(f"minus one {how}, {between(changes, '+.1f')} points" for how, changes in by_kind.items())
    page.add(
        "**Is a student of the supernet that comes with the package as good as the same network trained alone**, for "
        f"as long as the supernet or for 1/{DEVICES} of its time, or as itself when tuned for so long? Under PGD-20, "
        f"the supernet's {words}. One training of each; AutoAttack on {found['budget']['n_auto']} images; in points:"
    )
    page.table(
        [minus_cells(*row) for row in rows],
        ["student", "minus", *(NAMES[m] for m in METRICS)],
    )


# -- what it saves ----------------------------------------------------------------------------------


def costs(page: Page) -> None:
    rows, paper = [], {}
    for _, record in page.files("devices"):
        found = record["results"]
        paper |= found["paper"] or {}
        for which, one in found["measured"].items():
            cost = one["macs"]
            even, sixty = (n_devices(cost[name]) for name in ("break_even_devices", "devices_for_60"))
            rows.append([label(found["study"]), which, even, f"{cost['ratio']['50']:.1f} times", sixty])
    if not rows:
        return
    counted = [f"{one['macs']['ratio']['50']:.1f} times ({network})" for network, one in paper.items()]
    page.add(
        "**What does it save?** RSLAD for each device over one supernet for all, in multiply-accumulates."
        + f" The paper says 60 times for 50 devices; counted from its own schedule, with what it does not give assumed "
        f"(see Figure 8), it is {' and '.join(counted)}." * bool(counted)
    )
    page.table(rows, ["data", "student", "devices from which it is cheaper", "at 50 devices", "devices for 60 times"])


def n_devices(n: int | None) -> str:
    return "never" if n is None else f"{n:,}"


# -- what is missing --------------------------------------------------------------------------------


def not_measured_yet(page: Page) -> Iterator[str]:
    """Yield what the page would show, but no file holds yet."""
    yield from left_of_table1([record["results"] for _, record in page.files("table1")])
    steps = [record["results"]["device"] for _, record in page.files("training_step")]
    if steps and not any("cuda" in device for device in steps):
        yield "A training step on a GPU, in images and floating-point operations a second."
    for _, record in page.files("schedules"):
        for data, found in record["results"]["data"].items():
            yield from left_of_schedules(data, found)
    for _, record in page.files("shipped"):
        for what, left in (
            ("Trained alone", not_trained_yet(record["results"])),
            ("AutoAttack on all test images", not_attacked_yet(record["results"])),
        ):
            names = list(left)
            if names:
                yield f"{what}, beside the supernet that comes with the package: {', '.join(names)}."


def left_of_table1(tables: Sequence[dict[str, Any]]) -> Iterator[str]:
    if tables and not any(found["study"]["budget_name"] in ("gpu-30min", "paper") for found in tables):
        yield "Table 1 with networks of full size (`--budget gpu-30min`), which takes a GPU."
    for found in tables:
        n_seeds = seeds_of_rows(found)
        if max(n_seeds) == 1:
            yield f"Table 1 on {label(found['study'])}: further seeds than the one."
        elif min(n_seeds) < max(n_seeds):
            fewer = sum(n < max(n_seeds) for n in n_seeds)
            yield f"Table 1 on {label(found['study'])}: some of the {max(n_seeds)} seeds of {fewer} rows."
        if len(found["table"]) < ROWS:
            yield f"Table 1 on {label(found['study'])}: {ROWS - len(found['table'])} of its {ROWS} rows."


def left_of_schedules(data: str, found: dict[str, Any]) -> Iterator[str]:
    n_students, attacked = found["settings"]["budget"]["n_students"], len(found["autoattack"]["students"])
    if attacked < n_students:
        yield f"Schedules on {data}: AutoAttack on {n_students - attacked} of the {n_students} students."
    if len(found["batch_norm"]["seeds"]) == 1:
        yield f"Batch norm choices on {data}: further seeds than the one."
