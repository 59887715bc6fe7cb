"""A latency table finds the law that students' latencies follow, says how far it is off, and is kept in a file."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import timm
import torch

import proard_nas
from proard_nas.deploy import LatencyTable, _building, _measuring, build_latency_table
from proard_nas.deploy._comparing import compare
from proard_nas.deploy._correcting import PENALTIES, fit_correction
from proard_nas.deploy._parts import Part, build_parts, find_parts, parts_of
from proard_nas.search import search

SIZE = (8, 8)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return timm.create_model("proard_dyn_resnet_tiny", width_mults=[0.5, 1.0], expand_ratios=[0.25, 0.5]).eval()


def alone(part):
    """A law for a part alone: a product of powers, so a straight line in logarithms."""
    macs, depthwise, params, values, _ = part.sizes
    return 1e-4 * (1 + macs + depthwise) ** 0.6 * (1 + params) ** 0.1 * (1 + values) ** 0.1


def latency(net, arch, size=SIZE):
    """A law for a whole student: what is saved for each part, a factor, and a constant."""
    parts = [alone(part) for _, part in parts_of(net.plan(arch, size))]
    return 0.8 * sum(parts) - 0.002 * len(parts) + 0.05


@pytest.fixture
def lawful(monkeypatch):
    """Give times by the laws, one outlier among the rounds, in place of measured ones."""

    def measure(supernet, found, students, setting, rounds, budget_s):
        parts = [alone(one.part) for one in found]
        whole = [latency(supernet, arch, setting.img_size) for arch in students]
        times = np.tile([*parts, *whole], (rounds, 1))
        times[0] *= 50
        return times[:, : len(found)], times[:, len(found) :]

    monkeypatch.setattr(_building, "measure", measure)
    monkeypatch.setattr("proard_nas.deploy.latency_table.measure", measure)


@pytest.fixture
def table(net, lawful):
    return build_latency_table(net, runtime="torch", rounds=5, threads=1)


# -- parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["proard_dyn_resnet_tiny", "proard_dyn_resnet50", "proard_dyn_mobilenetv3"])
def test_parts_hold_every_layer_once(name):
    with torch.device("meta"):
        net = timm.create_model(name)
    for arch in (net.space.smallest, net.space.sample(seed=0), net.space.largest):
        parts = dict(parts_of(net.plan(arch)))
        sizes = np.sum([part.sizes for part in parts.values()], axis=0)
        assert (sizes[0] + sizes[1], sizes[2]) == net.cost(arch)
        assert sizes[4] == len(list(net.plan(arch).layers()))
        assert (sizes[1] > 0) == ("mobilenet" in name)
        with torch.device("meta"):
            student = timm.create_model(net.cfg.student, arch=arch.to_dict())
        counted = [sum(p.numel() for p in student.get_submodule(place).parameters()) for place in parts]
        assert counted == [part.params for part in parts.values()]


def test_all_different_parts_of_a_small_space_are_found(net):
    brute_force = {part.key for arch in net.space for _, part in parts_of(net.plan(arch, SIZE))}
    found = [one.part.key for one in find_parts(net, SIZE, most=1000, seed=0)]
    assert set(found) == brute_force and len(found) == len(brute_force)


def test_no_more_parts_than_asked_for_are_found(net):
    assert len(find_parts(net, SIZE, most=7, seed=0)) == 7


def test_a_parts_key_tells_kernels_sizes_and_places_apart():
    net = timm.create_model("proard_dyn_mobilenetv3")
    small, large = (dict(parts_of(net.plan(a))) for a in (net.space.smallest, net.space.largest))
    keys = {part.key for part in [*small.values(), *large.values()]}
    assert len(keys) == len({(p.place, p.key, p.sizes) for p in [*small.values(), *large.values()]})
    assert small["stages.0.1"].key != large["stages.0.1"].key
    elsewhere = dict(parts_of(net.plan(net.space.smallest, 64)))
    assert all(small[name].key != elsewhere[name].key for name in small if name != "head")


@pytest.mark.parametrize("name", ["proard_dyn_resnet_tiny", "proard_dyn_mobilenetv3"])
def test_built_parts_are_the_students_own_one_behind_the_other(name):
    net = timm.create_model(name).eval()
    found = find_parts(net, net.cfg.img_size, most=10_000, seed=0)
    largest = [one for one in found if one.arch == net.space.largest]
    student = net.extract(net.space.largest)
    x = torch.rand(2, net.in_chans, *net.cfg.img_size)
    for one, (module, shape) in zip(largest, build_parts(net, largest, net.cfg.img_size, 2), strict=True):
        assert not module.training and tuple(x.shape) == shape
        original = student.get_submodule(one.name).state_dict()
        assert {k: v.shape for k, v in module.state_dict().items()} == {k: v.shape for k, v in original.items()}
        for later in range(_copies(net, student, one)):
            x = module(x) if later == 0 else student.get_submodule(_sibling(one.name, later)).eval()(x)
    assert x.shape == (2, 10)


def _copies(net, student, one):
    """How many blocks in a row have the same shape: only the first of them is a part."""
    names = [name for name, part in parts_of(net.plan(student.arch, net.cfg.img_size)) if part.key == one.part.key]
    return len(names)


def _sibling(name, later):
    place, _, index = name.rpartition(".")
    return f"{place}.{int(index) + later}"


# -- what is fitted ---------------------------------------------------------------------------


def test_the_table_finds_the_law(net, table):
    archs = [arch for arch in net.space.sample_distinct(200, seed=9) if arch not in dict(table.students)]
    for arch in archs:
        assert table(arch) == pytest.approx(latency(net, arch), rel=1e-3)


def test_it_says_how_far_it_is_from_students_that_it_was_not_fitted_to(net, table):
    fitted = {arch for arch, _ in table.students}
    assert {net.space.largest, net.space.smallest} <= fitted and len(fitted) == 24
    unseen = [row["architecture"] for row in table.evaluation["students"]]
    assert len(unseen) == table.evaluation["n"] == 10
    assert not fitted & {proard_nas.Architecture.from_dict(arch) for arch in unseen}
    assert table.evaluation["mape"] < 1e-3 and table.evaluation["kendall_tau"] == pytest.approx(1)


def test_parts_that_were_not_measured_are_estimated(net, lawful):
    table = build_latency_table(net, runtime="torch", rounds=5, threads=1, max_parts=20)
    assert len(table.parts) == 20
    plans = [net.plan(arch, SIZE) for arch in net.space.sample_distinct(30, seed=3)]
    missing = [part for plan in plans for _, part in parts_of(plan) if part not in table.parts]
    assert missing
    for part in missing:
        assert table._estimator(part) == pytest.approx(alone(part), rel=0.1)


@pytest.mark.parametrize("max_parts", [1, 3])
def test_a_handful_of_parts_still_makes_a_table(net, lawful, max_parts):
    table = build_latency_table(net, runtime="torch", rounds=5, threads=1, max_parts=max_parts)
    assert table.evaluation["mape"] < 0.1


def test_the_error_of_students_left_out_is_that_of_fits_without_them():
    rng = np.random.default_rng(0)
    parts = [[(Part(place, f"{place}{i}", tuple(rng.integers(1, 50, 5).tolist())), rng.uniform(1, 2))
              for place in ("stem", "head")] for i in range(12)]  # fmt: skip
    times = [2 * sum(ms for _, ms in row) + rng.uniform(0.5, 1) for row in parts]
    fitted = fit_correction(parts, times)
    own = np.array([[[ms, 1, *part.sizes] for part, ms in row] for row in parts], dtype=float)
    columns = np.column_stack([own.sum(1)[:, :2], np.ones(12), own.reshape(12, -1)])
    columns = columns / np.abs(columns).mean(0) / np.array(times)[:, None]

    def left_out(penalty):
        errors = []
        for i in range(12):
            rest = np.delete(columns, i, axis=0)
            penalties = np.diag([1e-6] * 3 + [penalty] * 14)
            errors.append(abs(1 - columns[i] @ np.linalg.solve(rest.T @ rest + penalties, rest.sum(0))))
        return np.mean(errors)

    expected = [left_out(penalty) for penalty in PENALTIES]
    assert fitted.loo_mape == pytest.approx(min(expected), rel=1e-5)
    assert fitted.penalty == pytest.approx(PENALTIES[int(np.argmin(expected))])


def test_a_table_never_says_less_than_nothing(table):
    shifted = LatencyTable.from_dict(
        table.to_dict() | {"correction": table.to_dict()["correction"] | {"constant_ms": -1e6}}
    )
    assert shifted(table.space.smallest) == 0


def test_the_seed_decides_the_students(net, lawful):
    settings = {"runtime": "torch", "rounds": 3, "threads": 1}
    first, again, other = (build_latency_table(net, seed=seed, **settings) for seed in (1, 1, 2))
    assert first.students == again.students != other.students


def test_a_space_smaller_than_the_numbers_asked_for_is_measured_whole(lawful):
    net = timm.create_model("proard_dyn_resnet_tiny", width_mults=[1.0], expand_ratios=[0.5])
    table = build_latency_table(net, runtime="torch", rounds=3, threads=1)
    assert net.space.size == 8
    assert len({arch for arch, _ in table.students}) == 8 and table.evaluation is None


# -- figures ----------------------------------------------------------------------------------


def test_figures_are_those_of_their_definitions(net):
    archs = net.space.sample_distinct(6, seed=0)
    measured = np.array([1.0, 2.0, 2.0, 4.0, 5.0, 8.0])
    predicted = np.array([1.1, 1.8, 2.0, 5.0, 4.0, 8.0])
    even = np.array([2.0, 1.0, 2.0, 4.0, 5.0, 8.0])  # the first two change places in the even rounds
    times = np.stack([measured, even * 9, measured, even / 9, measured])
    found = compare(archs, predicted, times)
    errors = [0.1, -0.1, 0.0, 0.25, -0.2, 0.0]
    assert found["mape"] == pytest.approx(np.mean(np.abs(errors)))
    assert found["bias"] == pytest.approx(np.mean(errors))
    assert found["max_error"] == pytest.approx(0.25)
    pairs = list(itertools.combinations(range(6), 2))
    agreement = sum(np.sign(measured[j] - measured[i]) * np.sign(predicted[j] - predicted[i]) for i, j in pairs)
    untied = sum(measured[i] != measured[j] for i, j in pairs)  # tau-b: ties on one side
    assert found["kendall_tau"] == pytest.approx(agreement / np.sqrt(untied * len(pairs)))
    # Odd rounds give the measured times, even ones (9 + 1/9) / 2 = 41/9 of theirs. Of the 15 pairs one is tied on one
    # side, one on the other, one is turned round and 12 agree.
    ratios = np.array([9 / 82, 18 / 41, 9 / 41, 9 / 41, 9 / 41, 9 / 41])
    assert found["repeatability_mape"] == pytest.approx(np.mean(1 - ratios))
    assert found["repeatability_tau"] == pytest.approx((12 - 1) / 14)
    assert found["rounds"] == 5


def test_evaluate_measures_students_that_were_not_fitted_to(net, table):
    found = table.evaluate(net, n=12, seed=4, rounds=3)
    assert found["n"] == 12 and found["mape"] < 1e-3 and table.evaluation == found
    assert (
        not {proard_nas.Architecture.from_dict(r["architecture"]) for r in found["students"]}
        & dict(table.students).keys()
    )


def test_evaluate_leaves_out_what_was_fitted_to_even_in_a_small_space(lawful):
    net = timm.create_model("proard_dyn_resnet_tiny", width_mults=[1.0], expand_ratios=[0.5])
    table = build_latency_table(net, runtime="torch", rounds=3, threads=1, n_students=4, n_holdout=0)
    rows = table.evaluate(net, n=4, rounds=3)["students"]
    assert {proard_nas.Architecture.from_dict(row["architecture"]) for row in rows} == set(net.space) - {
        arch for arch, _ in table.students
    }


def test_evaluate_takes_students_of_ones_own(net, table):
    archs = [net.space.largest, net.space.smallest]
    rows = table.evaluate(net, archs, rounds=3)["students"]
    assert [row["architecture"] for row in rows] == [arch.to_dict() for arch in archs]
    assert rows[0]["measured_ms"] == pytest.approx(latency(net, archs[0]))
    with pytest.raises(ValueError, match="at least two students, got 1"):
        table.evaluate(net, archs[:1])
    with pytest.raises(ValueError, match="rounds must be a whole number of at least 2, got 1"):
        table.evaluate(net, archs, rounds=1)
    with pytest.raises(ValueError, match="budget_s must be above 0"):
        table.evaluate(net, archs, budget_s=0)


# -- use --------------------------------------------------------------------------------------


def test_a_search_keeps_to_a_latency(net, table):
    archs = [net.space.largest, net.space.smallest]
    limit = sum(table(arch) for arch in archs) / 2

    def predict(archs):
        return np.array([[table(arch) / (1 + table(net.space.largest)), 0.5] for arch in archs])

    result = search(net.space, predict, net.cost, max_latency_ms=limit, latency=table,
                    population_size=20, n_generations=5, seed=0, progress=False)  # fmt: skip
    assert result.front
    for candidate in result.front:
        assert candidate.latency_ms == table(candidate.architecture) <= limit


def test_answers_are_remembered(net, table, monkeypatch):
    arch = net.space.sample(seed=5)
    first = table(arch)
    monkeypatch.setattr(table._twin, "plan", None)
    assert table(arch) == first


def test_an_architecture_of_another_space_is_refused(table):
    other = timm.create_model("proard_dyn_resnet_tiny").space
    foreign = next(a for a in (other.sample(seed=i) for i in range(100)) if a not in table.space)
    with pytest.raises(ValueError, match="outside the search space"):
        table(foreign)


# -- files ------------------------------------------------------------------------------------


def test_a_saved_table_says_the_same(net, table, tmp_path):
    path = tmp_path / "new" / "table.json"
    table.save(path)
    loaded = LatencyTable.load(path, net)
    archs = net.space.sample_distinct(50, seed=2)
    assert [loaded(arch) for arch in archs] == [table(arch) for arch in archs]
    assert loaded.to_dict() == table.to_dict() == json.loads(path.read_text())
    assert loaded.evaluation == table.evaluation and loaded.setting == table.setting
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]
    assert {"torch", "python"} <= loaded.versions.keys() and loaded.machine["cores"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "recipe"}, "no latency table"),
        ({"version": 9}, "version 9; this library reads version 1"),
        ({"parts": None}, "damaged"),
        ({"correction": {}}, "damaged latency table: KeyError 'weights'"),
        ({"parts": [{"place": "stem", "key": "stem: ", "sizes": [1], "ms": -1.0}]}, "must not be negative, got -1.0"),
        ({"parts": [{"place": "stem", "key": "stem: ", "sizes": [1], "ms": "1"}]}, "must be a number, got '1'"),
        ({"space": {}}, "space is not the one"),
        ({"network": {"name": "resnet18", "args": {}}}, "'resnet18' is no supernet"),
        ({"network": {"name": "proard_dyn_resnet_tini", "args": {}}}, "Did you mean 'proard_dyn_resnet_tiny'"),
        ({"network": {"name": "hf-hub:timm/resnet18.a1_in1k", "args": {}}}, "unknown network 'hf-hub:timm"),
    ],
)
def test_a_file_that_is_no_table_is_refused(table, tmp_path, change, message):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(table.to_dict() | change))
    with pytest.raises(ValueError, match=message) as caught:
        LatencyTable.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused(table, tmp_path, text):
    path = tmp_path / "table.json"
    data = table.to_dict()
    data["parts"][0]["ms"] = 123456789.0
    path.write_text(json.dumps(data).replace("123456789.0", text))
    with pytest.raises(ValueError, match=f"it holds {text}"):
        LatencyTable.load(path)


def test_a_missing_key_is_named(table, tmp_path):
    data = table.to_dict()
    del data["setting"]
    with pytest.raises(ValueError, match="damaged latency table: KeyError 'setting'"):
        LatencyTable.from_dict(data)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"num_classes": 7}, "num_classes is 10, not 7"),
        ({"in_chans": 3}, "in_chans is 1, not 3"),
        ({"width_mults": [1.0]}, "space"),
    ],
)
def test_a_table_of_another_network_is_refused(table, tmp_path, args, named):
    args = {"width_mults": [0.5, 1.0], "expand_ratios": [0.25, 0.5]} | args
    other = timm.create_model("proard_dyn_resnet_tiny", **args)
    table.save(tmp_path / "table.json")
    with pytest.raises(ValueError, match=named):
        LatencyTable.load(tmp_path / "table.json", other)
    with pytest.raises(ValueError, match=named):
        table.evaluate(other)


# -- measuring --------------------------------------------------------------------------------


def test_groups_hold_everything_once_and_no_more_than_fits():
    params = np.random.default_rng(0).integers(1, 60, 50).tolist()
    params.append(500)
    first, second = (_measuring._grouped(params, 100, seed) for seed in (0, 1))
    for groups in (first, second):
        assert sorted(i for group in groups for i in group) == list(range(51))
        assert all(len(group) == 1 or sum(params[i] for i in group) <= 100 for group in groups)
        assert all(group == sorted(group) for group in groups)
    assert first != second


def test_groups_measured_at_another_speed_are_set_right():
    """With three groups of either pass at speeds of their own, ratios come out as they are."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(1, 9, 30)
    memberships = [rng.integers(3, size=30) for _ in range(2)]
    speeds = rng.uniform(0.8, 1.2, (2, 3))
    passes = [np.tile(truth * speed[members], (5, 1)) for speed, members in zip(speeds, memberships, strict=True)]
    times = _measuring._at_one_speed(passes, memberships)
    assert times.shape == (10, 30)
    np.testing.assert_allclose(times / times[0, 0], np.tile(truth / truth[0], (10, 1)), rtol=1e-6)


