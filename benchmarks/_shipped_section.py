"""The section of the page of results on the supernet that comes with the package."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fractions import Fraction
from typing import Any

from _alone import DEVICES, RUNS, how_trained, part_of_time, trained_alone
from _page import COLUMNS, METRICS, NAMES, Page, columns, percent

PARTS = (Fraction(1), Fraction(1, DEVICES))  # of the supernet's time, for which networks alone are compared with it


def shipped(page: Page) -> None:
    for name, record in page.files("shipped"):
        found = record["results"]
        page.add("## The supernet that comes with the package")
        if "pack" in found:
            page.add(how_made(found), how_good_beside(found["pack"]))
        page.add(f"{found['measurement']} {measured_before(found)}".rstrip())
        n_auto, whole = found["budget"]["n_auto"], attacked(found)
        rows = [["the supernet's", *cells(row), percent(whole.get(row["student"]))] for row in found.get("card", [])]
        rows += [
            [f"{_kind(row)}, {part_of_time(row['part'])} ({row['epochs']} epochs)", *cells(row), ""]
            for row in found.get("alone", [])
        ]
        page.table(rows, ["trained", "student", *columns(n_auto), "AutoAttack (all images), %"])
        page.bullets(bars(found))
        others = list(shipped_minus_others(found))
        if others:
            page.add(
                "The supernet's students minus the same networks otherwise trained, in points, one training of each. "
                + how_alone(found)
            )
            few = f"AutoAttack ({n_auto} images)"
            page.table(
                [minus_cells(*row) for row in others], ["student", "minus", *(NAMES[m] for m in METRICS[:-1]), few]
            )
        page.source(name, record)


# -- how it was made and measured -------------------------------------------------------------------


def how_made(found: dict[str, Any]) -> str:
    """Say how the supernet was trained, and for how long."""
    pack = found["pack"]
    spent, n_train = dict(pack["spent"]), found["budget"]["n_train"]
    labelling = spent.pop("labelling")
    steps = " + ".join(f"{stage['images'] / n_train:.0f}" for name, stage in spent.items() if name != "teacher")
    recipe, made = found["recipe"], trainings(found)
    text = (
        f"`{recipe['model']}`, {n_train:,} training images, inner attack {recipe['attack']}, eps "
        f"{recipe['eps']:.5f}{f', in {len(made)} trainings, each from the one before' * (len(made) > 1)}: teacher "
        f"{spent['teacher']['images'] / n_train:.0f} epochs ({recipe['teacher_loss'].upper()}), steps {steps} epochs "
        f"({recipe['loss'].upper()})"
    )
    in_place = [(3 * one["budget"]["step_epochs"], one["recipe"]) for one in made if one["recipe"].get("in_place")]
    if in_place:
        losses = (f"{epochs} with {recipe['teacher_loss'].upper()}" for epochs, recipe in in_place)
        text += (
            f", the last {sum(epochs for epochs, _ in in_place)} of them with all dimensions open, "
            f"{in_place[-1][1]['sampler']} sampling and the largest student as the teacher, which went on learning "
            f"from labels ({' and then '.join(losses)})"
        )
    return (
        f"{text}. {pack['training_seconds'] / 3600:.2f} hours on {pack['cores']} core{'s' * (pack['cores'] > 1)} and "
        f"{sum(stage['macs'] for stage in spent.values()):.3g} multiply-accumulates; {labelling['steps']:,} "
        f"labels, the {pack['n_labels']} that are packed and those of earlier weights, took "
        f"{labelling['seconds'] / 3600:.2f} hours and at most {labelling['macs']:.3g} multiply-accumulates more. "
        f"{pack['bytes'] / 1e6:.2f} MB in all."
    )


def trainings(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return recipe and budget of each training that the weights have had, the first ones first, as far as is known."""
    before = (one.get("trained_last") for one in found.get("measured_before", []))
    return [one for one in (*before, found["pack"]["trained_last"]) if one is not None]


def how_good_beside(pack: dict[str, Any]) -> str:
    """Say how good the predictor and the calibration images are."""
    calibration, scores = pack["calibration"], pack["predictor"]
    rmse = " and ".join(f"{score['rmse']:.4f} ({output.replace('_', ' ')})" for output, score in scores.items())
    return (
        f"The predictor's RMSE on {next(iter(scores.values()))['n_labels']:.0f} students that it did not learn from is "
        f"{rmse}. Calibrated on its {calibration['n_synthetic']} synthetic images instead of {calibration['n_real']} "
        f"real ones, {calibration['n_students']} students change by {100 * calibration['synthetic']['natural']:+.2f} "
        f"points naturally and {100 * calibration['synthetic']['pgd10']:+.2f} under PGD-10, on average, on validation "
        "images."
    )


