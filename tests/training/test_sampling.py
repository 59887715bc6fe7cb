"""Samplers against closed forms, enumeration and the costs of the published spaces."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from scipy.stats import kstest

import proard_nas  # noqa: F401
from proard_nas.supernets import SearchSpace
from proard_nas.training.sampling import SAMPLERS, attentive, sandwich, uniform

NETWORKS = ("proard_dyn_resnet50", "proard_dyn_mobilenetv3", "proard_dyn_resnet_tiny")


def blocks(arch):
    return sum(arch.depth)


def never(arch):
    raise AssertionError("this sampler needs no costs")


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    with torch.device("meta"):
        return timm.create_model(request.param)


@pytest.fixture(scope="module")
def drawn(network):
    return attentive(network.space, 1000, np.random.default_rng(0), lambda arch: network.cost(arch).macs)


def places(network, students):
    """Return costs on a scale from the smallest student (0) to the largest (1)."""
    low, high = (network.cost(arch).macs for arch in (network.space.smallest, network.space.largest))
    return np.array([(network.cost(arch).macs - low) / (high - low) for arch in students])


def test_attentive_students_are_even_over_cost(network, drawn):
    at = places(network, drawn)
    assert kstest(at, "uniform").statistic < 0.08
    counts = np.histogram(at, bins=10, range=(0, 1))[0]
    assert counts.min() >= 70 and counts.max() <= 130


def test_uniform_students_are_not(network):
    at = places(network, uniform(network.space, 1000, np.random.default_rng(0), never))
    assert kstest(at, "uniform").statistic > 0.2
    assert np.histogram(at, bins=10, range=(0, 1))[0][-2:].sum() < 20


def test_attentive_reaches_both_ends(network, drawn):
    assert network.space.smallest in drawn and network.space.largest in drawn


def test_attentive_students_of_one_cost_differ(network, drawn):
    at = places(network, drawn)
    middle = [arch for arch, place in zip(drawn, at, strict=True) if abs(place - 0.5) < 0.05]
    assert len(set(middle)) > 0.9 * len(middle) > 60
    for gene in range(len(network.space.genes)):
        assert len({network.space.to_genes(arch)[gene] for arch in middle}) > 1


def test_attentive_asks_for_few_costs(network):
    asked = []
    attentive(network.space, 10, np.random.default_rng(0), lambda arch: asked.append(arch) or network.cost(arch).macs)
    rises = sum(len(gene.choices) - 1 for gene in network.space.genes)
    assert len(asked) <= 2 + 10 * (math.ceil(math.log2(rises + 1)) + 2)


@pytest.mark.parametrize(
    ("cost", "shares"),
    [
        (lambda depth: depth, [1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8]),
        (lambda depth: depth**2, [1.5 / 24, 4 / 24, 6 / 24, 8 / 24, 4.5 / 24]),
    ],
)
def test_with_one_choice_each_student_gets_the_costs_nearest_it(cost, shares):
    space = SearchSpace(depths=(1, 2, 3, 4, 5), base_depths=(0,))
    students = attentive(space, 8000, np.random.default_rng(0), lambda arch: cost(arch.depth[0]))
    counts = Counter(arch.depth[0] for arch in students)
    assert [counts[depth] / 8000 for depth in range(1, 6)] == pytest.approx(shares, abs=0.02)


def test_in_the_middle_all_values_of_a_choice_are_equally_likely():
    space = SearchSpace(depths=(1, 2, 3), base_depths=(0,) * 20)
    students = attentive(space, 6000, np.random.default_rng(0), blocks)
    counts = Counter(depth for arch in students if blocks(arch) == 40 for depth in arch.depth)
    assert [counts[depth] / counts.total() for depth in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_every_student_of_a_small_space_is_reached():
    space = SearchSpace(depths=(0, 1), base_depths=(1, 1), expand_ratios=(0.25, 0.5))
    students = attentive(space, 4000, np.random.default_rng(0), lambda arch: sum(1 + sum(r) for r in arch.expand_ratio))
    assert set(students) == set(space)


def test_the_order_in_which_choices_are_listed_does_not_matter():
    spaces = [SearchSpace(depths=depths, base_depths=(0, 0, 0)) for depths in ((1, 2, 3), (3, 1, 2))]
    first, second = (attentive(space, 50, np.random.default_rng(0), blocks) for space in spaces)
    assert first == second


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_space_of_one_student_gives_that_student(name):
    space = SearchSpace(depths=(2,), base_depths=(0, 0))
    assert SAMPLERS[name](space, 3, np.random.default_rng(0), blocks) == [space.largest] * 3


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_students_are_as_many_as_asked_of_the_space_and_the_generators_own(network, name, n):
    def cost(arch):
        return network.cost(arch).macs

    first, again, other = (SAMPLERS[name](network.space, n, np.random.default_rng(seed), cost) for seed in (3, 3, 4))
    assert len(first) == n and all(arch in network.space for arch in first)
    assert first == again
    assert first != other or (name == "sandwich" and n < 3)


def test_sandwich_is_the_largest_the_smallest_and_random_ones(network):
    space, rng = network.space, np.random.default_rng(0)
    assert sandwich(space, 1, rng, never) == [space.largest]
    assert sandwich(space, 2, rng, never) == [space.largest, space.smallest]
    three = sandwich(space, 3, rng, never)
    assert three[:2] == [space.largest, space.smallest] and three[2] in space
