"""Promises of channel sorting: the same function, most important channels first, permutations that can be replayed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

DIMENSIONS = [("expand_ratio",), ("width_mult",), ("expand_ratio", "width_mult")]


def l1(weight):
    """Compute the L1 norm of what reads each input channel."""
    return weight.detach().double().abs().sum(dim=(0, 2, 3) if weight.dim() == 4 else 0)


def weight(module):
    """Return the weight of a convolution, whether or not a norm stands with it."""
    return module.weight if isinstance(module, nn.Conv2d) else module.conv.weight


def middle_dimension(net):
    """Name the dimension that the middle channels of blocks belong to."""
    return ("expand_ratio",) if net.space.expand_ratios else ("width_mult",)


def middle_importances(net):
    """Yield the importance of each block's middle channels, by the convolution that reads them, name by name."""
    for stage in net.stages:
        for block in stage:
            for reader in ("project", "conv3", "conv2"):
                if getattr(block, reader, None) is not None:
                    yield l1(weight(getattr(block, reader)))
                    if reader == "conv3":
                        yield l1(block.conv2.conv.weight)
                    break


def is_sorted(values):
    return bool((values[:-1] >= values[1:] - 1e-6 * values.max()).all())  # sums in single precision may tie


@pytest.mark.parametrize("dimensions", DIMENSIONS[::2])
def test_sorting_leaves_the_largest_networks_function_unchanged(net, images, dimensions):
    net = net.double()
    x = images(net).double()
    for mode in (True, False):
        net.train(mode)
        reference = copy.deepcopy(net)(x)
        changed = net.sort_channels(dimensions)
        output = copy.deepcopy(net)(x)
        torch.testing.assert_close(output, reference, rtol=1e-6, atol=1e-6 * reference.abs().max().item())
        assert bool(changed) == bool(set(dimensions) & set(net.space.dimensions))


def test_sorting_changes_single_precision_by_rounding_only(net, images):
    x, reference = images(net), net(images(net))
    net.sort_channels(("expand_ratio", "width_mult"))
    torch.testing.assert_close(net(x), reference, rtol=1e-3, atol=1e-4 * reference.abs().max().item())


def test_sorted_middle_channels_have_falling_importance(net):
    before = list(middle_importances(net))
    assert not all(is_sorted(v) for v in before)
    net.sort_channels(middle_dimension(net))
    after = list(middle_importances(net))
    assert len(after) >= sum(net.space.n_blocks(net.space.largest))
    for old, new in zip(before, after, strict=True):
        assert is_sorted(new)
        if len(old) == len(new):
            torch.testing.assert_close(new.sum(), old.sum())


def test_a_prefix_of_the_sorted_channels_holds_the_most_important_ones(net):
    arch = net.space.smallest
    kept_before = [v[: len(w)].sum() for v, w in paired(net, arch)]
    net.sort_channels(middle_dimension(net))
    pairs = paired(net, arch)
    for before, (full, part) in zip(kept_before, pairs, strict=True):
        best = full.sort(descending=True).values[: len(part)].sum()
        torch.testing.assert_close(full[: len(part)].sum(), best)
        assert full[: len(part)].sum() >= before


def paired(net, arch):
    """Pair the importances of blocks that both the largest and the given student have."""
    student = net.student(arch)
    pairs = []
    for s, stage in enumerate(student.stages):
        for b, block in enumerate(stage):
            big = net.stages[s][b]
            reader = next(r for r in ("project", "conv3", "conv2") if getattr(block, r, None) is not None)
            pairs.append((l1(weight(getattr(big, reader))), l1(weight(getattr(block, reader)))))
    return pairs


def test_sorted_widths_have_falling_importance_over_all_that_read_them(net):
    changed = net.sort_channels(("width_mult",))
    if not net.space.width_mults:
        assert changed == {}
        return
    stages = list(net.stages)
    for i, stage in enumerate(stages):
        readers = [weight(block.conv1) for block in stage[1:]]
        if i + 1 < len(stages):
            first = stages[i + 1][0]
            readers += [weight(first.conv1), weight(first.shortcut)]
        else:
            readers.append(net.head.fc.weight)
        assert is_sorted(sum(l1(w) for w in readers)), f"stage {i}"
    if net.space.n_widths > len(stages):
        first = stages[0][0]
        assert is_sorted(l1(weight(first.conv1)) + l1(weight(first.shortcut))), "stem"


@pytest.mark.parametrize("dimensions", DIMENSIONS)
def test_returned_permutations_reproduce_the_change(net, dimensions):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    changed = net.sort_channels(dimensions)
    for name, tensor in net.state_dict().items():
        expected = before[name]
        for dim, order in changed.get(name, ()):
            assert order.sort().values.equal(torch.arange(len(order)))
            expected = expected.index_select(dim, order)
        assert torch.equal(tensor, expected), name
    assert {k for k in before if not torch.equal(before[k], net.state_dict()[k])} <= set(changed)


def test_sorting_again_changes_nothing(net):
    net = net.double()  # sums in another order do not tie differently then
    net.sort_channels()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.sort_channels()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_sorting_keeps_the_modules_parameters_so_that_optimizers_stay_valid(net):
    before = {k: (id(p), p.data_ptr()) for k, p in net.named_parameters()}
    net.sort_channels(("expand_ratio", "width_mult"))
    assert {k: (id(p), p.data_ptr()) for k, p in net.named_parameters()} == before
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_gates_do_not_count_as_readers(supernet):
    net = supernet("proard_dyn_mobilenetv3").eval()
    gates = [m for m in net.modules() if type(m).__name__ == "SqueezeExcite"]
    assert gates
    twin = copy.deepcopy(net)
    for module in twin.modules():
        if type(module).__name__ == "SqueezeExcite":
            nn.init.normal_(module.conv_reduce.weight, std=100.0)
    orders = [{k: [o.tolist() for _, o in v] for k, v in n.sort_channels().items()} for n in (net, twin)]
    assert orders[0] == orders[1]


def test_what_is_within_a_gate_is_sorted_by_the_weights_that_read_it(supernet):
    net = supernet("proard_dyn_mobilenetv3").double().eval()
    gates = [module for name, module in net.named_modules() if name.endswith("se.conv_expand")]
    assert len(gates) > 3
    for gate in gates:
        nn.init.normal_(gate.weight)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = net(x)
        net.sort_channels()
        torch.testing.assert_close(net(x), before)
    for gate in gates:
        importance = gate.weight.abs().sum((0, 2, 3))
        assert (importance.diff() <= 0).all() and importance[0] > importance[-1]


def test_students_of_a_sorted_supernet_are_still_consistent(net, images):
    net.sort_channels(("expand_ratio", "width_mult"))
    arch = net.space.sample(0)
    assert torch.equal(net.student(arch)(images(net)), net.extract(arch)(images(net)))


def test_an_unknown_dimension_is_refused(net):
    with pytest.raises(ValueError, match=r"unknown dimension to sort 'depth'; allowed: 'expand_ratio', 'width_mult'"):
        net.sort_channels(("depth",))
