"""Model cards: a README that the Hugging Face hub can read, written from what is known about a network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TASK = "image-classification"
IN_PROSE = ("description", "name", "license", "architecture", "format", "calibrated", "data", "split", "students",
            "measurement", "load", "calibration")  # fmt: skip
IN_CARD = ("description", "load", "calibration", "students", "measurement")
USE = """\
## Use

```python
import timm, proard_nas

net = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:USER/NAME"
logits = net(images)  # images: (N, {channels}, {height}, {width}), in [0, 1]; normalisation is inside the network
```

With `pretrained=False`, timm gives random weights without a word. `proard_nas.deploy.load_student(FOLDER)` also checks
that the files are those that were saved.
"""

ESTIMATOR = """\
# {model}, trained for robustness

A fitted `ProARDEstimator`: a supernet, the labels of {n_labels} students and a predictor of their accuracy. It hands
out robust students of any size:

```python
from proard_nas import ProARDEstimator

est = {load}
student = est.search(max_flops={max_flops:.3g}).extract()
```
"""
IMAGES = """\
**It holds {n_images} of the training images**, from which students are given their batch norm statistics. Do not
publish it where you may not publish those.
"""


def model_card(facts: Mapping[str, Any]) -> str:
    """Return the model card of a network.

    Parameters
    ----------
    facts : mapping
        What a saved network's ``proard.json`` holds.

    Returns
    -------
    str
        Markdown with a YAML front matter: licence, tags, data set and, where accuracies are known,
        a ``model-index`` with them.
    """
    name = str(facts.get("name") or facts["network"])
    channels, height, width = facts["input_size"]
    parts = [
        f"# {' '.join(name.split())}",
        _introduction(facts),
        facts.get("description"),
        _accuracies(facts),
        students_table(facts.get("students"), facts.get("measurement")),
        "## Facts\n\n" + _table(_rows(facts)),
        "## Architecture\n\n" + _table(facts["architecture"].items()),
        USE.format(channels=channels, height=height, width=width),
    ]
    return front_matter(facts, name) + "\n" + "\n\n".join(part.strip() for part in parts if part) + "\n"


def estimator_card(facts: Mapping[str, Any]) -> str:
    """Return the card of a saved estimator.

    Parameters
    ----------
    facts : mapping
        ``model``, ``n_labels``, ``n_images`` (calibration images in the folder), ``smallest_mmacs``,
        ``largest_mmacs``, ``classes`` and ``versions``; where there are, ``description``, ``license``, ``load`` (how it
        is loaded, in Python), ``calibration`` (what the images are, if not training images), ``students`` and
        ``measurement`` (see `students_table`).
    """
    load = facts.get("load") or 'ProARDEstimator.load("FOLDER")'
    parts = [
        ESTIMATOR.format(
            model=facts["model"],
            n_labels=facts["n_labels"],
            load=load,
            max_flops=math.sqrt(facts["smallest_mmacs"] * facts["largest_mmacs"]),
        ),
        facts.get("description"),
        facts.get("calibration") or IMAGES.format(n_images=facts["n_images"]),
        students_table(facts.get("students"), facts.get("measurement")),
        "## Facts\n\n" + _table(_flat({key: value for key, value in facts.items() if key not in IN_CARD})),
    ]
    text = "\n\n".join(part.strip() for part in parts if part)
    return front_matter({"license": facts.get("license")}, library="proard-nas") + "\n" + text + "\n"


def students_table(students: Sequence[Mapping[str, Any]] | None, measurement: str | None = None) -> str | None:
    """Return measured students as a section of a card, one row for each; None where there are none.

    Parameters
    ----------
    students : sequence of mapping
        All with the same keys, which become the columns.
    measurement : str, default=None
        On what and how they were measured: a paragraph above the table.
    """
    if not students:
        return None
    keys = list(students[0])
    rows = [[_cell(one.get(key, "")) for key in keys] for one in students]
    lines = ["| " + " | ".join(row) + " |" for row in [[_cell(key) for key in keys], ["---"] * len(keys), *rows]]
    return "\n\n".join(part for part in ("## Students", measurement, "\n".join(lines)) if part)


def front_matter(facts: Mapping[str, Any], name: str | None = None, library: str = "timm") -> str:
    """Return the YAML front matter of a card, between its two lines of dashes; ``library`` is what loads the model."""
    from huggingface_hub import ModelCardData

    data = _slug(facts.get("data"))
    results = list(_results(facts))
    card = ModelCardData(
        license=facts.get("license"),
        library_name=library,
        pipeline_tag=TASK,
        tags=[TASK, *dict.fromkeys([library, "proard-nas"]), "adversarial-robustness"],
        datasets=[data] if data else None,
        eval_results=results or None,
        model_name=name if results else None,
    )
    return f"---\n{card.to_yaml()}\n---\n"


def _results(facts: Mapping[str, Any]) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    data = str(facts.get("data") or "unknown")
    for key, title in _accuracy_titles(facts).items():
        yield EvalResult(
            task_type=TASK,
            dataset_type=_slug(data) or re.sub(r"[^\w.-]+", "-", data).strip("-").lower() or "unknown",
            dataset_name=data,
            dataset_split=facts.get("split"),
            metric_type="accuracy",
            metric_name=title,
            metric_value=facts[key],
        )


def _accuracy_titles(facts: Mapping[str, Any]) -> dict[str, str]:
    titles = {"natural_accuracy": "Natural accuracy"} if "natural_accuracy" in facts else {}
    if "robust_accuracy" in facts:
        titles["robust_accuracy"] = f"Accuracy under {facts['attack']}, eps={_eps(facts['eps'])}"
    return titles


def _introduction(facts: Mapping[str, Any]) -> str:
    _, height, width = facts["input_size"]
    data = f" trained on {facts['data']}" if facts.get("data") else ""
    size = f"{facts['macs'] / 1e6:.4g} million multiply-accumulates at {height}x{width}, {facts['params']:,} parameters"
    if facts["kind"] == "supernet":
        text = (
            f"An adversarially robust supernet{data}. Its largest student takes {size}; smaller ones are slices of it."
        )
    else:
        text = f"An adversarially robust image classifier{data}: {size}. A student of a `proard_nas` supernet."
    if not facts["calibrated"]:
        text += "\n\n**Not calibrated**: its batch norm statistics were not computed for it. Calibrate it before use."
    return text


def _accuracies(facts: Mapping[str, Any]) -> str | None:
    titles = _accuracy_titles(facts)
    if not titles:
        return None
    where = " ".join(str(facts[key]) for key in ("data", "split") if facts.get(key))
    images = f"{facts['n_images']:,} images" if isinstance(facts.get("n_images"), int) else ""
    what = " of ".join(filter(None, [images, where]))
    rows = [(title, f"{100 * facts[key]:.2f} %") for key, title in titles.items()]
    return "## Accuracy\n\n" + (f"On {what}.\n\n" if what else "") + _table(rows)


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    titles = _accuracy_titles(facts)
    hidden = {*IN_PROSE, *titles, *(("n_images",) if titles else ())}
    if "robust_accuracy" in titles:
        hidden |= {"attack", "eps"}
    return list(_flat({key: value for key, value in facts.items() if key not in hidden}))


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _table(rows: Any) -> str:
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _eps(eps: Any) -> str:
    """Return eps in 255ths where it is a whole number of them, as papers write it."""
    if isinstance(eps, (int, float)) and eps > 0 and abs(eps * 255 - round(eps * 255)) < 1e-6:
        return f"{round(eps * 255)}/255"
    return f"{eps:.4g}" if isinstance(eps, float) else str(eps)


def _slug(name: Any) -> str | None:
    """Return a data set's name as an identifier of the hub, or None if it cannot be one."""
    text = str(name or "").lower()
    return text if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text, re.ASCII) else None
