"""The scripts on the paper's tables and figures: they run from end to end, go on, and add up right."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from proard_nas import Architecture, ProARDEstimator
from proard_nas.training import Ledger

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the project's benchmarks folder")
SCRIPTS = ("table1", "population", "widths", "devices", "predicted", "generations")
OTHERS = ("shipped", "results_page")
SMOKE = ("--data", "synthetic", "--budget", "smoke")
PRINTED = ("predictor", "search", "labelling", "export", "latency", "training_step", "student_overhead", "resume")
STUDIES = ("_images", "_record", "_robustness", "_study", "_training", "network_shapes")
HELPERS = (
    *STUDIES,
    "_alone",
    "_answers",
    "_figures_section",
    "_page",
    "_shipped",
    "_shipped_section",
    "_synthetic",
    "_table1_section",
    *PRINTED,
)


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """Give the scripts, imported as they import each other; all is forgotten again."""
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in (*SCRIPTS, *OTHERS, *HELPERS)}
    sys.path[:] = before
    for name in (*SCRIPTS, *OTHERS, *HELPERS):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def results(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run every script at its smallest, all from one folder, and the page from what they wrote."""
    folder = tmp_path_factory.mktemp("evidence")
    found = {}
    for name in SCRIPTS:
        options = [*SMOKE, "--jobs", "1", "--work", str(folder / "work")]
        found[name] = scripts[name].main([*options, "--out", str(folder / "results" / f"{name}_synthetic.json")])
    return folder, found


@pytest.mark.slow
def test_every_script_runs_and_leaves_what_it_returns(results: tuple[Path, dict[str, Any]]) -> None:
    folder, found = results
    for name in SCRIPTS:
        stored = json.loads((folder / "results" / f"{name}_synthetic.json").read_text())
        assert stored["results"] == json.loads(json.dumps(found[name]))
        assert stored["command"] and stored["commit"] and stored["versions"]["torch"]


@pytest.mark.slow
def test_figures_fit_each_other(results: tuple[Path, dict[str, Any]], scripts: dict[str, ModuleType]) -> None:
    _, found = results
    for row in found["table1"]["rows"]:
        assert row["pgd20"] <= row["natural"] and row["autoattack"] <= row["pgd20_few"] <= row["natural_few"]
    assert {row["method"] for row in found["table1"]["table"]} == {"paper", "random", "trades", "rslad", "natural"}
    limit = found["table1"]["study"]["limit_mmacs"]
    sizes = {k: [one["mmacs"] for one in v] for k, v in found["table1"]["architectures"].items()}
    assert limit == pytest.approx(sizes["largest"][0] / 5) and all(small <= limit for small in sizes["found"])
    assert [row["student"] for row in found["widths"]["students"]] == ["W = 0.5", "W = 0.75", "W = 1"]
    robust, by_seed = found["predicted"]["outputs"]["robust_accuracy"], found["predicted"]["by_seed"]["robust_accuracy"]
    assert len(robust["measured"]) == 6 and by_seed["rmse"]["seeds"][0] == robust["rmse"]
    assert robust["rmse"] == pytest.approx(np.sqrt(np.mean((np.array(robust["predicted"]) - robust["measured"]) ** 2)))
    assert len(found["population"]["students"]["paper"]["pgd20"]) == found["population"]["n_students"] == 5
    first, last = found["generations"]["generations"]
    assert first["number"] == 0 and last["number"] == 3
    assert all(row["mmacs"] <= found["generations"]["max_mmacs"] for row in found["generations"]["front"])
    measured = {k: [row["robust_accuracy"] for row in v] for k, v in found["generations"]["measured"].items()}
    gain = found["generations"]["gains"]["robust_accuracy"]
    assert len(gain["seeds"]) == 2 and gain["mean"] == pytest.approx(np.mean(gain["seeds"]))
    assert gain["seeds"][0] == pytest.approx(np.mean(measured["front"]) - np.mean(measured["first"]))
    assert [counts[0] for counts in found["generations"]["n_measured"].values()] == list(map(len, measured.values()))


