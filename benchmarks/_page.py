"""The page of results: its text and figures as they are put together, and how differences are shown on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import _robustness
import _study
import _training
import matplotlib as mpl
from matplotlib.figure import Figure
from tabulate import tabulate

mpl.use("Agg")
METRICS = _robustness.TABLE
COLUMNS = _robustness.COLUMNS
NAMES = _robustness.NAMES
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
            self.add(*([] if number else [title]), f"### {label(study)}", settings(study))
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
            f"commit {str(record['commit'])[:8]}{changed}, {machine['cores']} cores ({machine['cpu']})"
            f"{', ' + machine['gpu'] if 'gpu' in machine else ''}, torch {version['torch']}: "
            f"[{name}](../benchmarks/results/{name})</sub>"
        )

    def figure(self, name: str, title: str, draw: Callable[[Any], None]) -> None:
        """Draw one pair of axes and show it."""
        figure = Figure(figsize=(5.5, 4), layout="constrained")
        draw(figure.add_subplot())
        path = self.docs / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100, metadata={"Software": None})
        self.add(f"![{title}](figures/{name}.png)")

    def write(self) -> Path:
        path = self.docs / "results.md"
        path.write_text("\n\n".join(self.parts) + "\n")
        return path


# -- words and cells --------------------------------------------------------------------------------


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def label(study: dict[str, Any]) -> str:
    """Name a study: its data and, with a network other than its own small one, that and the budget."""
    plain = study["model"] == _training.RECIPES[study["data"]].model
    return study["data"] if plain else f"{study['data']}, {study['model']}, {study['budget_name']}"


def slug(study: dict[str, Any]) -> str:
    """Return a study's name as part of a file's."""
    return label(study).replace(", ", "_")


def settings(study: dict[str, Any]) -> str:
    """Describe a study in a sentence."""
    b, r = study["budget"], study["recipe"]
    seeds = f"Seeds {', '.join(map(str, study['seeds']))}. " if "seeds" in study else ""
    devices = [name for name in study.get("trained_on", ()) if name != "cpu"]
    on = f"Trained on {' + '.join(devices)}. " * bool(devices)
    how = f"{training(b, r)}, {study['precision']}"
    return f"Budget `{study['budget_name']}`: {how}. {on}{seeds}Attack: {study['attack']}."


def training(budget: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Say how teacher and steps were trained."""
    steps = f" of {recipe['attack_steps']} steps" if recipe["attack"] == "pgd" else ""
    return (
        f"`{recipe['model']}`, {budget['n_train']:,} training images, teacher {budget['teacher_epochs']} epochs "
        f"({recipe['teacher_loss'].upper()}), steps {budget['step_epochs']} epochs ({recipe['loss'].upper()}), inner "
        f"attack {recipe['attack']}{steps}, eps {recipe['eps']:.5f}"
        + ", one cosine over teacher and steps"
        * bool(recipe.get("one_cosine"))
    )


def of_seeds(*numbers: int) -> str:
    """Say over how many seeds figures are means; rows may differ in it."""
    return "One seed" if max(numbers) == 1 else f"Mean ± standard deviation over {between(numbers, 'd')} seeds"


def columns(n_auto: int) -> list[str]:
    """Return the headings of `COLUMNS`; the last two are of so many images."""
    names = [*(NAMES[m] for m in METRICS), *(f"{NAMES[m]} ({n_auto} images)" for m in ("pgd20", "autoattack"))]
    return [f"{name}, %" for name in names if name != NAMES["autoattack"]]


def seeds_of_rows(found: dict[str, Any]) -> list[int]:
    """Return of how many seeds each row of table 1 is."""
    return [len(row["natural"]["seeds"]) for row in found["table"]]


def between(values: Sequence[float], form: str = ".1f") -> str:
    """Return the least and the largest of some values, or the only one."""
    ends = list(dict.fromkeys(format(value, form) for value in (min(values), max(values))))
    return " to ".join(ends)


# -- differences ------------------------------------------------------------------------------------


Difference = tuple[tuple[str, str], str, dict[str, Any]]  # student and trained how; metric; from `compare`


def differences(page: Page, rows: Sequence[Difference], names: dict[str, str]) -> None:
    """Show what a progressive supernet's students have over others, and say in words what that shows."""
    metrics = list(dict.fromkeys(metric for _, metric, _ in rows))
    by_pair: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for pair, metric, found in rows:
        by_pair.setdefault(pair, {})[metric] = found
    n_seeds = max(len(found["seeds"]) for _, _, found in rows)
    page.add(
        f"{_study.TITLES[_study.PROGRESSIVE]} minus the others, in points"
        + (" ± standard error over the seeds, in bold where shown:" if n_seeds > 1 else ", in one seed:")
    )
    page.table(
        [[student, _study.TITLES[other], *(points(found[m]) for m in metrics)]
         for (student, other), found in by_pair.items()],
        ["student", "minus", *(names[m] for m in metrics)],
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


def shown_either_way(changes: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the differences that are shown to be above zero, and those below."""
    sure = [change for change in changes if change["shown"]]
    return [c for c in sure if c["mean"] > 0], [c for c in sure if c["mean"] <= 0]


def counted(found: Sequence[dict[str, Any]]) -> str:
    """Say how many differences these are, all of them shown, and how many of them barely."""
    barely = sum(bool(_robustness.mark(change)) for change in found)
    return f"{len(found) or 'none'}{f' ({barely} of them †)' * (barely > 0)}"


def points(found: dict[str, Any]) -> str:
    """Return a difference in points with its standard error, in bold where it is shown, marked where barely."""
    text = f"{100 * found['mean']:+.2f}"
    if found["standard_error"] is None:
        return text
    text += f" ± {100 * found['standard_error']:.2f}"
    return f"**{text}**{_robustness.mark(found)}" if found["shown"] else text


def shown(against: dict[str, dict[str, Any]]) -> str:
    """Say in words what progressive training is shown to win over and to lose to."""
    groups: dict[str, list[str]] = {}
    for other, found in against.items():
        if found["shown"] is None:
            word = "one seed cannot say of"
        elif not found["shown"]:
            word = "no difference shown from"
        else:
            word = "better than" if found["mean"] > 0 else "worse than"
        groups.setdefault(word, []).append(_study.TITLES[other] + _robustness.mark(found))
    return "; ".join(f"{word} {' and '.join(others)}" for word, others in groups.items())
