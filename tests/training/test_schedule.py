"""Schedules against the paper's section 5.0.1, and their arithmetic."""

from __future__ import annotations

import pytest
import timm

import proard_nas  # noqa: F401
from proard_nas.supernets import SearchSpace
from proard_nas.training import SCHEDULES, Stage, make_schedule


@pytest.fixture
def resnet():
    return timm.create_model("proard_dyn_resnet_tiny").space


@pytest.fixture
def mobilenet():
    return SearchSpace(depths=(1, 2), base_depths=(1, 1), expand_ratios=(3, 4), kernel_sizes=(3, 5))


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


@pytest.mark.parametrize("name", sorted(SCHEDULES))
@pytest.mark.parametrize("epochs", [4, 5, 11, 66, 660, 1000])
def test_epochs_are_shared_in_proportion_and_none_is_lost(resnet, name, epochs):
    full, scaled = make_schedule(name, resnet), make_schedule(name, resnet, epochs=epochs)
    assert sum(stage.epochs for stage in scaled) == epochs
    total = sum(stage.epochs for stage in full)
    for whole, part in zip(full, scaled, strict=True):
        assert part.epochs >= 1
        assert abs(part.epochs - epochs * whole.epochs / total) <= 2


def test_fewer_epochs_than_stages_are_refused(resnet):
    with pytest.raises(ValueError, match="epochs=3 is less than one for each of the 4 stages"):
        make_schedule("paper", resnet, epochs=3)


def test_a_schedule_of_ones_own_is_taken_as_it_is(resnet):
    stages = [Stage("only", 2, "trades", lr=0.3)]
    assert make_schedule(stages, resnet, lr=0.01) == stages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "tradse"}, "Did you mean 'trades'"),
        ({"loss": "trades", "elastic": ("widht_mult",)}, "Did you mean 'width_mult'"),
        ({"loss": "trades", "sampler": "sandwhich"}, "Did you mean 'sandwich'"),
        ({"loss": "trades", "epochs": 0}, "at least one epoch"),
        ({"loss": "trades", "lr": 0}, "lr > 0"),
        ({"loss": "trades", "students_per_step": 0}, "one student"),
    ],
)
def test_a_wrong_stage_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Stage(**{"name": "x", "epochs": 1, **arguments})


@pytest.mark.parametrize("schedule", ["papper", [], ["teacher"]])
def test_an_unknown_schedule_is_refused(resnet, schedule):
    with pytest.raises(ValueError, match="schedule"):
        make_schedule(schedule, resnet)
