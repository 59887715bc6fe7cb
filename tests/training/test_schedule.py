"""Stages as values, and schedules against the paper's section 5.0.1 and its released code."""

from __future__ import annotations

import json

import pytest
import timm

import proard_nas  # noqa: F401
from proard_nas.supernets import SearchSpace
from proard_nas.training import SCHEDULES, AttackBudget, Stage, TrainSettings, make_loss, make_schedule


@pytest.fixture
def resnet():
    return timm.create_model("proard_dyn_resnet_tiny").space


@pytest.fixture
def mobilenet():
    return SearchSpace(depths=(1, 2), base_depths=(1, 1), expand_ratios=(3, 4), kernel_sizes=(3, 5))


def paper_teacher(space):
    return make_schedule("paper", space)[0]


def student_passes(stages):
    return sum(stage.epochs * stage.students_per_step for stage in stages)


def test_the_paper_trains_a_teacher_then_width_depth_and_expansion(resnet):
    stages = make_schedule("paper", resnet)
    assert [stage.epochs for stage in stages] == [300, 120, 120, 120]
    assert [stage.loss for stage in stages] == ["trades", "rslad", "rslad", "rslad"]
    assert [stage.elastic for stage in stages] == [
        (),
        ("width_mult",),
        ("width_mult", "depth"),
        ("width_mult", "depth", "expand_ratio"),
    ]
    assert [stage.lr for stage in stages] == [0.01] * 4
    assert [stage.drop_rate for stage in stages] == [0, 0.1, 0.1, 0.1]


def test_the_first_step_opens_the_kernel_where_there_is_no_width(mobilenet):
    assert make_schedule("paper", mobilenet)[1].elastic == ("kernel_size",)


def test_channels_are_sorted_before_they_become_elastic(resnet):
    sorts = {stage.name: stage.sort_channels for stage in make_schedule("paper", resnet)}
    assert sorts == {"teacher": (), "width_mult": ("width_mult",), "depth": (), "expand_ratio": ("expand_ratio",)}


def test_random_has_the_same_teacher_and_the_same_length(resnet):
    paper, random = make_schedule("paper", resnet), make_schedule("random", resnet)
    assert random[0] == paper[0]
    assert sum(s.epochs for s in random) == sum(s.epochs for s in paper)
    assert set(random[1].elastic) == set(paper[-1].elastic)


def test_sandwich_makes_as_many_student_steps_as_the_paper(resnet, mobilenet):
    for space in (resnet, mobilenet):
        paper, ours = make_schedule("paper", space), make_schedule("sandwich", space)
        assert student_passes(ours) == student_passes(paper)
    teacher, stage = make_schedule("sandwich", resnet)
    assert teacher == paper_teacher(resnet)
    assert (stage.epochs, stage.sampler, stage.students_per_step) == (120, "sandwich", 3)
    assert set(stage.elastic) == set(resnet.dimensions)


def test_attentive_differs_from_random_by_its_sampler_alone(resnet):
    assert make_schedule("attentive", resnet)[0] == paper_teacher(resnet)
    attentive, random = (make_schedule(name, resnet)[1].to_dict() for name in ("attentive", "random"))
    assert {k: v for k, v in attentive.items() if v != random[k]} == {"name": "attentive", "sampler": "attentive"}


def test_released_trains_1025_students_each_for_one_pass(resnet):
    teacher, *steps = make_schedule("released", resnet)
    assert (teacher.epochs, teacher.lr, teacher.loss) == (125, 0.1, "trades")
    assert sum(stage.epochs for stage in steps) == 1025
    assert {(stage.draw, stage.students_per_step) for stage in steps} == {("epoch", 1)}
    # the code's epochs are passes times 1, 2 and 4 students
    assert [stage.epochs for stage in steps] == [125, 25 * 2, 125 * 2, 25 * 4, 125 * 4]
    assert [stage.lr for stage in steps] == [3e-2, 2.5e-3, 7.5e-3, 2.5e-3, 7.5e-3]
    assert {(stage.nesterov, stage.weight_decay, stage.drop_rate) for stage in steps} == {(True, 3e-5, 0.1)}