def test_as_much_is_held_in_memory_as_there_is_room(monkeypatch):
    assert _measuring._room() >= _measuring.LEAST_ROOM
    monkeypatch.setattr(_measuring.Path, "read_text", lambda self: "MemTotal: 9 kB\nMemAvailable: 20000000 kB\n")
    assert _measuring._room() == 1_024_000_000
    monkeypatch.setattr(_measuring.Path, "read_text", lambda self: "nothing of the kind")
    assert _measuring._room() == _measuring.LEAST_ROOM


def test_each_time_belongs_to_its_part_or_student(net, monkeypatch):
    """With a clock that tells sizes: what is timed is as long as its number of parameters."""
    monkeypatch.setattr(_measuring, "_room", lambda: 60_000)
    monkeypatch.setattr(
        _measuring, "make_run", lambda network, *_: lambda: sum(p.numel() for p in network.parameters())
    )
    monkeypatch.setattr(
        _measuring, "time_in_turn", lambda runs, *_, rounds, **__: np.tile([float(r()) for r in runs], (rounds, 1))
    )
    found = find_parts(net, SIZE, most=25, seed=0)
    archs = net.space.sample_distinct(5, seed=1)
    setting = _measuring.Setting("torch", 1, 1, "wall", SIZE)
    parts, students = _measuring.measure(net, found, archs, setting, 3, 1.0)
    assert parts.tolist() == [[one.part.params for one in found]] * 4  # two rounds in each pass
    assert students.tolist() == [[net.cost(arch).params for arch in archs]] * 4