@pytest.mark.slow
def test_nothing_is_trained_or_measured_twice(
    results: tuple[Path, dict[str, Any]], scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = results
    monkeypatch.setattr("proard_nas.training.Trainer.step", None)
    monkeypatch.setattr("proard_nas.evaluation.population.label_student", None)
    monkeypatch.setattr(scripts["_robustness"], "measure_network", None)
    options = [*SMOKE, "--jobs", "1", "--work", str(folder / "work")]
    again = scripts["table1"].main([*options, "--out", str(folder / "again.json")])
    assert again["rows"] == found["table1"]["rows"]
    with pytest.raises(ValueError, match="records of other settings"):
        scripts["widths"].main([*options, "--n-train", "64", "--out", str(folder / "again.json")])


@pytest.mark.slow
def test_a_table_as_it_stands_has_the_rows_that_there_are(
    results: tuple[Path, dict[str, Any]], scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    folder, found = results
    (study,) = (folder / "work").glob("study-*")
    records = tmp_path / "records" / study.name
    records.mkdir(parents=True)
    for name in ("settings.json", "seed0-teacher.json", "seed0-paper.json", "seed0-random.json"):
        shutil.copy(study / name, records)
    out = tmp_path / "results" / "table1_synthetic.json"
    folders = ["--work", str(tmp_path / "work"), "--records", str(records.parent), "--out", str(out)]
    options = [*SMOKE, "--jobs", "1", *folders, "--as-it-stands"]
    with pytest.raises(SystemExit, match="has no row of the table yet"):
        scripts["table1"].main(options)
    lines = (study / "seed0-table1.jsonl").read_text().splitlines(keepends=True)
    (records / "seed0-table1.jsonl").write_text("".join(line for line in lines if '"largest"' in line))
    few = scripts["table1"].main(options)
    assert [row["method"] for row in few["table"]] == ["paper", "random", "trades", "rslad", "natural"]
    assert few["rows"] == [row for row in found["table1"]["rows"] if (row["seed"], row["which"]) == (0, "largest")]
    assert list(few["cost"]) == ["seed0-teacher", "seed0-paper", "seed0-random"]
    page = scripts["results_page"].main(["--results", str(out.parent), "--docs", str(tmp_path)])
    assert "Table 1 on synthetic: 5 of its 10 rows." in page.read_text()


def test_figures_are_of_the_weights_that_a_lent_machine_hands_back(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    study, argv = scripts["_study"], [*SMOKE, "--work", str(tmp_path)]
    opened = study.opened(study.parser("", "x").parse_args([*argv, "--device", "cpu:0"]))
    unit = study.Unit(0, study.TEACHER)
    opened.ensure([unit])
    whole = opened.trained(unit).state_dict()
    (opened.folder / "seed0-teacher.safetensors").unlink()
    parts = opened.trained(unit).state_dict()
    assert all(torch.equal(whole[name], tensor) for name, tensor in parts.items())
    assert opened.record(unit)["device"] == "cpu" and opened.record(unit)["student_images"] == 3 * 96


@pytest.mark.slow
def test_records_of_whole_seeds_need_no_weights(
    results: tuple[Path, dict[str, Any]], scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    folder, found = results
    (study,) = (folder / "work").glob("study-*")
    shutil.copytree(study, tmp_path / "records" / study.name, ignore=shutil.ignore_patterns("*.safetensors"))
    folders = ["--work", str(tmp_path / "work"), "--records", str(tmp_path / "records")]
    options = [*SMOKE, "--jobs", "1", *folders]
    for name in SCRIPTS:
        again = scripts[name].main([*options, "--out", str(tmp_path / "again.json")])
        if name == "devices":  # the search is timed again
            assert again["measured"]["found"]["parts"]["rslad"] == found[name]["measured"]["found"]["parts"]["rslad"]
        else:
            assert json.loads(json.dumps(again)) == json.loads(json.dumps(found[name]))
    with pytest.raises(FileNotFoundError, match="has not the weights of seed0-paper"):
        scripts["predicted"].main([*options, "--n-held", "7", "--out", str(tmp_path / "again.json")])


@pytest.mark.slow
def test_the_page_shows_what_the_files_hold(
    results: tuple[Path, dict[str, Any]], scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    folder, found = results
    page = scripts["results_page"].main(["--results", str(folder / "results"), "--docs", str(tmp_path)])
    text = page.read_text()
    natural = found["table1"]["table"][0]["natural"]["mean"]
    assert f"{100 * natural:.2f}" in text
    alone = [row for row in found["table1"]["rows"] if row["which"] == "found"]
    own, trades = (sum(r["pgd20"] for r in alone if r["method"] == method) for method in ("paper", "trades"))
    short = text[text.index("## In short") : text.index("## Table 1")]
    (line,) = (line for line in short.splitlines() if line.startswith("| synthetic | TRADES, alone"))
    assert f"{100 * (own - trades) / 2:+.2f} ±" in line.split("|")[6]
    for title in ("Table 1", "Figures 2 and 7", "Figure 6", "Figure 8", "Figure 9", "Figure 10"):
        assert f"## {title}" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / line.partition("(")[2].rstrip(")")).is_file()


def test_the_page_says_which_differences_are_shown(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    page, compare = scripts["_page"], scripts["_robustness"].compare

    def built(*values: Sequence[float]) -> str:
        others = zip(("random", "trades", "natural"), values, strict=True)
        rows = [(("largest", other), "pgd20", compare([0.30] * len(v), v)) for other, v in others]
        made = page.Page(tmp_path, tmp_path)
        page.differences(made, rows, page.NAMES)
        return "\n".join(made.parts)

    # Differences of -0.33, -3 and +29 points, with standard errors of 0.67, 0.58 and 0.58.
    text = built([0.29, 0.31, 0.31], [0.33, 0.34, 0.32], [0.01, 0.00, 0.02])
    words = "no difference shown from random sampling; worse than TRADES, alone; better than natural, alone"
    assert f"- largest, PGD-20: {words}." in text
    assert "-0.33 ± 0.67" in text and "**-3.00 ± 0.58**" in text and "**+29.00 ± 0.58**" in text
    once = built([0.29], [0.33], [0.01])
    assert "+1.00" in once and "**" not in once and "better" not in once
    # 1, 2 and 3 points: twice the standard error is 1.15, but the t-interval of three reaches 2.48 to both sides.
    barely = built([0.31, 0.32, 0.33], [0.3, 0.3, 0.3], [0.3, 0.3, 0.3])
    assert "**-2.00 ± 0.58** †" in barely and "- largest, PGD-20: worse than random sampling †; no" in barely


def test_the_page_begins_with_answers(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    spread, page = scripts["_robustness"].spread, scripts["results_page"]
    accuracies = {"natural": [0.50, 0.52, 0.54], "pgd20": [0.3, 0.3, 0.3], "autoattack": [0.2, 0.3, 0.1]}
    own = {metric: spread(values) for metric, values in accuracies.items()}
    other = own | {"natural": spread([0.49, 0.50, 0.51]), "autoattack": spread([0.3, 0.2, 0.1])}
    data = {
        "settings": {"budget": {"n_students": 2, "n_auto": 80}},
        "schedules": {"seeds": [0, 1, 2], "paper": own, "random": other},
        "autoattack": {"students": [0, 7]},
        "batch_norm": {"seeds": [0, 1, 2]},
    }
    (tmp_path / "schedules.json").write_text(json.dumps({"results": {"data": {"digits": data}}}))
    made = page.Page(tmp_path, tmp_path)
    page.in_short(made)
    cells = [cell.strip() for cell in made.parts[-1].splitlines()[-1].strip("|").split("|")]
    # Differences of 1, 2 and 3 points: their deviation is 1, the standard error 1 / sqrt(3).
    auto = "+0.00 ± 5.77 (2 students, 80 images)"
    assert cells == ["digits", "2", "0, 1, 2", "**+2.00 ± 0.58** †", "+0.00 ± 0.00", auto]
    answer = "Yes: of 2 comparisons of natural and PGD-20 accuracy 1 (1 of them †) show it to be better and none random"
    assert answer in made.parts[-2]


def test_rows_of_the_same_draws_are_said_not_to_be_independent(scripts: dict[str, ModuleType]) -> None:
    overlap = scripts["_answers"].overlap
    rows = [(data, 50, seeds, {}, "") for data, seeds in (("a", [0, 1, 2]), ("a, figures", [2, 3]), ("b", [0, 1, 2]))]
    assert overlap(rows) == (
        " The rows 'a' and 'a, figures' have the seeds 2 in common, with the same draws: they are not independent."
    )
    assert overlap(rows[::2]) == ""


def test_the_page_says_how_often_the_shipped_weights_were_trained(scripts: dict[str, ModuleType]) -> None:
    recipe = {
        "model": "net",
        "attack": "fgsm",
        "eps": 0.1,
        "loss": "rslad",
        "teacher_loss": "sat",
        "sampler": "uniform",
    }
    in_place = recipe | {"in_place": True, "sampler": "sandwich"}
    last = {"recipe": in_place | {"teacher_loss": "trades"}, "budget": {"step_epochs": 1}}
    stage = {"images": 900, "macs": 1.0, "steps": 9, "seconds": 3600.0}
    found = {
        "recipe": recipe,
        "budget": {"n_train": 100},
        "measured_before": [
            {"trained_last": {"recipe": recipe, "budget": {"step_epochs": 1}}},
            {"trained_last": {"recipe": in_place, "budget": {"step_epochs": 2}}},
        ],
        "pack": {"trained_last": last, "spent": dict.fromkeys(("teacher", "depth", "labelling"), stage)}
        | {"training_seconds": 7200, "cores": 1, "n_labels": 5, "bytes": 10},
    }
    text = scripts["_shipped_section"].how_made(found)
    assert "in 3 trainings, each from the one before: teacher 9 epochs (SAT), steps 9 epochs (RSLAD)" in text
    assert (
        "the last 9 of them with all dimensions open, sandwich" in text
        and "(6 with SAT and then 3 with TRADES)" in text
    )


def test_the_page_says_what_is_not_measured_yet(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    def said(seeds: list[int], attacked: list[int], device: str) -> list[str]:
        budget = {"settings": {"budget": {"n_students": 3}}}
        data = {"digits": {**budget, "autoattack": {"students": attacked}, "batch_norm": {"seeds": seeds}}}
        (tmp_path / "schedules.json").write_text(json.dumps({"results": {"data": data}}))
        (tmp_path / "training_step.json").write_text(json.dumps({"results": {"device": device}}))
        return list(scripts["_answers"].not_measured_yet(scripts["results_page"].Page(tmp_path, tmp_path)))

    assert said([0, 1, 2], [0, 1, 2], "cuda:0") == []
    step, auto, norm = said([0], [0], "cpu")
    assert "on a GPU" in step and "AutoAttack on 2 of the 3 students" in auto and "further seeds" in norm


def test_rows_of_fewer_seeds_are_said_to_be_of_fewer(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    page, answers, compare = scripts["_page"], scripts["_answers"], scripts["_robustness"].compare
    assert page.of_seeds(1, 1) == "One seed"
    assert page.of_seeds(1, 2, 2) == "Mean ± standard deviation over 1 to 2 seeds"
    changes = {"trades": compare([0.1], [0.2]), "rslad": compare([0.1, 0.2], [0.1, 0.2])}
    words = "one seed cannot say of TRADES, alone; no difference shown from RSLAD, alone"
    assert page.shown(changes) == words
    rows = [("digits", method, 80, {"pgd20": change}) for method, change in changes.items()]
    assert answers.found_words(rows) == f"on digits {words}"
    assert answers.found_words(rows[:1]) == "on digits one seed cannot say"
    study = {"data": "digits", "budget_name": "paper", "model": "net"}
    table = [{"natural": {"seeds": [0.1] * n}} for n in (2, 2, 1)]
    (seeds, rows_left) = answers.left_of_table1([{"study": study, "table": table}])
    assert seeds.endswith("some of the 2 seeds of 1 rows.") and rows_left.endswith("7 of its 10 rows.")


def test_the_searched_students_limit_leaves_students_under_it(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    study = scripts["_study"]

    def limit(model: str) -> float:
        argv = [*SMOKE, "--work", str(tmp_path / model), "--model", model, "--device", "cpu"]
        return study.opened(study.parser("", "x").parse_args(argv)).limit

    assert limit("proard_dyn_mobilenetv3") == pytest.approx(2 * 35.3, rel=0.01)  # a fifth of 179.7 is next to nothing
    assert limit("proard_dyn_resnet_small") == pytest.approx(49.388 / 5)


def test_the_front_of_a_population_is_what_no_student_beats_in_both(scripts: dict[str, ModuleType]) -> None:
    natural, robust = np.random.default_rng(0).integers(0, 12, (2, 200)) / 12
    pairs = set(zip(natural, robust, strict=True))
    beaten = {(n, r) for n, r in pairs for m, s in pairs if m >= n and s >= r and (m, s) != (n, r)}
    assert set(zip(*scripts["_figures_section"].front(natural, robust), strict=True)) == pairs - beaten


def test_what_was_measured_of_earlier_weights_is_kept(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, out = scripts["_shipped"], tmp_path / "shipped.json"
    job = module.Job("cifar10", None, "smoke", tmp_path, tmp_path, 1, out)
    monkeypatch.setattr(module, "packed_weights", lambda job: "b")
    figures = {"natural": 0.7, "fgsm": 0.5, "pgd20": 0.4, "autoattack": 0.3}
    card = [{"student": "largest", **figures}, {"student": "smallest", **figures}]
    assert module.measured_before(job) == []
    file = {
        "commit": "1234",
        "date": "2026-01-01",
        "results": {"weights": "a", "card": card, "pack": {"trained_last": {"budget": 1}}},
    }
    out.write_text(json.dumps(file))
    (one,) = module.measured_before(job)
    made = {"weights": "a", "commit": "1234", "date": "2026-01-01", "trained_last": {"budget": 1}}
    assert one == made | figures
    file["results"] |= {"weights": "b", "measured_before": [one]}  # the same weights again are no new training
    out.write_text(json.dumps(file))
    assert module.measured_before(job) == [one]


def test_the_committed_page_is_that_of_the_committed_results(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    page = scripts["results_page"].main(["--docs", str(tmp_path)])
    assert page.read_text() == (FOLDER.parent / "docs" / "results.md").read_text()
    assert {path.name for path in (tmp_path / "figures").glob("*")} == {
        path.name for path in (FOLDER.parent / "docs" / "figures").glob("*")
    }


def test_commands_name_no_folder_of_the_machine(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = scripts["_record"]
    given = [str(FOLDER / "table1.py"), "--data", f"cifar10={tmp_path / 'images.npz'}", "--work", str(tmp_path / "w")]
    monkeypatch.setattr(sys, "argv", [*given, "--budget", "laptop", f"--out={record.RESULTS / 'search.json'}", "1/2"])
    assert record.command() == (
        "python benchmarks/table1.py --data cifar10=images.npz --work w --budget laptop "
        "--out=benchmarks/results/search.json 1/2"
    )


def test_devices_break_even_where_the_costs_are_equal(scripts: dict[str, ModuleType]) -> None:
    found = scripts["devices"].compared(once=1000.0, each=1.0, alone=101.0, alone_once=0.0)
    assert found["break_even_devices"] == 10  # 1000 + 10 * 1 = 10 * 101
    assert found["ratio"]["10"] == pytest.approx(1.0)
    assert found["devices_for_60"] == 1464  # 101 n = 60 (1000 + n) at n = 1463.4
    never = scripts["devices"].compared(once=1000.0, each=2.0, alone=100.0, alone_once=0.0)
    assert never["devices_for_60"] is None  # each search costs a fiftieth of a training
    parts = {"teacher": [100.0, 0.0], "steps": [50.0, 0.0], "labelling": [50.0, 0.0], "predictor": [0.0, 10.0]}
    parts |= {"search": [1.0, 0.0], "candidates": [1.0, 0.0], "rslad": [10.0, 4.0]}
    by_seed = scripts["devices"].ratios_by_seed({name: {"macs": values} for name, values in parts.items()}, "macs")
    assert by_seed == pytest.approx([(100 + 500) / (200 + 100), 200 / 10])


def test_the_papers_costs_are_those_of_its_schedule(scripts: dict[str, ModuleType]) -> None:
    found = scripts["devices"].paper_costs("proard_dyn_mobilenetv3")
    images = 300 * 50_000
    # TRADES with PGD-10 on the largest: a clean pass for the attack, ten times forward and backward to the images,
    # and two passes forward and backward to the weights: 27 forward passes of 179.7 MMACs.
    assert found["stages"]["teacher"] == pytest.approx(27 * 179.7e6 * images, rel=1e-3)
    assert found["macs"]["alone"] == pytest.approx(
        images * (26 * found["mean_student_macs"] + found["teacher_macs"]), rel=1e-9
    )


def test_time_alone_is_counted_in_epochs_of_the_largest_student(scripts: dict[str, ModuleType]) -> None:
    def spent(**stages: tuple[float, float]) -> Ledger:
        entry = {"images": 1, "steps": 1, "energy_joules": None, "device": "cpu"}
        return Ledger.from_dict({name: {**entry, "seconds": s, "macs": macs} for name, (s, macs) in stages.items()})

    largest_epochs = scripts["_alone"].largest_epochs
    # The largest took 4 epochs of 5e9 in 400 seconds; the steps took as long as 6 more of them; labels do not count.
    once = spent(teacher=(400.0, 20e9), width_mult=(600.0, 9e9), labelling=(77.0, 1e9))
    assert largest_epochs(once, 5e9) == pytest.approx(10)
    # The same time is half as many epochs of twice the work, whatever the teacher's own epochs were.
    assert largest_epochs(once, 10e9) == pytest.approx(5)


def test_runs_of_a_training_add_up_though_an_older_record_names_no_device(scripts: dict[str, ModuleType]) -> None:
    older = {"student_steps": 5, "macs": 2.0, "history": [1]}
    found = {"student_steps": 7, "macs": 1.0, "history": [2], "device": "cpu", "energy_joules": 3.0}
    found["made"] = {"commit": "1234"}
    both = {"student_steps": 12, "macs": 3.0, "history": [1, 2], "device": "cpu", "energy_joules": None}
    both["made"] = {"commit": "1234"}
    together = scripts["_alone"].together
    assert together(older, found) == both
    assert together(found, found)["energy_joules"] == 6.0 and together(found, found)["device"] == "cpu"


@pytest.mark.slow
def test_the_shipped_supernet_is_made_packed_and_compared(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = scripts["shipped"]
    # Seconds say how long the networks alone are trained: on a busy machine a test's would be any number.
    monkeypatch.setattr(scripts["_alone"], "largest_epochs", lambda spent, epoch_macs: 9.5)
    paths = [
        "--work",
        str(tmp_path / "work"),
        "--package",
        str(tmp_path / "package"),
        "--out",
        str(tmp_path / "o.json"),
    ]
    options = [*SMOKE, "--jobs", "1"]
    found = shipped.main([*options, "--n-alone", "1", *paths])
    assert found["pack"]["bytes"] < 4e6
    assert [row["student"] for row in found["card"]][::2] == ["largest", "smallest"]
    assert [row["part"] for row in found["alone"]] == [1 / 50]  # the shortest first
    later = shipped.main([*options, "--parts", "alone", *paths])  # what the first run found stays in the file
    assert [row["part"] for row in later["alone"]] == [1 / 3, 2 / 3, 1.0] * 2 + [1 / 50] * 2
    assert later["alone"][6] == found["alone"][0] and later["pack"] == found["pack"] and later["card"] == found["card"]
    first, _, largest, _, _, whole, part, tuned = later["alone"]
    assert [first["epochs"], largest["epochs"]] == [3, 10] and largest["share_of_largest_time"] == 1
    records = [json.loads(path.read_text()) for path in (tmp_path / "work").rglob("alone-*.json")]
    runs = sorted((record for record in records if record["arch"] == largest["arch"]), key=itemgetter("part"))
    assert len(runs[2]["history"]) == largest["epochs"]
    assert runs[2]["history"][: first["epochs"]] == runs[0]["history"]
    assert [stage["lr"] for stage in largest["stages"]] == [first["stages"][0]["lr"]] * 3
    assert not list((tmp_path / "work").rglob("*.weights"))  # those between the runs are gone
    assert whole["epochs"] > largest["epochs"] and whole["share_of_largest_time"] < 1  # it is the cheaper network
    assert part["largest_epochs"] == whole["largest_epochs"] / 50 and part["epochs"] < whole["epochs"]
    assert [row["tuned"] for row in later["alone"]] == [False] * 7 + [True]
    assert tuned["part"] == 1 / 50 and tuned["stages"][0]["lr"] < part["stages"][0]["lr"]
    found = later
    folder = tmp_path / "package" / "proard_dyn_resnet_small"
    est = ProARDEstimator.load(folder)
    assert len(est.labels_) == 14 and len(est.calibration_images_) == 16
    seconds = est.spent_.total.seconds
    card = (folder / "README.md").read_text()
    assert "no photographs" in card and "Measured on 24 test images" in card and "Square cut to 10 queries" in card

    # AutoAttack on all images, in two parts: the first is that of the card; a part that is lost is attacked again.
    records = sorted((tmp_path / "work").rglob("autoattack-*.jsonl"))
    assert len(records) == len(found["attack"]) == 3
    for row, whole in zip(found["card"], found["attack"], strict=True):
        (record,) = (
            path
            for path in records
            if path.stem.endswith(scripts["_study"].short_name(Architecture.from_dict(whole["arch"])))
        )
        first, second = (json.loads(line) for line in record.read_text().splitlines())
        assert first["images"] == second["images"] == 12 and whole["images"] == 24
        assert first["robust"] / 12 == row["autoattack"]
        assert whole["autoattack"] == (first["robust"] + second["robust"]) / 24 <= row["pgd20"]
        record.write_text(json.dumps(first) + "\n")
    again = shipped.main([*options, "--parts", "attack", "--n-attacked", "1", *paths])
    assert [row["student"] for row in again["attack"]] == ["smallest"]
    (line,) = (line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| largest |"))
    assert line.endswith("(12 images) |")
    found = shipped.main([*options, "--parts", "attack", *paths])
    assert "(12 images)" not in (folder / "README.md").read_text()
    for whole, before in zip(found["attack"], later["attack"], strict=True):
        assert whole | {"seconds": 0} == before | {"seconds": 0}
    student = est.extract(est.supernet_.space.smallest)
    assert student.cost().mmacs == pytest.approx(found["card"][-1]["mmacs"])

    with monkeypatch.context() as patch:
        patch.setattr("proard_nas.training.Trainer.step", None)
        patch.setattr("proard_nas.evaluation.population.label_student", None)
        again = shipped.main([*SMOKE, "--jobs", "1", *paths])
    assert again["card"] == found["card"] and again["alone"] == found["alone"]

    further = ["--further", "--parts", "train", "pack"]
    with monkeypatch.context() as patch:
        patch.setattr(shipped, "tensor_checksum", lambda classes: "others")
        with pytest.raises(SystemExit, match="48 images held out now are not those of"):
            shipped.main([*SMOKE, "--jobs", "1", *further, *paths])
    shipped.main([*SMOKE, "--jobs", "1", *further, *paths])
    more = ProARDEstimator.load(folder)
    assert more.history_[: len(est.history_)] == est.history_ and len(more.history_) == len(est.history_) + 3
    assert more.spent_.total.seconds > seconds and "expand_ratio 4" in (folder / "README.md").read_text()
