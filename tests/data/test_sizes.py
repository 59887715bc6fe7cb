"""Which image sizes a network takes: what it says agrees with running it."""

from __future__ import annotations

import pytest
import timm
import torch

import proard_nas  # noqa: F401
from proard_nas.data import check_image_size, smallest_size


def runs(network, size):
    try:
        return torch.isfinite(network(torch.rand(1, network.in_chans, *size))).all().item()
    except RuntimeError:
        return False


@pytest.mark.parametrize("name", ["proard_dyn_resnet_tiny", "proard_dyn_resnet_small"])
def test_the_smallest_size_is_the_smallest_that_runs(name):
    network = timm.create_model(name).eval()
    height, width = smallest_size(network)
    by_running = next(n for n in range(1, 64) if runs(network, (n, n)))
    assert (height, width) == (by_running, by_running)
    check_image_size(network, (height, width))


@pytest.mark.parametrize("size", [(5, 9), (8, 8), (13, 7), (33, 40)])
def test_odd_and_oblong_sizes_are_allowed_and_run(size):
    network = timm.create_model("proard_dyn_resnet_small").eval()
    check_image_size(network, size)
    assert runs(network, size)


def test_a_size_that_is_too_small_is_refused_with_the_smallest_allowed():
    network = timm.create_model("proard_dyn_resnet_small").eval()
    assert not runs(network, (1, 8))
    with pytest.raises(ValueError, match="images of 1x8 pixels are too small for DynResNet; allowed: 2x2 and larger"):
        check_image_size(network, (1, 8))