@pytest.mark.parametrize("runtime", [pytest.param("onnxruntime", marks=pytest.mark.slow), "torch"])
def test_a_measured_table_ranks_small_before_large(runtime):
    net = timm.create_model("proard_dyn_resnet_tiny", width_mults=[0.5, 1.0], expand_ratios=[0.5], depths=[1])
    before = torch.get_num_threads()
    table = build_latency_table(
        net, runtime=runtime, threads=1, clock="cpu", img_size=32, n_students=6, n_holdout=2, rounds=5
    )
    assert torch.get_num_threads() == before
    assert 0 < table(net.space.smallest) < table(net.space.largest) < 1000
    assert table.evaluation["n"] == 2 and table.setting.img_size == (32, 32)
    assert "at 32x32" in next(iter(table.parts)).key


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"runtime": "touch"}, "Did you mean 'torch'"),
        ({"n_students": 3}, "n_students must be a whole number of at least 4, got 3"),
        ({"n_holdout": -1}, "n_holdout"),
        ({"max_parts": 0}, "max_parts"),
        ({"rounds": 1}, "rounds must be a whole number of at least 2, got 1"),
        ({"budget_s": -1}, "budget_s must be above 0 seconds, got -1"),
        ({"budget_s": float("nan")}, "budget_s must be above 0 seconds, got nan"),
        ({"clock": "cpu", "threads": 2}, "needs threads=1"),
    ],
)
def test_wrong_settings_are_named(net, wrong, message):
    with pytest.raises(ValueError, match=message):
        build_latency_table(net, **({"runtime": "torch"} | wrong))
