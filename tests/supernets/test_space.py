"""Promises of a search space: an exact size, only valid architectures, uniform choices, genes that lose nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter

import numpy as np
import pytest
import timm
import torch

from proard_nas.supernets import SUPERNETS, Architecture, SearchSpace

SMALL = {
    "depth": SearchSpace(depths=(0, 1, 2), base_depths=(1, 2)),
    "depth is the count": SearchSpace(depths=(1, 2), base_depths=(0, 0), expand_ratios=(3, 4)),
    "width": SearchSpace(depths=(0,), base_depths=(1, 1), width_mults=(0.5, 0.75, 1.0), n_widths=3),
    "expansion": SearchSpace(depths=(0, 1), base_depths=(1, 2), expand_ratios=(0.2, 0.3)),
    "kernel": SearchSpace(depths=(1, 2), base_depths=(0, 0), kernel_sizes=(3, 5), expand_ratios=(3, 4)),
    "all": SearchSpace(
        depths=(0, 2),
        base_depths=(1, 1),
        width_mults=(0.5, 1.0),
        n_widths=2,
        expand_ratios=(0.25, 0.5),
        kernel_sizes=(3,),
        stem_residuals=(False, True),
    ),
}


@pytest.fixture(scope="module", params=SUPERNETS)
def registered(request):
    with torch.device("meta"):
        return timm.create_model(request.param).space


@pytest.fixture(params=SMALL)
def small(request):
    return SMALL[request.param]


def brute_force(space):
    """Return every architecture, by trying rows of every length that any stage could have."""
    n = len(space.base_depths)
    longest = max(space.base_depths) + max(space.depths)

    def stages(choices):
        if not choices:
            return [()]
        rows = [row for k in range(longest + 1) for row in itertools.product(choices, repeat=k)]
        return list(itertools.product(rows, repeat=n))

    found = set()
    for depth in itertools.product(space.depths, repeat=n):
        lengths = [base + d for base, d in zip(space.base_depths, depth, strict=True)]
        fits = [
            [s for s in stages(c) if not s or [len(row) for row in s] == lengths]
            for c in (space.expand_ratios, space.kernel_sizes)
        ]
        widths = itertools.product(space.width_mults, repeat=space.n_widths)
        for width, expand, kernel, stem in itertools.product(widths, *fits, space.stem_residuals or (False,)):
            found.add(Architecture(depth, width, expand, kernel, stem))
    return found


def far_from_expected(count, total, choices):
    """Tell whether a count of a uniform choice is more than five standard deviations off."""
    p = 1 / choices
    return abs(count - total * p) > 5 * (total * p * (1 - p)) ** 0.5


# -- size and enumeration ----------------------------------------------------------------------


def test_size_and_iteration_are_those_of_brute_force(small):
    listed = list(small)
    assert len(listed) == len(set(listed)) == small.size
    assert set(listed) == brute_force(small)
    assert all(arch in small for arch in listed)


def test_size_is_an_exact_integer_where_a_float_is_not():
    space = SearchSpace(depths=(2, 3, 4), base_depths=(0,) * 5, expand_ratios=(3, 4, 6), kernel_sizes=(3, 5, 7))
    assert isinstance(space.size, int)
    assert space.size == (9**2 + 9**3 + 9**4) ** 5
    assert int(float(space.size)) != space.size


def test_largest_and_smallest_have_the_extreme_value_of_every_choice(registered):
    for arch, pick in ((registered.largest, max), (registered.smallest, min)):
        assert arch in registered
        assert set(arch.depth) == {pick(registered.depths)}
        assert set(arch.width_mult) <= {pick(registered.width_mults or (0,))}
        for rows, choices in (
            (arch.expand_ratio, registered.expand_ratios),
            (arch.kernel_size, registered.kernel_sizes),
        ):
            assert {v for row in rows for v in row} == ({pick(choices)} if choices else set())
        assert arch.stem_residual is (pick is max and bool(registered.stem_residuals))


def test_order_of_the_choices_does_not_matter_for_the_ends():
    shuffled = SearchSpace(depths=(1, 0), base_depths=(1,), expand_ratios=(0.5, 0.2, 0.35))
    assert shuffled.largest == Architecture((1,), expand_ratio=((0.5, 0.5),))
    assert shuffled.smallest == Architecture((0,), expand_ratio=((0.2,),))


# -- sampling ----------------------------------------------------------------------------------


def test_samples_are_valid_and_the_same_for_the_same_seed(registered):
    for seed in range(200):
        arch = registered.sample(seed)
        assert arch in registered
        assert arch == registered.sample(np.random.default_rng(seed)) == registered.sample(seed)
    assert len({registered.sample(seed) for seed in range(200)}) > 190


def test_a_generator_is_advanced_and_the_global_state_left_alone(registered, rng):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert registered.sample(rng) != registered.sample(rng)
    registered.sample()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_samples_reach_every_choice_uniformly_and_independently(registered, rng):
    n = 2000
    genes = np.array([[float(v) for v in registered.to_genes(registered.sample(rng))] for _ in range(n)])
    first_block = [i for i, g in enumerate(registered.genes) if g.block is None or g.block < 1]
    for i in first_block:
        choices = registered.genes[i].choices
        counts = Counter(genes[:, i])
        assert set(counts) == {float(c) for c in choices}, registered.genes[i]
        assert not any(far_from_expected(k, n, len(choices)) for k in counts.values()), registered.genes[i]
    free = [i for i in first_block if len(registered.genes[i].choices) > 1]
    correlation = np.corrcoef(genes[:, free], rowvar=False) - np.eye(len(free))
    assert np.abs(correlation).max() < 5.5 / np.sqrt(n)


def test_samples_of_a_small_space_reach_all_of_it(small, rng):
    assert {small.sample(rng) for _ in range(30 * small.size)} == set(small)


def test_distinct_samples_are_distinct_valid_reproducible_and_leave_out_what_is_excluded(registered):
    first = registered.sample_distinct(60, seed=1)
    assert first == registered.sample_distinct(60, seed=1) != registered.sample_distinct(60, seed=2)
    assert len(set(first)) == 60
    assert all(arch in registered for arch in first)
    second = registered.sample_distinct(60, seed=1, exclude=first)
    assert not set(first) & set(second)


@pytest.mark.parametrize("n", [-1, 2.5, "3", None])
def test_a_number_of_samples_that_is_none_is_refused(small, n):
    with pytest.raises(ValueError, match="n must be a whole number of at least 0"):
        small.sample_distinct(n)


def test_distinct_samples_can_exhaust_the_space_but_not_exceed_it(small):
    known = next(iter(small))
    rest = small.sample_distinct(small.size - 1, seed=0, exclude=[known, known])
    assert set(rest) == set(small) - {known}
    with pytest.raises(ValueError, match=f"{small.size - 1} architectures to draw from, {small.size} were asked for"):
        small.sample_distinct(small.size, seed=0, exclude=[known])


def test_distinct_samples_of_an_enumerated_space_are_uniform(rng):
    space = SMALL["expansion"]
    counts = Counter(arch for _ in range(600) for arch in space.sample_distinct(space.size // 2, seed=rng))
    total = sum(counts.values())
    assert not any(far_from_expected(counts[arch], total, space.size) for arch in space)


# -- genetic operators -------------------------------------------------------------------------


def test_mutants_and_children_are_valid(registered, rng):
    for _ in range(100):
        first, second = registered.sample(rng), registered.sample(rng)
        for probability in (0.0, 0.1, 0.5, 1.0):
            assert registered.mutate(first, probability, rng) in registered
        assert registered.crossover(first, second, rng) in registered


def test_mutation_redraws_each_choice_with_its_probability(registered, rng):
    arch, genes = registered.largest, registered.genes
    assert registered.mutate(arch, 0.0, rng) == arch
    stem = [i for i, g in enumerate(genes) if g.block is None]
    for probability in (0.1, 1.0):
        n = 300
        changed = sum(
            a != b
            for _ in range(n)
            for a, b in zip(
                [registered.to_genes(registered.mutate(arch, probability, rng))[i] for i in stem],
                [registered.to_genes(arch)[i] for i in stem],
                strict=True,
            )
        )
        p = [probability * (1 - 1 / len(genes[i].choices)) for i in stem]  # a redraw may give the same value
        spread = (n * sum(q * (1 - q) for q in p)) ** 0.5
        assert abs(changed - n * sum(p)) < 5 * spread


def test_mutation_and_crossover_are_the_same_for_the_same_seed(registered):
    first, second = registered.sample(1), registered.sample(2)
    assert registered.mutate(first, 0.5, seed=3) == registered.mutate(first, 0.5, seed=3)
    assert registered.crossover(first, second, seed=3) == registered.crossover(first, second, seed=3)


def test_a_child_has_each_choice_from_one_of_its_parents_and_both_give(registered, rng):
    largest, smallest = registered.largest, registered.smallest
    pairs = list(zip(registered.to_genes(largest), registered.to_genes(smallest), strict=True))
    from_first = 0
    genes = [i for i, g in enumerate(registered.genes) if g.block is None and len(g.choices) > 1]
    for _ in range(200):
        child = registered.to_genes(registered.crossover(largest, smallest, rng))
        assert all(value in pair for value, pair in zip(child, pairs, strict=True))
        from_first += sum(child[i] == pairs[i][0] for i in genes)
    assert not far_from_expected(from_first, 200 * len(genes), 2)
    assert registered.crossover(largest, largest, rng) == largest


def test_operators_refuse_architectures_from_outside():
    other = SMALL["depth"].largest
    with pytest.raises(ValueError, match="outside the search space"):
        SMALL["all"].mutate(other)
    with pytest.raises(ValueError, match="outside the search space"):
        SMALL["all"].crossover(SMALL["all"].largest, other)


# -- genes and features ------------------------------------------------------------------------


def test_genes_lose_nothing(registered, rng):
    for _ in range(200):
        arch = registered.sample(rng)
        assert registered.decode(registered.to_genes(arch)) == arch


def test_genes_lose_nothing_anywhere_in_a_small_space(small):
    assert [small.decode(small.to_genes(arch)) for arch in small] == list(small)


def test_genes_of_absent_blocks_are_ignored():
    space = SMALL["expansion"]
    values = space.to_genes(space.smallest)
    for i, gene in enumerate(space.genes):
        if gene.block is not None and gene.block >= space.base_depths[gene.stage]:
            values[i] = gene.choices[0]
    assert space.decode(values) == space.smallest


def test_a_wrong_number_of_genes_is_refused():
    space = SMALL["expansion"]
    with pytest.raises(ValueError, match=f"expected {len(space.genes)} genes, got 1"):
        space.decode([0])


def test_genes_are_a_choice_for_each_decision_of_the_largest(registered):
    blocks = sum(registered.n_blocks(registered.largest))
    per_block = bool(registered.expand_ratios) + bool(registered.kernel_sizes)
    n = bool(registered.stem_residuals) + registered.n_widths + registered.n_stages + per_block * blocks
    assert len(registered.genes) == n
    assert len({g.name for g in registered.genes}) == n


def test_features_have_one_length_and_are_bounded(registered, rng):
    features = np.stack([registered.encode(registered.sample(rng)) for _ in range(100)])
    assert features.dtype == np.float64
    assert features.min() >= 0
    assert features.max() <= 1
    assert len(features[0]) == sum(len(g.choices) if len(g.choices) <= 4 else 2 for g in registered.genes)


def test_features_tell_all_architectures_apart(small):
    assert len({small.encode(arch).tobytes() for arch in small}) == small.size


def test_features_tell_samples_apart(registered, rng):
    archs = {registered.sample(rng) for _ in range(2000)}
    assert len({registered.encode(arch).tobytes() for arch in archs}) == len(archs)


def test_features_of_many_choices_are_presence_and_value():
    ratios = tuple(round(0.2 + 0.01 * i, 2) for i in range(16))
    space = SearchSpace(depths=(0, 1), base_depths=(1,), expand_ratios=ratios)
    assert space.encode(Architecture((0,), expand_ratio=((0.2,),))).tolist() == [1, 0, 1, 0, 0, 0]
    assert space.encode(Architecture((1,), expand_ratio=((0.35, 0.23),))) == pytest.approx([0, 1, 1, 1, 1, 0.2])


def test_features_of_few_choices_are_one_hot():
    space = SMALL["depth is the count"]
    arch = Architecture((1, 2), expand_ratio=((4,), (3, 4)))
    assert space.encode(arch).tolist() == [1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1]


# -- sub-spaces --------------------------------------------------------------------------------


def test_restricted_spaces_are_parts_with_the_size_of_brute_force():
    space = SMALL["all"]
    part = space.restrict(depths=[0], expand_ratios=(0.5,))
    assert set(part) == brute_force(part)
    assert set(part) == {a for a in space if a.depth == (0, 0) and {v for r in a.expand_ratio for v in r} == {0.5}}
    assert space.restrict() == space


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"depths": [0, 5]}, r"depths=\[0, 5\] must be a non-empty part of \[0, 2\]"),
        ({"depths": []}, r"depths=\[\] must be a non-empty part"),
        ({"kernel_sizes": [5]}, r"kernel_sizes=\[5\] must be a non-empty part of \[3\]"),
        ({"depth": [0]}, r"unknown list of choices 'depth'.*Did you mean 'depths'\?"),
        ({"base_depths": [1, 1]}, r"unknown list of choices 'base_depths'"),
    ],
)
def test_restricting_to_what_is_not_there_is_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        SMALL["all"].restrict(**choices)


def test_elastic_dimensions_open_one_after_the_other(registered):
    dimensions = registered.dimensions
    assert registered.with_elastic(()).size == 1
    assert list(registered.with_elastic(())) == [registered.largest]
    sizes = [registered.with_elastic(dimensions[:k]).size for k in range(len(dimensions) + 1)]
    assert sizes == sorted(set(sizes))
    assert registered.with_elastic(dimensions) == registered
    for k in range(len(dimensions) + 1):
        part = registered.with_elastic(dimensions[:k])
        assert part.largest == registered.largest
        assert part.dimensions == dimensions[:k]
        assert all(part.sample(seed) in registered for seed in range(20))


def test_elastic_depth_opens_the_optional_convolution_of_the_stem_too():
    part = SMALL["all"].with_elastic(["depth"])
    assert part.stem_residuals == (False, True)
    assert part.size == 2 * 2 * 2
    assert SMALL["all"].with_elastic(["width_mult"]).stem_residuals == (True,)


def test_the_papers_dimensions_open_in_the_papers_order():
    with torch.device("meta"):
        resnet, mobilenet = (timm.create_model(f"proard_dyn_{n}").space for n in ("resnet50", "mobilenetv3"))
    assert resnet.dimensions == ("width_mult", "depth", "expand_ratio")
    assert mobilenet.dimensions == ("kernel_size", "depth", "expand_ratio")


def test_an_unknown_dimension_is_refused_with_the_likely_one():
    with pytest.raises(ValueError, match=r"unknown dimension 'width'.*Did you mean 'width_mult'\?"):
        SMALL["all"].with_elastic(["width"])


# -- the value itself --------------------------------------------------------------------------


def test_json_round_trip_gives_an_equal_space_of_equal_hash(registered):
    again = SearchSpace.from_dict(json.loads(json.dumps(registered.to_dict())))
    assert again == registered
    assert hash(again) == hash(registered)
    assert again.sample(5) == registered.sample(5)


def test_an_unknown_field_is_refused_with_the_likely_one():
    with pytest.raises(ValueError, match=r"unknown search space field 'depth'.*Did you mean 'depths'\?"):
        SearchSpace.from_dict({"depth": [0], "base_depths": [1]})


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL["all"].depths = (0,)


def test_whole_numbers_are_integers_however_they_are_written():
    whole = SearchSpace(depths=(0, 1), base_depths=(1, 1), kernel_sizes=(3, 5))
    other = SearchSpace(depths=(0.0, 1.0), base_depths=(1.0, 1), kernel_sizes=(3.0, np.float64(5)))
    assert repr(other) == repr(whole) and other.largest == whole.largest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": ()}, "depths must list at least one choice"),
        ({"depths": (1, 1)}, "depths must not repeat a choice"),
        ({"depths": (-1, 1)}, "depths must be non-negative numbers"),
        ({"depths": (0.5, 1)}, "depths must be whole numbers"),
        ({"depths": "01"}, "depths must be a list"),
        ({"depths": ("0",)}, "depths must hold numbers"),
        ({"base_depths": ()}, r"base_depths must be whole numbers, one for each stage, got \(\)"),
        ({"base_depths": (1.5, 1)}, r"base_depths must be whole numbers, one for each stage, got \(1.5, 1\)"),
        ({"base_depths": (-1, 1)}, "base_depths must be whole numbers"),
        ({"base_depths": (1, 0)}, "every stage needs at least one block"),
        ({"width_mults": (0.0, 1.0)}, "width_mults must be positive numbers"),
        ({"width_mults": (float("nan"),)}, "width_mults must be positive numbers"),
        ({"width_mults": (float("inf"),)}, "width_mults must be positive numbers"),
        ({"width_mults": ()}, "does not fit n_widths=2"),
        ({"n_widths": 0}, "does not fit n_widths=0"),
        ({"expand_ratios": (-0.2,)}, "expand_ratios must be positive numbers"),
        ({"expand_ratios": (0.2, 0.2)}, "expand_ratios must not repeat"),
        ({"kernel_sizes": (4,)}, "kernel_sizes must be odd"),
        ({"kernel_sizes": (2.5,)}, "kernel_sizes must be whole numbers"),
    ],
)
def test_impossible_choices_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL["all"], **change)
