"""Promises of live and extracted students: the same network to the bit, and nobody writes another's tensors."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import timm
import torch
from torch import nn

from proard_nas.supernets import StudentNet, Supernet, is_calibrated, load_statistics, statistics_of
from proard_nas.supernets.supernet import has_seen_images

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def archs(net, n=3):
    return [net.space.largest, net.space.smallest, *(net.space.sample(seed) for seed in range(n))]


def state(net):
    """Copy everything a network holds: tensors, modes, plain attributes."""
    tensors = {k: v.detach().clone() for k, v in net.state_dict().items()}
    modes = {name: m.training for name, m in net.named_modules()}
    return tensors, modes, [plain(m) for m in net.modules()]


def plain(module):
    kinds = (int, float, str, bool, tuple, list, type(None))
    return {k: v for k, v in vars(module).items() if isinstance(v, kinds) and k != "training"}


def assert_same_state(before, after):
    assert before[0].keys() == after[0].keys()
    changed = [k for k in before[0] if not torch.equal(before[0][k], after[0][k])]
    assert not changed
    assert before[1:] == after[1:]


def storages(net):
    return {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers()] if t.numel()}


# -- the same network --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_live_and_extracted_students_give_the_same_bits(net, images, layout, mode):
    net = net.to(memory_format=LAYOUTS[layout]).train(mode == "train")
    x = images(net).to(memory_format=LAYOUTS[layout])
    for arch in archs(net):
        live, extracted = net.student(arch), net.extract(arch)
        first, second = live(x), extracted(x)
        assert torch.equal(first, second), arch
        assert first.std() > 1e-4
        for (name, a), (other, b) in zip(live.state_dict().items(), extracted.state_dict().items(), strict=True):
            assert name == other
            assert torch.equal(a, b), name  # in train mode both updated their statistics alike


def test_outputs_depend_on_every_tensor_of_a_student(net, images):
    """Guard the other tests: a branch that starts at zero would make them vacuous."""
    arch = net.space.sample(0) if net.space.size < 1e12 else net.space.smallest
    student, x = net.extract(arch).eval(), images(net, n=1)
    reference = student(x)
    for name, tensor in student.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        kept = tensor.clone()
        with torch.no_grad():
            tensor.mul_(1.5).add_(0.05)
            assert not torch.equal(student(x), reference), name
            tensor.copy_(kept)


def test_the_largest_live_student_is_the_supernet(net, images):
    x = images(net)
    live = net.student(net.space.largest)
    assert torch.equal(live(x), net(x))
    assert type(live) is net.student_type
    assert not isinstance(live, Supernet)


def test_students_are_the_leading_slices_of_the_supernet(net):
    full = net.state_dict()
    for arch in archs(net):
        for name, tensor in net.extract(arch).state_dict().items():
            if name.endswith("depthwise.conv.weight") and tensor.shape[-1] < full[name].shape[-1]:
                continue  # elastic kernels have their own tests
            if name.endswith("num_batches_tracked"):
                continue
            lead = full[name][tuple(slice(n) for n in tensor.shape)]
            assert torch.equal(tensor, lead), name


def test_extracted_students_are_the_static_networks_timm_builds(net, images):
    for arch in archs(net):
        extracted = net.extract(arch)
        built = timm.create_model(net.cfg.student, arch=arch.to_dict())
        assert type(extracted) is type(built) is net.student_type
        assert repr(extracted) == repr(built)
        built.load_state_dict(extracted.state_dict())
        assert torch.equal(built.eval()(images(net)), extracted.eval()(images(net)))


def test_live_and_extracted_students_have_the_same_modules_and_attributes(net):
    for arch in archs(net):
        live, extracted = net.student(arch), net.extract(arch)
        assert repr(live) == repr(extracted)
        pairs = list(zip(live.named_modules(), extracted.named_modules(), strict=True))
        for (name, a), (other, b) in pairs:
            assert (name, type(a)) == (other, type(b))
            assert vars(a).keys() == vars(b).keys(), name
            assert list(a._parameters) == list(b._parameters), name
            assert list(a._buffers) == list(b._buffers), name
            assert {k: t is None for k, t in a._parameters.items()} == {k: t is None for k, t in b._parameters.items()}
            assert plain(a) == plain(b), name
        assert [n for n, _ in live.named_parameters()] == [n for n, _ in extracted.named_parameters()]
        assert live.feature_info == extracted.feature_info
        assert live.cost() == extracted.cost() == net.cost(arch)


def test_live_students_work_without_gradients(net, images):
    arch = net.space.sample(0)
    with torch.no_grad():
        made_without = net.student(arch)(images(net))
    made_with = net.student(arch)
    assert not made_without.requires_grad
    with torch.no_grad():
        assert torch.equal(made_with(images(net)), made_without)
    with torch.inference_mode():
        assert torch.equal(net.student(arch)(images(net)), made_without)


# -- modes and options are carried along -------------------------------------------------------


def test_a_student_is_in_the_mode_of_the_supernet_module_by_module(net):
    arch = net.space.sample(0)
    for training in (True, False):
        net.train(training)
        assert all(m.training is training for m in net.student(arch).modules())
        assert all(m.training is training for m in net.extract(arch).modules())
    net.train()
    frozen = [
        n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and n.startswith(("stem", "stages.0.0."))
    ]
    for name in frozen:
        net.get_submodule(name).eval()
    live = net.student(arch)
    kept = [n for n in frozen if n in dict(live.named_modules())]
    assert kept
    assert not any(live.get_submodule(n).training for n in kept)
    assert live.stages[0][0].training


def test_a_student_with_some_norms_frozen_trains(net, images):
    """One norm's update of its statistics must not spoil another's backward pass."""
    net.train()
    frozen = [m for m in net.stem.modules() if isinstance(m, nn.BatchNorm2d)]
    for module in frozen:
        module.eval()
    arch = net.space.sample(0)
    live, extracted = net.student(arch), net.extract(arch)
    for module in extracted.stem.modules():
        module.train(not isinstance(module, nn.BatchNorm2d))
    for student in (live, extracted):
        student(images(net)).square().sum().backward()
    name, parameter = next(iter(extracted.stem.named_parameters()))
    found = net.stem.get_parameter(name).grad
    assert torch.equal(found[tuple(slice(n) for n in parameter.shape)], parameter.grad)


def test_a_changed_dropout_reaches_students(net, images):
    arch = net.space.sample(0)
    net.train()
    x, plain_output = images(net), net.student(arch)(images(net))
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    net.drop_rate = 0.5
    net.head.drop_rate = 0.5
    outputs = []
    for student in (net.student(arch), net.extract(arch)):
        torch.manual_seed(1)
        outputs.append(student(x))
        assert student.drop_rate == 0.5
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], plain_output)


def test_dropout_of_the_constructor_reaches_students(images):
    net = timm.create_model("proard_dyn_resnet_tiny", drop_rate=0.3).train()
    for student in (net.student(net.space.sample(0)), net.extract(net.space.sample(0))):
        assert student.head.drop.p == student.drop_rate == 0.3


def test_gradient_checkpointing_is_carried_along_and_changes_no_result(net, images):
    arch, x = net.space.sample(0), images(net)
    net.train()
    outputs, gradients = [], []
    for enable in (False, True):
        other = copy.deepcopy(net)
        other.set_grad_checkpointing(enable)
        live, extracted = other.student(arch), other.extract(arch)
        assert live.grad_checkpointing is extracted.grad_checkpointing is enable
        outputs += [live(x), extracted(x)]
        outputs[-2].square().sum().backward()
        gradients.append(other.stem.get_parameter(next(n for n, _ in other.stem.named_parameters())).grad)
    for output in outputs[1:]:
        assert torch.equal(output, outputs[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


def test_dtype_and_device_are_carried_along(net):
    arch = net.space.sample(0)
    for student in (net.double().student(arch), net.extract(arch)):
        assert {t.dtype for t in student.parameters()} == {torch.float64}
    with torch.device("meta"):
        shape = timm.create_model(net.default_cfg["architecture"], **net.model_args())
    live = shape.student(arch)
    assert {t.device.type for t in live.parameters()} == {"meta"}
    assert live(torch.zeros(1, net.in_chans, *net.cfg.img_size, device="meta")).shape == (1, net.num_classes)


def test_frozen_parameters_stay_frozen_in_live_students(net, images):
    net.requires_grad_(False)
    live = net.student(net.space.sample(0))
    assert not any(p.requires_grad for p in live.parameters())
    x = images(net).requires_grad_()
    live(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in net.parameters())


def test_extracted_parameters_are_leaves_that_train(net):
    net.requires_grad_(False)
    for parameter in net.extract(net.space.sample(0)).parameters():
        assert isinstance(parameter, nn.Parameter)
        assert parameter.is_leaf
        assert parameter.requires_grad


# -- nobody writes another's tensors -----------------------------------------------------------


def test_training_forwards_of_one_student_change_no_other_and_not_the_supernet(net, images):
    net.train()
    chosen = archs(net)
    students = [net.student(arch) for arch in chosen] + [net.student(chosen[-1])]
    before, others = state(net), [state(s) for s in students]
    for i, student in enumerate(students):
        student(images(net, n=4, seed=i))
        assert_same_state(before, state(net))
        for j, other in enumerate(students):
            if j > i:
                assert_same_state(others[j], state(other))
    for student, was in zip(students, others, strict=True):
        now = statistics_of(student)
        assert all(not torch.equal(now[name], was[0][name]) for name in now), "every statistic follows the batch"


def test_changing_the_mode_of_a_live_student_leaves_the_supernet_in_its_own(net):
    net.train()
    before = state(net)
    live = net.student(net.space.sample(0)).eval()
    assert not any(m.training for m in live.modules())
    assert_same_state(before, state(net))
    assert all(m.training for m in net.student(net.space.sample(0)).modules())


def test_live_students_share_no_buffers_with_anyone(net):
    students = [net.student(arch) for arch in archs(net)]
    for i, student in enumerate(students):
        for other in [net, *students[:i]]:
            mine = {b.untyped_storage().data_ptr() for b in student.buffers()}
            assert not mine & {b.untyped_storage().data_ptr() for b in other.buffers()}


def test_extracted_students_share_nothing_with_anyone(net, images):
    chosen = archs(net)
    students = [net.extract(arch) for arch in chosen] + [net.extract(chosen[-1])]
    seen = storages(net)
    for student in students:
        own = storages(student)
        assert not own & seen
        seen |= own
    modules = [set(map(id, s.modules())) for s in [net, *students]]
    assert sum(map(len, modules)) == len(set().union(*modules))


def test_changing_an_extracted_student_leaves_the_supernet_and_the_other_way_round(net, images):
    x, arch = images(net), net.space.sample(0)
    before = state(net)
    student = net.extract(arch)
    reference = student(x)
    with torch.no_grad():
        for tensor in student.state_dict().values():
            tensor.zero_()
    student.train().drop_rate = 0.7
    assert_same_state(before, state(net))
    student = net.extract(arch)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.zero_()
    assert torch.equal(student(x), reference)


def test_hooks_of_the_supernet_stay_with_the_supernet(net, images):
    fired = []

    def record(*_):
        fired.append(1)

    for module in net.modules():
        module.register_forward_hook(record)
        module.register_forward_pre_hook(record)
        module.register_state_dict_pre_hook(record)
    arch = net.space.sample(0)
    for student in (net.student(arch), net.extract(arch)):
        student(images(net)).sum().backward()
        student.state_dict()
        assert not fired
    net(images(net))
    assert fired


def test_hooks_of_a_live_student_stay_with_the_live_student(net, images):
    fired = []
    live = net.student(net.space.sample(0))
    for module in live.modules():
        module.register_forward_hook(lambda *_: fired.append(1))
    net(images(net))
    net.student(net.space.sample(0))(images(net))
    assert not fired


# -- statistics --------------------------------------------------------------------------------


def test_statistics_given_to_a_student_are_copied_into_it(net, images):
    arch = net.space.sample(0)
    net.train()
    trained = net.student(arch)
    trained(images(net, n=8))
    saved = {k: v.clone() for k, v in statistics_of(trained).items()}
    for student in (net.student(arch, saved), net.extract(arch, saved)):
        own = statistics_of(student)
        assert own.keys() == saved.keys()
        assert all(torch.equal(own[k], saved[k]) for k in saved)
        student(images(net, n=8, seed=1))
        assert all(torch.equal(v, statistics_of(trained)[k]) for k, v in saved.items())


def test_only_the_largest_student_starts_from_calibrated_statistics(net):
    assert is_calibrated(net)
    for make in (net.student, net.extract):
        assert is_calibrated(make(net.space.largest))
        assert not is_calibrated(make(net.space.smallest))
    norms = [m for m in net.student(net.space.smallest).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(int(m.num_batches_tracked) == 0 for m in norms)


def test_statistics_of_another_network_are_refused_and_nothing_is_copied(net):
    largest = {k: v + 1 for k, v in statistics_of(net).items()}
    live = net.student(net.space.smallest)
    before = state(live)
    for wrong in (largest, {**statistics_of(live), "no.such.norm": torch.zeros(1)}):
        with pytest.raises(ValueError, match="statistics of another network"):
            load_statistics(live, wrong)
        assert_same_state(before, state(live))
    with pytest.raises(ValueError, match="statistics of another network"):
        net.extract(net.space.smallest, largest)


# -- copying and saving the supernet -----------------------------------------------------------


def test_a_supernet_can_be_copied_and_its_state_loaded_with_an_active_student_too(net, images):
    x = images(net)
    for arch in (None, net.space.sample(0)):
        net.set_active(arch)
        twin = copy.deepcopy(net)
        assert torch.equal(twin(x), net(x))
        assert twin.active == net.active
        assert not storages(twin) & storages(net)
        fresh = timm.create_model(net.default_cfg["architecture"], **net.model_args()).eval()
        fresh.load_state_dict(net.state_dict())
        fresh.set_active(arch)
        assert torch.equal(fresh(x), net(x))
        with torch.no_grad():
            next(twin.parameters()).add_(1.0)
        assert not torch.equal(twin(x), net(x))


def test_state_of_a_supernet_is_that_of_its_largest_student_and_the_kernel_matrices(net):
    largest = net.extract(net.space.largest).state_dict()
    extra = set(net.state_dict()) - set(largest)
    assert not set(largest) - set(net.state_dict())
    assert all(".transform_" in name for name in extra)
    assert bool(extra) == bool(net.space.kernel_sizes)


# -- the active student ------------------------------------------------------------------------


def test_the_active_student_is_the_extracted_one(net, images):
    x, reference = images(net), net(images(net))
    for arch in archs(net):
        net.set_active(arch)
        student = net.extract(arch)
        assert net.active == student.arch == arch
        assert net.cost() == net.cost(net.space.largest)
        assert net.cost(net.active) == student.cost()
        assert torch.equal(net(x), student(x))
        features = net.forward_features(x)
        assert torch.equal(features, student.forward_features(x))
        assert torch.equal(net.forward_head(features), student.forward_head(features))
        assert torch.equal(net.forward_head(features, pre_logits=True), student.forward_head(features, pre_logits=True))
        pairs = zip(
            net.forward_intermediates(x, intermediates_only=True),
            student.forward_intermediates(x, intermediates_only=True),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in pairs)
    net.set_active(None)
    assert net.active == net.space.largest
    assert torch.equal(net(x), reference)


def test_the_active_student_keeps_statistics_of_its_own_while_it_is_active(net, images):
    arch = net.space.sample(0)
    net.set_active(arch)
    before = state(net)
    net.train()
    own = net.extract(arch)
    for seed in range(3):
        x = images(net, n=4, seed=seed)
        assert torch.equal(net(x), own(x))
    net.eval()
    own.eval()
    assert_same_state(before, state(net))  # the supernet's own statistics are those of the largest
    assert torch.equal(net(images(net)), own(images(net)))
    again = net.extract(arch)
    assert is_calibrated(again)
    assert torch.equal(again(images(net)), own(images(net)))
    net.set_active(net.space.largest)
    assert not is_calibrated(net.extract(arch))


def test_loading_a_state_makes_the_active_student_uncalibrated(net, images):
    arch = net.space.sample(0)
    net.set_active(arch)
    net.train()(images(net, n=4))
    assert has_seen_images(net.active_statistics)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.mul_(2)
    nn.Sequential(net).load_state_dict({f"0.{name}": value for name, value in other.state_dict().items()})
    assert net.active == arch
    assert not has_seen_images(net.active_statistics)
    assert all(
        torch.equal(value, statistics_of(net.student(arch))[name]) for name, value in net.active_statistics.items()
    )
    assert has_seen_images(other.active_statistics)
    net.set_active(None)
    net.load_state_dict(other.state_dict())
    assert is_calibrated(net)


def test_the_active_student_trains_the_supernet(net, images):
    net.set_active(net.space.sample(0))
    net.train()
    net(images(net)).square().sum().backward()
    live = copy.deepcopy(net)
    live.zero_grad(set_to_none=True)
    live.set_active(None)
    live.student(net.active)(images(net)).square().sum().backward()
    pairs = [(a.grad, b.grad) for a, b in zip(net.parameters(), live.parameters(), strict=True)]
    assert any(a is not None and a.abs().max() > 0 for a, _ in pairs)
    assert all(a is b is None or torch.equal(a, b) for a, b in pairs)


# -- options -----------------------------------------------------------------------------------


def test_a_supernet_is_a_student_network_and_a_module(net):
    assert isinstance(net, Supernet)
    assert isinstance(net, StudentNet)
    assert net.arch == net.active == net.space.largest
    assert not dataclasses.is_dataclass(net)


def test_the_statistics_of_the_active_student_are_moved_and_converted_with_the_supernet():
    net = timm.create_model("proard_dyn_resnet_tiny").eval()
    net.set_active(net.space.smallest)
    assert net.double()(torch.rand(2, 1, 8, 8).double()).dtype == torch.float64
    assert {value.device.type for value in net.to("meta").active_statistics.values()} == {"meta"}
