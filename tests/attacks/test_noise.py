"""Noise: a pure function of seed and order, the same for one process and for many."""

from __future__ import annotations

import math

import pytest
import torch

from proard_nas.attacks import Noise


@pytest.mark.parametrize("draw", ["uniform", "normal"])
@pytest.mark.parametrize(("total", "size"), [(12, 3), (13, 3), (5, 4), (7, 1)])
def test_the_shards_of_a_draw_are_the_joined_draw(draw, total, size):
    x = torch.zeros(total, 3, 4, 4)
    joined = [getattr(noise, draw)(x) for noise in [Noise(3)] for _ in range(3)]
    for rank in range(size):
        noise = Noise(3, total, rank, size)
        for whole in joined:
            assert torch.equal(getattr(noise, draw)(x[rank::size]), whole[rank::size])


def test_draws_follow_from_seed_and_order_alone_and_spare_the_global_generator():
    x, state = torch.zeros(4, 1, 2, 2), torch.get_rng_state()
    first, second = Noise(1), Noise(1)
    a, b = first.uniform(x), first.uniform(x)
    torch.rand(5)
    assert torch.equal(a, second.uniform(x)) and torch.equal(b, second.uniform(x))
    assert not torch.equal(a, b) and not torch.equal(a, Noise(2).uniform(x))
    torch.set_rng_state(state)
    Noise(0).normal(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_moments_and_range_are_those_of_the_distributions():
    x = torch.zeros(400, 3, 16, 16)
    uniform, normal = Noise(0).uniform(x), Noise(0).normal(x)
    assert -1 <= uniform.min() < -0.999 and 0.999 < uniform.max() <= 1
    assert uniform.mean().abs() < 0.005 and math.isclose(uniform.var(), 1 / 3, rel_tol=0.01)
    assert normal.mean().abs() < 0.01 and math.isclose(normal.var(), 1, rel_tol=0.01)
    assert math.isclose((normal**4).mean(), 3, rel_tol=0.03)


def test_the_layout_of_the_images_is_kept_and_changes_no_number():
    x = torch.zeros(4, 3, 5, 5, dtype=torch.bfloat16)
    plain, last = Noise(0).normal(x), Noise(0).normal(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last) and not last.is_contiguous()
    assert plain.dtype == last.dtype == torch.float32 and torch.equal(plain, last)


def test_wrong_shards_are_refused():
    with pytest.raises(ValueError, match=r"rank must be in \[0, size\); got rank=2, size=2"):
        Noise(0, 4, 2, 2)
    with pytest.raises(ValueError, match="process 1 of 2 holds 2 images of a joined batch of 5, got 3"):
        Noise(0, 5, 1, 2).uniform(torch.zeros(3, 1, 1, 1))
