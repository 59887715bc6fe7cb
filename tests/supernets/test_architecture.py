"""Promises of an architecture: a frozen, hashable value that JSON carries, and errors that name what is wrong."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import timm
import torch

from proard_nas.supernets import SUPERNETS, Architecture, SearchSpace

SPACE = SearchSpace(
    depths=(0, 1),
    base_depths=(1, 2),
    width_mults=(0.5, 1.0),
    n_widths=3,
    expand_ratios=(0.25, 0.5),
    kernel_sizes=(3, 5),
    stem_residuals=(False, True),
)
ARCH = Architecture(
    depth=(0, 1),
    width_mult=(0.5, 1.0, 0.5),
    expand_ratio=((0.25,), (0.5, 0.25, 0.5)),
    kernel_size=((3,), (3, 5, 5)),
    stem_residual=True,
)


@pytest.fixture(scope="module", params=SUPERNETS)
def space(request):
    with torch.device("meta"):
        return timm.create_model(request.param).space


def test_json_round_trip_gives_an_equal_value_of_equal_hash(space):
    for seed in range(50):
        arch = space.sample(seed)
        again = Architecture.from_dict(json.loads(json.dumps(arch.to_dict())))
        assert again == arch
        assert hash(again) == hash(arch)
        assert again in space


def test_dict_leaves_out_what_the_network_does_not_have(space):
    given = set(space.sample(0).to_dict()) - {"stem_residual"}
    has = {"width_mult": space.width_mults, "expand_ratio": space.expand_ratios, "kernel_size": space.kernel_sizes}
    assert given == {"depth"} | {name for name, choices in has.items() if choices}


def test_frozen_and_hashable_and_picklable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ARCH.depth = (1, 1)
    assert {ARCH: "seen"}[Architecture(**{f.name: getattr(ARCH, f.name) for f in dataclasses.fields(ARCH)})] == "seen"
    assert pickle.loads(pickle.dumps(ARCH)) == ARCH


def test_lists_become_tuples_so_that_no_part_can_be_changed():
    rows = [[0.25], [0.5, 0.25, 0.5]]
    arch = dataclasses.replace(ARCH, depth=[0, 1], expand_ratio=rows)
    rows[0][0] = 0.5
    assert arch == ARCH
    assert hash(arch) == hash(ARCH)


def test_numbers_of_numpy_become_plain_ones_that_json_takes():
    arch = dataclasses.replace(ARCH, depth=tuple(np.array([0, 1])), width_mult=tuple(np.array([0.5, 1.0, 0.5])))
    assert arch == ARCH
    assert json.loads(json.dumps(arch.to_dict())) == ARCH.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": "01"}, r"depth must be a list, got '01'"),
        ({"depth": 1}, r"depth must be a list, got 1"),
        ({"depth": ("0", 1)}, r"depth must hold numbers, got '0'"),
        ({"depth": (None, 1)}, r"depth must hold numbers, got None"),
        ({"width_mult": {"a": 1}}, r"width_mult must be a list, got \{'a': 1\}"),
        ({"expand_ratio": 0.25}, r"expand_ratio must be a list of one list for each stage, got 0.25"),
        ({"expand_ratio": (0.25, 0.5)}, r"expand_ratio\[0\] must be a list, got 0.25"),
        ({"kernel_size": ((3,), "335")}, r"kernel_size\[1\] must be a list, got '335'"),
        ({"stem_residual": 1}, r"stem_residual must be true or false, got 1"),
        ({"stem_residual": "yes"}, r"stem_residual must be true or false, got 'yes'"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ARCH, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": (0, 7)}, r"depth\[1\]=7 is not among the choices \[0, 1\]"),
        ({"depth": (0, -1)}, r"depth\[1\]=-1 is not among the choices \[0, 1\]"),
        ({"depth": (0, float("nan"))}, r"depth\[1\]=nan is not among the choices \[0, 1\]"),
        ({"depth": (0,)}, r"depth must have 2 values, got 1: \[0\]"),
        ({"width_mult": (0.5, 0.6, 1.0)}, r"width_mult\[1\]=0.6 is not among the choices \[0.5, 1.0\]"),
        ({"width_mult": (0.5, 1.0)}, r"width_mult must have 3 values, got 2"),
        ({"width_mult": ()}, r"width_mult must have 3 values, got 0"),
        ({"expand_ratio": ((0.25,), (0.5, 0.3, 0.5))}, r"expand_ratio\[1\]\[1\]=0.3 is not among.*\[0.25, 0.5\]"),
        (
            {"expand_ratio": ((0.25,), (0.5, 0.5))},
            r"expand_ratio\[1\] must have 3 values for depth 1, got 2: \[0.5, 0.5\]",
        ),
        ({"expand_ratio": ((0.25, 0.5), (0.5, 0.5, 0.5))}, r"expand_ratio\[0\] must have 1 values for depth 0, got 2"),
        ({"expand_ratio": ((0.25,),)}, r"expand_ratio must have 2 stages, got 1"),
        ({"expand_ratio": ()}, r"expand_ratio must have 2 stages, got 0"),
        ({"kernel_size": ((7,), (3, 5, 5))}, r"kernel_size\[0\]\[0\]=7 is not among the choices \[3, 5\]"),
        ({"kernel_size": ((3,), (3, 5))}, r"kernel_size\[1\] must have 3 values"),
    ],
)
def test_a_value_outside_the_space_is_refused_with_the_field_and_what_is_allowed(change, message):
    wrong = dataclasses.replace(ARCH, **change)
    assert wrong not in SPACE
    with pytest.raises(ValueError, match="outside the search space: " + message):
        SPACE.validate(wrong)


def test_a_dimension_that_the_network_does_not_have_is_refused():
    plain = SearchSpace(depths=(0, 1), base_depths=(1, 1), expand_ratios=(0.25, 0.5))
    good = Architecture(depth=(0, 0), expand_ratio=((0.25,), (0.5,)))
    assert plain.validate(good) is good
    for change, field in [
        ({"kernel_size": ((3,), (3,))}, "kernel_size must have 0 stages"),
        ({"width_mult": (1.0,)}, "width_mult must have 0 values"),
        ({"stem_residual": True}, "stem_residual=True is not among"),
    ]:
        with pytest.raises(ValueError, match=field):
            plain.validate(dataclasses.replace(good, **change))


def test_what_is_no_architecture_is_refused():
    assert ARCH.to_dict() not in SPACE
    assert None not in SPACE
    with pytest.raises(ValueError, match="expected an Architecture, got dict"):
        SPACE.validate(ARCH.to_dict())


def test_an_unknown_field_is_refused_with_the_likely_one():
    with pytest.raises(ValueError, match=r"unknown architecture field 'expand_ratios'.*Did you mean 'expand_ratio'\?"):
        Architecture.from_dict({"depth": [0], "expand_ratios": [[0.25]]})
    with pytest.raises(ValueError, match=r"'stem_residual', 'width_mult'"):
        Architecture.from_dict({"depth": [0], "quux": 1})


def test_an_architecture_without_depth_or_that_is_no_mapping_is_refused():
    with pytest.raises(ValueError, match=r"needs the field 'depth', got only \['width_mult'\]"):
        Architecture.from_dict({"width_mult": [1.0]})
    with pytest.raises(ValueError, match="must be a mapping of fields, got list"):
        Architecture.from_dict([0, 1])


def test_a_supernet_refuses_an_architecture_outside_its_space(net):
    outside = dataclasses.replace(net.space.largest, depth=(9, *net.space.largest.depth[1:]))
    for use in (net.student, net.extract, net.set_active):
        with pytest.raises(ValueError, match=r"depth\[0\]=9 is not among the choices"):
            use(outside)


def test_a_supernet_takes_an_architecture_as_a_dict(net):
    arch = net.space.sample(0)
    assert net.student(arch.to_dict()).arch == net.extract(arch.to_dict()).arch == arch


def test_whole_numbers_written_as_fractions_become_integers():
    arch = Architecture.from_dict({"depth": [2.0], "kernel_size": [[3.0, 5.0]], "expand_ratio": [[3.0, 4.0]]})
    assert arch == Architecture(depth=(2,), kernel_size=((3, 5),), expand_ratio=((3, 4),))
    assert all(type(value) is int for value in (*arch.depth, *arch.kernel_size[0]))