def test_released_opens_depth_and_expansion_in_two_phases():
    space = timm.create_model("proard_dyn_resnet50", device="meta").space
    widths = (0.65, 0.8, 1.0)
    opened = [stage.space(space) for stage in make_schedule("released", space)]
    assert [(s.width_mults, s.depths, s.expand_ratios) for s in opened] == [
        ((1.0,), (2,), (0.35,)),
        (widths, (2,), (0.35,)),
        (widths, (1, 2), (0.35,)),
        (widths, (0, 1, 2), (0.35,)),
        (widths, (0, 1, 2), (0.25, 0.35)),
        (widths, (0, 1, 2), (0.2, 0.25, 0.35)),
    ]
    assert opened[-1] == space


def test_released_sorts_only_the_expansion_and_before_its_first_phase(resnet):
    sorts = {stage.name: stage.sort_channels for stage in make_schedule("released", resnet) if stage.sort_channels}
    assert sorts == {"expand_ratio 1": ("expand_ratio",)}


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_the_last_stage_opens_the_whole_space(resnet, mobilenet, name):
    for space in (resnet, mobilenet):
        first, *_, last = make_schedule(name, space)
        assert first.space(space).size == 1 and first.space(space).largest == space.largest
        assert last.space(space) == space


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_space_of_one_network_leaves_the_teacher_alone(name):
    assert len(make_schedule(name, SearchSpace(depths=(1,), base_depths=(0, 0)))) == 1


def test_a_learning_rate_is_every_stages_and_none_keeps_their_own(resnet):
    assert {stage.lr for stage in make_schedule("released", resnet, lr=0.2)} == {0.2}
    assert {stage.lr for stage in make_schedule("random", resnet)} == {0.01}


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_with_a_teacher_of_ones_own_every_stage_distils(resnet, name):
    assert {stage.loss for stage in make_schedule(name, resnet, loss="rslad", own_teacher=True)} == {"rslad"}
    usual = make_schedule(name, resnet, loss="rslad")
    assert [stage.loss for stage in usual] == ["trades"] + ["rslad"] * (len(usual) - 1)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("epochs", [6, 7, 11, 66, 660, 1000])
def test_epochs_are_shared_in_proportion_and_none_is_lost(resnet, name, epochs):
    full, scaled = make_schedule(name, resnet), make_schedule(name, resnet, epochs=epochs)
    assert sum(stage.epochs for stage in scaled) == epochs
    total = sum(stage.epochs for stage in full)
    for whole, part in zip(full, scaled, strict=True):
        assert part.epochs >= 1
        assert abs(part.epochs - epochs * whole.epochs / total) <= 2
        assert part.warmup / part.epochs == pytest.approx(whole.warmup / whole.epochs)


def test_fewer_epochs_than_stages_are_refused(resnet):
    with pytest.raises(ValueError, match="epochs=3 is less than one for each of the 4 stages"):
        make_schedule("paper", resnet, epochs=3)


def test_a_schedule_of_ones_own_is_taken_as_it_is(resnet):
    stages = [Stage("only", 2, "trades", lr=0.3)]
    assert make_schedule(stages, resnet, own_teacher=True) == stages


@pytest.mark.parametrize(
    "given", [{"epochs": 30}, {"lr": 0.1}, {"anneal": "whole"}, {"loss": "ard"}, {"teacher_loss": "sat"}]
)
def test_what_is_of_a_named_schedule_is_refused_beside_stages(resnet, given):
    (name,) = given
    with pytest.raises(ValueError, match=f"{name}=.*a list of stages.*allowed: a name, .* or {name}="):
        make_schedule([Stage("own", 3, "natural")], resnet, **given)


def test_a_stage_with_lists_of_choices_is_a_value():
    stage = Stage("depth", 25, "rslad", ["depth"], choices={"expand_ratios": [0.35, 0.25], "depths": (2, 1)})
    same = Stage("depth", 25, "rslad", ("depth",), choices={"depths": [1, 2], "expand_ratios": (0.25, 0.35)})
    assert stage == same and hash(stage) == hash(same)
    assert dict(stage.choices) == {"depths": (1, 2), "expand_ratios": (0.25, 0.35)}
    assert stage != Stage("depth", 25, "rslad", ("depth",))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_stage_survives_json(resnet, name):
    for stage in make_schedule(name, resnet):
        assert Stage.from_dict(json.loads(json.dumps(stage.to_dict()))) == stage


def test_only_a_named_loss_can_be_written():
    with pytest.raises(ValueError, match="stage 'x' has loss=.*only a loss's name"):
        Stage("x", 1, make_loss("trades")).to_dict()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "x", "epochs": 1, "loss": "trades", "epoch": 2}, "Did you mean 'epochs'"),
        ({"name": "x", "epochs": 1}, r"needs the fields \['loss'\]"),
    ],
)
def test_a_wrong_dict_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Stage.from_dict(data)