def measured_before(found: dict[str, Any]) -> str:
    """Say how often the test images were looked at before the last training."""
    before = found.get("measured_before", [])
    if not before:
        return ""
    robust = ", ".join(percent(one["pgd20"]) for one in before)
    return (
        f"Students were measured on them after each of {len(before) + 1} trainings, of which each went on from the one "
        f"before (the largest student's PGD-20 until the last: {robust} %), and the recipe was changed between them: "
        "the figures may flatter a little."
    )


def how_alone(found: dict[str, Any]) -> str:
    """Say how the networks alone were trained."""
    row = found["alone"][0]
    taught = found["pack"]["trained_last"]["recipe"]["teacher_loss"].upper()
    losses = " and ".join(dict.fromkeys(stage["loss"].upper() for one in found["alone"] for stage in one["stages"]))
    return (
        f"Alone and tuned: same images, inner attack and batch size, {losses} alone. The whole time is that of "
        f"{row['largest_epochs'] / row['part']:.0f} epochs of the largest student, in {RUNS} runs with a cosine each; "
        "a cheaper network has more epochs in it."
        + f" A last run with {taught}, as the supernet's largest student had, was not tried: it might change both "
        "accuracies." * (taught not in losses.split(" and "))
    )


def bars(found: dict[str, Any]) -> Iterator[str]:
    """Say which bars are held."""
    largest = next((row for row in found.get("card", []) if row["student"] == "largest"), None)
    alone = next((r for r in found.get("alone", []) if r["student"] == "largest" and r["part"] == 1), None)
    if largest is None:
        return
    held = largest["natural"] >= 0.70 and largest["pgd20"] >= 0.43
    yield (
        f"Its largest student has {percent(largest['natural'])} % natural and {percent(largest['pgd20'])} % PGD-20 "
        f"accuracy; the bar was 70 and 43: {'held' if held else 'missed'}."
    )
    if alone is not None:
        more = 100 * (alone["pgd20"] - largest["pgd20"])
        yield (
            f"Alone for the whole time it has {more:+.2f} points of PGD-20 more; at most 3 was the bar: "
            f"{'held' if more <= 3 else 'missed'}."
        )


# -- rows -------------------------------------------------------------------------------------------


def cells(row: dict[str, Any]) -> list[str]:
    return [row["student"], *(percent(row[m]) for m in COLUMNS)]


def minus_cells(student: str, how: str, changes: dict[str, float]) -> list[str]:
    """Return a line of `shipped_minus_others` as cells, in points."""
    return [student, how, *(f"{100 * changes[m]:+.1f}" for m in METRICS)]


def attacked(found: dict[str, Any]) -> dict[str, float]:
    """Return the students that AutoAttack was run on with all images, and their accuracy."""
    return {row["student"]: row["autoattack"] for row in found.get("attack", [])}


def _kind(row: dict[str, Any]) -> str:
    return "the supernet's, tuned" if row["tuned"] else "alone"


def shipped_minus_others(
    found: dict[str, Any], parts: Collection[Fraction] | None = None
) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Compare the supernet's students with the same networks trained alone or tuned, for these parts of its time."""
    card = {row["student"]: row for row in found.get("card", [])}
    for row in found.get("alone", []):
        own = card.get(row["student"])
        if own and (parts is None or row["part"] in map(float, parts)):
            yield row["student"], how_trained(row), {m: own[m] - row[m] for m in METRICS}


def not_trained_yet(found: dict[str, Any]) -> Iterator[str]:
    """Yield the students that are still to be trained alone, and for how long."""
    done = {(row["student"], row["part"], row["tuned"]) for row in found.get("alone", [])}
    for name, part, tuned in trained_alone(row["student"] for row in found.get("card", [])):
        if part in PARTS and (name, float(part), tuned) not in done:
            yield f"{name} ({'tuned, ' * tuned}{part_of_time(part)})"


def not_attacked_yet(found: dict[str, Any]) -> Iterator[str]:
    """Yield the students on the card that AutoAttack is still to be run on with all images."""
    return (row["student"] for row in found.get("card", []) if row["student"] not in attacked(found))