def test_a_stages_space_has_its_choices_of_which_the_elastic_vary(resnet):
    stage = Stage("x", 1, "natural", ("width_mult",), choices={"width_mults": (0.75, 0.5), "depths": (0,)})
    space = stage.space(resnet)
    assert (space.width_mults, space.depths) == ((0.5, 0.75), (0,))
    assert space.expand_ratios == (max(resnet.expand_ratios),)
    assert all(arch in resnet for arch in space)
    with pytest.raises(ValueError, match=r"depths=\[9\] must be a non-empty part"):
        Stage("x", 1, "natural", choices={"depths": (9,)}).space(resnet)


def test_a_stages_attack_replaces_what_it_names():
    budget = AttackBudget(eps=0.1, step_size=0.02, steps=7)
    assert Stage("x", 1, "trades").budget(budget) == budget
    changed = Stage("x", 1, "trades", attack="n-fgsm", attack_steps=3, batch_norm="clean").budget(budget)
    assert changed == AttackBudget(eps=0.1, step_size=0.02, steps=3, method="n-fgsm", batch_norm="clean")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "tradse"}, "Did you mean 'trades'"),
        ({"loss": "trades", "elastic": ("widht_mult",)}, "Did you mean 'width_mult'"),
        ({"loss": "trades", "sampler": "sandwhich"}, "Did you mean 'sandwich'"),
        ({"loss": "trades", "epochs": 0}, "at least one epoch"),
        ({"loss": "trades", "lr": 0}, "lr > 0"),
        ({"loss": "trades", "students_per_step": 0}, "one student"),
        ({"loss": "trades", "draw": "epochs"}, "Did you mean 'epoch'"),
        ({"loss": "trades", "teacher": "living"}, "allowed: 'frozen', 'live'"),
        ({"loss": "trades", "teacher_loss": "rslad"}, "teacher_loss='rslad', which distils"),
        ({"loss": "trades", "attack": "fgsm"}, "allowed: 'ffgsm', 'n-fgsm', 'pgd'"),
        ({"loss": "trades", "attack_steps": 0}, "attack_steps must be a whole number of at least 1, got 0"),
        ({"loss": "trades", "batch_norm": "eval"}, "allowed: 'batch', 'clean', 'running'"),
        ({"loss": "trades", "warmup": 1}, "warmup < epochs; got warmup=1.0, epochs=1"),
        ({"loss": "trades", "warmup": -0.5}, "0 <= warmup"),
        ({"loss": "trades", "weight_decay": -1e-4}, "not negative, got -0.0001"),
        ({"loss": "trades", "choices": {"depth": (1,)}}, "Did you mean 'depths'"),
        ({"loss": "trades", "choices": {"depths": ()}}, "non-empty list of numbers as depths"),
        ({"loss": "trades", "choices": {"depths": 2}}, "must map names to lists, got {'depths': 2}"),
    ],
)
def test_a_wrong_stage_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Stage(**{"name": "x", "epochs": 1, **arguments})


@pytest.mark.parametrize("schedule", ["papper", [], ["teacher"]])
def test_an_unknown_schedule_is_refused(resnet, schedule):
    with pytest.raises(ValueError, match="schedule"):
        make_schedule(schedule, resnet)


def test_images_that_a_live_teacher_does_not_make_cannot_be_shared():
    with pytest.raises(ValueError, match="teacher_loss='natural' makes none"):
        Stage("all", 1, "rslad", ("depth",), teacher="live", teacher_loss="natural", share_attack=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 1.5}, "stage 'a': epochs must be a whole number"),
        ({"students_per_step": 2.0}, "students_per_step must be a whole number"),
        ({"attack_steps": 0}, "attack_steps must be a whole number of at least 1, got 0"),
        ({"lr": float("inf")}, "lr must be finite"),
        ({"warmup": float("nan")}, "warmup must be finite"),
    ],
)
def test_numbers_of_a_stage_that_would_not_end_or_train_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Stage(**{"name": "a", "epochs": 2, "loss": "sat", **change})


@pytest.mark.parametrize("name", ["awp", "weight_decay", "checkpoint_seconds", "momentum"])
def test_settings_that_are_no_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be finite, got nan"):
        TrainSettings(**{name: float("nan")})
